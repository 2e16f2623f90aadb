"""Data for training: checked at the door, shuffled as a function of seed and epoch, cut into batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["blocks", "check_data", "check_val_data", "derive_seed", "epoch_order", "minibatches"]


def check_data(name: str, data: Sequence[Any]) -> tuple[Tensor, ...]:
    """The same tensors, detached, after checking that they are finite and have one row for each datum.

    Raises:
        TypeError: something is not a tensor.
        ValueError: no tensor, no rows, unequal numbers of rows, NaN or infinite entries.
    """
    if not data:
        raise ValueError(
            f"{name} must be at least one tensor, got none; pass the arguments of the model after the guide"
        )
    for index, x in enumerate(data):
        _check_tensor(f"{name}[{index}]", x)
        if len(x) != len(data[0]):
            raise ValueError(
                f"all of {name} must have one row for each datum, got {len(data[0])} rows in {name}[0] and {len(x)} "
                f"in {name}[{index}]; pass what is shared by all data with functools.partial"
            )
    return tuple(x.detach() for x in data)


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor"
        )
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(
            f"{name} must have at least one row, got shape {list(x.shape)}; pass one row for each datum"
        )
    if not (x.is_floating_point() or x.is_complex()):
        return
    finite = torch.isfinite(x.reshape(len(x), -1)).all(dim=1)
    if not finite.all():
        row = int((~finite).int().argmax())
        raise ValueError(
            f"{name} must be finite, got NaN or an infinity in row {row} (and in {int((~finite).sum())} rows in all); "
            "remove those rows or fill them in"
        )


def check_val_data(val_data: Any, data: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
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


def minibatches(
    data: tuple[Tensor, ...], batch_size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """The shuffled batches of one epoch from number `start` on, the ragged last one included.

    They are gathered where the data are. One batch of everything keeps its order.
    """
    num_data = len(data[0])
    if batch_size >= num_data:
        yield from [data][start:]
        return
    order = epoch_order(num_data, seed, epoch)[start * batch_size :]
    for index in order.to(data[0].device).split(batch_size):
        yield tuple(x.index_select(0, index) for x in data)


def blocks(data: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """The data in order, `size` rows at a time."""
    yield from zip(*(x.split(size) for x in data), strict=True)
