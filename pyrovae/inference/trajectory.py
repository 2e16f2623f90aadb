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
    "Settings",
    "draw_noise",
    "num_steps_needed",
    "plan",
    "shares",
    "transition",
]

# A trajectory of fixed length resonates with a Gaussian of matching width: it comes back to where it began. Wider
# limits cost a well whitened posterior effective draws, narrower ones a badly whitened one.
SHORTEST, LONGEST = 0.7, 1.3
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
SLACK = 0.1  # of a step that is spared rather than made


class Settings(NamedTuple):
    """How the chains of each datum move."""

    step_size: Float[Tensor, " n"]
    """The largest."""
    length: Float[Tensor, " n"]
    """Mean integration time of a trajectory."""
    most_steps: Int[Tensor, " n"]
    """Of a trajectory; one that needs more is shorter."""
    rotates: Bool[Tensor, " n"]
    """Where `hmc.rotations` rotates."""
    active: tuple[int, ...]
    """How many data, the first ones, may make the first step, the second, ...; so `most_steps` never rises."""


class Move(NamedTuple):
    """One transition of rows that share a batch."""

    step_size: Float[Tensor, " n"]
    stop_after: Int[Tensor, " n"]
    """Steps of each datum."""
    rotates: Bool[Tensor, " n"]
    active: tuple[int, ...]


class Noise(NamedTuple):
    """What one transition draws."""

    momentum: Float[Tensor, "c n d"]
    log_uniform: Float[Tensor, "c n"]


def shares(count: int) -> list[float]:
    """Give the integration times of `count` transitions, as shares in (0.7, 1.3) of the mean one.

    A golden-ratio sequence from a random start: it covers the interval more evenly than independent numbers and is as
    blind to the state. Drawn on the host, whatever the device.

    Source: Hoffman, Radul and Sountsov 2021, with a golden-ratio sequence for their Halton sequence.

    >>> _ = torch.manual_seed(0)
    >>> min(shares(100)) >= 0.7, max(shares(100)) <= 1.3
    (True, True)
    """
    start = float(torch.rand((), dtype=torch.float64))
    return [SHORTEST + (LONGEST - SHORTEST) * ((start + GOLDEN * t) % 1.0) for t in range(count)]


def num_steps_needed(
    time: Float[Tensor, " n"], step_size: Float[Tensor, " n"], most_steps: int | Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Give the steps that each datum needs to integrate for `time`, from 1 to `most_steps`.

    >>> num_steps_needed(torch.ones(3), torch.tensor([2.0, 0.4, 0.001]), 32)
    tensor([ 1,  3, 32])
    """
    needed = torch.ceil(time / step_size - SLACK).clamp(min=1)
    return needed.clamp(max=most_steps).long()


def plan(share: float, settings: Settings) -> Move:
    """Plan a transition that takes `share` of each datum's mean integration time.

    A datum makes as many steps as it needs, of equal size, none larger than its step size; where its `most_steps` are
    too few for that, its trajectory is shorter.

    >>> steps, ones = torch.tensor([0.001, 0.4, 2.0]), torch.ones(3)
    >>> move = plan(1.0, Settings(steps, ones, torch.tensor([4, 4, 1]), ones.bool(), (3, 2, 2, 2)))
    >>> move.step_size, move.stop_after
    (tensor([0.0010, 0.3333, 1.0000]), tensor([4, 3, 1]))
    """
    time = share * settings.length
    needed = num_steps_needed(time, settings.step_size, settings.most_steps)
    step_size = torch.minimum(settings.step_size, time / needed.to(time))
    return Move(step_size, needed, settings.rotates, settings.active)


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
    """Make the transition that `move` plans, by `hmc.rotations`; costs `sum(move.active)` gradients a chain.

    The callable is shown all data at the first step, and `move.active[i]` of them, the first ones, at step i.

    >>> _ = torch.manual_seed(0)
    >>> density = hmc.with_gradient(lambda u: -0.5 * u.square().sum(-1))
    >>> state, one = hmc.init(torch.randn(4, 1, 2), density), torch.ones(1)
    >>> move = plan(1.0, Settings(one, one, one.long(), one.bool(), (1,)))
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
        num_steps=len(move.active),
        integrator=partial(
            hmc.rotations,
            stop_after=move.stop_after.expand_as(state.log_density),
            rotates=move.rotates.expand_as(state.log_density),
            active=move.active,
        ),
    )
