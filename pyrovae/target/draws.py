"""What a Target gives back: draws with their density, the terms of log p(x, z), simulated data."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Draws", "Simulation", "Terms"]


class Draws(NamedTuple):
    """Draws `z` `[K, N, D]` of the guide in unconstrained coordinates, and their `log_q` `[K, N]`."""

    z: Tensor
    log_q: Tensor


class Terms(NamedTuple):
    """`log_prior` and `log_likelihood`, each `[K, N]`; their sum is log p(x, z)."""

    log_prior: Tensor
    log_likelihood: Tensor


class Simulation(NamedTuple):
    """`z` `[K, D]` from the prior, and `data` drawn given z, as the arguments of the model with K rows."""

    z: Tensor
    data: tuple[Tensor, ...]
