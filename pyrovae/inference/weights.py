"""What the logarithms of K importance weights say about log p(x), and how far they can be trusted."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "PSIS",
    "effective_sample_size",
    "elbo",
    "elbo_std_error",
    "iwae",
    "iwae_std_error",
    "khat_threshold",
    "normalized_weights",
    "psis",
]

MIN_DRAWS = 25  # PSIS fits the largest fifth of the weights, and at least five of them
ROUNDING = 16.0  # tails narrower than this many units of rounding are called constant


class PSIS(NamedTuple):
    """Pareto-smoothed importance sampling, for every column of weights."""

    log_evidence: Float[Tensor, " *n"]
    std_error: Float[Tensor, " *n"]
    """Of `log_evidence`; means nothing where `khat` is above `khat_threshold`."""
    khat: Float[Tensor, " *n"]
    """Shape of the tail: -inf if the largest weights are all equal, +inf if no tail could be fitted."""
    log_weights: Float[Tensor, " k *n"]
    """Smoothed, on the scale of the raw ones."""


def elbo(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Average K log-weights: 1/K sum_k log w_k, an unbiased estimate of the evidence lower bound.

    Its expectation lies below log p(x) by KL(q || posterior).

    Args:
        log_w: log p(x, z_k) - log q(z_k | x) for draws z_k of the guide; -inf is legal.

    Source: Jordan, Ghahramani, Jaakkola and Saul 1999.

    >>> elbo(torch.tensor([[0.0, -1.0], [2.0, -1.0]]))
    tensor([ 1., -1.])
    """
    return log_w.double().mean(0).to(log_w.dtype)


def elbo_std_error(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the standard error of `elbo`: standard deviation of log w over sqrt(K); NaN if K is 1.

    >>> elbo_std_error(torch.tensor([0.0, 2.0]))
    tensor(1.)
    """
    return _std_error(log_w.double()).to(log_w.dtype)


def iwae(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give log(1/K sum_k w_k), the importance-weighted bound, computed without overflow.

    Its expectation lies below log p(x) and rises with K; its exponential is an unbiased estimate of p(x).

    Args:
        log_w: log p(x, z_k) - log q(z_k | x) for draws z_k of the guide; -inf is legal.

    Source: Burda, Grosse and Salakhutdinov 2016, equation 8.

    >>> iwae(torch.tensor([1.0, 3.0]).log()).exp()
    tensor(2.)
    """
    log_mean = log_w.double().logsumexp(0) - math.log(len(log_w))
    return log_mean.to(log_w.dtype)


def iwae_std_error(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the standard error of `iwae` by the delta method: sd(w) / (sqrt(K) mean(w)); NaN if K is 1.

    It is far too small where weights have a heavy tail that K draws did not see; look at `psis(log_w).khat`.

    >>> iwae_std_error(torch.tensor([1.0, 3.0]).log())
    tensor(0.5000)
    """
    # K v_k = w_k / mean(w), so that weights of any size neither overflow nor vanish.
    relative = len(log_w) * log_w.double().softmax(0)
    return _std_error(relative).to(log_w.dtype)


def normalized_weights(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " k *n"]:
    """Give v_k = w_k / sum_j w_j, which sum to 1; NaN where all weights are 0.

    >>> normalized_weights(torch.tensor([1.0, 3.0]).log())
    tensor([0.2500, 0.7500])
    """
    return log_w.double().softmax(0).to(log_w.dtype)


def effective_sample_size(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give 1 / sum_k v_k^2 of the normalized weights v, between 1 and K.

    It only sees the weights that were drawn: a guide that misses a mode can have all of K.

    Source: Kong, Liu and Wong 1994.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0]).log())
    tensor(2.)
    """
    return log_w.double().softmax(0).square().sum(0).reciprocal().to(log_w.dtype)


def khat_threshold(num_samples: int) -> float:
    """Give the k-hat below which PSIS with that many draws is reliable: min(1 - 1 / log10 S, 0.7); -inf for one draw.

    Raises:
        ValueError: if `num_samples` is below 1.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024.

    >>> khat_threshold(100), khat_threshold(100_000)
    (0.5, 0.7)
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, but is {num_samples}: count the draws")
    return -math.inf if num_samples == 1 else min(1.0 - 1.0 / math.log10(num_samples), 0.7)


def psis(log_w: Float[Tensor, " k *n"]) -> PSIS:
    """Smooth the largest weights by a generalized Pareto distribution, and say how heavy its tail is.

    log_evidence = log(1/K sum_k w_k) of the smoothed weights: less noisy than `iwae`, with a small bias. It is to be
    trusted where khat < khat_threshold(K).

    The tail is fitted to the weights above 0. If its spread is no more than rounding (a perfect guide, a bounded
    ratio), khat is -inf and weights stay as they are. If it cannot be fitted (fewer than 25 weights above 0, ties,
    a spread of hundreds of nats), khat is +inf and weights stay as they are.

    Args:
        log_w: log-weights, any dtype and device; -inf is legal.

    Returns:
        A PSIS in the dtype and on the device of `log_w`, detached.

    Raises:
        ValueError: if a log-weight is NaN or +inf, or there is none.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024; the fit is that of ArviZ.

    >>> _ = torch.manual_seed(0)
    >>> smoothed = psis(torch.empty(4000).exponential_() * 0.5)
    >>> bool((smoothed.khat - 0.5).abs() < 0.3)
    True
    >>> psis(torch.zeros(100)).khat
    tensor(-inf)
    """
    import numpy as np

    if not log_w.numel():
        raise ValueError(f"log_w must hold at least one log-weight, but has shape {tuple(log_w.shape)}")
    raw = log_w.detach().double().cpu().numpy().reshape(len(log_w), -1)
    refuse_bad((np.isnan(raw) | np.isposinf(raw)).sum(0), len(raw), is_single=log_w.ndim == 1)
    rounding = ROUNDING * torch.finfo(log_w.dtype).eps
    columns = [smooth_column(column, rounding) for column in raw.T]
    smoothed = torch.from_numpy(np.array([column for column, _ in columns]).T.reshape(log_w.shape))
    khat = torch.tensor([khat for _, khat in columns], dtype=torch.float64).reshape(log_w.shape[1:])
    results = (iwae(smoothed), iwae_std_error(smoothed), khat, smoothed)
    return PSIS(*(result.to(log_w) for result in results))


def smooth_column(log_w: "np.ndarray", rounding: float) -> "tuple[np.ndarray, float]":
    """Smooth one column; give it with its k-hat."""
    import numpy as np

    is_positive = np.isfinite(log_w)
    positive = log_w[is_positive]
    if len(positive) > 1 and np.ptp(_tail(positive)) <= rounding * max(1.0, np.abs(positive).max()):
        return log_w, -math.inf
    if len(positive) < MIN_DRAWS:
        return log_w, math.inf
    fitted, khat = _fit(positive)
    if not (np.isfinite(khat) and np.isfinite(fitted).all()):
        return log_w, math.inf
    smoothed = log_w.copy()
    smoothed[is_positive] = fitted
    return smoothed, khat


def _tail(log_w: "np.ndarray") -> "np.ndarray":
    """What the Pareto distribution is fitted to, or all log-weights where they are too few."""
    import numpy as np

    return np.sort(log_w)[-(tail_size(len(log_w)) if len(log_w) >= MIN_DRAWS else len(log_w)) :]


def tail_size(num_draws: int) -> int:
    """How many of K weights are the tail, min(K / 5, 3 sqrt(K)) (Vehtari et al. 2024)."""
    return math.floor(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def _fit(log_w: "np.ndarray") -> "tuple[np.ndarray, float]":
    import numpy as np
    from arviz_stats.base.array import array_stats

    with np.errstate(all="ignore"):
        normalized, khat = array_stats.psislw(-log_w)
        # At least four fifths of the weights lie outside the tail and were only shifted, the median one among them.
        return normalized + np.median(log_w - normalized), float(khat)


def _std_error(values: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    num_samples = len(values)
    squares = (values - values.mean(0)).square().sum(0)
    # Dividing a tensor by 0 gives NaN; torch.std would warn.
    return (squares / (num_samples - 1) / num_samples).sqrt()


def refuse_bad(num_bad: "np.ndarray", num_samples: int, is_single: bool) -> None:
    """Raise if any column has log-weights that are NaN or +inf."""
    if not num_bad.any():
        return
    row = int((num_bad > 0).argmax())
    where = "" if is_single else f" of row {row}"
    raise ValueError(
        f"log-weights must be finite or -inf, but {int(num_bad[row])} of {num_samples}{where} are NaN or +inf: "
        "look at the densities of model and guide at those draws"
    )
