"""A model of one latent number, thousands of independent gradients of an objective on it, and their exact means.

z ~ N(0, 1), x | z ~ N(theta z, 1), guide N(m, exp(rho)^2), one datum. Every replicate has parameters of its own, so
that one backward pass gives the gradients of all of them.
"""

from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

F64 = torch.float64
X = 1.5


class Point(NamedTuple):
    """Where the gradient is taken."""

    theta: float = 0.8
    m: float = 0.3
    rho: float = -0.5


NEAR = Point()


def posterior(theta: float = 0.8) -> Point:
    variance = 1 / (1 + theta**2)
    return Point(theta, theta * X * variance, 0.5 * float(np.log(variance)))


def gradients(
    objective, num_replicates: int, point: Point = NEAR, seed: int = 0, rsample: bool = True
) -> Tensor:
    """Gradients of the bound in (theta, m, rho), one row a replicate."""
    theta, m, rho = (torch.full((num_replicates,), value, dtype=F64, requires_grad=True) for value in point)

    def model(x, index):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(theta[index] * z, 1.0), obs=x)

    def guide(x, index):
        with pyro.plate("data", len(x)):
            normal = dist.Normal(m[index], rho[index].exp())
            pyro.sample("z", normal if rsample else Unreparameterized(normal.loc, normal.scale))

    torch.manual_seed(seed)
    x = torch.full((num_replicates,), X, dtype=F64)
    loss = objective.differentiable_loss(model, guide, x, torch.arange(num_replicates))
    return -torch.stack(torch.autograd.grad(loss, [theta, m, rho]), 1)


class Unreparameterized(dist.Normal):
    has_rsample = False


def exact_elbo(theta: Tensor, m: Tensor, rho: Tensor) -> Tensor:
    variance = (2 * rho).exp()
    likelihood = -0.5 * (np.log(2 * np.pi) + (X - theta * m) ** 2 + theta**2 * variance)
    return likelihood - 0.5 * (variance + m**2 - 1 - 2 * rho)


def nodes(num_particles: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite noise `[K, G]` and its weights `[G]`."""
    points, weights = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(60))
    grid = torch.cartesian_prod(*[points] * num_particles).reshape(-1, num_particles)
    density = torch.cartesian_prod(*[weights / weights.sum()] * num_particles).reshape(-1, num_particles)
    return grid.mT, density.prod(1)


def terms(theta: Tensor, m: Tensor, rho: Tensor, eps: Tensor, fixed: bool = False) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z) at the draws made of `eps`; `fixed`: at those draws as constants."""
    z = m + rho.exp() * eps
    z = z.detach() if fixed else z
    log_p = dist.Normal(torch.tensor(0.0, dtype=F64), 1.0).log_prob(z) + dist.Normal(theta * z, 1.0).log_prob(
        torch.tensor(X, dtype=F64)
    )
    return log_p, dist.Normal(m, rho.exp()).log_prob(z)


def exact_gradient(bound, num_particles: int, point: Point = NEAR) -> Tensor:
    """The gradient of E bound(log_w) in (theta, m, rho), by quadrature over `num_particles` draws."""
    params = [torch.tensor(value, dtype=F64, requires_grad=True) for value in point]
    eps, weight = nodes(num_particles)
    log_p, log_q = terms(*params, eps)
    return torch.stack(torch.autograd.grad((weight * bound(log_p - log_q)).sum(), params))


def exact_wake_gradient(num_particles: int, point: Point = NEAR) -> Tensor:
    """The gradient in (m, rho) of E sum_k v_k log q(z_k), weights and draws held fixed, by quadrature."""
    params = [torch.tensor(value, dtype=F64, requires_grad=True) for value in point]
    eps, weight = nodes(num_particles)
    log_p, log_q = terms(*params, eps, fixed=True)
    v = (log_p - log_q).softmax(0).detach()
    return torch.stack(torch.autograd.grad((weight * (v * log_q).sum(0)).sum(), params[1:]))
