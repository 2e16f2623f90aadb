"""Upper bounds of log p(x) from draws of the posterior, with a refusal where those did not converge."""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.inference import bounds, weights
from pyrovae.results import Evidence
from pyrovae.target import Target

__all__ = ["POSTERIOR_ESTIMATORS", "PosteriorDraws", "from_posterior", "read_draws", "with_refusals"]


class PosteriorDraws(NamedTuple):
    """Draws of the posterior of every datum, and how far they are to be trusted."""

    z: Tensor
    """[C, T, N, D]; one chain where draws are independent."""
    is_refused: np.ndarray
    """[N]; True for data whose reference has no verdict."""
    is_exact: bool
    num_gradient_evaluations: int
    """What the draws cost, per datum on average."""


def read_draws(target: Target, reference: xr.DataTree | Tensor | None) -> PosteriorDraws:
    """The draws of a tree of `sample_posterior`, or z `[K, N, D]` that the caller vouches for as exact draws.

    Raises:
        ValueError: if there are none, or they are of other data or another latent space.
    """
    if reference is None:
        raise ValueError(
            "this estimate starts from draws of the posterior: pass reference=sample_posterior(target), or the z "
            "[K, N, D] that simulated data were made from"
        )
    if isinstance(reference, Tensor):
        _check_shape(target, reference.shape[1:])
        z = reference.detach().to(dtype=target.dtype, device=target.device)
        return PosteriorDraws(z[None], np.zeros(target.num_data, bool), True, 0)
    if "posterior" not in reference.children:
        raise ValueError("the reference has no group 'posterior': make one with sample_posterior(target)")
    posterior = reference["posterior"].to_dataset()
    values = posterior["z"].values
    _check_shape(target, values.shape[2:])
    is_refused, per_chain = np.ones(target.num_data, bool), posterior.attrs.get("num_gradient_evaluations", 0)
    if "diagnostics" in reference.children:
        diagnostics = reference["diagnostics"].to_dataset()
        is_refused = np.asarray(diagnostics["verdict"].values != "ok")
        per_chain = np.mean(diagnostics.get("num_gradient_evaluations", per_chain))
    z = torch.as_tensor(values, dtype=target.dtype, device=target.device)
    cost = round(float(per_chain) * values.shape[0])
    return PosteriorDraws(z, is_refused, posterior.attrs.get("method") == "exact", cost)


def _check_shape(target: Target, shape: tuple[int, ...]) -> None:
    if tuple(shape) != (target.num_data, target.dim):
        raise ValueError(
            f"the reference has (data, latent coordinates) = {tuple(shape)}, but the target has "
            f"{(target.num_data, target.dim)}: pass the reference of the same data, target.rows(index) for some of it"
        )


class Bound(NamedTuple):
    """What an estimator makes of the log-weights of posterior draws: tensors `[N]`, and the tail index of its terms."""

    value: Tensor
    std_error: Tensor
    khat: Tensor | None = None


def from_posterior(
    method: str, target: Target, *, reference: xr.DataTree | Tensor | None = None, seed: int = 0
) -> Evidence:
    """One estimator of `POSTERIOR_ESTIMATORS` from all draws of a reference; nothing is drawn, whatever the seed."""
    start = time.perf_counter()
    draws = read_draws(target, reference)
    log_w = _log_weights(target, draws.z)
    found = POSTERIOR_ESTIMATORS[method](log_w, draws.is_exact)
    value, std_error = _numpy(found.value), _numpy(found.std_error)
    num_samples = log_w[..., 0].numel()
    khat = None if found.khat is None else _numpy(found.khat)
    limit = weights.khat_threshold(num_samples)
    has_tail = np.ones(len(value), bool) if khat is None else khat < limit
    made = Evidence(
        method=method,
        value=value,
        std_error=std_error,
        direction="upper",
        is_unbiased_density=False,
        is_reliable=np.isfinite(value) & np.isfinite(std_error) & has_tail,
        is_approximate=np.zeros(len(value), bool),
        reason="" if has_tail.all() else f"error bar unreliable where k-hat of 1/w is not below {limit:.2f}",
        num_density_evaluations=num_samples,
        num_gradient_evaluations=draws.num_gradient_evaluations,
        seconds=time.perf_counter() - start,
        khat=khat,
        budget=num_samples,
    )
    return with_refusals(made, draws)


def with_refusals(made: Evidence, draws: PosteriorDraws) -> Evidence:
    """No number for data whose reference has no verdict, and the reason why the others are approximate."""
    reasons = [made.reason] if made.reason else []
    if draws.is_refused.any():
        reasons.append(f"refused for {int(draws.is_refused.sum())} data whose reference has no verdict")
    if not draws.is_exact:
        reasons.append("an upper bound as far as the reference draws are of the posterior")
    return replace(
        made,
        value=np.where(draws.is_refused, np.nan, made.value),
        std_error=np.where(draws.is_refused, np.nan, made.std_error),
        is_reliable=made.is_reliable & ~draws.is_refused,
        is_approximate=np.full(made.num_data, not draws.is_exact),
        reason="; ".join(reasons),
    )


def _log_weights(target: Target, z: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x) at z `[C, T, N, D]`, in blocks of data and draws."""
    flat = z.flatten(0, 1)
    parts = []
    first = 0
    for some in target.split(MAX_ROWS):
        columns = flat[:, first : first + some.num_data]
        first += some.num_data
        blocks = columns.split(max(1, MAX_ROWS // some.num_data))
        parts.append(torch.cat([some.log_joint(block) - some.log_guide(block) for block in blocks]))
    return torch.cat(parts, 1).unflatten(0, z.shape[:2])


def _eubo(log_w: Tensor, is_independent: bool) -> Bound:
    error = weights.elbo_std_error(log_w.flatten(0, 1)) if is_independent else bounds.eubo_std_error(log_w)
    return Bound(bounds.eubo(log_w), error)


def _reciprocal(log_w: Tensor, is_independent: bool) -> Bound:
    inverse = -log_w.flatten(0, 1)
    error = weights.iwae_std_error(inverse) if is_independent else bounds.reciprocal_std_error(log_w)
    return Bound(bounds.reciprocal(log_w), error, weights.psis(inverse).khat)


def _numpy(value: Tensor) -> np.ndarray:
    return value.double().cpu().numpy()


POSTERIOR_ESTIMATORS = {"eubo": _eubo, "reciprocal": _reciprocal}
"""Every estimator of log p(x) from the log-weights of posterior draws, by name."""
