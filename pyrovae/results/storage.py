"""Result trees on disk: written whole or not at all, read back identical, and named by their content."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from pyrovae.results.places import replacing, settle, write_bytes
from pyrovae.results.schema import check

__all__ = ["content_hash", "read", "read_lazily", "replaced_in_parts", "write", "written_in_parts"]

CHUNK_BYTES: Final = 1 << 24
"""Of a chunk of draws: what is read for a single datum, and far below the 2 GiB that a compressor takes."""

_TIMES: Final = ("seconds", "seconds_std_error", "variance_seconds")
"""Variables that are times, or made of one; no pattern, since a user's own data may be named by one."""

_VOLATILE: Final = re.compile(
    r"(^|_)(seconds|time|date|created|versions?|python|host|hostname|device|machine|platform)(_|$)"
)


def write(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a result tree as netCDF, or as zarr if `path` ends in `.zarr`, replacing what is there.

    The tree is written beside `path` under another name and then renamed, so a failure leaves what was there
    and nothing half-written. What a killed process left so is removed by the next `write` there, an hour later.

    Raises:
        ValueError: If the tree does not pass `check`.
        FileNotFoundError: If the folder does not exist.
        OSError: If it cannot be written, such as to a full disk.

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
    settle(target)
    with replacing(target) as temporary:
        if target.suffix == ".zarr":
            # Format 2: format 3 has no specification for strings yet.
            tree.to_zarr(temporary, zarr_format=2)
        else:
            # Made in memory: where a disk is full HDF5 does not raise, it ends the process.
            write_bytes(tree.to_netcdf(engine="h5netcdf"), temporary)


def read(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a result tree that `write` wrote, whole into memory, and check it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a result tree.
    """
    with _opened(path) as opened:
        # Each dataset by itself: `DataTree.load` leaves behind what it takes for read already.
        tree = opened.map_over_datasets(lambda dataset: _plain(dataset.load()))
    check(tree)
    return tree


def read_lazily(path: str | os.PathLike[str]) -> xr.DataTree:
    """Open a result tree that does not fit in memory: as `read`, but arrays are read when asked for, and not kept.

    Examples:
        >>> import tempfile
        >>> tree = xr.DataTree.from_dict({"history": xr.Dataset({"elbo": ("epoch", [-9.0, -8.0])})})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(tree, f"{folder}/run.zarr")
        ...     float(read_lazily(f"{folder}/run.zarr")["history"]["elbo"][1])
        -8.0
    """
    tree = _opened(path).map_over_datasets(_plain)
    check(tree)
    return tree


@contextlib.contextmanager
def written_in_parts(
    path: str | os.PathLike[str], attrs: Mapping[str, Any] | None = None
) -> Iterator[Callable[[Mapping[str, xr.Dataset]], None]]:
    """Write a zarr tree part by part, for arrays that do not fit in memory: the block is given a function to add parts.

    A part is {group: Dataset}, as made by `group`. A group that is new is written; one that is there grows along
    `datum`, and takes the attributes of its last part. Chunks hold all draws of a few data. The tree stands beside
    `path` under another name until the block ends and the whole is checked; if anything fails, it is removed.

    Args:
        path: Where the tree is to stand.
        attrs: Strings and numbers, the attributes of its root.

    Raises:
        FileExistsError: If there is something at `path`: a result of hours is not replaced by one that may yet fail.
        FileNotFoundError: If the folder that it is to stand in does not exist.
        ValueError: If `path` does not end in `.zarr`, or the whole does not pass `check`.

    Examples:
        >>> import tempfile
        >>> def part(first):
        ...     return {"observed_data": xr.Dataset({"x": ("datum", [0.5, 1.5])}, {"datum": [first, first + 1]})}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_in_parts(f"{folder}/run.zarr") as add:
        ...         add(part(0))
        ...         add(part(2))
        ...     read(f"{folder}/run.zarr")["observed_data"]["x"].values
        array([0.5, 1.5, 0.5, 1.5])
    """
    target = Path(path)
    if target.suffix != ".zarr":
        raise ValueError(
            f"what is written in parts is zarr, so its path must end in .zarr, not {target.name!r}"
        )
    if target.exists():
        raise FileExistsError(
            f"there is already something at {target}: read it with pyrovae.read, remove it, or choose another path"
        )
    with replaced_in_parts(target, attrs or {}) as add:
        yield add


@contextlib.contextmanager
def replaced_in_parts(
    target: Path, attrs: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, xr.Dataset]], None]]:
    """As `written_in_parts`; what is at `target` stays until the whole takes its place."""
    with replacing(target) as temporary:
        yield partial(_add, temporary)
        if not temporary.exists():
            raise ValueError(f"no part was added, so there is nothing to write at {target}")
        _consolidate(temporary, attrs)
        with xr.open_datatree(temporary, engine="zarr") as tree:
            check(tree)


def _add(folder: Path, part: Mapping[str, xr.Dataset]) -> None:
    for name, made in part.items():
        put = partial(made.to_zarr, folder, group=name, consolidated=False)
        if (folder / name).exists():
            put(mode="a-", append_dim="datum")
        else:
            put(mode="a", zarr_format=2, encoding=_chunks(made))  # format 2: as in `write`


def content_hash(tree: xr.DataTree) -> str:
    """SHA-256 of what was measured and how: arrays, dims, coordinates, and attributes that are settings.

    Variables named `seconds`, and what `gradients` makes of them, do not count, nor attributes (nested ones too)
    that have one of the words seconds, time, date, created, version, host, device, machine, platform or python in
    their name.

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
        variables = {
            str(name): variable for name, variable in dataset.variables.items() if name not in _TIMES
        }
        digest.update(_line([node.path, _settings(dict(dataset.attrs)), sorted(variables)]))
        for name in sorted(variables):
            variable = variables[name]
            kind, size, pieces = _bytes(variable)
            digest.update(_line([name, list(variable.dims), list(variable.shape), kind, size]))
            for piece in pieces:
                digest.update(piece)
    return digest.hexdigest()


def _opened(path: str | os.PathLike[str]) -> xr.DataTree:
    target = Path(path)
    if not target.exists():
        raise FileNotFoundError(f"there is no result tree {target}")
    try:
        return xr.open_datatree(
            target, engine="zarr" if target.suffix == ".zarr" else "h5netcdf", cache=False
        )
    except OSError as error:
        raise OSError(
            f"{target} is no result tree, or a damaged one ({error}): pass what `write` wrote, .nc or .zarr; a model "
            "is read by `load`"
        ) from error


def _chunks(made: xr.Dataset) -> dict[str, dict[str, tuple[int, ...]]]:
    """As many data in a chunk as `CHUNK_BYTES` hold, and the whole of every other dim."""
    return {
        str(name): {
            "chunks": tuple(_few(array) if dim == "datum" else size for dim, size in array.sizes.items())
        }
        for name, array in made.data_vars.items()
    }


def _few(array: xr.DataArray) -> int:
    size = array.sizes["datum"]
    return max(1, min(size, CHUNK_BYTES * size // max(1, array.nbytes)))


def _consolidate(folder: Path, attrs: Mapping[str, Any]) -> None:
    """Write the attributes of the root, and let a reader find all metadata in one file."""
    import zarr

    zarr.open_group(folder, mode="r+").attrs.update(attrs)
    zarr.consolidate_metadata(folder)


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


def _bytes(variable: xr.Variable) -> tuple[str, int, Iterator[bytes]]:
    """An array's kind, size and content, before and after a file: little-endian, one NaN, strings as JSON.

    What is large comes in pieces, one for each entry of the first axis, so that a file need not fit in memory.
    """
    if variable.dtype.kind in "UO":
        line = _line(variable.values.tolist())
        return "string", len(line), iter([line])
    little = variable.dtype.newbyteorder("<")
    is_large = variable.ndim > 0 and variable.nbytes > CHUNK_BYTES
    parts = (variable[i] for i in range(len(variable))) if is_large else iter([variable])
    return little.str, variable.nbytes, (_number_bytes(part.values, little) for part in parts)


def _number_bytes(array: np.ndarray, dtype: np.dtype[Any]) -> bytes:
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return np.ascontiguousarray(array).astype(dtype).tobytes()
