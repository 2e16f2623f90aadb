"""Guide against reference, with known differences."""

import chance
import numpy as np
import pytest
import torch
import zoo

from pyrovae.diagnostics.comparison import compare, compare_draws
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.results.summary import summary
from pyrovae.target import Target

FAST = {"num_chains": 8, "num_samples": 300, "warmup_steps": 100}


def gaussian_draws(mean: float, sd: float, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return (mean + sd * torch.randn(4, 2000, 3, 2, generator=generator, dtype=torch.float64)).numpy()


def z_scores(found: dict[str, np.ndarray], name: str, expected: float) -> np.ndarray:
    return (found[name] - expected) / found[f"{name}_std_error"]


def test_known_differences_come_out_within_their_errors():
    found = compare_draws(gaussian_draws(1.0, 0.5, 0), gaussian_draws(0.0, 2.0, 1))
    limit = chance.z_score_limit(12)
    assert (np.abs(z_scores(found, "mean_error", 0.5)) < limit).all()
    assert (np.abs(z_scores(found, "sd_ratio", 0.25)) < limit).all()
    # W2 of N(1, .25 I) and N(0, 4 I) in two dimensions: sqrt(2 + 2 * 1.5^2)
    assert np.allclose(found["wasserstein2"], np.sqrt(2 + 2 * 1.5**2), atol=0.1)


def test_the_error_bars_are_not_wide_enough_to_hide_a_small_difference():
    found = compare_draws(gaussian_draws(0.2, 1.1, 0), gaussian_draws(0.0, 1.0, 1))
    limit = chance.z_score_limit(12)
    assert (np.abs(z_scores(found, "mean_error", 0.0)) > limit).all()
    assert (np.abs(z_scores(found, "sd_ratio", 1.0)) > limit).all()


def test_wasserstein_sees_correlation_alone():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, 20_000, 1, 2, generator=generator, dtype=torch.float64)
    tilted = torch.stack([u[..., 0], 0.9 * u[..., 0] + (1 - 0.81) ** 0.5 * u[..., 1]], -1)
    found = compare_draws(u.numpy(), tilted.numpy())
    exact = np.sqrt(4 - 2 * (np.sqrt(1.9) + np.sqrt(0.1)))
    assert np.abs(found["wasserstein2"] - exact) < 0.03


def test_guide_against_hmc_on_the_linear_gaussian():
    specimen = zoo.linear_gaussian(guide_scale=0.5, shift=0.3)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    tree = compare(target, sample_posterior(target, **FAST))
    found = {name: values.values for name, values in tree["comparison"].data_vars.items()}
    limit = chance.z_score_limit(30)
    sd = specimen.posterior_cov.diagonal(dim1=-2, dim2=-1).sqrt().numpy()
    assert (np.abs(z_scores(found, "sd_ratio", 0.5)) < limit).all()
    assert (np.abs((found["mean_error"] - 0.3 / sd) / found["mean_error_std_error"]) < limit).all()
    assert tree["guide"]["z"].shape == (1, 1000, 5, 3)
    table = summary(tree)  # of the comparison alone, which says for itself which data count
    assert table.loc["data with a converged reference", "value"] == 5
    assert 0.4 < table.loc["guide: its sd over the posterior's", "value"] < 0.6


def test_what_is_refused():
    specimen = zoo.linear_gaussian()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    reference = sample_posterior(target, **FAST)
    with pytest.raises(ValueError, match="5 data of 3 latent coordinates, the target 2 of 3"):
        compare(target.rows([0, 1]), reference)
    with pytest.raises(ValueError, match="no group 'posterior'"):
        compare(target, reference.filter(lambda node: node.name != "posterior"))
