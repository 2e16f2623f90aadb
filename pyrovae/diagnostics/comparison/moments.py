"""What the moments of two sets of draws say: distances of Gaussians and of correlations, with jackknifed errors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Gaussians", "gaussians", "halves", "moment_statistics", "square_root"]

NUM_GROUPS = 16  # of draws, each left out once

_DISTANCES = ("wasserstein2", "correlation_error")
_DIVERGENCES = ("gaussian_kl_guide_posterior", "gaussian_kl_posterior_guide")


class Gaussians(NamedTuple):
    """Means `[..., N, D]` and covariances `[..., N, D, D]`."""

    mean: np.ndarray
    cov: np.ndarray


def moment_statistics(
    guide: Float[np.ndarray, "c1 t1 n d"], reference: Float[np.ndarray, "c2 t2 n d"]
) -> dict[str, np.ndarray]:
    """Distances and divergences of the Gaussians with the moments of both sets of draws, per datum `[N]`.

    - `wasserstein2`: W2^2 = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2) (Gelbrich 1990), in units of z;
    - `correlation_error`: root mean square over pairs of latents of the difference of both correlation matrices
      (not for one latent);
    - `gaussian_kl_guide_posterior`, `gaussian_kl_posterior_guide`: KL divergences, in nats.

    Distances of finite samples are biased upwards: `_noise` is what they would be, in the root mean square, for draws
    of one distribution, from halves of each set. The jackknife's estimate of their bias is taken off the divergences.
    `_std_error` is that of the jackknife over groups of draws: chains of the reference, or runs within them.
    """
    q, p = gaussians(guide), gaussians(reference)
    value = _statistics(q, p)
    sides = [
        _statistics(_left_out(guide), Gaussians(p.mean[None], p.cov[None])),
        _statistics(Gaussians(q.mean[None], q.cov[None]), _left_out(reference)),
    ]
    found = {}
    for name, whole in value.items():
        errors = [_jackknife(side[name], whole) for side in sides]
        bias = sum(each for each, _ in errors) if name in _DIVERGENCES else 0.0
        found[name] = whole - bias
        found[f"{name}_std_error"] = np.sqrt(sum(variance for _, variance in errors))
    between = [_statistics(*(gaussians(half) for half in halves(z))) for z in (guide, reference)]
    for name in _DISTANCES:
        if name in value:
            found[f"{name}_noise"] = np.sqrt(sum(each[name] ** 2 for each in between)) / 2
    return found


def halves(z: Float[np.ndarray, "c t n d"]) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of draws as independent as there are: every second chain, or the halves of a single one."""
    if len(z) > 1:
        return z[0::2], z[1::2]
    middle = z.shape[1] // 2
    return z[:, :middle], z[:, middle:]


def gaussians(z: Float[np.ndarray, "c t n d"]) -> Gaussians:
    """Means and covariances over chains and draws."""
    flat = z.astype(np.float64).reshape(-1, *z.shape[2:])
    mean = flat.mean(0)
    centred = (flat - mean).transpose(1, 2, 0)
    return Gaussians(mean, centred @ centred.swapaxes(-1, -2) / max(len(flat) - 1, 1))


def _left_out(z: np.ndarray) -> Gaussians:
    """The moments `[G, N, ...]` of all draws but those of one group, for each group."""
    flat = z.astype(np.float64)
    flat = flat - flat.mean((0, 1))
    shift = z.astype(np.float64).mean((0, 1))
    per_chain = min(-(-NUM_GROUPS // len(z)), z.shape[1])
    groups = [run for chain in flat for run in np.array_split(chain, per_chain)]
    count = np.array([len(run) for run in groups])[:, None, None]
    sums = np.stack([run.sum(0) for run in groups])
    squares = np.stack([run.transpose(1, 2, 0) @ run.transpose(1, 0, 2) for run in groups])
    kept = count.sum() - count
    mean = (sums.sum(0) - sums) / kept
    square = (squares.sum(0) - squares) / kept[..., None]
    cov = (square - mean[..., None] * mean[..., None, :]) * (kept / np.maximum(kept - 1, 1))[..., None]
    return Gaussians(mean + shift, cov)


def _jackknife(left_out: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bias and variance `[N]` from the values `[G, N]` with each group left out."""
    count, mean = len(left_out), left_out.mean(0)
    return (count - 1) * (mean - whole), (count - 1) * left_out.var(0)


def _statistics(q: Gaussians, p: Gaussians) -> dict[str, np.ndarray]:
    found = {"wasserstein2": _wasserstein(q, p)}
    if q.mean.shape[-1] > 1:
        found["correlation_error"] = _correlation_error(q.cov, p.cov)
    forward, backward = _kl(q, p), _kl(p, q)
    return found | dict(zip(_DIVERGENCES, (forward, backward), strict=True))


def _wasserstein(q: Gaussians, p: Gaussians) -> np.ndarray:
    root = square_root(p.cov) if q.cov.size > p.cov.size else square_root(q.cov)
    other = q.cov if q.cov.size > p.cov.size else p.cov
    values = np.linalg.eigvalsh(_symmetric(root @ other @ root))
    cross = np.sqrt(np.maximum(values, 0.0)).sum(-1)
    spread = np.trace(q.cov, axis1=-2, axis2=-1) + np.trace(p.cov, axis1=-2, axis2=-1) - 2 * cross
    return np.asarray(np.sqrt(np.maximum(((q.mean - p.mean) ** 2).sum(-1) + spread, 0.0)))


def _correlation_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    above = np.triu_indices(a.shape[-1], 1)
    difference = (_correlations(a) - _correlations(b))[..., above[0], above[1]]
    return np.asarray(np.sqrt((difference**2).mean(-1)))


def _correlations(cov: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.diagonal(cov, axis1=-2, axis2=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(cov / (sd[..., :, None] * sd[..., None, :]))


def _kl(q: Gaussians, p: Gaussians) -> np.ndarray:
    """KL(q || p) = 1/2 [tr(P^-1 Q) + d' P^-1 d - D + log |P| / |Q|]; NaN where a covariance is singular."""
    (sign_q, log_q), (sign_p, log_p) = np.linalg.slogdet(q.cov), np.linalg.slogdet(p.cov)
    is_usable = (sign_p > 0) & (sign_q > 0)
    safe = np.where((sign_p > 0)[..., None, None], p.cov, np.eye(p.cov.shape[-1]))
    precision = np.linalg.inv(safe)
    shift = q.mean - p.mean
    trace = np.einsum("...ij,...ji->...", precision, q.cov)
    distance = np.einsum("...i,...ij,...j->...", shift, precision, shift)
    with np.errstate(invalid="ignore"):
        return np.where(is_usable, 0.5 * (trace + distance - shift.shape[-1] + log_p - log_q), np.nan)


def square_root(matrix: np.ndarray) -> np.ndarray:
    """The positive semi-definite square root of symmetric matrices."""
    values, vectors = np.linalg.eigh(_symmetric(matrix))
    return np.asarray(
        (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    )


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return np.asarray((matrix + np.swapaxes(matrix, -1, -2)) / 2)
