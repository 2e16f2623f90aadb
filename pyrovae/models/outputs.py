"""What an encoder reads off its network's output: the width of z, the parts, and bounds that keep them finite."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.models.networks import members

__all__ = ["MAX_LOG_VARIANCE", "MAX_RATIO", "bounded_scale", "one_tensor", "split_pair"]

MAX_LOG_VARIANCE = 30.0
MAX_RATIO = 100.0  # of an off-diagonal or low-rank entry to the scale of its own coordinate

Width = Callable[[int], int]


def bounded_scale(log_variance: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """The scale exp(log_variance / 2), of a log variance held in [-30, 30]: 3e-7 to 3e6."""
    return (0.5 * log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)).exp()


def one_tensor(output: object, width: Width, loc_width: Width, formula: str) -> tuple[Tensor, int]:
    """A network's output as one tensor `[*b, width(D)]`, and the D that it stands for.

    Args:
        output: one tensor, or a pair (or a mapping of two) of which the first is `[*b, loc_width(D)]` and the second
            the rest.
        width: the number of outputs for a z of D coordinates, increasing in D.
        loc_width: the number of them that are means, which come first.
        formula: `width` in words, for the message.

    Raises:
        ValueError: no D gives that width, or the pair is cut elsewhere.
        TypeError: neither a tensor nor a pair.
    """
    parts = _tensors(output, "(loc, rest)")
    total = sum(part.shape[-1] if part.dim() else 0 for part in parts)
    dim = 1
    while width(dim) < total:
        dim += 1
    if width(dim) != total:
        raise ValueError(
            f"the encoder's net must return a last axis of {formula} with D = latent_dim, got "
            f"{' and '.join(str(tuple(part.shape)) for part in parts)}; give its last layer the width that the "
            "encoder's static method `width` says"
        )
    if len(parts) == 1:
        return parts[0], dim
    loc, rest = parts
    if loc.shape[-1] != loc_width(dim) or loc.shape[:-1] != rest.shape[:-1]:
        raise ValueError(
            f"the encoder's net must return a pair of widths {loc_width(dim)} and {total - loc_width(dim)} with "
            f"equal leading axes, got {tuple(loc.shape)} and {tuple(rest.shape)}; put the means, and only them, first"
        )
    return torch.cat([loc, rest], -1), dim


def split_pair(output: object) -> tuple[Tensor, Tensor]:
    """The pair (loc, log_variance) in a network's output, one tensor `[*b, 2 D]` or two `[*b, D]`."""
    parts = _tensors(output, "(loc, log_variance)")
    if len(parts) == 1:
        whole = parts[0]
        if whole.dim() == 0 or whole.shape[-1] % 2:
            raise ValueError(
                "the encoder's net must return a last axis of 2 * latent_dim, the means and then the log "
                f"variances, got shape {tuple(whole.shape)}; make its last layer twice as wide as z"
            )
        loc, log_variance = whole.chunk(2, dim=-1)
        return loc, log_variance
    loc, log_variance = parts
    if loc.shape != log_variance.shape:
        raise ValueError(
            "the encoder's net must return loc and log_variance of one shape, "
            f"got {tuple(loc.shape)} and {tuple(log_variance.shape)}; give both the width latent_dim"
        )
    return loc, log_variance


def _tensors(output: object, names: str) -> tuple[Tensor, ...]:
    """One tensor or two, of a network's output."""
    parts = members(output)
    if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            f"the encoder's net must return one tensor or a pair {names}, "
            f"got {type(output).__name__}; return torch.cat([...], -1) or the two tensors"
        )
    return parts
