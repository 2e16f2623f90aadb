"""Result trees on disk: written whole or not at all, read back identical, and named by their content."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import xarray as xr

from pyrovae.results.schema import check

__all__ = ["content_hash", "read", "write"]

_VOLATILE: Final = re.compile(
    r"(^|_)(seconds|time|date|created|versions?|python|host|hostname|device|machine|platform)(_|$)"
)


def write(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a result tree as netCDF, or as zarr if `path` ends in `.zarr`, replacing what is there.

    The tree is written beside `path` under another name and then renamed, so a failure leaves what was there
    and nothing half-written.

    Raises:
        ValueError: If the tree does not pass `check`.
        FileNotFoundError: If the folder does not exist.

    Examples:
        >>> import tempfile
        >>> tree = xr.DataTree.from_dict({"history": xr.Dataset({"elbo": ("epoch", [-9.0, -8.0])})})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(tree, f"{folder}/run.nc")
        ...     read(f"{folder}/run.nc").identical(tree)
        True
    """
    check(tree)
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target.name}: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        if target.suffix == ".zarr":
            # Format 2: format 3 has no specification for strings yet.
            tree.to_zarr(temporary, zarr_format=2)
            _replace_folder(temporary, target)
        else:
            tree.to_netcdf(temporary, engine="h5netcdf")
            _sync(temporary)
            os.replace(temporary, target)
    finally:
        _remove(temporary)
    _sync(target.parent)


def read(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a result tree that `write` wrote, whole into memory, and check it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a result tree.
    """
    target = Path(path)
    if not target.exists():
        raise FileNotFoundError(f"there is no result tree {target}")
    engine = "zarr" if target.suffix == ".zarr" else "h5netcdf"
    with xr.open_datatree(target, engine=engine) as opened:
        tree = opened.load().map_over_datasets(_plain)
    check(tree)
    return tree


def content_hash(tree: xr.DataTree) -> str:
    """SHA-256 of what was measured and how: arrays, dims, coordinates, and attributes that are settings.

    Variables named `seconds` do not count, nor attributes (nested ones too) that have one of the words
    seconds, time, date, created, version, host, device, machine, platform or python in their name.

    Examples:
        >>> tree = xr.DataTree.from_dict({"history": xr.Dataset({"elbo": ("epoch", [-9.0, -8.0])})})
        >>> other = tree.copy()
        >>> other.attrs["torch_version"] = "2.13"
        >>> content_hash(other) == content_hash(tree)
        True
        >>> other.attrs["seed"] = 1
        >>> content_hash(other) == content_hash(tree)
        False
    """
    digest = hashlib.sha256()
    for node in sorted(tree.subtree, key=lambda node: node.path):
        dataset = node.to_dataset(inherit=False)
        variables = {str(name): variable for name, variable in dataset.variables.items() if name != "seconds"}
        digest.update(_line([node.path, _settings(dict(dataset.attrs)), sorted(variables)]))
        for name in sorted(variables):
            variable = variables[name]
            kind, content = _bytes(variable.values)
            digest.update(_line([name, list(variable.dims), list(variable.shape), kind, len(content)]))
            digest.update(content)
    return digest.hexdigest()


def _replace_folder(temporary: Path, target: Path) -> None:
    """Put a folder where another may be: the old one is moved aside first, and back if the move fails."""
    aside = temporary.with_name(f"{temporary.name}.old")
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(temporary, target)
    except BaseException:
        if aside.exists():
            os.replace(aside, target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """Without the file's chunks and with Python's own numbers: fit for another format."""
    plain = dataset.drop_encoding()
    plain.attrs = {k: v.item() if isinstance(v, np.generic) else v for k, v in dataset.attrs.items()}
    return plain


def _settings(value: Any) -> Any:
    """A settings tree without what differs from one machine or hour to the next."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    if not isinstance(value, dict):
        return value.item() if isinstance(value, np.generic) else value
    return {name: _settings(kept) for name, kept in value.items() if not _VOLATILE.search(name.lower())}


def _line(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _bytes(array: np.ndarray) -> tuple[str, bytes]:
    """An array's kind and content, before and after a file: little-endian, one NaN, strings as JSON."""
    if array.dtype.kind in "UO":
        return "string", _line(array.tolist())
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return little.dtype.str, little.tobytes()
