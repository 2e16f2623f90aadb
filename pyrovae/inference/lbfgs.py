"""Limited-memory BFGS for many independent functions at once: every row takes its own steps and stops on its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrovae.inference.hmc import LogDensityAndGradient

__all__ = ["Maximum", "OfRows", "maximize"]

OfRows = Callable[[Int[Tensor, " m"]], LogDensityAndGradient]
"""From the numbers of some rows to value and gradient of these rows, `[m, p] -> [m], [m, p]`, detached."""

MEMORY = 10  # pairs of step and turn that a row remembers
STEPS_BETWEEN_LOOKS = 5  # at the device; rows that are done leave then
SUFFICIENT = 1e-4  # of the promised gain that a step must bring (Nocedal and Wright 2006, section 3.1)
SHORTER = 0.25
MOST_TRIES = (
    6  # lengths of one step, before the memory is dropped; without a memory, before the row has stalled
)
FLATTEST = 1e-8  # cosine between step and turn below which a pair is not kept
ROUNDING = 8.0  # units of rounding of the value that a step may lose


class Maximum(NamedTuple):
    """Where the search of every row ended; look at `has_converged` first."""

    position: Float[Tensor, "n p"]
    value: Float[Tensor, " n"]
    has_converged: Bool[Tensor, " n"]
    num_evaluations: Int[Tensor, " n"]
    """Of value and gradient, the start's among them."""


class _State(NamedTuple):
    """A search; every tensor has the rows first, so that rows can leave."""

    position: Float[Tensor, "n p"]
    value: Float[Tensor, " n"]
    gradient: Float[Tensor, "n p"]
    steps: Float[Tensor, "n m p"]
    """The last steps taken, the newest last."""
    turns: Float[Tensor, "n m p"]
    """By how much the gradient fell over each."""
    bend: Float[Tensor, "n m"]
    """step . turn of each pair, above 0; 0 where there is no pair."""
    num_tries: Int[Tensor, " n"]
    """Times that the next step is shortened; below 0, lengthened."""
    is_done: Bool[Tensor, " n"]
    has_converged: Bool[Tensor, " n"]
    num_evaluations: Int[Tensor, " n"]


def maximize(
    value_and_gradient_of: OfRows, start: Float[Tensor, "n p"], *, tolerance: float, max_steps: int = 200
) -> Maximum:
    """Climb from `start` in every row by L-BFGS with backtracking; the value of a row never falls but for rounding.

    The coordinates should be such that minus the Hessian is near the identity, which is what a row begins with: the
    first step is then nearly Newton's. A row has converged when neither the step it would take nor that of the
    identity promises more than `tolerance`, half of gradient . step, or more than rounding can show. Rows that are done
    are frozen, and leave at the next look at the device, one in five steps.

    Args:
        value_and_gradient_of: for the numbers of some rows, the value and gradient of these.
        start: finite, with a finite value.
        tolerance: in the units of the value, above 0.
        max_steps: at least 1.

    Raises:
        ValueError: if `tolerance` or `max_steps` is out of range.

    Source: Liu and Nocedal 1989; the two loops: Nocedal 1980.

    >>> stiff = torch.tensor([1.0, 30.0])
    >>> def of_rows(rows):
    ...     return lambda x: (-0.5 * (stiff * x.square()).sum(-1), -stiff * x)
    >>> found = maximize(of_rows, torch.ones(3, 2), tolerance=1e-8)
    >>> bool(found.has_converged.all()), bool(found.position.abs().max() < 1e-3)
    (True, True)
    """
    if not tolerance > 0.0 or max_steps < 1:
        raise ValueError(
            f"tolerance must be above 0, max_steps at least 1, but they are {tolerance}, {max_steps}"
        )
    active = torch.arange(len(start), device=start.device)
    evaluate = value_and_gradient_of(active)
    whole = running = _begin(start, evaluate)
    for step in range(max_steps):
        running = _improve(running, evaluate, tolerance)
        if (step + 1) % STEPS_BETWEEN_LOOKS and step + 1 < max_steps:
            continue
        whole = _State(*(old.index_copy(0, active, new) for old, new in zip(whole, running, strict=True)))
        left = ~running.is_done
        if not bool(left.any()):
            break
        active, running = active[left], _State(*(field[left] for field in running))
        evaluate = value_and_gradient_of(active)
    return Maximum(whole.position, whole.value, whole.has_converged, whole.num_evaluations)


def _begin(start: Float[Tensor, "n p"], evaluate: LogDensityAndGradient) -> _State:
    num_rows, size = start.shape
    value, gradient = evaluate(start)
    memory = start.new_zeros(num_rows, MEMORY, size)
    count = torch.ones(num_rows, dtype=torch.long, device=start.device)
    no = torch.zeros(num_rows, dtype=torch.bool, device=start.device)
    return _State(start, value, gradient, memory, memory, memory[..., 0], 0 * count, no, no, count)


def _improve(state: _State, evaluate: LogDensityAndGradient, tolerance: float) -> _State:
    """Try one step in every row that is not done."""
    direction = _direction(state)
    slope = (state.gradient * direction).sum(-1)
    rounding = ROUNDING * torch.finfo(state.gradient.dtype).eps * state.value.abs()
    promise = 0.5 * torch.maximum(slope, state.gradient.square().sum(-1))
    has_converged = ~state.is_done & (promise <= rounding.clamp(min=tolerance))
    is_done = state.is_done | has_converged
    length = SHORTER ** state.num_tries.to(direction)
    proposal = state.position + length.unsqueeze(-1) * direction
    value, gradient = evaluate(proposal)
    is_finite = value.isfinite() & gradient.isfinite().all(-1)
    took = ~is_done & is_finite & (value >= state.value + SUFFICIENT * length * slope - rounding)
    state = _remember(state, took, proposal - state.position, state.gradient - gradient)
    is_refused = ~is_done & ~took & (state.num_tries + 1 >= MOST_TRIES)
    has_memory = (state.bend > 0).any(-1)
    return state._replace(
        position=torch.where(took.unsqueeze(-1), proposal, state.position),
        value=torch.where(took, value, state.value),
        gradient=torch.where(took.unsqueeze(-1), gradient, state.gradient),
        bend=torch.where(is_refused.unsqueeze(-1), 0.0, state.bend),
        num_tries=torch.where(is_refused, 0, state.num_tries + (~took).long()),
        is_done=is_done | (is_refused & ~has_memory),
        has_converged=state.has_converged | has_converged,
        num_evaluations=state.num_evaluations + (~is_done).long(),
    )


def _remember(
    state: _State, took: Bool[Tensor, " n"], step: Float[Tensor, "n p"], turn: Float[Tensor, "n p"]
) -> _State:
    """Keep the pair of a step that was taken; where the function does not bend down along it, go further next."""
    bend = (step * turn).sum(-1)
    is_kept = took & (bend > FLATTEST * step.norm(dim=-1) * turn.norm(dim=-1))
    new = (step.unsqueeze(1), turn.unsqueeze(1), bend.unsqueeze(1))
    steps, turns, bends = (
        torch.where(
            is_kept.reshape(-1, *[1] * (old.dim() - 1)), torch.cat([old[:, 1:], latest.to(old)], 1), old
        )
        for old, latest in zip((state.steps, state.turns, state.bend), new, strict=True)
    )
    further = (state.num_tries.clamp(max=0) - 1).clamp(min=-MOST_TRIES)
    num_tries = torch.where(is_kept, 0, torch.where(took, further, state.num_tries))
    return state._replace(steps=steps, turns=turns, bend=bends, num_tries=num_tries)


def _direction(state: _State) -> Float[Tensor, "n p"]:
    """The gradient times the inverse Hessian that the pairs tell of; where there are none, the gradient."""
    inverse = torch.where(state.bend > 0, 1.0 / state.bend.clamp(min=torch.finfo(state.bend.dtype).tiny), 0.0)
    direction, shares = state.gradient, []
    for i in reversed(range(MEMORY)):
        share = inverse[:, i] * (state.steps[:, i] * direction).sum(-1)
        direction = direction - share.unsqueeze(-1) * state.turns[:, i]
        shares.append(share)
    newest = state.turns[:, -1].square().sum(-1)
    scale = torch.where(state.bend[:, -1] > 0, state.bend[:, -1] / newest.clamp(min=1e-30), 1.0)
    direction = scale.unsqueeze(-1) * direction
    for i, share in enumerate(reversed(shares)):
        fall = inverse[:, i] * (state.turns[:, i] * direction).sum(-1)
        direction = direction + (share - fall).unsqueeze(-1) * state.steps[:, i]
    return direction
