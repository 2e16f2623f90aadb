"""HMC for reference posteriors: when it stops, what it counts, and that data do not see each other."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo

from pyrovae.compiled import FallbackWarning
from pyrovae.diagnostics.gaussians import fit_gaussian
from pyrovae.diagnostics.reference import hmc as module
from pyrovae.diagnostics.reference import rounds, sample_posterior, starts
from pyrovae.target import Target

FAST = {"num_chains": 8, "num_samples": 250, "warmup_steps": 100, "min_ess": 200.0}
F64 = torch.float64
SHORT = {
    "num_chains": 8,
    "num_samples": 50,
    "warmup_steps": 60,
    "max_samples": 200,
    "min_ess": 100.0,
    "max_rhat": 1.1,
    "compile": False,
}
AXES = {"chain_axis": 0, "draw_axis": 1}


def hard_and_easy(num_data: int = 4) -> Target:
    """Data at 4 have two modes of z near +-2, which chains cross rarely; data at -3 have one.

    Without matrix products, so that densities are the same bits whatever else is in the batch.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7).to_event(1))

    x = torch.full((num_data, 1), 4.0, dtype=F64)
    x[::2] = -3.0
    return Target(model, guide, x)


@pytest.fixture(scope="module")
def shortened():
    """Draws of data that leave their one group when they are good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CLASSES", (32,))
        return sample_posterior(hard_and_easy(), **SHORT)


@pytest.mark.slow
def test_data_leave_when_they_are_good_and_change_no_other(monkeypatch, shortened):
    """Each datum has the bits that it has when all stay to the end."""
    monkeypatch.setattr(module, "CLASSES", (32,))
    counts = shortened["diagnostics"]["num_transitions"].values
    assert counts.min() < 200
    assert counts.max() == 200
    monkeypatch.setattr(
        rounds, "_leaves", lambda diagnostics, wanted: np.zeros(len(diagnostics["verdict"]), bool)
    )
    longer = sample_posterior(hard_and_easy(), **SHORT)
    stayed = counts == 200
    z, all_z = shortened["posterior"]["z"].values, longer["posterior"]["z"].values
    assert np.array_equal(z[:, :, stayed], all_z[:, :, stayed])
    for n in np.flatnonzero(~stayed):
        # What was kept of the longer run is every second or fourth draw of the shorter.
        step = 200 // counts[n]
        short = z[:, step - 1 :: step, n]
        assert np.array_equal(short, all_z[:, : short.shape[1], n])


@pytest.mark.slow
def test_draws_of_others_would_be_seen_to_change(monkeypatch, shortened):
    """Planted: noise drawn for the data that are left."""
    monkeypatch.setattr(module, "CLASSES", (32,))
    original = rounds.trajectory.draw_noise
    monkeypatch.setattr(
        rounds.trajectory,
        "draw_noise",
        lambda like, rows=None: original(like if rows is None else like[:, rows]),
    )
    after = sample_posterior(hard_and_easy(), **SHORT)
    stayed = shortened["diagnostics"]["num_transitions"].values == 200
    assert not np.array_equal(
        shortened["posterior"]["z"].values[:, :, stayed], after["posterior"]["z"].values[:, :, stayed]
    )


def test_the_budget_is_kept_and_the_reason_said():
    """What no draws can reach is asked for: twice 250 fit into 600, four times do not."""
    specimen = zoo.linear_gaussian()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    tree = sample_posterior(target, **FAST, max_rhat=0.9, max_samples=600, compile=False)
    d = tree["diagnostics"]
    assert (d["num_transitions"] == 500).all()
    assert (d["verdict"] == "no verdict").all()
    assert (d["reason"] == "R-hat not below 0.9").all()
    assert tree["posterior"]["z"].shape[:2] == (8, 250)
    alone = sample_posterior(target, **FAST, max_rhat=0.9, max_samples=250, compile=False)
    assert (alone["diagnostics"]["num_transitions"] == 250).all()


def test_thinning_keeps_every_kth_draw():
    target = Target(*zoo.linear_gaussian()[:2], *zoo.linear_gaussian().data)
    dense = sample_posterior(target, **{**FAST, "num_samples": 200, "compile": False}, max_samples=200)
    thin = sample_posterior(
        target, **{**FAST, "num_samples": 100, "compile": False}, thinning=2, max_samples=200
    )
    assert np.array_equal(dense["posterior"]["z"].values[:, 1::2], thin["posterior"]["z"].values)
    assert (thin["diagnostics"]["num_transitions"] == 200).all()


def test_the_same_bits_for_the_same_seed_and_block_whatever_other_blocks_hold(monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 16)
    specimen = zoo.linear_gaussian(num_data=5)
    options = {**FAST, "num_samples": 50, "warmup_steps": 40, "max_samples": 50}
    whole = sample_posterior(Target(specimen.model, specimen.guide, *specimen.data), **options)
    part = sample_posterior(Target(specimen.model, specimen.guide, specimen.data[0][:3]), **options)
    assert np.array_equal(whole["posterior"]["z"].values[:, :, :2], part["posterior"]["z"].values[:, :, :2])


def test_chains_start_from_three_sources():
    specimen = zoo.linear_gaussian(num_data=3, guide_scale=0.1, shift=5.0)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    torch.manual_seed(0)
    first = fit_gaussian(target, "laplace")
    z = starts.chain_starts(target, first, 300)
    near, wide, prior = z[1::3], z[::3], z[2::3]
    assert torch.allclose(near.mean(0), specimen.posterior_mean, atol=0.5)
    assert torch.allclose(wide.mean(0), specimen.posterior_mean + 5.0, atol=0.5)
    assert prior.std() == pytest.approx(1.0, abs=0.1)
    assert len(starts.chain_starts(target, first, 10, copies=4).unique(dim=0)) == 4


def test_traced_and_plain_densities_give_the_same_posterior():
    specimen = zoo.tanh_decoder(num_data=3)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    plain = starts.density(target, 4, False, 10_000)
    traced = starts.density(target, 4, "auto", 1000)
    assert traced.route == "traced"
    z = torch.randn(4, 3, 2, dtype=F64)
    torch.testing.assert_close(plain(z), tuple(traced(z)))


def test_what_cannot_be_traced_runs_untraced_and_says_so():
    specimen = zoo.factor_and_branch()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    with pytest.warns(FallbackWarning, match="runs untraced"):
        starts.density(target, 4, "auto", 1000)


def test_every_gradient_is_counted(monkeypatch):
    """Per chain: those of its rows, and its share of Laplace's."""
    rows = [0]
    original = starts.hmc.with_gradient

    def with_gradient(log_density):
        inner = original(log_density)

        def evaluate(z):
            rows[0] += z[..., 0].numel()
            return inner(z)

        return evaluate

    specimen = zoo.linear_gaussian(num_data=4)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    monkeypatch.setattr(starts.hmc, "with_gradient", with_gradient)
    tree = sample_posterior(target, **FAST, whiten="guide", compile=False)
    counted = tree["diagnostics"]["num_gradient_evaluations"].values
    assert counted.sum() * 8 == rows[0]
    assert tree["posterior"].attrs["num_gradient_evaluations"] == counted.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinning": 0}, "thinning must be at least 1, but is 0"),
        ({"max_samples": 100}, "at least num_samples .* = 250, but is 100"),
        ({"compile": "yes"}, "compile must be True, False or 'auto', but is 'yes'"),
    ],
)
def test_what_is_refused(options, message):
    specimen = zoo.linear_gaussian()
    with pytest.raises(ValueError, match=message):
        sample_posterior(Target(specimen.model, specimen.guide, *specimen.data), **{**FAST, **options})
