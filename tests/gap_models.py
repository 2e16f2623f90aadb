"""Models with known gaps, and the tree of their log p(x), for tests of the approximation and amortization gap."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
import zoo

from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.results import build_tree, group
from pyrovae.target import Target

F64 = torch.float64
DIM = 3
FEW = {"num_samples": 50, "num_fitting_samples": 16}


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


def gaps_of(target: Target, family: str | None = None, **options):
    return inference_gaps(target, family, **{**FEW, **options})["gaps"].to_dataset()


def linear(scale: float = 1.0, shift: float = 0.0) -> tuple[Target, torch.Tensor]:
    """A linear decoder with its best diagonal guide, scales times `scale` and means moved; and the precision."""
    exact = zoo.linear_gaussian(latent_dim=DIM)
    precision = torch.linalg.inv(exact.posterior_cov[0])
    x, mean = exact.data[0], exact.posterior_mean
    gain = torch.linalg.lstsq(x - x[:1], mean - mean[:1]).solution
    best = precision.diagonal().rsqrt()

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = mean[0] + (x - exact.data[0][0]) @ gain + shift
            pyro.sample("z", dist.Normal(loc, scale * best).to_event(1))

    return Target(exact.model, guide, *exact.data), precision


def bent_target(num_data: int = 16) -> Target:
    """z ~ N(0, I) in two dimensions, x | z ~ N(W [z, z_1 z_2, z_1^2], 0.5): posteriors that are bent."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 5, generator=generator, dtype=F64) * torch.tensor([[1.0], [1.0], [0.6], [0.6]])
    z = torch.randn(num_data, 2, generator=generator, dtype=F64)

    def mean(z):
        return torch.cat([z, z[..., :1] * z[..., 1:], z[..., :1] ** 2], -1) @ weight

    x = mean(z) + 0.5 * torch.randn(num_data, 5, generator=generator, dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mean(z), 0.5).to_event(1), obs=x)

    gain = torch.linalg.pinv(weight[:2])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.7 * x @ gain, 0.4).to_event(1))

    return Target(model, guide, x)


def grid_evidence(target: Target, moved: float = 0.0) -> xr.DataTree:
    """log p(x) by a plain sum over a grid, as a tree of evidence has it."""
    axis = torch.linspace(-5, 5, 161, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    z = grid[:, None].expand(-1, target.num_data, -1)
    truth = (target.log_joint(z).logsumexp(0) + 2 * (axis[1] - axis[0]).log()).numpy() + moved
    names = np.full(target.num_data, "quadrature")
    variables = {"truth": truth, "truth_std_error": np.full(target.num_data, 1e-4), "source": names}
    return build_tree({"sandwich": group("sandwich", variables)})


def wavy_gaps(num_fitting_samples: int) -> xr.Dataset:
    """Gaps of a wavy decoder in eight dimensions; its log p(x) is not known, and put far above everything."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 24, generator=generator, dtype=F64) / math.sqrt(2)
    second = torch.randn(24, 12, generator=generator, dtype=F64) / math.sqrt(24)
    z, noise = (torch.randn(8, size, generator=generator, dtype=F64) for size in (8, 12))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.sin(z @ first) @ second, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x[:, :8], 0.9).to_event(1))

    target = Target(model, guide, torch.sin(z @ first) @ second + 0.5 * noise)
    sandwich = {"truth": np.full(8, 100.0), "truth_std_error": np.zeros(8), "source": np.full(8, "exact")}
    given = build_tree({"sandwich": group("sandwich", sandwich)})
    return gaps_of(target, "full", evidence=given, num_fitting_samples=num_fitting_samples, num_samples=400)
