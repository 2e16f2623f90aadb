"""A mixture of Gaussians as the amortized guide, and the reparameterized distribution behind it."""

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrovae.models.networks import check_width
from pyrovae.models.outputs import bounded_scale, one_tensor

__all__ = ["GaussianMixtureEncoder", "ReparameterizedMixture"]


class GaussianMixtureEncoder(nn.Module):
    """A mixture of diagonal Gaussians, q(z | x) = sum_c w_c(x) N(z | loc_c(x), diag(scale_c(x)^2)).

    The weights w are the softmax of the logits. Draws have a pathwise gradient in all parameters, see
    `ReparameterizedMixture`. Components that share all their parameters keep sharing them: start from a net whose
    outputs differ, as random initial weights make them.

    Args:
        net: maps x to one tensor `[*b, C (2 D + 1)]`, the means of component 1, 2, ..., then their log variances
            in the same order, then the C logits, or to a pair of widths C D and C (D + 1). It receives x as it is.
        components: number of components C, at least 1.

    Raises:
        ValueError: `components` is not an integer of at least 1; in forward, an output that no D explains.
        TypeError: in forward, when the network returns neither a tensor nor a pair.

    >>> q = GaussianMixtureEncoder(nn.Linear(5, GaussianMixtureEncoder.width(2, 3)), 3)(torch.zeros(7, 5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([7]), torch.Size([2]))
    """

    def __init__(self, net: nn.Module, components: int) -> None:
        super().__init__()
        check_width("components", components)
        self.net = net
        self.components = components

    @staticmethod
    def width(dim: int, components: int) -> int:
        """Outputs that the net needs for `dim` latent coordinates: C (2 D + 1)."""
        return components * (2 * dim + 1)

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of z given x: batch shape `[*b]`, event shape `[D]`."""
        count = self.components
        output, dim = one_tensor(
            self.net(x), lambda dim: self.width(dim, count), lambda dim: count * dim, f"{count} * (2 D + 1)"
        )
        locs, log_variances, logits = output.split([count * dim, count * dim, count], -1)
        shape = (*output.shape[:-1], count, dim)
        parts = dist.Normal(locs.reshape(shape), bounded_scale(log_variances).reshape(shape)).to_event(1)
        return ReparameterizedMixture(dist.Categorical(logits=logits), parts)


class ReparameterizedMixture(dist.MixtureSameFamily):
    """A `MixtureSameFamily` of diagonal Gaussians whose draws carry a pathwise gradient in every parameter.

    A draw is made by choosing a component; its gradient is that of the distributional transform, coordinate by
    coordinate: with F_d and p_d the conditional distribution function and density of z_d given z_<d,
    dz_d = -dF_d / p_d, where F_d moves with the parameters and with z_<d (Graves 2016; Figurnov et al. 2018).
    The gradient is exact in expectation for any number of coordinates. In the weights of components that are far
    apart its variance is large, since a draw has to travel through the gap. Second derivatives are not supported.

    Unlike `pyro.distributions.MixtureOfDiagNormals` it takes a `sample_shape`, has a mean, works in one dimension,
    and its gradient stays finite where components coincide or D is large.

    >>> parts = dist.Normal(torch.randn(3, 2), 1.0).to_event(1)
    >>> ReparameterizedMixture(dist.Categorical(logits=torch.zeros(3)), parts).rsample((4,)).shape
    torch.Size([4, 2])
    """

    has_rsample = True
    support = constraints.real_vector

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draws `[*sample_shape, *batch_shape, D]`, by random numbers of which each belongs to one row of the batch."""
        with torch.no_grad():
            normal, weights = self.component_distribution.base_dist, self.mixture_distribution.probs
            weights = weights.expand(*sample_shape, *weights.shape)
            shape = (*weights.shape, *self.event_shape)
            # as torch.multinomial chooses one
            chosen = (weights / torch.empty_like(weights).exponential_()).argmax(-1)
            values = normal.loc + normal.scale * torch.randn(
                shape, dtype=weights.dtype, device=weights.device
            )
            return values.gather(
                -2, chosen[..., None, None].expand(*chosen.shape, 1, values.shape[-1])
            ).squeeze(-2)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draws `[*sample_shape, *batch_shape, D]` with a gradient."""
        z = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        normal = self.component_distribution.base_dist
        return _with_gradient(z, self.mixture_distribution.logits, normal.loc, normal.scale)


def _with_gradient(
    z: Float[Tensor, "*s d"],
    log_weights: Float[Tensor, "*b c"],
    locs: Float[Tensor, "*b c d"],
    scales: Float[Tensor, "*b c d"],
) -> Float[Tensor, "*s d"]:
    """The values `z` with the gradient of the distributional transform, one coordinate after the other."""
    coordinates = []
    for value, loc, scale in zip(z.unbind(-1), locs.unbind(-1), scales.unbind(-1), strict=True):
        u = _standardized(value, loc, scale)
        log_density = log_weights - 0.5 * u.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        density = log_density.detach().logsumexp(-1).exp().clamp_min(torch.finfo(z.dtype).tiny)
        cdf = _cdf_up_to_a_constant(log_weights.softmax(-1), u)
        coordinates.append(value - (cdf - cdf.detach()) / density)
        # the weights of the components given the coordinates so far, which move with the parameters too
        u = _standardized(coordinates[-1], loc, scale)
        log_weights = (log_weights - 0.5 * u.square() - scale.log()).log_softmax(-1)
    return torch.stack(coordinates, -1)


def _standardized(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    # the bound keeps its square finite in float32 for a component that is astronomically far
    return ((value.unsqueeze(-1) - loc) / scale).clamp(-1e15, 1e15)


def _cdf_up_to_a_constant(weights: Tensor, u: Tensor) -> Tensor:
    """sum_c w_c Phi(u_c), less 1 in the right tail, where the differences of Phi would be lost to rounding."""
    left, right = torch.special.ndtr(u), -torch.special.ndtr(-u)
    is_right = (weights * left).sum(-1, keepdim=True) > 0.5
    return (weights * torch.where(is_right, right, left)).sum(-1)
