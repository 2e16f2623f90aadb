"""Checkpoints: one verified, pickle-free zip file, written so that it is whole or absent."""

import json
import os
import secrets
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import torch
from torch import Tensor, nn

from pyrovae.models.vae import VAE, build_vae
from pyrovae.seeding import seeded

__all__ = ["FORMAT_VERSION", "CheckpointError", "load", "save"]

FORMAT = "pyrovae checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
Module = TypeVar("Module", bound=nn.Module)

# What zipfile raises on damaged bytes, apart from its own BadZipFile.
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
    """A file is no checkpoint, is damaged, was written by a newer version, or belongs to another model."""


def save(vae: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's parameters and buffers, and the `config` that rebuilds it, to one file.

    The file is a zip of `manifest.json` (format, version, config; name, dtype and shape of each tensor) and of the
    tensors' little-endian bytes, each with a checksum; the same state gives the same bytes. It appears at once:
    it is written beside `path`, flushed to the disk, and renamed, so that an interruption leaves the old file or
    none, and nothing half-written.

    Args:
        vae: a VAE, or any module; one without `config` can be loaded only into a module of the same shapes.
        path: file to write or to replace; its folder must exist.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save wants an existing folder, got {str(path.parent)!r}; create it first")
    state = vae.state_dict()
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": vae.config if isinstance(vae, VAE) else None,
        "tensors": [
            {"name": name, "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
            for name, t in state.items()
        ],
    }
    with _atomic(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, indent=1))
        for index, tensor in enumerate(state.values()):
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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@overload
def load(path: str | os.PathLike[str], into: None = None) -> VAE: ...
@overload
def load(path: str | os.PathLike[str], into: Module) -> Module: ...
def load(path: str | os.PathLike[str], into: nn.Module | None = None) -> nn.Module:
    """Read what `save` wrote, to the last bit, checking every byte on the way. Runs no code from the file.

    Without `into`, the VAE is rebuilt by `build_vae` from the file's config and comes back on the CPU with the
    dtypes it was saved with. With `into`, that module's tensors are overwritten in place: they stay on their
    devices and take the file's dtypes. When it raises, `into` is untouched.

    Args:
        path: a file written by `save`.
        into: a module with the same tensors; needed where the saved one was not made by `build_vae`.

    Returns:
        The rebuilt VAE, or `into`.

    Raises:
        CheckpointError: not a checkpoint, truncated or damaged, of a newer format, or of another model.
        FileNotFoundError: there is no such file.

    >>> import tempfile
    >>> vae = build_vae(5, 2, hidden=(3,), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(vae, folder + "/vae.pyrovae")
    ...     same = load(folder + "/vae.pyrovae")
    >>> all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), same.state_dict().values()))
    True
    """
    config, tensors = _read(Path(path))
    module = _rebuild(path, config) if into is None else into
    target = module.state_dict(keep_vars=True)
    _check_same(path, tensors, target)
    with torch.no_grad():
        for name, value in tensors.items():
            _assign(target[name], value)
    return module


def _assign(target: Tensor, value: Tensor) -> None:
    if target.dtype == value.dtype:
        target.copy_(value)
    else:
        target.grad = None
        target.data = value.to(target.device)


def _rebuild(path: Any, config: dict[str, Any] | None) -> VAE:
    if config is None:
        raise CheckpointError(
            f"{path} holds no recipe, because its VAE was not made by build_vae; build the same VAE again and call "
            "load(path, into=vae)"
        )
    try:
        with seeded(0):
            return build_vae(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a recipe that build_vae does not take: {error}; it may be from another version of pyrovae, "
            "then build the VAE by hand and call load(path, into=vae)"
        ) from error


def _check_same(path: Any, tensors: dict[str, Tensor], target: dict[str, Any]) -> None:
    problems = [f"missing {name!r}" for name in target if name not in tensors]
    problems += [f"unexpected {name!r}" for name in tensors if name not in target]
    problems += [
        f"{name!r} of shape {list(value.shape)} where the model has {list(target[name].shape)}"
        for name, value in tensors.items()
        if name in target and value.shape != target[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} is of another model: {'; '.join(problems)}; build the model it was saved from"
        )


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    with open(path, "rb") as file:
        start = file.read(4)
        try:
            return _read_archive(path, file)
        except DAMAGE as error:
            if not start.startswith(b"PK"):
                raise CheckpointError(
                    f"{path} is not a checkpoint; pass a file that pyrovae.save wrote"
                ) from error
            raise CheckpointError(
                f"{path} is truncated or damaged ({type(error).__name__}: {error}); fall back to another copy"
            ) from error


def _read_archive(path: Path, file: BinaryIO) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    with zipfile.ZipFile(file) as archive:
        if MANIFEST not in archive.namelist():
            raise CheckpointError(
                f"{path} is a zip file but not a checkpoint; pass a file that pyrovae.save wrote"
            )
        manifest = json.loads(archive.read(MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is a zip file but not a checkpoint; pass a file that pyrovae.save wrote"
            )
        if manifest["version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {manifest['version']} and this pyrovae reads up to {FORMAT_VERSION}; "
                "upgrade pyrovae"
            )
        tensors = {
            entry["name"]: _from_bytes(archive.read(_entry(index)), entry["dtype"], entry["shape"])
            for index, entry in enumerate(manifest["tensors"])
        }
    return manifest["config"], tensors


def _entry(index: int) -> str:
    return f"tensors/{index}"


def _to_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _little_endian(flat.view(torch.uint8), flat.dtype).numpy().tobytes()


def _from_bytes(raw: bytes, dtype: str, shape: list[int]) -> Tensor:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype) or len(raw) != torch.Size(shape).numel() * kind.itemsize:
        raise ValueError(f"{len(raw)} bytes for a tensor of type {dtype} and shape {shape}")
    if not raw:
        return torch.empty(shape, dtype=kind)
    octets = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return _little_endian(octets, kind).view(kind).reshape(shape)


def _little_endian(octets: Tensor, kind: torch.dtype) -> Tensor:
    """The bytes with the order within each number turned round, on the machines that need it."""
    if sys.byteorder == "little":
        return octets
    size = kind.itemsize // 2 if kind.is_complex else kind.itemsize
    return octets.reshape(-1, size).flip(1).reshape(-1)
