"""Reference posteriors: what the guide is compared with, for every datum, with a right to refuse.

One file a sampler; `sampled` holds what they share.
"""

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from pyrovae import results
from pyrovae.diagnostics.reference.exact import from_closed_form
from pyrovae.diagnostics.reference.hmc import from_hmc
from pyrovae.diagnostics.reference.sampled import Progress, Sampled
from pyrovae.target import Target

__all__ = ["METHODS", "latent_names", "sample_posterior"]

METHODS: dict[str, Callable[..., Sampled]] = {"hmc": from_hmc, "exact": from_closed_form}
"""Every sampler of posteriors, by name."""


def sample_posterior(
    target: Target,
    method: str = "hmc",
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> xr.DataTree:
    """Draw from p(z | x) of every datum, and say for which data the draws may be trusted.

    - `"hmc"`: N data x C chains are N*C independent chains in one batch, each with its own acceptance; step sizes are
      adapted per datum and frozen after the warm-up. Chains run in u, z = loc + scale_tril u, with a Gaussian per
      datum from Laplace's approximation (damped Gauss-Newton from the guide's mean) or from the guide's moments.
      Half of the chains start from that Gaussian with twice its standard deviations, half from the prior, so that a
      mode which the guide misses shows as R-hat; one that holds a share m of the prior stays unseen with probability
      (1 - m)^(C/2). Options: `num_chains` (16; R-hat compares them), `num_samples` (500, kept per chain),
      `warmup_steps` (200), `whiten` ("laplace", whose failures take the guide's moments, or "guide"),
      `target_accept_prob` (0.8), `max_rhat` (1.01), `min_ess` (400).
    - `"exact"`: independent draws where log p(x, z) is quadratic in z, a linear-Gaussian decoder with a Gaussian prior.
      Options: `num_chains` (4), `num_samples` (1000).

    A datum gets the verdict "ok" from HMC if its largest R-hat (rank-normalized, split; Vehtari, Gelman, Simpson,
    Carpenter and Bürkner 2021) is below `max_rhat`, its smallest bulk and tail effective sample sizes are at least
    `min_ess`, and no draw diverged; otherwise "no verdict", with the reason. Exact draws are always "ok".

    Args:
        target: the model, guide and data.
        method: a key of `METHODS`.
        seed: same seed, data, machine and versions, same draws.
        progress: called with (done, total).
        **options: those of the method.

    Returns:
        DataTree with `posterior`, `sample_stats` and `diagnostics`.

    Raises:
        ValueError: an unknown method or option, a number out of its range, or a posterior that the method cannot treat.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))
    >>> tree = sample_posterior(Target(model, guide, torch.zeros(3, 2)), num_samples=100, warmup_steps=50)
    >>> tree["posterior"]["z"].sizes["draw"], tree["diagnostics"]["verdict"].values.tolist()
    (100, ['ok', 'ok', 'ok'])
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r} for posterior draws: choose one of {', '.join(METHODS)}")
    settings = _settings(method, options)
    start = time.perf_counter()
    found = METHODS[method](target, seed=seed, progress=progress, **options)
    cost = {
        "num_gradient_evaluations": found.num_gradient_evaluations,
        "seconds": time.perf_counter() - start,
    }
    attrs = {"method": method, **settings, "seed": seed, **cost}
    others = {name: values for name, values in found.stats.items() if name != "lp"}
    return results.build_tree(
        {
            "posterior": results.group("posterior", {"z": found.z}, attrs, latent=latent_names(target)),
            "sample_stats": results.sample_stats_group(found.stats["lp"], None, **others),
            "diagnostics": results.group("diagnostics", found.diagnostics, found.limits),
        }
    )


def _settings(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method with its defaults; refuses those it does not have."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    known = {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in ("seed", "progress")
    }
    for name in options:
        if name not in known:
            raise ValueError(f"method {method!r} has no option {name!r}: its options are {', '.join(known)}")
    return known | dict(options)


def latent_names(target: Target) -> list[str]:
    """The names of the D unconstrained coordinates, site[i]."""
    return results.latent_names(
        {site: len(range(*at.indices(target.dim))) for site, at in target.sites.items()}
    )
