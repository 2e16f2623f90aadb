"""Tensors in a few words, by which those of other files and processes are known to be the same."""

import hashlib
import math
from collections.abc import Mapping

from torch import Tensor

from pyrovae.training.archive import octets
from pyrovae.training.batches import Data

__all__ = ["fingerprints", "form"]

BLOCK = 1 << 24
"""Numbers of a row source to read together."""


def fingerprints(tensors: Mapping[str, Data]) -> dict[str, str]:
    """The kind, shape and SHA-256 of each tensor: a tenth of a second for 60,000 images of 784 pixels.

    A row source that knows a `sha256` of its own is not read.

    >>> import torch
    >>> fingerprints({"x": torch.zeros(2, 3)})["x"][:21]
    'float32 [2, 3], 9d908'
    """
    return {name: f"{form(x)}, {_digest(x)}" for name, x in tensors.items()}


def _digest(x: Data) -> str:
    if known := getattr(x, "sha256", None):
        return str(known)
    found = hashlib.sha256()
    size = max(1, BLOCK // max(1, math.prod(x.shape[1:])))
    for part in [x] if isinstance(x, Tensor) else x.split(size):
        found.update(octets(part).numpy().data)
    return found.hexdigest()


def form(tensor: Data) -> str:
    """The dtype and shape of a tensor, in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
