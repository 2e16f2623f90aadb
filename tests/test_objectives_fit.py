"""The objectives at work: in `fit`, in plain SVI, as a module, and with the options of a training run."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyrovae.models.vae import build_vae
from pyrovae.training.fit import FitConfig, TrainingDiverged, fit
from pyrovae.training.objectives import ELBO_OBJECTIVES, OBJECTIVES, make_objective

OPTIONS = {
    "miwae": {"num_outer": 2},
    "piwae": {"num_outer": 2},
    "ciwae": {"beta": 0.3},
    "renyi": {"alpha": 0.5},
}
NAMES = [name for name in OBJECTIVES if name not in ("elbo", "analytic_kl")]
X = torch.linspace(-2, 2, 32)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        slope = pyro.param("slope", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(slope * x + pyro.param("shift", torch.tensor(0.0)), 0.5**0.5))


@pytest.mark.parametrize("name", NAMES)
def test_fit_reaches_the_posterior_and_the_evidence(name):
    """But for "detached", whose guide never moves. log p(x) is that of N(loc, 2) with the data's mean as loc."""
    options = OPTIONS.get(name, {}) | {"objective": name, "num_particles": 8, "lr": 0.05, "batch_size": 32}
    result = fit(model, guide, X + 0.5, max_epochs=200, **options)
    metric = "elbo" if name in ELBO_OBJECTIVES else "bound"
    assert set(result.history) == {metric, "seconds"}
    if name == "detached":
        assert result.params["slope"] == result.params["shift"] == 0
        assert result.params["loc"] != 0
        return
    assert result.params["slope"].item() == pytest.approx(0.5, abs=0.2)
    assert result.params["loc"].item() == pytest.approx(0.5, abs=0.3)
    log_evidence = dist.Normal(0.5, 2**0.5).log_prob(X + 0.5).mean().item()
    assert result.history[metric][-20:].mean() == pytest.approx(log_evidence, abs=0.05)


def test_the_best_epoch_is_that_of_the_objectives_own_bound():
    result = fit(model, guide, X, val_data=X[:9], objective="dreg", num_particles=4, max_epochs=8, lr=0.05)
    assert set(result.history) == {"bound", "val_bound", "seconds"}
    assert result.best_epoch == result.history["val_bound"].argmax()


@pytest.mark.parametrize("name", ["stl", "iwae", "vimco"])
@pytest.mark.parametrize("size", [64, 32])  # 64 is the number of rows of the two tiled particles, too
def test_the_history_is_per_datum_for_a_subsampled_plate(name, size):
    """With the posterior as guide every bound is log p(x), whatever the parameter at its start."""

    def half_model(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", size, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

    def half_guide(x):
        with pyro.plate("data", size, subsample_size=len(x)):
            pyro.sample("z", dist.Normal((x - 0.5) / 2, 0.5**0.5))

    options = {"num_particles": 2, "batch_size": 32, "max_epochs": 1, "lr": 1e-7}
    history = fit(half_model, half_guide, X, val_data=X[:8], objective=name, **options).history
    values = [history[key][0] for key in history if key != "seconds"]
    exact = [dist.Normal(0.5, 2**0.5).log_prob(x).mean().item() for x in (X, X[:8])]
    np.testing.assert_allclose(values, exact, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_plain_svi_takes_a_step(name):
    with pyro.get_param_store().scope():
        objective = make_objective(name, 4, **OPTIONS.get(name, {}), chunk_size=3)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), objective)
        torch.manual_seed(0)
        first = svi.step(X)
        moved = {key: pyro.param(key).item() for key in ("loc", "slope", "shift")}
        assert isinstance(first, float)
        assert isinstance(svi.evaluate_loss(X), float)
    assert moved["loc"] != 0
    assert (moved["slope"] != 0) == (moved["shift"] != 0) == (name != "detached")


def test_every_parameter_has_a_gradient():
    vae = build_vae(5, 2, hidden=(6,), seed=0)
    x = torch.randn(8, 5)
    with pyro.get_param_store().scope():
        make_objective("dreg", 4).differentiable_loss(vae.model, vae.guide, x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize("encoder", ["diagonal", "full", "low-rank", "mixture", "flow"])
@pytest.mark.parametrize("name", ["stl", "iwae", "dreg", "rws", "vimco"])
def test_every_encoder_trains(name, encoder):
    vae = build_vae(5, 2, hidden=(6,), encoder=encoder, seed=0)
    before = {key: p.detach().clone() for key, p in vae.named_parameters()}
    options = {"num_particles": 4, "chunk_size": 3, "max_epochs": 1, "batch_size": 8}
    result = fit(vae.model, vae.guide, torch.randn(8, 5), objective=name, **options)
    assert np.isfinite(result.history["elbo" if name == "stl" else "bound"]).all()
    assert all((p != before[key]).any() for key, p in vae.named_parameters())


def test_the_kl_weight_of_sticking_the_landing_is_that_of_the_elbo():
    runs = [
        fit(model, guide, X, objective=name, kl_weight=0.3, batch_size=32, max_epochs=1, seed=3)
        for name in ("stl", "elbo")
    ]
    values = [run.history["weighted_elbo"] for run in runs]
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("options", [{"kl_weight": 0.5}, {"n_epochs_kl_warmup": 5}])
@pytest.mark.parametrize("name", ["iwae", "score_function"])
def test_a_kl_weight_is_refused_where_there_is_no_such_term(name, options):
    with pytest.raises(ValueError, match=f'a KL term, elbo, analytic_kl, stl, got "{name}"'):
        FitConfig(objective=name, **options)


def test_options_of_objectives_are_checked_when_the_options_are_made():
    assert FitConfig(objective="miwae", num_particles=6, num_outer=3).make_objective("data").num_outer == 3
    with pytest.raises(ValueError, match='objective "miwae" wants num_outer'):
        FitConfig(objective="miwae", num_particles=6)
    with pytest.raises(ValueError, match="must be an integer of at least 2, got 1"):
        FitConfig(objective="vimco")


def test_divergence_is_reported():
    def bad(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(float("nan"))) * x, 1.0))

    with pytest.raises(TrainingDiverged, match="'slope'|'z'"):
        fit(model, bad, X, objective="iwae", num_particles=4, max_epochs=1)


def test_the_elbo_is_pyros_own():
    assert type(make_objective("elbo", 3)) is Trace_ELBO
