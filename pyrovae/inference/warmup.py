"""Step sizes that reach a wanted acceptance rate, one per datum, by dual averaging."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["DualAveraging", "final_step_size", "init", "initial_step_size", "step_size", "update"]

# Hoffman and Gelman 2014, section 3.2.1.
SHRINKAGE = 0.05
STABILIZATION = 10.0
FORGETTING = 0.75

LEAST_RATE = 1e-3

INITIAL_SCALE = 1.6  # times dim^(-1/4) gives an acceptance rate near 0.8 on a standard normal
SMALLEST, LARGEST = 1e-4, 10.0  # bounds of the step size, as multiples of the initial one


class DualAveraging(NamedTuple):
    """What the next update needs; logarithms of step sizes, one per datum."""

    log_step: Float[Tensor, " n"]
    log_average: Float[Tensor, " n"]
    shortfall: Float[Tensor, " n"]
    """Weighted average of wanted minus observed acceptance rate."""
    log_initial: Float[Tensor, " n"]
    num_updates: int


def initial_step_size(position: Float[Tensor, "c n d"]) -> Float[Tensor, " n"]:
    """Give a first step size for whitened positions, 1.6 d^(-1/4), the scaling that keeps acceptance constant in d.

    Source of the scaling: Beskos, Pillai, Roberts, Sanz-Serna and Stuart 2013.

    >>> initial_step_size(torch.zeros(2, 3, 16))
    tensor([0.8000, 0.8000, 0.8000])
    """
    _, num_data, dim = position.shape
    return position.new_full((num_data,), INITIAL_SCALE * dim**-0.25)


def init(initial: Float[Tensor, " n"]) -> DualAveraging:
    """Start from the step sizes `initial`, all above 0.

    >>> step_size(init(torch.tensor([0.5])))
    tensor([0.5000])
    """
    log_initial = initial.log()
    return DualAveraging(log_initial, log_initial, torch.zeros_like(initial), log_initial, 0)


def update(
    state: DualAveraging, acceptance_rate: Float[Tensor, "c n"], target_accept_prob: float
) -> DualAveraging:
    """Move every step size towards the one at which the harmonic mean of acceptance over chains meets the target.

    The harmonic mean falls with the chain that is worst off, so that the step suits the narrow parts of a posterior
    too, which the arithmetic mean hardly sees: a chain that is never accepted there would cost it a share of 1 / C.
    With t updates so far and a that mean, rates below 0.001 counted as 0.001:
    shortfall <- (1 - 1/(t + 10)) shortfall + (target - a)/(t + 10); log step <- log(10 initial) - 20 sqrt(t)
    shortfall; log average <- t^-0.75 log step + (1 - t^-0.75) log average. The step stays within 1e-4 to 10 times
    the initial one, whatever the acceptance does.

    Args:
        state: from `init` or an earlier update.
        acceptance_rate: of the latest transition, in [0, 1]; a diverging row counts as 0.
        target_accept_prob: strictly between 0 and 1; the arithmetic mean comes out higher.

    Source: Nesterov 2009; Hoffman and Gelman 2014, equation 6 and section 3.2.1.

    >>> state = init(torch.tensor([1.0, 1.0]))
    >>> for _ in range(1000):
    ...     state = update(state, torch.exp(-step_size(state) * torch.tensor([[1.0, 10.0]])), 0.8)
    >>> (final_step_size(state) * torch.tensor([1.0, 10.0])).round(decimals=1)
    tensor([0.2000, 0.2000])
    """
    count = state.num_updates + 1
    weight = 1.0 / (count + STABILIZATION)
    gap = target_accept_prob - 1.0 / (1.0 / acceptance_rate.clamp(min=LEAST_RATE)).mean(0)
    shortfall = torch.lerp(state.shortfall, gap, weight)
    centre = state.log_initial + math.log(10.0)
    log_step = _bounded(centre - math.sqrt(count) / SHRINKAGE * shortfall, state.log_initial)
    log_average = torch.lerp(state.log_average, log_step, count**-FORGETTING)
    return DualAveraging(log_step, log_average, shortfall, state.log_initial, count)


def step_size(state: DualAveraging) -> Float[Tensor, " n"]:
    """Give the step sizes to try next, during warm-up.

    >>> step_size(init(torch.tensor([0.25])))
    tensor([0.2500])
    """
    return state.log_step.exp()


def final_step_size(state: DualAveraging) -> Float[Tensor, " n"]:
    """Give the averaged step sizes, to be frozen when warm-up ends.

    >>> final_step_size(init(torch.tensor([0.25])))
    tensor([0.2500])
    """
    return state.log_average.exp()


def _bounded(log_step: Float[Tensor, " n"], log_initial: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return torch.clamp(log_step, log_initial + math.log(SMALLEST), log_initial + math.log(LARGEST))
