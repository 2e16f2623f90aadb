"""Moments of a gradient from sums over groups of its replicates, with any one group left out, and the jackknife."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.diagnostics.gradients.parameters import Part
from pyrovae.diagnostics.gradients.replicates import Replicates
from pyrovae.diagnostics.gradients.sums import Reducer, Sums
from pyrovae.seeding import block_seed

__all__ = ["Moments", "Summary", "jackknife", "measure_moments", "moments_of_rows"]


class Summary(NamedTuple):
    """Of one part of a gradient, from some of the groups."""

    mean: Float[Tensor, " p"]
    unit: Float[Tensor, " p"]
    """The mean of g / |g|."""
    trace: Float[Tensor, ""]
    """Of the covariance of one replicate, unbiased."""
    num_replicates: float
    """That the mean is of."""

    @property
    def error(self) -> Tensor:
        """The expectation of |mean - E mean|^2."""
        return self.trace / self.num_replicates

    @property
    def norm_squared(self) -> Tensor:
        """|E g|^2 without bias: |mean|^2 less the error's."""
        return self.mean.square().sum() - self.error


class Moments(NamedTuple):
    """Sums over B groups of replicates, in float64 and on the CPU; deviations d = g - center."""

    parts: list[Part]
    levels: list[int]
    """The level of each part."""
    center: Float[Tensor, " p"]
    counts: Float[Tensor, " b"]
    deviation: Float[Tensor, "b p"]
    unit: Float[Tensor, "b levels p"]
    square: Float[Tensor, "b parts"]
    along: Float[Tensor, "b parts"]
    along_square: Float[Tensor, "b parts"]
    direction: Float[Tensor, " p"]
    """Of the first half of the groups; `along` is of the others, zero for these."""
    sketch: Float[Tensor, "parts s"]
    outer: Float[Tensor, "parts s s"]

    def summary(self, index: int, without: int | None = None) -> Summary:
        """The moments of part `index`, from all groups but `without`."""
        columns = self.parts[index].columns
        keep = torch.ones(len(self.counts), dtype=torch.float64)
        if without is not None:
            keep[without] = 0.0
        count = keep @ self.counts
        deviation = keep @ self.deviation[:, columns] / count
        square = keep @ self.square[:, index]
        trace = (square - count * deviation.square().sum()) / (count - 1)
        return Summary(
            mean=self.center[columns] + deviation,
            unit=keep @ self.unit[:, self.levels[index], columns] / count,
            trace=trace.clamp(min=0.0),
            num_replicates=float(count),
        )

    @property
    def mean(self) -> Float[Tensor, " p"]:
        """The mean of all coordinates."""
        return self.center + self.deviation.sum(0) / self.counts.sum()

    def eigenvalues(self, index: int) -> Float[np.ndarray, " s"]:
        """Of the sketched covariance of one replicate, descending, as many as the part has coordinates."""
        columns, count = self.parts[index].columns, self.counts.sum()
        size = min(self.sketch.shape[1], columns.stop - columns.start)
        mean, outer = self.sketch[index, :size] / count, self.outer[index, :size, :size]
        covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
        if not torch.isfinite(covariance).all():
            return np.full(size, np.nan)
        return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0.0).numpy()


def measure_moments(replicates: Replicates, reducer: Reducer, sizes: Sequence[int], seed: int) -> Moments:
    """Run the replicates in groups of these sizes, and add up in float64.

    A few replicates come first, whose mean is the center: what is squared and summed then has no digits to lose.
    """
    signs = reducer.signs
    zero = torch.zeros_like(signs)
    pilot = list(replicates.run(_PILOT, block_seed(seed, 0), zero, zero))
    center = torch.stack([each.deviation for each in pilot]).sum(0) / _PILOT
    center, direction = torch.where(torch.isfinite(center), center, 0.0), zero
    groups: list[Sums] = []
    sketch = outer = torch.zeros((), dtype=torch.float64)
    for b, size in enumerate(sizes):
        if b == len(sizes) // 2:
            direction = _direction(center, groups, sizes)
        total = _added(replicates.run(size, block_seed(seed, 1 + b), center, direction))
        sketch, outer = total.sketch + sketch, total.outer + outer
        groups.append(total._replace(sketch=sketch.new_zeros(()), outer=sketch.new_zeros(())))
    return _moments(reducer.parts, center, sizes, groups, (direction, sketch, outer))


_PILOT = 8


def moments_of_rows(parts: list[Part], rows: Float[Tensor, "c p"]) -> Moments:
    """Moments of a few independent gradients that are at hand, each a group of its own."""
    rows = rows.double().cpu()
    center, levels = rows.mean(0), _levels(parts)
    d = rows - center
    square = torch.stack([d[:, part.columns].square().sum(1) for part in parts], 1)
    none, zero = torch.zeros_like(square), torch.zeros_like(center)
    return Moments(
        parts, levels, center, torch.ones(len(rows), dtype=torch.float64), d,
        torch.zeros(len(rows), max(levels) + 1, rows.shape[1], dtype=torch.float64),
        square, none, none, zero, none[0, :, None], none[0, :, None, None],
    )  # fmt: skip


def jackknife(
    statistic: Callable[..., Float[Tensor, " s"]], index: int, *samples: Moments
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """The values of a statistic of independent samples' summaries, and their standard errors.

    The variance is the sum over samples of (B - 1)/B sum_b (value without group b - their mean)^2 (Tukey 1958).
    """
    whole = [sample.summary(index) for sample in samples]
    variance = torch.zeros(())
    for i, sample in enumerate(samples):
        num = len(sample.counts)
        left = torch.stack(
            [statistic(*whole[:i], sample.summary(index, b), *whole[i + 1 :]) for b in range(num)]
        )
        variance = variance + (left - left.mean(0)).square().sum(0) * (num - 1) / num
    return statistic(*whole).numpy(), variance.sqrt().numpy()


def _direction(center: Tensor, groups: Sequence[Sums], sizes: Sequence[int]) -> Tensor:
    """The mean of the groups so far, of length one; every part of it is that part's direction."""
    mean = center.double() + torch.stack([each.deviation for each in groups]).sum(0) / sum(
        sizes[: len(groups)]
    )
    return (mean / mean.norm().clamp(min=torch.finfo(center.dtype).tiny)).to(center)


def _added(blocks: Iterator[Sums]) -> Sums:
    total: Sums | None = None
    for block in blocks:
        block = Sums(*(each.double() for each in block))
        total = block if total is None else Sums(*(a + b for a, b in zip(total, block, strict=True)))
    if total is None:
        raise ValueError("a group of replicates is empty")
    return total


def _moments(
    parts: list[Part],
    center: Tensor,
    sizes: Sequence[int],
    groups: Sequence[Sums],
    rest: tuple[Tensor, Tensor, Tensor],
) -> Moments:
    stacked = Sums(*(torch.stack(each).cpu() for each in zip(*groups, strict=True)))
    direction, sketch, outer = (each.double().cpu() for each in rest)
    return Moments(
        parts, _levels(parts), center.double().cpu(), torch.tensor(sizes, dtype=torch.float64),
        stacked.deviation, stacked.unit, stacked.square, stacked.along, stacked.along_square,
        direction, sketch, outer,
    )  # fmt: skip


def _levels(parts: Sequence[Part]) -> list[int]:
    """Kinds are the first level, parameters the second: a part begins a level where it begins at coordinate 0."""
    level, levels = -1, []
    for part in parts:
        level += part.columns.start == 0
        levels.append(level)
    return levels
