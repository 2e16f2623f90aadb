"""log p(x) by a second-order expansion of log p(x, z) around one point."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["laplace_evidence"]


def laplace_evidence(
    log_density: Float[Tensor, " n"], gradient: Float[Tensor, "n d"], curvature: Float[Tensor, "n d d"]
) -> Float[Tensor, " n"]:
    """Integrate the quadratic that log p(x, z) is around a point, with gradient g and curvature L there.

    log p(x) = log p(x, z) + D/2 log 2 pi - 1/2 log |L| + 1/2 g' L^-1 g, exact for a Gaussian posterior wherever the
    point lies: at the mode it is Laplace's method, elsewhere Laplace after one Newton step. NaN where the curvature
    is not positive definite.

    Source: Tierney and Kadane 1986, for the mode.

    >>> at = torch.tensor([[1.0]])  # a standard normal density, away from its mode
    >>> value = -0.5 * at.square().sum(-1) - 0.5 * math.log(2 * math.pi)
    >>> bool(laplace_evidence(value, -at, torch.ones(1, 1, 1)).abs() < 1e-6)
    True
    """
    factor, failed = torch.linalg.cholesky_ex(curvature.double())
    whitened = torch.linalg.solve_triangular(factor, gradient.double().unsqueeze(-1), upper=False).squeeze(-1)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * gradient.shape[-1] * math.log(2 * math.pi)
    value = log_density.double() + constant - half_log_det + 0.5 * whitened.square().sum(-1)
    return torch.where(failed == 0, value, torch.nan).to(log_density.dtype)
