"""The mean of every estimator against autograd of its own objective's exact value, and planted errors."""

import math

import pytest
import torch
from chance import means_agree
from toy import F64, Point, exact_elbo, exact_gradient, exact_wake_gradient, gradients

from pyrovae.training.objectives import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    STL,
    VIMCO,
    DReG,
    Renyi,
    ScoreFunction,
    ScoreFunctionLOO,
    WakeSleep,
    WakeSleepDReG,
    make_objective,
)

NUM_REPLICATES = 40_000


def iwae(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def renyi(alpha):
    return lambda log_w: iwae((1 - alpha) * log_w) / (1 - alpha)


def elbo_gradient():
    params = [torch.tensor(value, dtype=F64, requires_grad=True) for value in Point()]
    return torch.stack(torch.autograd.grad(exact_elbo(*params), params))


def wake_sleep():
    return torch.cat([exact_gradient(iwae, 2)[:1], exact_wake_gradient(2)])


EXACT = {
    ("stl", 1): elbo_gradient,
    ("stl", 3): elbo_gradient,
    ("score_function", 2): elbo_gradient,
    ("score_function_loo", 3): elbo_gradient,
    ("iwae", 1): elbo_gradient,
    ("iwae", 2): lambda: exact_gradient(iwae, 2),
    ("dreg", 2): lambda: exact_gradient(iwae, 2),
    ("dreg", 3): lambda: exact_gradient(iwae, 3),
    ("vimco", 2): lambda: exact_gradient(iwae, 2),
    ("vimco", 3): lambda: exact_gradient(iwae, 3),
    ("miwae", 4): lambda: exact_gradient(iwae, 2),
    ("ciwae", 2): lambda: 0.3 * elbo_gradient() + 0.7 * exact_gradient(iwae, 2),
    ("piwae", 2): lambda: torch.cat([exact_gradient(iwae, 2)[:1], elbo_gradient()[1:]]),
    ("renyi", 2): lambda: exact_gradient(renyi(-1.0), 2),
    ("rws", 2): wake_sleep,
    ("rws_dreg", 2): wake_sleep,
    ("detached", 1): lambda: elbo_gradient() * torch.tensor([1.0, 0.0, 0.0]),
}
OPTIONS = {
    "miwae": {"num_outer": 2},
    "piwae": {"num_outer": 2},
    "ciwae": {"beta": 0.3},
    "renyi": {"alpha": -1.0},
}


def has_mean(objective, exact) -> bool:
    return means_agree(gradients(objective, NUM_REPLICATES), exact)


@pytest.mark.parametrize(("name", "num_particles"), EXACT)
def test_the_mean_is_the_gradient_of_the_exact_objective(name, num_particles):
    objective = make_objective(name, num_particles, **OPTIONS.get(name, {}))
    assert has_mean(objective, EXACT[name, num_particles]())


class IgnoresWeights(IWAE):
    """Planted: equal weights in the gradient."""

    def plan(self, log_w):
        equal = torch.full_like(log_w, 1 / len(log_w))
        return super().plan(log_w)._replace(model=equal, guide=-equal)


class KeepsTheScore(DReG):
    """Planted: squared weights, but the total derivative."""

    graph = "total"


class DReGNotSquared(DReG):
    """Planted: sticking the landing with weights v in the place of v^2."""

    def plan(self, log_w):
        return super().plan(log_w)._replace(path=None)


class STLOfTheModel(STL):
    """Planted: log q is dropped, with what it sends into the draws."""

    def plan(self, log_w):
        return super().plan(log_w)._replace(guide=torch.zeros_like(log_w))


class OwnBaseline(ScoreFunctionLOO):
    """Planted: the baseline is the mean of all, itself among them, as if it were independent."""

    def plan(self, log_w):
        return super().plan(log_w)._replace(guide=(log_w - log_w.mean(0)) / len(log_w))


class ScoreOfTheSum(ScoreFunction):
    """Planted: the sum over particles in the place of their mean."""

    def plan(self, log_w):
        return super().plan(log_w)._replace(guide=log_w)


class ScoreUpsideDown(ScoreFunction):
    """Planted: the sign of the score term."""

    def plan(self, log_w):
        plan = super().plan(log_w)
        return plan._replace(guide=-plan.guide)


class VIMCOWithoutWeights(VIMCO):
    """Planted: the direct gradient of the bound, -sum_k v_k d log q, is missing."""

    def plan(self, log_w):
        plan = super().plan(log_w)
        return plan._replace(guide=plan.guide + plan.model)


class VIMCOOwnBaseline(VIMCO):
    """Planted: a baseline that contains its own particle."""

    def plan(self, log_w):
        plan = super().plan(log_w)
        return plan._replace(guide=iwae(log_w) - log_w.mean(0) - plan.model)


class OneGroup(MIWAE):
    """Planted: weights normalized over all groups together."""

    def plan(self, log_w):
        v = log_w.softmax(0)
        return super().plan(log_w)._replace(model=v, guide=-v)


class BetaSwapped(CIWAE):
    """Planted: beta weights the IWAE."""

    def __init__(self, num_particles, beta):
        super().__init__(num_particles, beta=1 - beta)


class RolesSwapped(PIWAE):
    """Planted: MIWAE for the model, IWAE for the guide."""

    def plan(self, log_w):
        plan = super().plan(log_w)
        return plan._replace(model=-plan.guide, guide=-plan.model, path=-plan.model / plan.guide)


class NoPathFactor(PIWAE):
    """Planted: the draws feel the model's weights."""

    def plan(self, log_w):
        return super().plan(log_w)._replace(path=None)


class WrongPower(Renyi):
    """Planted: weights in proportion to w^alpha."""

    def plan(self, log_w):
        v = (self.alpha * log_w).softmax(0)
        return super().plan(log_w)._replace(model=v, guide=-v)


class WakeSleepOfTheBound(WakeSleep):
    """Planted: the guide descends."""

    def plan(self, log_w):
        plan = super().plan(log_w)
        return plan._replace(guide=-plan.guide)


class WakeSleepDReGSquared(WakeSleepDReG):
    """Planted: the path gradient of the bound, v^2 in the place of v - v^2."""

    def plan(self, log_w):
        plan = super().plan(log_w)
        return plan._replace(path=plan.model)


PLANTED = {
    IgnoresWeights: (("iwae", 2), {}),
    KeepsTheScore: (("dreg", 2), {}),
    DReGNotSquared: (("dreg", 2), {}),
    STLOfTheModel: (("stl", 1), {}),
    OwnBaseline: (("score_function_loo", 3), {}),
    ScoreOfTheSum: (("score_function", 2), {}),
    ScoreUpsideDown: (("score_function", 2), {}),
    VIMCOWithoutWeights: (("vimco", 3), {}),
    VIMCOOwnBaseline: (("vimco", 3), {}),
    OneGroup: (("miwae", 4), {"num_outer": 2}),
    BetaSwapped: (("ciwae", 2), {"beta": 0.3}),
    RolesSwapped: (("piwae", 2), {"num_outer": 2}),
    NoPathFactor: (("piwae", 2), {"num_outer": 2}),
    WrongPower: (("renyi", 2), {"alpha": -1.0}),
    WakeSleepOfTheBound: (("rws", 2), {}),
    WakeSleepDReGSquared: (("rws_dreg", 2), {}),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_assertion_sees_a_wrong_estimator(planted):
    key, options = PLANTED[planted]
    assert not has_mean(planted(num_particles=key[1], **options), EXACT[key]())


@pytest.mark.parametrize("name", ["score_function", "score_function_loo", "vimco", "rws", "detached"])
def test_draws_without_a_gradient_will_do(name):
    objective = make_objective(name, 4)
    assert torch.equal(gradients(objective, 50), gradients(objective, 50, rsample=False))


def test_without_reparameterization_the_guides_gradient_is_exactly_zero():
    assert (gradients(make_objective("detached", 3), 100)[:, 1:] == 0).all()


def test_the_reference_agrees_with_the_closed_form():
    torch.testing.assert_close(exact_gradient(iwae, 1), elbo_gradient())


@pytest.mark.parametrize("num_particles", [2, 3, 17])
def test_vimco_leaves_each_particle_out(num_particles):
    torch.manual_seed(0)
    log_w = 30 * torch.randn(num_particles, 4, dtype=F64)  # one weight outweighs all the others
    plan = VIMCO(num_particles).plan(log_w)
    for k in range(num_particles):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        replaced = torch.cat([others, others.mean(0, keepdim=True)])
        torch.testing.assert_close(plan.guide[k], iwae(log_w) - iwae(replaced) - log_w.softmax(0)[k])
