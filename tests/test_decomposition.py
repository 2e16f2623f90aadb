"""The terms of the ELBO against closed forms, and the sums that must hold."""

import math
from dataclasses import replace

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo

from pyrovae.diagnostics.decomposition import decompose
from pyrovae.diagnostics.evidence import log_evidence
from pyrovae.target import Target


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


def terms_of(target: Target, *rest, **options) -> dict[str, np.ndarray]:
    found = decompose(target, *rest, **options)["decomposition"]
    return {name: values.values for name, values in found.data_vars.items()}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def diagonal_guide(scale: float):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, torch.tensor([scale, 1.0], dtype=x.dtype)).to_event(1))

    return guide


@pytest.mark.parametrize("name", zoo.SHAPES)
def test_both_forms_sum_to_the_elbo(name):
    target = make(zoo.SHAPES[name]())
    evidence = log_evidence(target, "iwae", num_samples=100, seed=1)
    terms = terms_of(target, evidence, num_samples=50)
    assert np.allclose(terms["reconstruction"] - terms["kl_prior"], terms["elbo"])
    assert np.allclose(terms["log_evidence"] - terms["kl_posterior"], terms["elbo"])
    if target.can_score_guide:
        assert np.isclose(terms["mutual_information"] + terms["marginal_kl"], terms["mean_kl_prior"])


def test_terms_equal_their_closed_forms():
    x = torch.randn(4, 2, dtype=torch.float64)
    terms = terms_of(Target(model, diagonal_guide(0.5), x), num_samples=5000)
    loc, sd = x.numpy() / 2, np.array([0.5, 1.0])
    kl = 0.5 * (sd**2 + loc**2 - 1 - 2 * np.log(sd)).sum(1)
    reconstruction = -0.5 * ((x.numpy() - loc) ** 2 + sd**2 + math.log(2 * math.pi)).sum(1)
    entropy = (0.5 * math.log(2 * math.pi * math.e) + np.log(sd)).sum()
    for name, exact in (("kl_prior", kl), ("reconstruction", reconstruction), ("entropy", entropy)):
        z = (terms[name] - exact) / terms[f"{name}_std_error"]
        assert np.abs(z).max() < chance.z_score_limit(4), name
    per_latent = 0.5 * (sd**2 + loc**2 - 1 - 2 * np.log(sd)).mean(0)
    assert np.allclose(terms["kl_per_latent"], per_latent, atol=0.05)


def test_kl_to_the_posterior_of_a_wide_guide():
    specimen = zoo.linear_gaussian(guide_scale=1.3)
    target = make(specimen)
    terms = terms_of(target, log_evidence(target, "iwae", num_samples=5000, seed=1), num_samples=5000)
    exact = 3 / 2 * (1.69 - 1 - math.log(1.69))
    z = (terms["kl_posterior"] - exact) / terms["kl_posterior_std_error"]
    assert np.abs(z).max() < chance.z_score_limit(5)


def test_mutual_information_is_log_n_when_codes_are_apart():
    x = torch.arange(40, dtype=torch.float64)[:, None] * torch.tensor([100.0, -100.0], dtype=torch.float64)
    terms = terms_of(Target(model, diagonal_guide(0.5), x))
    assert np.isclose(terms["mutual_information"], math.log(40))
    assert terms["mutual_information_std_error"] < 1e-9


def test_mutual_information_is_zero_under_collapse():
    def collapsed(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    terms = terms_of(Target(model, collapsed, torch.randn(50, 2, dtype=torch.float64)))
    assert abs(terms["mutual_information"]) < 1e-9
    assert abs(terms["marginal_kl"]) < 1e-9
    assert not terms["is_active"].any()


def test_mutual_information_by_quadrature():
    """Two data, one active coordinate: I by numerical integration of the mixture of two normals."""
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).repeat(500, 1)
    terms = terms_of(Target(model, diagonal_guide(0.5), x))
    grid = np.linspace(-6, 6, 20001)
    parts = [np.exp(-0.5 * ((grid - m) / 0.5) ** 2) / 0.5 / math.sqrt(2 * math.pi) for m in (-0.5, 0.5)]
    mixture = sum(parts) / 2
    exact = np.trapezoid(parts[0] * np.log(np.where(parts[0] > 0, parts[0] / mixture, 1)), grid)
    z = (terms["mutual_information"] - exact) / terms["mutual_information_std_error"]
    assert abs(z) < chance.z_score_limit()
    assert terms["is_active"].tolist() == [True, False]


def test_noise_alone_does_not_make_a_unit_active():
    """Means over 20 draws of a unit-variance guide scatter by 1/20, more than the threshold."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * torch.tensor([1.0, 0.0], dtype=x.dtype), 1.0).to_event(1))

    x = torch.randn(2000, 2, dtype=torch.float64)
    assert terms_of(Target(model, guide, x), num_samples=20)["is_active"].tolist() == [True, False]


@pytest.mark.parametrize("scale", [0.05, 1.0, 300.0])
def test_what_is_active_does_not_hang_on_the_units_of_z(scale):
    def scaled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), scale).to_event(1))
            pyro.sample(
                "x", dist.Normal(z * torch.tensor([1.0, 0.0], dtype=x.dtype), scale).to_event(1), obs=x
            )

    def posterior(x):
        with pyro.plate("data", len(x)):
            loc, sd = (
                x * torch.tensor([0.5, 0.0], dtype=x.dtype),
                torch.tensor([0.5**0.5, 1.0], dtype=x.dtype),
            )
            pyro.sample("z", dist.Normal(loc, scale * sd).to_event(1))

    x = scale * torch.randn(400, 2, dtype=torch.float64) * torch.tensor([2**0.5, 1.0])
    terms = terms_of(Target(scaled, posterior, x))
    assert terms["is_active"].tolist() == [True, False]
    assert terms["mean_variance"][0] == pytest.approx(0.5, abs=0.2)


def test_one_datum_has_no_spread_and_so_no_active_units():
    terms = decompose(Target(model, diagonal_guide(0.5), torch.ones(1, 2)), num_aggregate=2)["decomposition"]
    assert not {"mean_variance", "is_active"} & set(terms.data_vars)
    assert "kl_per_latent" in terms


def test_evidence_without_an_error_bar_gives_the_kl_none():
    target = make(zoo.linear_gaussian())
    evidence = log_evidence(target, "iwae", num_samples=50)
    doubtful = replace(evidence, is_reliable=np.arange(5) > 1)
    found = decompose(target, doubtful, num_samples=50)["decomposition"]
    assert np.isnan(found["kl_posterior_std_error"]).values.tolist() == [True, True, False, False, False]
    sides = {name: found[name].attrs["direction"] for name in found.data_vars}
    assert {sides.pop(name) for name in ("log_evidence", "kl_posterior")} == {"lower"}
    assert (sides.pop("mean_variance"), sides.pop("kl_per_latent")) == ("upper", "none")
    assert set(sides.values()) == {"exact"}


def test_blocks_change_nothing_but_the_noise(monkeypatch):
    from pyrovae.diagnostics import decomposition

    target = make(zoo.linear_gaussian(num_data=30, guide_scale=1.2))
    whole = terms_of(target, num_samples=400)
    monkeypatch.setattr(decomposition, "MAX_ROWS", 1000)
    parts = terms_of(target, num_samples=400)
    z = (whole["elbo"] - parts["elbo"]) / np.hypot(whole["elbo_std_error"], parts["elbo_std_error"])
    assert np.abs(z).max() < chance.z_score_limit(30)
    assert np.isclose(whole["mutual_information"], parts["mutual_information"])


def test_what_is_refused():
    target = make(zoo.linear_gaussian())
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        decompose(target, num_samples=1)
    with pytest.raises(ValueError, match="num_aggregate must be at least 2"):
        decompose(target, num_aggregate=1)
    with pytest.raises(ValueError, match="evidence is of 2 data and the target of 5"):
        decompose(target, log_evidence(target.rows([0, 1]), "elbo"))
