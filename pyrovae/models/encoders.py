"""Encoders: modules whose forward turns x into the Pyro distribution of z, the amortized guides."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.flow_encoder import FlowGaussian
from pyrovae.models.laplace_encoder import LaplaceEncoder
from pyrovae.models.mixture_encoder import GaussianMixtureEncoder
from pyrovae.models.networks import check_width
from pyrovae.models.outputs import MAX_LOG_VARIANCE, MAX_RATIO, bounded_scale, one_tensor, split_pair

__all__ = [
    "MAX_LOG_VARIANCE",
    "MAX_RATIO",
    "DiagonalGaussian",
    "FlowGaussian",
    "FullGaussian",
    "GaussianMixtureEncoder",
    "LaplaceEncoder",
    "LowRankGaussian",
]


class DiagonalGaussian(nn.Module):
    """A Gaussian with diagonal covariance, q(z | x) = N(z | loc(x), diag(exp(log_variance(x)))).

    The parametrization is that of Kingma & Welling (2014): the network gives the mean and the *log variance*,
    so scale = exp(log_variance / 2) and networks written for other libraries fit unchanged. The log variance
    is held in [-30, 30], scales from 3e-7 to 3e6, so that no finite output gives a scale of zero or infinity;
    beyond, its gradient is zero.

    Args:
        net: maps x to one tensor `[*b, 2 D]`, first the D means and then the D log variances, or to a pair
            `(loc, log_variance)` of tensors `[*b, D]`, or to a mapping of these two in this order, as encoders of
            pythae do. It receives x as it is.

    Raises:
        ValueError: in forward, when the network returns an odd last axis or a pair of unequal shapes.
        TypeError: in forward, when the network returns neither a tensor nor a pair.

    >>> import torch
    >>> q = DiagonalGaussian(nn.Linear(5, 4))(torch.zeros(7, 5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([2]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @staticmethod
    def width(dim: int) -> int:
        """Outputs that the net needs for `dim` latent coordinates: 2 D."""
        return 2 * dim

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        loc, log_variance = split_pair(self.net(x))
        return dist.Normal(loc, bounded_scale(log_variance)).to_event(1)


class FullGaussian(nn.Module):
    """A Gaussian with any covariance, q(z | x) = N(z | loc(x), L(x) L(x)').

    L is lower triangular with L_ii = s_i = exp(log_variance_i / 2) and L_ij = s_i r_ij below the diagonal: s_i is
    the standard deviation of z_i given the coordinates before it, and with r = 0 this is `DiagonalGaussian`. The
    log variances are held in [-30, 30] and the ratios r in [-100, 100]; beyond, their gradient is zero.

    Args:
        net: maps x to one tensor `[*b, 2 D + D (D - 1) / 2]`, the means, the log variances and the ratios row by
            row (r_21, r_31, r_32, ...), or to a pair of which the first is the means. It receives x as it is.

    Raises:
        ValueError: in forward, when no D gives the width that the network returns.
        TypeError: in forward, when the network returns neither a tensor nor a pair.

    >>> q = FullGaussian(nn.Linear(5, FullGaussian.width(3)))(torch.zeros(7, 5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([3]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @staticmethod
    def width(dim: int) -> int:
        """Outputs that the net needs for `dim` latent coordinates: 2 D + D (D - 1) / 2."""
        return 2 * dim + dim * (dim - 1) // 2

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        output, dim = one_tensor(self.net(x), self.width, lambda dim: dim, "2 D + D (D - 1) / 2")
        loc, log_variance, ratios = output.split([dim, dim, self.width(dim) - 2 * dim], -1)
        scale = bounded_scale(log_variance)
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * _unit_lower(ratios, dim))


def _unit_lower(ratios: Float[Tensor, "*b r"], dim: int) -> Float[Tensor, "*b d d"]:
    """The lower triangular matrix with ones on the diagonal and the ratios, row by row, below it."""
    row, column = torch.tril_indices(dim, dim, -1, device=ratios.device)
    identity = torch.eye(dim, dtype=ratios.dtype, device=ratios.device)
    below = torch.zeros(*ratios.shape[:-1], dim * dim, dtype=ratios.dtype, device=ratios.device)
    position = (dim * row + column).expand(ratios.shape)
    below = below.scatter(-1, position, ratios.clamp(-MAX_RATIO, MAX_RATIO))
    return below.reshape(*ratios.shape[:-1], dim, dim) + identity


class LowRankGaussian(nn.Module):
    """A Gaussian with a covariance of low rank plus a diagonal, q(z | x) = N(z | loc, S (I + R R') S).

    S = diag(s), s_i = exp(log_variance_i / 2), and R(x) is `[D, rank]`, its entries relative to the scale of their
    coordinate; with R = 0 this is `DiagonalGaussian`. The log variances are held in [-30, 30] and R in
    [-100, 100]; beyond, their gradient is zero. It costs D * rank^2 where `FullGaussian` costs D^2 outputs and
    D^2 operations a draw: worth it from some ten coordinates on.

    Args:
        net: maps x to one tensor `[*b, (2 + rank) D]`, the means, the log variances and R row by row, or to a
            pair of which the first is the means. It receives x as it is.
        rank: columns of R, at least 1; from D - 1 on every covariance can be reached.

    Raises:
        ValueError: `rank` is not an integer of at least 1; in forward, when no D gives the network's width.
        TypeError: in forward, when the network returns neither a tensor nor a pair.

    >>> q = LowRankGaussian(nn.Linear(5, LowRankGaussian.width(3, rank=1)), rank=1)(torch.zeros(7, 5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([3]))
    """

    def __init__(self, net: nn.Module, rank: int) -> None:
        super().__init__()
        check_width("rank", rank)
        self.net = net
        self.rank = rank

    @staticmethod
    def width(dim: int, rank: int) -> int:
        """Outputs that the net needs for `dim` latent coordinates: (2 + rank) D."""
        return (2 + rank) * dim

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        output, dim = one_tensor(
            self.net(x), lambda dim: self.width(dim, self.rank), lambda dim: dim, f"(2 + {self.rank}) * D"
        )
        loc, log_variance, ratios = output.split([dim, dim, self.rank * dim], -1)
        scale = bounded_scale(log_variance)
        ratios = ratios.clamp(-MAX_RATIO, MAX_RATIO).reshape(*loc.shape, self.rank)
        return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * ratios, scale.square())
