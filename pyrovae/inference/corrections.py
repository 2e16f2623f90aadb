"""Estimates of log p(x) from log-weights with part of the bias taken off: cumulant and jackknife."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cumulant", "cumulant_std_error", "jackknife", "jackknife_std_error"]

NUM_GROUPS = 50  # of draws, for the standard error of order 2
NUM_LARGE, NUM_TERMS = (
    15,
    8,
)  # weights whose pairs are summed by hand, and terms of the series for the other pairs


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


def jackknife(log_w: Float[Tensor, " k *n"], order: int = 1) -> Float[Tensor, " *n"]:
    """Give the jackknife of order m of the importance-weighted bound, sum_j c_j L_{K-j} over j = 0, ..., m.

    c_j = (-1)^j (K - j)^m / ((m - j)! j!), and L_{K-j} is the average of `iwae` over all ways to leave j of the K
    weights out: order 1 is K L_K - (K - 1) L_{K-1}. Where weights have the moments, the bias falls like 1 / K^(m + 1)
    instead of the 1 / K of `iwae`, with either sign. Order 2 has the larger variance when weights are heavy-tailed.

    Both orders cost O(K) time and memory, all pairs of order 2 included.

    Args:
        log_w: more than `order` log-weights; the value is finite where more than `order` of them are above -inf.
        order: 1 or 2.

    Raises:
        ValueError: if `order` is neither, or there are not enough log-weights.

    Source: Nowozin 2018, section 3, JVI-m.

    >>> jackknife(torch.zeros(10)), jackknife(torch.zeros(10), order=2).abs() < 1e-6
    (tensor(0.), tensor(True))
    """
    _check_order(log_w, order)
    if order == 2:
        return _second_order(log_w.double()).to(log_w.dtype)
    peak, whole, without = _leave_one_out(log_w)
    return (peak + whole + (len(log_w) - 1) * (whole - without.mean(0))).to(log_w.dtype)


def jackknife_std_error(log_w: Float[Tensor, " k *n"], order: int = 1) -> Float[Tensor, " *n"]:
    """Give the standard error of `jackknife`.

    Order 1 is the mean of the pseudo-values K L_K - (K - 1) L_{-k}, L_{-k} without the k-th weight, so its standard
    error is theirs, sqrt((K - 1) / K sum_k (L_{-k} - mean L)^2) (Tukey 1958).

    Order 2 has no such form: its own values without one of G = min(K, 50) groups of draws give
    sqrt((G - 1) / G sum_g (J_{-g} - mean J)^2) (Shao and Wu 1989), which with 50 groups is itself uncertain by a
    tenth. NaN if there are 3 log-weights. Group g has the draws g, g + G, ...

    Draws must be independent. Both orders miss what the draws did not see of a heavy tail: see `psis(log_w).khat`.

    Raises:
        ValueError: as `jackknife`.

    >>> jackknife_std_error(torch.zeros(10)), jackknife_std_error(torch.zeros(10), order=2) < 1e-6
    (tensor(0.), tensor(True))
    """
    _check_order(log_w, order)
    if order == 2:
        return _group_std_error(log_w.double()).to(log_w.dtype)
    _, _, without = _leave_one_out(log_w)
    return ((len(log_w) - 1) * without.var(0, unbiased=False)).sqrt().to(log_w.dtype)


def _leave_one_out(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest log-weight and L_K `[*n]`, L_{-k} `[k, *n]`, both less the largest, in float64, in O(K)."""
    count, peak = len(log_w), log_w.double().amax(0)
    # The jackknife multiplies rounding by K: without the peak, it is that of numbers near 0.
    values = log_w.double() - peak
    total = torch.logsumexp(values, 0)
    without = total + torch.log1p(-(values - total).exp())
    # Without the largest weight the difference would cancel: that one is summed anew.
    largest = values.argmax(0, keepdim=True)
    others = torch.logsumexp(values.scatter(0, largest, -torch.inf), 0, keepdim=True)
    without = without.scatter(0, largest, others)
    return peak, total - math.log(count), without - math.log(count - 1)


def _second_order(log_w: Tensor) -> Tensor:
    """K^2/2 L_K - (K-1)^2 L_{K-1} + (K-2)^2/2 L_{K-2}, without the factors K^2 that would amplify rounding.

    With normalized weights v, falling, and r = v / (1 - v), ln(1 - v_i - v_j) is ln(1 - v_i) + ln(1 - v_j) +
    ln(1 - r_i r_j). So with a = mean_k ln(1 - v_k) and b = sum_{i<j} ln(1 - r_i r_j), the whole is
    L_K - (2K - 3) a + (K-2)^2 b / (K (K-1)) + a constant. Pairs with the largest weight are summed anew, because
    1 - v_1 - v_j would cancel.
    """
    count = len(log_w)
    falling = log_w.sort(0, descending=True).values
    falling = falling - falling[:1]
    whole, but_one, but_two = (falling[start:].logsumexp(0) for start in range(3))
    v = (falling[1:] - whole).exp()
    single = torch.log1p(-v).sum(0)
    pairs_with_largest = but_two - but_one + torch.log1p(-(falling[2:] - but_one).exp()).sum(0)
    a = (but_one - whole + single) / count
    b = pairs_with_largest - single + _sum_over_pairs(v / (1.0 - v))
    constant = 0.5 * (count - 2) ** 2 * math.log1p(2 / (count - 2)) - (count - 1) ** 2 * math.log1p(
        1 / (count - 1)
    )
    bound = log_w.logsumexp(0) - math.log(count)
    return bound - (2 * count - 3) * a + (count - 2) ** 2 / (count * (count - 1)) * b + constant


def _sum_over_pairs(r: Tensor) -> Tensor:
    """sum_{i<j} ln(1 - r_i r_j) for r falling, r_i <= 1 / i: pairs with a large one by hand, the rest by a series.

    After the first 15, r_i r_j <= 1 / 256, and the sum of r_i^m r_j^m over pairs is (S_m^2 - S_2m) / 2 with
    S_m = sum_i r_i^m: 8 terms leave less than 1e-18.
    """
    total = torch.zeros_like(r[0])
    for i in range(min(NUM_LARGE, len(r))):
        total = total + torch.log1p(-r[i] * r[i + 1 :]).sum(0)
    for m in range(1, NUM_TERMS + 1):
        power = r[NUM_LARGE:] ** m
        total = total - (power.sum(0).square() - power.square().sum(0)) / (2 * m)
    return total


def _group_std_error(log_w: Tensor) -> Tensor:
    num_groups = min(len(log_w), NUM_GROUPS)
    if len(log_w) == 3:
        return torch.full_like(log_w[0], torch.nan)
    group = torch.arange(len(log_w), device=log_w.device) % num_groups
    without = torch.stack([_second_order(log_w[group != g]) for g in range(num_groups)])
    return ((num_groups - 1) * without.var(0, unbiased=False)).sqrt()


def _check_order(log_w: Tensor, order: int) -> None:
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, but is {order}")
    if len(log_w) <= order:
        raise ValueError(
            f"order {order} needs at least {order + 1} log-weights, but there are {len(log_w)}: draw more"
        )
