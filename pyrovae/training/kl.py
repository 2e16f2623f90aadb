"""The closed-form KL divergences between Gaussians that torch and Pyro lack, registered on request."""

from functools import cache
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

__all__ = ["gaussian_kl", "has_closed_form", "register_gaussian_kl"]


def gaussian_kl(p: Distribution, q: Distribution) -> Float[Tensor, "*b"]:
    """KL(p || q) in nats for any Gaussian p and a q of independent coordinates, Normal(...).to_event(1).

    1/2 [tr(S^-1 C) + (m - mu)' S^-1 (m - mu) - D + log |S| / |C|] for p = N(mu, C) and q = N(m, S), computed as
    -H(p) - log q(mu) + 1/2 tr(S^-1 C), of which only the diagonal of C enters.

    Args:
        p: a MultivariateNormal or LowRankMultivariateNormal, event shape `[D]`.
        q: an Independent Normal of the same event shape; the batch shapes broadcast.

    Raises:
        NotImplementedError: q is not Normal(...).to_event(1).
        ValueError: unequal event shapes.

    >>> import torch
    >>> p = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    >>> q = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    >>> round(gaussian_kl(p, q).item(), 4)  # -1/2 log(1 - 0.8^2)
    0.5108
    """
    if not (
        isinstance(q, Independent) and isinstance(q.base_dist, Normal) and q.reinterpreted_batch_ndims == 1
    ):
        raise NotImplementedError
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"a KL divergence wants two distributions of one event shape, got {tuple(p.event_shape)} and "
            f"{tuple(q.event_shape)}; give the guide and the prior the same number of coordinates"
        )
    trace = (p.variance / q.base_dist.scale.square()).sum(-1)
    return 0.5 * trace - p.entropy() - q.log_prob(p.mean)


@cache
def register_gaussian_kl() -> None:
    """Register `gaussian_kl` with `torch.distributions.kl_divergence`; a second call does nothing.

    torch and Pyro know the other pairs of {independent Normal, MultivariateNormal, LowRankMultivariateNormal} as
    guide and {independent Normal, MultivariateNormal} as prior. It is not done on import, since the register
    belongs to the whole process.
    """
    register_kl(MultivariateNormal, Independent)(gaussian_kl)
    register_kl(LowRankMultivariateNormal, Independent)(gaussian_kl)


def has_closed_form(p: Any, q: Any) -> bool:
    """Whether `torch.distributions.kl_divergence` knows KL(p || q).

    >>> import torch
    >>> unit = Normal(torch.tensor(0.0), torch.tensor(1.0))
    >>> has_closed_form(unit, unit), has_closed_form(unit, torch.distributions.StudentT(3.0))
    (True, False)
    """
    try:
        kl_divergence(p, q)
    except NotImplementedError:
        return False
    return True
