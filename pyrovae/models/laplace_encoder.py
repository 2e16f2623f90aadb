"""An encoder that finds the mode of each posterior by Gauss-Newton steps and takes the curvature there."""

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import Distribution

from pyrovae.models.networks import check_width

__all__ = ["LaplaceEncoder"]

# Parts of a Gauss-Newton step, tried from the left; the last resort is not to move.
FRACTIONS = (1.0, 0.5, 0.25, 0.125, 0.03125)


class LaplaceEncoder(nn.Module):
    """The Laplace approximation of the posterior as the guide, q(z | x) = N(z | m, H(m)^-1) (Park et al. 2019).

    From the mean of another encoder, `num_steps` steps m <- m + a H^-1 g lead towards the mode of log p(x, z),
    with g its gradient and H = P + J' F J its expected negative Hessian: P is the precision of the prior, J the
    Jacobian of the decoder's mean (and scale), F = 1/scale^2 (2/scale^2) their Fisher information. a is, row by
    row, the largest of 1, 1/2, 1/4, 1/8, 1/32 and 0 that does not lower log p(x, z). With a linear decoder of
    fixed scale one step from anywhere gives the posterior itself.

    Nothing is random, and each row depends on its own x only. The computation is differentiated as it stands,
    through all steps and the covariance (only the choice of a is held fixed): gradients reach the decoder, the
    prior and `init`, and the ELBO's gradient is the total one. The better the steps converge, the less `init`
    matters and the smaller its gradient; with a linear decoder it is zero. Each step costs D + 1 + 5 passes of
    the decoder, and the covariance D + 1. A direction whose curvature is below 1e-13 of the steepest one is lost to
    rounding, its variance then too small.

    The prior and the decoder are the ones of the VAE, shared and not copied.

    Args:
        prior: a module; `prior()` is Normal(...).to_event(1), MultivariateNormal or LowRankMultivariateNormal.
        decoder: a module; `decoder(z)` is Normal(...).to_event(n), for z `[*b, D]`. Each of its operations must
            have a forward-mode derivative in torch; the usual layers have.
        init: an encoder whose distribution has a mean, such as `DiagonalGaussian`.
        num_steps: Gauss-Newton steps, at least 1.

    Raises:
        ValueError: `num_steps` is not an integer of at least 1; in forward, data of another shape than the
            decoder's.
        TypeError: in forward, a prior or decoder that is not Gaussian, or an `init` without a mean.

    >>> from pyrovae.models.decoders import GaussianDecoder
    >>> from pyrovae.models.encoders import DiagonalGaussian
    >>> from pyrovae.models.priors import StandardNormal
    >>> decoder = GaussianDecoder(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)))
    >>> encoder = LaplaceEncoder(StandardNormal(2), decoder, DiagonalGaussian(nn.Linear(5, 4)))
    >>> q = encoder(torch.zeros(7, 5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([2]))
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, init: nn.Module, num_steps: int = 4) -> None:
        super().__init__()
        check_width("num_steps", num_steps)
        self.prior = prior
        self.decoder = decoder
        self.init = init
        self.num_steps = num_steps

    @staticmethod
    def width(dim: int) -> int:
        """Outputs that the net of a `DiagonalGaussian` as `init` needs for `dim` latent coordinates: 2 D."""
        return 2 * dim

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        start = _mean(self.init(x))
        z = start.reshape(-1, start.shape[-1])
        rows = x.reshape(len(z), -1)
        prior = self.prior()
        _check_prior(prior)
        _check_shape(self.decoder(start), x)
        for _ in range(self.num_steps):
            gradient, precision = self._expand(prior, z, rows)
            step = torch.cholesky_solve(gradient.unsqueeze(-1), _cholesky(precision)).squeeze(-1)
            step = step.to(z.dtype)
            z = z + self._fraction(prior, z, step, rows) * step
        covariance_factor = _inverse_factor(self._expand(prior, z, rows)[1]).to(z.dtype)
        dim = z.shape[-1]
        return dist.MultivariateNormal(
            z.reshape(start.shape), scale_tril=covariance_factor.reshape(*start.shape, dim)
        )

    def _expand(
        self, prior: Distribution, z: Float[Tensor, "n d"], x: Float[Tensor, "n x"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d d"]]:
        """Gradient and expected negative Hessian of log p(x, z) at z, in float64."""
        loc, scale, loc_jacobian, scale_jacobian = self._jacobians(z)
        precision = _prior_precision(prior)
        residual = (x - loc) / scale
        gradient = torch.einsum("nxd,nx->nd", loc_jacobian, residual / scale)
        gradient = gradient.double() + (_mean(prior) - z).double() @ precision
        weighted = (loc_jacobian / scale.unsqueeze(-1)).double()
        curvature = precision + weighted.mT @ weighted
        if scale_jacobian is not None:
            log_scale_jacobian = (scale_jacobian / scale.unsqueeze(-1)).double()
            surprise = (residual.square() - 1).double().unsqueeze(-1)
            gradient = gradient + (log_scale_jacobian * surprise).sum(-2)
            curvature = curvature + 2 * log_scale_jacobian.mT @ log_scale_jacobian
        return gradient, curvature

    def _jacobians(self, z: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The decoder's mean and scale `[n, X]` at z and their Jacobians `[n, X, D]`; None for a fixed scale."""
        num_rows, dim = z.shape
        tangents = torch.eye(dim, dtype=z.dtype, device=z.device).repeat_interleave(num_rows, 0)
        with forward_ad.dual_level():
            normal = _normal(self.decoder(forward_ad.make_dual(z.repeat(dim, 1), tangents)))
            loc, loc_tangent = forward_ad.unpack_dual(normal.loc)
            scale, scale_tangent = forward_ad.unpack_dual(normal.scale)
            if loc_tangent is None:
                loc_tangent = torch.zeros_like(loc)
        return (
            loc[:num_rows].reshape(num_rows, -1),
            scale[:num_rows].reshape(num_rows, -1),
            _columns(loc_tangent, dim),
            None if scale_tangent is None else _columns(scale_tangent, dim),
        )

    @torch.no_grad()
    def _fraction(self, prior: Distribution, z: Tensor, step: Tensor, x: Tensor) -> Float[Tensor, "n 1"]:
        """Row by row, the first of the fractions of the step that does not lower log p(x, z)."""
        before = self._log_joint(prior, z, x)
        # differences within rounding count as level, so that the last digit does not decide
        level = before - 100 * torch.finfo(z.dtype).eps * (1 + before.abs())
        fraction = torch.zeros_like(z[:, :1])
        for candidate in reversed(FRACTIONS):
            after = self._log_joint(prior, z + candidate * step, x)
            fraction = torch.where((after >= level).unsqueeze(-1), candidate, fraction)
        return fraction

    def _log_joint(self, prior: Distribution, z: Float[Tensor, "n d"], x: Tensor) -> Float[Tensor, " n"]:
        likelihood = self.decoder(z)
        return prior.log_prob(z) + likelihood.log_prob(x.reshape(-1, *likelihood.event_shape))


def _columns(tangent: Tensor, dim: int) -> Float[Tensor, "n x d"]:
    """The Jacobian `[n, X, D]` from the derivatives `[D n, *event]` along one coordinate after the other."""
    return tangent.reshape(dim, tangent.shape[0] // dim, -1).movedim(0, -1)


def _cholesky(precision: Float[Tensor, "n d d"]) -> Float[Tensor, "n d d"]:
    """The Cholesky factor, with a relative 1e-14 on the diagonal against the rounding of a steep curvature."""
    trace = precision.diagonal(dim1=-2, dim2=-1).sum(-1)
    ridge = 1e-14 * trace[:, None, None] * torch.eye(precision.shape[-1], dtype=precision.dtype).to(precision)
    return torch.linalg.cholesky(precision + ridge)


def _inverse_factor(precision: Float[Tensor, "n d d"]) -> Float[Tensor, "n d d"]:
    """The lower triangular L with L L' = precision^-1."""
    # the Cholesky factor R of the matrix turned round gives precision = U U' with U upper triangular
    turned = _cholesky(precision.flip(-2, -1)).flip(-2, -1).mT
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(turned, identity, upper=False)


def _mean(distribution: Distribution) -> Tensor:
    try:
        return distribution.mean
    except NotImplementedError as error:
        raise TypeError(
            f"LaplaceEncoder wants an init whose distribution has a mean, got {type(distribution).__name__}; "
            "start from a DiagonalGaussian"
        ) from error


def _check_prior(prior: Distribution) -> None:
    is_normal = isinstance(prior, dist.Independent) and isinstance(prior.base_dist, dist.Normal)
    if is_normal or isinstance(prior, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        if not prior.batch_shape:
            return
        raise TypeError(
            f"LaplaceEncoder wants a prior of one z, got one of batch shape {tuple(prior.batch_shape)}; declare its "
            "coordinates with to_event(1)"
        )
    raise TypeError(
        f"LaplaceEncoder wants a Gaussian prior, got {_name(prior)}; use Normal(...).to_event(1) or "
        "MultivariateNormal, or another encoder"
    )


def _prior_precision(prior: Any) -> Float[Tensor, "d d"]:
    if isinstance(prior, dist.Independent):
        return torch.diag(prior.base_dist.scale.double() ** -2)
    return prior.precision_matrix.double()


def _normal(likelihood: Distribution) -> Any:
    if isinstance(likelihood, dist.Independent) and isinstance(likelihood.base_dist, dist.Normal):
        return likelihood.base_dist
    raise TypeError(
        f"LaplaceEncoder wants a Gaussian decoder, got {_name(likelihood)}; use one that returns "
        "Normal(...).to_event(n), or another encoder"
    )


def _name(distribution: Distribution) -> str:
    inner = distribution.base_dist if isinstance(distribution, dist.Independent) else distribution
    return type(inner).__name__


def _check_shape(likelihood: Distribution, x: Tensor) -> None:
    _normal(likelihood)
    if likelihood.batch_shape + likelihood.event_shape != x.shape:
        raise ValueError(
            f"LaplaceEncoder wants data of the decoder's shape, got {list(x.shape)} where the decoder returns batch "
            f"{list(likelihood.batch_shape)} and event {list(likelihood.event_shape)}; reshape the data, or declare "
            "the decoder's event with to_event"
        )
