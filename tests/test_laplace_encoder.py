import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.data import linear_gaussian
from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian, FlowGaussian, FullGaussian, LaplaceEncoder
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE
from pyrovae.target import Target

F64 = torch.float64


class Prior(nn.Module):
    """A prior given as a function of nothing."""

    def __init__(self, make, *parameters):
        super().__init__()
        self.make = make
        self.parameters_ = nn.ParameterList(parameters)

    def forward(self):
        return self.make(*self.parameters_)


class TwoHeaded(nn.Module):
    """A Gaussian decoder whose scale depends on z."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Linear(2, 5), nn.Linear(2, 5)

    def forward(self, z):
        return dist.Normal(self.loc(z).sin(), (0.3 * self.log_scale(z)).exp()).to_event(1)


def correlated(dim=2):
    tril = torch.eye(dim, dtype=F64) + 0.5 * torch.ones(dim, dim, dtype=F64).tril(-1)
    return lambda loc: dist.MultivariateNormal(loc, scale_tril=tril)


def curved(scale=0.5, seed=0):
    torch.manual_seed(seed)
    return GaussianDecoder(
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)), "fixed", scale
    ).double()


def make(decoder=None, prior=None, num_steps=4, seed=1):
    torch.manual_seed(seed)
    init = DiagonalGaussian(nn.Linear(5, 4)).double()
    return LaplaceEncoder(prior or StandardNormal(2).double(), decoder or curved(), init, num_steps)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("start", [0.0, 100.0])
def test_a_linear_decoder_gives_the_exact_posterior(num_steps, start):
    data = linear_gaussian(20, data_dim=6, latent_dim=3)
    net = nn.Linear(3, 6)
    net.weight.data, net.bias.data = data.weight, data.bias
    init = DiagonalGaussian(nn.Linear(6, 6)).double()
    init.net.bias.data[:3] += start
    decoder = GaussianDecoder(net, "fixed", data.scale).double()
    q = LaplaceEncoder(StandardNormal(3).double(), decoder, init, num_steps)(data.x)
    loc, tril = data.posterior()
    assert torch.allclose(q.mean, loc, atol=1e-8, rtol=0)
    assert torch.allclose(q.scale_tril, tril.expand(20, 3, 3), atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", ["normal", "full", "low rank"])
def test_any_gaussian_prior(kind):
    """Against the same posterior in another way: completing the square with the prior's dense moments."""
    loc = torch.tensor([0.5, -1.0], dtype=F64)
    make_prior = {
        "normal": lambda loc: dist.Normal(loc, torch.tensor([0.5, 2.0], dtype=F64)).to_event(1),
        "full": correlated(),
        "low rank": lambda loc: dist.LowRankMultivariateNormal(
            loc, torch.tensor([[1.0], [0.5]], dtype=F64), torch.tensor([0.3, 0.4], dtype=F64)
        ),
    }[kind]
    prior = Prior(make_prior, nn.Parameter(loc))
    net = nn.Linear(2, 5).double()
    x = torch.randn(4, 5, dtype=F64)
    q = make(GaussianDecoder(net, "fixed", 0.7).double(), prior)(x)
    p = prior()
    cov = torch.diag(p.variance) if kind == "normal" else p.covariance_matrix
    precision = torch.linalg.inv(cov) + net.weight.mT @ net.weight / 0.49
    right = torch.linalg.inv(cov) @ loc + (x - net.bias) @ net.weight / 0.49
    # float32 holds 0.7 only to 3e-8
    assert torch.allclose(q.mean, right @ torch.linalg.inv(precision), atol=1e-6)
    assert torch.allclose(q.precision_matrix, precision.expand(4, 2, 2), atol=1e-5)


@pytest.mark.parametrize("decoder", [curved, TwoHeaded])
def test_mode_and_curvature_are_those_that_a_target_sees(decoder):
    encoder = make(decoder().double(), num_steps=60)
    vae, x = VAE(encoder.prior, encoder.decoder, encoder), torch.randn(6, 5, dtype=F64)
    target = Target(vae.model, vae.guide, x)
    q = encoder(x)
    z = q.mean.detach()[None].requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_joint(z).sum(), z)
    assert gradient.abs().max() < 1e-5
    assert torch.allclose(q.precision_matrix, target.curvature(z.detach())[0], rtol=1e-6)


def never_worsens(encoder, x):
    """log p(x, z) at the centre does not fall from one step to the next, for any row."""
    values = []
    for num_steps in range(1, 7):
        encoder.num_steps = num_steps
        z = encoder(x).mean
        values.append(encoder.prior().log_prob(z) + encoder.decoder(z).log_prob(x))
    return bool((torch.stack(values).diff(dim=0) >= -1e-9).all())


def test_damping_never_lowers_the_joint_density(monkeypatch):
    decoder = curved(scale=0.05)
    encoder, x = make(decoder), 2 * torch.randn(30, 5, dtype=F64)
    encoder.init.net.weight.data *= 8
    assert never_worsens(encoder, x)
    # planted: full steps whatever comes of them
    monkeypatch.setattr(
        LaplaceEncoder, "_fraction", lambda self, prior, z, step, x: torch.ones_like(z[:, :1])
    )
    assert not never_worsens(encoder, x)


def test_it_is_deterministic_and_works_without_gradients():
    encoder, x = make(), torch.randn(6, 5, dtype=F64)
    q = encoder(x)
    with torch.no_grad():
        again = encoder(x)
    assert torch.equal(q.mean, again.mean)
    assert torch.equal(q.scale_tril, again.scale_tril)
    assert q.mean.requires_grad
    assert not again.mean.requires_grad


def test_gradients_are_those_of_finite_differences():
    """Through all steps and the covariance, in the data and in the weights of decoder, prior and init."""
    decoder, prior = curved(), Prior(correlated(), nn.Parameter(torch.zeros(2, dtype=F64)))
    encoder, x = make(decoder, prior, num_steps=2), torch.randn(3, 5, dtype=F64, requires_grad=True)
    weights = [x, prior.parameters_[0], decoder.net[0].weight, encoder.init.net.weight]

    def moments(*_):
        q = encoder(x)
        return q.mean, q.scale_tril

    assert torch.autograd.gradcheck(moments, weights, atol=1e-6)


def test_a_convolutional_decoder():
    net = nn.Sequential(
        nn.Linear(2, 32), nn.Unflatten(1, (2, 4, 4)), nn.GELU(), nn.Conv2d(2, 1, 3, padding=1)
    )
    init = DiagonalGaussian(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)))
    encoder = LaplaceEncoder(StandardNormal(2), GaussianDecoder(net), init)
    vae, x = VAE(encoder.prior, encoder.decoder, encoder), torch.randn(6, 1, 4, 4)
    assert encoder(x).batch_shape == (6,)
    assert Target(vae.model, vae.guide, x).can_score_guide


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("steepness", [1e-6, 1e3, 1e6])
def test_a_steep_decoder_keeps_the_covariance_positive(steepness, dtype):
    """One direction is seen with a curvature of up to 1e18, the other not at all."""
    net = nn.Linear(2, 5)
    net.weight.data = steepness * torch.tensor([[1.0, 1.0]]).repeat(5, 1)
    init = DiagonalGaussian(nn.Linear(5, 4))
    decoder = GaussianDecoder(net, "fixed", 1e-3)
    q = LaplaceEncoder(StandardNormal(2), decoder, init).to(dtype)(torch.randn(7, 5, dtype=dtype))
    z = q.rsample()
    assert torch.isfinite(z).all()
    assert torch.isfinite(q.log_prob(z)).all()


def test_what_is_refused():
    x = torch.randn(3, 5, dtype=F64)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        make(num_steps=0)
    for prior, name in [
        (lambda: dist.Laplace(torch.zeros(2, dtype=F64), 1.0).to_event(1), "Laplace"),
        (lambda: dist.TransformedDistribution(correlated()(torch.zeros(2)), []), "TransformedDistribution"),
    ]:
        with pytest.raises(TypeError, match=f"wants a Gaussian prior, got {name}"):
            make(prior=Prior(prior))(x)
    with pytest.raises(TypeError, match=r"a prior of one z, got one of batch shape \(2,\).*to_event\(1\)"):
        make(prior=Prior(lambda: dist.Normal(torch.zeros(2, 1, dtype=F64), 1.0).to_event(1)))(x)
    bernoulli = Prior(lambda: None)
    bernoulli.forward = lambda z: dist.Bernoulli(logits=z.new_zeros(*z.shape[:-1], 5)).to_event(1)
    with pytest.raises(TypeError, match="wants a Gaussian decoder, got Bernoulli"):
        make(bernoulli)(x)
    without_event = Prior(lambda: None)
    without_event.forward = lambda z: dist.Normal(z.new_zeros(*z.shape[:-1], 5), 1.0)
    with pytest.raises(TypeError, match=r"wants a Gaussian decoder, got Normal.*Normal\(...\).to_event\(n\)"):
        make(without_event)(x)
    with pytest.raises(ValueError, match=r"the decoder's shape, got \[3, 5\] where .*event \[4\]"):
        make(GaussianDecoder(nn.Linear(2, 4)).double())(x)
    flow = FlowGaussian(nn.Linear(5, 6), 2).double()
    with pytest.raises(TypeError, match="an init whose distribution has a mean, got TransformedDistribution"):
        LaplaceEncoder(StandardNormal(2).double(), curved(), flow)(x)


def test_any_encoder_with_a_mean_starts_it():
    encoder = LaplaceEncoder(StandardNormal(2).double(), curved(), FullGaussian(nn.Linear(5, 5)).double())
    assert encoder(torch.randn(2, 3, 5, dtype=F64)).batch_shape == (2, 3)
