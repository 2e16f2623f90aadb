"""The ELBO taken apart: both of its forms for every datum, and the aggregate posterior against the prior."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics.reference import latent_names
from pyrovae.results import Evidence
from pyrovae.results.sandwich import truth_direction
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["ACTIVE", "decompose", "with_truth"]

MAX_ROWS = 1 << 14  # (draw, datum) pairs that the model or the guide sees at once
MAX_PAIRS = 1 << 22  # coordinates of (draw, datum) pairs that are scored at once
ACTIVE = 0.01
"""Variance over data of the guide's mean, in prior variances, above which a unit is active (Burda et al. 2016)."""
_OF_EVIDENCE: Final = ("log_evidence", "kl_posterior")
# Noise pushes a variance that is near 0 up, and moments of finitely many draws bend a KL.
_SIDES: Final = {"mean_variance": "upper", "kl_per_latent": "none"}


def decompose(
    target: Target,
    evidence: Evidence | None = None,
    *,
    num_samples: int = 200,
    num_aggregate: int = 1000,
    seed: int = 0,
) -> xr.DataTree:
    """Take the ELBO apart, term by term.

    Per datum, with z from the guide q(z | x):

    ELBO = E_q[log p(x | z)] - KL(q || prior) = log p(x) - KL(q || posterior).

    The first form holds draw by draw. The second needs an estimate of log p(x): `kl_posterior` = `log_evidence` -
    `elbo`, and has that estimate's direction of bias. Where that estimate has no error bar to be trusted, neither has
    the KL: it is NaN. `with_truth` puts a better log p(x) in its place.

    On average over the N data of the target (Hoffman and Johnson 2016), with q(z) = 1/N sum_n q(z | x_n):

    mean KL(q || prior) = I(n; z) + KL(q(z) || p(z)),  0 <= I <= log N.

    I is near log N when the codes of all data are apart, and 0 when the guide ignores the data. q(z) is the full
    mixture over all N data, evaluated in blocks at one draw for each of `num_aggregate` data (all of them where N is
    smaller), so the target should hold the whole data set. Both estimates are unbiased. They are left out where the
    guide cannot score.

    `mean_variance` is the variance over data of a unit's guide mean, less the Monte Carlo variance of those means, in
    variances of the unit's prior. A unit is active where that exceeds 0.01 (Burda, Grosse and Salakhutdinov 2016, for a
    standard normal prior): `is_active` is the one rule of what a collapsed unit is, for any scale of z. One datum has
    no variance: both are left out. `kl_per_latent` is that of Gaussians with the moments of guide and prior draws: up
    to noise, exact for a diagonal Gaussian guide and prior.

    Args:
        target: the model, guide and data.
        evidence: log p(x) of the same data, by `log_evidence` or your own.
        num_samples: draws of the guide per datum, at least 2.
        num_aggregate: data whose draws meet q(z), at least 2.
        seed: same seed, machine and versions, same numbers.

    Returns:
        DataTree with `decomposition`, in nats: per datum `elbo`, `reconstruction`, `kl_prior`, `entropy` and, with
        evidence, `log_evidence` and `kl_posterior`; per latent `kl_per_latent`, `mean_variance`, `is_active`; and of
        the whole set `mean_kl_prior`, `mutual_information`, `marginal_kl`, `log_num_data`. Estimates have a
        `_std_error` beside them, and all have an attribute `direction`. The attribute `log_evidence_by` of the group
        names the method behind `log_evidence`.

    Raises:
        ValueError: fewer than 2 samples, or evidence of other data.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
    >>> terms = decompose(Target(model, guide, 3 * torch.eye(2)))["decomposition"]
    >>> bool(abs(terms["reconstruction"] - terms["kl_prior"] - terms["elbo"]).max() < 1e-5)
    True
    >>> bool(0 < terms["mutual_information"] < terms["log_num_data"])
    True
    """
    _check(target, evidence, num_samples, num_aggregate)
    parts = target.split(max(1, MAX_ROWS // num_samples))
    blocks = [_block(part, num_samples, block_seed(seed, 0, i)) for i, part in enumerate(parts)]
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    mean, variance = drawn.pop("guide_mean"), drawn.pop("guide_variance")
    variables = {
        **drawn,
        **_second_form(drawn, evidence),
        **_per_latent(target, mean, variance, num_samples, seed),
    }
    if target.can_score_guide:
        variables |= _aggregate(target, min(num_aggregate, target.num_data), seed)
    by = {} if evidence is None else {"log_evidence_by": evidence.method}
    num_aggregate = min(num_aggregate, target.num_data)
    attrs = {"num_samples": num_samples, "num_aggregate": num_aggregate, "seed": seed, **by}
    made = results.group("decomposition", _with_dims(variables), attrs, latent=latent_names(target))
    sides = _SIDES | dict.fromkeys(_OF_EVIDENCE, "exact" if evidence is None else evidence.direction)
    for name, array in made.data_vars.items():
        array.attrs["direction"] = sides.get(str(name), "exact")
    return results.build_tree({"decomposition": made})


def with_truth(terms: xr.Dataset, sandwich: xr.Dataset) -> xr.Dataset:
    """The group `decomposition` with `log_evidence` and `kl_posterior` by the truth of a group `sandwich`.

    NaN for the data whose log p(x) is not known. An estimate of log p(x) that was there before is forgotten.

    >>> datum = {"datum": [0, 1]}
    >>> terms = xr.Dataset({"elbo": ("datum", [-5.0, -6.0]), "elbo_std_error": ("datum", [0.1, 0.1])}, datum)
    >>> truth = {"truth": [-4.0, np.nan], "truth_std_error": [0.0, np.nan], "source": ["exact", ""]}
    >>> sandwich = xr.Dataset({name: ("datum", values) for name, values in truth.items()}, datum)
    >>> with_truth(terms, sandwich)["kl_posterior"].values
    array([ 1., nan])
    """
    drawn = {name: terms[name].values for name in ("elbo", "elbo_std_error")}
    found = _minus_elbo(drawn, sandwich["truth"].values, sandwich["truth_std_error"].values)
    made = terms.assign({name: ("datum", value) for name, value in found.items()})
    for name in found:
        made[name].attrs["direction"] = truth_direction(sandwich) if name in _OF_EVIDENCE else "exact"
    return made.assign_attrs(log_evidence_by="truth")


def _check(target: Target, evidence: Evidence | None, num_samples: int, num_aggregate: int) -> None:
    for name, value in (("num_samples", num_samples), ("num_aggregate", num_aggregate)):
        if value < 2:
            raise ValueError(
                f"{name} must be at least 2, so that there is an error bar, but is {value}: raise it"
            )
    if evidence is not None and evidence.num_data != target.num_data:
        raise ValueError(
            f"the evidence is of {evidence.num_data} data and the target of {target.num_data}: pass the evidence of "
            "the same data"
        )


def _block(target: Target, num_samples: int, seed: int) -> dict[str, np.ndarray]:
    """The terms of some data: means over draws of the guide, and their standard errors."""
    with seeded(seed):
        z, log_q = target.sample_guide(num_samples)
    log_prior, log_likelihood = target.log_terms(z)
    terms = {
        "elbo": log_likelihood + log_prior - log_q,
        "reconstruction": log_likelihood,
        "kl_prior": log_q - log_prior,
        "entropy": -log_q,
    }
    found = {name: _numpy(term.double().mean(0)) for name, term in terms.items()}
    for name, term in terms.items():
        found[f"{name}_std_error"] = _numpy(term.double().std(0)) / math.sqrt(num_samples)
    return {**found, "guide_mean": _numpy(z.double().mean(0)), "guide_variance": _numpy(z.double().var(0))}


def _second_form(terms: Mapping[str, np.ndarray], evidence: Evidence | None) -> dict[str, np.ndarray]:
    if evidence is None:
        return {}
    error = np.where(evidence.is_reliable, evidence.std_error, np.nan)
    return _minus_elbo(terms, evidence.value, error)


def _minus_elbo(
    terms: Mapping[str, np.ndarray], value: np.ndarray, std_error: np.ndarray
) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):  # both may be infinite
        kl = value - terms["elbo"]
    return {
        "log_evidence": value,
        "log_evidence_std_error": std_error,
        "kl_posterior": kl,
        "kl_posterior_std_error": np.hypot(std_error, terms["elbo_std_error"]),
    }


def _per_latent(
    target: Target, mean: np.ndarray, variance: np.ndarray, num_samples: int, seed: int
) -> dict[str, np.ndarray]:
    """KL to the prior and activity of each latent coordinate, from the guide's moments `[N, D]`."""
    some = target.rows(range(min(target.num_data, MAX_ROWS // 16)))
    num_draws = max(2, MAX_ROWS // some.num_data)
    with seeded(block_seed(seed, 1)):
        prior = _numpy(some.sample_prior(num_draws).double()).reshape(-1, target.dim)
    prior_variance = prior.var(0, ddof=1)
    ratio, shift = variance / prior_variance, (mean - prior.mean(0)) ** 2 / prior_variance
    found = {"kl_per_latent": 0.5 * (ratio + shift - 1 - np.log(ratio)).mean(0)}
    if len(mean) == 1:
        return found
    spread = np.maximum(mean.var(0, ddof=1) - variance.mean(0) / num_samples, 0.0) / prior_variance
    return {**found, "mean_variance": spread, "is_active": spread > ACTIVE}


def _aggregate(target: Target, num_aggregate: int, seed: int) -> dict[str, np.ndarray]:
    """Mutual information and KL(q(z) || p(z)), from one draw of each of some data."""
    with seeded(block_seed(seed, 2)):
        chosen = target.rows(torch.randperm(target.num_data)[:num_aggregate])
        z, log_q = chosen.sample_guide(1)
    log_mixture = _log_mixture(target, z[0])
    own, prior = _numpy(log_q[0].double()), _numpy(chosen.log_terms(z).log_prior[0].double())
    parts = {
        "mean_kl_prior": own - prior,
        "mutual_information": own - log_mixture,
        "marginal_kl": log_mixture - prior,
    }
    found = {name: np.array(part.mean()) for name, part in parts.items()}
    errors = {f"{name}_std_error": np.array(_error_of_mean(part)) for name, part in parts.items()}
    return {**found, **errors, "log_num_data": np.array(math.log(target.num_data))}


def _error_of_mean(values: np.ndarray) -> float:
    """One value has no spread."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _log_mixture(target: Target, z: Tensor) -> np.ndarray:
    """log q(z) = log 1/N sum_n q(z | x_n) at draws `[S, D]`: `[S]`, in blocks of draws and of data."""
    parts = []
    for block in target.split(MAX_ROWS):
        score = block.pair_scorer()
        per_call = max(1, MAX_PAIRS // (block.num_data * target.dim))
        parts.append(torch.cat([torch.logsumexp(score(some).double(), 1) for some in z.split(per_call)]))
    return _numpy(torch.logsumexp(torch.stack(parts), 0)) - math.log(target.num_data)


def _with_dims(variables: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("kl_per_latent", "mean_variance", "is_active"), ("latent",)
    )
    return {
        name: (dims.get(name, ("datum",) if value.ndim else ()), value) for name, value in variables.items()
    }


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
