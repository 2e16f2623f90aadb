"""Approximation and amortization gap: exact values, the order of bounds, and what is not to be believed."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
import zoo
from chance import z_score_limit
from gap_models import DIM, F64, bent_target, gaps_of, grid_evidence, linear, make, wavy_gaps

from pyrovae.diagnostics.gaps import bounds
from pyrovae.inference import gaussian_fit, laplace

LOWER = "a full Gaussian below a diagonal one"


def hadamard(precision: torch.Tensor) -> float:
    return float(0.5 * (precision.diagonal().log().sum() - precision.logdet()))


def diagonal_kl(precision: torch.Tensor, scale: float, shift: float) -> float:
    """What scaling and moving the best diagonal guide adds to its KL to the posterior."""
    moved = torch.full((DIM,), shift, dtype=F64)
    return DIM * ((scale**2 - 1) / 2 - math.log(scale)) + float(0.5 * moved @ precision @ moved)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.7, 0.0), (1.6, 0.0), (1.0, 0.2), (0.8, -0.3)])
def test_a_linear_decoder_has_exact_gaps(scale, shift):
    target, precision = linear(scale, shift)
    found = gaps_of(target)
    assert found.attrs["family"] == "diagonal"
    assert (found["verdict"] == "ok").all()
    assert np.allclose(found["approximation_gap"], hadamard(precision), atol=2e-3)
    assert np.allclose(found["predicted_approximation_gap"], hadamard(precision), atol=1e-9)
    assert np.allclose(found["amortization_gap"], diagonal_kl(precision, scale, shift), atol=2e-3)
    assert np.allclose(found["inference_gap"], found["approximation_gap"] + found["amortization_gap"])
    assert np.allclose(found["inference_gap"], hadamard(precision) + diagonal_kl(precision, scale, shift))


def test_gaps_of_a_linear_decoder_are_exact_up_to_the_end_of_the_climb():
    target, precision = linear(0.7, 0.1)
    found = gaps_of(target, tolerance=1e-9)
    assert np.allclose(found["approximation_gap"], hadamard(precision), atol=1e-8)
    assert np.allclose(found["amortization_gap"], diagonal_kl(precision, 0.7, 0.1), atol=1e-8)
    assert (found["amortization_gap_std_error"] < 1e-8).all()


@pytest.mark.parametrize("scale", [1.0, 0.6, 1.5])
def test_a_full_guide_is_held_against_the_posterior_itself(scale):
    found = gaps_of(make(zoo.linear_gaussian(guide_scale=scale)))
    assert found.attrs["family"] == "full"
    assert np.allclose(found["approximation_gap"], 0.0, atol=2e-3)
    assert np.allclose(found["predicted_approximation_gap"], 0.0)
    assert np.allclose(found["amortization_gap"], 3 * ((scale**2 - 1) / 2 - math.log(scale)), atol=2e-3)


def bent(num_fitting_samples: int = 256) -> xr.Dataset:
    """Gaps with a decoder that bends; log p(x) is known from a grid."""
    target = bent_target()
    options = {"num_samples": 400, "num_fitting_samples": num_fitting_samples}
    return gaps_of(target, evidence=grid_evidence(target), **options)


def test_bounds_come_out_in_order_where_the_posterior_is_not_gaussian():
    found = bent()
    is_ok = found["verdict"] == "ok"
    assert is_ok.sum() >= 12
    kept = found.isel(datum=is_ok.values)
    assert (kept["approximation_gap"] > -5 * kept["approximation_gap_std_error"]).all()
    assert (kept["amortization_gap"] > 0).all()
    assert (kept["elbo_full"] >= kept["elbo_diagonal"] - 0.05).all()


def optimism_is_seen() -> bool:
    """Eighteen draws for 44 parameters: what they claim must come out larger than what fresh draws give."""
    found = wavy_gaps(18)
    error = np.sqrt((found["shortfall_full_std_error"] ** 2).sum()) / 8
    return bool(found["shortfall_full"].mean() > z_score_limit() * error)


def test_elbos_are_measured_on_other_draws_than_they_were_fitted_to():
    assert optimism_is_seen()


@pytest.mark.slow
def test_more_draws_lift_the_best_gaussian_and_the_refusal():
    few, many = wavy_gaps(18), wavy_gaps(512)
    assert (few["verdict"] == "not optimized").all()
    assert (few["reason"].isin(["too few draws to fit the best Gaussian to", LOWER])).all()
    assert (many["verdict"] == "ok").mean() > 0.5
    assert (many["elbo_full"].mean() - few["elbo_full"].mean()) > 0.3


def test_mutant_that_measures_on_the_draws_it_fitted_to_is_caught(monkeypatch):
    kept = {}
    draw = gaussian_fit.standard_noise

    def remember(*args, **options):
        kept["noise"] = draw(*args, **options)
        return kept["noise"]

    def reuse(target, members, num_samples, seed):
        noise = kept["noise"][:, None].expand(-1, target.num_data, -1)
        drawn = {}
        for name, gaussian in members.items():
            z = laplace.unwhiten(gaussian, noise)
            log_w = target.log_joint(z) - laplace.log_prob(members["full"], z)
            drawn[name] = log_w - gaussian_fit.gaussian_kl(gaussian, members["full"])
        return drawn

    monkeypatch.setattr(bounds.gaussian_fit, "standard_noise", remember)
    monkeypatch.setattr(bounds, "_fresh", reuse)
    assert not optimism_is_seen()


def test_a_full_gaussian_that_was_not_begun_at_the_diagonal_one_and_not_climbed_is_seen(monkeypatch):
    fit = gaussian_fit.fit_gaussian

    def lazy(density_of, family, whitening, starts, noise, **options):
        made = fit(density_of, family, whitening, starts, noise, **options)
        wide = laplace.widen(made.gaussian, 2.0)
        return made._replace(gaussian=wide) if family is gaussian_fit.FULL else made

    monkeypatch.setattr(bounds.gaussian_fit, "fit_gaussian", lazy)
    found = gaps_of(linear()[0])
    assert (found["verdict"] == "not optimized").all()
    assert (found["reason"] == LOWER).all()


def test_a_climb_that_is_cut_short_is_called_not_optimized():
    target = bent_target()
    found = gaps_of(target, evidence=grid_evidence(target), max_steps=1, num_fitting_samples=256)
    assert (found["verdict"] == "not optimized").all()
    assert (found["reason"] == "the search for the best Gaussian did not converge").all()
