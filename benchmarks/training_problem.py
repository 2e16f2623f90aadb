"""What the training benchmark trains on, and how far a training has come: images, start weights, held-out ELBO."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import pyrovae as pv
from pyrovae.data import read

__all__ = [
    "MIN_SCALE",
    "Problem",
    "Weights",
    "held_out_elbo",
    "keep",
    "load_problem",
    "make_vae",
    "take",
    "weights_of",
]

NUM_VAL, NUM_DRAWS = 1000, 4
SCALE, MIN_SCALE = 0.3, 1e-3

Weights = dict[str, np.ndarray]
"""enc0, enc1, dec0, dec1 [in, out] with enc0_bias, ..., and log_scale [], of x ~ N(relu(z dec0) dec1, scale^2)."""


@dataclass(frozen=True)
class Problem:
    """Images [N, X] to train on, others that are held out, and where all trainings start."""

    x: np.ndarray
    val: np.ndarray
    start: Weights
    hidden: int
    latent_dim: int
    source: str


def load_problem(fashion: str | None, sizes: tuple[int, int, int], num_data: int) -> Problem:
    """The first `num_data` images, of 8 x 8 if X is 64, with uniform noise on their 256 levels; without a file, noise.

    Args:
        fashion: Fashion-MNIST's training images in idx format.
        sizes: X, H and D.
        num_data: N; the held-out ones are the last thousand, which N = 60,000 includes.
    """
    data_dim, hidden, latent_dim = sizes
    generator = torch.Generator().manual_seed(0)
    if fashion is None:
        made = pv.data.linear_gaussian(num_data + NUM_VAL, data_dim, latent_dim, seed=0)
        x, source = made.x.float(), "linear Gaussian noise"
    else:
        raw = torch.from_numpy(read(f"idx:{fashion}").values).float()
        x, source = (raw + torch.rand(raw.shape, generator=generator)) / 256, "Fashion-MNIST"
        if data_dim == 64:
            x = torch.nn.functional.adaptive_avg_pool2d(x.reshape(-1, 1, 28, 28), 8).flatten(1)
    val, train = x[-NUM_VAL:].numpy(), x[:num_data].contiguous().numpy()
    return Problem(train, val, weights_of(make_vae(sizes)), hidden, latent_dim, source)


def keep(problem: Problem, path: Path) -> None:
    """Write it, so that a process that trains need not hold what it was made from."""
    np.savez(path, x=problem.x, val=problem.val, **{f"start.{name}": w for name, w in problem.start.items()})


def take(path: Path, sizes: tuple[int, int, int], source: str) -> Problem:
    """Read what `keep` wrote."""
    with np.load(path) as parts:
        start = {name.removeprefix("start."): parts[name] for name in parts if name.startswith("start.")}
        return Problem(parts["x"], parts["val"], start, sizes[1], sizes[2], source)


def make_vae(sizes: tuple[int, int, int]) -> pv.VAE:
    """The VAE whose weights all start with."""
    data_dim, hidden, latent_dim = sizes
    options = {"noise": "shared", "scale": SCALE, "min_scale": MIN_SCALE, "seed": 0}
    return pv.build_vae(data_dim, latent_dim, hidden=(hidden,), **options)


def weights_of(vae: pv.VAE) -> Weights:
    """Its weights as copies, in JAX's orientation."""
    encoder, decoder = vae.encoder, vae.decoder
    layers = {
        "enc0": encoder.net[0],
        "enc1": encoder.net[2],
        "dec0": decoder.net[0],
        "dec1": decoder.net[2],
    }
    weights = {name: layer.weight.detach().T.numpy().copy() for name, layer in layers.items()}
    weights |= {f"{name}_bias": layer.bias.detach().numpy().copy() for name, layer in layers.items()}
    return weights | {"log_scale": decoder.noise.log_scale.detach().numpy().copy()}


def held_out_elbo(problem: Problem, weights: Weights) -> float:
    """The ELBO of the held-out images in nats per datum, by the same draws for everyone."""
    output = _relu(problem.val @ weights["enc0"] + weights["enc0_bias"]) @ weights["enc1"]
    mean, log_variance = np.split(output + weights["enc1_bias"], 2, -1)
    kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1).mean()
    noise = np.random.default_rng(0).standard_normal((NUM_DRAWS, *mean.shape), np.float32)
    variance = np.exp(2 * float(weights["log_scale"])) + MIN_SCALE**2
    squares = []
    for eps in noise:
        z = mean + np.exp(0.5 * log_variance) * eps
        out = _relu(z @ weights["dec0"] + weights["dec0_bias"]) @ weights["dec1"] + weights["dec1_bias"]
        squares.append(((problem.val - out) ** 2).sum(-1).mean())
    constant = problem.val.shape[1] * math.log(2 * math.pi * variance)
    return float(-0.5 * (np.mean(squares) / variance + constant) - kl)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)
