"""Transforms fitted on the training part, and the parts that they make of a table in memory or on the disk."""

import torch
from jaxtyping import Int
from torch import Tensor

from pyrovae.data.files import DataError
from pyrovae.data.moments import Moments
from pyrovae.data.rows import Rows
from pyrovae.data.sources import RawData
from pyrovae.data.survey import Survey, survey
from pyrovae.data.tensors import as_tensor
from pyrovae.data.transforms import Affine, Dequantize, Pipeline, no_integer

__all__ = ["FULL_RANGE", "Index", "fitted", "transformed"]

FULL_RANGE = {"uint8": 255.0, "bool": 1.0}
Index = tuple[Int[Tensor, " n_train"], Int[Tensor, " n_val"], Int[Tensor, " n_test"]]


def fitted(
    raw: RawData,
    train: Int[Tensor, " n_train"],
    scale: str | None,
    noise_seed: int | None,
    dtype: torch.dtype,
) -> tuple[Pipeline, str]:
    """The transforms for a table, the scale fitted on its training part, and the fingerprint of the table.

    All rows are read once; for "standardize" after noise those to train on twice, as the noise hangs on the limits.

    Args:
        raw: data in memory, or mapped.
        train: the rows to train on.
        scale: as `load`.
        noise_seed: of dequantization; None for none.
        dtype: of the result.

    Raises:
        DataError: numbers too large or not finite, or no integers where they are to be dequantized.
    """
    moments = Moments() if scale == "standardize" and noise_seed is None else None
    seen = survey(raw, train, moments)
    noise = _noise(seen, noise_seed, dtype)
    affine: tuple[Affine, ...] = ()
    if scale == "unit":
        affine = (_unit(raw, seen, noise),)
    elif moments is not None:
        affine = (Affine.from_moments(moments),)
    elif scale == "standardize":
        kind = as_tensor(seen.limits, dtype).dtype
        affine = (Affine.standardize(Rows(raw.values, noise, dtype=kind).part(train).in_order()),)
    _check_limits(seen, Pipeline(noise.width, affine), len(noise.steps), dtype)
    return Pipeline(noise.width, noise.steps + affine), seen.sha256


def _noise(seen: Survey, seed: int | None, dtype: torch.dtype) -> Pipeline:
    """The noise that the numbers have room for, in a pipeline; none without a seed."""
    limits = as_tensor(seen.limits, dtype)
    width = limits.shape[1]
    _check_limits(seen, Pipeline(width), 0, dtype)
    if seed is None:
        return Pipeline(width)
    noise = Dequantize.fit(limits, dtype, seed)
    if seen.fraction is not None:
        raise no_integer(*seen.fraction)
    return Pipeline(width, (noise,))


def _check_limits(seen: Survey, affine: Pipeline, step: int, dtype: torch.dtype) -> None:
    """Refuse what becomes infinite; maps and rounding are monotone, so that the limits tell of all between them."""
    limits = as_tensor(seen.limits, dtype)
    if not affine.forward(torch.cat([limits, limits + step])).to(dtype).isfinite().all():
        name = str(dtype).removeprefix("torch.")
        raise DataError(f"numbers are too large for {name}; pass dtype=torch.float64, or divide them first")


def _unit(raw: RawData, seen: Survey, noise: Pipeline) -> Affine:
    """The map of the training part to [0, 1], of which its limits are enough."""
    step = float(len(noise.steps))
    if raw.values.dtype.name in FULL_RANGE:
        return Affine((0.0,), (FULL_RANGE[raw.values.dtype.name] + step,))
    train = as_tensor(seen.train_limits, torch.float64)
    return Affine.unit(train.reshape(-1, 1) if len(raw.event_shape) > 1 else train, step)


def transformed(
    raw: RawData, index: Index, pipeline: Pipeline, dtype: torch.dtype, sha256: str
) -> list[Tensor] | list[Rows]:
    """The three parts of a table by a pipeline for it: tensors of data in memory, `Rows` of those that are mapped.

    Args:
        raw: the table, known to be finite.
        index: the rows of the three parts.
        pipeline: what `fitted` gave.
        dtype: of the result.
        sha256: fingerprint of the table.
    """
    if raw.is_mapped:
        rows = Rows(raw.values, pipeline, dtype=dtype, is_checked=True, table_sha256=sha256)
        return [rows.part(part) for part in index]
    count = sum(isinstance(step, Dequantize) for step in pipeline.steps)
    steps = pipeline.steps[:count], pipeline.steps[count:]
    noise, rest = (Pipeline(pipeline.width, some) for some in steps)
    x = noise.forward(as_tensor(raw.values[:], dtype))
    return [rest.forward(x[part]).to(dtype) for part in index]
