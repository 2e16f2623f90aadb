"""Estimators of log p(x) from the log-weights of guide draws."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS, check_draws, draw_log_weights, guide_blocks
from pyrovae.inference import bounds, corrections, streaming, weights
from pyrovae.results import Evidence
from pyrovae.seeding import block_seed
from pyrovae.target import Target

__all__ = ["ESTIMATORS", "estimate", "from_draws", "streamed_iwae"]


class Estimate(NamedTuple):
    """What an estimator makes of log-weights `[K, N]`: tensors `[N]`; `khat` where its theory needs the tail."""

    value: Tensor
    std_error: Tensor
    khat: Tensor | None = None


class Estimator(NamedTuple):
    """An estimator of log p(x) from log-weights, and what is known of the direction of its error."""

    function: Callable[[Tensor], Estimate]
    direction: str = "none"
    is_unbiased_density: bool = False
    moments: int = 1
    """How many moments its mean takes of the weights: k-hat counts that often."""


def from_draws(
    method: str, target: Target, *, num_samples: int = 1000, defensive: float = 0.0, seed: int = 0
) -> Evidence:
    """One estimator of `ESTIMATORS` from `num_samples` draws of the guide per datum.

    A share `defensive` of the draws comes from the prior (see `draw_log_weights`).
    """
    start = time.perf_counter()
    log_w = draw_log_weights(target, num_samples, seed=seed, defensive=defensive)
    return estimate(method, log_w, seconds=time.perf_counter() - start)


def streamed_iwae(
    target: Target, *, num_samples: int = 1000, defensive: float = 0.0, seed: int = 0
) -> Evidence:
    """The estimator "iwae", the same to rounding, in memory that does not grow with `num_samples`."""
    check_draws(num_samples)
    start = time.perf_counter()
    parts = []
    for i, some in enumerate(target.split(MAX_ROWS)):
        stream = streaming.begin(num_samples, (some.num_data,), dtype=target.dtype, device=target.device)
        for _, log_w in guide_blocks(some, num_samples, seed=block_seed(seed, i), defensive=defensive):
            stream = streaming.update(stream, log_w)
        parts.append((streaming.iwae(stream), streaming.iwae_std_error(stream), streaming.khat(stream)))
    found = Estimate(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
    return _evidence("iwae", found, num_samples, time.perf_counter() - start)


def estimate(method: str, log_w: Float[Tensor, "k n"], *, seconds: float = 0.0) -> Evidence:
    """One estimator on log-weights that were drawn already; `seconds` is what the draws took."""
    start = time.perf_counter()
    found = ESTIMATORS[method].function(log_w)
    made = _evidence(method, found, len(log_w), seconds + time.perf_counter() - start)
    return made if method != "largest-weight" else _with_growth(made, log_w)


def _evidence(method: str, found: Estimate, num_samples: int, seconds: float) -> Evidence:
    estimator = ESTIMATORS[method]
    value, std_error = _numpy(found.value), _numpy(found.std_error)
    khat = None if found.khat is None else _numpy(found.khat)
    limit = weights.khat_threshold(num_samples) / estimator.moments
    is_reliable = np.isfinite(value) & np.isfinite(std_error)
    if khat is not None:
        is_reliable &= khat < limit
    return Evidence(
        method=method,
        value=value,
        std_error=std_error,
        direction=estimator.direction,
        is_unbiased_density=estimator.is_unbiased_density,
        is_reliable=is_reliable,
        is_approximate=np.zeros(len(value), bool),
        reason="" if is_reliable.all() else _reason(khat, limit, num_samples, estimator.moments),
        num_density_evaluations=num_samples,
        seconds=seconds,
        khat=khat,
        budget=num_samples,
    )


def _reason(khat: np.ndarray | None, limit: float, num_samples: int, moments: int) -> str:
    if khat is None:
        return "error bar unreliable where log-weights are not finite"
    if limit <= 0.0:
        return f"error bar unreliable: {num_samples} draws are too few for k-hat, which wants more than 10"
    reason = f"error bar unreliable where k-hat is not below {limit:.2f}"
    infinite = int((moments * khat >= 1.0).sum())
    if moments > 1 and infinite:
        reason += (
            f"; infinite variance of the weights, so an infinite bound, for {infinite} data by their k-hat"
        )
    return reason


def _with_growth(made: Evidence, log_w: Tensor) -> Evidence:
    """The largest weight with what its last doubling of the draws added, and never an error bar."""
    growth = float(bounds.largest_weight_growth(log_w).mean())
    return replace(
        made,
        is_reliable=np.zeros(made.num_data, bool),
        reason=f"no estimate: it grew by {growth:.2f} nats with the last doubling of the draws, and its limit, the "
        "supremum of log w, is usually infinite",
    )


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _elbo(log_w: Tensor) -> Estimate:
    return Estimate(weights.elbo(log_w), weights.elbo_std_error(log_w))


def _iwae(log_w: Tensor) -> Estimate:
    return Estimate(weights.iwae(log_w), weights.iwae_std_error(log_w), weights.psis(log_w).khat)


def _psis(log_w: Tensor) -> Estimate:
    smoothed = weights.psis(log_w)
    return Estimate(smoothed.log_evidence, smoothed.std_error, smoothed.khat)


def _jackknife(log_w: Tensor, order: int) -> Estimate:
    error = corrections.jackknife_std_error(log_w, order)
    return Estimate(corrections.jackknife(log_w, order), error, weights.psis(log_w).khat)


def _cumulant(log_w: Tensor) -> Estimate:
    return Estimate(corrections.cumulant(log_w), corrections.cumulant_std_error(log_w))


def _cubo(log_w: Tensor) -> Estimate:
    return Estimate(bounds.cubo(log_w), bounds.cubo_std_error(log_w), weights.psis(log_w).khat)


def _largest_weight(log_w: Tensor) -> Estimate:
    value = bounds.largest_weight(log_w)
    return Estimate(value, torch.full_like(value, torch.nan))


ESTIMATORS = {
    "elbo": Estimator(_elbo, "lower"),
    "iwae": Estimator(_iwae, "lower", is_unbiased_density=True),
    "jackknife": Estimator(partial(_jackknife, order=1)),
    "jackknife-2": Estimator(partial(_jackknife, order=2)),
    "psis": Estimator(_psis),
    "cumulant": Estimator(_cumulant),
    "cubo": Estimator(_cubo, moments=2),
    "largest-weight": Estimator(_largest_weight),
}
"""Every estimator of log p(x) from log-weights, by name."""
