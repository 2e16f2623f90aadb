"""Draws of the guide resampled by Pareto-smoothed importance weights, with a gate on the tail of the weights."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import check_weights, guide_blocks
from pyrovae.diagnostics.reference.sampled import Progress, Sampled, to_numpy
from pyrovae.inference import weights
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["Budget", "Weighted", "from_importance", "resampled", "systematic"]

MAX_KEPT = 1 << 18  # draws times data that are kept at once


class Budget(NamedTuple):
    """How many draws are weighed for each datum, how many of them are kept, and what they must be worth."""

    num_chains: int
    num_samples: int
    num_draws: int
    min_ess: float

    def check(self) -> None:
        """Refuse numbers from which no resampling can come."""
        if self.num_chains < 1 or self.num_samples < 4:
            raise ValueError(
                f"need num_chains >= 1 and num_samples >= 4, not {self.num_chains} and {self.num_samples}"
            )
        if self.num_draws < self.num_chains * self.num_samples:
            raise ValueError(
                f"num_draws must be at least num_chains * num_samples = {self.num_chains * self.num_samples}, or "
                f"draws repeat even where the guide is perfect, but is {self.num_draws}: raise it, or keep fewer"
            )


class Weighted(NamedTuple):
    """Draws of the guide with log p(x, z) and log p(x, z) - log q(z | x)."""

    z: Float[Tensor, "k n d"]
    lp: Float[Tensor, "k n"]
    log_w: Float[Tensor, "k n"]


def from_importance(
    target: Target,
    *,
    num_chains: int = 4,
    num_samples: int = 1000,
    num_draws: int = 10_000,
    min_ess: float = 400.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sampled]:
    """`num_draws` draws of the guide for every datum, resampled to `num_chains` x `num_samples` of the posterior.

    Raises:
        ValueError: numbers out of their range; weights that are NaN or +infinity, naming the datum.
    """
    budget = Budget(num_chains, num_samples, num_draws, min_ess)
    budget.check()
    blocks = target.split(max(1, MAX_KEPT // num_draws))
    first = 0
    for block, some in enumerate(blocks):
        drawn = _joined(guide_weights(some, num_draws, seed=block_seed(seed, block, 0)))
        check_weights(drawn.log_w, first)
        yield resampled(drawn, budget, seed=block_seed(seed, block, 1))
        first += some.num_data
        if progress is not None:
            progress(block + 1, len(blocks))


def guide_weights(target: Target, num_draws: int, *, seed: int) -> Iterator[Weighted]:
    """Draws of the guide with their weights, few rows at once."""
    for draws, log_w in guide_blocks(target, num_draws, seed=seed):
        yield Weighted(draws.z, log_w + draws.log_q, log_w)


def resampled(drawn: Weighted, budget: Budget, *, seed: int) -> Sampled:
    """Draws of the posterior of some data, judged by k-hat and the effective sample size of their weights.

    Chain c holds what was taken of the c-th stretch of draws, in their order: a draw that is taken more than once
    stands beside itself, so autocorrelations, and the error bars that rest on them, count it as one.
    """
    smoothed = weights.psis(drawn.log_w)
    with seeded(seed):
        index = systematic(smoothed.log_weights, budget.num_chains * budget.num_samples)
    shape = (budget.num_chains, budget.num_samples)
    z = drawn.z.gather(0, index[..., None].expand(*index.shape, drawn.z.shape[-1]))
    lp = to_numpy(drawn.lp.gather(0, index).unflatten(0, shape))
    stats = {"lp": lp, "diverging": np.zeros(lp.shape, bool)}
    ess = weights.effective_sample_size(smoothed.log_weights)
    worth = {"khat": to_numpy(smoothed.khat.double()), "ess": to_numpy(ess.double())}
    return Sampled(to_numpy(z.unflatten(0, shape)), stats, 0, *_judged(worth, budget))


def systematic(log_w: Float[Tensor, "k n"], num_samples: int) -> Int[Tensor, "s n"]:
    """Resample S of K draws for every datum: draw k is taken floor(S v_k) or ceil(S v_k) times, S v_k on average.

    One uniform number places S equally spaced points on the cumulated normalized weights v, so a draw is taken twice
    only if its weight asks for it: as close to drawing without replacement as a scheme without bias can be. Drawing
    without replacement never repeats a draw, but then the draws are of something between guide and posterior. The
    order of the draws must be random, as that of independent draws is. Where all weights are 0, they count as equal.

    Source: Kitagawa 1996, appendix; Douc, Cappé and Moulines 2005 compare the schemes; Gelman et al., Bayesian Data
    Analysis, 3rd edition, section 10.4, on drawing without replacement.

    >>> _ = torch.manual_seed(0)
    >>> index = systematic(torch.tensor([[0.5], [0.25], [0.0], [0.25]]).log(), 8)
    >>> index[:, 0].bincount(minlength=4)
    tensor([4, 2, 0, 2])
    """
    normalized = log_w.double().softmax(0).nan_to_num(nan=1.0 / len(log_w))
    cumulated = normalized.cumsum(0)
    cumulated = cumulated / cumulated[-1]
    offset = torch.rand(log_w.shape[1], dtype=torch.float64, device=log_w.device)
    steps = torch.arange(num_samples, dtype=torch.float64, device=log_w.device)
    points = (steps + offset[:, None]) / num_samples
    found = torch.searchsorted(cumulated.mT.contiguous(), points, right=True)
    return found.clamp(max=len(log_w) - 1).mT


def _judged(worth: dict[str, np.ndarray], budget: Budget) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What the weights of every datum are worth, with its verdict; and what the verdicts asked for."""
    max_khat = weights.khat_threshold(budget.num_draws)
    num_kept = float(budget.num_chains * budget.num_samples)
    reasons = [
        _reason(khat, min(ess, num_kept), max_khat, budget.min_ess)
        for khat, ess in zip(worth["khat"], worth["ess"], strict=True)
    ]
    verdicts = {
        "verdict": np.array(["no verdict" if reason else "ok" for reason in reasons]),
        "reason": np.array(reasons),
    }
    return {**worth, **verdicts}, {"max_khat": max_khat, "min_ess": budget.min_ess}


def _reason(khat: float, ess: float, max_khat: float, min_ess: float) -> str:
    """Why a datum gets no verdict; "" if it gets one. Written so that NaN refuses."""
    found = []
    if not khat < max_khat:
        found.append(f"k-hat not below {max_khat:.2f}")
    if not ess >= min_ess:
        found.append(f"ESS below {min_ess:g}")
    return " and ".join(found)


def _joined(blocks: Iterator[Weighted]) -> Weighted:
    return Weighted(*(torch.cat(pieces) for pieces in zip(*blocks, strict=True)))
