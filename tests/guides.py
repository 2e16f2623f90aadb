"""Guides of the linear-Gaussian model that are wrong in one known way, and models with two arguments."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
import zoo
from torch import Tensor

from pyrovae.target import Target

Change = Callable[[Tensor], Tensor]


def gaussian_target(
    change: Change = lambda tril: tril, *, shift: float = 0.0, num_data: int = 20, **form: int
) -> tuple[Target, zoo.Specimen]:
    """The zoo's model, and the posterior with another mean and a changed Cholesky factor as the guide."""
    specimen = zoo.linear_gaussian(num_data=max(num_data, 60), **form)
    x, mean = specimen.data[0], specimen.posterior_mean
    gain = torch.linalg.lstsq(x - x[:1], mean - mean[:1]).solution
    offset = mean[0] - x[0] @ gain
    tril = change(torch.linalg.cholesky(specimen.posterior_cov[0]))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ gain + offset + shift, scale_tril=tril))

    cut = [None if field is None else field[:num_data] for field in specimen[3:]]
    made = zoo.Specimen(specimen.model, guide, (x[:num_data],), *cut)
    return Target(made.model, made.guide, *made.data), made


def mean_field(tril: Tensor) -> Tensor:
    """The diagonal Gaussian with the posterior's own marginal sds: wrong in its correlations alone."""
    return (tril @ tril.mT).diagonal().sqrt().diag()


def prior_target(num_data: int = 20) -> Target:
    """A guide that is the prior and ignores the data."""
    specimen = zoo.linear_gaussian(num_data=num_data)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))

    return Target(specimen.model, guide, *specimen.data)
