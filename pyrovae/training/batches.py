"""Data for training: checked at the door, shuffled as a function of seed and epoch, cut into batches."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = [
    "Data",
    "RowSource",
    "blocks",
    "check_data",
    "check_val_data",
    "derive_seed",
    "epoch_order",
    "minibatch_indices",
    "minibatches",
    "take",
]


CHECKED = 1 << 24
"""Numbers of a row source to look at together."""


@runtime_checkable
class RowSource(Protocol):
    """Data that stay elsewhere, as `pyrovae.data.Rows`: an index or a slice of it is a tensor of those rows."""

    dtype: torch.dtype
    device: torch.device
    is_checked: bool

    @property
    def shape(self) -> torch.Size: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor: ...

    def split(self, size: int) -> Iterable[Tensor]: ...


Data = Tensor | RowSource


def check_data(name: str, data: Sequence[Any]) -> tuple[Data, ...]:
    """The same tensors, detached, after checking that they are finite and have one row for each datum.

    A `RowSource` stands for a tensor: it comes back as it is, and is read once unless it `is_checked`.

    Raises:
        TypeError: something is not a tensor.
        ValueError: no tensor, no rows, unequal numbers of rows, NaN or infinite entries.
    """
    if not data:
        raise ValueError(
            f"{name} must be at least one tensor, got none; pass the arguments of the model after the guide, "
            "fit(model, guide, x), of a VAE fit(vae.model, vae.guide, x)"
        )
    for index, x in enumerate(data):
        _check_tensor(f"{name}[{index}]", x)
        if len(x) != len(data[0]):
            raise ValueError(
                f"all of {name} must have one row for each datum, got {len(data[0])} rows in {name}[0] and {len(x)} "
                f"in {name}[{index}]; pass what is shared by all data with functools.partial"
            )
    return tuple(x.detach() if isinstance(x, Tensor) else x for x in data)


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor | RowSource):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor"
        )
    if len(x.shape) == 0 or len(x) == 0:
        raise ValueError(
            f"{name} must have at least one row, got shape {list(x.shape)}; pass one row for each datum"
        )
    if not (x.dtype.is_floating_point or x.dtype.is_complex) or (isinstance(x, RowSource) and x.is_checked):
        return
    finite = _finite_rows(x)
    if not finite.all():
        row = int((~finite).int().argmax())
        raise ValueError(
            f"{name} must be finite, got NaN or an infinity in row {row} (and in {int((~finite).sum())} rows in all); "
            "remove those rows or fill them in"
        )


def _finite_rows(x: Data) -> Bool[Tensor, " n"]:
    """Whether each row is finite, a row source read in blocks."""
    size = max(1, CHECKED // max(1, math.prod(x.shape[1:])))
    parts = [x] if isinstance(x, Tensor) else x.split(size)
    return torch.cat([torch.isfinite(part.reshape(len(part), -1)).all(dim=1) for part in parts])


def check_val_data(val_data: Any, data: tuple[Data, ...]) -> tuple[Data, ...] | None:
    """Validation data, one tensor or a tuple of them, as a checked tuple whose rows look like those of `data`."""
    if val_data is None:
        return None
    val = check_data("val_data", val_data if isinstance(val_data, tuple | list) else (val_data,))
    want, got = [[list(x.shape[1:]) for x in part] for part in (data, val)]
    if want != got:
        raise ValueError(
            f"val_data must have rows of shapes {want} as the data, got {got}; pass the same arguments"
        )
    return val


def derive_seed(seed: int, *path: int) -> int:
    """A seed for one purpose, independent of those for other paths."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0])


def epoch_order(num_data: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    """The order of the data in one epoch: a permutation that depends on seed and epoch only.

    >>> bool((epoch_order(10, seed=0, epoch=3) == epoch_order(10, seed=0, epoch=3)).all())
    True
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, epoch))
    return torch.randperm(num_data, generator=generator)


def minibatch_indices(
    num_data: int, batch_size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[Int[Tensor, " b"]]:
    """The rows of the shuffled batches of one epoch from number `start` on, the ragged last one included.

    One batch of everything keeps the order of the data.

    >>> [index.tolist() for index in minibatch_indices(3, 8, seed=0, epoch=5)]
    [[0, 1, 2]]
    """
    if batch_size >= num_data:
        yield from [torch.arange(num_data)][start:]
        return
    order = epoch_order(num_data, seed, epoch)[start * batch_size :]
    yield from order.split(batch_size)


def take(data: Sequence[Data], index: Int[Tensor, " b"]) -> tuple[Tensor, ...]:
    """Those rows of all the data, gathered where they are."""
    return tuple(
        x.index_select(0, index.to(x.device, non_blocking=True)) if isinstance(x, Tensor) else x[index]
        for x in data
    )


def minibatches(
    data: tuple[Data, ...], batch_size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """The batches of one epoch from number `start` on: `take` of `minibatch_indices`.

    One batch of everything is the data themselves, not a copy.
    """
    if batch_size >= len(data[0]):
        yield from [tuple(x if isinstance(x, Tensor) else x[:] for x in data)][start:]
        return
    for index in minibatch_indices(len(data[0]), batch_size, seed, epoch, start):
        yield take(data, index)


def blocks(data: tuple[Data, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """The data in order, `size` rows at a time."""
    yield from zip(*(x.split(size) for x in data), strict=True)
