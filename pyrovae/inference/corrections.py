"""Estimates of log p(x) from log-weights with part of the bias taken off: cumulant and jackknife."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cumulant", "cumulant_std_error", "jackknife", "jackknife_std_error"]


def cumulant(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the second-order cumulant estimate, mean + variance / 2 of the log-weights.

    log E[w] = E[log w] + Var[log w] / 2 + ..., exact where log w is normal. The bias has either sign.

    >>> _ = torch.manual_seed(0)
    >>> log_w = torch.randn(100_000, dtype=torch.float64) - 0.5  # E[w] = 1
    >>> bool(cumulant(log_w).abs() < 0.02)
    True
    """
    values = log_w.double()
    return (values.mean(0) + 0.5 * values.var(0)).to(log_w.dtype)


def cumulant_std_error(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the standard error of `cumulant` by its influence function, (w - m) + ((w - m)^2 - s^2) / 2.

    >>> cumulant_std_error(torch.zeros(10))
    tensor(0.)
    """
    centred = log_w.double() - log_w.double().mean(0)
    influence = centred + 0.5 * centred.square()
    return (influence.std(0) / math.sqrt(len(log_w))).to(log_w.dtype)


def jackknife(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the first-order jackknife of the importance-weighted bound, K L_K - (K - 1) mean_k L_{-k}.

    L_K is `iwae` of all K weights and L_{-k} that of all but the k-th. Where weights have the moments, its bias falls
    like 1 / K^2, with either sign, instead of 1 / K.

    Args:
        log_w: K >= 2 log-weights.

    Source: Nowozin 2018, section 3, JVI-1.

    >>> jackknife(torch.zeros(10))
    tensor(0.)
    """
    whole, without = _leave_one_out(log_w)
    return (whole + (len(log_w) - 1) * (whole - without.mean(0))).to(log_w.dtype)


def jackknife_std_error(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the jackknife's standard error of `iwae`, sqrt((K - 1) / K sum_k (L_{-k} - mean L)^2).

    >>> jackknife_std_error(torch.zeros(10))
    tensor(0.)
    """
    _, without = _leave_one_out(log_w)
    return ((len(log_w) - 1) * without.var(0, unbiased=False)).sqrt().to(log_w.dtype)


def _leave_one_out(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """L_K `[*n]` and L_{-k} `[k, *n]` in float64, in O(K)."""
    values, count = log_w.double(), len(log_w)
    total = torch.logsumexp(values, 0)
    without = total + torch.log1p(-(values - total).exp())
    # Without the largest weight the difference would cancel: that one is summed anew.
    largest = values.argmax(0, keepdim=True)
    others = torch.logsumexp(values.scatter(0, largest, -torch.inf), 0, keepdim=True)
    without = without.scatter(0, largest, others)
    return total - math.log(count), without - math.log(count - 1)
