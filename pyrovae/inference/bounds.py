"""Upper bounds on log p(x), and quantities taken for upper bounds: what each is worth, and when it is infinite."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.inference import weights

__all__ = [
    "cubo",
    "cubo_std_error",
    "eubo",
    "eubo_std_error",
    "largest_weight",
    "largest_weight_growth",
    "reciprocal",
    "reciprocal_std_error",
    "tail_index",
]


def eubo(log_w: Float[Tensor, "c t *n"]) -> Float[Tensor, " *n"]:
    """Average log w over draws of the posterior, not of the guide: an estimate of log p(x) + KL(posterior || q).

    An upper bound of log p(x) in expectation when the draws are exact; from chains, no better than they are.
    E[log w] exists for guides of any tail.

    Args:
        log_w: log p(x, z) - log q(z | x) for T draws z of each of C chains; independent draws are one chain.

    Source: Ji and Shen 2019.

    >>> eubo(torch.tensor([[1.0, 3.0]]))
    tensor(2.)
    """
    return weights.elbo(log_w.flatten(0, 1))


def eubo_std_error(log_w: Float[Tensor, "c t *n"]) -> Float[Tensor, " *n"]:
    """Give the Monte Carlo standard error of `eubo`, autocorrelation within chains included.

    sd(log w) / sqrt(ESS), with the effective sample size of Vehtari et al. 2021 as ArviZ computes it. For draws known
    to be independent `weights.elbo_std_error` is the less noisy one. NaN if chains have fewer than 4 draws.

    >>> eubo_std_error(torch.zeros(4, 100))
    tensor(0.)
    """
    return _chain_std_error(log_w.detach().double(), log_w)


def reciprocal(log_w: Float[Tensor, "c t *n"]) -> Float[Tensor, " *n"]:
    """Give -log(mean 1/w) over draws of the posterior, not of the guide: E_posterior[1/w] = 1/p(x).

    With exact draws its expectation lies above log p(x) and falls towards it as draws are added. Its variance is
    finite where the guide's tails are thinner than the posterior's, precisely where `iwae` fails: if both are
    Gaussian of precisions C^-1 and P, where 2 C^-1 - P is positive definite. Under a guide with wider tails than that
    it is a harmonic mean estimate at its worst: too high, with too small an error bar.

    Args:
        log_w: log p(x, z) - log q(z | x) for T draws z of each of C chains; independent draws are one chain.
            +inf, a guide density of 0, is legal.

    Source: Kingma and Welling 2014, appendix D.

    >>> reciprocal(torch.tensor([[1.0, 0.5]]).log()).exp()  # 1 / mean(1, 2)
    tensor(0.6667)
    """
    return -weights.iwae(-log_w.flatten(0, 1))


def reciprocal_std_error(log_w: Float[Tensor, "c t *n"]) -> Float[Tensor, " *n"]:
    """Give the Monte Carlo standard error of `reciprocal`, autocorrelation within chains included.

    By the delta method, the standard error of the mean of (1/w) / mean(1/w). For draws known to be independent
    `weights.iwae_std_error(-log_w)` is the less noisy one. NaN if chains have fewer than 4 draws.

    >>> reciprocal_std_error(torch.zeros(4, 100))
    tensor(0.)
    """
    inverse = -log_w.detach().double()
    num_draws = inverse.shape[0] * inverse.shape[1]
    relative = num_draws * inverse.flatten(0, 1).softmax(0).reshape(inverse.shape)
    return _chain_std_error(relative, log_w)


def cubo(log_w: Float[Tensor, " k *n"], order: float = 2.0) -> Float[Tensor, " *n"]:
    """Give 1/n log(1/K sum_k w_k^n) over draws of the guide: an estimate of the chi-square bound of order n.

    The population value 1/n log E_q[w^n] is at least log p(x). The estimate is biased low (Jensen), at one draw it is
    the ELBO, so it may lie on either side of log p(x): it bounds nothing. Where the tail index k of the weights is
    1/n or more the population value is infinite, which no finite sample shows.

    Args:
        log_w: log p(x, z_k) - log q(z_k | x) for draws z_k of the guide; -inf is legal.
        order: n, at least 1; 1 is `iwae`.

    Raises:
        ValueError: if `order` is below 1.

    Source: Dieng, Tran, Ranganath, Paisley and Blei 2017.

    >>> cubo(torch.tensor([1.0, 7.0]).log()).exp()  # sqrt((1 + 49) / 2)
    tensor(5.)
    """
    _check_order(order)
    return (weights.iwae(order * log_w.double()) / order).to(log_w.dtype)


def cubo_std_error(log_w: Float[Tensor, " k *n"], order: float = 2.0) -> Float[Tensor, " *n"]:
    """Give the standard error of `cubo` by the delta method: sd(w^n) / (n sqrt(K) mean(w^n)); NaN if K is 1.

    It means nothing where the tail index is 1 / (2n) or more: w^n has no variance there.

    Raises:
        ValueError: if `order` is below 1.

    >>> cubo_std_error(torch.zeros(10))
    tensor(0.)
    """
    _check_order(order)
    return (weights.iwae_std_error(order * log_w.double()) / order).to(log_w.dtype)


def largest_weight(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give max_k log w_k, never to be reported as an estimate of log p(x).

    Its limit in K is sup_z log w(z), which is an upper bound of log p(x) and infinite for most guides: whenever the
    guide's tails are thinner than the posterior's in one direction. At one draw it is the ELBO; in between it is
    neither a bound nor near to one. `largest_weight_growth` shows that it has not settled.

    >>> largest_weight(torch.tensor([0.0, 2.0, -1.0]))
    tensor(2.)
    """
    return log_w.amax(0)


def largest_weight_growth(log_w: Float[Tensor, " k *n"]) -> Float[Tensor, " *n"]:
    """Give the rise of `largest_weight` in nats as draws double from K/2 to K: max of all - mean of both halves' max.

    In expectation about k log 2 for weights with a Pareto tail of index k, whatever K; it falls to 0 where weights
    are bounded. One value is noisy: average over data. An odd last draw is not used.

    Args:
        log_w: at least 2 log-weights.

    Raises:
        ValueError: if there are fewer.

    >>> largest_weight_growth(torch.tensor([0.0, 2.0, -1.0, 1.0]))  # 2 - (2 + 1) / 2
    tensor(0.5000)
    """
    half = len(log_w) // 2
    if half < 1:
        raise ValueError(f"growth needs at least 2 log-weights, but there are {len(log_w)}: draw more")
    first, second = log_w[:half].amax(0), log_w[half : 2 * half].amax(0)
    return torch.maximum(first, second) - 0.5 * (first + second)


def tail_index(
    covariance: Float[Tensor, "*n d d"], precision: Float[Tensor, "*n d d"]
) -> Float[Tensor, " *n"]:
    """Give the exact tail index of the weights of a Gaussian guide for a Gaussian posterior.

    k = 1 - smallest eigenvalue of C^1/2 P C^1/2, for the covariance C of the guide and precision P of the posterior.
    E_q[w^n] is finite iff n k < 1; weights are bounded if k < 0. The estimate `psis(log_w).khat`
    is biased towards 0 and scatters. The means of guide and posterior do not enter.

    Args:
        covariance: symmetric and positive definite; NaN comes out where it is not.
        precision: symmetric.

    Source: the definition, P(w > t) = t^(-1/k) up to slower factors, for the ratio of two Gaussian densities.

    >>> rho = 0.6  # the best mean-field guide for a posterior of correlation rho has index |rho|
    >>> precision = torch.linalg.inv(torch.tensor([[1.0, rho], [rho, 1.0]]))
    >>> tail_index(torch.diag(1 / precision.diagonal()), precision)
    tensor(0.6000)
    """
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    ratio = factor.mT @ precision.double() @ factor
    is_usable = (failed == 0) & ratio.isfinite().all(-1).all(-1)
    # A NaN would stop the eigenvalues of every other row.
    smallest = torch.linalg.eigvalsh(torch.where(is_usable[..., None, None], ratio, 0.0))[..., 0]
    return torch.where(is_usable, 1.0 - smallest, math.nan).to(covariance.dtype)


def _chain_std_error(values: Float[Tensor, "c t *n"], like: Tensor) -> Float[Tensor, " *n"]:
    import numpy as np
    from arviz_stats.base.array import array_stats

    numbers = values.cpu().numpy()
    with np.errstate(all="ignore"):
        error = array_stats.mcse(numbers, method="mean", chain_axis=0, draw_axis=1)
    return torch.as_tensor(np.asarray(error, dtype=np.float64)).to(like)


def _check_order(order: float) -> None:
    if not order >= 1.0:
        raise ValueError(f"order must be at least 1, but is {order}: 1 is the importance-weighted bound")
