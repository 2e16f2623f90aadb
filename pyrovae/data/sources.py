"""Raw data by name: `digits`, or a file as `idx:PATH`, `npy:PATH`, `npz:PATH#name`, `csv:PATH`, `zarr:PATH`."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from pyrovae.data.arrays import read_idx, read_npy, read_npz
from pyrovae.data.files import DataError
from pyrovae.data.mapped import FileTable, NotMappableError, ZarrTable, map_idx, map_npy, map_zarr
from pyrovae.data.tables import read_csv

__all__ = ["RawData", "Table", "read"]

FORMS = "digits, idx:PATH, npy:PATH, npz:PATH, npz:PATH#NAME, csv:PATH, zarr:PATH or zarr:PATH#NAME"
NAMELESS: tuple[str, ...] = ()
MEMORY = ("auto", "read", "map")
LARGE = 1 << 28
"""Numbers from which on "auto" maps a table that can be mapped: 1 GiB of float32."""
BLOCK_BYTES = 1 << 24
SAMPLE = 64
"""Rows by which a mapped table is known again."""
Table = Shaped[np.ndarray, "n x"] | FileTable | ZarrTable


@dataclass(frozen=True)
class RawData:
    """Data as they stand in the source: one row a datum, the shape of one datum, and the names of columns, if any."""

    spec: str
    values: Table
    event_shape: tuple[int, ...]
    columns: tuple[str, ...] = ()

    @property
    def is_mapped(self) -> bool:
        """Whether the numbers stay where they are, so that `values[start:stop]` reads them."""
        return not isinstance(self.values, np.ndarray)

    @property
    def has_integer_type(self) -> bool:
        """Whether its type holds integers only, bool included."""
        return bool(self.values.dtype.kind in "bui")

    @cached_property
    def is_integer(self) -> bool:
        """Whether all numbers are integers; floats are read, in blocks, up to the first that is none."""
        return self.has_integer_type or all((rows == np.rint(rows)).all() for _, rows in self.blocks())

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of type, shape and numbers (little-endian, row by row), the same for a file plain or gzip."""
        digest = self.digest()
        for _, rows in self.blocks():
            digest.update(self.octets(rows))
        return digest.hexdigest()

    @cached_property
    def sample_sha256(self) -> str:
        """As `sha256`, of 64 rows only: the first, the last, and what lies between at even distances.

        It tells of another type, shape or order of rows, and of other numbers in those rows, as where data were scaled
        anew or replaced. A change in other rows it does not see.
        """
        digest = self.digest()
        rows = np.linspace(0, len(self.values) - 1, min(SAMPLE, len(self.values))).astype(int)
        digest.update(self.octets(self.values[rows]))
        return digest.hexdigest()

    def is_that_of(self, description: Mapping[str, Any]) -> bool:
        """Whether they are the data that `Split.describe` spoke of: all numbers in memory, a sample of mapped ones."""
        kind = "sample_sha256" if self.is_mapped else "sha256"
        return bool(getattr(self, kind) == description[kind])

    def digest(self) -> Any:
        """The fingerprint before any number, to be updated with the `octets` of all rows in order."""
        text = f"{self.values.dtype.newbyteorder('<').str} {[len(self.values), *self.event_shape]}\n"
        return hashlib.sha256(text.encode())

    @staticmethod
    def octets(rows: Shaped[np.ndarray, "m x"]) -> memoryview:
        """The little-endian bytes of some rows."""
        return np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")).data

    def blocks(self) -> Iterator[tuple[int, Shaped[np.ndarray, "m x"]]]:
        """All rows in order, as (first row, rows), about 16 MiB at a time."""
        size = max(1, BLOCK_BYTES // max(1, self.values.shape[1] * self.values.dtype.itemsize))
        for start in range(0, len(self.values), size):
            yield start, self.values[start : start + size]

    def refuse_non_finite(self, start: int, rows: Shaped[np.ndarray, "m x"]) -> None:
        """Raise a DataError where some rows, the first of which is number `start`, are not finite."""
        if rows.dtype.kind != "f" or np.isfinite(rows).all():
            return
        row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
        index = [start + row, *(int(i) for i in np.unravel_index(column, self.event_shape))]
        raise DataError(
            f"{self.spec} wants finite numbers, got {rows[row, column]} in row {start + row}, at index {index}; remove "
            "or fill such values"
        )


def read(spec: str, memory: str = "auto") -> RawData:
    """Read data as they are, without scaling or splitting; images become rows.

    Args:
        spec: `digits` (scikit-learn's, 1797 images of 8 x 8 pixels, 0 to 16); or a kind and a file: `idx:PATH`
            (as MNIST and Fashion-MNIST come), `npy:PATH`, `npz:PATH` (its only array), `npz:PATH#NAME`, `csv:PATH`,
            `zarr:PATH` (an array, or the only one of a group), `zarr:PATH#NAME`. Files may be gzip, whatever
            their names.
        memory: "read" for all numbers in memory. "map" for none: rows are read when they are asked for,
            and nobody has looked whether they are finite; for plain idx files, npy files in C order, zarr arrays.
            "auto" maps those of 2^28 numbers or more, which is 1 GiB of float32.

    Returns:
        Numbers `[n, X]` in the source's own type, X the product of `event_shape`.

    Raises:
        DataError: an unknown form; a file that is missing, of another kind, truncated, damaged, empty, ragged, with
            trailing bytes, pickled objects, NaN or infinite values, or one axis only: it names file and place. One
            that cannot be mapped.
        ValueError: `memory` is another word.

    >>> raw = read("digits")
    >>> raw.values.shape, raw.event_shape
    ((1797, 64), (8, 8))
    """
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of {', '.join(MEMORY)}, got {memory!r}; pass one of these")
    kind, _, path = spec.partition(":")
    if kind in MAPS and path and (table := _mapped(kind, path, memory)) is not None:
        return RawData(spec, table, table.event_shape)
    if memory == "map":
        raise DataError(
            f"{spec} cannot be mapped: {', '.join(MAPS)} can; write it as one, or read it into memory"
        )
    if spec == "digits":
        images, columns = _digits(), NAMELESS
    elif kind in READERS and path:
        images, columns = READERS[kind](path)
    else:
        raise DataError(f"data are named {FORMS}, got {spec!r}; pass {_meant(spec)}")
    return RawData(spec, images.reshape(len(images), -1), images.shape[1:], columns)


def _meant(spec: str) -> str:
    """The name with its kind, which the ending of a file tells."""
    path = spec.partition("#")[0]
    ending = path.removesuffix(".gz").replace("-", ".").rpartition(".")[2].lower()
    kind = {"tsv": "csv", "txt": "csv", "ubyte": "idx"}.get(ending, ending)
    if kind in READERS:
        return f"{kind}:{spec}"
    return f"csv:{spec} or another kind" if os.path.exists(path) else "one of these"


def _mapped(kind: str, path: str, memory: str) -> FileTable | ZarrTable | None:
    """The table of a source that is to be mapped."""
    if memory == "read":
        return None
    try:
        table = MAPS[kind](path)
    except NotMappableError:
        if memory == "map":
            raise
        return None
    return table if memory == "map" or math.prod(table.shape) >= LARGE else None


def _digits() -> npt.NDArray[Any]:
    from sklearn.datasets import load_digits

    images: npt.NDArray[Any] = load_digits().images
    return images


def _read_member(path: str) -> npt.NDArray[Any]:
    """An npz file's array, `#NAME` behind the path unless that is the name of a file."""
    place, _, name = path.rpartition("#")
    return read_npz(path) if not place or os.path.exists(path) else read_npz(place, name)


def _read_zarr(path: str) -> npt.NDArray[Any]:
    raw = RawData(path, table := map_zarr(path), table.event_shape)
    values = table[:]
    raw.refuse_non_finite(0, values)
    return values.reshape(len(values), *table.event_shape)


READERS: dict[str, Callable[[str], tuple[npt.NDArray[Any], tuple[str, ...]]]] = {
    "idx": lambda path: (read_idx(path), NAMELESS),
    "npy": lambda path: (read_npy(path), NAMELESS),
    "npz": lambda path: (_read_member(path), NAMELESS),
    "csv": read_csv,
    "zarr": lambda path: (_read_zarr(path), NAMELESS),
}
MAPS: dict[str, Callable[[str], FileTable | ZarrTable]] = {
    "idx": map_idx,
    "npy": map_npy,
    "zarr": map_zarr,
}
