"""Draws by whitened Hamiltonian Monte Carlo: many chains for every datum in one batch, with a right to refuse."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyrovae.diagnostics.gaussians import GAUSSIANS, fit_gaussian
from pyrovae.diagnostics.reference import rounds
from pyrovae.diagnostics.reference.rounds import Found, Wanted
from pyrovae.diagnostics.reference.sampled import Progress, Sampled, to_numpy
from pyrovae.diagnostics.reference.starts import (
    COMPILE,
    SOURCES,
    chain_starts,
    density,
    start_of_chains,
)
from pyrovae.inference import tuning
from pyrovae.inference.laplace import unwhiten
from pyrovae.inference.tuning import Tuned
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["from_hmc"]

MAX_ROWS = 1 << 14  # chains times data that move at once
PATIENCE = 8  # times the draws asked for, if no budget is given
FEW = 200  # draws that R-hat wants of a chain, or of chains that share a start
# Most steps of a datum, rounded up: the batch shrinks at these alone, and each of its sizes has a program of its own.
CLASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def from_hmc(
    target: Target,
    *,
    num_chains: int = 16,
    num_samples: int = 500,
    warmup_steps: int = 200,
    whiten: str = "laplace",
    target_accept_prob: float = 0.6,
    max_rhat: float = 1.01,
    min_ess: float = 400.0,
    max_samples: int = 0,
    thinning: int = 1,
    compile: bool | str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sampled]:
    """N data x C chains as N*C independent chains in one batch, in the coordinates of a Gaussian per datum.

    Blocks of data, each with a seed of its own: a first Gaussian, a warm-up, then rounds of draws. See
    `sample_posterior` for the options.
    """
    _check(num_chains, num_samples, thinning, max_samples, compile)
    if whiten not in GAUSSIANS:
        raise ValueError(f"unknown whitening {whiten!r}: choose one of {', '.join(GAUSSIANS)}")
    copies = _copies(num_chains, num_samples)
    budget = _budget(num_chains, num_samples * thinning, num_samples, min_ess, max_samples)
    shared = np.array(start_of_chains(num_chains, copies)) if copies > 1 else None
    wanted = Wanted(num_samples, thinning, budget, max_rhat, min_ess, shared)
    warm_up = partial(
        _warm_up, whiten=whiten, steps=warmup_steps, target_accept_prob=target_accept_prob, compile=compile
    )
    blocks, total = target.split(max(1, MAX_ROWS // num_chains)), warmup_steps + num_samples * thinning
    for block, some in enumerate(blocks):
        tell = _ticker(progress, block, len(blocks), total)
        with seeded(block_seed(seed, block)):
            tuned, before = warm_up(some, num_chains=num_chains, copies=copies, progress=tell)
            # Where chains stand now, in whatever modes, the faster density must be as right.
            near = some.near(unwhiten(tuned.whitening, tuned.position))
            found = _block(near, tuned, wanted, compile, tell)
        yield _sampled(found, wanted, before, tuned.num_changes)
    if progress is not None:
        progress(len(blocks) * total, len(blocks) * total)


def _warm_up(
    target: Target,
    *,
    num_chains: int,
    copies: int,
    whiten: str,
    steps: int,
    target_accept_prob: float,
    compile: bool | str,
    progress: Callable[[], None],
) -> tuple[Tuned, int]:
    """What the warm-up of some data leaves behind, and the gradients per chain that it cost with the first Gaussian."""
    first = fit_gaussian(target, whiten)
    tuned = tuning.tune(
        density(target, num_chains, compile, steps),
        chain_starts(target, first, num_chains, copies),
        first.gaussian,
        warmup_steps=steps,
        target_accept_prob=target_accept_prob,
        progress=progress,
    )
    return tuned, math.ceil(first.num_gradient_evaluations / num_chains) + 1 + tuned.num_gradient_evaluations


def _block(
    target: Target,
    tuned: Tuned,
    wanted: Wanted,
    compile: bool | str,
    tell: Callable[[], None],
) -> Found:
    """Sample the data in the order of the steps that they need, so that those which make a further step stand first."""
    classes = torch.tensor(CLASSES, device=tuned.num_steps.device)
    num_steps = classes[torch.searchsorted(classes, tuned.num_steps)]
    order = num_steps.argsort(descending=True, stable=True)
    num_chains = len(tuned.position)
    found = rounds.run(
        target.rows(order),
        tuning.rows(tuned._replace(num_steps=num_steps), order),
        lambda some, count: density(some, num_chains, compile, count),
        wanted,
        tell,
    )
    return rounds.in_order(order, [found])


def _sampled(found: Found, wanted: Wanted, before: int, num_changes: Tensor) -> Sampled:
    """With the gradients spent before the first draw, and how often coordinates changed."""
    z, stats, diagnostics = found
    counts = {
        "num_gradient_evaluations": diagnostics["num_gradient_evaluations"] + before,
        "num_rewhitenings": to_numpy(num_changes),
    }
    cost = int(counts["num_gradient_evaluations"].max())
    limits = {"max_rhat": wanted.max_rhat, "min_ess": wanted.min_ess}
    return Sampled(z, stats, cost, {**diagnostics, **counts}, limits)


def _copies(num_chains: int, num_samples: int) -> int:
    """Chains that share a start: 1 if each draws enough for R-hat, or if there are too few for three starts."""
    copies = math.ceil(FEW / num_samples)
    return copies if num_samples < FEW // 2 and num_chains >= SOURCES * copies else 1


def _budget(num_chains: int, first: int, num_samples: int, min_ess: float, max_samples: int) -> int:
    """Draws per chain at which a datum is given up; one round if no more draws could have the ESS asked for."""
    if num_chains * num_samples < min_ess:
        return first
    return max_samples or PATIENCE * first


def _ticker(progress: Progress | None, block: int, num_blocks: int, total: int) -> Callable[..., None]:
    """Counts transitions of a block."""
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(block * total + done, num_blocks * total)

    return tell


def _check(num_chains: int, num_samples: int, thinning: int, max_samples: int, compile: bool | str) -> None:
    if num_chains < 2 or num_samples < 4:
        raise ValueError(
            f"R-hat compares chains and their halves: it needs num_chains >= 2 and num_samples >= 4, not {num_chains} "
            f"and {num_samples}"
        )
    if thinning < 1:
        raise ValueError(f"thinning must be at least 1, but is {thinning}: 1 keeps every draw")
    if max_samples and max_samples < num_samples * thinning:
        raise ValueError(
            f"max_samples must be 0 for {PATIENCE} times the draws asked for, or at least num_samples * thinning = "
            f"{num_samples * thinning}, but is {max_samples}: give chains more time, or ask for fewer draws"
        )
    if compile not in COMPILE:
        raise ValueError(f"compile must be True, False or 'auto', but is {compile!r}")
