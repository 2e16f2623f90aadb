"""Pyro's own importance sampling, HMC and NUTS: they see the densities of the Target, and draw its posteriors."""

import logging
from functools import cache

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro.infer import HMC, NUTS
from pyro.infer.autoguide import init_to_sample
from pyro.infer.mcmc.util import initialize_model
from test_reference import check_moments, make, z_scores

from pyrovae.diagnostics.reference import programs, pyro_importance, pyro_mcmc, sample_posterior
from pyrovae.seeding import seeded
from pyrovae.target import Target

SHORT = {"num_chains": 2, "num_samples": 150, "warmup_steps": 80, "min_ess": 30.0, "max_rhat": 1.1}
FEW = {"num_chains": 2, "num_samples": 500, "num_draws": 3000, "min_ess": 100.0}


@cache
def shaped(name: str) -> Target:
    return make(zoo.SHAPES[name]())


@pytest.mark.parametrize("name", zoo.SHAPES)
def test_unconstrain_is_the_inverse_of_constrain(name):
    target = shaped(name)
    z = target.sample_prior(3)
    values = target.constrain(z)
    assert torch.allclose(target.unconstrain(values), z, atol=1e-8)
    # Planted: rows and draws in each other's place.
    swapped = {site: value.transpose(0, 1).reshape(value.shape) for site, value in values.items()}
    assert not torch.allclose(target.unconstrain(swapped), z, atol=1e-8)


def densities(target: Target, row: int):
    """Minus Pyro's potential energy and log p(x, z) of the Target at three draws of the prior."""
    with pyro_mcmc._alone(), seeded(0):
        starts, potential = pyro_mcmc._initialized(target, row, 3)
        z = torch.cat([starts[site + programs.SUFFIX].reshape(3, -1) for site in target.sites], 1)
        theirs = [-potential({name: value[i] for name, value in starts.items()}).detach() for i in range(3)]
    return torch.stack(theirs), target.rows([row]).log_joint(z[:, None])[:, 0]


@pytest.mark.parametrize("name", zoo.SHAPES)
def test_pyro_traces_the_density_of_the_target(name):
    theirs, ours = densities(shaped(name), 1)
    assert torch.allclose(theirs, ours, atol=1e-9)


def test_a_scale_that_stays_is_seen(monkeypatch):
    """Planted: subsampled plates keep their scale, and each likelihood counts 1000 times."""
    monkeypatch.setattr(programs._Unscaled, "_pyro_sample", lambda self, msg: None)
    target = make(zoo.subsampled("size"))
    theirs, ours = densities(target, 1)
    assert not torch.allclose(theirs, ours, atol=1.0)
    with pytest.raises(ValueError, match="datum 0 differ from .* by .* nats"):
        sample_posterior(target, "pyro-importance", **FEW)


def test_pyro_alone_keeps_the_support_of_its_first_run():
    """Why the map to the support runs inside the model: a draw of `z` above the first `top` has no coordinates."""
    specimen = zoo.dependent_support()
    with seeded(0):
        _, _, transforms, trace = initialize_model(
            specimen.model, specimen.data, init_strategy=init_to_sample
        )
    top = trace.nodes["top"]["value"]
    assert (transforms["z"].inv(torch.full_like(top, 50.0)) <= top).all()


def test_params_of_a_function_reach_pyro():
    specimen = zoo.linear_gaussian()

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), scale).to_event(1), obs=x)

    params = {"scale": torch.tensor(0.3, dtype=torch.float64)}
    target = Target(model, specimen.guide, *specimen.data, params=params)
    theirs, ours = densities(target, 2)
    assert torch.allclose(theirs, ours, atol=1e-9)
    assert "scale" not in pyro.get_param_store()


SCORED = [name for name in zoo.SHAPES if name != "planar"]  # a planar flow cannot score what it drew


@pytest.mark.parametrize("traces", pyro_importance.TRACES)
@pytest.mark.parametrize("name", SCORED)
def test_pyros_log_weights_are_those_of_the_target(name, traces):
    target = shaped(name)
    if (name, traces) == ("convolutional", "vectorized"):
        with pytest.raises(ValueError, match="pass traces='one by one'"):
            pyro_importance._weighted(target, 1, 20, traces, 0)
        return
    drawn = pyro_importance._weighted(target, 1, 20, traces, 0)
    ours = target.rows([1]).log_joint(drawn.z) - target.rows([1]).log_guide(drawn.z)
    assert torch.allclose(drawn.log_w, ours, atol=1e-5)
    assert torch.allclose(drawn.lp, target.rows([1]).log_joint(drawn.z))
    # Planted: the guide's density left out.
    assert not torch.allclose(drawn.lp, ours, atol=1e-2)


def test_pyro_nuts_on_a_positive_latent():
    specimen = zoo.gamma_poisson()
    tree = sample_posterior(make(specimen).rows([3]), "pyro-nuts", **SHORT)
    assert tree["diagnostics"]["verdict"].values.tolist() == ["ok"]
    z = tree["posterior"]["z"].values[..., 0].astype(float)
    assert z.shape == (2, 150, 1)
    exact = specimen.posterior_mean[3:4].numpy()
    assert (np.abs(z_scores(np.exp(z), exact)) < chance.z_score_limit()).all()
    # Planted: the coordinates taken for the rate itself.
    assert (np.abs(z_scores(z, exact)) > chance.z_score_limit()).all()


@pytest.mark.parametrize("kind", [HMC, NUTS])
def test_gradients_are_counted_one_by_one(kind, monkeypatch):
    import pyro.ops.integrator as integrator

    calls = []
    plain = integrator.grad
    monkeypatch.setattr(integrator, "grad", lambda *args: (calls.append(1), plain(*args))[1])
    target = make(zoo.gamma_poisson(2))
    run = pyro_mcmc.Run(2, 10, 10, 0.8)
    with pyro_mcmc._alone(), seeded(0):
        starts, density = pyro_mcmc._initialized(target, 0, 1)
        potential = pyro_mcmc._Potential(density)
        kernel = pyro_mcmc._kernel(kind, run)(potential)
        calls.clear()
        chain = pyro_mcmc._chain(target, kernel, potential, starts, run)
    assert chain.num_gradient_evaluations == len(calls)
    assert chain.stats["n_steps"].shape == (1, 10, 1)
    assert 10 <= chain.stats["n_steps"].sum() < len(calls)


def test_nothing_outside_is_changed():
    """Same seed, same bits; random numbers, parameters and loggers are as they were."""
    target = make(zoo.gamma_poisson(2)).rows([0])
    logger, state = logging.getLogger("pyro.infer.mcmc"), torch.get_rng_state()
    before = (list(logger.handlers), logger.propagate)
    options = {"num_chains": 2, "num_samples": 8, "warmup_steps": 5}
    a, b, c = (
        sample_posterior(target, "pyro-hmc", **options, seed=s)["posterior"]["z"].values for s in (1, 1, 2)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not np.array_equal(a[0], a[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert (list(logger.handlers), logger.propagate) == before


def test_the_tree_says_how_it_was_made():
    target = make(zoo.nested()).rows([0, 1])
    seen = []
    tree = sample_posterior(
        target,
        "pyro-hmc",
        num_chains=2,
        num_samples=10,
        warmup_steps=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    assert tree["posterior"]["latent"].values.tolist() == ["mean[0]", "offset[0]", "offset[1]", "offset[2]"]
    assert tree["posterior"]["z"].shape == (2, 10, 2, 4)
    assert set(tree["sample_stats"].data_vars) == {"lp", "diverging", "step_size", "n_steps"}
    z = torch.as_tensor(tree["posterior"]["z"].values)
    assert np.allclose(tree["sample_stats"]["lp"], target.log_joint(z.flatten(0, 1)).unflatten(0, (2, 10)))
    assert set(tree["diagnostics"]["verdict"].values) == {"no verdict"}
    assert all("ESS below 400" in reason for reason in tree["diagnostics"]["reason"].values)
    assert tree["posterior"].attrs["trajectory_length"] == 2.0


def test_no_start_names_the_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where((x > 0) & (z.abs() > 1e-6), -torch.inf, -(z**2)))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1e-7))

    target = Target(model, guide, torch.tensor([0.0, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="no start for the chains of datum 1"):
        sample_posterior(target, "pyro-nuts", num_chains=2, num_samples=4, warmup_steps=1)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("pyro-importance", {"traces": "fast"}, "unknown traces 'fast'.*vectorized, one by one"),
        ("pyro-importance", {"num_draws": 100}, "num_draws must be at least"),
        ("pyro-nuts", {"num_chains": 1}, "num_chains >= 2"),
        ("pyro-nuts", {"warmup_steps": 0}, "warmup_steps >= 1"),
        ("pyro-hmc", {"target_accept_prob": 1.0}, "target_accept_prob in \\(0, 1\\)"),
        ("pyro-hmc", {"trajectory_length": 0.0}, "trajectory_length must be positive"),
        ("pyro-nuts", {"max_tree_depth": 0}, "max_tree_depth must be at least 1"),
        ("pyro-nuts", {"trajectory_length": 1.0}, "'pyro-nuts' has no option 'trajectory_length'"),
    ],
)
def test_what_is_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        sample_posterior(make(zoo.gamma_poisson(2)), method, **options)


def test_many_data_are_refused():
    many = make(zoo.gamma_poisson(1001))
    with pytest.raises(ValueError, match="at most 1000 data, not 1001.*'importance'"):
        sample_posterior(many, "pyro-importance")
    with pytest.raises(ValueError, match="at most 100 data, not 101.*'hmc'"):
        sample_posterior(many.rows(range(101)), "pyro-nuts")


LONG = {"num_chains": 3, "num_samples": 250, "warmup_steps": 150, "min_ess": 100.0, "max_rhat": 1.1}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pyro-hmc", "pyro-nuts"])
def test_kernels_have_the_exact_moments(method):
    specimen = zoo.linear_gaussian(num_data=1)
    tree = sample_posterior(make(specimen), method, **LONG)
    assert check_moments(tree, specimen.posterior_mean, specimen.posterior_cov)
    tree["posterior"]["z"].values[:] = tree["posterior"]["z"].values[..., ::-1]  # planted: columns reversed
    assert not check_moments(tree, specimen.posterior_mean, specimen.posterior_cov)


@pytest.mark.slow
def test_nuts_on_a_simplex():
    specimen = zoo.dirichlet_multinomial()
    target = make(specimen).rows([0])
    z = torch.as_tensor(sample_posterior(target, "pyro-nuts", **LONG)["posterior"]["z"].values)
    p = target.constrain(z.flatten(0, 1))["p"].unflatten(0, z.shape[:2]).numpy()
    exact = specimen.posterior_mean[:1].numpy()
    assert (np.abs(z_scores(p, exact)) < chance.z_score_limit(4)).all()


@pytest.mark.slow
def test_nuts_where_a_support_depends_on_another_latent():
    """E[z | x] by quadrature over the triangle z < top < 4."""
    target = make(zoo.dependent_support()).rows([2])
    z = torch.as_tensor(sample_posterior(target, "pyro-nuts", **LONG)["posterior"]["z"].values)
    value = target.constrain(z.flatten(0, 1))["z"].unflatten(0, z.shape[:2]).numpy()
    grid = torch.linspace(0, 4, 4001, dtype=torch.float64)[1:-1]
    density = dist.Normal(grid, 1.0).log_prob(target.data[0]).exp() * torch.log(4 / grid)
    exact = float((grid * density).sum() / density.sum())
    assert (np.abs(z_scores(value, np.array([exact]))) < chance.z_score_limit()).all()


@pytest.mark.slow
def test_nuts_agrees_with_our_hmc_on_a_nonlinear_decoder():
    target = make(zoo.tanh_decoder(num_data=1))
    theirs = sample_posterior(target, "pyro-nuts", **LONG)
    ours = sample_posterior(target, "hmc", num_chains=8, num_samples=500)
    a, b = (tree["posterior"]["z"].values.astype(float) for tree in (theirs, ours))
    reference = b.mean((0, 1))
    error_a = (a.mean((0, 1)) - reference) / z_scores(a, reference)
    error_b = (b.mean((0, 1)) - (reference + 1)) / z_scores(b, reference + 1)
    scores = (a.mean((0, 1)) - reference) / np.hypot(error_a, error_b)
    assert (np.abs(scores) < chance.z_score_limit(2)).all()


@pytest.mark.slow
def test_divergences_give_no_verdict():
    def funnel(x):
        with pyro.plate("data", len(x)):
            log_scale = pyro.sample("log_scale", dist.Normal(torch.zeros_like(x), 3.0))
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), log_scale.exp()))
            pyro.sample("x", dist.Normal(z, 100.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            log_scale = pyro.sample("log_scale", dist.Normal(torch.zeros_like(x), 3.0))
            pyro.sample("z", dist.Normal(torch.zeros_like(x), log_scale.exp()))

    target = Target(funnel, guide, torch.zeros(1, dtype=torch.float64))
    tree = sample_posterior(target, "pyro-nuts", **{**SHORT, "target_accept_prob": 0.5})
    assert tree["diagnostics"]["num_divergent"].item() == tree["sample_stats"]["diverging"].sum().item() > 0
    assert "divergences" in tree["diagnostics"]["reason"].item()
