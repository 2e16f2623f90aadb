"""The guide against reference draws, datum by datum: where its means and widths are wrong, with error bars."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from pyrovae import results
from pyrovae.diagnostics.evidence import draw_weights
from pyrovae.diagnostics.reference import latent_names
from pyrovae.target import Target

__all__ = ["compare", "compare_draws"]


class Moments(NamedTuple):
    """Means and standard deviations over chains and draws, `[N, D]`, with Monte Carlo standard errors."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray


def compare(target: Target, reference: xr.DataTree, *, num_samples: int = 1000, seed: int = 0) -> xr.DataTree:
    """Compare the guide with reference posteriors, for every datum and latent coordinate.

    - `mean_error` = (guide mean - reference mean) / reference sd, in posterior standard deviations;
    - `sd_ratio` = guide sd / reference sd: below 1 the guide is too narrow;
    - `wasserstein2`: the distance W2 between the Gaussians of both sets of moments, in units of z,
      W2^2 = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2) (Gelbrich 1990).

    The standard errors hold the Monte Carlo error of both sides; that of the reference is by its effective sample
    sizes. W2 of finite samples is biased upwards. Data whose reference has no verdict are compared all the same:
    `diagnostics.verdict` of the reference says which they are.

    Args:
        target: the model, guide and data.
        reference: what `sample_posterior` gave for the same data.
        num_samples: draws of the guide per datum.
        seed: of those draws.

    Returns:
        DataTree with `guide` and `comparison`.

    Raises:
        ValueError: if the reference has no posterior draws, or those of other data or another latent space.
    """
    if "posterior" not in reference.children:
        raise ValueError("the reference has no group 'posterior': make one with sample_posterior(target)")
    z = reference["posterior"].to_dataset()["z"].values
    if z.shape[2:] != (target.num_data, target.dim):
        raise ValueError(
            f"the reference has {z.shape[2]} data of {z.shape[3]} latent coordinates, the target {target.num_data} of "
            f"{target.dim}: compare with the reference of the same data (target.rows(index) for some of them)"
        )
    draws, _ = draw_weights(target, num_samples, seed=seed)
    guide = draws.z.cpu().numpy()[None]
    names = latent_names(target)
    groups = {
        "guide": results.group("guide", {"z": guide}, latent=names),
        "comparison": results.group("comparison", compare_draws(guide, z), latent=names),
    }
    return results.build_tree(groups)


def compare_draws(
    guide: Float[np.ndarray, "c1 t1 n d"], reference: Float[np.ndarray, "c2 t2 n d"]
) -> dict[str, np.ndarray]:
    """The comparison of two sets of draws `[C, T, N, D]`: the variables of the group `comparison`."""
    q, p = _moments(guide), _moments(reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_error = (q.mean - p.mean) / p.sd
        location = np.hypot(q.mean_error, p.mean_error) / p.sd
        ratio = q.sd / p.sd
        return {
            "mean_error": mean_error,
            "mean_error_std_error": np.hypot(location, mean_error * p.sd_error / p.sd),
            "sd_ratio": ratio,
            "sd_ratio_std_error": ratio * np.hypot(q.sd_error / q.sd, p.sd_error / p.sd),
            "wasserstein2": _gaussian_wasserstein(guide, reference),
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


def _gaussian_wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """W2 `[N]` of the Gaussians with the moments of two sets of draws."""
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    root = _square_root(cov_a)
    cross = _square_root(root @ cov_b @ root)
    spread = np.trace(cov_a + cov_b - 2 * cross, axis1=-2, axis2=-1)
    return np.sqrt(np.maximum(((mean_a - mean_b) ** 2).sum(-1) + spread, 0.0))


def _gaussian(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means `[N, D]` and covariances `[N, D, D]` over chains and draws."""
    flat = z.astype(np.float64).reshape(-1, *z.shape[2:])
    mean = flat.mean(0)
    centred = flat - mean
    return mean, np.einsum("knd,kne->nde", centred, centred) / (len(flat) - 1)


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """The positive semi-definite square root of symmetric matrices."""
    values, vectors = np.linalg.eigh((matrix + np.swapaxes(matrix, -1, -2)) / 2)
    return vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :] @ np.swapaxes(vectors, -1, -2)
