"""What HMC for reference posteriors refuses to vouch for: nothing normalizable, nothing finite, chains that stay."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from arviz_stats.base import array_stats

from pyrovae.diagnostics.reference import hmc as module
from pyrovae.diagnostics.reference import rounds, sample_posterior
from pyrovae.target import Target

FAST = {"num_chains": 8, "num_samples": 250, "warmup_steps": 100, "min_ess": 200.0}
F64 = torch.float64
AXES = {"chain_axis": 0, "draw_axis": 1}


@pytest.mark.slow
def test_an_improper_posterior_gives_no_verdict():
    """log density z: chains run off, for ever."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", 0.5 * z**2 + z)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    tree = sample_posterior(Target(model, guide, torch.zeros(2, dtype=F64)), **FAST, max_samples=250)
    assert (tree["diagnostics"]["verdict"] == "no verdict").all()
    assert (tree["diagnostics"]["reason"] != "").all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_densities_that_are_not_finite_reject_and_are_counted(bad):
    """Beyond 1, for datum 1 alone."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where((z > 1.0) & (x > 0), bad, 0.0 * z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x, -1.0), 0.3))

    tree = sample_posterior(Target(model, guide, torch.tensor([0.0, 1.0], dtype=F64)), **FAST, whiten="guide")
    assert (tree["posterior"]["z"].values[:, :, 1] <= 1.0).all()
    d = tree["diagnostics"]
    assert d["num_divergent"].values[0] == 0 < d["num_divergent"].values[1]
    assert d["verdict"].values.tolist() == ["ok", "no verdict"]
    assert "divergences" in str(d["reason"].values[1])
    assert np.isfinite(tree["sample_stats"]["lp"].values).all()


@pytest.fixture
def trapped(monkeypatch) -> Target:
    """Two data; chain 3 of the second starts in a hole at 9, 200 nats deep and too narrow for any step."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where((x > 0) & ((z - 9.0).abs() < 1e-7), 200.0, 0.0 * z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    original = module.chain_starts

    def starts(*args, **kwargs):
        z = original(*args, **kwargs)
        z[3, 1] = 9.0
        return z

    monkeypatch.setattr(module, "chain_starts", starts)
    return Target(model, guide, torch.tensor([0.0, 1.0], dtype=F64))


TRAPPED = {**FAST, "max_samples": 250, "whiten": "guide"}


def test_chains_that_do_not_move_are_counted(trapped):
    tree = sample_posterior(trapped, **TRAPPED)
    d = tree["diagnostics"]
    assert d["num_stuck"].values.tolist() == [0, 1]
    assert ["stuck chains" in str(reason) for reason in d["reason"].values] == [False, True]
    assert d["verdict"].values[1] == "no verdict"
    rates = tree["sample_stats"]["acceptance_rate"].mean("draw").values
    assert rates[3, 1] < 1e-6
    rates[3, 1] = 1.0
    assert rates.min() > 0.5


def test_a_limit_of_zero_would_not_count_them(trapped, monkeypatch):
    monkeypatch.setattr(rounds, "STUCK", 0.0)
    d = sample_posterior(trapped, **TRAPPED)["diagnostics"]
    assert d["num_stuck"].values.tolist() == [0, 0]
    assert "stuck chains" not in str(d["reason"].values[1])


def test_few_draws_of_many_chains_are_judged_by_chains_that_share_a_start():
    """Ten good draws of each of 512 chains: nested R-hat accepts them, unless modes are apart."""
    specimen = zoo.linear_gaussian(num_data=2)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    options = {"num_chains": 512, "num_samples": 10, "warmup_steps": 60, "compile": False}
    tree = sample_posterior(target, **options)
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    # 20 chains share a start, 12 share none.
    z, starts = tree["posterior"]["z"].values, np.arange(500) // 20
    nested = array_stats.rhat_nested(z[:500], starts, **AXES).max(-1)
    assert np.allclose(tree["diagnostics"]["rhat"].values, nested)
    assert not np.allclose(array_stats.rhat(z, **AXES).max(-1), nested)

    def apart(x):
        with pyro.plate("data", len(x)):
            ends = dist.Normal(torch.tensor([-4.0, 4.0], dtype=x.dtype), 0.3)
            both = dist.Categorical(torch.ones(2, dtype=x.dtype))
            z = pyro.sample("z", dist.MixtureSameFamily(both, ends))
            pyro.sample("x", dist.Normal(z, 10.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 4.0))

    tree = sample_posterior(Target(apart, guide, torch.zeros(2, dtype=F64)), **options, max_samples=20)
    assert (tree["diagnostics"]["verdict"] == "no verdict").all()
