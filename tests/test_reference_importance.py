"""Draws of the guide resampled by weights, ours and Pyro's, against exact posteriors, and the gate that refuses."""

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from arviz_stats.base import array_stats
from test_reference import check_moments, make, one_mode_guide, two_modes, z_scores

from pyrovae import results
from pyrovae.diagnostics.reference import importance, sample_posterior
from pyrovae.target import Target

FEW = {"num_chains": 2, "num_samples": 500, "num_draws": 3000, "min_ess": 100.0}


def sampled(specimen: zoo.Specimen, **options):
    return sample_posterior(make(specimen), "importance", **options)


def test_draws_have_the_exact_mean_and_covariance_of_every_datum():
    specimen = zoo.linear_gaussian(guide_scale=1.4, shift=0.1)
    tree = sampled(specimen)
    assert tree["posterior"]["z"].shape == (4, 1000, 5, 3)
    assert check_moments(tree, specimen.posterior_mean, specimen.posterior_cov)
    assert (tree["diagnostics"]["verdict"] == "ok").all()


def test_weights_left_out_are_seen(monkeypatch):
    """Planted: every draw of the guide counts the same."""
    specimen = zoo.linear_gaussian(guide_scale=1.4, shift=0.1)
    plain = importance.guide_weights

    def without_weights(*args, **keywords):
        for drawn in plain(*args, **keywords):
            yield drawn._replace(log_w=torch.zeros_like(drawn.log_w))

    monkeypatch.setattr(importance, "guide_weights", without_weights)
    assert not check_moments(sampled(specimen), specimen.posterior_mean, specimen.posterior_cov)


def gamma_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(2.0 + x, x.new_tensor(2.4)))


def flat_guide(x):
    concentration = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
    with pyro.plate("data", len(x)):
        pyro.sample("p", dist.Dirichlet(0.5 * (concentration + x)))


def test_positive_and_simplex_latents():
    positive, simplex = zoo.gamma_poisson(), zoo.dirichlet_multinomial()
    tree = sample_posterior(Target(positive.model, gamma_guide, *positive.data), "importance")
    rate = np.exp(tree["posterior"]["z"].values[..., 0])
    assert (np.abs(z_scores(rate, positive.posterior_mean.numpy())) < chance.z_score_limit(7)).all()

    target = Target(simplex.model, flat_guide, *simplex.data)
    z = torch.as_tensor(sample_posterior(target, "importance")["posterior"]["z"].values)
    p = target.constrain(z.flatten(0, 1))["p"].unflatten(0, z.shape[:2]).numpy()
    exact = simplex.posterior_mean.numpy()
    assert (np.abs(z_scores(p, exact)) < chance.z_score_limit(16)).all()
    # Planted: the guide's own draws, in the same coordinates.
    guide = target.constrain(target.sample_guide(4000).z)["p"].unflatten(0, (4, 1000)).numpy()
    moved = np.abs(z_scores(guide**2, (p**2).mean((0, 1))))
    assert (moved > chance.z_score_limit(16)).any()


def test_error_bars_count_a_repeated_draw_as_one():
    """A guide 2.5 times as wide gives 4,000 draws that are worth about 640: z-scores over seeds say whether."""
    specimen = zoo.linear_gaussian(guide_scale=2.5)
    target, mean = make(specimen), specimen.posterior_mean.numpy()
    kept, shuffled = [], []
    order = np.random.default_rng(0).permutation(4000)
    for seed in range(30):
        tree = sample_posterior(target, "importance", num_draws=4000, seed=seed)
        z = tree["posterior"]["z"].values
        kept.append(z_scores(z, mean)[:, 0])
        # Planted: the order in which chains hold their draws is lost.
        shuffled.append(z_scores(z.reshape(4000, 5, 3)[order].reshape(z.shape), mean)[:, 0])
    assert chance.chi2_is_plausible(torch.tensor((np.array(kept) ** 2).sum()), 150)
    assert not chance.chi2_is_plausible(torch.tensor((np.array(shuffled) ** 2).sum()), 150)


def test_the_effective_sample_size_is_that_of_the_weights():
    """For a guide s times as wide in D coordinates, ESS / K = (2 - s^-2)^(D/2) / s^D."""
    tree = sampled(zoo.linear_gaussian(guide_scale=2.0))
    expected = 10_000 * (2 - 1 / 4) ** 1.5 / 8
    assert np.allclose(tree["diagnostics"]["ess"], expected, rtol=0.1)
    chains = array_stats.ess(tree["posterior"]["z"].values, method="mean", chain_axis=0, draw_axis=1)
    assert (chains < 1.5 * expected).all()


def test_a_perfect_guide_repeats_no_draw():
    specimen = zoo.linear_gaussian()
    tree = sampled(specimen, num_chains=4, num_samples=250, num_draws=1000)
    z = tree["posterior"]["z"].values
    assert len(np.unique(z[..., 0, 0])) == 1000
    assert (tree["diagnostics"]["khat"] == -np.inf).all()
    assert np.allclose(tree["diagnostics"]["ess"], 1000)


def test_systematic_resampling_takes_each_draw_its_weight_in_times_rounded_down_or_up():
    torch.manual_seed(0)
    log_w = torch.randn(40, 3, dtype=torch.float64)
    log_w[5, 0] = -torch.inf
    log_w[:, 2] = -torch.inf
    expected = 100 * log_w.softmax(0).nan_to_num(nan=1 / 40)
    counts = torch.stack(
        [
            torch.stack([column.bincount(minlength=40) for column in importance.systematic(log_w, 100).mT], 1)
            for _ in range(2000)
        ]
    )
    assert (counts[:, 5, 0] == 0).all()
    assert ((counts >= expected.floor()) & (counts <= expected.ceil())).all()
    wanted = expected.broadcast_to(counts.shape[1:])
    varies = (counts.double().std(0) > 0) & (wanted > 0)
    assert chance.means_agree(counts[:, varies], wanted[varies])
    # Planted: weights that are taken for their square roots.
    assert not chance.means_agree(counts[:, varies], (100 * (log_w / 2).softmax(0))[varies])


def test_a_guide_that_is_too_narrow_is_refused_by_khat():
    tree = sampled(zoo.linear_gaussian(guide_scale=0.3))
    assert (tree["diagnostics"]["verdict"] == "no verdict").all()
    assert all("k-hat not below 0.70" in reason for reason in tree["diagnostics"]["reason"].values)


def test_too_few_effective_draws_are_refused():
    specimen = zoo.linear_gaussian(guide_scale=2.5)
    few = sampled(specimen, **{**FEW, "min_ess": 900.0})["diagnostics"]
    assert set(few["reason"].values) == {"ESS below 900"}
    kept = sampled(zoo.linear_gaussian(), num_chains=1, num_samples=100)["diagnostics"]
    assert (kept["ess"] > 9000).all()
    assert set(kept["reason"].values) == {"ESS below 400"}
    assert (sampled(specimen, **FEW)["diagnostics"]["verdict"] == "ok").all()


def test_a_mode_that_the_guide_misses_is_not_seen():
    """What the docstring warns of: weights only know where the guide has been."""
    target = Target(two_modes, one_mode_guide, torch.zeros(3, dtype=torch.float64))
    tree = sample_posterior(target, "importance")
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    assert (tree["posterior"]["z"].values > 0).all()


def test_pyro_importance_has_the_exact_moments():
    specimen = zoo.linear_gaussian(num_data=2, guide_scale=1.4, shift=0.1)
    target = make(specimen)
    tree = sample_posterior(target, "pyro-importance")
    assert check_moments(tree, specimen.posterior_mean, specimen.posterior_cov)
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    ours = sample_posterior(target, "importance")["diagnostics"]["ess"]
    assert np.allclose(tree["diagnostics"]["ess"], ours, rtol=0.1)


def test_pyro_importance_has_the_same_gate():
    tree = sample_posterior(make(zoo.linear_gaussian(num_data=2, guide_scale=0.3)), "pyro-importance")
    assert all("k-hat not below 0.70" in reason for reason in tree["diagnostics"]["reason"].values)


def test_a_guide_that_cannot_be_scored_is_weighed_by_pyro():
    target = make(zoo.other_family("planar")).rows([0, 1])
    tree = sample_posterior(target, "pyro-importance", **FEW)
    assert (tree["diagnostics"]["khat"] < 0.7).all()
    assert np.isfinite(tree["sample_stats"]["lp"]).all()


def test_the_tree_says_how_it_was_made():
    specimen = zoo.nested(mask=True)
    target = make(specimen)
    tree = sample_posterior(target, "importance", **FEW)
    results.check(tree)
    assert set(tree["diagnostics"].data_vars) == {"khat", "ess", "verdict", "reason"}
    assert tree["posterior"].attrs["num_draws"] == 3000
    assert tree["posterior"].attrs["num_gradient_evaluations"] == 0
    assert tree["diagnostics"].attrs["max_khat"] == 0.7
    z = torch.as_tensor(tree["posterior"]["z"].values)
    expected = target.log_joint(z.flatten(0, 1)).unflatten(0, (2, 500))
    assert np.allclose(tree["sample_stats"]["lp"].values, expected)


def test_the_same_seed_gives_the_same_bits():
    a, b, c = (
        sampled(zoo.linear_gaussian(guide_scale=1.4), **FEW, seed=s)["posterior"]["z"].values
        for s in (1, 1, 2)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_data_in_blocks_have_the_same_distribution(monkeypatch):
    monkeypatch.setattr(importance, "MAX_KEPT", 20_000)
    specimen = zoo.linear_gaussian(guide_scale=1.4)
    seen = []
    tree = sampled(specimen, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert check_moments(tree, specimen.posterior_mean, specimen.posterior_cov)


def test_weights_that_are_not_numbers_name_the_datum(monkeypatch):
    monkeypatch.setattr(importance, "MAX_KEPT", 12_000)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where(x > 50, torch.nan, 1.0) * z)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    x = torch.zeros(20, dtype=torch.float64)
    x[18] = 100.0
    with pytest.raises(ValueError, match="NaN or \\+infinity for datum 18"):
        sample_posterior(Target(model, guide, x), "importance", **FEW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 3999}, "num_chains \\* num_samples = 4000.*3999"),
        ({"num_chains": 0}, "num_chains >= 1"),
        ({"num_samples": 3}, "num_samples >= 4"),
        ({"warmup_steps": 10}, "'importance' has no option 'warmup_steps'.*num_draws"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(zoo.linear_gaussian(), **options)
