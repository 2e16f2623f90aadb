"""Models with exact answers, and models that only stress shapes: a Pyro model, a guide, data, and log p(x) if known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import conditional_planar
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

F64 = torch.float64


class Specimen(NamedTuple):
    """One model of the zoo; `log_evidence` [N] and the moments of the posterior where they are known."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: tuple[Tensor, ...]
    log_evidence: Tensor | None = None
    posterior_mean: Tensor | None = None
    posterior_cov: Tensor | None = None


def linear_gaussian(
    num_data: int = 5,
    data_dim: int = 6,
    latent_dim: int = 3,
    *,
    scale: float = 0.5,
    guide_scale: float = 1.0,
    shift: float = 0.0,
    dtype: torch.dtype = F64,
) -> Specimen:
    """z ~ N(0, I), x | z ~ N(Wz + b, scale^2 I); the guide is the posterior, its sds times `guide_scale`."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=F64)
    bias = torch.randn(data_dim, generator=generator, dtype=F64)
    marginal = dist.MultivariateNormal(bias, weight @ weight.mT + scale**2 * torch.eye(data_dim, dtype=F64))
    x = bias + torch.randn(num_data, data_dim, generator=generator, dtype=F64) @ marginal.scale_tril.mT
    cov = torch.linalg.inv(torch.eye(latent_dim, dtype=F64) + weight.mT @ weight / scale**2)
    gain = cov @ weight.mT / scale**2
    tril = torch.linalg.cholesky(cov).to(dtype)
    weight, bias, gain = weight.to(dtype), bias.to(dtype), gain.to(dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.mT + bias, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x - bias) @ gain.mT + shift
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=guide_scale * tril))

    mean = (x - bias.to(F64)) @ gain.to(F64).mT
    return Specimen(model, guide, (x.to(dtype),), marginal.log_prob(x), mean, cov.expand(num_data, -1, -1))


def gamma_poisson(num_data: int = 7) -> Specimen:
    """r ~ Gamma(3, 2), x | r ~ Poisson(r): a positive latent; the guide is the posterior."""
    x = torch.arange(num_data, dtype=F64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(3.0), x.new_tensor(2.0)))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(3.0 + x, x.new_tensor(3.0)))

    log_evidence = dist.GammaPoisson(torch.tensor(3.0, dtype=F64), torch.tensor(2.0, dtype=F64)).log_prob(x)
    return Specimen(model, guide, (x,), log_evidence, (3 + x) / 3, (3 + x) / 9)


def dirichlet_multinomial() -> Specimen:
    """p ~ Dirichlet(1, 2, 3, 4), x | p ~ Multinomial(p): a simplex latent of 4 values and 3 coordinates."""
    concentration = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    x = torch.tensor([[3.0, 0, 2, 5], [0, 0, 0, 0], [10, 1, 0, 1], [1, 1, 1, 1]], dtype=F64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(concentration))
            pyro.sample("x", dist.Multinomial(probs=p, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(concentration + x))

    exact = torch.stack([dist.DirichletMultinomial(concentration, row.sum()).log_prob(row) for row in x])
    total = concentration + x
    return Specimen(model, guide, (x,), exact, total / total.sum(1, keepdim=True))


def tanh_decoder(num_data: int = 4, scale: float = 0.3) -> Specimen:
    """z ~ N(0, I) in two dimensions, x | z ~ N(tanh(z A) B, scale^2 I); log p(x) from a fine grid."""
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(*shape, generator=generator, dtype=F64) for shape in ((2, 8), (8, 5)))
    z = torch.randn(num_data, 2, generator=generator, dtype=F64)
    x = torch.tanh(z @ first) @ second + scale * torch.randn(num_data, 5, generator=generator, dtype=F64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.tanh(z @ first) @ second, scale).to_event(1), obs=x)

    weight = torch.linalg.pinv(first @ second) * 0.8

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.4).to_event(1))

    axis = torch.linspace(-7, 7, 1401, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    prior = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1).log_prob(grid)
    mean = torch.tanh(grid @ first) @ second
    exact = [
        (prior + dist.Normal(mean, scale).to_event(1).log_prob(row)).logsumexp(0)
        + 2 * torch.log(axis[1] - axis[0])
        for row in x
    ]
    return Specimen(model, guide, (x,), torch.stack(exact))


def dependent_support() -> Specimen:
    """top ~ U(0, 4), z | top ~ U(0, top), x | z ~ N(z, 1): the support of z depends on another latent."""
    x = torch.tensor([0.3, 1.0, 2.5], dtype=F64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Uniform(x.new_tensor(0.0), x.new_tensor(4.0)))
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(top), top))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Uniform(x.new_tensor(0.0), x.new_tensor(4.0)))
            pyro.sample("z", dist.Uniform(torch.zeros_like(top), top))

    grid = torch.linspace(0, 4, 40001, dtype=F64)
    # integral over top of 1/4 [Phi(x) - Phi(x - top)] / top, which is the density at x where top is 0
    normal = dist.Normal(torch.tensor(0.0, dtype=F64), 1.0)
    integrand = (normal.cdf(x[:, None]) - normal.cdf(x[:, None] - grid[1:])) / grid[1:]
    integrand = torch.cat([normal.log_prob(x)[:, None].exp(), integrand], 1) / 4
    return Specimen(model, guide, (x,), torch.trapezoid(integrand, grid, dim=1).log())


def convolutional() -> Specimen:
    """Images through a convolution and reshape(-1, 16): what a leading particle plate would break."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)).double()
    decoder = nn.Sequential(
        nn.Linear(2, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 1, 3, padding=1)
    )
    decoder.double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = decoder(z.reshape(-1, 2))
            pyro.sample("x", dist.Normal(mean.reshape(-1, 16), 0.5).to_event(1), obs=x.reshape(-1, 16))

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Specimen(model, guide, (torch.randn(6, 1, 4, 4, dtype=F64),))


def nested(mask: bool = False) -> Specimen:
    """Each datum has three measurements of its own and two local latents of them; optionally some are masked."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=F64)
    keep = torch.rand(5, 3) < 0.6

    def model(x: Tensor, keep: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            mean = pyro.sample("mean", dist.Normal(x.new_zeros(1), 1.0))
            with pyro.plate("measurement", 3, dim=-1):
                offset = pyro.sample("offset", dist.Normal(x.new_zeros(()), 1.0))
                observed = dist.Normal(mean + offset, 0.5)
                pyro.sample("x", observed.mask(keep) if mask else observed, obs=x)

    def guide(x: Tensor, keep: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("mean", dist.Normal(x.mean(1, keepdim=True) / 2, 1.0))
            with pyro.plate("measurement", 3, dim=-1):
                pyro.sample("offset", dist.Normal(x / 2, 1.2))

    marginal = dist.MultivariateNormal(
        torch.zeros(3, dtype=F64), 1 + 1.25 * torch.eye(3, dtype=F64)
    ).covariance_matrix
    exact = [
        _gaussian_log_prob(row, marginal, k if mask else torch.ones(3).bool())
        for row, k in zip(x, keep, strict=True)
    ]
    return Specimen(model, guide, (x, keep), torch.stack(exact))


def _gaussian_log_prob(x: Tensor, cov: Tensor, keep: Tensor) -> Tensor:
    if not keep.any():
        return torch.zeros((), dtype=F64)
    return dist.MultivariateNormal(x.new_zeros(int(keep.sum())), cov[keep][:, keep]).log_prob(x[keep])


def subsampled(subsample: str = "size") -> Specimen:
    """The linear-Gaussian model inside a plate of 1000 data, of which `x` is a batch."""
    exact = linear_gaussian(num_data=4)
    base = linear_gaussian(num_data=4)
    x = exact.data[0]

    def wrap(program: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(x: Tensor, index: Tensor) -> Any:
            plate = pyro.plate
            keywords = {"subsample_size": len(x)} if subsample == "size" else {"subsample": index}

            def scaled(name: str, size: int) -> Any:
                return plate(name, 1000, **keywords)

            pyro.plate = scaled
            try:
                return program(x)
            finally:
                pyro.plate = plate

        return wrapped

    index = torch.tensor([5, 17, 400, 999])
    return Specimen(wrap(base.model), wrap(base.guide), (x, index), exact.log_evidence)


def factor_and_branch() -> Specimen:
    """A pyro.factor, a pyro.deterministic and a Python branch on the values of z, all row by row."""
    x = torch.linspace(-2, 2, 5, dtype=F64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.deterministic("double", 2 * z)
            if bool((z > 1e9).any()):
                raise AssertionError
            pyro.factor("x", dist.Normal(z, 0.5).log_prob(x))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    return Specimen(model, guide, (x,), dist.Normal(torch.zeros(5, dtype=F64), 1.25**0.5).log_prob(x))


def other_family(kind: str) -> Specimen:
    """The linear-Gaussian model with a wider guide: "low-rank", "mixture", "autoregressive", "planar" (no inverse)."""
    base = linear_gaussian(num_data=4, latent_dim=3)
    torch.manual_seed(0)
    center = nn.Linear(6, 3).double()
    autoregressive = dist.transforms.ConditionalAffineAutoregressive(ConditionalAutoRegressiveNN(3, 3, [8]))
    planar = conditional_planar(3, 3, hidden_dims=[5])
    mean, bias, cov = base.posterior_mean, base.data[0], base.posterior_cov[0]
    center.weight.data = torch.linalg.lstsq(bias - bias[:1], mean - mean[:1]).solution.mT
    center.bias.data = mean[0] - center.weight.data @ bias[0]
    wide = 1.5 * torch.linalg.cholesky(cov)

    def iaf(h: Tensor) -> Any:
        affine = dist.transforms.LowerCholeskyAffine(h, wide)
        unit = dist.Normal(torch.zeros_like(h), 1.0).to_event(1)
        return dist.TransformedDistribution(unit, [autoregressive.double().condition(0.1 * h), affine])

    def without_inverse(h: Tensor) -> Any:
        gaussian = dist.MultivariateNormal(h, scale_tril=wide)
        return dist.TransformedDistribution(gaussian, [planar.double().condition(h)])

    def low_rank(h: Tensor) -> Any:
        factor = wide[:, :1].expand(*h.shape, 1)
        return dist.LowRankMultivariateNormal(h, factor, (wide @ wide.mT).diagonal() + 0 * h)

    def mixture(h: Tensor) -> Any:
        parts = dist.MultivariateNormal(torch.stack([h + 0.1, h - 0.1], -2), scale_tril=wide)
        return dist.MixtureSameFamily(dist.Categorical(logits=h[..., :2]), parts)

    family = {
        "low-rank": low_rank,
        "mixture": mixture,
        "autoregressive": iaf,
        "planar": without_inverse,
    }[kind]

    def guide(x: Tensor) -> None:
        pyro.module("center", center)
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(center(x)))

    return Specimen(base.model, guide, base.data, base.log_evidence)


EXACT = {
    "linear_gaussian": linear_gaussian,
    "gamma_poisson": gamma_poisson,
    "dirichlet_multinomial": dirichlet_multinomial,
    "factor_and_branch": factor_and_branch,
    "subsampled by size": lambda: subsampled("size"),
    "subsampled by index": lambda: subsampled("index"),
}
"""Specimens whose guide is the exact posterior, so that every log weight equals log p(x)."""

APPROXIMATE = {
    "wide guide": lambda: linear_gaussian(guide_scale=1.5),
    "dependent support": dependent_support,
    "nested": nested,
    "nested and masked": lambda: nested(mask=True),
    "low-rank": lambda: other_family("low-rank"),
    "mixture": lambda: other_family("mixture"),
    "autoregressive": lambda: other_family("autoregressive"),
}
"""Specimens with another guide, whose weights average to p(x)."""

SHAPES = {
    **EXACT,
    **APPROXIMATE,
    "tanh decoder": tanh_decoder,
    "convolutional": convolutional,
    "planar": lambda: other_family("planar"),
}
"""All of them."""
