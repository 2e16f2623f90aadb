import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.models import linear
from pyrovae.models.decoders import LinearGaussianDecoder
from pyrovae.models.linear import LinearGaussian, gaussian_moments, linear_log_evidence, linear_posterior
from pyrovae.models.priors import Gaussian, GaussianMixture, StandardNormal


def model(seed: int = 0, width: int = 5, dim: int = 3) -> LinearGaussian:
    g = torch.Generator().manual_seed(seed)
    weight, bias, loc, tril = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((width, dim), (width,), (dim,), (dim, dim))
    )
    tril = tril.tril(-1) + torch.diag(tril.diagonal().exp())
    return LinearGaussian(weight, bias, torch.linspace(0.3, 1.5, width, dtype=torch.float64), loc, tril)


def data(n: int = 4, width: int = 5) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_evidence_and_posterior_are_those_of_the_joint_gaussian(seed: int) -> None:
    m, x = model(seed), data()
    prior = m.scale_tril @ m.scale_tril.mT
    cross = m.weight @ prior
    marginal = cross @ m.weight.mT + torch.diag(m.scale**2)
    mean = m.weight @ m.loc + m.bias
    gain = torch.linalg.solve(marginal, cross).mT
    loc, covariance = m.loc + (x - mean) @ gain.mT, prior - gain @ cross
    evidence, posterior = linear_log_evidence(m, x), linear_posterior(m, x)
    torch.testing.assert_close(evidence, dist.MultivariateNormal(mean, marginal).log_prob(x))
    torch.testing.assert_close(posterior.loc, loc)
    torch.testing.assert_close(posterior.scale_tril, torch.linalg.cholesky(covariance))
    assert not torch.allclose(linear_log_evidence(m._replace(scale=1.1 * m.scale), x), evidence)


def test_bayes_rule_holds_at_any_z() -> None:
    m, x, z = model(), data(), torch.randn(4, 3).double()
    posterior = linear_posterior(m, x)
    log_posterior = dist.MultivariateNormal(posterior.loc, scale_tril=posterior.scale_tril).log_prob(z)
    log_joint = dist.MultivariateNormal(m.loc, scale_tril=m.scale_tril).log_prob(z) + dist.Normal(
        z @ m.weight.mT + m.bias, m.scale
    ).log_prob(x).sum(-1)
    torch.testing.assert_close(log_joint - log_posterior, linear_log_evidence(m, x))


def test_a_nearly_noiseless_model_keeps_its_digits() -> None:
    m = model()._replace(scale=torch.full((5,), 1e-6, dtype=torch.float64))
    exact = torch.linalg.inv(m.weight.mT @ m.weight)  # over the noise variance, the covariance in that limit
    tril = linear_posterior(m, data()).scale_tril
    torch.testing.assert_close(tril @ tril.mT / 1e-12, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("noise", ["fixed", "shared", "per-dimension", "optimal"])
def test_the_decoder_uses_its_own_parameters_and_the_prior_that_is_given(noise: str) -> None:
    decoder, x, z = LinearGaussianDecoder(5, 3, noise, scale=0.7).double(), data(), torch.zeros(4, 3).double()
    tril = torch.tensor([[1.0, 0, 0], [0.5, 2.0, 0], [0.1, -1.0, 0.3]], dtype=torch.float64)
    for module in (None, StandardNormal(3).double(), Gaussian(torch.ones(3).double(), tril)):
        prior = dist.Normal(z[0], 1.0).to_event(1) if module is None else module()
        given = None if module is None else prior
        posterior = decoder.posterior(x, given)
        q = dist.MultivariateNormal(posterior.loc, scale_tril=posterior.scale_tril)
        log_w = prior.log_prob(z) + decoder(z).log_prob(x) - q.log_prob(z)
        torch.testing.assert_close(log_w, decoder.log_evidence(x, given))


def test_a_prior_that_is_not_gaussian_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"want a Gaussian prior of one z, got MixtureSameFamily; pass prior=vae"
    ):
        LinearGaussianDecoder(5, 3).log_evidence(torch.zeros(2, 5), GaussianMixture(3, 2)())
    with pytest.raises(TypeError, match="Gaussian prior of one z, got Independent"):
        gaussian_moments(dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "data_dim must be an integer of at least 1, got 0"),
        ((4, 0), "latent_dim must be an integer of at least 1, got 0"),
        ((4, 2, "heteroscedastic"), "no noise that depends on z.*use noise='per-dimension'"),
    ],
)
def test_what_the_decoder_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearGaussianDecoder(*arguments)


def test_it_exports_what_it_says() -> None:
    assert all(hasattr(linear, name) for name in linear.__all__)
