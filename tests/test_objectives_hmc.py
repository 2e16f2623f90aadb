"""Objective "hmc": the model's gradient is that of log p(x), the guide's that of the ELBO."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from chance import means_agree
from pyro.infer import Trace_ELBO

import pyrovae as pv
from pyrovae.compiled import traced
from pyrovae.training.objectives import HMCGradient, hmc, make_objective

F64 = torch.float64
COPIES = 500  # of each datum, so that one call gives as many gradients


def gaussian(shift=0.4, narrow=0.6):
    """z ~ N(loc, I), x | z ~ N(W z, 0.5^2 I), a guide that is off; the gradient of log p(x) in loc for one datum."""
    torch.manual_seed(3)
    weight, x = torch.randn(4, 2, dtype=F64), torch.randn(4, dtype=F64)
    loc = torch.zeros(COPIES, 2, dtype=F64, requires_grad=True)
    offset = torch.full((2,), shift, dtype=F64, requires_grad=True)
    covariance = torch.linalg.inv(torch.eye(2, dtype=F64) + weight.mT @ weight / 0.25)
    mean, sd = covariance @ weight.mT @ x / 0.25, covariance.diagonal().sqrt()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc.repeat(len(x) // COPIES, 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.mT, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mean + offset * sd).expand(len(x), 2), narrow * sd).to_event(1))

    return model, guide, (x.expand(COPIES, 4),), loc, offset, mean  # d log p(x) / d loc = E[z | x] - loc


def counts():
    """rate ~ Gamma(2, tilt), count | rate ~ Poisson(rate): d log p / d tilt = 2 / tilt - E[rate | count]."""
    tilt = torch.full((COPIES,), 1.0, dtype=F64, requires_grad=True)
    x = torch.full((COPIES,), 3.0, dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, tilt[: len(x)]))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(0.4 + 0 * x, 0.3))

    return model, guide, (x,), tilt, torch.tensor([2.0 - 5 / 2], dtype=F64)


def shares():
    """w ~ Dirichlet(c), x | w ~ Multinomial(w): the gradient of log p(x) in c in closed form."""
    concentration = torch.full((COPIES, 3), 2.0, dtype=F64, requires_grad=True)
    x = torch.tensor([4.0, 1.0, 0.0], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Dirichlet(concentration[: len(x)]))
            pyro.sample("x", dist.Multinomial(5, probs=w), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Dirichlet(torch.full((3,), 4.0, dtype=F64).expand(len(x), 3)))

    c = torch.full((3,), 2.0, dtype=F64)
    exact = torch.digamma(c.sum()) - torch.digamma((c + x).sum()) + torch.digamma(c + x) - torch.digamma(c)
    return model, guide, (x.expand(COPIES, 3),), concentration, exact


def model_gradients(problem, objective, seed=0):
    """One gradient a datum, of the parameter that each datum has for itself."""
    model, guide, data, parameter, *_ = problem
    torch.manual_seed(seed)
    (gradient,) = torch.autograd.grad(objective.differentiable_loss(model, guide, *data), parameter)
    return -gradient.reshape(COPIES, -1)


LONG = HMCGradient(num_transitions=25)


@pytest.mark.parametrize("make", [gaussian, counts, shares])
def test_the_models_gradient_is_that_of_the_evidence(make):
    problem = make()
    assert means_agree(model_gradients(problem, LONG), problem[-1])
    assert not means_agree(model_gradients(problem, make_objective("iwae")), problem[-1])  # the ELBO's


def test_each_particle_has_a_chain_of_its_own():
    problem = gaussian()
    one, four = (model_gradients(problem, HMCGradient(n, num_transitions=25)).var(0).mean() for n in (1, 4))
    assert means_agree(model_gradients(problem, HMCGradient(4, num_transitions=25)), problem[-1])
    assert 0.15 < four / one < 0.4  # a quarter; the ratio of variances of 500 each strays by a tenth


def inverted(state, density, **options):
    """Planted: what should be rejected is accepted."""
    options["log_uniform"] = torch.log(-torch.expm1(options["log_uniform"]))
    _, info = hmc_step(state, density, **options)
    end, _ = hmc_step(
        state, density, **{**options, "log_uniform": torch.full_like(options["log_uniform"], -1e9)}
    )
    taken = info.accepted.unsqueeze(-1)
    return state._replace(
        position=torch.where(taken, state.position, end.position),
        log_density=torch.where(info.accepted, state.log_density, end.log_density),
        gradient=torch.where(taken, state.gradient, end.gradient),
    ), info


hmc_step = hmc.step


def test_without_the_jacobian_the_gradient_is_wrong(monkeypatch):
    monkeypatch.setattr(hmc._Unconstrained, "log_jacobian", lambda self, u: u.new_zeros(len(u)))
    problem = counts()
    assert not means_agree(model_gradients(problem, LONG), problem[-1])


def test_a_wrong_transition_is_seen(monkeypatch):
    monkeypatch.setattr(hmc, "step", inverted)
    problem = counts()
    assert not means_agree(model_gradients(problem, LONG), problem[-1])


def test_loss_and_the_guides_gradient_are_the_elbos():
    model, guide, data, _, offset, _ = gaussian()
    found = []
    for objective in (HMCGradient(), Trace_ELBO()):
        torch.manual_seed(5)
        loss = objective.differentiable_loss(model, guide, *data)
        found.append((loss.detach(), *torch.autograd.grad(loss, offset)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    torch.manual_seed(5)
    assert HMCGradient().loss(model, guide, *data) == pytest.approx(found[0][0].item(), rel=1e-10)


def test_chunks_give_the_same_gradient_up_to_chance():
    problem = gaussian()
    objective = HMCGradient(4, num_transitions=25, chunk_size=2)
    assert means_agree(model_gradients(problem, objective), problem[-1])


def test_what_it_refuses():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(0.0, 2.0))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Uniform(0.0, 2.0 + 0 * x))

    with pytest.raises(NotImplementedError, match="between 0 and 1 or a simplex.*site 'a'"):
        HMCGradient().differentiable_loss(model, guide, torch.ones(3))
    with pytest.raises(ValueError, match="num_transitions of HMCGradient must be an integer of at least 1"):
        HMCGradient(num_transitions=0)


@pytest.mark.parametrize("compile", [False, "auto"])
def test_fit_takes_it(compile):
    x = pv.data.linear_gaussian(64, 6, 2).x
    vae = pv.build_vae(6, 2, hidden=(8,), seed=0).double()
    options = {"num_transitions": 2, "lr": 0.03, "max_epochs": 12, "batch_size": 32, "compile": compile}
    result = pv.fit(vae.model, vae.guide, x, objective="hmc", **options)
    elbo = result.history["elbo"]
    assert elbo[-1] > elbo[0] + 1


def test_a_traced_step_is_the_step_itself():
    x = pv.data.linear_gaussian(16, 6, 2).x
    vae = pv.build_vae(6, 2, hidden=(8,), seed=0).double()
    objective, parameters = HMCGradient(num_transitions=1), list(vae.parameters())

    def gradients(x):
        with pyro.validation_enabled(False), torch.enable_grad():
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
        return torch.autograd.grad(loss, parameters)

    torch.manual_seed(0)
    wanted = gradients(x)
    program = traced(gradients, (x,), (2 * x,))
    assert program.route == "traced"
    torch.manual_seed(0)
    for found, expected in zip(program(x), wanted, strict=True):
        torch.testing.assert_close(found, expected)
