"""Load data by name, cut them by seed in train, val and test, and transform them by what the training part shows."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae.data.files import DataError
from pyrovae.data.rows import Rows
from pyrovae.data.scaling import FULL_RANGE, Index, fitted, transformed
from pyrovae.data.sources import RawData, read
from pyrovae.data.tensors import block_rows
from pyrovae.data.transforms import Affine, Pipeline
from pyrovae.seeding import block_seed, seeded

__all__ = ["Split", "load", "reopen", "split_indices"]

SCALES = (None, "unit", "standardize")
DTYPES = (torch.float32, torch.float64)
ORDER, NOISE = 0, 1  # the blocks of a seed
FACTS = (
    "spec",
    "scale",
    "dequantize",
    "dtype",
    "val_fraction",
    "test_fraction",
    "seed",
    "columns",
    "sha256",
    "sample_sha256",
)


@dataclass(frozen=True)
class Split:
    """A data set cut in three, the rows of the whole set that each part holds, and the way back to raw data.

    Each datum is a row `[X]`; `x.unflatten(-1, event_shape)` makes images of rows again. `pipeline.inverse` gives raw
    units back, and `pipeline.log_abs_det` added to log p gives that of the raw data. `notes` say what was
    unusual: constant columns, values out of range. Parts of data that are mapped are `Rows`, which give tensors when
    they are indexed.
    """

    train: Float[Tensor, "n_train x"] | Rows
    val: Float[Tensor, "n_val x"] | Rows
    test: Float[Tensor, "n_test x"] | Rows
    train_index: Int[Tensor, " n_train"]
    val_index: Int[Tensor, " n_val"]
    test_index: Int[Tensor, " n_test"]
    event_shape: tuple[int, ...]
    pipeline: Pipeline
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(getattr(self, name))}" for name in ("train", "val", "test"))
        return f"Split({self.facts.get('spec', '')}: {sizes} data of event shape {self.event_shape})"

    def describe(self) -> dict[str, Any]:
        """Everything that makes this split again, for JSON: source, options, seed, sizes, fingerprints, pipeline.

        `sha256` is that of the raw data, `sample_sha256` that of 64 rows of them. The indices are not listed:
        `split_indices(num_data, val_fraction, test_fraction, seed)` gives them again, and for `digits()` that call
        itself. `reopen` makes the split of it that `load` made.
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
    spec: str | RawData,
    *,
    scale: str | None = None,
    dequantize: bool = False,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    memory: str = "auto",
) -> Split:
    """Load a data set or a file, split it, and scale it by statistics of its training part only.

    First the noise, where asked for, then the scale. `"unit"` maps [lower, upper] to [0, 1]: 0 and 255 for bytes, as
    images come; else the smallest and largest training value, of all pixels where a datum has several axes, of each
    column where it has one; upper is one step more where noise fills the steps. `"standardize"` gives each
    column of the training part mean 0 and standard deviation 1. A constant column is shifted and not scaled.
    Validation and test data may then lie outside [0, 1]. `notes` name both.

    Data that are mapped, `memory`, are read once: for their fingerprint, limits and moments, and to see that they are
    finite. "standardize" after noise reads the training part once more, "unit" without bytes the other parts. Every
    number is then the one that data in memory would have, to the last bit.

    Args:
        spec: `digits`, `idx:PATH`, `npy:PATH`, `npz:PATH`, `npz:PATH#NAME`, `csv:PATH`, `zarr:PATH` or
            `zarr:PATH#NAME`, as for `read`; or what `read` gave.
        scale: `"unit"`, `"standardize"`, or None for raw units.
        dequantize: whether to add noise, uniform on (0, 1), to integers; a density of integers can grow
            without bound, and that of the sum bounds their log probability (Theis et al. 2016).
        val_fraction: share of the data for validation, 0 or more.
        test_fraction: share for testing, 0 or more; both together below 1.
        seed: of split and noise, 0 or more.
        dtype: of the result, float32 or float64.
        memory: "read", "map" or "auto", as for `read`; of no use where `spec` is what `read` gave.

    Returns:
        Rows `[n, X]`. `pipeline.forward` of all raw rows, in their order, is what was split.

    Raises:
        DataError: data that cannot be read or used, see `read`; dequantization of numbers that are no integers; too
            few data to train on; values too large for the dtype.
        ValueError: an option out of range.
        TypeError: `spec` is neither a name nor what `read` gave.

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
    raw = _read(spec, memory)
    noise_seed = block_seed(seed, NOISE) if dequantize else None
    try:
        index = split_indices(len(raw.values), val_fraction, test_fraction, seed)
        pipeline, sha256 = fitted(raw, index[0], scale, noise_seed, dtype)
        parts = transformed(raw, index, pipeline, dtype, sha256)
    except DataError as error:
        raise _named(raw.spec, error) from error
    options = {"scale": scale, "dequantize": dequantize, "dtype": str(dtype).removeprefix("torch.")}
    fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}
    known = {"sha256": sha256, "sample_sha256": raw.sample_sha256}
    facts = {"spec": raw.spec, **options, **fractions, "columns": list(raw.columns), **known}
    notes = _constant_columns(pipeline, raw.columns)
    if scale == "unit" and raw.values.dtype.name not in FULL_RANGE:
        notes += [*_outside(parts[1], "validation"), *_outside(parts[2], "test")]
    train, val, test = parts
    return Split(train, val, test, *index, raw.event_shape, pipeline, tuple(notes), facts)


def reopen(spec: str | RawData, description: Mapping[str, Any], memory: str = "auto") -> Split:
    """The split that `load` made, of the same data: cut and transformed as described, and nothing fitted anew.

    That data in memory are the same is seen by all their numbers. Of data that are mapped 64 rows are read and no
    other, see `RawData.sample_sha256`: where other rows have changed since, this is not noticed here.

    Args:
        spec: as for `load`; the data may have another place now.
        description: what `Split.describe` gave, from JSON too.
        memory: as for `load`.

    Raises:
        DataError: data that cannot be read, or are not those that were described.
        KeyError, TypeError, ValueError: a description of another make.

    >>> split = load("digits", scale="standardize")
    >>> again = reopen("digits", split.describe())
    >>> torch.equal(again.val, split.val), again.describe() == split.describe()
    (True, True)
    """
    raw = read(spec, memory) if isinstance(spec, str) else spec
    if not raw.is_that_of(description):
        raise DataError(f"{raw.spec} holds other data than those that were described: put them back")
    fractions = description["val_fraction"], description["test_fraction"]
    index = split_indices(len(raw.values), *fractions, description["seed"])
    pipeline = Pipeline.from_config(description["pipeline"])
    dtype = {str(kind).removeprefix("torch."): kind for kind in DTYPES}[description["dtype"]]
    train, val, test = transformed(raw, index, pipeline, dtype, description["sha256"])
    facts = {name: description[name] for name in FACTS} | {"spec": raw.spec}
    return Split(train, val, test, *index, raw.event_shape, pipeline, tuple(description["notes"]), facts)


def _read(spec: str | RawData, memory: str) -> RawData:
    if isinstance(spec, str):
        return read(spec, memory)
    if not isinstance(spec, RawData):
        raise TypeError(
            f"data are named by a string such as 'digits' or 'npy:PATH', got {type(spec).__name__}: numbers in memory "
            "need no loading, pass them to fit and audit as tensors, or save them by numpy.save"
        )
    return spec


def _named(spec: str, error: DataError) -> DataError:
    return error if str(error).startswith(spec) else DataError(f"{spec}: {error}")


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


def _constant_columns(pipeline: Pipeline, names: tuple[str, ...]) -> list[str]:
    constant = [column for step in pipeline.steps if isinstance(step, Affine) for column in step.constant]
    if not constant:
        return []
    listed = ", ".join(names[c] if names else str(c) for c in constant[:10])
    more = f" and {len(constant) - 10} more" if len(constant) > 10 else ""
    return [f"{len(constant)} constant in the training part, shifted and not scaled: column {listed}{more}"]


def _outside(x: Float[Tensor, "n x"] | Rows, part: str) -> list[str]:
    rows = x.in_order() if isinstance(x, Rows) else x
    blocks = rows.split(block_rows(rows.shape[1]))
    count = sum(int(((block < 0) | (block > 1)).any(1).sum()) for block in blocks)
    if not count:
        return []
    return [f"{count} of {len(x)} {part} data reach outside [0, 1], the range of the training part"]
