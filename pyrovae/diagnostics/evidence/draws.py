"""Draws of the guide, or of a mixture of guide and prior, and their log-weights, block by block."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Draws, Target

__all__ = ["MAX_ROWS", "check_draws", "check_weights", "draw_log_weights", "draw_weights", "guide_blocks"]

MAX_ROWS = 1 << 14  # rows (draws times data) that the model sees at once


def draw_weights(target: Target, num_samples: int, *, seed: int = 0) -> tuple[Draws, Tensor]:
    """Draws of the guide and their log-weights `[K, N]`, in blocks of at most 16,384 rows, a seed for each block.

    Raises:
        ValueError: fewer than 2 samples; or weights that are NaN or +infinity, naming the datum.
    """
    check_draws(num_samples)
    parts = [
        _joined(list(guide_blocks(some, num_samples, seed=block_seed(seed, i))))
        for i, some in enumerate(target.split(MAX_ROWS))
    ]
    z, log_q, log_w = (torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))
    check_weights(log_w)
    return Draws(z, log_q), log_w


def draw_log_weights(
    target: Target, num_samples: int, *, seed: int = 0, defensive: float = 0.0
) -> Float[Tensor, "k n"]:
    """Log-weights `[K, N]` alone: those of `draw_weights`, without keeping the draws.

    With `defensive` e > 0 draws come from q_e = (1 - e) q + e prior, so that w <= p(x | z) / e is bounded wherever
    the likelihood is (Hesterberg 1995).

    Raises:
        ValueError: as `draw_weights`; or `defensive` outside [0, 1).
    """
    check_draws(num_samples)
    parts = []
    for i, some in enumerate(target.split(MAX_ROWS)):
        blocks = guide_blocks(some, num_samples, seed=block_seed(seed, i), defensive=defensive)
        parts.append(torch.cat([log_w for _, log_w in blocks]))
    log_w = torch.cat(parts, 1)
    check_weights(log_w)
    return log_w


def guide_blocks(
    target: Target, num_samples: int, *, seed: int, defensive: float = 0.0
) -> Iterator[tuple[Draws, Tensor]]:
    """Draws with their log-weights, of at most 16,384 rows at once; the data must be no more than that.

    Raises:
        ValueError: `defensive` outside [0, 1).
    """
    if not 0.0 <= defensive < 1.0:
        raise ValueError(f"defensive is the prior's share of the draws, in [0, 1), but is {defensive}")
    per_block = max(1, MAX_ROWS // target.num_data)
    for block, first in enumerate(range(0, num_samples, per_block)):
        count = min(per_block, num_samples - first)
        with seeded(block_seed(seed, block)):
            if defensive:
                yield _mixture_block(target, count, defensive)
            else:
                draws = target.sample_guide(count)
                yield draws, target.log_joint(draws.z) - draws.log_q


def check_draws(num_samples: int) -> None:
    """Refuse a number of draws from which no error bar can come."""
    if num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2, so that there is an error bar, but is {num_samples}: raise it"
        )


def _mixture_block(target: Target, num_samples: int, defensive: float) -> tuple[Draws, Tensor]:
    from_guide, from_prior = target.sample_guide(num_samples).z, target.sample_prior(num_samples)
    is_prior = torch.rand(from_guide.shape[:2], dtype=target.dtype, device=target.device) < defensive
    z = torch.where(is_prior[..., None], from_prior, from_guide)
    terms = target.log_terms(z)
    share = torch.tensor(defensive, dtype=target.dtype, device=target.device)
    log_q = torch.logaddexp(target.log_guide(z) + torch.log1p(-share), terms.log_prior + share.log())
    return Draws(z, log_q), terms.log_prior + terms.log_likelihood - log_q


def _joined(blocks: list[tuple[Draws, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    z, log_q = (torch.cat(pieces) for pieces in zip(*(draws for draws, _ in blocks), strict=True))
    return z, log_q, torch.cat([log_w for _, log_w in blocks])


def check_weights(log_w: Float[Tensor, "k n"], first: int = 0) -> None:
    """Refuse weights that are NaN or +infinity; the data are numbered from `first`."""
    bad = (torch.isnan(log_w) | (log_w == torch.inf)).any(0)
    if bool(bad.any()):
        raise ValueError(
            f"log p(x, z) - log q(z | x) is NaN or +infinity for datum {first + int(bad.nonzero()[0])}: check the "
            "parameters of model and guide there, and the scale of the data"
        )
