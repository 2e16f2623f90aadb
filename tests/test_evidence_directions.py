"""Every estimator's stated direction: bounds hold in expectation, and what is called no bound errs to both sides."""

from collections.abc import Callable

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from torch import Tensor

from pyrovae.diagnostics.evidence import ESTIMATORS, METHODS, draw_log_weights, log_evidence
from pyrovae.diagnostics.gaussians import gaussian_posterior
from pyrovae.inference.laplace import unwhiten
from pyrovae.seeding import seeded
from pyrovae.target import Target

NUM_REPLICATES = 20_000
LIMIT = chance.z_score_limit(len(METHODS))


def z_score(errors: Tensor) -> float:
    return float(errors.double().mean() / errors.double().std() * len(errors) ** 0.5)


def from_guide(
    method: str, guide_scale: float, num_samples: int, num_replicates: int = NUM_REPLICATES
) -> float:
    """The z-score of the mean error of an estimator over independent repetitions."""
    specimen = zoo.linear_gaussian(guide_scale=guide_scale, num_data=1)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    log_w = draw_log_weights(target, num_samples * num_replicates) - specimen.log_evidence
    return z_score(ESTIMATORS[method].function(log_w.reshape(num_samples, num_replicates)).value)


def from_posterior(method: str, guide_scale: float) -> float:
    """The same for estimators that start from the posterior, each from its own 8 exact draws."""
    specimen = zoo.linear_gaussian(guide_scale=guide_scale, num_data=1)
    target = Target(specimen.model, specimen.guide, specimen.data[0].expand(2000, -1))
    posterior = gaussian_posterior(target).gaussian
    with seeded(0):
        reference = unwhiten(posterior, torch.randn(8, *posterior.loc.shape, dtype=torch.float64))
    options = {"num_temperatures": 3, "num_chains": 8, "start": "guide"} if method == "ais-reverse" else {}
    e = log_evidence(target, method, reference=reference, **options)
    return z_score(torch.as_tensor(e.value - specimen.log_evidence.numpy()))


def annealed(guide_scale: float) -> float:
    specimen = zoo.linear_gaussian(guide_scale=guide_scale, num_data=1)
    target = Target(specimen.model, specimen.guide, specimen.data[0].expand(2000, -1))
    e = log_evidence(target, "ais", num_temperatures=3, num_chains=8, start="guide")
    return z_score(torch.as_tensor(e.value - specimen.log_evidence.numpy()))


LOWER: dict[str, Callable[[], float]] = {
    "elbo": lambda: from_guide("elbo", 0.7, 4),
    "iwae": lambda: from_guide("iwae", 0.7, 4),
    "ais": lambda: annealed(0.5),
}
UPPER: dict[str, Callable[[], float]] = {
    "eubo": lambda: from_posterior("eubo", 0.7),
    "reciprocal": lambda: from_posterior("reciprocal", 1.3),
    "ais-reverse": lambda: from_posterior("ais-reverse", 0.5),
}
BOTH: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
    "jackknife": (lambda: from_guide("jackknife", 0.4, 5), lambda: from_guide("jackknife", 1.5, 2)),
    "jackknife-2": (lambda: from_guide("jackknife-2", 0.4, 5), lambda: from_guide("jackknife-2", 2.0, 3)),
    "psis": (lambda: from_guide("psis", 0.4, 30, 1000), lambda: from_guide("psis", 1.8, 100, 6000)),
    "cumulant": (lambda: from_guide("cumulant", 0.4, 30), lambda: from_guide("cumulant", 1.5, 30)),
    "cubo": (lambda: from_guide("cubo", 2.5, 2, 2000), lambda: from_guide("cubo", 2.5, 30, 2000)),
    "largest-weight": (
        lambda: from_guide("largest-weight", 0.4, 2),
        lambda: from_guide("largest-weight", 0.4, 30),
    ),
    "single-shot": (lambda: at_point("single-shot", 0.0, 0.3), lambda: at_point("single-shot", 0.0, 3.0)),
    "single-shot-laplace": (
        lambda: at_point("single-shot-laplace", 0.3, 1.0),
        lambda: at_point("single-shot-laplace", -0.3, 1.0),
    ),
    "laplace": (lambda: at_point("laplace", 0.3, 1.0), lambda: at_point("laplace", -0.3, 1.0)),
}


def at_point(method: str, fourth: float, guide_scale: float) -> float:
    """The error, in units that any limit sees, on exp(-z^2/2) times 1 + a z^4 for heavy tails, exp(a z^4) for light."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.log1p(fourth * z**4) if fourth > 0 else fourth * z**4)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), guide_scale))

    target = Target(model, guide, torch.zeros(2, dtype=torch.float64))
    truth = log_evidence(target, "quadrature")
    assert truth.is_reliable.all()
    return float(1e6 * (log_evidence(target, method).value - truth.value)[0])


def test_every_direction_is_proved():
    assert {*LOWER, *UPPER, *BOTH, "exact", "quadrature"} == set(METHODS)


@pytest.mark.parametrize("method", LOWER)
def test_lower_bounds_lie_below(method):
    assert LOWER[method]() < -LIMIT


@pytest.mark.parametrize("method", UPPER)
def test_upper_bounds_lie_above(method):
    assert UPPER[method]() > LIMIT


@pytest.mark.parametrize("method", BOTH)
def test_what_has_no_direction_errs_to_both_sides(method):
    below, above = BOTH[method]
    assert below() < -LIMIT
    assert above() > LIMIT


@pytest.mark.parametrize("name", ["linear_gaussian", "factor_and_branch", "wide guide", "nested"])
def test_the_closed_form_is_exact(name):
    specimen = zoo.SHAPES[name]()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    e = log_evidence(target, "exact")
    assert e.direction == "exact"
    assert np.abs(e.value - specimen.log_evidence.numpy()).max() < 1e-9


@pytest.mark.parametrize("name", ["gamma_poisson", "factor_and_branch", "tanh decoder", "dependent support"])
def test_quadrature_is_exact_within_its_own_error(name):
    specimen = zoo.SHAPES[name]()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    e = log_evidence(target, "quadrature", tolerance=1e-3)
    assert e.direction == "exact"
    assert e.is_reliable.all()
    error = np.abs(e.value - specimen.log_evidence.numpy())
    assert (error <= np.maximum(e.std_error, 1e-7)).all(), error
