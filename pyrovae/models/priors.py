"""Priors: modules whose forward returns the Pyro distribution of one datum's z."""

import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import Distribution

from pyrovae.models.networks import check_width

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    """The standard normal prior, p(z) = N(z | 0, I).

    It has no parameter; its mean and scale are buffers, so `.to(device)` and `.double()` move it too.

    Args:
        dim: number of latent coordinates D, at least 1.

    Raises:
        ValueError: `dim` is not an integer of at least 1.

    >>> prior = StandardNormal(3)()
    >>> prior.batch_shape, prior.event_shape
    (torch.Size([]), torch.Size([3]))
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_width("dim", dim)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self) -> Distribution:
        """The distribution of one z: no batch shape, event shape `[D]`."""
        return dist.Normal(self.loc, self.scale).to_event(1)
