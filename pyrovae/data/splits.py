"""Load data by name, cut them by seed in train, val and test, and transform them by what the training part shows."""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pyrovae.data.files import DataError
from pyrovae.data.sources import RawData, read
from pyrovae.data.transforms import Affine, Dequantize, Pipeline
from pyrovae.seeding import block_seed, seeded

__all__ = ["Split", "load", "split_indices"]

SCALES = (None, "unit", "standardize")
DTYPES = (torch.float32, torch.float64)
FULL_RANGE = {"uint8": 255.0, "bool": 1.0}
ORDER, NOISE = 0, 1  # the blocks of a seed
Index = tuple[Int[Tensor, " n_train"], Int[Tensor, " n_val"], Int[Tensor, " n_test"]]


@dataclass(frozen=True)
class Split:
    """A data set cut in three, the rows of the whole set that each part holds, and the way back to raw data.

    Each datum is a row `[X]`; `x.unflatten(-1, event_shape)` makes images of rows again. `pipeline.inverse` gives raw
    units back, and `pipeline.log_abs_det` added to log p gives that of the raw data. `notes` say what was
    unusual: constant columns, values out of range.
    """

    train: Float[Tensor, "n_train x"]
    val: Float[Tensor, "n_val x"]
    test: Float[Tensor, "n_test x"]
    train_index: Int[Tensor, " n_train"]
    val_index: Int[Tensor, " n_val"]
    test_index: Int[Tensor, " n_test"]
    event_shape: tuple[int, ...]
    pipeline: Pipeline
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Everything that makes this split again, for JSON: source, options, seed, sizes, fingerprint, pipeline.

        `sha256` is that of the raw data. The indices are not listed: `split_indices(num_data, val_fraction,
        test_fraction, seed)` gives them again, and for `digits()` that call itself.
        """
        sizes = {"num_train": len(self.train), "num_val": len(self.val), "num_test": len(self.test)}
        return {
            **copy.deepcopy(self.facts),
            "num_data": sum(sizes.values()),
            **sizes,
            "event_shape": list(self.event_shape),
            "pipeline": self.pipeline.to_config(),
            "notes": list(self.notes),
        }


def load(
    spec: str,
    *,
    scale: str | None = None,
    dequantize: bool = False,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Split:
    """Load a data set or a file, split it, and scale it by statistics of its training part only.

    First the noise, where asked for, then the scale. `"unit"` maps [lower, upper] to [0, 1]: 0 and 255 for bytes, as
    images come; else the smallest and largest training value, of all pixels where a datum has several axes, of each
    column where it has one; upper is one step more where noise fills the steps. `"standardize"` gives each
    column of the training part mean 0 and standard deviation 1. A constant column is shifted and not scaled.
    Validation and test data may then lie outside [0, 1]. `notes` name both.

    Args:
        spec: `digits`, `idx:PATH`, `npy:PATH`, `npz:PATH`, `npz:PATH#NAME` or `csv:PATH`, as for `read`.
        scale: `"unit"`, `"standardize"`, or None for raw units.
        dequantize: whether to add noise, uniform on (0, 1), to integers; a density of integers can grow
            without bound, and that of the sum bounds their log probability (Theis et al. 2016).
        val_fraction: share of the data for validation, 0 or more.
        test_fraction: share for testing, 0 or more; both together below 1.
        seed: of split and noise, 0 or more.
        dtype: of the result, float32 or float64.

    Returns:
        Rows `[n, X]`. `pipeline.forward` of all raw rows, in their order, is what was split.

    Raises:
        DataError: data that cannot be read or used, see `read`; dequantization of numbers that are no integers; too
            few data to train on; values too large for the dtype.
        ValueError: an option out of range.

    >>> parts = load("digits", scale="unit", dequantize=True, seed=1)
    >>> parts.train.shape, parts.event_shape, float(parts.train.max()) < 1
    (torch.Size([1257, 64]), (8, 8), True)
    >>> bool((parts.pipeline.inverse(parts.test) == torch.from_numpy(read("digits").values[parts.test_index])).all())
    True
    >>> parts.describe()["sha256"][:8], round(parts.pipeline.log_abs_det, 2)  # -64 log 17
    ('9be50045', -181.33)
    """
    if scale not in SCALES:
        raise ValueError(
            f"scale must be one of {', '.join(map(repr, SCALES))}, got {scale!r}; pass one of these"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}; pass one of these")
    check_fractions(val_fraction, test_fraction)
    raw = read(spec)
    try:
        index = split_indices(len(raw.values), val_fraction, test_fraction, seed)
        (train, val, test), pipeline = _transformed(
            raw, index, scale, dequantize, block_seed(seed, NOISE), dtype
        )
    except DataError as error:
        raise DataError(f"{spec}: {error}") from error
    options = {"scale": scale, "dequantize": dequantize, "dtype": str(dtype).removeprefix("torch.")}
    fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}
    facts = {"spec": spec, **options, **fractions, "columns": list(raw.columns), "sha256": raw.sha256}
    notes = [
        *_constant_columns(pipeline, raw.columns),
        *_outside(scale, val, "validation"),
        *_outside(scale, test, "test"),
    ]
    return Split(train, val, test, *index, raw.event_shape, pipeline, tuple(notes), facts)


def split_indices(num_data: int, val_fraction: float, test_fraction: float, seed: int) -> Index:
    """The rows of train, val and test in a random order: what `load` uses, so that its indices need no storing.

    Args:
        num_data: rows to split, 1 or more.
        val_fraction: share for validation, rounded to whole rows.
        test_fraction: share for testing; both together below 1.
        seed: 0 or more.

    Raises:
        ValueError: an argument out of range, or no row left to train on.

    >>> [len(index) for index in split_indices(10, 0.2, 0.1, seed=0)]
    [7, 2, 1]
    """
    check_fractions(val_fraction, test_fraction)
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}; pass such a number")
    num_val, num_test = round(val_fraction * num_data), round(test_fraction * num_data)
    num_train = num_data - num_val - num_test
    if num_train < 1:
        raise DataError(
            f"the split wants a row to train on, got {num_data} in all, {num_val} for validation and {num_test} for "
            "testing; pass more data or smaller fractions"
        )
    with seeded(block_seed(seed, ORDER)):
        val, test, train = torch.randperm(num_data).split([num_val, num_test, num_train])
    return train, val, test


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (min(val_fraction, test_fraction) >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction and test_fraction must be at least 0 and together below 1, got {val_fraction} and "
            f"{test_fraction}; leave some data to train on"
        )


def _transformed(
    raw: RawData, index: Index, scale: str | None, dequantize: bool, seed: int, dtype: torch.dtype
) -> tuple[list[Tensor], Pipeline]:
    """The three parts, transformed, and how: noise drawn for all rows at once, the scale fitted on the first part."""
    x = _as_tensor(raw.values, dtype)
    _check_size([x], dtype)
    width = x.shape[1]
    noise = Pipeline(width, (Dequantize.fit(x, dtype, seed),) if dequantize else ())
    x = noise.forward(x)
    parts = [x[rows] for rows in index]
    affine = Pipeline(width, (_fit_scale(scale, raw, parts[0], noise),) if scale else ())
    parts = [affine.forward(part).to(dtype) for part in parts]
    _check_size(parts, dtype)
    return parts, Pipeline(width, noise.steps + affine.steps)


def _check_size(parts: list[Tensor], dtype: torch.dtype) -> None:
    """Refuse what became infinite, or would in raw units."""
    if not all(limit.to(dtype).isfinite() for x in parts if len(x) for limit in x.aminmax()):
        name = str(dtype).removeprefix("torch.")
        raise DataError(f"numbers are too large for {name}; pass dtype=torch.float64, or divide them first")


def _as_tensor(values: Shaped[np.ndarray, "n x"], dtype: torch.dtype) -> Float[Tensor, "n x"]:
    """float32 where it holds the raw numbers exactly and is asked for, else float64."""
    exact = np.result_type(values.dtype, np.float32) == np.float32 and dtype == torch.float32
    if values.dtype.kind == "f" and not exact:
        values = values.astype(np.float64)  # torch has no longer type
    return torch.from_numpy(values).to(torch.float32 if exact else torch.float64)


def _fit_scale(scale: str, raw: RawData, train: Float[Tensor, "n_train x"], noise: Pipeline) -> Affine:
    if scale == "standardize":
        return Affine.standardize(train)
    step = float(len(noise.steps))
    if raw.values.dtype.name in FULL_RANGE:
        return Affine((0.0,), (FULL_RANGE[raw.values.dtype.name] + step,))
    integers = noise.inverse(train)
    return Affine.unit(integers.reshape(-1, 1) if len(raw.event_shape) > 1 else integers, step)


def _constant_columns(pipeline: Pipeline, names: tuple[str, ...]) -> list[str]:
    constant = [column for step in pipeline.steps if isinstance(step, Affine) for column in step.constant]
    if not constant:
        return []
    listed = ", ".join(names[c] if names else str(c) for c in constant[:10])
    more = f" and {len(constant) - 10} more" if len(constant) > 10 else ""
    return [f"{len(constant)} constant in the training part, shifted and not scaled: column {listed}{more}"]


def _outside(scale: str | None, x: Float[Tensor, "n x"], part: str) -> list[str]:
    count = int(((x < 0) | (x > 1)).any(1).sum()) if scale == "unit" else 0
    return (
        [f"{count} of {len(x)} {part} data reach outside [0, 1], the range of the training part"]
        if count
        else []
    )
