"""Reconstructions against closed forms, and their error against the number of draws."""

import math

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo

from pyrovae.diagnostics.reconstruction import draw_counts, reconstruct
from pyrovae.reporting.plots import plot_draw_counts, plot_reconstructions
from pyrovae.target import Target


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(3 * z, 2.0).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 4, 0.5).to_event(1))


X = torch.tensor([[0.0, 1.0], [2.0, -2.0], [4.0, 0.5]], dtype=torch.float64)


def test_the_average_log_likelihood_is_its_closed_form():
    made = reconstruct(Target(model, guide, X), 20_000)["reconstruction"]
    residual = (X - 0.75 * X).numpy() ** 2 + 9 * 0.25
    exact = -0.5 * (residual / 4 + math.log(8 * math.pi)).sum(1)
    last = made.to_dataset().isel({"count": -1})
    z = (last["log_likelihood"].values - exact) / last["log_likelihood_std_error"].values
    assert np.abs(z).max() < chance.z_score_limit(3)


def test_the_error_falls_like_the_root_of_the_number_of_draws():
    made = reconstruct(Target(model, guide, X), 1000)["reconstruction"]
    scaled = made["log_likelihood_std_error"].values * np.sqrt(made["count"].values)[:, None]
    assert np.allclose(scaled, scaled[0])


def test_the_error_bars_are_right():
    """Over 400 seeds, the spread of the average over ten draws is what one long run says."""
    target = Target(model, guide, X)
    long = reconstruct(target, 20_000)["reconstruction"].to_dataset().sel({"count": 10})
    short = [
        reconstruct(target, 10, seed=s)["reconstruction"]["log_likelihood"].values[-1] for s in range(1, 401)
    ]
    ratio = np.stack(short).var(0, ddof=1) / long["log_likelihood_std_error"].values ** 2
    # log-likelihoods are chi-square-like, with a variance of the variance above the normal one: a wide limit
    assert (np.abs(ratio - 1) < 0.5).all()


def test_the_mean_image_flatters():
    """What the docstring warns of: log p(x | mean reconstruction) exceeds the average log-likelihood."""
    made = reconstruct(Target(model, guide, X), 5000, num_kept=5000)["reconstruction"].to_dataset()
    mean = torch.as_tensor(made["x"].mean("draw").values)
    of_mean = dist.Normal(mean, 2.0).log_prob(X).sum(1).numpy()
    assert (of_mean > made["log_likelihood"].isel({"count": -1}).values + 0.5).all()


def test_draws_and_spread():
    tree = reconstruct(make(zoo.convolutional()), 50, num_kept=8)
    made = tree["reconstruction"].to_dataset()
    assert made["x"].shape == (8, 6, 1, 4, 4)
    expected = np.sqrt(made["x"].values.var(0, ddof=1).mean((1, 2, 3)))
    assert np.allclose(made["spread"].values, expected)
    spread = reconstruct(Target(model, guide, X), 4000, num_kept=4000)["reconstruction"]["spread"].values
    assert np.allclose(spread, 1.5, atol=0.1)  # 3 times a guide sd of 0.5


@pytest.mark.parametrize("name", zoo.SHAPES)
def test_every_specimen_is_reconstructed(name):
    tree = reconstruct(make(zoo.SHAPES[name]()), 30)
    assert np.isfinite(tree["reconstruction"]["log_likelihood"].values).all()


def test_blocks_of_data(monkeypatch):
    from pyrovae.diagnostics import reconstruction

    monkeypatch.setattr(reconstruction, "MAX_ROWS", 200)
    made = reconstruct(Target(model, guide, X), 150)["reconstruction"]
    assert made["log_likelihood"].shape == (len(draw_counts(150)), 3)


def test_figures():
    tree = reconstruct(Target(model, guide, X), 1000)
    figure = plot_draw_counts(tree)
    lines = figure.axes[0].lines
    assert np.allclose(lines[0].get_ydata(), tree["reconstruction"]["log_likelihood_std_error"].values[:, 0])
    assert "One draw errs by" in figure.get_suptitle()
    assert plot_reconstructions(tree).axes


def test_counts_end_with_the_number_asked_for():
    assert draw_counts(10_000).tolist()[-3:] == [2000, 5000, 10_000]
    assert draw_counts(2).tolist() == [1, 2]


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        reconstruct(Target(model, guide, X), 1)
