"""Mean, spread and limits of the columns of a table, in one pass over its rows."""

import numpy as np
from jaxtyping import Shaped

__all__ = ["Moments"]

PIECE = 1 << 17
"""Numbers to take at a time: 1 MiB as float64, which stays in a core's cache."""


class Moments:
    """What is known of each column after some blocks of rows, in float64.

    Two sets with n and m rows, means a and b and sums of squared deviations S and T have together the mean
    a + (b - a) m / (n + m) and the sum S + T + (b - a)^2 n m / (n + m) (Chan, Golub & LeVeque 1983), with
    nothing large to cancel. The last bit hangs on how the rows were cut into blocks, and on nothing else.

    Attributes:
        count: rows so far.
        first: the first of them.
        lower, upper: the smallest and the largest number of each column.
        mean: of each column.
        squares: sum of squared deviations from it.

    >>> moments = Moments()
    >>> for rows in ([[1.0], [3.0]], [[8.0]]):
    ...     moments.update(np.array(rows))
    >>> moments.mean, moments.squares
    (array([4.]), array([26.]))
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, rows: Shaped[np.ndarray, "m x"]) -> None:
        """Add a block of rows, which may be none."""
        size = max(1, PIECE // rows.shape[1])
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # who uses what came of it sees that it is not finite
            for start in range(0, len(rows), size):
                self._add(rows[start : start + size].astype(np.float64))

    def _add(self, rows: Shaped[np.ndarray, "m x"]) -> None:
        mean = rows.mean(0)
        if not self.count:
            self.first, self.lower, self.upper = (rows[0].copy() for _ in range(3))
            self.mean, self.squares = mean.copy(), np.zeros_like(mean)
        np.minimum(self.lower, rows.min(0), out=self.lower)
        np.maximum(self.upper, rows.max(0), out=self.upper)
        shift, share = mean - self.mean, len(rows) / (self.count + len(rows))
        self.squares += np.square(rows - mean).sum(0) + np.square(shift) * (self.count * share)
        self.mean += shift * share
        self.count += len(rows)
