"""Small models whose gradients are known, for the laboratory; and a look at one part of its result."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from scipy import stats
from torch import Tensor, nn

from pyrovae import gradient_statistics

F64 = torch.float64
FALSE_ALARM = 1e-6
FEW = {"num_particles": (2,), "num_replicates": 80, "reference": "none"}
DEGREES = 18  # of the jackknife over 20 groups, less one for a second sample


def within(value: float, expected: float, std_error: float) -> bool:
    """Whether chance explains the difference at the stated rate, with an error bar from 20 groups."""
    return abs(value - expected) <= stats.t.isf(FALSE_ALARM / 2, DEGREES) * std_error


def measured(lab: "Linear", *names: str, **options: Any) -> xr.DataTree:
    """A quick measurement of some estimators."""
    return gradient_statistics(lab.model, lab.guide, lab.x, **(FEW | {"estimators": names} | options))


def row(tree, method: str, count: int, part: str = "encoder") -> dict[str, float]:
    """One row of the group `gradients`."""
    group = tree["gradients"].to_dataset().sel({"method": method, "count": count, "part": part})
    skipped = ("spectrum", "mean", "coordinate_part", "reason")
    return {str(name): float(group[name]) for name in group.data_vars if name not in skipped}


class Unreparameterized(dist.Normal):
    has_rsample = False


def expectation(f, mu: float = 0.7, sd: float = 0.8, size: int = 1, kind=dist.Normal):
    """E_q[sum f(z)], q = N(mu, sd^2) in `size` dimensions: the prior is the guide, so that log w is sum f(z) alone."""
    at = torch.full((size,), mu, dtype=F64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(at.detach(), sd).to_event(1))
            pyro.factor("f", f(z).sum(-1))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", kind(at.expand(len(x), size), sd).to_event(1))

    return model, guide, torch.zeros(1, dtype=F64)


class Linear(nn.Module):
    """z ~ N(0, I), x | z ~ N(W z + b, s^2 I), guide N(V x + c, diag exp(2 r)); all of them parameters."""

    def __init__(self, data_dim: int = 4, latent_dim: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.decoder = nn.Linear(latent_dim, data_dim).double()
        self.encoder = nn.Linear(data_dim, latent_dim).double()
        self.log_sd = nn.Parameter(torch.full((latent_dim,), -0.4, dtype=F64))
        self.log_noise = nn.Parameter(torch.tensor(-0.2, dtype=F64))
        self.x = torch.randn(6, data_dim, dtype=F64)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(self.log_sd)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.log_noise.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.log_sd.exp()).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        cov = self.decoder.weight @ self.decoder.weight.mT
        cov = cov + (2 * self.log_noise).exp() * torch.eye(len(cov), dtype=F64)
        return dist.MultivariateNormal(self.decoder.bias, cov).log_prob(x)

    def be_the_posterior(self) -> None:
        """Make the decoder orthogonal, so that this guide can be the posterior, and let it be."""
        with torch.no_grad():
            columns = torch.linalg.qr(self.decoder.weight)[0]
            self.decoder.weight.copy_(columns * torch.tensor([1.5, 0.8], dtype=F64))
            noise = (2 * self.log_noise).exp()
            variance = 1 / (1 + self.decoder.weight.square().sum(0) / noise)
            gain = variance[:, None] * self.decoder.weight.mT / noise
            self.encoder.weight.copy_(gain)
            self.encoder.bias.copy_(-gain @ self.decoder.bias)
            self.log_sd.copy_(0.5 * variance.log())
