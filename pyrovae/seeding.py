"""Seed torch for a block of code and give the caller's random state back; one seed for each block of work."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["block_seed", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under `seed`; the random state outside is untouched.

    >>> import torch
    >>> with seeded(0):
    ...     a = torch.rand(1)
    >>> with seeded(0):
    ...     b = torch.rand(1)
    >>> bool(a == b)
    True
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def block_seed(seed: int, *block: int) -> int:
    """The seed of one block of work: a hash of `seed` and the numbers of the block, in [0, 2^32).

    >>> block_seed(0, 1) == block_seed(0, 1), block_seed(0, 1) == block_seed(0, 2)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, *block]).generate_state(1)[0])
