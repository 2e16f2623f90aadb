"""What a split needs to know of a table, in one pass over it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped
from torch import Tensor

from pyrovae.data.moments import Moments
from pyrovae.data.sources import RawData

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """The fingerprint of a table, its smallest and largest numbers, and the first number that is no integer.

    Attributes:
        sha256: of the raw data, as `RawData.sha256`.
        limits: the smallest and the largest number of each column.
        train_limits: the same of the rows to train on.
        fraction: (value, row, column) of the first number that is no integer, if there is one.
    """

    sha256: str
    limits: Shaped[np.ndarray, "2 x"]
    train_limits: Shaped[np.ndarray, "2 x"]
    fraction: tuple[float, int, int] | None


def survey(raw: RawData, train: Int[Tensor, " n_train"], moments: Moments | None = None) -> Survey:
    """Read all rows once, in blocks.

    Args:
        raw: the table.
        train: the rows to train on, at least one.
        moments: gets the rows to train on, in the order of the table; None where nobody asks.

    Raises:
        DataError: NaN or infinite values, or a part of the source that is damaged; it names the row.
    """
    is_train = np.zeros(len(raw.values), bool)
    is_train[train.numpy()] = True
    digest, fraction = raw.digest(), None
    whole, part = _Limits(), _Limits()
    for start, rows in raw.blocks():
        raw.refuse_non_finite(start, rows)
        digest.update(raw.octets(rows))
        own = rows[is_train[start : start + len(rows)]]
        whole.update(rows)
        part.update(own)
        if moments is not None:
            moments.update(own)
        if fraction is None and not raw.has_integer_type:
            fraction = _fraction(rows, start)
    return Survey(digest.hexdigest(), whole.seen, part.seen, fraction)


class _Limits:
    """The smallest and the largest number of each column so far."""

    def __init__(self) -> None:
        self.seen = np.empty((2, 0))

    def update(self, rows: Shaped[np.ndarray, "m x"]) -> None:
        if not len(rows):
            return
        if not self.seen.size:
            self.seen = np.stack([rows[0], rows[0]])
        lower, upper = self.seen
        np.minimum(lower, rows.min(0), out=lower)
        np.maximum(upper, rows.max(0), out=upper)


def _fraction(rows: Shaped[np.ndarray, "m x"], start: int) -> tuple[float, int, int] | None:
    is_fraction = rows != np.floor(rows)
    if not is_fraction.any():
        return None
    row, column = (int(i) for i in np.argwhere(is_fraction)[0])
    return float(rows[row, column]), start + row, column
