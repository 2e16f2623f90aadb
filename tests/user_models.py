"""Three models that are not ours, as their authors would write them, each with log p(x) by a grid of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import expit, logsumexp
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["MODELS", "UserModel", "binary_vae", "counts_of_pixels", "scaled_factors"]


class UserModel(NamedTuple):
    """Model and guide, data, and log p(x) of each datum by summing over a grid in numpy and scipy alone."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor
    log_evidence: Callable[[], np.ndarray]
    params: dict[str, Tensor] | None = None


def _digits(num_data: int) -> np.ndarray:
    return load_digits().data[:num_data].astype(np.float32)


class Decoder(nn.Module):
    """As in Pyro's tutorial on the VAE: softplus units, and the probability of each pixel."""

    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(z_dim, hidden_dim), nn.Linear(hidden_dim, 64)
        self.softplus, self.sigmoid = nn.Softplus(), nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        return self.sigmoid(self.fc21(self.softplus(self.fc1(z))))


class Encoder(nn.Module):
    """Location and scale of z."""

    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, hidden_dim)
        self.fc21, self.fc22 = nn.Linear(hidden_dim, z_dim), nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.softplus(self.fc1(x.reshape(-1, 64)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class BinaryVAE(nn.Module):
    """A Bernoulli VAE in the style of Pyro's tutorial, with `pyro.module` and data in the shape of images."""

    def __init__(self, z_dim: int = 2, hidden_dim: int = 32) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(z_dim, hidden_dim), Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample(
                "obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, 64)
            )
        return loc_img

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def binary_vae(num_data: int) -> UserModel:
    """`BinaryVAE` on digits that are black or white."""
    torch.manual_seed(0)
    vae = BinaryVAE()
    x = torch.as_tensor(_digits(num_data) > 7).float().reshape(-1, 8, 8)

    def log_evidence() -> np.ndarray:
        first, last = vae.decoder.fc1, vae.decoder.fc21
        grid = np.stack(np.meshgrid(*2 * [np.linspace(-6, 6, 401)], indexing="ij"), -1).reshape(-1, 2)
        hidden = np.logaddexp(0, grid @ _np(first.weight).T + _np(first.bias))
        p = expit(hidden @ _np(last.weight).T + _np(last.bias))
        pixels = x.reshape(-1, 64).numpy().astype(float)
        log_joint = np.log(p) @ pixels.T + np.log1p(-p) @ (1 - pixels.T)
        log_joint += stats.norm.logpdf(grid).sum(-1)[:, None]
        return logsumexp(log_joint, 0) + 2 * np.log(12 / 400)

    return UserModel(vae.model, vae.guide, x, log_evidence)


def scaled_factors(num_data: int) -> UserModel:
    """A hierarchical factor model: each datum has a positive scale, of which the spread of its factor depends."""
    generator = torch.Generator().manual_seed(1)
    loadings = torch.randn(5, generator=generator)
    scales = (0.5 * torch.randn(num_data, generator=generator)).exp()
    factors = scales * torch.randn(num_data, generator=generator)
    x = factors[:, None] * loadings + 0.6 * torch.randn(num_data, 5, generator=generator)

    def model(x: Tensor) -> None:
        weights = pyro.param("loadings", loadings)
        noise = pyro.param("noise", torch.tensor(0.6), constraint=dist.constraints.positive)
        with pyro.plate("patients", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
            factor = pyro.sample("factor", dist.Normal(0.0, scale))
            with pyro.poutine.mask(mask=torch.tensor(True)):
                pyro.sample("x", dist.Normal(factor[..., None] * weights, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        net = pyro.module("net", factor_net)
        out = net(x)
        with pyro.plate("patients", len(x)):
            pyro.sample("scale", dist.LogNormal(out[:, 0], out[:, 1].exp()))
            pyro.sample("factor", dist.Normal(out[:, 2], out[:, 3].exp()))

    torch.manual_seed(0)
    factor_net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4))

    def log_evidence() -> np.ndarray:
        log_scale, factor = np.linspace(-3, 3, 601), np.linspace(-8, 8, 1601)
        parts = stats.norm.logpdf(x.numpy()[:, None], factor[:, None] * loadings.numpy(), 0.6).sum(-1)
        prior = stats.norm.logpdf(log_scale[:, None], 0, 0.5)
        prior = prior + stats.norm.logpdf(factor, 0, np.exp(log_scale)[:, None])
        marginal = logsumexp(prior, 0) + np.log(6 / 600)
        return logsumexp(parts + marginal, 1) + np.log(16 / 1600)

    return UserModel(model, guide, x, log_evidence, {"loadings": loadings, "noise": torch.tensor(0.6)})


def counts_of_pixels(num_data: int) -> UserModel:
    """Real counts: the pixels of the digits are how many of 16 dots were black. Poisson, with a size of each image."""
    counts = torch.as_tensor(_digits(num_data))
    profile = torch.as_tensor(_digits(1000).mean(0) + 0.1)
    torch.manual_seed(0)
    loadings = torch.randn(64)
    net = nn.Sequential(nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 4))

    def model(counts: Tensor) -> None:
        tilt = pyro.param("tilt", 0.3 * loadings)
        with pyro.plate("images", counts.shape[0], dim=-2):
            size = pyro.sample("size", dist.Gamma(20.0, 20.0))
            style = pyro.sample("style", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", counts.shape[1], dim=-1):
                pyro.sample("counts", dist.Poisson(size * profile * torch.exp(tilt * style)), obs=counts)

    def guide(counts: Tensor) -> None:
        pyro.module("net", net)
        out = net(counts / 16)
        with pyro.plate("images", counts.shape[0], dim=-2):
            pyro.sample("size", dist.LogNormal(0.1 * out[:, :1], (out[:, 1:2] - 2).exp()))
            pyro.sample("style", dist.Normal(out[:, 2:3], (out[:, 3:] - 1).exp()))

    def log_evidence() -> np.ndarray:
        size, style = np.linspace(0.3, 2.5, 1101), np.linspace(-6, 6, 1201)
        shape = profile.numpy() * np.exp(0.3 * loadings.numpy() * style[:, None])
        x = counts.numpy().astype(float)
        # The Poisson density of all pixels by its sufficient statistics: x log size + x log shape - size sum(shape).
        by_style = np.log(shape) @ x.T
        rate = shape.sum(-1)
        constant = -stats.poisson.logpmf(x, 1.0).sum(-1) - 64.0  # sum of log x!
        prior = stats.gamma.logpdf(size, 20, scale=1 / 20)
        found = []
        for n, total in enumerate(x.sum(-1)):
            joint = total * np.log(size)[:, None] - size[:, None] * rate + by_style[:, n] + prior[:, None]
            found.append(logsumexp(joint + stats.norm.logpdf(style)) - constant[n])
        return np.array(found) + np.log(2.2 / 1100) + np.log(12 / 1200)

    return UserModel(model, guide, counts, log_evidence, {"tilt": 0.3 * loadings})


def _np(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


MODELS = {"binary_vae": (binary_vae, "data"), "scaled_factors": (scaled_factors, "patients")}
MODELS["counts_of_pixels"] = (counts_of_pixels, "images")
