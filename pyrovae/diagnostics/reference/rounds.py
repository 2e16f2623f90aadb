"""Rounds of sampling: data whose draws are good leave, the others go on until the budget is spent."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pyrovae.diagnostics.reference.sampled import diagnose, to_numpy
from pyrovae.inference import chains, hmc, laplace, trajectory
from pyrovae.inference.chains import Chains
from pyrovae.inference.hmc import LogDensityAndGradient
from pyrovae.inference.tuning import QUARTER_TURN, Tuned
from pyrovae.target import Target

__all__ = ["Found", "Wanted", "in_order", "run", "side_by_side"]

LOW_BFMI = 0.3
SAME_NAME = ("acceptance_rate", "step_size", "diverging", "energy", "energy_error")
STUCK = 0.01  # a chain with a lower mean acceptance rate

Found = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]
"""z [C, T, M, D]; statistics, each [C, T, M]; diagnostics, each [M]."""


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
    density: Callable[[Target, int], LogDensityAndGradient],
    wanted: Wanted,
    progress: Callable[[], object] | None,
) -> Found:
    """Draw for data that make the same number of steps, from where the warm-up left them.

    After r doublings every 2^r-th draw of a datum is kept, so it has `num_samples` kept draws whenever it leaves, from
    the whole of its run. Noise is drawn for all data and indexed.

    Args:
        target, tuned: of these data.
        density: makes the density in z of some of them, told how many gradients it will give.
        wanted: see there.
        progress: called after every transition of the first round.
    """
    num_steps = int(tuned.num_steps.max())
    left = torch.arange(target.num_data, device=tuned.position.device)
    seen: Chains | None = None
    found: list[Found] = []
    order: list[Tensor] = []
    before = 0
    for number, total in enumerate(wanted.totals()):
        whitening = laplace.Gaussian(*(each[left] for each in tuned.whitening))
        some = target if len(left) == target.num_data else target.rows(left)
        function = laplace.whitened_gradient(whitening, density(some, (total - before) * num_steps))
        state = hmc.init(tuned.position[:, left], function) if seen is None else seen.state
        rows = None if seen is None else left
        drawn = chains.sample_chains(
            function,
            state,
            tuned.step_size[left],
            tuned.rotates[left],
            times=trajectory.times(total - before, QUARTER_TURN),
            num_steps=num_steps,
            noise=partial(trajectory.draw_noise, tuned.position, rows),
            thinning=wanted.thinning * 2**number,
            made=before,
            progress=progress if number == 0 else None,
        )
        seen = drawn if seen is None else chains.joined(chains.thinned(seen), drawn)
        before = total
        result = _found(seen, whitening, wanted)
        leaves = _leaves(result[2], wanted) | (total == wanted.totals()[-1])
        gone, stays = (
            torch.as_tensor(np.flatnonzero(which), device=left.device) for which in (leaves, ~leaves)
        )
        found.append(_some(result, leaves))
        order.append(left[gone])
        left, seen = left[stays], chains.rows(seen, stays)
        if not len(left):
            break
    return in_order(torch.cat(order), found)


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
        "num_gradient_evaluations": np.full(size, totals.num_gradient_evaluations + 1),
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


def side_by_side(parts: Sequence[Found]) -> Found:
    """The data of all parts, one part after the other."""
    zs, stats, diagnostics = zip(*parts, strict=True)
    return (
        np.concatenate(zs, 2),
        {name: np.concatenate([each[name] for each in stats], 2) for name in stats[0]},
        {name: np.concatenate([each[name] for each in diagnostics]) for name in diagnostics[0]},
    )


def in_order(index: Int[Tensor, " n"], parts: Sequence[Found]) -> Found:
    """The parts side by side, with the datum at place i moved to `index[i]`."""
    return _some(side_by_side(parts), np.argsort(to_numpy(index)))
