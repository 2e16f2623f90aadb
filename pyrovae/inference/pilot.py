"""A short annealed run that chooses temperatures, step sizes and a metric for a long one."""

import math
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.inference import schedules, warmup
from pyrovae.inference.annealing import Kernel, Metric, Path, Plan, Point, arrive, move

__all__ = ["Tuned", "tune"]

ENOUGH = 20  # temperatures of a pass, as many as the run has if these are fewer
FEWEST = 4
SHARE = 8  # of the temperatures of a long run, one in eight; two passes are a quarter
FIRST_BETA = 1e-4  # of the first pass, which knows nothing about the start

# Gain of the step size: large at first, and then large enough to follow the temperature.
FIRST_GAIN, LEAST_GAIN = 2.0, 0.5
NUM_SMOOTHINGS = 3

# At acceptance 0.8 two leapfrog steps make a quarter turn in a whitened Gaussian. Larger steps or more of them come
# near the half turn, after which squares are what they were.
SHORTEST, LONGEST = 0.8, 1.2
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0

LEAST_PRECISION = 1e-2  # of the end in units of the start: nowhere is it taken to be more than 10 times wider
RIDGE = 1e-6

SCHEDULES = {
    "linear": schedules.linear,
    "sigmoid": schedules.sigmoid,
    "geometric": schedules.geometric,
}


class Tuned(NamedTuple):
    """A plan and what it cost."""

    plan: Plan
    num_gradient_evaluations: int
    """Per chain and datum."""


class _Seen(NamedTuple):
    """What one pass saw at its betas, the first of them 0."""

    betas: Float[Tensor, "s+1 n"]
    variances: Float[Tensor, "s+1 n"]
    log_step: Float[Tensor, "s+1 n"]
    slopes: "_Slopes"


class _Slopes(NamedTuple):
    """Sums of a linear regression of a gradient on positions; the last coordinate of y is 1."""

    gram: Float[Tensor, "n d+1 d+1"]
    """sum beta y y'"""
    cross: Float[Tensor, "n d d+1"]
    """sum beta (end_gradient - start_gradient) y'"""


def tune(
    position: Float[Tensor, "c n d"],
    path: Path,
    *,
    num_temperatures: int,
    schedule: str = "adapted",
    num_steps: int = 2,
    target_accept_prob: float = 0.8,
    num_pilot_temperatures: int | None = None,
) -> Tuned:
    """Choose the plan of a run with `num_temperatures` by two short passes along the path.

    The first pass learns the metric: the slope of end_gradient - start_gradient against position, by linear
    regression over all chains and temperatures with weight beta, is minus the difference of the two precisions,
    exactly so for a Gaussian end and D + 1 points, however badly they mix. The second, under that metric, measures
    Var(end - start) for `schedules.adapted` and moves each datum's log step size by Robbins and Monro's rule towards
    the wanted acceptance; both are smoothed along beta, and frozen. Step sizes are multiplied by a fixed golden-ratio
    sequence in (0.8, 1.2), against resonance.

    The plan depends on these draws: run `forward` with new ones, or E exp(log_weight) = p(x) fails. The metric takes
    the start to be about standard normal in the coordinates of the path, as `gaussian_path` makes it; if it is not,
    moves are slower and weights as right as before.

    Args:
        position: draws of the start, at least 2 chains; 16 are usual.
        path: as for `forward`.
        num_temperatures: T of the run, at least 1.
        schedule: "adapted", "linear", "sigmoid" or "geometric".
        num_steps: leapfrog steps of every move, at least 1; more than 2 at 0.8 come near resonance.
        target_accept_prob: strictly between 0 and 1.
        num_pilot_temperatures: of each pass, at least 4; if None, T up to 20, and an eighth of T from 160 on.

    Raises:
        ValueError: if an argument is out of range.

    Source: Robbins and Monro 1951; Gelman and Meng 1998 for the schedule.

    >>> from pyrovae.inference.annealing import gaussian_path
    >>> from pyrovae.inference.laplace import Gaussian
    >>> _ = torch.manual_seed(0)
    >>> start = Gaussian(torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2))
    >>> path = gaussian_path(start, lambda z: (-50.0 * z.square().sum(-1), -100.0 * z))
    >>> plan, cost = tune(torch.randn(16, 1, 2), path, num_temperatures=40)
    >>> plan.metric.precision.round(), cost
    (tensor([[100., 100.]]), 82)
    """
    count = _pilot_size(num_temperatures) if num_pilot_temperatures is None else num_pilot_temperatures
    _check(position, num_temperatures, schedule, target_accept_prob, count)
    walk = partial(_walk, position, path, num_steps=num_steps, target_accept_prob=target_accept_prob)
    first = walk(_first_betas(position, count), None)
    metric = _metric(first.slopes)
    metric = Metric(metric.basis.to(position), metric.precision.to(position))
    second = walk(schedules.adapted(first.betas, first.variances, count), metric)
    if schedule == "adapted":
        betas = schedules.adapted(second.betas, second.variances, num_temperatures)
    else:
        betas = _for_all(SCHEDULES[schedule](num_temperatures), position)
    moves = num_temperatures - 1
    plan = Plan(betas, _frozen(second, betas[1:-1]).to(position), (num_steps,) * moves, metric)
    return Tuned(plan, 2 * (1 + count * num_steps))


def _pilot_size(num_temperatures: int) -> int:
    return max(FEWEST, min(ENOUGH, num_temperatures), num_temperatures // SHARE)


def _walk(
    position: Float[Tensor, "c n d"],
    path: Path,
    betas: Float[Tensor, "s_plus_1 n"],
    metric: Metric | None,
    *,
    num_steps: int,
    target_accept_prob: float,
) -> _Seen:
    """Anneal with step sizes that adapt on the way, and without weights."""
    point = arrive(position, path)
    slopes = _no_slopes(position)
    log_step = warmup.initial_step_size(position).log()
    log_steps, variances = [log_step], [_variance(point)]
    for t, (beta, jitter) in enumerate(zip(betas[1:].to(position), _jitter(len(betas) - 1), strict=True)):
        point, rate = move(point, path, Kernel(beta, jitter * log_step.exp(), num_steps, metric))
        gain = max(LEAST_GAIN, FIRST_GAIN / math.sqrt(t + 1))
        log_step = log_step + gain * (rate.mean(0) - target_accept_prob)
        slopes = _observed(slopes, point, beta)
        log_steps.append(log_step)
        variances.append(_variance(point))
    return _Seen(betas, torch.stack(variances), torch.stack(log_steps), slopes)


def _frozen(seen: _Seen, betas: Float[Tensor, "moves n"]) -> Float[Tensor, "moves n"]:
    log_step = seen.log_step.double()
    for _ in range(NUM_SMOOTHINGS):
        log_step = schedules.smoothed(log_step)
    jitter = torch.tensor(_jitter(len(betas)), dtype=torch.float64, device=betas.device)
    return jitter.unsqueeze(-1) * schedules.interpolate(betas, seen.betas, log_step).exp()


def _jitter(count: int) -> list[float]:
    return [SHORTEST + (LONGEST - SHORTEST) * ((0.5 + GOLDEN * t) % 1.0) for t in range(count)]


def _first_betas(position: Float[Tensor, "c n d"], count: int) -> Float[Tensor, "s_plus_1 n"]:
    # Half of them suit a start that is far too wide, half one that is nearly right.
    fine, coarse = schedules.geometric(count // 2, FIRST_BETA)[1:-1], schedules.linear(count - count // 2 + 1)
    return _for_all(torch.cat([fine, coarse]).sort().values, position)


def _for_all(betas: Float[Tensor, " s"], position: Float[Tensor, "c n d"]) -> Float[Tensor, "s n"]:
    return betas.to(position.device).unsqueeze(-1).expand(-1, position.shape[1])


def _variance(point: Point) -> Float[Tensor, " n"]:
    """Of the log ratio, over the chains that have one."""
    ratio = point.log_ratio
    is_finite = ratio.isfinite()
    count = is_finite.sum(0)
    mean = torch.where(is_finite, ratio, 0.0).sum(0) / count
    return torch.where(is_finite, ratio - mean, 0.0).square().sum(0) / (count - 1)


def _no_slopes(position: Float[Tensor, "c n d"]) -> _Slopes:
    _, num_data, dim = position.shape
    zeros = partial(torch.zeros, dtype=torch.float64, device=position.device)
    return _Slopes(zeros(num_data, dim + 1, dim + 1), zeros(num_data, dim, dim + 1))


def _observed(slopes: _Slopes, point: Point, beta: Float[Tensor, " n"]) -> _Slopes:
    position = point.position.double()
    difference = (point.endpoints.end_gradient - point.endpoints.start_gradient).double()
    is_finite = difference.isfinite().all(-1, keepdim=True)
    y = torch.where(is_finite, torch.cat([position, torch.ones_like(position[..., :1])], -1), 0.0)
    weighted = beta.double().unsqueeze(-1) * y
    return _Slopes(
        slopes.gram + torch.einsum("cni,cnj->nij", y, weighted),
        slopes.cross + torch.einsum("cni,cnj->nij", torch.where(is_finite, difference, 0.0), weighted),
    )


def _metric(slopes: _Slopes) -> Metric:
    dim = slopes.cross.shape[-2]
    identity = torch.eye(dim + 1, dtype=torch.float64, device=slopes.gram.device)
    # With fewer points than coordinates the ridge leaves directions that were never seen as they are at the start.
    ridge = RIDGE * slopes.gram.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(torch.float64).tiny
    gram = slopes.gram + ridge[:, None, None] * identity
    slope = torch.linalg.solve(gram, slopes.cross.mT).mT[..., :dim]
    symmetric = torch.where(slope.isfinite(), -0.5 * (slope + slope.mT), 0.0)
    excess, basis = torch.linalg.eigh(symmetric)
    return Metric(basis, (1.0 + excess).clamp(min=LEAST_PRECISION))


def _check(
    position: Float[Tensor, "c n d"],
    num_temperatures: int,
    schedule: str,
    target_accept_prob: float,
    num_pilot_temperatures: int,
) -> None:
    if len(position) < 2:
        raise ValueError(f"position must hold at least 2 chains, but has {len(position)}: 16 are usual")
    if num_temperatures < 1:
        raise ValueError(f"num_temperatures must be at least 1, but is {num_temperatures}: 200 are usual")
    if schedule != "adapted" and schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of adapted, {', '.join(SCHEDULES)}, but is {schedule!r}")
    if not 0.0 < target_accept_prob < 1.0:
        raise ValueError(
            f"target_accept_prob must lie strictly between 0 and 1, but is {target_accept_prob}: 0.8 is usual"
        )
    if num_pilot_temperatures < FEWEST:
        raise ValueError(
            f"num_pilot_temperatures must be at least {FEWEST}, but is {num_pilot_temperatures}: 20 are usual"
        )
