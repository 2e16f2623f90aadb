"""An inverse autoregressive flow as the amortized guide."""

from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalAffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.networks import check_hidden, check_width
from pyrovae.models.outputs import bounded_scale, one_tensor

__all__ = ["MAX_LOG_SCALE", "FlowGaussian"]

MAX_LOG_SCALE = 2.0


class FlowGaussian(nn.Module):
    """A Gaussian bent by inverse autoregressive flows, z = loc(x) + scale(x) * f_T(... f_1(e)), e ~ N(0, I).

    Each flow is f(u)_i = m_i(u_<i, h(x)) + exp(s_i(u_<i, h(x))) u_i (Kingma et al. 2016), every second one in the
    reverse order of coordinates; m and s come from a masked network (Germain et al. 2015) that also sees the
    context h(x). |s| stays below 2, softly, and the hidden units are tanh, so that no finite output of `net`
    gives a scale of zero or infinity. Drawing takes one pass of each masked network; scoring a z that it did not
    draw takes D of them, one coordinate after the other, and loses a little precision at each.

    Args:
        net: maps x to one tensor `[*b, 3 D]`, the means, the log variances and the context, or to a pair of
            widths D and 2 D. It receives x as it is.
        dim: number of latent coordinates D, at least 2: in one dimension such a flow is just an affine map.
        hidden: widths of the hidden layers of each masked network, each at least D.
        num_flows: number of flows T, at least 1.

    Raises:
        ValueError: a width out of range; in forward, an output of another width than 3 D.
        TypeError: in forward, when the network returns neither a tensor nor a pair.

    >>> q = FlowGaussian(nn.Linear(5, FlowGaussian.width(2)), dim=2)(torch.zeros(7, 5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([2]))
    """

    def __init__(self, net: nn.Module, dim: int, hidden: Sequence[int] = (64,), num_flows: int = 2) -> None:
        super().__init__()
        _check_flow(dim, hidden, num_flows)
        self.net = net
        self.dim = dim
        forward = torch.arange(dim)
        self.flows = nn.ModuleList(
            ConditionalAffineAutoregressive(
                _MaskedNetwork(dim, hidden, forward if index % 2 == 0 else forward.flip(0))
            )
            for index in range(num_flows)
        )

    @staticmethod
    def width(dim: int) -> int:
        """Outputs that the net needs for `dim` latent coordinates: 3 D."""
        return 3 * dim

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        output, dim = one_tensor(self.net(x), self.width, lambda dim: dim, "3 * D")
        if dim != self.dim:
            raise ValueError(
                f"the encoder's net must return a last axis of 3 * dim = {self.width(self.dim)}, got {3 * dim}; "
                "give it and FlowGaussian the same number of latent coordinates"
            )
        loc, log_variance, context = output.chunk(3, -1)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        bent = [cast(Any, flow).condition(context) for flow in self.flows]
        affine = dist.transforms.AffineTransform(loc, bounded_scale(log_variance), event_dim=1)
        return dist.TransformedDistribution(base, [*bent, affine])


class _MaskedNetwork(ConditionalAutoRegressiveNN):
    """Means and log scales of one flow, the log scales softly within +-MAX_LOG_SCALE."""

    def __init__(self, dim: int, hidden: Sequence[int], order: Tensor) -> None:
        super().__init__(dim, dim, list(hidden), permutation=order, nonlinearity=nn.Tanh())

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = super().forward(x, context)
        return mean, MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)


def _check_flow(dim: int, hidden: Sequence[int], num_flows: int) -> None:
    check_width("dim", dim)
    check_width("num_flows", num_flows)
    check_hidden(hidden)
    if dim < 2:
        raise ValueError(
            "dim must be at least 2, got 1; in one dimension an autoregressive flow is an affine map: use "
            "DiagonalGaussian"
        )
    if not hidden or min(hidden) < dim:
        raise ValueError(
            f"hidden must have at least one layer, each at least as wide as z ({dim}), got {tuple(hidden)}; "
            "a narrower one cannot connect every coordinate"
        )
