import pyro
import pyro.distributions as dist
import pytest
import torch
from chance import means_agree, z_score_limit
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import kl_divergence
from zoo import linear_gaussian, other_family, subsampled

from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian, FullGaussian, GaussianMixtureEncoder, LowRankGaussian
from pyrovae.models.networks import mlp
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE
from pyrovae.training.fit import fit
from pyrovae.training.objectives import OBJECTIVES, AnalyticKL, make_objective

F64 = torch.float64


def losses(objective, specimen, num_losses=300):
    """Values of the loss, each a sum over the data repeated 20 times."""
    torch.manual_seed(0)
    data = [x.repeat(20, *[1] * (x.dim() - 1)) for x in specimen.data]
    return torch.tensor(
        [objective.loss(specimen.model, specimen.guide, *data) / 20 for _ in range(num_losses)]
    )


def is_the_exact_loss(objective):
    """With the posterior as guide the mean loss is -log p(x); the error allowed is that of the reconstruction."""
    specimen = linear_gaussian(scale=2.0)
    return means_agree(losses(objective, specimen), -specimen.log_evidence.sum())


class KLWithoutTrace(AnalyticKL):
    """Planted: 1/2 tr(C) is missing from the KL divergence to a standard normal prior."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        trace = 0.5 * guide_trace.nodes["z"]["fn"].variance.sum()
        return loss - trace.item(), surrogate - trace


class KLSwapped(AnalyticKL):
    """Planted: KL(prior || guide) in the place of KL(guide || prior)."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        guide, prior = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
        dense = dist.MultivariateNormal(prior.mean, torch.diag_embed(prior.variance))
        change = (kl_divergence(dense, guide) - kl_divergence(guide, dense)).sum()
        return loss + change.item(), surrogate + change


PLANTED = [KLWithoutTrace, KLSwapped]


def test_every_objective_has_a_name():
    options = {
        "miwae": {"num_outer": 3},
        "piwae": {"num_outer": 1},
        "ciwae": {"beta": 0.5},
        "renyi": {"alpha": 2.0},
    }
    for name in OBJECTIVES:
        assert make_objective(name, 3, **options.get(name, {})).num_particles == 3
    with pytest.raises(ValueError, match="objective must be one of analytic_kl, .*elbo, .*, got 'iwea'"):
        make_objective("iwea")


def test_the_exact_guide_of_full_covariance_gives_the_evidence():
    assert is_the_exact_loss(make_objective("analytic_kl"))


@pytest.mark.parametrize("planted", PLANTED)
def test_the_assertion_sees_a_wrong_kl_term(planted):
    assert not is_the_exact_loss(planted())


def test_the_kl_term_has_no_noise():
    """What is left of the noise is that of the reconstruction: the same draws give the same remainder."""
    specimen, objective = linear_gaussian(guide_scale=1.3), make_objective("analytic_kl")
    torch.manual_seed(0)
    loss = objective.loss(specimen.model, specimen.guide, *specimen.data)
    torch.manual_seed(0)
    guide_trace = pyro.poutine.trace(specimen.guide).get_trace(*specimen.data)
    model_trace = pyro.poutine.trace(pyro.poutine.replay(specimen.model, guide_trace)).get_trace(
        *specimen.data
    )
    model_trace.compute_log_prob()
    reconstruction = model_trace.nodes["x"]["log_prob"].sum()
    cov = specimen.posterior_cov * 1.3**2
    mean = specimen.posterior_mean
    kl = 0.5 * (
        cov.diagonal(dim1=-2, dim2=-1).sum(-1)
        + mean.square().sum(-1)
        - 3
        - torch.linalg.slogdet(cov).logabsdet
    )
    assert loss == pytest.approx((kl.sum() - reconstruction).item(), abs=1e-9)


def test_particles_are_averaged():
    specimen = linear_gaussian()
    one, many = (losses(AnalyticKL(n), specimen, 100) for n in (1, 16))
    # a ratio of 1/16 is expected; the F distribution of 99 and 99 degrees exceeds its mean threefold with 1e-7
    assert many.var() < one.var() / 16 * 3
    assert means_agree(many, -specimen.log_evidence.sum())


def gradients(objective, num_draws=300, seed=0):
    """Gradients of the shift and the Cholesky factor of a guide near the posterior, one row a draw."""
    specimen = linear_gaussian(scale=2.0)
    x = specimen.data[0].repeat(20, 1)
    shift = torch.full((3,), 0.2, dtype=F64, requires_grad=True)
    tril = (1.2 * torch.linalg.cholesky(specimen.posterior_cov[0])).detach().requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = specimen.posterior_mean.repeat(20, 1) + shift
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril.tril()))

    torch.manual_seed(seed)
    rows = []
    for _ in range(num_draws):
        loss = objective.differentiable_loss(specimen.model, guide, x)
        by_shift, by_tril = torch.autograd.grad(loss, [shift, tril])
        rows.append(torch.cat([by_shift, by_tril[torch.ones(3, 3).tril() == 1]]))
    return torch.stack(rows)


def has_the_gradient_of_the_elbo(objective):
    one, two = gradients(objective, seed=1), gradients(Trace_ELBO())
    error = (one.mean(0) - two.mean(0)).abs()
    std_error = (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()
    return bool((error <= z_score_limit(error.numel()) * std_error).all())


def test_the_gradient_is_that_of_the_elbo_in_expectation():
    assert has_the_gradient_of_the_elbo(make_objective("analytic_kl"))


@pytest.mark.parametrize("planted", PLANTED)
def test_the_assertion_sees_a_wrong_gradient(planted):
    assert not has_the_gradient_of_the_elbo(planted())


def make_vae(encoder, prior=None):
    torch.manual_seed(0)
    return VAE(prior or StandardNormal(2), GaussianDecoder(mlp(2, (), 5)), encoder)


class CorrelatedNormal(nn.Module):
    def __init__(self):
        super().__init__()
        self.tril = nn.Parameter(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))

    def forward(self):
        return dist.MultivariateNormal(torch.zeros(2), scale_tril=self.tril.tril())


ENCODERS = {
    "diagonal": lambda: DiagonalGaussian(nn.Linear(5, 4)),
    "full": lambda: FullGaussian(nn.Linear(5, FullGaussian.width(2))),
    "low rank": lambda: LowRankGaussian(nn.Linear(5, LowRankGaussian.width(2, 1)), 1),
}


@pytest.mark.parametrize("prior", [lambda: StandardNormal(2), CorrelatedNormal])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_fit_trains_every_gaussian_pair(encoder, prior):
    vae = make_vae(ENCODERS[encoder](), prior())
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    x = torch.randn(64, 5) @ torch.randn(5, 5)
    options = {"objective": "analytic_kl", "batch_size": 16, "lr": 3e-2, "max_epochs": 10}
    history = fit(vae.model, vae.guide, x, **options).history["elbo"]
    assert history[-1] > history[0]
    assert all(not torch.equal(p, before[name]) for name, p in vae.named_parameters())


def test_it_also_runs_under_plain_svi():
    vae = make_vae(ENCODERS["full"]())
    with pyro.get_param_store().scope():
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), make_objective("analytic_kl"))
        x = torch.randn(8, 5)
        assert svi.step(x) > 0


@pytest.mark.parametrize("subsample", ["size", "index"])
def test_a_subsampled_plate_scales_the_kl_too(subsample):
    specimen, objective = subsampled(subsample), make_objective("analytic_kl")
    torch.manual_seed(0)
    values = [objective.loss(specimen.model, specimen.guide, *specimen.data) for _ in range(1000)]
    assert means_agree(torch.tensor(values), -specimen.log_evidence.sum() * 1000 / 4)


@pytest.mark.parametrize("kind", ["mixture", "autoregressive"])
def test_a_guide_without_a_closed_form_is_refused(kind):
    specimen = other_family(kind)
    with pytest.raises(
        NotImplementedError, match=r"site 'z', got .* and Independent of Normal; use objective \"elbo\""
    ):
        make_objective("analytic_kl").loss(specimen.model, specimen.guide, *specimen.data)


def test_fit_passes_the_refusal_on():
    vae = make_vae(GaussianMixtureEncoder(nn.Linear(5, GaussianMixtureEncoder.width(2, 3)), 3))
    with pytest.raises(NotImplementedError, match="ReparameterizedMixture"):
        fit(vae.model, vae.guide, torch.randn(8, 5), objective="analytic_kl")
