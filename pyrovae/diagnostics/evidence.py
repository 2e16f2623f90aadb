"""log p(x) of every datum by several estimators, each with error bar, direction of bias and cost."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.inference import corrections, hmc, laplace, weights
from pyrovae.inference.expansion import laplace_evidence
from pyrovae.results import Evidence
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Draws, Target

__all__ = ["ESTIMATORS", "POINT_ESTIMATORS", "draw_weights", "estimate", "log_evidence"]

MAX_ROWS = 1 << 14  # rows (draws times data) that the model sees at once


class Estimate(NamedTuple):
    """What an estimator makes of log-weights `[K, N]`: tensors `[N]`; `khat` where its theory needs the tail."""

    value: Tensor
    std_error: Tensor
    khat: Tensor | None


class Estimator(NamedTuple):
    """An estimator of log p(x) from log-weights, and what is known of the direction of its error."""

    function: Callable[[Tensor], Estimate]
    direction: str
    is_unbiased_density: bool


def log_evidence(target: Target, method: str = "iwae", *, num_samples: int = 1000, seed: int = 0) -> Evidence:
    """Estimate log p(x) of every datum from draws of the guide.

    With log w_k = log p(x, z_k) - log q(z_k | x), z_k from the guide:

    - `"elbo"`: mean_k log w_k. Its expectation is log p(x) - KL(q || posterior): a lower bound, whatever K.
    - `"iwae"`: log mean_k w_k (Burda, Grosse and Salakhutdinov 2016). A lower bound in expectation, increasing in
      K, with bias about -Var(w / p(x)) / 2K; its exponential is unbiased for p(x).
    - `"psis"`: the same with Pareto-smoothed weights (Vehtari, Simpson, Gelman, Yao and Gabry 2024). Less noise,
      a bias of unknown direction.
    - `"jackknife"`: IWAE with the leading term of its bias taken off (Nowozin 2018). Either sign.
    - `"cumulant"`: ELBO + Var(log w) / 2. Either sign; needs no heavy-tailed average.

    The standard errors of "iwae", "psis" and "jackknife" need weights of finite variance, and are marked unreliable
    where k-hat is above min(1 - 1/log10 K, 0.7).

    Three methods look at one point and have no Monte Carlo error; how far they are off is not known, either:

    - `"single-shot"`: log w at the guide's mean mu. It is *not* an upper bound, nor a lower one: for a Gaussian
      posterior of precision P and a Gaussian guide of covariance C it is ELBO + (tr(PC) - D) / 2, so it is above the
      ELBO for a guide that is too wide, below it for one too narrow, and the ELBO itself, free of noise, at the best
      mean-field guide. It exceeds log p(x) only if log|C| - log|P^-1| > (mu - m)' P (mu - m).
    - `"single-shot-laplace"`: log p(x, mu) + D/2 log 2 pi - 1/2 log|L| + 1/2 g' L^-1 g, with gradient g and
      curvature L at mu: one decode and its Jacobian. Exact for any Gaussian posterior and any mu.
    - `"laplace"`: the same at the mode, found by damped Gauss-Newton for all data at once (Tierney and Kadane 1986).

    Args:
        target: the model, guide and data.
        method: a key of `ESTIMATORS` or `POINT_ESTIMATORS`.
        num_samples: draws per datum, at least 2; the methods of one point draw none.
        seed: same seed, machine and versions, same numbers.

    Raises:
        ValueError: an unknown method, fewer than 2 samples, or weights that are NaN or infinite.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))
    >>> e = log_evidence(Target(model, guide, torch.zeros(1, 2)), "iwae", num_samples=4000)
    >>> e.direction, bool(abs(e.value[0] - (-2.5310)) < 5 * e.std_error[0])  # exact: -log(4 pi)
    ('lower', True)
    """
    check_methods([method])
    if method in POINT_ESTIMATORS:
        return _at_a_point(target, method)
    start = time.perf_counter()
    _, log_w = draw_weights(target, num_samples, seed=seed)
    return estimate(method, log_w, seconds=time.perf_counter() - start)


def estimate(method: str, log_w: Float[Tensor, "k n"], *, seconds: float = 0.0) -> Evidence:
    """One estimator on log-weights that were drawn already; `seconds` is what the draws took."""
    start = time.perf_counter()
    estimator = ESTIMATORS[method]
    result = estimator.function(log_w)
    value, std_error = _numpy(result.value), _numpy(result.std_error)
    khat = None if result.khat is None else _numpy(result.khat)
    threshold = weights.khat_threshold(len(log_w))
    reliable = np.isfinite(value) & np.isfinite(std_error)
    if khat is not None:
        reliable &= khat < threshold
    return Evidence(
        method=method,
        value=value,
        std_error=std_error,
        direction=estimator.direction,
        is_unbiased_density=estimator.is_unbiased_density,
        is_reliable=reliable,
        is_approximate=np.zeros(len(value), bool),
        reason="" if reliable.all() else f"error bar unreliable where k-hat is not below {threshold:.2f}",
        num_density_evaluations=len(log_w),
        seconds=seconds + time.perf_counter() - start,
        khat=khat,
    )


def draw_weights(target: Target, num_samples: int, *, seed: int = 0) -> tuple[Draws, Tensor]:
    """Draws of the guide and their log-weights `[K, N]`, in blocks of at most 16,384 rows, a seed for each block.

    Raises:
        ValueError: fewer than 2 samples; or weights that are NaN or +infinity, naming the datum.
    """
    if num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2, so that there is an error bar, but is {num_samples}: raise it"
        )
    parts = [
        _draw_block(some, num_samples, block_seed(seed, i)) for i, some in enumerate(target.split(MAX_ROWS))
    ]
    draws = Draws(*(torch.cat([getattr(d, name) for d, _ in parts], 1) for name in Draws._fields))
    log_w = torch.cat([w for _, w in parts], 1)
    _check_weights(log_w)
    return draws, log_w


def _draw_block(target: Target, num_samples: int, seed: int) -> tuple[Draws, Tensor]:
    """`draw_weights` for data that are few enough, in blocks of draws."""
    per_block = max(1, MAX_ROWS // target.num_data)
    draws, log_w = [], []
    for block, first in enumerate(range(0, num_samples, per_block)):
        with seeded(block_seed(seed, block)):
            draw = target.sample_guide(min(per_block, num_samples - first))
        draws.append(draw)
        log_w.append(target.log_joint(draw.z) - draw.log_q)
    return Draws(*(torch.cat([getattr(d, name) for d in draws]) for name in Draws._fields)), torch.cat(log_w)


def check_methods(methods: Sequence[str]) -> None:
    """Refuse the name of an estimator that does not exist."""
    for method in methods:
        if method not in (known := [*ESTIMATORS, *POINT_ESTIMATORS]):
            raise ValueError(f"unknown method {method!r} for log p(x): choose one of {', '.join(known)}")


def _check_weights(log_w: Tensor) -> None:
    bad = (torch.isnan(log_w) | (log_w == torch.inf)).any(0)
    if bool(bad.any()):
        raise ValueError(
            f"log p(x, z) - log q(z | x) is NaN or +infinity for datum {int(bad.nonzero()[0])}: check the "
            "parameters of model and guide there, and the scale of the data"
        )


def _elbo(log_w: Tensor) -> Estimate:
    return Estimate(weights.elbo(log_w), weights.elbo_std_error(log_w), None)


def _iwae(log_w: Tensor) -> Estimate:
    return Estimate(weights.iwae(log_w), weights.iwae_std_error(log_w), weights.psis(log_w).khat)


def _psis(log_w: Tensor) -> Estimate:
    smoothed = weights.psis(log_w)
    return Estimate(smoothed.log_evidence, smoothed.std_error, smoothed.khat)


def _jackknife(log_w: Tensor) -> Estimate:
    khat = weights.psis(log_w).khat
    return Estimate(corrections.jackknife(log_w), corrections.jackknife_std_error(log_w), khat)


def _cumulant(log_w: Tensor) -> Estimate:
    return Estimate(corrections.cumulant(log_w), corrections.cumulant_std_error(log_w), None)


def _at_a_point(target: Target, method: str) -> Evidence:
    start = time.perf_counter()
    values, densities, gradients = zip(
        *(POINT_ESTIMATORS[method](some) for some in target.split(MAX_ROWS)), strict=True
    )
    value = np.concatenate([_numpy(v) for v in values])
    return Evidence(
        method=method,
        value=value,
        std_error=np.zeros(len(value)),
        direction="none",
        is_unbiased_density=False,
        is_reliable=np.isfinite(value),
        is_approximate=np.zeros(len(value), bool),
        reason="one point: no Monte Carlo error, and a bias that is not known",
        num_density_evaluations=max(densities),
        num_gradient_evaluations=max(gradients),
        seconds=time.perf_counter() - start,
    )


def _single_shot(target: Target) -> tuple[Tensor, int, int]:
    mean = target.guide_mean()[None]
    return (target.log_joint(mean) - target.log_guide(mean))[0], 1, 0


def _single_shot_laplace(target: Target) -> tuple[Tensor, int, int]:
    mean = target.guide_mean()
    value, gradient = _density(target)(mean)
    return laplace_evidence(value, gradient, target.curvature(mean[None])[0]), 1, 1


def _laplace(target: Target) -> tuple[Tensor, int, int]:
    fit = laplace.fit_laplace(_density(target), target.curvature, target.guide_mean())
    value, gradient = _density(target)(fit.gaussian.loc)
    evidence = laplace_evidence(value, gradient, target.curvature(fit.gaussian.loc[None])[0])
    return torch.where(fit.is_usable, evidence, torch.nan), fit.num_steps + 2, fit.num_steps + 2


def _density(target: Target) -> hmc.LogDensityAndGradient:
    return hmc.with_gradient(lambda z: target.log_joint(z[None])[0])


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


ESTIMATORS = {
    "elbo": Estimator(_elbo, "lower", is_unbiased_density=False),
    "iwae": Estimator(_iwae, "lower", is_unbiased_density=True),
    "psis": Estimator(_psis, "none", is_unbiased_density=False),
    "jackknife": Estimator(_jackknife, "none", is_unbiased_density=False),
    "cumulant": Estimator(_cumulant, "none", is_unbiased_density=False),
}
"""Every estimator of log p(x) from log-weights, by name."""

POINT_ESTIMATORS = {
    "single-shot": _single_shot,
    "single-shot-laplace": _single_shot_laplace,
    "laplace": _laplace,
}
"""Every estimator of log p(x) from one point per datum, by name."""
