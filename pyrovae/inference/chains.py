"""Draws of many chains for many data at once, after the warm-up: the loop, what it keeps and what it counts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrovae.inference import trajectory
from pyrovae.inference.hmc import HMCInfo, HMCState, LogDensityAndGradient
from pyrovae.inference.trajectory import Move, Noise, Settings

__all__ = ["Chains", "Draws", "Totals", "bfmi", "joined", "rows", "sample_chains", "thinned"]

ENERGY_FLOOR = 1e-12  # a chain that never moves has no energies to compare


class Totals(NamedTuple):
    """Sums over all transitions, kept or not, of C chains for N data."""

    num_transitions: int
    num_gradient_evaluations: Int[Tensor, " n"]
    """Of each datum, per chain."""
    num_divergent: Int[Tensor, " n"]
    acceptance_rate: Float[Tensor, "c n"]
    energy: Float[Tensor, "3 c n"]
    """Of the energy less `origin`, of its square, and of the square of its change; float64."""
    origin: Float[Tensor, "c n"]
    num_changes: int
    """How many changes of the energy were seen: one fewer than transitions, each time the loop ran."""


class Draws(NamedTuple):
    """T kept draws of C chains for N data with D coordinates, and what was seen on the way."""

    position: Float[Tensor, "c t n d"]
    log_density: Float[Tensor, "c t n"]
    acceptance_rate: Float[Tensor, "c t n"]
    energy: Float[Tensor, "c t n"]
    energy_error: Float[Tensor, "c t n"]
    """Of the proposal, kept or not; +inf where it was not finite."""
    diverging: Bool[Tensor, "c t n"]
    num_steps: Int[Tensor, "c t n"]
    step_size: Float[Tensor, "c t n"]


class Chains(NamedTuple):
    """Chains that can be run on: what was kept, where they stand, what was counted."""

    draws: Draws
    state: HMCState
    totals: Totals


def sample_chains(
    log_density_and_gradient: LogDensityAndGradient,
    state: HMCState,
    settings: Settings,
    *,
    shares: Sequence[float],
    noise: Callable[[], Noise],
    thinning: int = 1,
    made: int = 0,
    progress: Callable[[], object] | None = None,
) -> Chains:
    """Make one transition for each of `shares` with frozen settings, and keep every `thinning`-th state.

    Every datum has its own step size and every row its own acceptance; a datum whose step is long enough makes fewer
    steps than others. Reads no tensor: what is slow on a device is only the density.

    Args:
        log_density_and_gradient: [C, n, D] -> [C, n], [C, n, D] for the first n data, for each n in
            `settings.active`; rows independent, results detached. It may be shown positions that are not finite, and
            must return.
        state: where chains stand.
        settings: how they move; in the order of `most_steps`, the largest first.
        shares: integration times in terms of `settings.length`, above 0; at least 1 of them.
        noise: called once a transition.
        thinning: at least 1.
        made: transitions that were made before; kept are those whose number among all is a multiple of `thinning`.
        progress: called after every transition.

    Raises:
        ValueError: if a number is out of its range.

    >>> from pyrovae.inference import hmc
    >>> _ = torch.manual_seed(0)
    >>> density = hmc.with_gradient(lambda u: -0.5 * u.square().sum(-1))
    >>> state, ones = hmc.init(torch.randn(4, 3, 2), density), torch.ones(3)
    >>> settings = Settings(2 * ones, 1.6 * ones, ones.long(), ones.bool(), active=(3,))
    >>> noise = lambda: trajectory.draw_noise(state.position)
    >>> chains = sample_chains(density, state, settings, shares=trajectory.shares(100), noise=noise)
    >>> chains.draws.position.shape, chains.totals.num_gradient_evaluations
    (torch.Size([4, 100, 3, 2]), tensor([100, 100, 100]))
    """
    for name, count in (
        ("thinning", thinning),
        ("the number of steps", len(settings.active)),
        ("the number of shares", len(shares)),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count}: 1 is the least")
    totals = _no_totals(state)
    kept: list[tuple[HMCState, HMCInfo, Move]] = []
    before = None
    for t, share in enumerate(shares):
        move = trajectory.plan(share, settings)
        state, info = trajectory.transition(state, log_density_and_gradient, move, noise())
        totals, before = _counted(totals, info, before)
        if (made + t + 1) % thinning == 0:
            kept.append((state, info, move))
        if progress is not None:
            progress()
    cost = len(shares) * _num_gradients(settings)
    return Chains(_stacked(kept, state), state, totals._replace(num_gradient_evaluations=cost))


def joined(first: Chains, second: Chains) -> Chains:
    """The same chains, run on: the draws of both, where the second stands, the sums of both."""
    draws = Draws(*(torch.cat(pair, 1) for pair in zip(first.draws, second.draws, strict=True)))
    a, b = first.totals, second.totals
    origin = a.origin  # sums of the second are moved to it
    shift, count = b.origin - a.origin, b.num_transitions
    energy, square, change = b.energy
    moved = torch.stack(
        [energy + count * shift, square + 2 * shift * energy + count * shift.square(), change]
    )
    totals = Totals(
        a.num_transitions + count,
        a.num_gradient_evaluations + b.num_gradient_evaluations,
        a.num_divergent + b.num_divergent,
        a.acceptance_rate + b.acceptance_rate,
        a.energy + moved,
        origin,
        a.num_changes + b.num_changes,
    )
    return Chains(draws, second.state, totals)


def rows(chains: Chains, index: Int[Tensor, " m"]) -> Chains:
    """The chains of the data at `index`."""
    draws = Draws(*(each[:, :, index] for each in chains.draws))
    t = chains.totals
    totals = t._replace(
        num_gradient_evaluations=t.num_gradient_evaluations[index],
        num_divergent=t.num_divergent[index],
        acceptance_rate=t.acceptance_rate[:, index],
        energy=t.energy[..., index],
        origin=t.origin[:, index],
    )
    return Chains(draws, HMCState(*(each[:, index] for each in chains.state)), totals)


def thinned(chains: Chains) -> Chains:
    """The same chains with every other draw: the second, the fourth, ..."""
    return chains._replace(draws=Draws(*(each[:, 1::2] for each in chains.draws)))


def bfmi(totals: Totals) -> Float[Tensor, "c n"]:
    """Give the fraction of the energy's variance that one new momentum makes up, E (change)^2 / Var energy, per chain.

    Near 1 where all is well; below 0.3 chains climb the tails of a density too slowly to see them. 0 for a chain that
    never moved.

    Source: Betancourt 2016.
    """
    mean, square = totals.energy[:2] / totals.num_transitions
    change = totals.energy[2] / max(totals.num_changes, 1)
    return change / (square - mean.square()).clamp(min=ENERGY_FLOOR)


def _no_totals(state: HMCState) -> Totals:
    origin = -state.log_density.double()
    zeros = torch.zeros_like(origin)
    count = torch.zeros(origin.shape[-1], dtype=torch.long, device=origin.device)
    return Totals(
        0, count, count, torch.zeros_like(state.log_density), zeros.expand(3, *zeros.shape), origin, 0
    )


def _num_gradients(settings: Settings) -> Int[Tensor, " n"]:
    """Of one transition."""
    place = torch.arange(len(settings.most_steps), device=settings.most_steps.device)
    ends = torch.tensor(settings.active, device=place.device)
    return (place[:, None] < ends).sum(1)


def _counted(totals: Totals, info: HMCInfo, before: Tensor | None) -> tuple[Totals, Float[Tensor, "c n"]]:
    energy = info.energy.double() - totals.origin
    change = torch.zeros_like(energy) if before is None else energy - before
    totals = totals._replace(
        num_transitions=totals.num_transitions + 1,
        num_divergent=totals.num_divergent + info.diverging.sum(0),
        acceptance_rate=totals.acceptance_rate + info.acceptance_rate,
        energy=totals.energy + torch.stack([energy, energy.square(), change.square()]),
        num_changes=totals.num_changes + (before is not None),
    )
    return totals, energy


def _stacked(kept: list[tuple[HMCState, HMCInfo, Move]], state: HMCState) -> Draws:
    num_chains, num_data, dim = state.position.shape
    if not kept:
        none = state.position.new_empty((num_chains, 0, num_data))
        position = none.new_empty((num_chains, 0, num_data, dim))
        return Draws(position, none, none, none, none, none.bool(), none.long(), none)
    states, infos, moves = zip(*kept, strict=True)
    of_data = (torch.stack([getattr(move, name) for move in moves]) for name in ("stop_after", "step_size"))
    return Draws(
        *(torch.stack([getattr(each, name) for each in states], 1) for name in ("position", "log_density")),
        *(
            torch.stack([getattr(each, name) for each in infos], 1)
            for name in ("acceptance_rate", "energy", "energy_error", "diverging")
        ),
        *(each.expand(num_chains, *each.shape) for each in of_data),
    )
