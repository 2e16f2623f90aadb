"""The directions in which the guide is narrowest and widest against the posterior, and by how much."""

import numpy as np
from jaxtyping import Float

from pyrovae.diagnostics.comparison.moments import Gaussians, gaussians, halves

__all__ = ["extreme_widths", "whiten"]


def extreme_widths(
    guide: Float[np.ndarray, "c1 t1 n d"], reference: Float[np.ndarray, "c2 t2 n d"]
) -> dict[str, np.ndarray]:
    """The ratio of the guide's sd to the posterior's along the directions where it is smallest and largest.

    The generalized eigenvectors v of both covariances, S_q v = r^2 S_p v. They are found on one half of the draws
    and r is measured on the other, both ways, and averaged: so a perfect guide has ratios of 1, and the true extremes
    are at least that extreme. The two ways are correlated; the error bar takes them as fully so, which can only widen
    it.

    Returns:
        `narrowest_sd_ratio`, `widest_sd_ratio` `[N]` with `_std_error`, and `narrowest_direction`,
        `widest_direction` `[N, D]`: v times the posterior's sds, of length 1, from all draws; the sign is such that
        the largest entry is positive.
    """
    (q_a, q_b), (p_a, p_b) = halves(guide), halves(reference)
    found = {}
    for name, place in (("narrowest", 0), ("widest", -1)):
        folds = [
            _ratio(_axes(gaussians(q_a), gaussians(p_a))[..., place], q_b, p_b),
            _ratio(_axes(gaussians(q_b), gaussians(p_b))[..., place], q_a, p_a),
        ]
        found[f"{name}_sd_ratio"] = np.mean([ratio for ratio, _ in folds], 0)
        found[f"{name}_sd_ratio_std_error"] = np.sqrt(sum(error**2 for _, error in folds) / 2)
        p = gaussians(reference)
        axis = _axes(gaussians(guide), p)[..., place] * np.sqrt(np.diagonal(p.cov, axis1=1, axis2=2))
        axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
        largest = np.take_along_axis(axis, np.abs(axis).argmax(-1)[:, None], -1)
        found[f"{name}_direction"] = axis * np.sign(largest)
    return found


def whiten(
    z: Float[np.ndarray, "c t n d"], by: Float[np.ndarray, "c2 t2 n d"]
) -> Float[np.ndarray, "c t n d"]:
    """z in the units of the Gaussian of other draws: mean 0 and covariance I, up to noise, where they are alike."""
    p = gaussians(by)
    return np.asarray(np.einsum("ctnd,nde->ctne", z - p.mean, _whitening(p.cov)))


def _axes(q: Gaussians, p: Gaussians) -> np.ndarray:
    """The generalized eigenvectors `[N, D, D]`, one a column, by increasing r."""
    root = _whitening(p.cov)
    inner = root @ q.cov @ root
    return np.asarray(root @ np.linalg.eigh((inner + inner.swapaxes(-1, -2)) / 2)[1])


def _whitening(cov: np.ndarray) -> np.ndarray:
    """The symmetric inverse square root; directions without variance get none."""
    values, vectors = np.linalg.eigh(cov)
    floor = 1e-12 * values[..., -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(values > floor, 1 / np.sqrt(values), 0.0)
    return np.asarray((vectors * scale[..., None, :]) @ vectors.swapaxes(-1, -2))


def _ratio(axis: np.ndarray, guide: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ratio `[N]` of sds along one direction `[N, D]` per datum, and its standard error."""
    from arviz_stats.base.array import array_stats

    lines = [np.einsum("ctnd,nd->ctn", z.astype(np.float64), axis) for z in (guide, reference)]
    sds = [line.std((0, 1), ddof=1) for line in lines]
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = [array_stats.mcse(line, method="sd", chain_axis=0, draw_axis=1) for line in lines]
        ratio = sds[0] / sds[1]
        return ratio, np.asarray(ratio * np.hypot(errors[0] / sds[0], errors[1] / sds[1]))
