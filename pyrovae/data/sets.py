"""Data sets ready for use: handwritten digits, and a linear-Gaussian set whose answers are known exactly."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.data.sources import read
from pyrovae.data.splits import Split, check_fractions
from pyrovae.data.transforms import Affine, Dequantize, Pipeline
from pyrovae.seeding import seeded

__all__ = ["LinearGaussian", "digits", "linear_gaussian"]


def digits(
    seed: int = 0, dequantize: bool = True, val_fraction: float = 0.15, test_fraction: float = 0.15
) -> Split:
    """Handwritten digits: 1797 images of 8 x 8 pixels with values 0 to 16, from scikit-learn's own copy.

    A Gaussian likelihood of integers can grow without bound, so noise u, uniform on [0, 1), fills the steps:
    (x + u) / 17. The mean log density of the result bounds the log probability of the integers from below,
    log p((x + u)/17) - 64 log 17 (Theis et al. 2016).

    Args:
        seed: of the noise and of the split.
        dequantize: whether to add the noise; without it the pixels are x / 16.
        val_fraction: share of the images for validation, 0 or more.
        test_fraction: share for testing, 0 or more; both together below 1.

    Returns:
        float32 images `[n, 64]` in [0, 1], and the rows they have in scikit-learn's `load_digits()`, where the
        labels are.

    Raises:
        ValueError: fractions out of range.

    >>> parts = digits()
    >>> parts.train.shape, parts.val.shape, parts.test.shape
    (torch.Size([1257, 64]), torch.Size([270, 64]), torch.Size([270, 64]))
    """
    check_fractions(val_fraction, test_fraction)
    raw = read("digits")
    pixels = torch.from_numpy(raw.values).float()
    with seeded(seed):
        noise, order = torch.rand(pixels.shape), torch.randperm(len(pixels))
    x = (pixels + noise) / 17 if dequantize else pixels / 16
    sizes = [round(fraction * len(x)) for fraction in (val_fraction, test_fraction)]
    val, test, train = order.split([*sizes, len(x) - sum(sizes)])
    options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}
    facts = {"spec": "digits()", "dequantize": dequantize, **options, "sha256": raw.sha256}
    steps = (Dequantize(seed, bits=14), Affine((0.0,), (17.0,))) if dequantize else (Affine((0.0,), (16.0,)),)
    return Split(
        x[train], x[val], x[test], train, val, test, raw.event_shape, Pipeline(64, steps), facts=facts
    )


@dataclass(frozen=True)
class LinearGaussian:
    """Data from z ~ N(0, I), x | z ~ N(weight z + bias, scale^2 I), as in probabilistic PCA, with exact answers.

    `model` and `exact_guide` are Pyro callables; the guide is the posterior itself, so that every importance
    weight equals p(x).
    """

    x: Float[Tensor, "n x"]
    weight: Float[Tensor, "x d"]
    bias: Float[Tensor, " x"]
    scale: float

    def log_evidence(self, x: Float[Tensor, "m x"] | None = None) -> Float[Tensor, " m"]:
        """log p(x) = log N(x | bias, weight weight' + scale^2 I) in nats, for each row of `x`, by default its own."""
        variance = torch.full_like(self.bias, self.scale**2)
        marginal = torch.distributions.LowRankMultivariateNormal(self.bias, self.weight, variance)
        return marginal.log_prob(self.x if x is None else x)

    def posterior(
        self, x: Float[Tensor, "m x"] | None = None
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "d d"]]:
        """The posterior N(loc, scale_tril scale_tril'), one loc for each row of `x` and one factor for all.

        Precision I + W'W / scale^2, loc = precision^-1 W'(x - bias) / scale^2 (Tipping & Bishop 1999).
        """
        x = self.x if x is None else x
        identity = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        precision = identity + self.weight.mT @ self.weight / self.scale**2
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        loc = (x - self.bias) @ self.weight @ covariance / self.scale**2
        return loc, torch.linalg.cholesky(covariance)

    def model(self, x: Float[Tensor, "m x"]) -> None:
        """The Pyro model that made the data, for any rows `x`: sites "z" and "x" in the plate "data"."""
        import pyro
        import pyro.distributions as dist

        zero = torch.zeros_like(self.weight[0])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.mT + self.bias, self.scale).to_event(1), obs=x)

    def exact_guide(self, x: Float[Tensor, "m x"]) -> None:
        """The Pyro guide that is the posterior."""
        import pyro
        import pyro.distributions as dist

        loc, scale_tril = self.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))


def linear_gaussian(
    num_data: int,
    data_dim: int,
    latent_dim: int,
    scale: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> LinearGaussian:
    """Draw a linear-Gaussian data set: standard normal weight and bias, z ~ N(0, I), x = weight z + bias + noise.

    Args:
        num_data: number of data N, at least 1.
        data_dim: width X of a datum, at least 1.
        latent_dim: width D of z, at least 1.
        scale: standard deviation of the noise, above 0.
        seed: of everything.
        dtype: of everything.

    Raises:
        ValueError: a number out of range.

    >>> data = linear_gaussian(3, data_dim=5, latent_dim=2)
    >>> loc, scale_tril = data.posterior()
    >>> data.log_evidence().shape, loc.shape, scale_tril.shape
    (torch.Size([3]), torch.Size([3, 2]), torch.Size([2, 2]))
    """
    for name, size in (("num_data", num_data), ("data_dim", data_dim), ("latent_dim", latent_dim)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}; pass a positive number")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be positive and finite, got {scale}; pass a standard deviation")
    with seeded(seed):
        weight = torch.randn(data_dim, latent_dim, dtype=dtype)
        bias = torch.randn(data_dim, dtype=dtype)
        z = torch.randn(num_data, latent_dim, dtype=dtype)
        noise = torch.randn(num_data, data_dim, dtype=dtype)
    return LinearGaussian(z @ weight.mT + bias + scale * noise, weight, bias, scale)
