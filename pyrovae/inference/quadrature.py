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
SHRINKS = 20  # zooms that may shrink a box: where grids see different ends, it would shrink and grow for ever
SETTLED = 0.8  # a box that would not shrink below this part of its width stays
SAFETY = 2.0  # factor on the error at kinks
ALIKE = 4.0  # most that the bends of one parabola differ by at neighbouring points
ROUNDING = 32.0  # units of rounding that every value may be wrong by


class Quadrature(NamedTuple):
    """Log integrals of N densities; float64."""

    log_integral: Float[Tensor, " n"]
    """NaN where `bad_point` is not."""
    error: Float[Tensor, " n"]
    """In nats, by the changes when the grid was made twice as fine; +inf where there is no value, or no box."""
    is_converged: Bool[Tensor, " n"]
    """The box was found, and `error` is within the tolerance."""
    bad_point: Float[Tensor, "n d"]
    """Where the density is +inf, or NaN at the next point of the grid, and that matters; NaN where it is nowhere."""
    num_evaluations: int
    """Of each datum's density."""


class _Box(NamedTuple):
    low: Float[Tensor, "n d"]
    high: Float[Tensor, "n d"]
    is_found: Bool[Tensor, " n"]
    bad_point: Float[Tensor, "n d"]
    """Where the density was +inf, or any point if it was NaN or nothing all over; NaN where it was neither."""
    num_evaluations: int

    @property
    def is_bad(self) -> Bool[Tensor, " n"]:
        return ~self.bad_point.isnan().any(-1)


class _Sum(NamedTuple):
    """The trapezoid rule on one grid."""

    log_integral: Float[Tensor, " n"]
    hidden: Float[Tensor, " n"]
    """What NaN may hide: the highest density beside it times the volume of the box, as a share of the integral."""
    bad_point: Float[Tensor, "n d"]
    """Where that density is, or +inf."""


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

    Where the density is NaN, as where a rate overflows, it counts as nothing, provided that it has come to nothing
    before: the highest density at a point of the grid beside NaN, if it went on over the whole box, must add no more
    than `tolerance`; it adds to `error`. Where it is more, or the density +inf, there is no value, and `bad_point`.

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
    box = _Box(low, high, none, torch.full_like(low, math.nan), 0)
    # One look at the device a zoom, which evaluates a thousand points per datum.
    for count in range(MAX_ZOOMS):
        if bool((box.is_found | box.is_bad).all()):
            break
        box = _zoom(log_density, box, max(ZOOM_CELLS.values()) if count < SHRINKS else 0)
    return box


def _zoom(log_density: GridDensity, box: _Box, inwards: int) -> _Box:
    """Move every side of the box to where the density ends, at most that many cells inwards, or else outwards."""
    dim = box.low.shape[-1]
    cells = ZOOM_CELLS[dim]
    index = _grid(cells, dim, box.low.device)
    value = torch.cat([v for _, v in _evaluate(log_density, box, index, cells)])
    height = _height(value.reshape(*[cells + 1] * dim, -1))
    top = height.flatten(0, -2).amax(0)
    is_bad = (value == math.inf).any(0) | (value.isnan().any(0) & (top == -math.inf))
    is_kept = height >= top - DEPTH
    sides = [_side(is_kept.any(1 - axis) if dim == 2 else is_kept, cells) for axis in range(dim)]
    first, last = (torch.stack(side, -1).to(box.low) for side in zip(*sides, strict=True))
    first, last = first.clamp(max=inwards), last.clamp(min=cells - inwards)
    cell = (box.high - box.low) / cells
    low, high = box.low + first * cell, box.low + last * cell
    is_inside = ((first >= 0) & (last <= cells)).all(-1)
    is_found = is_inside & (high - low >= SETTLED * (box.high - box.low)).all(-1)
    stays = (box.is_found | box.is_bad | is_bad).unsqueeze(-1)
    at = box.low + index[value.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).argmax(0)] * cell
    return _Box(
        torch.where(stays, box.low, low),
        torch.where(stays, box.high, high),
        box.is_found | (is_found & ~is_bad & ~box.is_bad),
        torch.where((is_bad & ~box.is_found & ~box.is_bad).unsqueeze(-1), at, box.bad_point),
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
        raised = raised + _gain(height.movedim(axis, -1)).movedim(-1, axis)
    return raised


def _gain(height: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """How far parabolas along the last axis rise above the maxima, where they are the shape of the density.

    They are if its bend is about the same a point further on one side. At the foot of a wall, as where a rate grows
    exponentially, it is not, and the parabola would rise without limit.
    """
    left, inner, right = height[..., :-2], height[..., 1:-1], height[..., 2:]
    bend = 2 * inner - left - right
    before, after = (
        torch.nn.functional.pad(bend, (1, 1), value=math.nan).unfold(-1, 3, 1)[..., ::2].unbind(-1)
    )
    is_alike = [(side <= ALIKE * bend) & (bend <= ALIKE * side) for side in (before, after)]
    is_peak = (inner >= left) & (inner >= right) & (bend > 0) & bend.isfinite() & (is_alike[0] | is_alike[1])
    gain = torch.where(is_peak, (right - left).square() / (8 * bend), 0.0)
    return torch.nn.functional.pad(gain, (1, 1))


def _side(is_kept: Bool[Tensor, "k n"], cells: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Where the new box begins and ends along one axis, in cells of the old one: a cell beyond what is kept."""
    kept = is_kept.long()
    first, last = kept.argmax(0), cells - kept.flip(0).argmax(0)
    return torch.where(first > 0, first - 1, -cells), torch.where(last < cells, last + 1, 2 * cells)


def _refine(log_density: GridDensity, box: _Box, tolerance: float, max_points: int) -> Quadrature:
    """Trapezoid rule on finer and finer grids; a datum keeps the first value that is within the tolerance."""
    dim, cells = box.low.shape[-1], FIRST_CELLS[box.low.shape[-1]]
    density = torch.empty(0, len(box.low), dtype=torch.float64, device=box.low.device)
    value = torch.full_like(box.low[:, 0], -math.inf, dtype=torch.float64)
    error = torch.full_like(value, math.inf)
    changes = [error] * 3
    is_done, bad_point = box.is_bad, box.bad_point
    while cells**dim <= max_points and not bool(is_done.all()):
        density = _filled(log_density, box, density, cells)
        found = _trapezoid(density, box, cells)
        rounding = ROUNDING * torch.finfo(torch.float64).eps * (1.0 + found.log_integral.abs())
        changes = [(found.log_integral - value).abs(), *changes[:2]]
        error = torch.where(is_done, error, _error(changes) + rounding + found.hidden)
        value = torch.where(is_done, value, found.log_integral)
        at = torch.where((found.hidden > tolerance).unsqueeze(-1), found.bad_point, math.nan)
        bad_point = torch.where(is_done.unsqueeze(-1), bad_point, at)
        is_done = is_done | (found.hidden == math.inf) | (error <= tolerance)
        cells *= 2
    is_bad = ~bad_point.isnan().any(-1)
    is_usable = ~is_bad & value.isfinite()
    return Quadrature(
        torch.where(is_bad, math.nan, value),
        torch.where(is_usable & box.is_found, error, math.inf),
        is_usable & box.is_found & (error <= tolerance),
        bad_point,
        box.num_evaluations + len(density),
    )


def _filled(
    log_density: GridDensity, box: _Box, coarse: Float[Tensor, "c n"], cells: int
) -> Float[Tensor, "k n"]:
    """The log density on a grid, of which `coarse` has every other point along each axis, or none."""
    index = _grid(cells, box.low.shape[-1], box.low.device)
    is_new = (index % 2 == 1).any(-1) | (len(coarse) == 0)
    density = coarse.new_empty(len(index), coarse.shape[1])
    density[~is_new] = coarse
    density[is_new] = torch.cat([values for _, values in _evaluate(log_density, box, index[is_new], cells)])
    return density


def _trapezoid(density: Float[Tensor, "k n"], box: _Box, cells: int) -> _Sum:
    dim = box.low.shape[-1]
    index = _grid(cells, dim, box.low.device)
    log_volume = (box.high - box.low).double().log().sum(-1)
    # Points on the border count half, in a corner a quarter.
    halves = ((index == 0) | (index == cells)).sum(-1).double() * math.log(2.0)
    is_nan = density.isnan()
    height = density.masked_fill(is_nan, -math.inf)
    log_mean = (height - halves.unsqueeze(-1)).logsumexp(0) - dim * math.log(cells)
    beside = height.masked_fill(~_beside(is_nan, dim, cells) & (height != math.inf), -math.inf)
    highest, place = beside.max(0)
    is_nothing = (log_mean == -math.inf) & ~is_nan.any(0)
    otherwise = torch.where(is_nothing, 0.0, math.inf)
    hidden = torch.where(log_mean.isfinite(), (highest - log_mean).exp(), otherwise)
    bad_point = box.low + index[place] * (box.high - box.low) / cells
    return _Sum(log_mean + log_volume, hidden, bad_point)


def _beside(is_nan: Bool[Tensor, "k n"], dim: int, cells: int) -> Bool[Tensor, "k n"]:
    """Whether any point of the grid next to this one, or this one, is NaN."""
    pool = torch.nn.functional.max_pool1d if dim == 1 else torch.nn.functional.max_pool2d
    grid = is_nan.T.reshape(-1, 1, *[cells + 1] * dim).float()
    return (pool(grid, 3, stride=1, padding=1) > 0).reshape(is_nan.shape[1], -1).T


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
