"""Raw data by name: `digits`, or a file as `idx:PATH`, `npy:PATH`, `npz:PATH#name`, `csv:PATH`."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from pyrovae.data.arrays import read_idx, read_npy, read_npz
from pyrovae.data.files import DataError
from pyrovae.data.tables import read_csv

__all__ = ["RawData", "read"]

FORMS = "digits, idx:PATH, npy:PATH, npz:PATH, npz:PATH#NAME or csv:PATH"
NAMELESS: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawData:
    """Data as they stand in the source: one row a datum, the shape of one datum, and the names of columns, if any."""

    spec: str
    values: Shaped[np.ndarray, "n x"]
    event_shape: tuple[int, ...]
    columns: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Fingerprint of type, shape and numbers (little-endian, row by row), the same for a file plain or gzip."""
        dtype = self.values.dtype.newbyteorder("<")
        digest = hashlib.sha256(f"{dtype.str} {[len(self.values), *self.event_shape]}\n".encode())
        digest.update(np.ascontiguousarray(self.values, dtype).data)
        return digest.hexdigest()


def read(spec: str) -> RawData:
    """Read data as they are, without scaling or splitting; images become rows.

    Args:
        spec: `digits` (scikit-learn's, 1797 images of 8 x 8 pixels, 0 to 16); or a kind and a file: `idx:PATH`
            (as MNIST and Fashion-MNIST come), `npy:PATH`, `npz:PATH` (its only array), `npz:PATH#NAME`, `csv:PATH`.
            Files may be gzip, whatever their names.

    Returns:
        Numbers `[n, X]` in the source's own type, X the product of `event_shape`.

    Raises:
        DataError: an unknown form; a file that is missing, of another kind, truncated, damaged, empty, ragged, with
            trailing bytes, pickled objects, NaN or infinite values, or one axis only: it names file and place.

    >>> raw = read("digits")
    >>> raw.values.shape, raw.event_shape
    ((1797, 64), (8, 8))
    """
    kind, _, path = spec.partition(":")
    if spec == "digits":
        images, columns = _digits(), NAMELESS
    elif kind in READERS and path:
        images, columns = READERS[kind](path)
    else:
        hint = f"csv:{spec} or another kind" if os.path.exists(spec) else FORMS
        raise DataError(f"data are named {FORMS}, got {spec!r}; pass {hint}")
    return RawData(spec, images.reshape(len(images), -1), images.shape[1:], columns)


def _digits() -> npt.NDArray[Any]:
    from sklearn.datasets import load_digits

    images: npt.NDArray[Any] = load_digits().images
    return images


def _read_member(path: str) -> npt.NDArray[Any]:
    """An npz file's array, `#NAME` behind the path unless that is the name of a file."""
    place, _, name = path.rpartition("#")
    return read_npz(path) if not place or os.path.exists(path) else read_npz(place, name)


READERS: dict[str, Callable[[str], tuple[npt.NDArray[Any], tuple[str, ...]]]] = {
    "idx": lambda path: (read_idx(path), NAMELESS),
    "npy": lambda path: (read_npy(path), NAMELESS),
    "npz": lambda path: (_read_member(path), NAMELESS),
    "csv": read_csv,
}
