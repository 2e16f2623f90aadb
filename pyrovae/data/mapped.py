"""Tables that stay on the disk: plain idx and npy files, and zarr arrays, of which only what is asked for is read."""

import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from pyrovae.data.arrays import choose, idx_layout, npy_layout
from pyrovae.data.files import GZIP, DataError, Layout, check_layout, check_shape, location
from pyrovae.data.tensors import runs

__all__ = ["FileTable", "NotMappableError", "ZarrTable", "map_idx", "map_npy", "map_zarr"]


class NotMappableError(DataError):
    """A file that is whole and whose rows cannot be read one by one."""


class FileTable:
    """The rows `[n, X]` of an array in a file, read from their places in it, in native byte order.

    They are read and not mapped by the kernel, for which a page counts as memory of the process once it was looked
    at, with its neighbours, and a file that is cut short later is the end of the process.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._file = os.open(location(path), os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.event_shape = tuple(layout.shape[1:])
        self.shape = layout.shape[0], math.prod(self.event_shape)
        self.dtype = layout.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Int[np.ndarray, " m"]) -> Shaped[np.ndarray, "m x"]:
        """Some rows; those that follow one another are read at once.

        Raises:
            DataError: the file ends before a row, which it did not when it was opened.
        """
        wanted = _numbers(rows, len(self))
        block = np.empty((len(wanted), self.shape[1]), self._layout.dtype)
        for start, end in runs(wanted):
            self._fill(block[start:end], int(wanted[start]))
        return block.astype(self.dtype, copy=False)

    def _fill(self, block: Shaped[np.ndarray, "m x"], first: int) -> None:
        """Read the rows from `first` on."""
        octets = block.view(np.uint8).reshape(-1).data
        place, done = self._layout.offset + first * block.strides[0], 0
        while done < len(octets):
            count = os.preadv(self._file, [octets[done:]], place + done)
            if count == 0:
                raise DataError(
                    f"{self._path} has become shorter since it was opened: it ends within row "
                    f"{first + done // block.strides[0]}; put it back"
                )
            done += count


def _numbers(rows: slice | Int[np.ndarray, " m"], size: int) -> Int[np.ndarray, " m"]:
    return np.arange(*rows.indices(size)) if isinstance(rows, slice) else rows


def map_idx(path: str) -> FileTable:
    """The rows of a plain idx file, of which the header is read.

    Raises:
        NotMappableError: it is gzip.
        DataError: as `read_idx`, but for numbers that are not finite.
    """
    return _map(path, idx_layout)


def map_npy(path: str) -> FileTable:
    """The rows of an npy file, of which the header is read.

    Raises:
        NotMappableError: it is gzip, or in Fortran order, where the numbers of a row are scattered over the file.
        DataError: as `read_npy`, but for numbers that are not finite.
    """
    return _map(path, npy_layout)


def _map(path: str, layout_of: Callable[..., Layout]) -> FileTable:
    try:
        with location(path).open("rb") as file:
            is_gzip, size = file.read(2) == GZIP, os.fstat(file.fileno()).st_size
            file.seek(0)
            if size == 0:
                raise DataError(f"{path} is empty, 0 bytes; get another copy")
            if is_gzip:
                raise NotMappableError(f"{path} is gzip, which is read as a whole; unpack it to map it")
            layout = layout_of(path, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check the name and the permissions") from error
    check_layout(path, layout, size)
    if layout.order == "F":
        raise NotMappableError(
            f"{path} is in Fortran order, where a row is scattered over the file; save np.ascontiguousarray of it"
        )
    return FileTable(path, layout)


class ZarrTable:
    """The rows `[n, X]` of a zarr array, read and unpacked chunk by chunk.

    A row costs the unpacking of its chunk: a table to be shuffled wants chunks of few rows. Chunks that were never
    written hold the array's fill value, so that one that was lost cannot be told from those.
    """

    def __init__(self, path: str, array: Any) -> None:
        self._path, self._array = path, array
        self.event_shape = tuple(array.shape[1:])
        self.shape = array.shape[0], math.prod(self.event_shape)
        self.dtype = array.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice | Int[np.ndarray, " m"]) -> Shaped[np.ndarray, "m x"]:
        """A copy of some rows.

        Raises:
            DataError: a chunk that cannot be unpacked; it names the rows that were asked for.
        """
        whole = tuple(slice(None) for _ in self.event_shape)
        try:
            block = self._array.get_orthogonal_selection((rows, *whole))
        except Exception as error:  # every codec has errors of its own
            wanted = _numbers(rows, len(self))
            raise DataError(
                f"{self._path} is damaged in a chunk of rows {wanted.min()} to {wanted.max()} "
                f"({type(error).__name__}: {error}); get another copy"
            ) from error
        return np.asarray(block, self.dtype).reshape(len(block), self.shape[1])


def map_zarr(path: str) -> ZarrTable:
    """The rows of a zarr array, or of the array `#NAME` of a zarr group, of which the metadata are read.

    Raises:
        DataError: no such folder, no zarr, no such array or several and no name, not plain numbers, no data, one axis.
    """
    import zarr

    place, _, name = path.rpartition("#")
    if not place or os.path.exists(path):
        place, name = path, ""
    found = _open(place)
    if isinstance(found, zarr.Group):
        found = found[choose("zarr", place, name or None, sorted(found.array_keys()))]
    elif name:
        raise DataError(f"{place} is one zarr array, got the name {name!r}; pass zarr:{place}")
    if not isinstance(found.dtype, np.dtype) or found.dtype.kind not in "buif":
        raise DataError(f"{path} wants numbers, got dtype {found.dtype}; save an array of floats or integers")
    check_shape(path, found.shape)
    return ZarrTable(path, found)


def _open(path: str) -> Any:
    import zarr

    try:
        place = Path(path).expanduser()
    except RuntimeError as error:  # ~ of an unknown user
        raise DataError(f"{path} cannot be read ({error}); check the name") from error
    if not place.exists():
        raise DataError(f"no such folder: {path!r}, looked for from {Path.cwd()}; check the name")
    try:
        return zarr.open(str(place), mode="r")
    except Exception as error:  # a store of another make fails in many ways
        raise DataError(
            f"{path} is no zarr array or group, or its metadata are damaged ({type(error).__name__}: {error}); check "
            "its kind, or get another copy"
        ) from error
