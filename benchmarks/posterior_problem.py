"""The posteriors that samplers are compared on: a decoder of 784 pixels trained for a short fixed time, and images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.data import digits, read
from pyrovae.seeding import seeded

__all__ = ["DATA_DIM", "HIDDEN", "Decoder", "Problem", "draw_starts", "load_problem"]

DATA_DIM, HIDDEN = 784, 400
NUM_TRAIN, NUM_TEST, NUM_EPOCHS, BATCH = 20_000, 256, 5, 128
SCALE = 0.2  # where the noise starts: Adam moves its logarithm by 0.001 a step at most


@dataclass(frozen=True)
class Decoder:
    """mean = relu(z first + first_bias) last + last_bias, x ~ N(mean, scale^2), as numpy arrays for any library."""

    first: np.ndarray
    """[D, H]."""
    first_bias: np.ndarray
    last: np.ndarray
    """[H, X]."""
    last_bias: np.ndarray
    scale: float


@dataclass(frozen=True)
class Problem:
    """A trained VAE, images it was not trained on, `[256, X]`, and what the images are."""

    vae: pv.VAE
    x: Tensor
    source: str

    @property
    def decoder(self) -> Decoder:
        """The decoder's weights."""
        decoder: Any = self.vae.decoder
        first, _, last = decoder.net
        tensors = (first.weight.T, first.bias, last.weight.T, last.bias)
        a, b, c, d = (np.ascontiguousarray(each.detach().numpy()) for each in tensors)
        return Decoder(a, b, c, d, float(decoder.noise().detach()))


def load_problem(data: str, latent_dim: int, work: Path) -> Problem:
    """Trains the VAE of that latent dimension, or takes the one that an earlier call left in the folder `work`.

    Args:
        data: `digits`, scikit-learn's digits made 28 x 28; or an idx file of 28 x 28 images.
        latent_dim: D.
        work: folder of trained networks, named by the data, D and the training.
    """
    x, source = _images(data)
    test, train = x[-NUM_TEST:], x[:-NUM_TEST][:NUM_TRAIN]
    settings = f"{source} {HIDDEN} {len(train)} {NUM_EPOCHS} {BATCH} {SCALE} {torch.__version__}"
    path = work / f"vae-{latent_dim}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    if path.exists():
        return Problem(pv.load(path), test, source)
    vae = pv.build_vae(DATA_DIM, latent_dim, hidden=(HIDDEN,), noise="shared", scale=SCALE, seed=0)
    epochs = NUM_EPOCHS * max(1, NUM_TRAIN // len(train))
    options: dict[str, Any] = {"objective": "analytic_kl", "batch_size": BATCH, "max_epochs": epochs}
    pv.fit(vae.model, vae.guide, train, **options)
    work.mkdir(parents=True, exist_ok=True)
    pv.save(vae, path)
    return Problem(vae, test, source)


def draw_starts(problem: Problem, num_chains: int, num_data: int) -> np.ndarray:
    """Draws of the guide, `[C, N, D]`, from which the peers' chains start: in the posterior, or near it."""
    with torch.no_grad(), seeded(1):
        drawn: np.ndarray = problem.vae.encoder(problem.x[:num_data]).sample((num_chains,)).numpy()
    return drawn


def _images(data: str) -> tuple[Tensor, str]:
    if data == "digits":
        return _large_digits(), "scikit-learn digits, 28 x 28 by interpolation"
    raw = read(f"idx:{data}")
    if raw.values.shape[1] != DATA_DIM:
        raise SystemExit(f"{data} holds rows of {raw.values.shape[1]} numbers, not 28 x 28 images")
    x = torch.from_numpy(raw.values).float()
    with seeded(0):
        return (x + torch.rand(x.shape)) / 256, f"{Path(data).name}, sha256 {raw.sha256[:12]}"


def _large_digits() -> Tensor:
    """Interpolated digits, each at several small shifts, with noise of 1/10 that keeps their density finite."""
    parts = digits()
    x = torch.cat([parts.train, parts.val, parts.test]).reshape(-1, 1, 8, 8)
    large = torch.nn.functional.interpolate(x, size=(28, 28), mode="bicubic").clamp(0, 1)
    shifts = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
    images = torch.cat([large.roll(shift, (2, 3)) for shift in shifts]).flatten(1)
    with seeded(0):
        images = images + 0.1 * torch.randn(images.shape)
        return images[torch.randperm(len(images))]
