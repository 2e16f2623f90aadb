"""Exact answers of a linear map with Gaussian noise, x = W z + b + sigma e, under a Gaussian prior on z."""

from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "GaussianPosterior",
    "LinearGaussian",
    "gaussian_moments",
    "linear_log_evidence",
    "linear_posterior",
]


class LinearGaussian(NamedTuple):
    """x = W z + b + scale e, z = loc + scale_tril u; e and u standard normal."""

    weight: Float[Tensor, "x d"]
    bias: Float[Tensor, " x"]
    scale: Float[Tensor, " x"]
    loc: Float[Tensor, " d"]
    scale_tril: Float[Tensor, "d d"]


class GaussianPosterior(NamedTuple):
    """p(z | x) = N(z | loc, scale_tril scale_tril'), with `loc` `[N, D]` and `scale_tril` `[D, D]` for all data."""

    loc: Tensor
    scale_tril: Tensor


def linear_log_evidence(model: LinearGaussian, x: Float[Tensor, "n x"]) -> Float[Tensor, " n"]:
    """log N(x | W m + b, W S W' + diag(scale^2)) of each row, with prior N(m, S = scale_tril scale_tril')."""
    mean = model.weight @ model.loc + model.bias
    factor = model.weight @ model.scale_tril
    value: Tensor = dist.LowRankMultivariateNormal(mean, factor, model.scale.square()).log_prob(x)
    return value


def linear_posterior(model: LinearGaussian, x: Float[Tensor, "n x"]) -> GaussianPosterior:
    """p(z | x) of each row, a Gaussian of precision W' diag(scale^-2) W + S^-1.

    Of u, where z = loc + scale_tril u, the precision is M = I + A' A with A = diag(1 / scale) W scale_tril, and
    the mean M^-1 A' (x - W loc - b) / scale (Tipping & Bishop 1999). With M = L L' the covariance of z is
    (L^-1 scale_tril')' (L^-1 scale_tril'), whose triangular root comes by QR, without squaring it.
    """
    tril = model.scale_tril
    scaled = model.weight @ tril / model.scale[:, None]
    eye = torch.eye(len(tril), dtype=tril.dtype, device=tril.device)
    lower = torch.linalg.cholesky(eye + scaled.mT @ scaled)
    residual = (x - model.weight @ model.loc - model.bias) / model.scale
    u = torch.cholesky_solve(scaled.mT @ residual.mT, lower)
    root = torch.linalg.solve_triangular(lower, tril.mT, upper=False)
    upper = torch.linalg.qr(root).R
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
    return GaussianPosterior(model.loc + (tril @ u).mT, (upper * signs[:, None]).mT)


def gaussian_moments(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and scale_tril `[D, D]` of a Gaussian on one z.

    Raises:
        TypeError: another distribution.
    """
    if not prior.batch_shape and isinstance(prior, dist.MultivariateNormal):
        return prior.loc, prior.scale_tril
    if (
        not prior.batch_shape
        and isinstance(prior, dist.Independent)
        and isinstance(prior.base_dist, dist.Normal)
    ):
        return prior.mean, torch.diag(prior.stddev)
    raise TypeError(
        f"a linear decoder's exact answers want a Gaussian prior of one z, got {type(prior).__name__}; pass "
        "prior=vae.prior() of a standard or gaussian prior"
    )
