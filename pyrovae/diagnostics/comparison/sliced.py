"""Sliced Wasserstein-2 distance of two sets of draws, per datum, with an error bar from its potentials."""

import numpy as np
from jaxtyping import Float

from pyrovae.diagnostics.comparison.moments import halves

__all__ = ["sliced_wasserstein"]

NUM_PROJECTIONS = 32
MAX_DRAWS = 1000  # of a set; more are thinned, because they are sorted along every projection
SEED = 0  # of the projections, which are the same for every datum and every call


def sliced_wasserstein(
    guide: Float[np.ndarray, "c1 t1 n d"], reference: Float[np.ndarray, "c2 t2 n d"]
) -> dict[str, np.ndarray]:
    """The root of the mean, over 32 fixed directions, of the squared W2 distance of both sets of draws along them.

    Along a line W2^2 = integral over t of (F^-1(t) - G^-1(t))^2. It sees any difference of the distributions, not
    only in their moments, and is biased upwards: `sliced_wasserstein2_noise` is what two halves of each set would
    give, scaled to their full size. The error bar is that of the mean over draws of the Kantorovich potential, whose
    slope is 2 (x - T(x)) (del Barrio and Loubes 2019), with the effective sample size of the chains.

    Returns:
        `sliced_wasserstein2` `[N]`, with `_std_error` and `_noise`, in units of z.
    """
    axes = np.random.default_rng(SEED).normal(size=(NUM_PROJECTIONS, guide.shape[-1]))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    q, p = _project(guide, axes), _project(reference, axes)
    orders = [np.argsort(_flat(line), axis=-1) for line in (q, p)]
    own, other = (
        np.take_along_axis(_flat(line), order, -1) for line, order in zip((q, p), orders, strict=True)
    )
    distance = np.sqrt(_squared_distance(own, other))
    error = np.hypot(
        _potential_error(own, other, orders[0], q.shape), _potential_error(other, own, orders[1], p.shape)
    )
    noise = sum(_squared_distance(*(np.sort(_flat(half)) for half in _halves(line))) for line in (q, p)) / 4
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "sliced_wasserstein2": distance,
            "sliced_wasserstein2_std_error": error / (2 * distance),
            "sliced_wasserstein2_noise": np.sqrt(noise),
        }


def _project(z: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """`[N, P, C, t]`, thinned to at most `MAX_DRAWS` draws."""
    step = max(1, -(-z.shape[0] * z.shape[1] // MAX_DRAWS))
    kept = z[:, ::step].astype(np.float64).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(np.moveaxis(kept @ axes.T, -1, 1))


def _flat(line: np.ndarray) -> np.ndarray:
    return line.reshape(*line.shape[:2], -1)


def _halves(line: np.ndarray) -> list[np.ndarray]:
    return [np.moveaxis(half, (0, 1), (2, 3)) for half in halves(np.moveaxis(line, (2, 3), (0, 1)))]


def _squared_distance(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The mean of W2^2 over projections `[N]`, from sorted draws."""
    count = min(q.shape[-1], p.shape[-1])
    return np.asarray(((_quantiles(q, count) - _quantiles(p, count)) ** 2).mean((1, 2)))


def _quantiles(ordered: np.ndarray, count: int) -> np.ndarray:
    """The quantiles at (j + 1/2) / count, linear between sorted draws."""
    size = ordered.shape[-1]
    if count == size:
        return ordered
    at = np.clip((np.arange(count) + 0.5) / count * size - 0.5, 0, size - 1)
    low = np.minimum(at.astype(int), size - 2)
    share = at - low
    return np.asarray((1 - share) * ordered[..., low] + share * ordered[..., low + 1])


def _potential_error(
    own: np.ndarray, other: np.ndarray, order: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The Monte Carlo error `[N]` that one set's draws bring in."""
    from arviz_stats.base.array import array_stats

    slope = 2 * (own - _quantiles(other, own.shape[-1]))
    steps = 0.5 * (slope[..., 1:] + slope[..., :-1]) * np.diff(own)
    potential = np.zeros_like(own)
    np.put_along_axis(potential, order[..., 1:], np.cumsum(steps, -1), -1)
    values = potential.mean(1).reshape(len(own), *shape[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(array_stats.mcse(values, method="mean", chain_axis=1, draw_axis=2))
