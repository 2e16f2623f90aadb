"""What every sampler of posteriors gives, block by block, and the diagnosis of chains that most of them need."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Progress", "Sampled", "diagnose", "joined", "side_by_side", "to_numpy"]

Progress = Callable[[int, int], None]


class Sampled(NamedTuple):
    """Draws of the posterior of some data, with statistics of each draw and a verdict on each datum.

    A sampler yields one for each block of data, in their order, and keeps none: who asks decides whether the draws of
    all data are ever in memory at once.
    """

    z: np.ndarray
    """[C, T, N, D]."""
    stats: Mapping[str, np.ndarray]
    """`lp` and others of the group `sample_stats`, each [C, T, N]."""
    num_gradient_evaluations: int
    """Per chain and datum."""
    diagnostics: Mapping[str, np.ndarray] = {}
    """Of the group `diagnostics`, each [N]; `verdict` and `reason` at least."""
    limits: Mapping[str, float] = {}
    """What the verdict asked for."""


def joined(parts: Sequence[Sampled]) -> Sampled:
    """Blocks of data as one."""
    return Sampled(
        np.concatenate([part.z for part in parts], 2),
        side_by_side([part.stats for part in parts], 2),
        max(part.num_gradient_evaluations for part in parts),
        side_by_side([part.diagnostics for part in parts], 0),
        parts[0].limits,
    )


def side_by_side(parts: Sequence[Mapping[str, np.ndarray]], axis: int) -> dict[str, np.ndarray]:
    """Arrays of the same names, put together along the axis of the data.

    >>> side_by_side([{"rhat": np.array([1.0])}, {"rhat": np.array([1.5, 2.0])}], 0)
    {'rhat': array([1. , 1.5, 2. ])}
    """
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}


def diagnose(
    z: Float[np.ndarray, "c t n d"],
    diverging: Bool[np.ndarray, "c t n"],
    *,
    max_rhat: float,
    min_ess: float,
    flags: Mapping[str, Bool[np.ndarray, " n"]] | None = None,
    superchains: Int[np.ndarray, " c"] | None = None,
) -> dict[str, np.ndarray]:
    """R-hat, effective sample sizes and the verdict of every datum, the worst of its coordinates.

    Args:
        z, diverging: draws.
        max_rhat, min_ess: what a verdict asks for.
        flags: further reasons, and the data that they refuse.
        superchains: a start for each chain, where several chains share one: R-hat compares starts then (nested R-hat;
            Margossian et al. 2024), which a few draws per chain are enough for. Left out are chains that share none.
    """
    from arviz_stats.base.array import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = (array_stats.rhat(z, **axes) if superchains is None else _nested(z, superchains)).max(-1)
        bulk = array_stats.ess(z, method="bulk", **axes).min(-1)
        tail = array_stats.ess(z, method="tail", prob=(0.05, 0.95), **axes).min(-1)
    divergent = diverging.sum((0, 1))
    # Written so that NaN refuses.
    refused = {
        f"R-hat not below {max_rhat:g}": ~(rhat < max_rhat),
        f"ESS below {min_ess:g}": ~(np.minimum(bulk, tail) >= min_ess),
        "divergences": divergent > 0,
        **(flags or {}),
    }
    reasons = [" and ".join(reason for reason, data in refused.items() if data[n]) for n in range(z.shape[2])]
    return {
        "rhat": rhat,
        "ess_bulk": bulk,
        "ess_tail": tail,
        "num_divergent": divergent,
        "verdict": np.array(["no verdict" if reason else "ok" for reason in reasons]),
        "reason": np.array(reasons),
    }


def _nested(z: Float[np.ndarray, "c t n d"], superchains: Int[np.ndarray, " c"]) -> Float[np.ndarray, "n d"]:
    from arviz_stats.base.array import array_stats

    sharing = np.bincount(superchains)[superchains] > 1
    rhat: np.ndarray = array_stats.rhat_nested(z[sharing], superchains[sharing], chain_axis=0, draw_axis=1)
    return rhat


def to_numpy(value: Tensor) -> np.ndarray:
    """As a numpy array, whatever the device."""
    array: np.ndarray = value.detach().cpu().numpy()
    return array
