"""From numbers of any type to a floating-point tensor, and which rows of it to take together."""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["as_tensor", "block_rows", "runs"]

MAX_ROWS = 4096
MAX_NUMBERS = 1 << 25


def as_tensor(values: Shaped[np.ndarray, "n x"], dtype: torch.dtype) -> Float[Tensor, "n x"]:
    """float32 where it holds the raw numbers exactly and is asked for, else float64."""
    exact = np.result_type(values.dtype, np.float32) == np.float32 and dtype == torch.float32
    if values.dtype.kind == "f" and not exact:
        values = values.astype(np.float64)  # torch has no longer type
    return torch.from_numpy(values).to(torch.float32 if exact else torch.float64)


def block_rows(width: int) -> int:
    """Rows of that many numbers to take at a time where a copy of all would be slow or not fit: 4096, or 256 MiB.

    >>> block_rows(784), block_rows(3 * 256 * 256)
    (4096, 170)
    """
    return max(1, min(MAX_ROWS, MAX_NUMBERS // width))


def runs(rows: Int[np.ndarray, " m"]) -> list[tuple[int, int]]:
    """Where rows that follow one another begin and end.

    >>> runs(np.array([4, 5, 6, 9, 9]))
    [(0, 3), (3, 4), (4, 5)]
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    return list(pairwise([*starts, len(rows)]))
