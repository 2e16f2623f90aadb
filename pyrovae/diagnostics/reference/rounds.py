"""Rounds of sampling: data whose draws are good leave, the others go on until the budget is spent."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pyrovae.diagnostics.reference.sampled import diagnose, side_by_side, to_numpy
from pyrovae.inference import chains, hmc, laplace, trajectory, tuning
from pyrovae.inference.chains import Chains
from pyrovae.inference.hmc import LogDensityAndGradient
from pyrovae.inference.trajectory import Settings
from pyrovae.inference.tuning import Tuned
from pyrovae.target import Target

__all__ = ["Found", "Wanted", "in_order", "run"]

LOW_BFMI = 0.3
SAME_NAME = ("acceptance_rate", "step_size", "diverging", "energy", "energy_error")
STUCK = 0.01  # a chain with a lower mean acceptance rate

Found = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]
"""z [C, T, M, D]; statistics, each [C, T, M]; diagnostics, each [M]."""


Density = Callable[[Target, int], LogDensityAndGradient]
"""Makes the density in z of some data, told how many gradients it will give."""


@dataclass(frozen=True)
class Wanted:
    """When a datum is done, and when to give up."""

    num_samples: int
    thinning: int
    max_samples: int
    max_rhat: float
    min_ess: float
    superchains: np.ndarray | None
    """Which start each chain has, where several share one and draws are few."""

    def totals(self) -> list[int]:
        """Transitions of a chain after each round: each round doubles them, within the budget."""
        first = self.num_samples * self.thinning
        doubled = itertools.takewhile(
            lambda n: n <= self.max_samples, (first * 2**r for r in itertools.count(1))
        )
        return [first, *doubled]


def run(
    target: Target,
    tuned: Tuned,
    density: Density,
    wanted: Wanted,
    progress: Callable[[], object] | None,
) -> Found:
    """Draw for data in the order of their number of steps, the largest first, from where the warm-up left them.

    After r doublings every 2^r-th draw of a datum is kept, so it has `num_samples` kept draws whenever it leaves, from
    the whole of its run. Noise is drawn for all data and indexed.

    Args:
        target, tuned: of these data.
        density, wanted: see there.
        progress: called after every transition of the first round.
    """
    left = torch.arange(target.num_data, device=tuned.position.device)
    totals = wanted.totals()
    seen: Chains | None = None
    found: list[Found] = []
    order: list[Tensor] = []
    for number, (before, total) in enumerate(itertools.pairwise([0, *totals])):
        settled = tuning.rows(tuned, left)
        drawn = _drawn(
            target if len(left) == target.num_data else target.rows(left),
            settled,
            density,
            start=None if seen is None else seen.state,
            noise=partial(trajectory.draw_noise, tuned.position, None if seen is None else left),
            shares=trajectory.shares(total - before),
            thinning=wanted.thinning * 2**number,
            made=before,
            progress=progress if number == 0 else None,
        )
        seen = drawn if seen is None else chains.joined(chains.thinned(seen), drawn)
        result = _found(seen, settled.whitening, wanted)
        leaves = _leaves(result[2], wanted) | (total == totals[-1])
        gone = torch.as_tensor(leaves, device=left.device)
        found.append(_some(result, leaves))
        order.append(left[gone])
        stays = (~gone).nonzero()[:, 0]
        left, seen = left[stays], chains.rows(seen, stays)
        if not len(left):
            break
    return in_order(torch.cat(order), found)


def _drawn(
    target: Target,
    tuned: Tuned,
    density: Density,
    *,
    start: hmc.HMCState | None,
    shares: Sequence[float],
    **options: Any,
) -> Chains:
    """More draws of some data, from where their chains stand, or from where the warm-up left them."""
    most_steps = tuned.num_steps.tolist()
    active = tuple(sum(most > i for most in most_steps) for i in range(most_steps[0]))
    functions = {
        size: laplace.whitened_gradient(
            laplace.Gaussian(*(each[:size] for each in tuned.whitening)),
            density(target.rows(range(size)), len(shares) * active.count(size)),
        )
        for size in set(active)
    }

    def function(u: Tensor) -> tuple[Tensor, Tensor]:
        return functions[u.shape[1]](u)

    state = hmc.init(tuned.position, function) if start is None else start
    of_data = (tuned.step_size, tuned.trajectory_length, tuned.num_steps, tuned.rotates)
    return chains.sample_chains(function, state, Settings(*of_data, active), shares=shares, **options)


def _found(seen: Chains, whitening: laplace.Gaussian, wanted: Wanted) -> Found:
    draws, totals = seen.draws, seen.totals
    arrays = {
        "lp": to_numpy(draws.log_density),
        "n_steps": to_numpy(draws.num_steps),
        **{name: to_numpy(getattr(draws, name)) for name in SAME_NAME},
    }
    z = to_numpy(laplace.unwhiten(whitening, draws.position))
    fraction = to_numpy(chains.bfmi(totals).amin(0))
    num_stuck = to_numpy((totals.acceptance_rate / totals.num_transitions < STUCK).sum(0))
    num_divergent = to_numpy(totals.num_divergent)
    flags = {
        "divergences": num_divergent > 0,
        f"E-BFMI below {LOW_BFMI:g}": ~(fraction >= LOW_BFMI),
        "stuck chains": num_stuck > 0,
    }
    limits = {"max_rhat": wanted.max_rhat, "min_ess": wanted.min_ess}
    verdicts = diagnose(z, arrays["diverging"], **limits, flags=flags, superchains=wanted.superchains)
    size = z.shape[2]
    counts = {
        "num_divergent": num_divergent,
        "bfmi": fraction,
        "num_stuck": num_stuck,
        "num_transitions": np.full(size, totals.num_transitions),
        "num_gradient_evaluations": to_numpy(totals.num_gradient_evaluations) + 1,
    }
    return z, arrays, {**verdicts, **counts}


def _leaves(diagnostics: Mapping[str, np.ndarray], wanted: Wanted) -> np.ndarray:
    """Data that are good, and those which no further draw can make good."""
    return (diagnostics["verdict"] == "ok") | (diagnostics["num_divergent"] > 0)


def _some(found: Found, which: np.ndarray) -> Found:
    z, stats, diagnostics = found
    return (
        z[:, :, which],
        {name: each[:, :, which] for name, each in stats.items()},
        {name: each[which] for name, each in diagnostics.items()},
    )


def in_order(index: Int[Tensor, " n"], parts: Sequence[Found]) -> Found:
    """The parts side by side, with the datum at place i moved to `index[i]`."""
    zs, stats, diagnostics = zip(*parts, strict=True)
    found = np.concatenate(zs, 2), side_by_side(stats, 2), side_by_side(diagnostics, 0)
    return _some(found, np.argsort(to_numpy(index)))
