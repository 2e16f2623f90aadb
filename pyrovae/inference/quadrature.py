"""log of the integral of a density over one or two dimensions, for many data at once."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Quadrature", "integrate"]

GridDensity = Callable[[Float[Tensor, "k n d"]], Float[Tensor, "k n"]]

MAX_ROWS = 1 << 14  # rows (points times data) that the density sees at once
DEPTH = 45.0  # nats below the maximum at which the density is cut off
ZOOM_CELLS = {1: 64, 2: 32}  # per axis, of the grid that finds the box
FIRST_CELLS = {1: 16, 2: 8}  # per axis, of the first grid of the trapezoid rule
MAX_ZOOMS = 60
SETTLED = 0.8  # a box that would not shrink below this part of its width stays
SAFETY = 2.0  # factor on the error at kinks
ROUNDING = 32.0  # units of rounding that every value may be wrong by


class Quadrature(NamedTuple):
    """Log integrals of N densities; float64."""

    log_integral: Float[Tensor, " n"]
    """NaN where the density was NaN or +inf somewhere."""
    error: Float[Tensor, " n"]
    """In nats, by the changes when the grid was made twice as fine; +inf where there is no value."""
    is_converged: Bool[Tensor, " n"]
    """The box was found, and `error` is within the tolerance."""
    num_evaluations: int
    """Of each datum's density."""


class _Box(NamedTuple):
    low: Float[Tensor, "n d"]
    high: Float[Tensor, "n d"]
    is_found: Bool[Tensor, " n"]
    is_bad: Bool[Tensor, " n"]
    """The density was NaN or +inf."""
    num_evaluations: int


def integrate(
    log_density: GridDensity,
    low: Float[Tensor, "n d"],
    high: Float[Tensor, "n d"],
    *,
    tolerance: float = 1e-6,
    max_points: int = 1 << 18,
) -> Quadrature:
    """Integrate exp(log_density) over the line or the plane, log int exp(l(z)) dz, for N data at once.

    First the box is fitted: it grows until the density at its border is 45 nats below the maximum, and shrinks to
    the part of it above that. Then the trapezoid rule, with twice as many points an axis until the value changes by
    at most `tolerance`. For a smooth density that falls to nothing inside the box the error falls exponentially in the
    number of points, and the last change is far more than the error left. At kinks it falls like the square of the
    spacing, and changes of either sign come by chance: there three changes count, and `error` is twice what they
    allow. At jumps, as of a bounded support, it is no guide. In float32 rounding adds an error that no change shows.

    A mode that the first grids pass over is missed: the first box should hold all of them, with little around. What
    one datum gets does not depend on the others.

    Args:
        log_density: [k, n, d] -> [k, n], up to 16,384 rows at a time; -inf is legal.
        low: a first box for every datum; d is 1 or 2.
        high: above `low`.
        tolerance: nats, above 0.
        max_points: of the finest grid of a datum; 2^18 is 512 x 512 in the plane.

    Raises:
        ValueError: if d is neither 1 nor 2, or the box or the tolerance is none.

    Source: Trefethen and Weideman 2014, for the convergence of the trapezoid rule.

    >>> normal = lambda z: -0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi)
    >>> box = torch.ones(3, 1, dtype=torch.float64)
    >>> result = integrate(normal, -box, box)
    >>> bool(result.is_converged.all()), bool(result.log_integral.abs().max() < 1e-9)
    (True, True)
    """
    _check(low, high, tolerance)
    with torch.no_grad():
        box = _find_box(log_density, low, high)
        return _refine(log_density, box, tolerance, max_points)


def _find_box(log_density: GridDensity, low: Tensor, high: Tensor) -> _Box:
    none = torch.zeros(len(low), dtype=torch.bool, device=low.device)
    box = _Box(low, high, none, none, 0)
    # One look at the device a zoom, which evaluates a thousand points per datum.
    for _ in range(MAX_ZOOMS):
        if bool((box.is_found | box.is_bad).all()):
            break
        box = _zoom(log_density, box)
    return box


def _zoom(log_density: GridDensity, box: _Box) -> _Box:
    """Move every side of the box to where the density ends, or outwards if it does not end inside."""
    dim = box.low.shape[-1]
    cells = ZOOM_CELLS[dim]
    index = _grid(cells, dim, box.low.device)
    value = torch.cat([v for _, v in _evaluate(log_density, box, index, cells)])
    is_bad = (value.isnan() | (value == math.inf)).any(0)
    height = _height(value.reshape(*[cells + 1] * dim, -1))
    is_kept = height >= height.flatten(0, -2).amax(0) - DEPTH
    sides = [_side(is_kept.any(1 - axis) if dim == 2 else is_kept, cells) for axis in range(dim)]
    first, last = (torch.stack(side, -1).to(box.low) for side in zip(*sides, strict=True))
    cell = (box.high - box.low) / cells
    low, high = box.low + first * cell, box.low + last * cell
    is_inside = ((first >= 0) & (last <= cells)).all(-1)
    is_found = is_inside & (high - low >= SETTLED * (box.high - box.low)).all(-1)
    stays = (box.is_found | box.is_bad | is_bad).unsqueeze(-1)
    return _Box(
        torch.where(stays, box.low, low),
        torch.where(stays, box.high, high),
        box.is_found | (is_found & ~is_bad),
        box.is_bad | (is_bad & ~box.is_found),
        box.num_evaluations + len(index),
    )


def _height(value: Float[Tensor, "*grid n"]) -> Float[Tensor, "*grid n"]:
    """The density on the grid, raised at every maximum along an axis to the top of the parabola through it.

    For narrow Gaussian modes between the points of the grid the parabola is exact, so none of them is lost to
    another that happens to lie closer to a point.
    """
    height = value.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    raised = height
    for axis in range(value.ndim - 1):
        inner = height.narrow(axis, 1, height.shape[axis] - 2)
        left = height.narrow(axis, 0, inner.shape[axis])
        right = height.narrow(axis, 2, inner.shape[axis])
        bend = 2 * inner - left - right
        is_peak = (inner >= left) & (inner >= right) & (bend > 0) & bend.isfinite()
        gain = torch.where(is_peak, (right - left).square() / (8 * bend), 0.0)
        raised = raised + torch.nn.functional.pad(gain.movedim(axis, -1), (1, 1)).movedim(-1, axis)
    return raised


def _side(is_kept: Bool[Tensor, "k n"], cells: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Where the new box begins and ends along one axis, in cells of the old one: a cell beyond what is kept."""
    kept = is_kept.long()
    first, last = kept.argmax(0), cells - kept.flip(0).argmax(0)
    return torch.where(first > 0, first - 1, -cells), torch.where(last < cells, last + 1, 2 * cells)


def _refine(log_density: GridDensity, box: _Box, tolerance: float, max_points: int) -> Quadrature:
    """Trapezoid rule on finer and finer grids; a datum keeps the first value that is within the tolerance."""
    dim, cells = box.low.shape[-1], FIRST_CELLS[box.low.shape[-1]]
    index = _grid(cells, dim, box.low.device)
    log_sum = torch.full_like(box.low[:, 0], -math.inf, dtype=torch.float64)
    value, error = log_sum, torch.full_like(log_sum, math.inf)
    changes = [error] * 3
    is_bad, is_done, num_evaluations = box.is_bad, box.is_bad, box.num_evaluations
    log_volume = (box.high - box.low).double().log().sum(-1)
    while cells**dim <= max_points and not bool(is_done.all()):
        for points, density in _evaluate(log_density, box, index, cells):
            is_bad = is_bad | (density.isnan() | (density == math.inf)).any(0)
            # Points on the border count half, in a corner a quarter.
            halves = ((points == 0) | (points == cells)).sum(-1).double() * math.log(2.0)
            log_sum = torch.logaddexp(log_sum, (density - halves.unsqueeze(-1)).logsumexp(0))
        finer = log_sum + log_volume - dim * math.log(cells)
        rounding = ROUNDING * torch.finfo(torch.float64).eps * (1.0 + finer.abs())
        changes = [(finer - value).abs(), *changes[:2]]
        error = torch.where(is_done, error, _error(changes) + rounding)
        value = torch.where(is_done, value, finer)
        is_done = is_done | is_bad | (error <= tolerance)
        num_evaluations += len(index)
        cells *= 2
        index = _grid(cells, dim, box.low.device)
        index = index[(index % 2 == 1).any(-1)]  # the others have been summed
    is_usable = ~is_bad & value.isfinite()
    return Quadrature(
        torch.where(is_bad, math.nan, value),
        torch.where(is_usable, error, math.inf),
        is_usable & box.is_found & (error <= tolerance),
        num_evaluations,
    )


def _error(changes: list[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """The error left after changes that came with finer and finer grids, the last one first.

    If each was far below the one before, and below its power 3/2, the density is smooth, the next one will be too,
    and the last is a bound. Else they may fall like the square of the spacing, times a factor of either sign that
    depends on where the kinks lie between the points, so that one small change may be chance: all count.
    """
    last, before, first = changes
    is_smooth = _has_collapsed(last, before) & _has_collapsed(before, first) & first.isfinite()
    largest = torch.maximum(torch.maximum(last, before / 4), first / 16)
    return torch.where(is_smooth, last, SAFETY * largest)


def _has_collapsed(change: Float[Tensor, " n"], before: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return (change <= before**1.5) & (change <= before / 50)


def _evaluate(
    log_density: GridDensity, box: _Box, index: Int[Tensor, "k d"], cells: int
) -> Iterator[tuple[Int[Tensor, "b d"], Float[Tensor, "b n"]]]:
    """The log density at points of the grid, in blocks."""
    cell = (box.high - box.low) / cells
    for points in index.split(max(1, MAX_ROWS // max(1, len(box.low)))):
        yield points, log_density(box.low + points.unsqueeze(1) * cell).double()


def _grid(cells: int, dim: int, device: torch.device) -> Int[Tensor, "k d"]:
    axis = torch.arange(cells + 1, device=device)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)


def _check(low: Tensor, high: Tensor, tolerance: float) -> None:
    dim = low.shape[-1]
    if dim not in ZOOM_CELLS:
        raise ValueError(
            f"quadrature is for 1 or 2 latent dimensions, but there are {dim}: use annealed importance sampling (ais)"
        )
    is_box = ((low < high) & low.isfinite() & high.isfinite()).all(-1)
    if not bool(is_box.all()):
        raise ValueError(
            f"low must be below high and both finite, but are not for datum {int((~is_box).nonzero()[0])}"
        )
    if not tolerance > 0.0:
        raise ValueError(f"tolerance must be above 0 nats, but is {tolerance}")
