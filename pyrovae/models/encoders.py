"""Encoders: modules whose forward turns x into the Pyro distribution of z, the amortized guides."""

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["MAX_LOG_VARIANCE", "DiagonalGaussian"]

MAX_LOG_VARIANCE = 30.0


class DiagonalGaussian(nn.Module):
    """A Gaussian with diagonal covariance, q(z | x) = N(z | loc(x), diag(exp(log_variance(x)))).

    The parametrization is that of Kingma & Welling (2014): the network gives the mean and the *log variance*,
    so scale = exp(log_variance / 2) and networks written for other libraries fit unchanged. The log variance
    is held in [-30, 30], scales from 3e-7 to 3e6, so that no finite output gives a scale of zero or infinity;
    beyond, its gradient is zero.

    Args:
        net: maps x to one tensor `[*b, 2 D]`, first the D means and then the D log variances, or to a pair
            `(loc, log_variance)` of tensors `[*b, D]`. It receives x as it is.

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

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        loc, log_variance = split_pair(self.net(x))
        scale = (0.5 * log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)).exp()
        return dist.Normal(loc, scale).to_event(1)


def split_pair(output: object) -> tuple[Tensor, Tensor]:
    """The pair (loc, log_variance) in a network's output, one tensor `[*b, 2 D]` or two `[*b, D]`."""
    if isinstance(output, Tensor):
        if output.dim() == 0 or output.shape[-1] % 2:
            raise ValueError(
                "the encoder's net must return a last axis of 2 * latent_dim, the means and then the log "
                f"variances, got shape {tuple(output.shape)}; make its last layer twice as wide as z"
            )
        loc, log_variance = output.chunk(2, dim=-1)
        return loc, log_variance
    if not (
        isinstance(output, tuple | list) and len(output) == 2 and all(isinstance(o, Tensor) for o in output)
    ):
        raise TypeError(
            "the encoder's net must return one tensor or a pair (loc, log_variance), "
            f"got {type(output).__name__}; return torch.cat([loc, log_variance], -1) or the two tensors"
        )
    loc, log_variance = output
    if loc.shape != log_variance.shape:
        raise ValueError(
            "the encoder's net must return loc and log_variance of one shape, "
            f"got {tuple(loc.shape)} and {tuple(log_variance.shape)}; give both the width latent_dim"
        )
    return loc, log_variance
