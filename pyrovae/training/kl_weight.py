"""The weight of the KL term during training, and the handler that applies it."""

import warnings
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["LatentScale", "check_warmup", "weight_at"]


class LatentScale(Messenger):
    """Multiply the log densities of all latent sites, of model and guide alike, by `weight`.

    Around an ELBO it makes E_q[log p(x | z)] - weight KL(q || prior), the objective of a beta-VAE (Higgins et al.
    2017). It lives in the training step alone: the model and the guide are not changed.

    >>> import pyro, pyro.distributions as dist, torch
    >>> def model():
    ...     pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
    >>> with LatentScale(0.5):
    ...     trace = pyro.poutine.trace(model).get_trace()
    >>> trace.nodes["z"]["scale"]
    0.5
    """

    def __init__(self, weight: float | Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


def weight_at(epoch: int, kl_weight: float, n_epochs_kl_warmup: int) -> float:
    """The weight in an epoch, counted from 0: it rises in equal steps to `kl_weight` over the warm-up.

    >>> [weight_at(epoch, 1.0, 4) for epoch in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return kl_weight * min(1.0, (epoch + 1) / max(n_epochs_kl_warmup, 1))


def check_warmup(n_epochs_kl_warmup: int, max_epochs: int) -> None:
    """Warn if training would end before the KL term has its full weight: it would optimize another objective."""
    if n_epochs_kl_warmup > max_epochs:
        warnings.warn(
            f"n_epochs_kl_warmup={n_epochs_kl_warmup} is longer than max_epochs={max_epochs}: training ends before the "
            "KL term has its full weight, so it optimizes another objective than the ELBO; lower the one or raise the "
            "other",
            stacklevel=3,
        )
