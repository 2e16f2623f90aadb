"""Reference posteriors: what the guide is compared with, for every datum, with a right to refuse.

One file a sampler; `sampled` holds what they share.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.diagnostics.options import check_options, options_of
from pyrovae.diagnostics.reference.exact import from_closed_form
from pyrovae.diagnostics.reference.hmc import from_hmc
from pyrovae.diagnostics.reference.importance import from_importance
from pyrovae.diagnostics.reference.pyro_importance import from_pyro_importance
from pyrovae.diagnostics.reference.pyro_mcmc import from_pyro_hmc, from_pyro_nuts
from pyrovae.diagnostics.reference.sampled import Progress, Sampled, joined, side_by_side
from pyrovae.target import Target

__all__ = ["METHODS", "latent_names", "sample_posterior"]

METHODS: dict[str, Callable[..., Iterator[Sampled]]] = {
    "hmc": from_hmc,
    "exact": from_closed_form,
    "importance": from_importance,
    "pyro-importance": from_pyro_importance,
    "pyro-hmc": from_pyro_hmc,
    "pyro-nuts": from_pyro_nuts,
}
"""Every sampler of posteriors, by name; each yields blocks of data."""

Groups = dict[str, xr.Dataset]


def sample_posterior(
    target: Target,
    method: str = "hmc",
    *,
    seed: int = 0,
    progress: Progress | None = None,
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> xr.DataTree:
    """Draw from p(z | x) of every datum, and say for which data the draws may be trusted.

    - `"hmc"`: N data x C chains are N*C independent chains in one batch, each with its own acceptance, each datum with
      its own step size and number of steps. Chains run in u, z = loc + scale_tril u, with a Gaussian per datum: at
      first Laplace's (damped Gauss-Newton from the guide's mean) or the guide's moments, then twice in the warm-up one
      that is read off positions and gradients, where that fits clearly better. Where a posterior is near its Gaussian,
      that part is integrated exactly, and a draw costs about one gradient. Chains start in turn from the guide's
      Gaussian with twice its standard deviations, from the first Gaussian and from the prior, so that a mode which the
      guide misses shows as R-hat; one that holds a share m of the prior stays unseen with probability (1 - m)^(C/3).
      Chains run in rounds that double their length until a datum has its verdict "ok" or `max_samples` are spent;
      every datum keeps `num_samples` draws, evenly thinned over its whole run. Data that are done leave the batch.
      Options: `num_chains` (16; R-hat compares them), `num_samples` (500, kept per chain), `warmup_steps` (200),
      `whiten` ("laplace", whose failures take the guide's moments, or "guide"), `target_accept_prob` (0.6, of the
      harmonic mean over chains; the mean comes out near 0.75), `max_rhat`
      (1.01), `min_ess` (400), `max_samples` (0: eight times the draws kept), `thinning` (1), `compile` ("auto": the
      density is traced or compiled where that pays; or True, False).
    - `"exact"`: independent draws where log p(x, z) is quadratic in z, a linear-Gaussian decoder with a Gaussian prior.
      Options: `num_chains` (4), `num_samples` (1000).
    - `"importance"`: draws of the guide, resampled by their weights p(x, z) / q(z | x), Pareto-smoothed (Vehtari,
      Simpson, Gelman, Yao and Gabry 2024). No chain to converge and no gradient, but a mode that the guide misses is
      missed by the weights too, and by k-hat. A draw may repeat, beside itself in its chain. Options: `num_chains` (4),
      `num_samples` (1000), `num_draws` (10,000, weighed per datum), `min_ess` (400).
    - `"pyro-importance"`: the same, with the weights that Pyro's own utilities give for one datum at a time, for at
      most 1,000 data; refused where they differ from the target's. Options: those of `"importance"`, and `traces`:
      "vectorized" (`vectorized_importance_weights`, with a dimension of draws on the left of the model's plates) or
      "one by one" (`Importance`, which any model bears, a few ms a draw).
    - `"pyro-hmc"`, `"pyro-nuts"`: Pyro's own kernels on the model as it is written, one chain of one datum after
      another, from draws of the prior, for at most 100 data: the density is Pyro's and the guide takes no part, so
      they check the target and the samplers above, hundreds of times slower. Options: `num_chains` (4), `num_samples`
      (500), `warmup_steps` (300), `full_mass` (False: a diagonal mass matrix), `target_accept_prob` (0.8), `max_rhat`
      (1.01), `min_ess` (400); `trajectory_length` (2) of HMC, `max_tree_depth` (10) of NUTS.

    A datum gets the verdict "ok" from HMC or NUTS if its largest R-hat (rank-normalized, split; Vehtari, Gelman,
    Simpson, Carpenter and Bürkner 2021) is below `max_rhat`, its smallest bulk and tail effective sample sizes are at
    least `min_ess`, and no draw diverged; otherwise "no verdict", with the reason. Exact draws are always "ok".
    Importance sampling is "ok" if k-hat is below `khat_threshold(num_draws)` (0.7 from 2,155 draws on) and `ess`, the
    effective sample size of the weights, is at least `min_ess`; there is no R-hat.

    Args:
        target: the model, guide and data.
        method: a key of `METHODS`.
        seed: same seed, data, machine and versions, same draws.
        progress: called with (done, total).
        path: a folder that ends in `.zarr`, for draws that do not fit in memory: each block of data is written when it
            is done and then dropped. It appears under its name only when all of it is there. `pyrovae.read` reads it
            into memory, `pyrovae.results.read_lazily` opens it.
        **options: those of the method.

    Returns:
        DataTree with `posterior`, `sample_stats` and `diagnostics`; with `path` the same values, read when asked for.

    Raises:
        ValueError: an unknown method or option, a number out of its range, or a posterior that the method cannot treat.
        FileExistsError: there is something at `path`; it is left as it is.

    >>> import torch, pyro, pyro.distributions as dist
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
    check_options(method, METHODS[method], options)
    start = time.perf_counter()
    blocks = METHODS[method](target, seed=seed, progress=progress, **options)
    settings = {"method": method, **options_of(METHODS[method]), **options, "seed": seed}
    latent = latent_names(target)

    def draws(found: Sampled, first: int = 0) -> Groups:
        cost = {
            "num_gradient_evaluations": found.num_gradient_evaluations,
            "seconds": time.perf_counter() - start,
        }
        return _draws(found, {**settings, **cost}, latent, first)

    if path is not None:
        return _on_disk(blocks, draws, path)
    found = joined(list(blocks))
    return results.build_tree({**draws(found), **_verdicts(found.diagnostics, found.limits)})


def _on_disk(
    blocks: Iterator[Sampled], draws: Callable[[Sampled, int], Groups], path: str | os.PathLike[str]
) -> xr.DataTree:
    """Draws block by block; verdicts, a few numbers a datum, at the end."""
    verdicts: list[Mapping[str, np.ndarray]] = []
    limits: Mapping[str, float] = {}
    first = cost = 0
    with results.written_in_parts(path) as add:
        for block in blocks:
            cost, limits = max(cost, block.num_gradient_evaluations), block.limits
            add(draws(block._replace(num_gradient_evaluations=cost), first))
            verdicts.append(block.diagnostics)
            first += block.z.shape[2]
            del block  # or it would stay while the next one is made
        add(_verdicts(side_by_side(verdicts, 0), limits))
    return results.read_lazily(path)


def _draws(found: Sampled, attrs: Mapping[str, Any], latent: list[str], first: int) -> Groups:
    """The groups of draws, of data that are counted from `first`."""
    datum = np.arange(first, first + found.z.shape[2])
    others = {name: values for name, values in found.stats.items() if name != "lp"}
    return {
        "posterior": results.group("posterior", {"z": found.z}, attrs, latent=latent, datum=datum),
        "sample_stats": results.sample_stats_group(found.stats["lp"], None, datum=datum, **others),
    }


def _verdicts(diagnostics: Mapping[str, np.ndarray], limits: Mapping[str, float]) -> Groups:
    return {"diagnostics": results.group("diagnostics", diagnostics, limits)}


def latent_names(target: Target) -> list[str]:
    """The names of the D unconstrained coordinates, site[i]."""
    return results.latent_names(
        {site: len(range(*at.indices(target.dim))) for site, at in target.sites.items()}
    )
