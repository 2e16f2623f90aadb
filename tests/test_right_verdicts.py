"""The whole audit, from data to the page, on guides whose error is known: each gets the verdict that it deserves."""

from functools import partial

import chance
import numpy as np
import pytest
from gap_models import linear
from guides import gaussian_target, mean_field

import pyrovae as pv
from pyrovae.results.advice import advice
from pyrovae.results.headline import headline
from pyrovae.results.record import audit_record

REFERENCE = {"num_chains": 8, "num_samples": 300, "warmup_steps": 150}
SETTINGS = {
    "num_samples": 400,
    "reference": REFERENCE,
    "sandwich": {"num_temperatures": 30},
    "calibration": {"num_simulations": 2000},
}
GUIDES = {
    "exact": gaussian_target,
    "narrow": partial(gaussian_target, lambda tril: 0.7 * tril),
    "biased": partial(gaussian_target, shift=0.3),
    "mean-field": partial(gaussian_target, mean_field),
}


@pytest.fixture(scope="module", params=GUIDES)
def audited(request, tmp_path_factory):
    target, _ = GUIDES[request.param](num_data=24)
    tree = pv.audit(target.model, target.guide, *target.data, **SETTINGS)
    path = tmp_path_factory.mktemp("page") / "report.html"
    pv.write_report(tree, path)
    return request.param, tree, path.read_text()


def test_the_headline(audited):
    name, tree, page = audited
    said = headline(tree)
    assert ("too narrow" in said) == (name == "narrow"), said
    assert ("off by" in said) == (name == "biased"), said
    assert ("wrong in the correlations" in said) == (name == "mean-field"), said
    assert ("No error in the widths, correlations or means of the guide was found" in said) == (
        name == "exact"
    ), said
    assert ("no gap between the ELBO and log p(x) was found" in said) == (name == "exact"), said
    assert said.partition("(")[0].strip() in page


def test_calibration_sees_the_same(audited):
    name, tree, _ = audited
    rows = {key: row["value"] for key, row in audit_record(tree)["rows"].items()}
    confident = rows["calibration.latents_where_the_guide_is_over_confident"]
    biased = rows["calibration.latents_where_the_guide_is_biased"]
    assert (biased > 0) == (name == "biased")
    assert (confident > 0) == (
        name in ("narrow", "biased")
    )  # what is off is told with too small a spread, too
    assert (rows["simulated_gap"] > 0.01) == (name != "exact")


def test_the_cause_and_the_advice(audited):
    name, tree, _ = audited
    gaps = tree["gaps"].to_dataset()
    approximation, amortization = (
        float(gaps[f"{part}_gap"].mean()) for part in ("approximation", "amortization")
    )
    assert approximation == pytest.approx(0, abs=0.02)  # a full covariance can be the posterior
    assert (amortization > 0.05) == (name != "exact")
    assert ("no change is indicated" in " ".join(advice(tree)).lower()) == (name == "exact"), advice(tree)


def test_a_mean_field_guide_at_its_optimum_loses_to_its_family_alone(tmp_path):
    target, precision = linear()
    exact = float(0.5 * (precision.diagonal().log().sum() - precision.logdet()))  # Hadamard
    tree = pv.audit(target.model, target.guide, *target.data, stages=("terms", "gaps"), num_samples=400)
    gaps, terms = tree["gaps"], tree["decomposition"]
    assert (gaps.attrs["family"], set(gaps["verdict"].values)) == ("diagonal", {"ok"})
    assert exact > 0.2
    assert np.allclose(gaps["approximation_gap"], exact, atol=2e-3)
    assert np.allclose(gaps["predicted_approximation_gap"], exact, atol=1e-6)
    assert np.allclose(gaps["amortization_gap"], 0, atol=2e-3)
    z = (terms["kl_posterior"] - exact) / terms["kl_posterior_std_error"]
    assert float(abs(z).max()) < chance.z_score_limit(gaps.sizes["datum"])
    assert (
        f"The ELBO lies {exact:.6f} ± 0.000000 nats per datum below log p(x): mostly its family"
        in headline(tree)
    )
    assert any("full-covariance" in said for said in advice(tree)), advice(tree)
    pv.write_report(tree, tmp_path / "report.html")
    assert "diagonal Gaussian family" in (tmp_path / "report.html").read_text()
