"""Estimates of log p(x) against exact answers: equality, unbiasedness, order, and what is refused."""

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae.diagnostics.evidence import (
    ESTIMATORS,
    POINT_ESTIMATORS,
    draw_log_weights,
    draw_weights,
    estimate,
    log_evidence,
)
from pyrovae.inference.weights import khat_threshold
from pyrovae.target import Target


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


@pytest.mark.parametrize("method", ESTIMATORS)
@pytest.mark.parametrize("name", zoo.EXACT)
def test_every_estimator_is_exact_when_the_guide_is_the_posterior(name, method):
    specimen = zoo.EXACT[name]()
    e = log_evidence(make(specimen), method, num_samples=100)
    assert np.abs(e.value - specimen.log_evidence.numpy()).max() < 1e-9
    if method != "largest-weight":
        assert (e.std_error < 1e-9).all()
        assert e.is_reliable.all()


def test_elbo_equals_its_closed_form():
    """log p(x) - KL(q || p), KL = D/2 (s^2 - 1 - log s^2) for a guide s times as wide as the posterior."""
    specimen = zoo.linear_gaussian(guide_scale=1.3)
    e = log_evidence(make(specimen), "elbo", num_samples=20_000)
    gap = 3 / 2 * (1.69 - 1 - np.log(1.69))
    z = (e.value - (specimen.log_evidence.numpy() - gap)) / e.std_error
    assert np.abs(z).max() < chance.z_score_limit(5)


def test_iwae_increases_with_the_number_of_draws_and_stays_below():
    specimen = zoo.linear_gaussian(guide_scale=1.5, num_data=3)
    _, log_w = draw_weights(make(specimen), 2**14)
    exact = specimen.log_evidence
    means, errors = [], []
    for k in (1, 4, 16, 64):
        groups = log_w.reshape(-1, k, 3)
        value = torch.logsumexp(groups, 1) - np.log(k) - exact
        means.append(value.mean(0))
        errors.append(value.std(0) / len(value) ** 0.5)
    limit = chance.z_score_limit(9)
    for low, high, a, b in zip(means, means[1:], errors, errors[1:], strict=False):
        assert (high - low > -limit * torch.hypot(a, b)).all()
    assert (means[0] < means[-1] - limit * errors[0]).all()
    assert (means[-1] < limit * errors[-1]).all()


def test_the_error_bars_are_right():
    """Over 300 seeds the spread of the estimates is the standard error that each reports."""
    target = make(zoo.linear_gaussian(guide_scale=1.3, num_data=2))
    runs = [log_evidence(target, "iwae", num_samples=200, seed=s) for s in range(300)]
    values, errors = np.stack([r.value for r in runs]), np.stack([r.std_error for r in runs])
    ratio = values.var(0, ddof=1) / (errors**2).mean(0)
    assert chance.chi2_is_plausible(torch.as_tensor(ratio * 299), 299)


def test_psis_of_a_far_guide_is_marked_unreliable():
    """The tail index is 1 - 0.3^2 = 0.91; its estimates scatter, with a deviation near 0.15 and biased low."""
    target = make(zoo.linear_gaussian(guide_scale=0.3, num_data=100))
    e = log_evidence(target, "psis", num_samples=2000)
    assert (e.is_reliable == (e.khat < khat_threshold(2000))).all()
    assert e.khat.mean() > 0.7  # 0.015 is the standard error of this mean, 0.85 or so its expectation
    assert e.is_reliable.mean() < 0.3
    assert "k-hat" in e.reason


def test_directions_and_costs():
    target = make(zoo.linear_gaussian())
    found = {m: log_evidence(target, m, num_samples=50) for m in ESTIMATORS}
    lower = {m for m, e in found.items() if e.direction == "lower"}
    assert lower == {"elbo", "iwae"}
    assert {e.direction for m, e in found.items() if m not in lower} == {"none"}
    assert {m for m, e in found.items() if e.is_unbiased_density} == {"iwae"}
    assert all(e.num_density_evaluations == e.budget == 50 and e.seconds > 0 for e in found.values())


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    target = make(zoo.linear_gaussian(guide_scale=1.5))
    a, b, c = (log_evidence(target, "iwae", num_samples=300, seed=s).value for s in (4, 4, 5))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("rows", [50, 3, 1])
def test_draws_in_blocks_are_independent(monkeypatch, rows):
    monkeypatch.setattr("pyrovae.diagnostics.evidence.draws.MAX_ROWS", rows)
    target = make(zoo.linear_gaussian(guide_scale=1.5))
    draws, log_w = draw_weights(target, 45)
    assert draws.z.shape == (45, 5, 3)
    assert torch.allclose(log_w, target.log_joint(draws.z) - draws.log_q)
    assert log_w.unique().numel() == log_w.numel()


def test_streaming_in_blocks_gives_what_all_weights_at_once_give(monkeypatch):
    target = make(zoo.linear_gaussian(guide_scale=0.7))
    for module in ("draws", "sampled"):
        monkeypatch.setattr(f"pyrovae.diagnostics.evidence.{module}.MAX_ROWS", 3)
    streamed = log_evidence(target, "iwae", num_samples=60, seed=2)
    whole = estimate("iwae", draw_log_weights(target, 60, seed=2))
    assert np.allclose(streamed.value, whole.value, rtol=0, atol=1e-12)
    assert np.allclose(streamed.std_error, whole.std_error, rtol=1e-10)
    assert np.array_equal(streamed.khat, whole.khat)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.size = max(
            [self.size, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))]
        )
        return made


def test_a_hundred_times_the_draws_need_no_more_memory():
    target = make(zoo.linear_gaussian(guide_scale=1.3, num_data=17))
    sizes = []
    for num_samples in (1000, 100_000):
        with Largest() as largest:
            log_evidence(target, "iwae", num_samples=num_samples)
        sizes.append(largest.size)
    assert sizes[1] <= sizes[0]
    # Planted: all weights at once.
    with Largest() as largest:
        log_evidence(target, "elbo", num_samples=100_000)
    assert largest.size > sizes[0]


def test_a_defensive_share_of_the_prior_bounds_the_weights_and_changes_no_expectation():
    specimen = zoo.linear_gaussian(guide_scale=0.4, num_data=2)
    target = make(specimen)
    plain, defended = (draw_log_weights(target, 40_000, defensive=e) for e in (0.0, 0.2))
    assert chance.means_agree((defended - specimen.log_evidence).exp(), 1.0)
    # w <= p(x | z) / 0.2, and the density of 6 values with deviation 0.5 is at most (2 pi 0.25)^-3.
    assert defended.max() <= -3 * np.log(2 * np.pi * 0.25) - np.log(0.2)
    assert plain.max() > defended.max()
    found = log_evidence(target, "cubo", num_samples=40_000, defensive=0.2)
    assert (found.value > specimen.log_evidence.numpy()).all()
    # Planted: the prior's share left out of the density of the mixture.
    wrong = defended + np.log1p(-0.2)
    assert not chance.means_agree((wrong - specimen.log_evidence).exp(), 1.0)


def test_an_infinite_chi_square_bound_is_flagged():
    """The weights of a guide with a third of the posterior's width have tail index 0.91: no second moment."""
    e = log_evidence(make(zoo.linear_gaussian(guide_scale=0.3, num_data=50)), "cubo", num_samples=2000)
    assert not e.is_reliable.any()
    assert "infinite variance of the weights, so an infinite bound, for" in e.reason
    fine = log_evidence(make(zoo.linear_gaussian(guide_scale=1.05)), "cubo", num_samples=2000)
    assert fine.is_reliable.all()


def test_the_largest_weight_grows_and_is_never_an_estimate():
    target = make(zoo.linear_gaussian(guide_scale=0.4, num_data=50))
    small, large = (log_evidence(target, "largest-weight", num_samples=k) for k in (100, 10_000))
    assert (large.value - small.value).mean() > 1.0  # (1 - 0.4^2) log 100 = 3.9 nats in the limit
    assert not large.is_reliable.any()
    assert "it grew by" in large.reason


def test_what_is_refused():
    target = make(zoo.linear_gaussian())
    with pytest.raises(ValueError, match="unknown method 'iawe'.*elbo, iwae, jackknife"):
        log_evidence(target, "iawe")
    with pytest.raises(
        ValueError, match="'elbo' has no option 'num_chains': its options are num_samples, defensive"
    ):
        log_evidence(target, "elbo", num_chains=3)
    with pytest.raises(ValueError, match="'laplace' has no option 'num_samples': it has none"):
        log_evidence(target, "laplace", num_samples=3)
    with pytest.raises(ValueError, match=r"defensive.*in \[0, 1\), but is 1"):
        log_evidence(target, "cubo", defensive=1.0)
    with pytest.raises(ValueError, match="num_samples must be at least 2.*is 1"):
        log_evidence(target, "iwae", num_samples=1)


def test_weights_that_are_not_numbers_are_refused_with_the_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.factor("x", torch.where((x > 2) & (z > 1), torch.nan, -(z**2)))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.4))

    target = Target(model, guide, torch.tensor([0.0, 1.0, 3.0]))
    with pytest.raises(ValueError, match="NaN or .infinity for datum 2"):
        log_evidence(target, "elbo", num_samples=20_000)


def overflowing(rate):
    """A model with a Poisson count of the rate that a normal z gives, and a guide of its shape."""

    def model(x):
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.HalfNormal(x.new_ones(())))
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Poisson(rate(s, a)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("s", dist.LogNormal(0 * x, 0.7))
            pyro.sample("a", dist.Normal(0 * x, 0.7))

    return Target(model, guide, torch.tensor([0.0, 3.0]))


def test_quadrature_goes_round_a_rate_that_overflows():
    target = overflowing(lambda s, a: (2 * s * a).exp())
    found = log_evidence(target, "quadrature")
    assert found.is_reliable.all(), found.reason
    near = log_evidence(target, "iwae", num_samples=100_000)
    assert (np.abs(found.value - near.value) < 5 * near.std_error + found.std_error).all()


def test_quadrature_says_where_the_density_is_no_number():
    target = overflowing(lambda s, a: torch.where(a > 1.5, torch.nan, 1 + 0 * s))
    found = log_evidence(target, "quadrature")
    assert np.isnan(found.value).all()
    assert "2 of 2 data is NaN or infinite where it matters, for datum 0 at or beside s = " in found.reason
    assert "a = 1." in found.reason
    assert "finest grid" not in found.reason


def test_zero_density_is_legal_but_not_reliable():
    log_w = torch.randn(200, 2, dtype=torch.float64)
    log_w[3, 1] = -torch.inf
    elbo, iwae = estimate("elbo", log_w), estimate("iwae", log_w)
    assert elbo.is_reliable.tolist() == [True, False]
    assert np.isfinite(iwae.value).all()


@pytest.mark.parametrize("method", ["single-shot-laplace", "laplace"])
@pytest.mark.parametrize("guide_scale", [0.5, 2.0])
def test_the_second_order_estimates_are_exact_for_a_gaussian_posterior_and_any_guide(method, guide_scale):
    specimen = zoo.linear_gaussian(guide_scale=guide_scale, shift=0.4)
    e = log_evidence(make(specimen), method)
    assert np.abs(e.value - specimen.log_evidence.numpy()).max() < 1e-9
    assert (e.direction, e.is_unbiased_density) == ("none", False)
    assert e.num_gradient_evaluations >= 1


@pytest.mark.parametrize("guide_scale", [0.5, 1.0, 2.0])
def test_one_shot_is_the_elbo_plus_half_the_excess_of_trace(guide_scale):
    """log w(mu) = ELBO + (tr(PC) - D) / 2, so below the ELBO for a narrow guide and above it for a wide one."""
    specimen = zoo.linear_gaussian(guide_scale=guide_scale, shift=0.4)
    target = make(specimen)
    elbo = log_evidence(target, "elbo", num_samples=20_000)
    excess = 0.5 * 3 * (guide_scale**2 - 1)
    z = (log_evidence(target, "single-shot").value - elbo.value - excess) / elbo.std_error
    assert np.abs(z).max() < chance.z_score_limit(5)


def test_one_shot_is_no_bound():
    low, high = (
        log_evidence(make(zoo.linear_gaussian(guide_scale=s)), "single-shot").value for s in (0.5, 2.0)
    )
    exact = zoo.linear_gaussian().log_evidence.numpy()
    assert (low < exact).all()
    assert (high > exact).all()


@pytest.mark.parametrize("method", POINT_ESTIMATORS)
@pytest.mark.parametrize("name", ["gamma_poisson", "convolutional", "nested", "autoregressive"])
def test_one_point_serves_every_kind_of_model(name, method):
    specimen = zoo.SHAPES[name]()
    e = log_evidence(make(specimen), method)
    assert np.isfinite(e.value).all()
    if specimen.log_evidence is not None and method == "laplace":
        assert np.abs(e.value - specimen.log_evidence.numpy()).max() < 0.1


def test_the_guide_mean_of_a_flow_is_that_of_its_draws():
    target = make(zoo.other_family("autoregressive"))
    assert target.guide_mean().shape == (4, 3)
    exact = make(zoo.linear_gaussian(shift=0.4))
    assert torch.allclose(exact.guide_mean(), zoo.linear_gaussian().posterior_mean + 0.4)
