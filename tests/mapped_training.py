"""A process that loads an npy file, trains two steps and reads a block; it prints by how many bytes its peak grew.

Run as `python mapped_training.py PATH MEMORY`.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch

import pyrovae as pv
from pyrovae.training.fit import TrainingStopped


def peak() -> int:
    """The largest resident memory so far, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def two_steps(x: torch.Tensor | pv.data.Rows) -> None:
    vae = pv.build_vae(data_dim=x.shape[1], latent_dim=2, hidden=(8,))
    steps = iter([False, True])
    with suppress(TrainingStopped):
        pv.fit(vae.model, vae.guide, x, batch_size=64, compile=False, stop=lambda: next(steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    two_steps(torch.zeros(200, 784))
    before = peak()
    split = pv.data.load(f"npy:{sys.argv[1]}", memory=sys.argv[2], scale="unit", val_fraction=0.0)
    two_steps(split.train)
    assert split.test[:1000].shape == (1000, 784)
    print(peak() - before)
