"""What the gaps are told: the guide's family, log p(x), numbers out of range; and the verdict they come to."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from gap_models import F64, bent_target, gaps_of, grid_evidence, linear, make

from pyrovae.diagnostics.evidence import log_evidence
from pyrovae.diagnostics.evidence_table import evidence_table
from pyrovae.diagnostics.gaps import measure, truth
from pyrovae.diagnostics.gaps.guide import read_guide
from pyrovae.diagnostics.gaps.verdict import Facts, judge
from pyrovae.inference import laplace
from pyrovae.inference.gaussian_fit import hadamard_gap
from pyrovae.target import Target


def lognormal_guide() -> Target:
    base = zoo.gamma_poisson()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(torch.log((3.0 + x) / 3.0), 0.4))

    return Target(base.model, guide, *base.data)


def chained_guide() -> Target:
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 3, 0.8))
            pyro.sample("b", dist.Normal(x / 2 + a / 2, 0.7))

    return Target(model, guide, torch.linspace(-1, 1, 4, dtype=F64))


@pytest.mark.parametrize(
    ("target", "family", "is_gaussian"),
    [
        (lambda: linear()[0], "diagonal", True),
        (lambda: make(zoo.nested()), "diagonal", True),
        (lognormal_guide, "diagonal", True),
        (lambda: make(zoo.linear_gaussian()), "full", True),
        (lambda: make(zoo.linear_gaussian(dtype=torch.float32)), "full", True),
        (lambda: make(zoo.other_family("low-rank")), "other", True),
        (chained_guide, "other", True),
        (lambda: make(zoo.other_family("mixture")), "other", False),
        (lambda: make(zoo.other_family("autoregressive")), "other", False),
        (lambda: make(zoo.other_family("planar")), "other", False),
        (lambda: make(zoo.gamma_poisson()), "other", False),
    ],
)
def test_the_family_of_a_guide_is_read_from_its_distributions(target, family, is_gaussian):
    made = target()
    guide = read_guide(made)
    assert guide.family == family
    assert (guide.reason == "") == (family != "other")
    assert (guide.gaussian is not None) == is_gaussian
    if is_gaussian:
        draws = made.sample_guide(5)
        tolerance = 1e-3 if made.dtype == torch.float32 else 1e-9
        assert torch.allclose(laplace.log_prob(guide.gaussian, draws.z), draws.log_q, atol=tolerance)


def lone_guide(scale: float, far: float) -> Target:
    """The posterior of z ~ N(0, 1), x ~ N(z, scale), a narrow Gaussian far from 0, in single precision."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, sd = x / (1 + scale**2), scale / (1 + scale**2) ** 0.5
            pyro.sample("z", dist.Normal(loc, sd).to_event(1))

    return Target(model, guide, far + torch.randn(3, 2))


@pytest.mark.parametrize(("scale", "far"), [(1e-3, 3.0), (1e-4, 30.0)])
def test_a_narrow_normal_in_single_precision_is_a_normal_all_the_same(scale, far):
    torch.manual_seed(0)
    target = lone_guide(scale, far)
    for seed in range(5):
        guide = read_guide(target, seed=seed)
        assert (guide.family, guide.reason) == ("diagonal", "")
        assert torch.allclose(
            guide.gaussian.scale_tril.diagonal(dim1=-2, dim2=-1), torch.tensor(scale), rtol=1e-4
        )


def test_a_scale_that_follows_another_site_is_no_diagonal_family():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 3, 0.8))
            pyro.sample("b", dist.Normal(x / 3, 0.5 + a.sigmoid()))

    found = read_guide(Target(model, guide, torch.linspace(-1, 1, 4, dtype=F64)))
    assert (found.family, found.gaussian) == ("other", None)
    assert found.reason == "the guide's sites depend on each other's values"


@pytest.mark.parametrize("kind", ["low-rank", "autoregressive", "planar"])
def test_another_family_has_its_whole_gap_and_the_best_full_gaussian_but_no_split(kind):
    specimen = zoo.other_family(kind)
    found = gaps_of(make(specimen), num_samples=400)
    assert found.attrs["family"] == "other"
    assert (found["verdict"] == "no verdict").all()
    assert (found["reason"] == found.attrs["family_reason"]).all()
    for name in ("approximation_gap", "amortization_gap", "predicted_approximation_gap"):
        assert np.isnan(found[name]).all()
    assert np.allclose(found["elbo_full"], specimen.log_evidence, atol=2e-3)  # the posterior is Gaussian
    assert (found["inference_gap"] > 0).all()


def test_a_family_that_is_given_is_taken():
    specimen = zoo.linear_gaussian()
    found = gaps_of(make(specimen), "diagonal")
    # The full guide is the posterior: it beats the best diagonal Gaussian, of which family it is none.
    loss = hadamard_gap(torch.linalg.inv(specimen.posterior_cov))
    assert np.allclose(found["amortization_gap"], -loss, atol=2e-3)
    assert (found["verdict"] == "no verdict").all()
    assert (found["reason"] == "the guide is above the best of the family, of which it is no member").all()
    wider = gaps_of(linear(0.7)[0], "full")
    assert (wider["verdict"] == "ok").all()


def facts(**changes) -> Facts:
    """One datum with everything in order."""
    pairs = {
        "log_evidence": (-10.0, 0.01),
        "elbo_full": (-10.2, 0.01),
        "above_diagonal": (0.1, 0.01),
        "above_guide": (0.3, 0.01),
        "shortfall": (0.0, 0.01),
    } | changes
    made = {name: tuple(np.array([v]) for v in pair) for name, pair in pairs.items() if type(pair) is tuple}
    converged = np.array([pairs.get("converged", True)])
    return Facts(
        **made,
        is_member=pairs.get("is_member", True),
        has_converged=converged,
        sandwich=np.array([pairs.get("said", "closed")]),
    )


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "ok", ""),
        ({"above_diagonal": (-0.07, 0.01)}, "ok", ""),  # within the tolerance and 3 standard errors
        ({"above_diagonal": (-0.09, 0.01)}, "not optimized", "full Gaussian below"),
        ({"above_guide": (-0.09, 0.01)}, "not optimized", "below the guide"),
        ({"above_guide": (-0.09, 0.01), "is_member": False}, "no verdict", "no member"),
        ({"is_member": False}, "ok", ""),
        ({"shortfall": (0.09, 0.01)}, "not optimized", "too few draws"),
        ({"shortfall": (0.0, 0.06)}, "not optimized", "too few draws"),
        ({"converged": False}, "not optimized", "did not converge"),
        ({"elbo_full": (-9.95, 0.01)}, "no verdict", "below the ELBO"),
        ({"elbo_full": (-9.97, 0.01)}, "ok", ""),
        ({"log_evidence": (np.nan, np.nan), "said": "did not close"}, "no verdict", "sandwich did not close"),
        ({"log_evidence": (np.nan, np.nan), "said": "no verdict"}, "no verdict", "sandwich has no verdict"),
        ({"log_evidence": (np.nan, np.nan), "said": ""}, "no verdict", "log p(x) is not known"),
    ],
)
def test_the_verdict_on_a_datum(changes, verdict, reason):
    found, why = judge(facts(**changes), "", 0.05)
    assert found.tolist() == [verdict]
    assert reason in why[0]
    assert (why[0] == "") == (verdict == "ok")


def test_evidence_that_is_given_is_taken_and_not_measured_again():
    target = bent_target(4)
    own, other = (gaps_of(target, evidence=grid_evidence(target, by)) for by in (0.0, 1.0))
    assert np.allclose(other["approximation_gap"] - own["approximation_gap"], 1.0)
    assert np.array_equal(own["amortization_gap"], other["amortization_gap"])
    with pytest.raises(ValueError, match="evidence is of 4 data, but the target has 2"):
        gaps_of(target.rows([0, 1]), evidence=grid_evidence(target))
    with pytest.raises(ValueError, match="with group 'sandwich'"):
        gaps_of(target, evidence=evidence_table(target, ["elbo"]))


@pytest.mark.parametrize(
    ("target", "most_grid", "method"),
    [
        (lambda: linear()[0], 0, "exact"),
        (lambda: bent_target(3), 2, "quadrature"),
        (lambda: bent_target(3), 0, "bidirectional"),
    ],
)
def test_log_evidence_comes_from_the_best_source_there_is(monkeypatch, target, most_grid, method):
    asked = []

    def note(target, methods, **options):
        if methods == ["exact"] and method != "exact":
            raise ValueError("log p(x, z) is not quadratic")
        asked.extend(methods)
        return grid_evidence(bent_target(target.num_data))

    monkeypatch.setattr(truth, "evidence_table", note)
    monkeypatch.setattr(truth, "MOST_GRID", most_grid)
    gaps_of(target())
    assert asked == [method]


def kinked_target() -> Target:
    """Cauchy noise on a product of latents: ridges that a grid resolves to a hundredth of a nat at best."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = torch.stack([3 * z[..., 0] * z[..., 1], z.sum(-1)], -1)
            pyro.sample("x", dist.StudentT(1.0, mean, 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 0.8).to_event(1))

    return Target(model, guide, torch.tensor([[2.3, -0.4], [0.6, 0.9]], dtype=F64))


def test_a_grid_that_misses_its_tolerance_may_be_good_enough_and_keeps_its_error():
    target = kinked_target()
    fine, coarse = (
        log_evidence(target, "quadrature", tolerance=1e-5, **o) for o in ({}, {"max_error": 0.05})
    )
    assert not fine.is_reliable.any()
    assert coarse.is_reliable.all()
    assert (coarse.reason == "") != (fine.reason == "")
    assert np.array_equal(coarse.value, fine.value)
    assert np.array_equal(coarse.std_error, fine.std_error)
    assert (coarse.std_error > 1e-5).all()


def test_where_the_grid_is_too_coarse_annealing_stands_in(monkeypatch):
    asked = []

    def note(target, methods, **options):
        asked.append((tuple(methods), options.get("options")))
        if methods == ["exact"]:
            raise ValueError("log p(x, z) is not quadratic")
        tree = grid_evidence(target)
        if len(methods) == 1:
            tree["sandwich"]["truth"][0] = np.nan
        return tree

    monkeypatch.setattr(truth, "evidence_table", note)
    found = gaps_of(bent_target(3), tolerance=0.04)
    good = {"quadrature": {"max_error": 0.04}}
    assert asked == [(("exact",), None), (("quadrature",), good), (("quadrature", "bidirectional"), good)]
    assert np.isfinite(found["log_evidence"]).all()


@pytest.mark.slow
def test_annealing_in_both_directions_closes_and_gives_the_same_gaps(monkeypatch):
    target = bent_target(2)
    monkeypatch.setattr(truth, "MOST_GRID", 0)
    annealed, known = gaps_of(target, num_temperatures=20), gaps_of(target, evidence=grid_evidence(target))
    kept = np.isfinite(annealed["log_evidence"]).values
    assert kept.any()
    error = annealed["inference_gap_std_error"].values[kept]
    assert (abs(annealed["log_evidence"] - known["log_evidence"]).values[kept] < 5 * error + 1e-3).all()


def test_same_seed_same_numbers_and_blocks_only_change_the_noise(monkeypatch):
    target = bent_target(6)
    given = grid_evidence(target)
    one, two = (gaps_of(target, evidence=given, num_fitting_samples=128) for _ in range(2))
    assert one["elbo_full"].equals(two["elbo_full"])
    monkeypatch.setattr(measure, "MAX_ROWS", 256)  # two data a block
    blocks = gaps_of(target, evidence=given, num_fitting_samples=128)
    error = np.hypot(one["elbo_full_std_error"], blocks["elbo_full_std_error"])
    assert (abs(one["elbo_full"] - blocks["elbo_full"]) < 5 * error + 0.05).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "flow"}, "family must be one of diagonal, full"),
        ({"num_samples": 1}, "at least 2"),
        ({"num_fitting_samples": 7}, "even in number"),
        ({"tolerance": 0.0}, "above 0"),
        ({"max_steps": 0}, "max_steps at least 1"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gaps_of(linear()[0], **options)
