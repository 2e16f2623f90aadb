"""Two sets of draws against each other, datum by datum and pooled: arrays in, the variables of `comparison` out."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pyrovae.diagnostics.comparison.directions import extreme_widths, whiten
from pyrovae.diagnostics.comparison.moments import halves, moment_statistics
from pyrovae.diagnostics.comparison.sliced import sliced_wasserstein
from pyrovae.diagnostics.two_sample import TwoSample, classifier_test

__all__ = ["compare_draws"]

MAX_NUMBERS = 1 << 24  # of one block of data, in draws and in moments
MAX_DATA = 200  # whose draws the classifier sees
MAX_POINTS = 10_000  # of each set that it sees


class Moments(NamedTuple):
    """Means and standard deviations over chains and draws, `[N, D]`, with Monte Carlo standard errors."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray


def compare_draws(
    guide: Float[np.ndarray, "c1 t1 n d"], reference: Float[np.ndarray, "c2 t2 n d"]
) -> dict[str, np.ndarray]:
    """The comparison of two sets of draws `[C, T, N, D]`: the variables of the group `comparison`, as `compare` says.

    Per datum, in blocks of data of bounded memory; the classifier alone looks at all data at once.
    """
    size = max(guide[:, :, :1].size, reference[:, :, :1].size, 64 * guide.shape[-1] ** 2)
    step = max(1, MAX_NUMBERS // (8 * size))
    parts = [
        _compare_block(guide[:, :, first : first + step], reference[:, :, first : first + step])
        for first in range(0, guide.shape[2], step)
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    test, count = _classify(guide, reference)
    return {
        **found,
        "classifier_auc": np.array(test.auc),
        "classifier_auc_std_error": np.array(test.std_error),
        "classifier_p_value": np.array(test.p_value),
        "classifier_num_draws": np.array(count),
    }


def _compare_block(guide: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    return {
        **_per_latent(_moments(guide), _moments(reference)),
        **moment_statistics(guide, reference),
        **sliced_wasserstein(guide, reference),
        **extreme_widths(guide, reference),
    }


def _per_latent(q: Moments, p: Moments) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_error = (q.mean - p.mean) / p.sd
        location = np.hypot(q.mean_error, p.mean_error) / p.sd
        ratio = q.sd / p.sd
        return {
            "mean_error": mean_error,
            "mean_error_std_error": np.hypot(location, mean_error * p.sd_error / p.sd),
            "sd_ratio": ratio,
            "sd_ratio_std_error": ratio * np.hypot(q.sd_error / q.sd, p.sd_error / p.sd),
        }


def _moments(z: np.ndarray) -> Moments:
    from arviz_stats.base.array import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    z = z.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Moments(
            z.mean((0, 1)),
            z.std((0, 1), ddof=1),
            array_stats.mcse(z, method="mean", **axes),
            array_stats.mcse(z, method="sd", **axes),
        )


def _classify(guide: np.ndarray, reference: np.ndarray) -> tuple[TwoSample, int]:
    """A classifier on pooled draws, standardized by one half of the reference, and its other half.

    Moments that come from the draws under test would make these too regular, and a perfect guide look wrong. For the
    same reason every datum gives as many draws to one set as to the other.
    """
    num_data = guide.shape[2]
    chosen = np.unique(np.linspace(0, num_data - 1, min(num_data, MAX_DATA)).round().astype(int))
    by, tested = halves(reference[:, :, chosen].astype(np.float64))
    tested, drawn = whiten(tested, by), whiten(guide[:, :, chosen].astype(np.float64), by)
    drawn = drawn.reshape(-1, *drawn.shape[2:])
    steps = _steps(tested, min(MAX_POINTS // len(chosen), len(drawn)))
    sets: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = ([], [], [])
    for datum, step in enumerate(steps):
        thinned = tested[:, ::step, datum]
        chains = np.repeat(datum * len(tested) + np.arange(len(tested)), thinned.shape[1])[: len(drawn)]
        sets[0].append(drawn[: len(chains), datum])
        sets[1].append(thinned.reshape(-1, tested.shape[-1])[: len(chains)])
        sets[2].append(chains)
    first, second, groups = (np.concatenate(part) for part in sets)
    is_finite = np.isfinite(first).all(-1) & np.isfinite(second).all(-1)
    first, second, groups = first[is_finite], second[is_finite], groups[is_finite]
    return classifier_test(first, second, np.arange(len(first)), groups), len(first)


def _steps(z: np.ndarray, limit: int) -> np.ndarray:
    """How far apart draws of each datum are to be taken, so that there are as many as its effective sample size."""
    from arviz_stats.base.array import array_stats

    total = z.shape[0] * z.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        bulk = array_stats.ess(z, method="bulk", chain_axis=0, draw_axis=1)
        tail = array_stats.ess(z, method="tail", prob=(0.05, 0.95), chain_axis=0, draw_axis=1)
    smallest = np.nan_to_num(np.minimum(bulk, tail).min(-1), nan=1.0)
    allowed = np.clip(smallest, 1, min(limit, total))
    return np.ceil(total / allowed).astype(int)
