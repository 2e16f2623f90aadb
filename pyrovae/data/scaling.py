"""Transforms fitted on the training part: of tables in memory, and of those that stay on the disk, to the same bits."""

from collections.abc import Sequence

import torch
from jaxtyping import Int, Real
from torch import Tensor

from pyrovae.data.files import DataError
from pyrovae.data.rows import Rows
from pyrovae.data.sources import RawData
from pyrovae.data.survey import Survey
from pyrovae.data.tensors import as_tensor
from pyrovae.data.transforms import Affine, Dequantize, Pipeline, no_integer

__all__ = ["FULL_RANGE", "Index", "transformed", "transformed_rows"]

FULL_RANGE = {"uint8": 255.0, "bool": 1.0}
Index = tuple[Int[Tensor, " n_train"], Int[Tensor, " n_val"], Int[Tensor, " n_test"]]


def transformed(
    raw: RawData, index: Index, scale: str | None, noise_seed: int | None, dtype: torch.dtype
) -> tuple[list[Tensor], Pipeline]:
    """The three parts, transformed, and how: noise drawn for all rows at once, the scale fitted on the first part.

    Args:
        raw: data in memory.
        index: the rows of the three parts.
        scale: as `load`.
        noise_seed: of dequantization; None for none.
        dtype: of the result.

    Raises:
        DataError: numbers too large, or no integers where they are to be dequantized.
    """
    x = as_tensor(raw.values[:], dtype)
    _check_size([x], dtype)
    width = x.shape[1]
    noise = Pipeline(width, () if noise_seed is None else (Dequantize.fit(x, dtype, noise_seed),))
    x = noise.forward(x)
    parts = [x[rows] for rows in index]
    affine: tuple[Affine, ...] = ()
    if scale == "standardize":
        affine = (Affine.standardize(parts[0]),)
    elif scale == "unit":
        affine = (_unit(raw, parts[0], noise),)
    parts = [Pipeline(width, affine).forward(part).to(dtype) for part in parts]
    _check_size(parts, dtype)
    return parts, Pipeline(width, noise.steps + affine)


def transformed_rows(
    raw: RawData,
    seen: Survey,
    index: Index,
    scale: str | None,
    noise_seed: int | None,
    dtype: torch.dtype,
) -> tuple[list[Rows], Pipeline]:
    """What `transformed` gives, as `Rows`; "standardize" reads the training part twice more.

    Args:
        raw: data that are mapped.
        seen: their survey.
        index, scale, noise_seed, dtype: as there.

    Raises:
        DataError: as there.
    """
    limits = as_tensor(seen.limits, dtype)
    _check_size([limits], dtype)
    width = limits.shape[1]
    noise = Pipeline(width, () if noise_seed is None else (Dequantize.fit(limits, dtype, noise_seed),))
    if noise.steps and seen.fraction is not None:
        raise no_integer(*seen.fraction)
    affine: tuple[Affine, ...] = ()
    if scale == "standardize":
        affine = (Affine.standardize(Rows(raw.values, noise, dtype=limits.dtype).part(index[0])),)
    elif scale == "unit":
        affine = (_unit(raw, as_tensor(seen.train_limits, dtype), noise),)
    ends = torch.cat([limits, limits + len(noise.steps)])  # both maps are monotone
    _check_size([Pipeline(width, affine).forward(ends).to(dtype)], dtype)
    pipeline = Pipeline(width, noise.steps + affine)
    rows = Rows(raw.values, pipeline, dtype=dtype, is_checked=True)
    return [rows.part(part) for part in index], pipeline


def _check_size(parts: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Refuse what became infinite, or would in raw units."""
    if not all(limit.to(dtype).isfinite() for x in parts if len(x) for limit in x.aminmax()):
        name = str(dtype).removeprefix("torch.")
        raise DataError(f"numbers are too large for {name}; pass dtype=torch.float64, or divide them first")


def _unit(raw: RawData, train: Real[Tensor, "n x"], noise: Pipeline) -> Affine:
    """The map of the training part to [0, 1], of which its limits are enough, with or without their noise."""
    step = float(len(noise.steps))
    if raw.values.dtype.name in FULL_RANGE:
        return Affine((0.0,), (FULL_RANGE[raw.values.dtype.name] + step,))
    integers = noise.inverse(train)
    return Affine.unit(integers.reshape(-1, 1) if len(raw.event_shape) > 1 else integers, step)
