"""One verified, pickle-free zip file of tensors and a manifest, written so that it is whole or absent."""

import json
import os
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["DAMAGE", "CheckpointError", "octets", "read_archive", "sync_folder", "write_archive"]

MANIFEST = "manifest.json"

# What zipfile raises on damaged bytes, apart from its own BadZipFile; and what a manifest that lies leads to.
DAMAGE = (
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


class CheckpointError(Exception):
    """A file is no checkpoint, is damaged, of a newer version, or of another model; or it could not be written.

    Attributes:
        is_damage: whether the file itself is bad, so that another copy of it may be good.
    """

    def __init__(self, message: str, is_damage: bool = False) -> None:
        super().__init__(message)
        self.is_damage = is_damage


def write_archive(path: Path, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a zip of `manifest.json` and of the tensors' little-endian bytes, each with a checksum.

    It is written beside `path`, flushed to the disk, and renamed, so that an interruption leaves the old file or none.
    """
    entries = [
        {"name": name, "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
        for name, t in tensors.items()
    ]
    with _atomic(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps({**manifest, "tensors": entries}, indent=1))
        for index, tensor in enumerate(tensors.values()):
            archive.writestr(zipfile.ZipInfo(_entry(index)), _to_bytes(tensor))


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that its names survive a loss of power."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_archive(
    path: Path, kind: str, version: int, writer: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors of a file, every byte of which was checked. Runs no code from it.

    Args:
        path: the file.
        kind: what the manifest must call its format.
        version: the newest version of the format that can be read.
        writer: what writes such files, for messages.

    Raises:
        CheckpointError: not such a file, truncated or damaged, or of a newer version.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        try:
            with zipfile.ZipFile(file) as archive:
                manifest = _manifest(archive)
                _check_kind(path, manifest, kind, version, writer)
                return manifest, _tensors(archive, manifest["tensors"])
        except DAMAGE as error:
            if not start.startswith(b"PK"):
                raise CheckpointError(
                    f"{path} is not a checkpoint; pass a file that {writer} wrote", is_damage=True
                ) from error
            raise CheckpointError(
                f"{path} is truncated or damaged ({type(error).__name__}: {error}); fall back to another copy",
                is_damage=True,
            ) from error


def _manifest(archive: zipfile.ZipFile) -> Any:
    return json.loads(_raw(archive, MANIFEST)) if MANIFEST in archive.namelist() else None


def _check_kind(path: Path, manifest: Any, kind: str, version: int, writer: str) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != kind:
        raise CheckpointError(f"{path} is a zip file but not a checkpoint; pass a file that {writer} wrote")
    if manifest["version"] > version:
        raise CheckpointError(
            f"{path} has format version {manifest['version']} and this pyrovae reads up to {version}; upgrade "
            "pyrovae"
        )


def _tensors(archive: zipfile.ZipFile, entries: Any) -> dict[str, Tensor]:
    return {
        entry["name"]: _from_bytes(_raw(archive, _entry(index)), entry["dtype"], entry["shape"])
        for index, entry in enumerate(entries)
    }


def _raw(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of an entry, which are stored as they are: a small file that unpacks to a large one is refused."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def _entry(index: int) -> str:
    return f"tensors/{index}"


def _to_bytes(tensor: Tensor) -> bytes:
    return octets(tensor).numpy().tobytes()


def octets(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in order, little-endian, on the CPU; not a copy where that can be avoided.

    >>> octets(torch.tensor([1, 258], dtype=torch.int16)).tolist()
    [1, 0, 2, 1]
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _little_endian(flat.view(torch.uint8), flat.dtype)


def _from_bytes(raw: bytes, dtype: str, shape: list[int]) -> Tensor:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype) or len(raw) != torch.Size(shape).numel() * kind.itemsize:
        raise ValueError(f"{len(raw)} bytes for a tensor of type {dtype} and shape {shape}")
    if not raw:
        return torch.empty(shape, dtype=kind)
    given = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return _little_endian(given, kind).view(kind).reshape(shape)


def _little_endian(given: Tensor, kind: torch.dtype) -> Tensor:
    """The bytes with the order within each number turned round, on the machines that need it."""
    if sys.byteorder == "little":
        return given
    size = kind.itemsize // 2 if kind.is_complex else kind.itemsize
    return given.reshape(-1, size).flip(1).reshape(-1)
