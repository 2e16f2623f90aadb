"""The noise of one seed for a whole table, of which any rows can be had without the others."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae.data.tensors import runs

__all__ = ["NoiseTable"]

BUDGET = 1 << 27
"""Bytes for states of the generator."""


class NoiseTable:
    """The numbers of `torch.rand(n, X)` under a seed, row by row and in any order.

    The generator draws one number after the other. Its state is kept at every `stride`-th row, as often as 128 MiB
    allow; a row is drawn by going on from the state before it.

    Args:
        seed: of the noise, 0 or more.
        num_rows: n, at least 1.
        width: X, at least 1.

    >>> table = NoiseTable(seed=3, num_rows=5, width=2)
    >>> with torch.random.fork_rng():
    ...     _ = torch.manual_seed(3)
    ...     u = torch.rand(5, 2)
    >>> torch.equal(table[np.array([1, 4])], u[[1, 4]])
    True
    """

    def __init__(self, seed: int, num_rows: int, width: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._states = [self._generator.get_state()]
        self.stride = math.ceil(num_rows * len(self._states[0]) / BUDGET)
        self._rest = torch.empty(self.stride, width)

    def __getitem__(self, rows: Int[np.ndarray, " m"]) -> Float[Tensor, "m x"]:
        """Uniform numbers on [0, 1) for rows in ascending order, float32."""
        noise = torch.empty(len(rows), self._rest.shape[1])
        if len(rows):
            self._reach(int(rows[-1]) // self.stride)
        here = -1
        for start, end in runs(rows):
            first = int(rows[start])
            known = first - first % self.stride
            if not known <= here <= first:
                self._generator.set_state(self._states[known // self.stride])
                here = known
            self._rest[: first - here].uniform_(generator=self._generator)
            noise[start:end].uniform_(generator=self._generator)
            here = first + end - start
        return noise

    def _reach(self, block: int) -> None:
        """Know the state at the beginning of a block of rows."""
        if block < len(self._states):
            return
        self._generator.set_state(self._states[-1])
        while len(self._states) <= block:
            self._rest.uniform_(generator=self._generator)
            self._states.append(self._generator.get_state())
