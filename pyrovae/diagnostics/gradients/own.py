"""The gradient of an estimator's own objective, from independent noise: what its bias is measured against."""

from collections.abc import Callable
from typing import NamedTuple

from pyrovae.diagnostics.gradients.estimators import Estimator, applies
from pyrovae.diagnostics.gradients.moments import Moments
from pyrovae.diagnostics.gradients.parameters import Problem
from pyrovae.diagnostics.gradients.reference import Reference
from pyrovae.training.objectives import ELBO_OBJECTIVES

__all__ = ["Own", "own_gradient"]

ROLE = "reference"


class Own(NamedTuple):
    """How the gradient of an objective is estimated, by kind of parameter; None where it is not known."""

    encoder: Moments | None
    decoder: Moments | None
    shared: Moments | None


def own_gradient(
    problem: Problem,
    estimator: Estimator,
    most_particles: int,
    reference: Reference,
    measure: Callable[[Estimator], Moments],
) -> Own:
    """The gradient of the estimator's own objective: of the ELBO, of a bound, or of two objectives.

    "piwae" and the two of wake-sleep have one objective for the model and another for the guide; the sum that a shared
    parameter gets is the gradient of none.
    """
    name, count, options = estimator.name, estimator.num_particles, estimator.options
    if name in ELBO_OBJECTIVES:
        return _same(measure(_elbo(problem, most_particles)))
    if name in ("miwae", "ciwae", "renyi"):
        return _same(measure(estimator._replace(role=ROLE)))
    decoder = measure(_bound(problem, count, most_particles))
    if name == "piwae":
        return Own(measure(Estimator("miwae", count, options, ROLE)), decoder, None)
    if name in ("rws", "rws_dreg"):
        return Own(reference.moments if reference.has_guide else None, decoder, None)
    return _same(decoder)


def _same(moments: Moments) -> Own:
    return Own(moments, moments, moments)


def _elbo(problem: Problem, most_particles: int) -> Estimator:
    """Its gradient has the same mean for every number of particles, and the least noise for the most."""
    if problem.is_reparameterized:
        return Estimator("elbo", most_particles, role=ROLE)
    return Estimator("score_function_loo", max(2, most_particles), role=ROLE)


def _bound(problem: Problem, count: int, most_particles: int) -> Estimator:
    """The quietest estimator of the gradient of IWAE's bound that this guide allows; with one particle, the ELBO."""
    if count == 1:
        return _elbo(problem, most_particles)
    if not problem.is_reparameterized:
        return Estimator("vimco", count, role=ROLE)
    dreg = Estimator("dreg", count, role=ROLE)
    return dreg if applies(problem, dreg) else dreg._replace(name="iwae")
