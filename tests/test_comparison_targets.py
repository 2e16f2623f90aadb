"""Each way in which a guide can be wrong is found by the number that is about it, and an exact guide by none."""

import chance
import numpy as np
import pytest
import torch
import zoo
from guides import gaussian_target, mean_field
from torch.distributions import MultivariateNormal, kl_divergence

import pyrovae as pv
from pyrovae.diagnostics import two_sample
from pyrovae.diagnostics.comparison import compare
from pyrovae.diagnostics.comparison.directions import whiten
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.diagnostics.two_sample import classifier_test
from pyrovae.target import Target

SEED = 0
LIMIT = chance.z_score_limit(60)


def compared(change=lambda tril: tril, shift=0.0):
    target, specimen = gaussian_target(change, shift=shift)
    reference = sample_posterior(target, "exact", num_chains=8, num_samples=250, seed=SEED)
    evidence = pv.log_evidence(target, "exact")
    found = compare(target, reference, evidence=evidence, seed=SEED + 1)["comparison"].to_dataset()
    return found, specimen, target


def z_scores(found, name: str, expected: float) -> np.ndarray:
    return ((found[name] - expected) / found[f"{name}_std_error"]).values


def auc_is_chance(found) -> bool:
    return bool(abs(z_scores(found, "classifier_auc", 0.5)) < LIMIT)


def correlations_are_right(found) -> bool:
    square = found["correlation_error"] ** 2 - found["correlation_error_noise"] ** 2
    return chance.means_agree(torch.tensor(square.values)[:, None], 0.0)


def test_an_exact_guide_is_found_exact():
    found, _, _ = compared()
    for name in ("kl_guide_posterior", "kl_posterior_guide", "jeffreys"):
        assert np.abs(found[name]).max() < 1e-9
    assert found.attrs["reason"] == ""
    assert auc_is_chance(found)
    assert correlations_are_right(found)
    for name, expected in (("mean_error", 0.0), ("sd_ratio", 1.0)):
        assert (np.abs(z_scores(found, name, expected)) < LIMIT).all()


@pytest.mark.parametrize(
    ("change", "shift", "seen"),
    [
        (lambda tril: tril, 0.2, "mean_error"),
        (lambda tril: 0.8 * tril, 0.0, "sd_ratio"),
        (mean_field, 0.0, "correlation_error"),
    ],
    ids=["biased", "narrow", "blind to correlations"],
)
def test_a_wrong_guide_is_found_by_the_right_number(change, shift, seen):
    found, specimen, _ = compared(change, shift)
    is_off = {
        "mean_error": (np.abs(z_scores(found, "mean_error", 0.0)) > LIMIT).any(),
        "sd_ratio": (np.abs(z_scores(found, "sd_ratio", 1.0)) > LIMIT).any(),
        "correlation_error": not correlations_are_right(found),
    }
    assert {name for name, off in is_off.items() if off} == {seen}
    assert not auc_is_chance(found)
    assert float(found["classifier_p_value"]) < 1e-6
    post = MultivariateNormal(specimen.posterior_mean[0], specimen.posterior_cov[0])
    guide = MultivariateNormal(
        post.mean + shift, scale_tril=change(torch.linalg.cholesky(specimen.posterior_cov[0]))
    )
    forward, backward = float(kl_divergence(guide, post)), float(kl_divergence(post, guide))
    exact = {"kl_guide_posterior": forward, "kl_posterior_guide": backward, "jeffreys": forward + backward}
    for name, expected in exact.items():
        assert (np.abs(z_scores(found, name, expected)) < LIMIT).all()
        assert (np.abs(z_scores(found, name, 0.0)) > 3).all()
    if seen == "correlation_error":
        ratio = torch.linalg.eigvals(guide.covariance_matrix @ torch.linalg.inv(post.covariance_matrix)).real
        assert float(found["narrowest_sd_ratio"].mean()) < 0.9
        assert (np.abs(z_scores(found, "narrowest_sd_ratio", float(ratio.min() ** 0.5))) < LIMIT).all()


def test_without_log_p_or_scores_the_reason_is_told():
    target, _ = gaussian_target(num_data=3)
    reference = sample_posterior(target, "exact", num_samples=50)
    found = compare(target, reference, num_samples=100)["comparison"].to_dataset()
    assert found.attrs["reason"] == "no log p(x) was given"
    assert np.isnan(found["kl_guide_posterior"]).all()
    assert np.isfinite(found["jeffreys"]).all()
    planar = zoo.other_family("planar")
    target = Target(planar.model, planar.guide, *planar.data)
    evidence = pv.log_evidence(target, "exact")
    made = compare(
        target, sample_posterior(target, "exact", num_samples=50), evidence=evidence, num_samples=500
    )
    found = made["comparison"].to_dataset()
    assert found.attrs["reason"] == "the guide cannot score the reference draws"
    assert (found["kl_guide_posterior"] > 0).all()
    assert np.isnan(found["kl_posterior_guide"]).all()


def test_log_p_comes_from_a_sandwich_too():
    target, _ = gaussian_target(lambda tril: 1.3 * tril, num_data=3)
    table = pv.evidence_table(target, ["elbo", "exact"])
    reference = sample_posterior(target, "exact", num_samples=100)
    found = compare(target, reference, evidence=table)["comparison"]
    same = compare(target, reference, evidence=pv.log_evidence(target, "exact"))["comparison"]
    np.testing.assert_allclose(found["kl_guide_posterior"], same["kl_guide_posterior"], rtol=1e-9)
    with pytest.raises(ValueError, match="evidence needs the group 'sandwich'"):
        compare(target, reference, evidence=reference)
    with pytest.raises(ValueError, match="of 3 data and the target of 2"):
        compare(target.rows([0, 1]), reference.isel(datum=slice(2)), evidence=table)


def classifier_z(seed: int, shift: float) -> float:
    first, second = np.random.default_rng([SEED, seed]).normal(size=(2, 100, 2))
    test = classifier_test(first, second + shift, np.arange(100), np.arange(100), seed=seed)
    return (test.auc - 0.5) / test.std_error


@pytest.mark.slow
def test_the_classifier_has_a_right_error_bar():
    """Planted: one set a third of an sd off."""
    z = torch.tensor([classifier_z(seed, 0.0) for seed in range(120)])
    assert chance.means_agree(z[:, None], 0.0)
    assert 0.7 < float(z.std()) < 1.3
    shifted = torch.tensor([classifier_z(seed, 0.33) for seed in range(40)])
    assert not chance.means_agree(shifted[:, None], 0.0)


def test_groups_stay_in_one_fold():
    groups = np.repeat(np.arange(40), 7)
    fold = two_sample._folds(groups, 5, 0)
    assert all(len(set(fold[groups == group])) == 1 for group in range(40))
    assert set(np.bincount(fold)) == {56}
    nothing = classifier_test(np.zeros((3, 2)), np.zeros((90, 2)), np.arange(3), np.arange(90))
    assert np.isnan(nothing).all()


def test_standardizing_by_the_draws_under_test_would_condemn_a_perfect_guide():
    """Why the moments come from other chains: with few draws a datum the reference looks too regular."""
    rng = np.random.default_rng(SEED)
    guide, reference = rng.normal(size=(2, 4, 10, 150, 6))
    points = [whiten(z, reference).reshape(-1, 6) for z in (guide, reference)]
    numbers = np.arange(len(points[0]))
    planted = classifier_test(*points, numbers, numbers)
    assert (planted.auc - 0.5) / planted.std_error < -LIMIT or planted.p_value < 1e-6
    by, tested = reference[:2], reference[2:]
    kept = [whiten(z, by).reshape(-1, 6) for z in (guide[:2], tested)]
    test = classifier_test(*kept, numbers[: len(kept[0])], numbers[: len(kept[0])])
    assert abs(test.auc - 0.5) < LIMIT * test.std_error
