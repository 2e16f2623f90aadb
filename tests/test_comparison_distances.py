"""The numbers of a comparison against closed forms for Gaussians, and their error bars against the scatter."""

import chance
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from pyrovae.diagnostics.comparison import compare_draws, moments
from pyrovae.diagnostics.comparison import sliced as sliced_module
from pyrovae.diagnostics.comparison.directions import extreme_widths
from pyrovae.diagnostics.comparison.moments import moment_statistics
from pyrovae.diagnostics.comparison.sliced import sliced_wasserstein

SEED = 0
COV_Q = np.array([[1.0, 0.3, 0.0], [0.3, 0.7, 0.1], [0.0, 0.1, 0.5]])
COV_P = np.array([[1.2, -0.4, 0.2], [-0.4, 0.9, 0.3], [0.2, 0.3, 1.5]])
SHIFT = np.array([0.4, -0.2, 0.1])


def correlations(cov: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.diag(cov))
    return (cov / np.outer(sd, sd))[np.triu_indices(3, 1)]


def exact() -> dict[str, float]:
    """The guide is N(SHIFT, COV_Q), the posterior N(0, COV_P)."""
    root = sqrtm(COV_P)
    squared = SHIFT @ SHIFT + np.trace(COV_Q + COV_P - 2 * np.real(sqrtm(root @ COV_Q @ root)))
    axes = np.random.default_rng(sliced_module.SEED).normal(size=(sliced_module.NUM_PROJECTIONS, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    sd_q, sd_p = (np.sqrt(np.einsum("pi,ij,pj->p", axes, cov, axes)) for cov in (COV_Q, COV_P))
    q, p = (
        torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(cov))
        for mean, cov in ((SHIFT, COV_Q), (np.zeros(3), COV_P))
    )
    return {
        "wasserstein2": np.sqrt(squared),
        "sliced_wasserstein2": np.sqrt((((axes @ SHIFT) ** 2) + (sd_q - sd_p) ** 2).mean()),
        "correlation_error": np.sqrt(((correlations(COV_Q) - correlations(COV_P)) ** 2).mean()),
        "gaussian_kl_guide_posterior": float(torch.distributions.kl_divergence(q, p)),
        "gaussian_kl_posterior_guide": float(torch.distributions.kl_divergence(p, q)),
    }


def draws(mean, cov, num_data: int, seed: int, memory: float = 0.0, num_draws: int = 300) -> np.ndarray:
    """`[6, T, N, 3]` of a Gaussian; each chain is a stationary AR(1) with this coefficient."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(6, num_draws, num_data, 3))
    for t in range(1, num_draws):
        z[:, t] = memory * z[:, t - 1] + np.sqrt(1 - memory**2) * z[:, t]
    return mean + z @ np.linalg.cholesky(cov).T


def all_statistics(guide: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    return moment_statistics(guide, reference) | sliced_wasserstein(guide, reference)


def error_bars_are_right(found: dict[str, np.ndarray], name: str) -> bool:
    """The squared z-scores of 150 data average to one; distances are biased upwards by their noise."""
    noise = found.get(f"{name}_noise", 0.0)
    z = (found[name] - np.sqrt(exact()[name] ** 2 + noise**2)) / found[f"{name}_std_error"]
    return bool(0.6 < np.mean(z**2) < 1.7 and abs(z.mean()) < chance.z_score_limit() / 150**0.5)


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_all_numbers_are_those_of_the_gaussians_within_their_errors(memory):
    """The reference has chains with memory; planted: the same draws shuffled over chains, which hides it."""
    guide = draws(SHIFT, COV_Q, 150, SEED)
    reference = draws(np.zeros(3), COV_P, 150, SEED + 1, memory)
    found = all_statistics(guide, reference)
    for name in exact():
        assert error_bars_are_right(found, name), name
    if memory:
        flat = np.random.default_rng(SEED).permutation(reference.reshape(-1, 150, 3))
        shuffled = all_statistics(guide, flat.reshape(reference.shape))
        assert not any(error_bars_are_right(shuffled, name) for name in exact())


def test_alike_draws_are_as_far_apart_as_the_noise_says():
    guide, reference = draws(0, COV_P, 150, SEED), draws(0, COV_P, 150, SEED + 1, 0.7)
    found = all_statistics(guide, reference)
    plain = moments._statistics(moments.gaussians(guide), moments.gaussians(reference))
    for name in ("wasserstein2", "sliced_wasserstein2", "correlation_error"):
        square, noise = (found[f"{name}{end}"] ** 2 for end in ("", "_noise"))
        assert 0.8 < square.mean() / noise.mean() < 1.25
    for name in ("gaussian_kl_guide_posterior", "gaussian_kl_posterior_guide"):
        assert chance.means_agree(torch.tensor(found[name])[:, None], 0.0)
        # Planted: without the jackknife's correction the KL of two sets of draws of one Gaussian is above 0.
        assert not chance.means_agree(torch.tensor(plain[name])[:, None], 0.0)


def test_the_directions_of_the_extremes_and_their_widths():
    """The guide is the posterior but for a factor 0.5 along one tilted direction, and 1.6 along another."""
    values, vectors = np.linalg.eigh(COV_P)
    cov = (vectors * (values * np.array([0.25, 1.0, 2.56]))) @ vectors.T
    found = extreme_widths(draws(0, cov, 200, SEED), draws(0, COV_P, 200, SEED + 1, 0.5))
    for name, expected, place in (("narrowest", 0.5, 0), ("widest", 1.6, 2)):
        z = (found[f"{name}_sd_ratio"] - expected) / found[f"{name}_sd_ratio_std_error"]
        assert 0.2 < np.mean(z**2) < 1.3
        axis = vectors[:, place] / values[place] ** 0.5 * np.sqrt(np.diag(COV_P))
        cosine = found[f"{name}_direction"] @ axis / np.linalg.norm(axis)
        assert (np.abs(cosine) > 0.95).all()


def test_a_perfect_guide_is_in_no_direction_narrow():
    """Planted: directions found and measured on the same draws, where the extremes of noise are taken for widths."""
    guide, reference = draws(0, COV_P, 200, SEED), draws(0, COV_P, 200, SEED + 1)
    found = extreme_widths(guide, reference)["narrowest_sd_ratio"]
    assert chance.means_agree(torch.tensor(found)[:, None], 1.0)
    same = np.concatenate([guide[0::2], guide[0::2]]), np.concatenate([reference[0::2], reference[0::2]])
    doubled = [np.stack([half[i % 3] for i in (0, 0, 1, 1, 2, 2)]) for half in same]
    assert not chance.means_agree(torch.tensor(extreme_widths(*doubled)["narrowest_sd_ratio"])[:, None], 1.0)


def test_one_latent_has_no_correlations_and_blocks_change_nothing(monkeypatch):
    guide, reference = (draws(0, COV_P, 7, SEED + i)[..., :1] for i in (0, 1))
    found = compare_draws(guide, reference)
    assert not [name for name in found if "correlation" in name]
    monkeypatch.setattr("pyrovae.diagnostics.comparison.draws.MAX_NUMBERS", 1)
    for name, values in compare_draws(guide, reference).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-9, err_msg=name)


def test_sliced_sees_what_moments_do_not():
    """Two clumps against a Gaussian of the same mean and variance."""
    rng = np.random.default_rng(SEED)
    clumps = 0.9 * rng.choice([-1.0, 1.0], (4, 500, 40, 1)) + np.sqrt(0.19) * rng.normal(size=(4, 500, 40, 1))
    found = compare_draws(clumps, rng.normal(size=(4, 500, 40, 1)))
    beyond = {
        name: float((found[name] ** 2).mean() / (found[f"{name}_noise"] ** 2).mean())
        for name in ("sliced_wasserstein2", "wasserstein2")
    }
    assert beyond["sliced_wasserstein2"] > 6
    assert beyond["wasserstein2"] < 5
