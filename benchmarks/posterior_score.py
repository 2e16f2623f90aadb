"""What the draws of a sampler are worth: effective sample sizes by ArviZ, and whether samplers agree."""

from dataclasses import dataclass

import numpy as np
from arviz_stats.base.array import array_stats

__all__ = ["Score", "largest_z", "score"]

AXES = {"chain_axis": 0, "draw_axis": 1}
SCORED = 16  # data, the first ones, so that runs with more data are scored on the same


@dataclass(frozen=True)
class Score:
    """Effective sample sizes of the first data, and the moments by which samplers are compared."""

    ess: np.ndarray
    """[M]; the smallest over coordinates of the bulk ESS of z, z^2 and (z - mean)^2, and of the tail ESS of z."""
    by_kind: dict[str, float]
    """The median over data of the smallest over coordinates, for each of the four."""
    rhat: float
    """The largest; NaN for a single chain."""
    mean: np.ndarray
    """[M, D]."""
    mcse: np.ndarray
    """[M, D]; of the mean."""


def score(z: np.ndarray) -> Score:
    """Scores draws `[C, T, N, D]`.

    z^2 catches antithetic draws only where the posterior straddles zero: elsewhere it is a monotone function of z,
    and the rank-normalized ESS of both is the same. The square about the mean catches them everywhere.
    """
    z = z[:, :, :SCORED].astype(float)
    folded = (z - z.mean((0, 1))) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        kinds = {
            "bulk z": array_stats.ess(z, method="bulk", **AXES),
            "bulk z^2": array_stats.ess(z**2, method="bulk", **AXES),
            "bulk (z - mean)^2": array_stats.ess(folded, method="bulk", **AXES),
            "tail z": array_stats.ess(z, method="tail", prob=(0.05, 0.95), **AXES),
        }
        rhat = float(array_stats.rhat(z, **AXES).max()) if len(z) > 1 else float("nan")
    return Score(
        ess=np.stack([each.min(-1) for each in kinds.values()]).min(0),
        by_kind={name: float(np.median(each.min(-1))) for name, each in kinds.items()},
        rhat=rhat,
        mean=z.mean((0, 1)),
        mcse=array_stats.mcse(z, method="mean", **AXES),
    )


def largest_z(mean: np.ndarray, mcse: np.ndarray, other_mean: np.ndarray, other_mcse: np.ndarray) -> float:
    """The largest |difference of two samplers' posterior means| in its standard errors, over data and coordinates."""
    size = min(len(mean), len(other_mean))
    error = np.hypot(mcse[:size], other_mcse[:size])
    return float((np.abs(mean[:size] - other_mean[:size]) / error).max())
