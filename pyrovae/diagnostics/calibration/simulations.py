"""Simulated pairs of z and x, and where the guide's draws for x put that z: the raw material of calibration."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrovae.diagnostics.simulated import gap_terms, simulated_parts
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Draws, Simulation, Target

__all__ = ["Progress", "codes_of", "simulate_blocks"]

MAX_ROWS = 1 << 14  # rows (draws times data) that the guide sees at once
PILOT = 1000  # draws of the prior that give the scale of every latent

Progress = Callable[[int, int], None]


def simulate_blocks(
    target: Target, num_simulations: int, num_draws: int, seed: int, progress: Progress | None
) -> dict[str, np.ndarray]:
    """For every simulated pair: `pit` `[S, D]`, `likelihood_pit`, `tarp_pit` `[S]`, the simulated gap, and `codes`.

    A PIT is (r + V (e + 1)) / (K + 1) with V uniform, r the number of K draws below the truth and e that of ties: it
    is uniform on [0, 1] if the truth is one more draw of the guide.
    """
    size = max(1, MAX_ROWS // (num_draws + 1))
    with seeded(block_seed(seed, 0)):
        scale = target.rows([0]).sample_prior(PILOT).std(0)
    pieces: list[dict[str, np.ndarray]] = []
    for block, part in enumerate(simulated_parts(target, num_simulations, size)):
        with seeded(block_seed(seed, 1, block)):
            simulation = part.simulate(part.num_data)
            simulated = part.with_data(*simulation.data)
            draws = simulated.sample_guide(num_draws)
            pieces.append(_ranks(simulated, simulation, draws, scale))
        if target.can_score_guide:
            pieces[-1] |= gap_terms(simulated, simulation, draws)
        if progress is not None:
            progress(min((block + 1) * size, num_simulations), num_simulations)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def codes_of(target: Target, num_draws: int, seed: int) -> Float[np.ndarray, "n d1"]:
    """What the guide makes of the target's own data: as `codes` of `simulate_blocks`."""
    pieces = []
    for block, part in enumerate(target.split(max(1, MAX_ROWS // (num_draws + 1)))):
        with seeded(block_seed(seed, 2, block)):
            z = part.sample_guide(num_draws).z
        pieces.append(_codes(z, part.log_terms(z).log_likelihood))
    return np.concatenate(pieces)


def _ranks(
    simulated: Target, simulation: Simulation, draws: Draws, scale: Float[Tensor, "1 d"]
) -> dict[str, np.ndarray]:
    truth = simulation.z[None]
    likelihood = simulated.log_terms(torch.cat([truth, draws.z])).log_likelihood
    # Any point that is drawn apart from z will do; the prior's are where the truth may be.
    centre = simulated.sample_prior(1)
    distance = [((z - centre) / scale).square().sum(-1) for z in (truth, draws.z)]
    return {
        "pit": _pit(draws.z < truth, draws.z == truth),
        "likelihood_pit": _pit(likelihood[1:] < likelihood[:1], likelihood[1:] == likelihood[:1]),
        "tarp_pit": _pit(distance[1] < distance[0], distance[1] == distance[0]),
        "codes": _codes(draws.z, likelihood[1:]),
    }


def _pit(below: Bool[Tensor, " k *n"], tied: Bool[Tensor, " k *n"]) -> Float[np.ndarray, " *n"]:
    rank, ties = below.double().sum(0), tied.double().sum(0)
    return np.asarray(((rank + torch.rand_like(rank) * (ties + 1)) / (len(below) + 1)).cpu().numpy())


def _codes(z: Float[Tensor, "k n d"], likelihood: Float[Tensor, "k n"]) -> Float[np.ndarray, "n d1"]:
    """The guide's mean of z and of log p(x | z), side by side."""
    both = torch.cat([z.double().mean(0), likelihood.double().mean(0)[:, None]], 1)
    return np.asarray(both.cpu().numpy())
