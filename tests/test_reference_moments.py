"""HMC for reference posteriors against exact answers: two modes, funnels, simulated latents, blocks; planted bugs."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from arviz_stats.base import array_stats
from chance import means_agree, z_score_limit

from pyrovae.diagnostics.reference import hmc as module
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.inference import hmc
from pyrovae.target import Target

FAST = {"num_chains": 8, "num_samples": 250, "warmup_steps": 100, "min_ess": 200.0}
F64 = torch.float64
AXES = {"chain_axis": 0, "draw_axis": 1}
STEP = hmc.step


def moments_are(z: np.ndarray, mean: float, square: float) -> bool:
    """Of draws [C, T] of one coordinate, by their Monte Carlo errors."""
    limit = z_score_limit(2)
    scores = [
        (values.mean() - exact) / array_stats.mcse(values, method="mean", **AXES)
        for values, exact in ((z, mean), (z**2, square))
    ]
    return bool((np.abs(scores) < limit).all())


@pytest.mark.slow
def test_two_modes_that_chains_cross_have_exact_moments():
    """A mixture prior at -1.5 and 2 with weights .3 and .7, and x = z + noise: conjugate by component."""
    weight, loc = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([-1.5, 2.0], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weight), dist.Normal(loc, 0.7)))
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(2.0 + 0 * x, 0.5))

    x = torch.tensor([-0.5, 0.4], dtype=F64)
    tree = sample_posterior(Target(model, guide, x), **{**FAST, "num_chains": 24, "num_samples": 500})
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    var = 1 / (1 / 0.49 + 1 / 4)
    for n, value in enumerate(x):
        share = weight * torch.exp(dist.Normal(loc, (0.49 + 4.0) ** 0.5).log_prob(value))
        share = share / share.sum()
        means = var * (loc / 0.49 + value / 4)
        mean, square = float((share * means).sum()), float((share * (means**2 + var)).sum())
        z = tree["posterior"]["z"].values[:, :, n, 0]
        assert moments_are(z, mean, square)
        assert not moments_are(1.1 * z, mean, square)


def funnel(width: float, dim: int, *, is_centred: bool) -> Target:
    """v ~ N(0, width^2), w = exp(v / 2) r with `dim` r ~ N(0, 1), and no information; sites v and w, or v and r."""

    def model(x):
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(torch.zeros_like(x), width))
            scale = (0.5 * v).exp() if is_centred else torch.ones_like(v)
            pyro.sample("w", dist.Normal(x.new_zeros(dim), scale[..., None]).to_event(1))
            pyro.sample("x", dist.Normal(0 * v, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.Normal(torch.zeros_like(x), width))
            pyro.sample("w", dist.Normal(x[..., None] + x.new_zeros(dim), 1.0).to_event(1))

    return Target(model, guide, torch.zeros(1, dtype=F64))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dim", "is_centred"), [(0.5, 3, True), (3.0, 5, False)])
def test_funnels_that_are_not_sharp_have_exact_moments(width, dim, is_centred):
    """A mild one as it stands, and a sharp one in the coordinates that make it round."""
    some = funnel(width, dim, is_centred=is_centred)
    tree = sample_posterior(some, **{**FAST, "num_chains": 24, "num_samples": 500})
    v = tree["posterior"]["z"].values[:, :, 0, 0]
    assert moments_are(v, 0.0, width**2)
    assert not moments_are(1.2 * v, 0.0, width**2)


@pytest.mark.slow
def test_a_sharp_funnel_gets_no_verdict():
    """Neal's: chains neither enter the neck nor cross the mouth, and say so."""
    tree = sample_posterior(funnel(3.0, 5, is_centred=True), **FAST, max_samples=250)
    assert tree["diagnostics"]["verdict"].values.tolist() == ["no verdict"]
    assert "R-hat" in str(tree["diagnostics"]["reason"].values[0])
    assert tree["diagnostics"]["rhat"].values[0] > 1.1


def ranks_are_uniform(num_data: int) -> bool:
    """Whether simulated latents and their log p(x, z) rank among draws of their posteriors as draws of it would.

    A rank among L exchangeable draws is uniform on 0, ..., L, so u = (rank + 1/2) / (L + 1) has the mean 1/2 and the
    variance (1 - (L + 1)^-2) / 12. Draws are of eight chains, and four transitions apart. Ranks of z alone do not see
    chains whose draws lie too far out on both sides; those of log p(x, z) do.
    """
    specimen = zoo.tanh_decoder(num_data=4)
    z, data = Target(specimen.model, specimen.guide, *specimen.data).simulate(num_data)
    target = Target(specimen.model, specimen.guide, *data)
    tree = sample_posterior(
        target, num_chains=8, num_samples=4, thinning=4, warmup_steps=40, min_ess=0.0, max_rhat=math.inf,
        compile=False, seed=int(torch.randint(1 << 30, ())),
    )  # fmt: skip
    drawn = np.concatenate([tree["posterior"]["z"].values, tree["sample_stats"]["lp"].values[..., None]], -1)
    true = np.concatenate([z, target.log_joint(z[None])[0, :, None]], -1)
    num_draws = drawn.shape[0] * drawn.shape[1]
    u = torch.as_tensor(((drawn < true).sum((0, 1)) + 0.5) / (num_draws + 1) - 0.5)
    variance = (1.0 - (num_draws + 1.0) ** -2) / 12.0
    return means_agree(torch.cat([u, u.square() - variance], 1), 0.0)


def scaled_momentum(state, density, *, momentum, **rest):
    return STEP(state, density, momentum=1.2 * momentum, **rest)


def everything_accepted(state, density, *, log_uniform, **rest):
    return STEP(state, density, log_uniform=torch.full_like(log_uniform, -math.inf), **rest)


@pytest.mark.slow
def test_ranks_of_simulated_latents_are_uniform():
    """Simulation-based calibration of the sampler itself (Talts et al. 2018), on a nonlinear decoder."""
    torch.manual_seed(0)
    assert ranks_are_uniform(1000)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [scaled_momentum, everything_accepted])
def test_ranks_catch_planted_bugs(mutant, monkeypatch):
    monkeypatch.setattr(hmc, "step", mutant)
    torch.manual_seed(0)
    assert not ranks_are_uniform(1000)


def means_agree_across_blocks(monkeypatch) -> bool:
    """Of two data in one block, and in one each: other noise, the same posteriors."""
    specimen = zoo.tanh_decoder(num_data=2)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    means, errors = [], []
    for rows in (8 * 2, 8):
        monkeypatch.setattr(module, "MAX_ROWS", rows)
        z = sample_posterior(target, **FAST)["posterior"]["z"].values
        means.append(z.mean((0, 1)))
        errors.append(array_stats.mcse(z, method="mean", **AXES))
    assert not np.array_equal(*means)
    difference = (means[0] - means[1]) / np.hypot(*errors)
    return bool((np.abs(difference) < z_score_limit(difference.size)).all())


@pytest.mark.slow
def test_means_agree_across_blocks(monkeypatch):
    assert means_agree_across_blocks(monkeypatch)


@pytest.mark.slow
def test_a_block_that_has_the_data_of_another_is_caught(monkeypatch):
    split = Target.split

    def wrong(self, size):
        blocks = split(self, size)
        return blocks[:1] * len(blocks)

    monkeypatch.setattr(Target, "split", wrong)
    assert not means_agree_across_blocks(monkeypatch)
