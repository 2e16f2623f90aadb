"""Upper bounds from reference draws: exact answers, error bars, and what a reference refuses."""

import chance
import numpy as np
import pytest
import torch
import zoo

from pyrovae.diagnostics.evidence import POSTERIOR_ESTIMATORS, log_evidence
from pyrovae.diagnostics.gaussians import gaussian_posterior
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.inference.laplace import unwhiten
from pyrovae.seeding import seeded
from pyrovae.target import Target

FAST = {"num_chains": 4, "num_samples": 200, "warmup_steps": 50}


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


def exact_draws(target: Target, num_samples: int, seed: int = 0) -> torch.Tensor:
    posterior = gaussian_posterior(target).gaussian
    with seeded(seed):
        return unwhiten(posterior, torch.randn(num_samples, *posterior.loc.shape, dtype=target.dtype))


@pytest.mark.parametrize("method", POSTERIOR_ESTIMATORS)
@pytest.mark.parametrize("name", ["linear_gaussian", "gamma_poisson", "dirichlet_multinomial"])
def test_a_perfect_guide_gives_log_p_whatever_the_draws(name, method):
    specimen = zoo.EXACT[name]()
    target = make(specimen)
    e = log_evidence(target, method, reference=sample_posterior(target, **FAST, min_ess=1.0, max_rhat=2.0))
    assert np.abs(e.value - specimen.log_evidence.numpy()).max() < 1e-9
    assert (e.std_error < 1e-9).all()
    assert e.is_approximate.all()
    assert "as far as the reference draws are" in e.reason


def test_eubo_is_log_p_plus_the_forward_divergence():
    """KL(p || q) = D/2 (r - 1 - log r) with r = 1 / s^2 for a guide s times as wide."""
    specimen = zoo.linear_gaussian(guide_scale=0.8)
    target = make(specimen)
    e = log_evidence(target, "eubo", reference=exact_draws(target, 4000))
    r = 0.8**-2
    z = (e.value - specimen.log_evidence.numpy() - 1.5 * (r - 1 - np.log(r))) / e.std_error
    assert np.abs(z).max() < chance.z_score_limit(5)
    assert not e.is_approximate.any()
    assert (e.direction, e.num_density_evaluations) == ("upper", 4000)


def test_the_reciprocal_closes_from_above_where_importance_sampling_fails():
    specimen = zoo.linear_gaussian(guide_scale=0.5)
    target = make(specimen)
    few, many = (log_evidence(target, "reciprocal", reference=exact_draws(target, k)) for k in (10, 10_000))
    truth = specimen.log_evidence.numpy()
    assert (np.abs(many.value - truth) < chance.z_score_limit(5) * many.std_error).all()
    assert many.is_reliable.all()
    assert (few.value - truth).mean() > (many.value - truth).mean()


def test_a_guide_that_is_too_wide_makes_its_error_bar_unreliable():
    """1/w has no variance under a guide more than sqrt(2) times as wide as the posterior."""
    target = make(zoo.linear_gaussian(guide_scale=4.0, num_data=50))
    e = log_evidence(target, "reciprocal", reference=exact_draws(target, 1000))
    assert e.is_reliable.mean() < 0.3
    assert "k-hat of 1/w" in e.reason


@pytest.mark.parametrize("method", [*POSTERIOR_ESTIMATORS, "ais-reverse"])
def test_a_reference_that_did_not_converge_refuses_its_data(method):
    specimen = zoo.linear_gaussian(guide_scale=0.8)
    target = make(specimen)
    reference = sample_posterior(target, **FAST)
    verdict = np.array(["ok", "no verdict", "ok", "ok", "no verdict"])
    reference["diagnostics"].dataset = (
        reference["diagnostics"].to_dataset().assign(verdict=("datum", verdict))
    )
    options = {"num_temperatures": 5} if method == "ais-reverse" else {}
    e = log_evidence(target, method, reference=reference, **options)
    refused = verdict != "ok"
    assert np.array_equal(np.isnan(e.value), refused)
    assert not e.is_reliable[refused].any()
    assert e.is_approximate.all()
    assert "refused for 2 data whose reference has no verdict" in e.reason


def test_a_tree_without_verdicts_refuses_all():
    target = make(zoo.linear_gaussian())
    reference = sample_posterior(target, **FAST)
    del reference["diagnostics"]
    assert np.isnan(log_evidence(target, "eubo", reference=reference).value).all()


def test_exact_references_are_not_approximate_and_others_cost_their_gradients():
    target = make(zoo.linear_gaussian(guide_scale=0.8))
    exact = log_evidence(target, "eubo", reference=sample_posterior(target, "exact"))
    sampled = log_evidence(target, "eubo", reference=sample_posterior(target, **FAST))
    assert not exact.is_approximate.any()
    assert exact.num_gradient_evaluations == 0
    assert sampled.num_gradient_evaluations > 4 * 250
    assert np.allclose(exact.value, sampled.value, atol=0.5)


@pytest.mark.parametrize("method", [*POSTERIOR_ESTIMATORS, "ais-reverse"])
def test_what_is_refused(method):
    target = make(zoo.linear_gaussian())
    with pytest.raises(ValueError, match="pass reference=sample_posterior"):
        log_evidence(target, method)
    with pytest.raises(ValueError, match=r"\(4, 3\), but the target has \(5, 3\)"):
        log_evidence(target, method, reference=torch.zeros(10, 4, 3))
    with pytest.raises(ValueError, match="no group 'posterior'"):
        log_evidence(target, method, reference=sample_posterior(target, **FAST)["diagnostics"])


def test_a_guide_that_cannot_score_is_refused():
    target = make(zoo.other_family("planar"))
    with pytest.raises(NotImplementedError, match="score a given z"):
        log_evidence(target, "eubo", reference=torch.zeros(10, 4, 3))
