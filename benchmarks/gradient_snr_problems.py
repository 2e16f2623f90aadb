"""What gradients are measured on: the toy of Rainforth et al. 2018, and a VAE of digits along its training."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.training.loop import TrainingStopped

__all__ = ["TOY_KL", "Toy", "Trained", "digits_vae", "points_of_training", "train_for"]

TOY_DIM, TOY_DATA, GUIDE_VARIANCE = 20, 1024, 2 / 3
TOY_KL = TOY_DIM / 2 * (2 * GUIDE_VARIANCE - 1 - math.log(2 * GUIDE_VARIANCE))
"""KL(guide || posterior) at the optimum, where the posterior is N(A x + b, I/2)."""

MID_EPOCHS, MAX_EPOCHS = 5, 150


class Toy(nn.Module):
    """z ~ N(mu, I), x | z ~ N(z, I), guide N(A x + b, 2/3 I) in 20 dimensions, 1024 data.

    The parameters are the optimum, mu = mean x, A = I/2, b = mu/2, plus N(0, noise^2): at the optimum itself the
    encoder's gradient has mean zero.
    """

    def __init__(self, noise: float, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            truth = torch.randn(TOY_DIM)
            self.x = truth + 2**0.5 * torch.randn(TOY_DATA, TOY_DIM)
            mean = self.x.mean(0)
            optimum = {"mu": mean, "a": torch.eye(TOY_DIM) / 2, "b": mean / 2}
            for name, value in optimum.items():
                setattr(self, name, nn.Parameter(value + noise * torch.randn(value.shape)))

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu.expand(len(x), -1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        with pyro.plate("data", len(x)):
            loc = nn.functional.linear(x, self.a, self.b)
            pyro.sample("z", dist.Normal(loc, GUIDE_VARIANCE**0.5).to_event(1))


class Trained(NamedTuple):
    """A VAE that was trained with one objective, its parameters the best by its own validation bound."""

    vae: pv.VAE
    num_steps: int
    num_epochs: int
    best_epoch: int


def digits_vae(seed: int = 0) -> pv.VAE:
    """64-256-8, one learned scale of the noise."""
    return pv.build_vae(64, 8, hidden=(256,), noise="shared", seed=seed)


def points_of_training() -> Iterator[tuple[str, pv.VAE]]:
    """One VAE at initialization, after a few epochs, and where the validation ELBO is best; the same object."""
    split, vae = pv.data.digits(seed=0), digits_vae()
    yield "initialization", vae
    pv.fit(vae.model, vae.guide, split.train, max_epochs=MID_EPOCHS, seed=0)
    yield f"mid-training ({MID_EPOCHS} epochs)", vae
    fitted = pv.fit(vae.model, vae.guide, split.train, val_data=split.val, max_epochs=MAX_EPOCHS, seed=1)
    yield f"convergence ({MID_EPOCHS + fitted.best_epoch + 1} epochs)", vae


def train_for(seconds: float, objective: str, seed: int, **options: Any) -> Trained:
    """Train for so many seconds of processor time, tracing included; validation, once an epoch, is counted too."""
    split, vae = pv.data.digits(seed=0), digits_vae(seed)
    best, kept, steps, epochs = -math.inf, vae.state_dict(), 0, 0
    kept = {name: value.clone() for name, value in kept.items()}
    best_epoch, start = 0, time.process_time()

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return time.process_time() - start > seconds

    def keep(epoch: int, _: int, metrics: dict[str, float]) -> None:
        nonlocal best, kept, epochs, best_epoch
        epochs = epoch + 1
        value = metrics.get("val_elbo", metrics.get("val_bound", -math.inf))
        if value > best:
            best, best_epoch = value, epochs
            kept = {name: each.clone() for name, each in vae.state_dict().items()}

    with contextlib.suppress(TrainingStopped):
        pv.fit(
            vae.model, vae.guide, split.train, val_data=split.val, objective=objective, seed=seed,
            max_epochs=10_000, stop=stop, progress=keep, compile="auto", **options,
        )  # fmt: skip
    vae.load_state_dict(kept)
    return Trained(vae, steps, epochs, best_epoch)
