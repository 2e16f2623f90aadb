"""One batched transition of Hamiltonian Monte Carlo, as a pure function of state and noise."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "HMCInfo",
    "HMCState",
    "Integrator",
    "LogDensity",
    "LogDensityAndGradient",
    "init",
    "leapfrog",
    "rotations",
    "step",
    "with_gradient",
]

LogDensity = Callable[[Float[Tensor, "*b d"]], Float[Tensor, " *b"]]
LogDensityAndGradient = Callable[[Float[Tensor, "*b d"]], tuple[Float[Tensor, " *b"], Float[Tensor, "*b d"]]]

DIVERGENCE_LIMIT = 1000.0  # nats; the customary mark of an integrator that left the level set for good


class HMCState(NamedTuple):
    """What the next transition needs; every leading axis is a row of its own."""

    position: Float[Tensor, "*b d"]
    log_density: Float[Tensor, " *b"]
    gradient: Float[Tensor, "*b d"]


class HMCInfo(NamedTuple):
    """What a person asks about one transition, row by row."""

    acceptance_rate: Float[Tensor, " *b"]
    """min(1, exp(-energy_error)), in [0, 1]; 0 where the proposal is not finite."""
    accepted: Bool[Tensor, " *b"]
    diverging: Bool[Tensor, " *b"]
    """Energy error above 1000 nats, or a proposal with a non-finite position, log density or gradient."""
    energy: Float[Tensor, " *b"]
    """Hamiltonian of the point that was kept, with the momentum it was reached with."""
    energy_error: Float[Tensor, " *b"]
    """Hamiltonian of the proposal minus that of the start; +inf where the proposal is not finite."""


Integrator = Callable[[Tensor, Tensor, Tensor, LogDensityAndGradient, Tensor, int], tuple[HMCState, Tensor]]
"""Position, momentum, gradient, density, step size and number of steps to a state and its momentum: `leapfrog` or
`rotations`; time-reversible, and preserves volume."""


def with_gradient(log_density: LogDensity) -> LogDensityAndGradient:
    """Make a callable that gives log density and gradient from one that gives the log density.

    Rows must be independent: the gradient is that of the sum over rows, so a log density that lets one row see
    another gives wrong gradients without a word. Both results are detached.

    >>> value, gradient = with_gradient(lambda z: -0.5 * z.square().sum(-1))(torch.tensor([[1.0, 2.0]]))
    >>> value, gradient
    (tensor([-2.5000]), tensor([[-1., -2.]]))
    """

    def evaluate(position: Float[Tensor, "*b d"]) -> tuple[Float[Tensor, " *b"], Float[Tensor, "*b d"]]:
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            value = log_density(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return evaluate


def init(position: Float[Tensor, "*b d"], log_density_and_gradient: LogDensityAndGradient) -> HMCState:
    """Give the state that starts at `position`; costs one gradient.

    >>> init(torch.zeros(3, 2), with_gradient(lambda z: -0.5 * z.square().sum(-1))).log_density
    tensor([-0., -0., -0.])
    """
    position = position.detach()
    return HMCState(position, *log_density_and_gradient(position))


def step(
    state: HMCState,
    log_density_and_gradient: LogDensityAndGradient,
    *,
    momentum: Float[Tensor, "*b d"],
    log_uniform: Float[Tensor, " *b"],
    step_size: Float[Tensor, " *b"],
    num_steps: int,
    integrator: Integrator | None = None,
) -> tuple[HMCState, HMCInfo]:
    """Make one transition that leaves exp(log density) invariant in every row, each accepted or not on its own.

    With H(q, p) = -log density(q) + |p|^2 / 2, the end of the trajectory replaces the start where
    log_uniform < H(start) - H(end). The mass matrix is the identity, so positions should come whitened.

    A row whose trajectory leaves the finite numbers is rejected and flagged; it changes no other row. The callable
    is then shown positions that are not finite, and must return (NaN, say) rather than raise.

    Args:
        state: from `init` or an earlier step.
        log_density_and_gradient: [*b, d] -> [*b], [*b, d]; rows independent, results detached.
        momentum: standard normal noise.
        log_uniform: logarithms of uniform noise, at most 0; one a row.
        step_size: above 0, in units of the posterior's standard deviation if positions are whitened.
        num_steps: steps of the integrator, at least 1; the number of gradients that the transition costs.
        integrator: `leapfrog` if None; `rotations` suits positions that are whitened well.

    Returns:
        The next state, and the HMCInfo of this transition.

    Raises:
        ValueError: if `num_steps` is below 1.

    Source: Duane, Kennedy, Pendleton and Roweth 1987; Neal 2011, section 5.3.

    >>> _ = torch.manual_seed(0)
    >>> density = with_gradient(lambda z: -0.5 * z.square().sum(-1))
    >>> state = init(torch.randn(1000, 2), density)
    >>> noise = {"momentum": torch.randn(1000, 2), "log_uniform": torch.rand(1000).log()}
    >>> state, info = step(state, density, **noise, step_size=torch.full((1000,), 0.5), num_steps=3)
    >>> bool(info.acceptance_rate.mean() > 0.9)
    True
    """
    integrate = leapfrog if integrator is None else integrator
    end, end_momentum = integrate(
        state.position, momentum, state.gradient, log_density_and_gradient, step_size, num_steps
    )
    # Differences before sums: both energies may be thousands of nats, and their difference is what counts.
    kinetic_change = 0.5 * (end_momentum.square() - momentum.square()).sum(-1)
    energy_change = kinetic_change - (end.log_density - state.log_density)
    is_finite = _is_finite(end) & ~energy_change.isnan()
    energy_error = torch.where(is_finite, energy_change, torch.inf)
    accepted = log_uniform < -energy_error
    start_energy = 0.5 * momentum.square().sum(-1) - state.log_density
    end_energy = 0.5 * end_momentum.square().sum(-1) - end.log_density
    info = HMCInfo(
        acceptance_rate=torch.exp(-energy_error.clamp(min=0.0)),
        accepted=accepted,
        diverging=~is_finite | (energy_error > DIVERGENCE_LIMIT),
        energy=torch.where(accepted, end_energy, start_energy),
        energy_error=energy_error,
    )
    return _select(accepted, end, state), info


def leapfrog(
    position: Float[Tensor, "*b d"],
    momentum: Float[Tensor, "*b d"],
    gradient: Float[Tensor, "*b d"],
    log_density_and_gradient: LogDensityAndGradient,
    step_size: Float[Tensor, " *b"],
    num_steps: int,
) -> tuple[HMCState, Float[Tensor, "*b d"]]:
    """Integrate Hamilton's equations; give the state at the end and its momentum.

    Kick p += e/2 g(q), drift q += e p, kick p += e/2 g(q), `num_steps` times; touching half kicks are merged, and
    the gradient at the start is given, so the cost is exactly `num_steps` gradients. Time-reversible, preserves
    volume, and errs in the energy by O(e^2); stable on a Gaussian while e < 2 times its smallest standard deviation.

    Raises:
        ValueError: if `num_steps` is below 1.

    Source: Neal 2011, section 5.2.3.

    >>> density = with_gradient(lambda z: -0.5 * z.square().sum(-1))
    >>> start = init(torch.tensor([[1.0]]), density)
    >>> end, momentum = leapfrog(*start[:1], torch.zeros(1, 1), start.gradient, density, torch.tensor([0.1]), 10)
    >>> bool((end.position - torch.cos(torch.tensor(1.0))).abs() < 1e-2)
    True
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, but is {num_steps}: give a longer trajectory")
    full_step = step_size.unsqueeze(-1)
    half_step = 0.5 * full_step
    momentum = torch.addcmul(momentum, half_step, gradient)
    for remaining in reversed(range(num_steps)):
        position = torch.addcmul(position, full_step, momentum)
        log_density, gradient = log_density_and_gradient(position)
        momentum = torch.addcmul(momentum, full_step if remaining else half_step, gradient)
    return HMCState(position, log_density, gradient), momentum


def rotations(
    position: Float[Tensor, "*b d"],
    momentum: Float[Tensor, "*b d"],
    gradient: Float[Tensor, "*b d"],
    log_density_and_gradient: LogDensityAndGradient,
    step_size: Float[Tensor, " *b"],
    num_steps: int,
    *,
    stop_after: Int[Tensor, " *b"] | None = None,
    rotates: Bool[Tensor, " *b"] | None = None,
    active: Sequence[int] | None = None,
) -> tuple[HMCState, Float[Tensor, "*b d"]]:
    """Integrate the same equations as `leapfrog`, exactly where the density is a standard normal.

    Kick p += e/2 (g(q) + q), rotate (q, p) by the angle e, kick again: log density = -|q|^2 / 2 + rest, and only the
    rest is approximated. On whitened positions one step of pi / 2, one gradient, gives a nearly independent draw where
    the leapfrog needs two or three. Time-reversible, preserves volume, and errs by O(e^2) times the rest; on a Gaussian
    of precision P stable while |cos e - (P - 1) e/2 sin e| < 1, that is up to P = 2.27 at e = pi / 2.

    Args:
        stop_after: steps after which a row rests, at least 1; rows then have trajectories of different lengths.
        rotates: False in rows that are to be integrated as by `leapfrog`: far from the origin, in another mode say,
            the rest is large where the density itself is flat.
        active: of the last of the axes *b, the first `active[i]` entries make step i, at most as many as step i - 1;
            what rests costs no gradient then. The callable is shown these alone.

    Raises:
        ValueError: if `num_steps` is below 1.

    Source: Beskos, Pinski, Sanz-Serna and Stuart 2011; Shahbaba, Lan, Johnson and Neal 2014.

    >>> density = with_gradient(lambda z: -0.5 * z.square().sum(-1))
    >>> start, time = init(torch.tensor([[1.0]]), density), torch.tensor([1.0])
    >>> end, momentum = rotations(*start[:1], torch.zeros(1, 1), start.gradient, density, time, 1)
    >>> bool((end.position - torch.cos(time)).abs() < 1e-6)
    True
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, but is {num_steps}: give a longer trajectory")
    turns = torch.ones_like(step_size, dtype=torch.bool) if rotates is None else rotates
    point = _Point(position, momentum, gradient, gradient[..., :1])
    resting: list[_Point] = []
    for i in range(num_steps):
        angle = step_size if stop_after is None else torch.where(i < stop_after, step_size, 0.0)
        if active is not None:
            angle, turns = angle[..., : active[i]], turns[..., : active[i]]
            if i and active[i] < active[i - 1]:
                resting.append(_Point(*(each[..., active[i] :, :] for each in point)))
                point = _Point(*(each[..., : active[i], :] for each in point))
        point = _turned(point, angle, turns, log_density_and_gradient)
    for rest in reversed(resting):
        point = _Point(*(torch.cat(pair, -2) for pair in zip(point, rest, strict=True)))
    return HMCState(point.position, point.log_density.squeeze(-1), point.gradient), point.momentum


class _Point(NamedTuple):
    """Where a trajectory is."""

    position: Float[Tensor, "*b d"]
    momentum: Float[Tensor, "*b d"]
    gradient: Float[Tensor, "*b d"]
    log_density: Float[Tensor, "*b 1"]


def _turned(
    point: _Point, angle: Float[Tensor, " *b"], turns: Bool[Tensor, " *b"], density: LogDensityAndGradient
) -> _Point:
    """One step of `rotations`."""
    position, momentum, gradient, _ = point
    angle, turns = angle.unsqueeze(-1), turns.unsqueeze(-1)
    half, cosine, sine = 0.5 * angle, torch.where(turns, angle.cos(), 1.0), angle.sin()
    forth, back = torch.where(turns, sine, angle), torch.where(turns, sine, 0.0)
    momentum = torch.addcmul(momentum, half, torch.where(turns, gradient + position, gradient))
    position, momentum = cosine * position + forth * momentum, cosine * momentum - back * position
    log_density, gradient = density(position)
    momentum = torch.addcmul(momentum, half, torch.where(turns, gradient + position, gradient))
    return _Point(position, momentum, gradient, log_density.unsqueeze(-1))


def _is_finite(state: HMCState) -> Bool[Tensor, " *b"]:
    vectors = state.position.isfinite() & state.gradient.isfinite()
    return vectors.all(-1) & state.log_density.isfinite()


def _select(condition: Bool[Tensor, " *b"], first: HMCState, second: HMCState) -> HMCState:
    # torch.where, not multiplication by 0 and 1: NaN times 0 is NaN.
    return HMCState(
        torch.where(condition.unsqueeze(-1), first.position, second.position),
        torch.where(condition, first.log_density, second.log_density),
        torch.where(condition.unsqueeze(-1), first.gradient, second.gradient),
    )
