"""The ELBO taken apart: both of its forms for every datum, and the aggregate posterior against the prior."""

import math
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics.reference import latent_names
from pyrovae.results import Evidence
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["ACTIVE", "decompose"]

MAX_ROWS = 1 << 14  # (draw, datum) pairs that the model or the guide sees at once
MAX_PAIRS = 1 << 22  # coordinates of (draw, datum) pairs that are scored at once
ACTIVE = 0.01  # variance over data of the guide's mean above which a unit is active (Burda et al. 2016)


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
    `elbo`, and has that estimate's direction of bias.

    On average over the N data of the target (Hoffman and Johnson 2016), with q(z) = 1/N sum_n q(z | x_n):

    mean KL(q || prior) = I(n; z) + KL(q(z) || p(z)),  0 <= I <= log N.

    I is near log N when the codes of all data are apart, and 0 when the guide ignores the data. q(z) is the full
    mixture over all N data, evaluated in blocks at one draw for each of `num_aggregate` data (all of them where N is
    smaller), so the target should hold the whole data set. Both estimates are unbiased. They are left out where the
    guide cannot score.

    A unit is active if the variance over data of its guide mean exceeds 0.01 (Burda, Grosse and Salakhutdinov 2016);
    the Monte Carlo variance of those means is taken off first. `kl_per_latent` is that of Gaussians with the moments
    of guide and prior draws: up to noise, exact for a diagonal Gaussian guide and prior.

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
        `_std_error` beside them.

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
    attrs = {"num_samples": num_samples, "num_aggregate": min(num_aggregate, target.num_data), "seed": seed}
    made = results.group("decomposition", _with_dims(variables), attrs, latent=latent_names(target))
    for name, array in made.data_vars.items():
        of_evidence = evidence is not None and name in ("log_evidence", "kl_posterior")
        array.attrs["direction"] = evidence.direction if of_evidence and evidence else "exact"
    return results.build_tree({"decomposition": made})


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
    return {
        "log_evidence": evidence.value,
        "log_evidence_std_error": evidence.std_error,
        "kl_posterior": evidence.value - terms["elbo"],
        "kl_posterior_std_error": np.hypot(evidence.std_error, terms["elbo_std_error"]),
    }


def _per_latent(
    target: Target, mean: np.ndarray, variance: np.ndarray, num_samples: int, seed: int
) -> dict[str, np.ndarray]:
    """KL to the prior and activity of each latent coordinate, from the guide's moments `[N, D]`."""
    some = target.rows(range(min(target.num_data, MAX_ROWS // 16)))
    num_draws = max(2, MAX_ROWS // some.num_data)
    with seeded(block_seed(seed, 1)):
        prior = _numpy(some.sample_prior(num_draws).double()).reshape(-1, target.dim)
    ratio = variance / prior.var(0, ddof=1)
    shift = (mean - prior.mean(0)) ** 2 / prior.var(0, ddof=1)
    spread = mean.var(0, ddof=1) if len(mean) > 1 else np.zeros(target.dim)
    spread = np.maximum(spread - variance.mean(0) / num_samples, 0.0)
    return {
        "kl_per_latent": 0.5 * (ratio + shift - 1 - np.log(ratio)).mean(0),
        "mean_variance": spread,
        "is_active": spread > ACTIVE,
    }


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
    errors = {
        f"{name}_std_error": np.array(part.std(ddof=1) / math.sqrt(len(part))) for name, part in parts.items()
    }
    return {**found, **errors, "log_num_data": np.array(math.log(target.num_data))}


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
