"""Many chains for many data at once: warm-up, then draws; the only sampling loop."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrovae.inference import hmc, warmup
from pyrovae.inference.hmc import HMCInfo, HMCState, LogDensityAndGradient

__all__ = ["Chains", "Progress", "sample_chains"]

Progress = Callable[[int, int], object]

# A trajectory of fixed length resonates with a Gaussian of matching width: it comes back to where it began. These
# multiples of the trajectory length gave the most effective draws a gradient for z and z^2 together.
SHORTEST, LONGEST = 0.6, 1.4
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
WINDOW = 10  # warm-up transitions between two looks at the step sizes; each look waits for the device


class Chains(NamedTuple):
    """Draws and what was seen on the way, for C chains, T draws, N data and D coordinates."""

    position: Float[Tensor, "c t n d"]
    log_density: Float[Tensor, "c t n"]
    acceptance_rate: Float[Tensor, "c t n"]
    energy: Float[Tensor, "c t n"]
    energy_error: Float[Tensor, "c t n"]
    """Of the proposal, kept or not; +inf where it was not finite."""
    diverging: Bool[Tensor, "c t n"]
    num_steps: Int[Tensor, " t"]
    step_size: Float[Tensor, " n"]
    """Frozen after warm-up; each transition multiplies all of them by one number in (0, 1]."""
    num_gradient_evaluations: int
    """Per chain and datum, with the start and the warm-up."""
    num_warmup_gradient_evaluations: int
    """Per chain and datum, of the start and the warm-up alone."""


class _Move(NamedTuple):
    num_steps: int
    scale: float


def sample_chains(
    log_density_and_gradient: LogDensityAndGradient,
    position: Float[Tensor, "c n d"],
    *,
    num_samples: int,
    warmup_steps: int,
    trajectory_length: float = math.pi / 2,
    target_accept_prob: float = 0.8,
    max_num_steps: int = 32,
    progress: Progress | None = None,
) -> Chains:
    """Draw from N densities at once by Hamiltonian Monte Carlo, C chains each, from whitened starts.

    Every datum has its own step size and every row its own acceptance. All rows share the number of leapfrog steps:
    with a phase drawn for each transition, time = phase * trajectory_length, num_steps = ceil(time / median step
    size), and every step size is multiplied by time / (num_steps * median), so that the integration time is
    continuous. Phases are a golden-ratio sequence in (0.6, 1.4) from a random start. Warm-up moves in the same way.

    A trajectory of pi / 2 makes draws from a whitened Gaussian nearly independent. Where a posterior is far wider or
    narrower than its whitening says, chains mix slowly or are rejected; look at R-hat and effective sample size.

    Args:
        log_density_and_gradient: [C, N, D] -> [C, N], [C, N, D]; rows independent, results detached. It may be shown
            positions that are not finite, and must return.
        position: where chains start; finite, with finite log density and gradient.
        num_samples: draws kept of each chain, at least 1.
        warmup_steps: transitions that adapt step sizes and are not kept, at least 1.
        trajectory_length: mean integration time, above 0, in standard deviations of the whitened posterior.
        target_accept_prob: mean acceptance rate wanted for every datum, strictly between 0 and 1.
        max_num_steps: most leapfrog steps of a transition, at least 1.
        progress: called as progress(done, total) after every transition.

    Raises:
        ValueError: if an argument is out of range, or a start is not finite.

    Source of the sequence of phases: Hoffman, Radul and Sountsov 2021, with a golden-ratio sequence for their Halton
    sequence.

    >>> _ = torch.manual_seed(0)
    >>> density = hmc.with_gradient(lambda u: -0.5 * u.square().sum(-1))
    >>> chains = sample_chains(density, torch.randn(4, 3, 2), num_samples=100, warmup_steps=50)
    >>> chains.position.shape
    torch.Size([4, 100, 3, 2])
    """
    _check_options(num_samples, warmup_steps, trajectory_length, target_accept_prob, max_num_steps)
    _check_position(position)
    state = hmc.init(position, log_density_and_gradient)
    _check_start(state)
    total = warmup_steps + num_samples
    phases = _phases(total)
    plan = partial(_plan, trajectory_length=trajectory_length, max_num_steps=max_num_steps)
    move = partial(
        _transition, log_density_and_gradient=log_density_and_gradient, tick=_ticker(progress, total)
    )
    state, step_size, num_warmup = _warm_up(state, phases[:warmup_steps], plan, move, target_accept_prob)
    typical = float(step_size.median())
    moves = [plan(phase, typical) for phase in phases[warmup_steps:]]
    return _draw(state, step_size, moves, move, num_warmup + 1)


def _warm_up(
    state: HMCState,
    phases: list[float],
    plan: Callable[[float, float], _Move],
    transition: Callable[[HMCState, Tensor, _Move], tuple[HMCState, HMCInfo]],
    target_accept_prob: float,
) -> tuple[HMCState, Float[Tensor, " n"], int]:
    adaptation = warmup.init(warmup.initial_step_size(state.position))
    num_gradients = 0
    for start in range(0, len(phases), WINDOW):
        typical = float(warmup.step_size(adaptation).median())
        for phase in phases[start : start + WINDOW]:
            move = plan(phase, typical)
            state, info = transition(state, warmup.step_size(adaptation), move)
            adaptation = warmup.update(adaptation, info.acceptance_rate, target_accept_prob)
            num_gradients += move.num_steps
    return state, warmup.final_step_size(adaptation), num_gradients


def _draw(
    state: HMCState,
    step_size: Float[Tensor, " n"],
    moves: list[_Move],
    transition: Callable[[HMCState, Tensor, _Move], tuple[HMCState, HMCInfo]],
    num_warmup_gradients: int,
) -> Chains:
    num_chains, num_data, dim = state.position.shape
    shape = (num_chains, len(moves), num_data)
    position = state.position.new_empty((*shape, dim))
    log_density, acceptance_rate, energy, energy_error = (
        state.log_density.new_empty(shape) for _ in range(4)
    )
    diverging = torch.empty(shape, dtype=torch.bool, device=position.device)
    for t, move in enumerate(moves):
        state, info = transition(state, step_size, move)
        position[:, t], log_density[:, t] = state.position, state.log_density
        acceptance_rate[:, t], diverging[:, t] = info.acceptance_rate, info.diverging
        energy[:, t], energy_error[:, t] = info.energy, info.energy_error
    num_steps = torch.tensor([move.num_steps for move in moves], device=position.device)
    return Chains(
        position,
        log_density,
        acceptance_rate,
        energy,
        energy_error,
        diverging,
        num_steps,
        step_size,
        num_gradient_evaluations=num_warmup_gradients + sum(move.num_steps for move in moves),
        num_warmup_gradient_evaluations=num_warmup_gradients,
    )


def _transition(
    state: HMCState,
    step_size: Float[Tensor, " n"],
    move: _Move,
    *,
    log_density_and_gradient: LogDensityAndGradient,
    tick: Callable[[], object],
) -> tuple[HMCState, HMCInfo]:
    result = hmc.step(
        state,
        log_density_and_gradient,
        momentum=torch.randn_like(state.position),
        log_uniform=-torch.empty_like(state.log_density).exponential_(),
        step_size=(move.scale * step_size).expand_as(state.log_density),
        num_steps=move.num_steps,
    )
    tick()
    return result


def _plan(phase: float, typical_step: float, *, trajectory_length: float, max_num_steps: int) -> _Move:
    # The longest time is one that fits between 1 and max_num_steps full steps. All times shrink or grow with it, so
    # that neither limit takes the jitter away.
    longest = min(max(LONGEST * trajectory_length, typical_step), max_num_steps * typical_step)
    steps = phase / LONGEST * longest / typical_step
    num_steps = min(max(math.ceil(steps), 1), max_num_steps)
    return _Move(num_steps, steps / num_steps)


def _phases(count: int) -> list[float]:
    # Drawn on the host, whatever the device: the number of steps is a Python number. Points of a golden-ratio
    # sequence cover the interval more evenly than independent ones, and are as blind to the state.
    start = float(torch.rand((), dtype=torch.float64))
    return [SHORTEST + (LONGEST - SHORTEST) * ((start + GOLDEN * t) % 1.0) for t in range(count)]


def _ticker(progress: Progress | None, total: int) -> Callable[[], object]:
    if progress is None:
        return lambda: None
    done = itertools.count(1)
    return lambda: progress(next(done), total)


def _check_options(
    num_samples: int,
    warmup_steps: int,
    trajectory_length: float,
    target_accept_prob: float,
    max_num_steps: int,
) -> None:
    for name, count, advice in (
        ("num_samples", num_samples, "ask for draws to keep"),
        ("warmup_steps", warmup_steps, "step sizes are found in warm-up; 200 transitions are usual"),
        ("max_num_steps", max_num_steps, "32 is usual"),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count}: {advice}")
    if not 0.0 < target_accept_prob < 1.0:
        raise ValueError(
            f"target_accept_prob must lie strictly between 0 and 1, but is {target_accept_prob}: 0.8 is usual"
        )
    if not 0.0 < trajectory_length < math.inf:
        raise ValueError(
            f"trajectory_length must be above 0 and finite, but is {trajectory_length}: pi / 2 suits whitened positions"
        )


def _check_position(position: Tensor) -> None:
    if position.ndim != 3 or position.numel() == 0:
        raise ValueError(
            f"position must have shape [chains, data, dimensions], none of them 0, but has {tuple(position.shape)}"
        )
    if not bool(position.isfinite().all()):
        raise ValueError(
            f"position must be finite, but is not at {_first(~position.isfinite().all(-1))}: start elsewhere"
        )


def _check_start(state: HMCState) -> None:
    is_bad = ~(state.log_density.isfinite() & state.gradient.isfinite().all(-1))
    if bool(is_bad.any()):
        raise ValueError(
            "log density and gradient must be finite where chains start, but are not at "
            f"{_first(is_bad)}: start those chains elsewhere, or check the model there"
        )


def _first(is_bad: Bool[Tensor, "c n"]) -> str:
    chain, datum = is_bad.nonzero()[0].tolist()
    return f"chain {chain}, datum {datum} (and {int(is_bad.sum()) - 1} more)"
