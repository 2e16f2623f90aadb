"""Annealed importance sampling: weighted walks from a density that is known to one that is not, and back."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrovae.inference import hmc
from pyrovae.inference.hmc import HMCState, LogDensityAndGradient
from pyrovae.inference.laplace import Gaussian, whitened_gradient

__all__ = [
    "Annealed",
    "Endpoints",
    "Kernel",
    "Metric",
    "Path",
    "Plan",
    "Point",
    "arrive",
    "forward",
    "gaussian_path",
    "move",
    "reverse",
]


class Endpoints(NamedTuple):
    """Both ends of a path, seen from one position."""

    start: Float[Tensor, "c n"]
    """Log density of the start, normalized."""
    start_gradient: Float[Tensor, "c n d"]
    end: Float[Tensor, "c n"]
    """log p(x, z) in the same coordinates."""
    end_gradient: Float[Tensor, "c n d"]


Path = Callable[[Float[Tensor, "c n d"]], Endpoints]
"""Rows are independent, results detached; positions that are not finite must return, NaN say, and not raise."""


class Metric(NamedTuple):
    """Directions of a move, and the precision of the end along each, where that of the start is 1."""

    basis: Float[Tensor, "n d d"]
    """Orthonormal columns."""
    precision: Float[Tensor, "n d"]


class Plan(NamedTuple):
    """All that a run needs and must not choose from its own draws: T temperatures, T - 1 moves between them."""

    betas: Float[Tensor, "t+1 n"]
    """float64, on the device of the run; 0 first, 1 last, strictly increasing."""
    step_size: Float[Tensor, "t-1 n"]
    """Of the moves at betas[1], ..., betas[T - 1], in the dtype of the run."""
    num_steps: tuple[int, ...]
    """Leapfrog steps of these moves."""
    metric: Metric | None = None
    """With one, a move at beta has coordinates of scale (1 - beta + beta precision)^-1/2 along its directions."""


class Annealed(NamedTuple):
    """What C chains for each of N data brought home."""

    log_weight: Float[Tensor, "c n"]
    """float64, whatever the path has."""
    position: Float[Tensor, "c n d"]
    """After the last move; no run moves at an end of its path."""
    acceptance_rate: Float[Tensor, "t-1 n"]
    """Averaged over chains; in the order of the Plan, for `reverse` too."""
    ratio_variance: Float[Tensor, "t n"]
    """Over chains, of end - start where increment t was taken: at betas[t], or betas[t + 1] in `reverse`."""
    num_gradient_evaluations: int
    """Per chain and datum."""


class Point(NamedTuple):
    """A position and what is known there, at every temperature."""

    position: Float[Tensor, "c n d"]
    endpoints: Endpoints

    @property
    def log_ratio(self) -> Float[Tensor, "c n"]:
        """end - start in float64, what the temperature multiplies."""
        return self.endpoints.end.double() - self.endpoints.start.double()


class Kernel(NamedTuple):
    """A move that leaves the density at `beta` as it is."""

    beta: Float[Tensor, " n"]
    step_size: Float[Tensor, " n"]
    num_steps: int
    metric: Metric | None


def gaussian_path(gaussian: Gaussian, log_density_and_gradient: LogDensityAndGradient) -> Path:
    """Make the path from a Gaussian to log p(x, z), in the coordinates u where the Gaussian is round.

    With z = loc + scale_tril u: start = -|u|^2 / 2 - D/2 log 2 pi, end = log p(x, z) + log |det scale_tril|. An
    evaluation costs one gradient of log p. Standard normal u are draws of the start.

    Args:
        gaussian: one a datum; the nearer the posterior, the fewer temperatures are needed.
        log_density_and_gradient: of log p(x, z) in z, [C, N, D] -> [C, N], [C, N, D].

    >>> wide = Gaussian(torch.zeros(1, 1), torch.full((1, 1, 1), 2.0))
    >>> path = gaussian_path(wide, hmc.with_gradient(lambda z: -0.5 * (z / 2).square().sum(-1)))
    >>> arrive(torch.randn(3, 1, 1), path).log_ratio.exp().squeeze() / math.sqrt(8 * math.pi)  # log Z is known
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    whitened = whitened_gradient(gaussian, log_density_and_gradient)
    log_det = gaussian.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * gaussian.loc.shape[-1] * math.log(2 * math.pi)

    def evaluate(u: Float[Tensor, "c n d"]) -> Endpoints:
        end, end_gradient = whitened(u)
        return Endpoints(-0.5 * u.square().sum(-1) - constant, -u, end + log_det, end_gradient)

    return evaluate


def forward(position: Float[Tensor, "c n d"], path: Path, plan: Plan) -> Annealed:
    """Walk from draws of the start towards the posterior, and weigh them: E exp(log_weight) = p(x).

    log_weight = sum_t (betas[t] - betas[t-1]) (end - start)(z_{t-1}), z_0 = position, and z_t after a move by HMC at
    betas[t] that leaves start^(1-beta) end^beta invariant; each increment is taken before the move. So E log_weight
    <= log p(x), the closer the more temperatures; T = 1 is importance sampling. Unbiased however badly chains mix,
    but only for a plan that was fixed before these draws; few chains that never meet the posterior's bulk lie low.
    A draw where p(x, z) is 0 has log_weight -inf, one where it is NaN has NaN, in its row alone.

    Args:
        position: independent draws of the start; new ones, not those the plan was tuned on.
        path: evaluated once and then once a leapfrog step; a change of temperature is free.
        plan: from `pilot.tune`, or made by hand.

    Raises:
        ValueError: if the plan does not fit itself or the positions.

    Source: Neal 2001, equation 11; Jarzynski 1997.

    >>> _ = torch.manual_seed(0)
    >>> start = Gaussian(torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2))
    >>> path = gaussian_path(start, hmc.with_gradient(lambda z: -2.0 * (z - 1).square().sum(-1)))
    >>> betas = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    >>> found = forward(torch.randn(1000, 1, 2), path, Plan(betas, torch.full((9, 1), 0.6), (2,) * 9))
    >>> bool((found.log_weight.exp().mean() / (math.pi / 2) - 1).abs() < 0.1), found.num_gradient_evaluations
    (True, 19)
    """
    _check(position, plan)
    return _run(position, path, plan.betas.diff(dim=0), _kernels(plan))


def reverse(position: Float[Tensor, "c n d"], path: Path, plan: Plan) -> Annealed:
    """Walk from draws of the posterior back to the start: E exp(-log_weight) = 1 / p(x), E log_weight >= log p(x).

    The increments of `forward` in the opposite order, each followed by the move at the temperature below. With
    `forward` it makes a sandwich; by Crooks, E_forward f(W) = E_reverse f(W) exp(log p(x) - W), W the log_weight.
    The bound needs exact posterior draws, as simulated data have them; with others it is approximate.

    Args:
        position: draws of the posterior, in the coordinates of the path.
        path: as for `forward`.
        plan: the one of `forward`.

    Raises:
        ValueError: if the plan does not fit itself or the positions.

    Source: Grosse, Ghahramani and Adams 2015; Crooks 1999.

    >>> _ = torch.manual_seed(0)
    >>> start = Gaussian(torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2))
    >>> path = gaussian_path(start, hmc.with_gradient(lambda z: -2.0 * (z - 1).square().sum(-1)))
    >>> plan = Plan(torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.empty(0, 1), ())
    >>> bool(reverse(1 + 0.5 * torch.randn(1000, 1, 2), path, plan).log_weight.mean() > math.log(math.pi / 2))
    True
    """
    _check(position, plan)
    # Each move is reversible, so that the walk back needs no kernels of its own.
    run = _run(position, path, plan.betas.diff(dim=0).flip(0), _kernels(plan)[::-1])
    return run._replace(
        acceptance_rate=run.acceptance_rate.flip(0), ratio_variance=run.ratio_variance.flip(0)
    )


def _kernels(plan: Plan) -> list[Kernel]:
    betas = plan.betas[1:-1].to(plan.step_size)
    moves = zip(betas, plan.step_size, plan.num_steps, strict=True)
    return [Kernel(*move, plan.metric) for move in moves]


def _run(
    position: Float[Tensor, "c n d"], path: Path, increments: Float[Tensor, "t n"], moves: Sequence[Kernel]
) -> Annealed:
    point = arrive(position, path)
    ratio = point.log_ratio
    log_weight = increments[0] * ratio
    rates, variances = [], [ratio.var(0, correction=0)]
    for increment, kernel in zip(increments[1:], moves, strict=True):
        point, rate = move(point, path, kernel)
        ratio = point.log_ratio
        log_weight = log_weight + increment * ratio
        rates.append(rate.mean(0))
        variances.append(ratio.var(0, correction=0))
    rate = torch.stack(rates) if rates else position.new_empty((0, position.shape[1]))
    cost = 1 + sum(kernel.num_steps for kernel in moves)
    return Annealed(log_weight, point.position, rate, torch.stack(variances), cost)


def arrive(position: Float[Tensor, "c n d"], path: Path) -> Point:
    """Give the point at `position`; costs one gradient.

    >>> start = Gaussian(torch.zeros(1, 1), torch.ones(1, 1, 1))
    >>> path = gaussian_path(start, lambda z: (z.sum(-1), torch.ones_like(z)))
    >>> arrive(torch.tensor([[[3.0]]]), path).endpoints.end
    tensor([[3.]])
    """
    position = position.detach()
    return Point(position, path(position))


def move(point: Point, path: Path, kernel: Kernel) -> tuple[Point, Float[Tensor, "c n"]]:
    """Move by HMC at one temperature, each row accepted or not on its own; give the acceptance rates too.

    Costs `num_steps` gradients, none for the change of temperature. A row that leaves the finite numbers stays.

    >>> _ = torch.manual_seed(0)
    >>> start = Gaussian(torch.zeros(1, 1), torch.ones(1, 1, 1))
    >>> path = gaussian_path(start, hmc.with_gradient(lambda z: -0.5 * z.square().sum(-1)))
    >>> kernel = Kernel(torch.tensor([0.5]), torch.tensor([0.1]), 2, None)
    >>> _, rate = move(arrive(torch.randn(4, 1, 1), path), path, kernel)
    >>> bool((rate > 0.99).all())
    True
    """
    scale = _scale(kernel, point.position)
    proposal = point

    def density(shift: Float[Tensor, "c n d"]) -> tuple[Float[Tensor, "c n"], Float[Tensor, "c n d"]]:
        # Coordinates of a move are shifts from where it began: no system is solved. The last point is the proposal.
        nonlocal proposal
        position = point.position + torch.einsum("nij,cnj->cni", scale, shift)
        proposal = Point(position, path(position))
        return _tempered(proposal.endpoints, kernel.beta, scale)

    at_start = _tempered(point.endpoints, kernel.beta, scale)
    _, info = hmc.step(
        HMCState(torch.zeros_like(point.position), *at_start),
        density,
        momentum=torch.randn_like(point.position),
        log_uniform=-torch.empty_like(at_start[0]).exponential_(),
        step_size=kernel.step_size.expand_as(at_start[0]),
        num_steps=kernel.num_steps,
    )
    return _select(info.accepted, proposal, point), info.acceptance_rate


def _scale(kernel: Kernel, position: Float[Tensor, "c n d"]) -> Float[Tensor, "n d d"]:
    if kernel.metric is None:
        return torch.ones_like(position[0]).diag_embed()
    beta = kernel.beta.unsqueeze(-1)
    width = (1 - beta + beta * kernel.metric.precision).rsqrt()
    return kernel.metric.basis * width.unsqueeze(-2)


def _tempered(
    endpoints: Endpoints, beta: Float[Tensor, " n"], scale: Float[Tensor, "n d d"]
) -> tuple[Float[Tensor, "c n"], Float[Tensor, "c n d"]]:
    value = (1 - beta) * endpoints.start + beta * endpoints.end
    beta = beta.unsqueeze(-1)
    gradient = (1 - beta) * endpoints.start_gradient + beta * endpoints.end_gradient
    return value, torch.einsum("nij,cni->cnj", scale, gradient)


def _select(accepted: Bool[Tensor, "c n"], first: Point, second: Point) -> Point:
    wide = accepted.unsqueeze(-1)
    pairs = zip(first.endpoints, second.endpoints, strict=True)
    endpoints = [torch.where(wide if one.ndim == 3 else accepted, one, other) for one, other in pairs]
    return Point(torch.where(wide, first.position, second.position), Endpoints(*endpoints))


def _check(position: Float[Tensor, "c n d"], plan: Plan) -> None:
    betas, step_size, num_steps, _ = plan
    num_temperatures, num_data = len(betas) - 1, position.shape[1]
    if num_temperatures < 1 or betas.shape[1:] != (num_data,):
        raise ValueError(f"betas must be [temperatures + 1, {num_data}], but are {tuple(betas.shape)}")
    if step_size.shape != (num_temperatures - 1, num_data) or len(num_steps) != num_temperatures - 1:
        raise ValueError(
            f"step_size and num_steps must have {num_temperatures - 1} rows for {num_temperatures} temperatures and "
            f"{num_data} data, but have {tuple(step_size.shape)} and {len(num_steps)}: no move is made at the ends"
        )
    is_right = (betas[0] == 0.0) & (betas[-1] == 1.0) & (betas.diff(dim=0) > 0.0).all(0)
    if betas.dtype != torch.float64 or not bool(is_right.all()):
        raise ValueError("betas must be float64 and rise strictly from exactly 0 to exactly 1: see schedules")
