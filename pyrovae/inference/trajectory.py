"""Transitions of many data at once: a random length for each, the steps that each datum needs for it, their noise."""

import math
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrovae.inference import hmc
from pyrovae.inference.hmc import HMCInfo, HMCState, LogDensityAndGradient

__all__ = [
    "LONGEST",
    "SHORTEST",
    "Move",
    "Noise",
    "draw_noise",
    "num_steps_needed",
    "plan",
    "times",
    "transition",
]

# A trajectory of fixed length resonates with a Gaussian of matching width: it comes back to where it began. Wider
# limits cost a well whitened posterior effective draws, narrower ones a badly whitened one.
SHORTEST, LONGEST = 0.7, 1.3
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
SLACK = 0.1  # of a step that is spared rather than made


class Move(NamedTuple):
    """One transition of rows that share a batch."""

    step_size: Float[Tensor, " n"]
    num_steps: int
    """Of the row with most."""
    stop_after: Int[Tensor, " n"]
    """Steps of each datum, at most `num_steps`."""
    rotates: Bool[Tensor, " n"]
    """Where `hmc.rotations` rotates."""


class Noise(NamedTuple):
    """What one transition draws."""

    momentum: Float[Tensor, "c n d"]
    log_uniform: Float[Tensor, "c n"]


def times(count: int, trajectory_length: float) -> list[float]:
    """Give the integration times of `count` transitions, in (0.7, 1.3) times `trajectory_length`.

    A golden-ratio sequence from a random start: it covers the interval more evenly than independent numbers and is as
    blind to the state. Drawn on the host, whatever the device.

    Source: Hoffman, Radul and Sountsov 2021, with a golden-ratio sequence for their Halton sequence.

    >>> _ = torch.manual_seed(0)
    >>> min(times(100, 2.0)) >= 1.4, max(times(100, 2.0)) <= 2.6
    (True, True)
    """
    start = float(torch.rand((), dtype=torch.float64))
    shares = ((start + GOLDEN * t) % 1.0 for t in range(count))
    return [trajectory_length * (SHORTEST + (LONGEST - SHORTEST) * share) for share in shares]


def num_steps_needed(time: float, step_size: Float[Tensor, " n"], max_num_steps: int) -> Int[Tensor, " n"]:
    """Give the steps that each datum needs to integrate for `time`, from 1 to `max_num_steps`.

    >>> num_steps_needed(1.0, torch.tensor([2.0, 0.4, 0.001]), 32)
    tensor([ 1,  3, 32])
    """
    return torch.ceil(time / step_size - SLACK).clamp(1, max_num_steps).long()


def plan(time: float, step_size: Float[Tensor, " n"], num_steps: int, rotates: Bool[Tensor, " n"]) -> Move:
    """Plan a transition of length `time` for data with step sizes of their own, and at most `num_steps` steps.

    A datum makes as many steps as it needs, of equal size, none larger than its step size; where `num_steps` are too
    few for that, its trajectory is shorter.

    >>> move = plan(1.0, torch.tensor([2.0, 0.4, 0.001]), 4, torch.ones(3).bool())
    >>> move.step_size, move.stop_after
    (tensor([1.0000, 0.3333, 0.0010]), tensor([1, 3, 4]))
    """
    needed = num_steps_needed(time, step_size, num_steps)
    return Move(torch.minimum(step_size, time / needed.to(step_size)), num_steps, needed, rotates)


def draw_noise(like: Float[Tensor, "c n d"], rows: Int[Tensor, " m"] | None = None) -> Noise:
    """Draw the noise of one transition for all N data, and give that of the data `rows`.

    So a datum sees the same noise whoever else is still there.

    >>> _ = torch.manual_seed(0)
    >>> all_of_them = draw_noise(torch.zeros(2, 3, 1))
    >>> _ = torch.manual_seed(0)
    >>> some = draw_noise(torch.zeros(2, 3, 1), torch.tensor([2]))
    >>> torch.equal(some.momentum, all_of_them.momentum[:, 2:])
    True
    """
    momentum = torch.randn_like(like)
    log_uniform = -torch.empty_like(like[..., 0]).exponential_()
    return Noise(momentum, log_uniform) if rows is None else Noise(momentum[:, rows], log_uniform[:, rows])


def transition(
    state: HMCState, log_density_and_gradient: LogDensityAndGradient, move: Move, noise: Noise
) -> tuple[HMCState, HMCInfo]:
    """Make the transition that `move` plans, by `hmc.rotations`; costs `move.num_steps` gradients.

    >>> _ = torch.manual_seed(0)
    >>> density = hmc.with_gradient(lambda u: -0.5 * u.square().sum(-1))
    >>> state = hmc.init(torch.randn(4, 1, 2), density)
    >>> move = plan(1.0, torch.ones(1), 1, torch.ones(1).bool())
    >>> _, info = transition(state, density, move, draw_noise(state.position))
    >>> bool((info.acceptance_rate > 0.999).all())  # rotations are exact on a standard normal
    True
    """
    return hmc.step(
        state,
        log_density_and_gradient,
        momentum=noise.momentum,
        log_uniform=noise.log_uniform,
        step_size=move.step_size.expand_as(state.log_density),
        num_steps=move.num_steps,
        integrator=partial(
            hmc.rotations,
            stop_after=move.stop_after.expand_as(state.log_density),
            rotates=move.rotates.expand_as(state.log_density),
        ),
    )
