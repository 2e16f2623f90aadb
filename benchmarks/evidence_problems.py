"""The problems on which estimators of log p(x) are compared: linear decoders with a known gap, and trained VAEs."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv

LATENT_DIM, DATA_DIM, SCALE = 20, 60, 0.5


class Problem(NamedTuple):
    """A target, and what is known of it."""

    name: str
    target: pv.Target
    guide_kl: float | None
    """KL(guide || posterior), exactly; None where it is not known."""


def linear(wanted_kl: float, num_data: int, seed: int = 0) -> Problem:
    """z ~ N(0, I), x ~ N(Wz, s^2 I) with correlated columns of W, and the best mean-field guide for its posterior.

    The share r of W = sqrt(X) ((1 - r) Q + r g 1'), Q orthonormal and g common to all columns, is set so that
    KL(guide || posterior) = 1/2 (sum log P_ii - log |P|) is the one wanted.
    """
    generator = torch.Generator().manual_seed(seed)
    free, _ = torch.linalg.qr(torch.randn(DATA_DIM, LATENT_DIM, generator=generator, dtype=torch.float64))
    common = torch.randn(DATA_DIM, 1, generator=generator, dtype=torch.float64) / DATA_DIM**0.5
    low, high = 0.0, 0.999
    for _ in range(60):
        middle = (low + high) / 2
        if _mean_field_kl(_precision(_mixed(free, common, middle))) < wanted_kl:
            low = middle
        else:
            high = middle
    weight = _mixed(free, common, low)
    precision = _precision(weight)
    covariance = torch.linalg.inv(precision)
    guide_scale = precision.diagonal().rsqrt()
    z = torch.randn(num_data, LATENT_DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_data, DATA_DIM, generator=generator, dtype=torch.float64)
    x = z @ weight.mT + SCALE * noise

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.mT, SCALE).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x @ weight @ covariance / SCALE**2
            pyro.sample("z", dist.Normal(loc, guide_scale).to_event(1))

    return Problem(f"linear, KL {wanted_kl:g}", pv.Target(model, guide, x), _mean_field_kl(precision))


def _mixed(free: Tensor, common: Tensor, share: float) -> Tensor:
    return DATA_DIM**0.5 * ((1 - share) * free + share * common)


def _precision(weight: Tensor) -> Tensor:
    return torch.eye(LATENT_DIM, dtype=weight.dtype) + weight.mT @ weight / SCALE**2


def _mean_field_kl(precision: Tensor) -> float:
    return float(0.5 * (precision.diagonal().log().sum() - precision.logdet()))


def nonlinear(num_data: int, seed: int = 0) -> Problem:
    """A random decoder of tanh units with 20 latent and 60 data dimensions, and an encoder trained for it."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(LATENT_DIM, 64, generator=generator) / LATENT_DIM**0.5
    second = 2.0 * torch.randn(64, DATA_DIM, generator=generator) / 64**0.5
    torch.manual_seed(seed)
    encoder = pv.encoders.DiagonalGaussian(pv.mlp(DATA_DIM, (128,), 2 * LATENT_DIM))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.tanh(z @ first) @ second, SCALE).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    z = torch.randn(4000 + num_data, LATENT_DIM, generator=generator)
    x = torch.tanh(z @ first) @ second + SCALE * torch.randn(len(z), DATA_DIM, generator=generator)
    pv.fit(model, guide, x[num_data:], max_epochs=40, batch_size=100, seed=seed)
    return Problem("nonlinear, tanh", pv.Target(model, guide, x[:num_data]), None)


def digits(num_data: int, max_epochs: int = 120) -> Problem:
    """The VAE of `pyrovae demo`, 64-256-8, on held-out digits."""
    split = pv.data.digits(seed=0)
    vae = pv.build_vae(data_dim=64, latent_dim=8, hidden=(256,), noise="shared", seed=0)
    pv.fit(vae.model, vae.guide, split.train, val_data=split.val, max_epochs=max_epochs, seed=0)
    return Problem("digits", pv.Target(vae.model, vae.guide, split.test[:num_data]), None)


def fashion(path: str, num_data: int, max_epochs: int = 5) -> Problem:
    """A 784-400-20 VAE on held-out images of Fashion-MNIST, from the file of its training images in idx format."""
    split = pv.data.load(
        f"idx:{path}", scale="unit", dequantize=True, val_fraction=0.05, test_fraction=0.05, seed=0
    )
    vae = pv.build_vae(data_dim=784, latent_dim=20, hidden=(400,), noise="shared", seed=0)
    pv.fit(
        vae.model, vae.guide, split.train, val_data=split.val, max_epochs=max_epochs, batch_size=256, seed=0
    )
    return Problem("fashion", pv.Target(vae.model, vae.guide, split.test[:num_data]), None)
