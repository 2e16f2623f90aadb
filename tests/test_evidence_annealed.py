"""Annealing on Pyro models: unbiased for p(x), between bounds, from every start, for every kind of latent."""

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from scipy import stats

from pyrovae.diagnostics.evidence import from_both_ends, log_evidence
from pyrovae.diagnostics.evidence.annealed import Annealing
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.seeding import seeded
from pyrovae.target import Target

STARTS = ["laplace", "guide", "prior"]


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


def repeated(name: str, datum: int, count: int) -> tuple[Target, float]:
    """A target of one datum, many times over, and its log p(x)."""
    specimen = zoo.SHAPES[name]()
    return make(specimen).rows([datum] * count), float(specimen.log_evidence[datum])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "name", ["gamma_poisson", "dirichlet_multinomial", "tanh decoder", "dependent support"]
)
def test_annealing_forward_is_unbiased_for_p(name, start):
    target, truth = repeated(name, 1, 1250)
    e = log_evidence(target, "ais", num_temperatures=4, num_chains=16, start=start)
    assert e.is_unbiased_density
    assert chance.means_agree(torch.as_tensor(e.value - truth).exp(), 1.0)
    # Planted: a normalizer of the start that is off by half a nat.
    assert not chance.means_agree(torch.as_tensor(e.value - truth + 0.5).exp(), 1.0)


@pytest.mark.parametrize("schedule", ["adapted", "sigmoid", "geometric", "linear"])
@pytest.mark.parametrize("start", STARTS)
def test_the_sandwich_closes_on_the_truth(start, schedule):
    specimen = zoo.tanh_decoder()
    unimodal = [1, 2, 3]
    target = make(specimen).rows(unimodal)
    reference = sample_posterior(
        target, num_chains=8, num_samples=400, warmup_steps=100, min_ess=100.0, max_rhat=1.05
    )
    assert (reference["diagnostics"]["verdict"].values == "ok").all()
    options = Annealing(num_temperatures=60, num_chains=32, start=start, schedule=schedule)
    lower, upper = from_both_ends(target, reference, options)
    truth, limit = specimen.log_evidence[unimodal].numpy(), chance.z_score_limit(24)
    assert (lower.value - truth < limit * lower.std_error).all()
    assert (upper.value - truth > -limit * upper.std_error).all()
    if start != "prior" or schedule in ("adapted", "sigmoid"):  # the others take their first step too far
        noise = limit * np.hypot(lower.std_error, upper.std_error)
        assert (upper.value - lower.value < 0.3 + noise).all()
    assert (lower.direction, upper.direction) == ("lower", "upper")
    assert upper.is_approximate.all()
    assert not lower.is_approximate.any()


@pytest.mark.parametrize("name", ["gamma_poisson", "dirichlet_multinomial"])
def test_positive_and_simplex_latents_close_too(name):
    specimen = zoo.EXACT[name]()
    target = make(specimen)
    with seeded(0):
        exact = target.sample_guide(64).z  # the guide is the posterior
    lower, upper = from_both_ends(target, exact, Annealing(num_temperatures=40, num_chains=64))
    truth, limit = specimen.log_evidence.numpy(), chance.z_score_limit(28)
    assert (np.abs(lower.value - truth) < limit * lower.std_error + 0.01).all()
    assert (np.abs(upper.value - truth) < limit * upper.std_error + 0.01).all()
    assert not upper.is_approximate.any()


def test_simulated_data_give_an_exact_upper_bound_from_their_own_codes():
    specimen = zoo.tanh_decoder()
    target = make(specimen)
    with seeded(1):
        simulation = target.simulate(40)
    simulated = target.with_data(*simulation.data)
    options = {"num_temperatures": 6, "num_chains": 16}
    upper = log_evidence(simulated, "ais-reverse", reference=simulation.z[None], **options)
    truth = log_evidence(simulated, "quadrature", tolerance=1e-3)
    assert not upper.is_approximate.any()
    assert not upper.is_reliable.any()
    assert "no error bar from one chain" in upper.reason
    excess = torch.as_tensor(upper.value - truth.value)
    assert excess.mean() > 0
    # One chain each: E[exp(-(up - log p))] = 1.
    assert chance.means_agree((-excess).exp(), 1.0)


def test_a_guide_that_cannot_score_can_be_annealed_from():
    target = make(zoo.other_family("planar"))
    e = log_evidence(target, "ais", num_temperatures=40, start="guide")
    assert (np.abs(e.value - zoo.other_family("planar").log_evidence.numpy()) < 0.3).all()


def test_a_laplace_start_of_a_gaussian_posterior_is_exact_at_once():
    specimen = zoo.linear_gaussian(guide_scale=0.3, shift=1.0)
    e = log_evidence(make(specimen), "ais", num_temperatures=2)
    assert np.abs(e.value - specimen.log_evidence.numpy()).max() < 1e-9
    assert e.is_reliable.all()


def test_cost_counts_the_tuning_and_every_chain():
    target = make(zoo.tanh_decoder())
    small, large = (
        log_evidence(target, "ais", num_temperatures=t, num_chains=8, num_steps=3) for t in (80, 160)
    )
    assert small.num_gradient_evaluations >= 8 * (1 + 79 * 3)
    assert large.num_gradient_evaluations - small.num_gradient_evaluations >= 8 * 80 * 3
    assert large.num_gradient_evaluations < 1.5 * 8 * 160 * 3


def test_the_same_seed_gives_the_same_bits_and_blocks_only_change_the_noise(monkeypatch):
    target = make(zoo.tanh_decoder())
    options = {"num_temperatures": 30, "num_chains": 16}
    first, again, other = (log_evidence(target, "ais", seed=s, **options).value for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    monkeypatch.setattr("pyrovae.diagnostics.evidence.annealed.MAX_ROWS", 32)
    blocked = log_evidence(target, "ais", seed=3, **options)
    assert np.abs(blocked.value - first).max() < 0.3


def test_few_chains_that_count_make_the_error_bar_unreliable():
    specimen = zoo.linear_gaussian(guide_scale=0.2, shift=2.0, num_data=30)
    e = log_evidence(make(specimen), "ais", num_temperatures=2, num_chains=16, start="guide")
    assert e.is_reliable.mean() < 0.5
    assert "fewer than half of the 16 chains" in e.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("iwae", {"num_samples": 1000}), ("ais", {"num_temperatures": 3, "num_chains": 100, "start": "guide"})],
)
def test_intervals_cover_p_as_often_as_they_say(method, options):
    """4,000 repetitions with bounded weights (a guide wider than the posterior), exact binomial test."""
    specimen = zoo.linear_gaussian(guide_scale=1.25, num_data=1)
    target = make(specimen).rows([0] * 4000)
    e = log_evidence(target, method, **options)
    ratio = np.exp(e.value - float(specimen.log_evidence[0]))

    def is_plausible(width: float) -> bool:
        covered = int((np.abs(ratio - 1) < width * stats.norm.isf(0.025) * ratio * e.std_error).sum())
        return stats.binomtest(covered, 4000, 0.95).pvalue > chance.FALSE_ALARM

    assert is_plausible(1.0)
    assert not is_plausible(0.8)  # planted: an error bar that is a fifth too small


def test_a_bad_likelihood_gives_no_weight_and_no_crash():
    """Half of the prior has no likelihood at all: log w is -inf there, and p(x) still comes out right."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where(z > 0, -0.5 * (z - x) ** 2, -torch.inf))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.full((2000,), 1.0, dtype=torch.float64)
    target = Target(model, guide, x)
    e = log_evidence(target, "ais", num_temperatures=5, num_chains=8, start="prior")
    truth = np.exp(-0.25) * 0.5**0.5 * stats.norm.cdf(0.5 * 2**0.5)
    assert chance.means_agree(torch.as_tensor(np.exp(e.value)), truth)


def test_what_is_refused():
    target = make(zoo.tanh_decoder())
    with pytest.raises(
        ValueError, match="unknown start 'posterior' of annealing: choose one of laplace, guide, prior"
    ):
        log_evidence(target, "ais", start="posterior")
    for name in ("num_temperatures", "num_chains", "num_steps"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, but is 0"):
            log_evidence(target, "ais", **{name: 0})
    with pytest.raises(ValueError, match="schedule"):
        log_evidence(target, "ais", schedule="steep")
