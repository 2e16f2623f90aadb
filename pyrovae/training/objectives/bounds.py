"""Importance-weighted bounds with the reparameterized gradient: IWAE, MIWAE, CIWAE, PIWAE and the Renyi bounds."""

import math

from jaxtyping import Float
from torch import Tensor

from pyrovae.training.objectives.particles import CHUNK_SIZE, ParticleObjective, Plan, check_count

__all__ = ["CIWAE", "IWAE", "MIWAE", "PIWAE", "Renyi", "iwae_bound"]

LEAST_WEIGHT = 1e-20
"""Floor of a weight that is divided by: lost in the precision of a sum of weights, and safe in float32."""


def iwae_bound(log_w: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
    """log 1/K sum_k w_k, whose expectation is below log p(x) and rises with K (Burda et al. 2016)."""
    return log_w.logsumexp(0) - math.log(len(log_w))


class IWAE(ParticleObjective):
    """The importance-weighted bound L_K = E log 1/K sum_k w_k, with its reparameterized gradient.

    A lower bound of log p(x); at K = 1 the ELBO. The gradient is sum_k v_k d log w_k with the normalized weights v
    (Burda et al. 2016), the total derivative. For the guide its signal-to-noise ratio falls like 1/sqrt(K)
    (Rainforth et al. 2018): see `DReG`. Wants a reparameterized guide of any family.

    >>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> loss = IWAE(num_particles=8).loss(model, guide, torch.zeros(10))  # the guide is the posterior
    >>> round(loss / 10, 4)  # 1/2 log (2 pi 2)
    1.2655
    """

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        v = log_w.softmax(0)
        return Plan(iwae_bound(log_w), v, -v)


class MIWAE(ParticleObjective):
    """The mean of M independent IWAE bounds of K/M particles each (Rainforth et al. 2018).

    A lower bound of log p(x), the same in expectation as IWAE's of K/M particles, with less noise in the gradient.
    With as many groups as particles it is the ELBO, with one group IWAE.

    Args:
        num_particles: all particles K of a datum, a multiple of `num_outer`.
        num_outer: M, the number of bounds that are averaged.
    """

    def __init__(
        self, num_particles: int = 1, plate: str = "data", chunk_size: int = CHUNK_SIZE, *, num_outer: int
    ) -> None:
        super().__init__(num_particles, plate, chunk_size)
        check_count("num_outer", num_outer, 1, type(self).__name__)
        if num_particles % num_outer:
            raise ValueError(
                f"num_particles of {type(self).__name__} must be a multiple of num_outer={num_outer}, got "
                f"{num_particles}; {num_outer} bounds of K particles each take {num_outer} * K"
            )
        self.num_outer = num_outer

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        groups = log_w.unflatten(0, (self.num_outer, -1))
        v = groups.softmax(1).flatten(0, 1) / self.num_outer
        return Plan((groups.logsumexp(1) - math.log(groups.shape[1])).mean(0), v, -v)


class CIWAE(ParticleObjective):
    """The combination beta ELBO + (1 - beta) IWAE of the same particles (Rainforth et al. 2018).

    A lower bound of log p(x), between the two.

    Args:
        beta: weight of the ELBO, from 0 (IWAE) to 1 (ELBO).
    """

    def __init__(
        self, num_particles: int = 1, plate: str = "data", chunk_size: int = CHUNK_SIZE, *, beta: float
    ) -> None:
        super().__init__(num_particles, plate, chunk_size)
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
            raise ValueError(
                f"beta of CIWAE must lie between 0, which is IWAE, and 1, the ELBO, got {beta!r}"
            )
        self.beta = beta

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        v = self.beta / len(log_w) + (1 - self.beta) * log_w.softmax(0)
        return Plan(self.beta * log_w.mean(0) + (1 - self.beta) * iwae_bound(log_w), v, -v)


class PIWAE(MIWAE):
    """IWAE of all K particles for the model, MIWAE of M groups of them for the guide (Rainforth et al. 2018).

    Two objectives, both lower bounds of log p(x) with the same optimum where the guide can be the posterior. The loss
    reported is the model's, minus IWAE's bound. A parameter that model and guide share gets the sum of its two parts:
    what it is in log p(x, z) follows the first, what it is in the guide the second.

    Args:
        num_particles: all particles K of a datum, a multiple of `num_outer`.
        num_outer: M, the number of bounds that are averaged.
    """

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        guide = super().plan(log_w).model
        model = log_w.softmax(0).clamp_min(LEAST_WEIGHT)
        return Plan(iwae_bound(log_w), model, -guide, path=guide / model)


class Renyi(ParticleObjective):
    """The variational Renyi bound 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha) (Li & Turner 2016).

    Its expectation is below log p(x) for alpha >= 0: alpha = 0 is IWAE, and above 1 it is below the ELBO. For
    alpha < 0 it has no direction: the population value is an upper bound, and the estimate is biased low. The gradient
    is sum_k v_k d log w_k with weights v in proportion to w^(1 - alpha). Unlike Pyro's `RenyiELBO`, it weights
    each datum by itself and leaves the scale of a subsampled plate outside the logarithm.

    Args:
        alpha: any finite number but 1, at which the bound is the ELBO.
    """

    def __init__(
        self, num_particles: int = 1, plate: str = "data", chunk_size: int = CHUNK_SIZE, *, alpha: float
    ) -> None:
        super().__init__(num_particles, plate, chunk_size)
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
            or alpha == 1
        ):
            raise ValueError(
                f'alpha of Renyi must be finite and other than 1, got {alpha!r}; at 1 the bound is that of "elbo"'
            )
        self.alpha = alpha

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        power = (1 - self.alpha) * log_w
        v = power.softmax(0)
        return Plan(iwae_bound(power) / (1 - self.alpha), v, -v)
