"""Data larger than memory as rows to index: read and transformed when they are asked for."""

import copy
import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae.data.noise import NoiseTable
from pyrovae.data.sources import Table
from pyrovae.data.tensors import as_tensor
from pyrovae.data.transforms import Dequantize, Pipeline

__all__ = ["Rows"]


class Rows:
    """Rows `[n, X]` of a table, transformed as they are read; a slice or an index gives a tensor of those rows.

    They are the numbers that the whole table would give, whatever is read and in which order: the noise of
    dequantization belongs to the row. What training asks of a tensor of data is here under the same names, so that
    `fit` takes `Rows` in its stead and holds one batch at a time.

    Args:
        table: numbers, one row a datum: of `read(..., memory="map")`, or an array such as a `np.memmap`.
        pipeline: what to do with the numbers; None leaves them as they are.
        dtype: of the result, float32 or float64.
        is_checked: whether all numbers are known to be finite; else `fit` reads them once to see.
        table_sha256: fingerprint of the table, where it is known; else `fit`, where it has to know the data again,
            reads all rows for it.

    >>> rows = Rows(np.arange(12, dtype=np.uint8).reshape(6, 2))
    >>> rows[torch.tensor([4, 0])], rows[-1:]
    (tensor([[8., 9.],
            [0., 1.]]), tensor([[10., 11.]]))
    >>> part = rows.part(torch.tensor([5, 3]))
    >>> part.shape, part[:1]
    (torch.Size([2, 2]), tensor([[10., 11.]]))
    """

    def __init__(
        self,
        table: Table,
        pipeline: Pipeline | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        is_checked: bool = False,
        table_sha256: str | None = None,
    ) -> None:
        self.pipeline = Pipeline(table.shape[1]) if pipeline is None else pipeline
        self.dtype, self.device = dtype, torch.device("cpu")
        self._transformed_in = dtype
        self.is_checked = is_checked
        self._table_sha256 = table_sha256
        self._table, self._index = table, np.arange(len(table))
        seeds = [step.seed for step in self.pipeline.steps if isinstance(step, Dequantize)]
        self._noise = [NoiseTable(seed, *table.shape) for seed in seeds]

    def part(self, index: Int[Tensor, " m"]) -> "Rows":
        """Some of the rows, in the order of `index`; nothing is read."""
        some = copy.copy(self)
        some._index = self._index[index.numpy()]
        return some

    def in_order(self) -> "Rows":
        """The same rows in the order of the table, in which they are read fastest."""
        some = copy.copy(self)
        some._index = np.sort(self._index)
        return some

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Rows":
        """The same rows, whose tensors come to `device`, from pinned memory where that is a CUDA device.

        Transformed in the dtype they had, then converted to `dtype`, as a tensor of them would be.
        """
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved.dtype = self.dtype if dtype is None else dtype
        return moved

    @property
    def sha256(self) -> str | None:
        """Fingerprint of the rows without reading them: of the table's, what is done to it, and their numbers in it.

        It is not that of a tensor of the rows. None where the table's is not known.
        """
        if self._table_sha256 is None:
            return None
        facts = self._table_sha256, self.pipeline.to_config(), str(self._transformed_in)
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self._index.data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shape(self) -> torch.Size:
        """n and X."""
        return torch.Size((len(self), self._table.shape[1]))

    def dim(self) -> int:
        """2."""
        return 2

    def is_floating_point(self) -> bool:
        """True: integers become floats."""
        return True

    def detach(self) -> "Rows":
        """The same rows: nothing is attached to them."""
        return self

    def __getitem__(self, rows: slice | Int[Tensor, " m"]) -> Float[Tensor, "m x"]:
        """Some rows as a tensor.

        Raises:
            IndexError: a row that is not there.
            DataError: a part of the source that is damaged.
        """
        wanted = self._index[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        order = np.argsort(wanted, kind="stable")
        x = self._read(wanted[order])
        if (np.diff(order) != 1).any():
            x = x[torch.from_numpy(np.argsort(order, kind="stable"))]
        if self.device.type != "cuda":
            return x.to(self.device)
        return x.pin_memory().to(self.device, non_blocking=True)

    def split(self, size: int) -> Iterator[Float[Tensor, "m x"]]:
        """All rows in order, `size` of them at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def _read(self, rows: Int[np.ndarray, " m"]) -> Float[Tensor, "m x"]:
        """Rows of the table, in ascending order."""
        is_run = len(rows) > 0 and (np.diff(rows) == 1).all()
        values = self._table[rows[0] : rows[-1] + 1] if is_run else self._table[rows]
        if isinstance(self._table, np.ndarray):
            values = values.astype(values.dtype.newbyteorder("="))  # a copy, also where `values` is a view
        x = as_tensor(values, self._transformed_in)
        for step in self.pipeline.steps:
            x = step.fill(x, self._noise[0][rows]) if isinstance(step, Dequantize) else step.forward(x)
        return x.to(self.dtype)
