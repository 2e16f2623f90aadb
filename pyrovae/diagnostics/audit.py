"""The whole examination of a guide in one call: evidence, weights, reference posteriors, comparison."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics import evidence as evidence_module
from pyrovae.diagnostics.comparison import compare_draws
from pyrovae.diagnostics.reference import latent_names, sample_posterior
from pyrovae.inference import weights
from pyrovae.results import Evidence
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["audit"]

NUM_SHOWN = 16  # data whose reconstructions are kept, and draws from the prior predictive

Progress = Callable[[str, int, int], None]


def audit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    plate: str = "data",
    params: Mapping[str, Tensor] | None = None,
    methods: Sequence[str] = ("elbo", "iwae", "psis"),
    num_samples: int = 1000,
    reference: Mapping[str, Any] | None = None,
    history: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Measure how good a guide is on `data`: how far from the posterior, and how far the ELBO is from log p(x).

    Args:
        model, guide, *data, plate, params: as for `Target`.
        methods: estimators of log p(x), as for `log_evidence`; all see the same draws.
        num_samples: draws of the guide per datum, at least 2.
        reference: options of `sample_posterior`.
        history: `{metric: one value an epoch}`, such as `fit(...).history`, kept with the results.
        seed: same seed, data, machine and versions, same results.
        progress: called with (stage, done, total).

    Returns:
        DataTree with `evidence`, `log_weights`, `guide`, `posterior`, `sample_stats`, `diagnostics`, `comparison`,
        `prior`, `observed_data`, `reconstruction`, `prior_predictive` and, if given, `history`.

    Raises:
        ValueError: whatever `Target`, `log_evidence` and `sample_posterior` refuse.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.35).to_event(1))  # half as wide as the posterior
    >>> tree = audit(model, guide, torch.zeros(3, 2), reference={"num_samples": 200, "warmup_steps": 50})
    >>> round(float(tree["comparison"]["sd_ratio"].mean()), 1)
    0.5
    """
    evidence_module.check_methods(methods)
    start = time.perf_counter()
    target = Target(model, guide, *data, plate=plate, params=params)
    tell = progress or (lambda stage, done, total: None)
    first = [method for method in methods if not evidence_module.needs_reference(method)]
    estimates, drawn_groups, khat = _from_guide(target, first, num_samples, seed, tell)
    guide_z = drawn_groups["guide"]["z"].values
    sampled = sample_posterior(
        target,
        **{"seed": block_seed(seed, 1), **(reference or {})},
        progress=lambda done, total: tell("reference posteriors", done, total),
    )
    tell("comparison", 0, 1)
    compared = compare_draws(guide_z, sampled["posterior"].to_dataset()["z"].values)
    groups = {name: node.to_dataset() for name, node in sampled.children.items()}
    groups["diagnostics"] = _with_khat(groups["diagnostics"], khat, num_samples)
    groups |= drawn_groups
    estimates |= {
        method: evidence_module.log_evidence(target, method, reference=sampled, seed=seed)
        for method in methods
        if method not in first
    }
    in_order = [estimates[method] for method in methods]
    groups["evidence"] = results.evidence_group(in_order, {"num_samples": num_samples})
    groups["comparison"] = results.group("comparison", compared, latent=latent_names(target))
    groups |= _shown(target, guide_z, seed)
    if history:
        groups["history"] = results.group("history", dict(history))
    tell("comparison", 1, 1)
    return results.build_tree(groups, _attributes(target, seed, num_samples, time.perf_counter() - start))


def _from_guide(
    target: Target, methods: Sequence[str], num_samples: int, seed: int, tell: Progress
) -> tuple[dict[str, Evidence], dict[str, xr.Dataset], np.ndarray]:
    """What needs no reference: estimates, the guide's draws and weights, and k-hat."""
    tell("draws of the guide", 0, 1)
    start = time.perf_counter()
    draws, log_w = evidence_module.draw_weights(target, num_samples, seed=seed)
    seconds = time.perf_counter() - start
    estimates = {
        method: evidence_module.estimate(method, log_w, seconds=seconds)
        if method in evidence_module.ESTIMATORS
        else evidence_module.log_evidence(target, method, seed=seed)
        for method in methods
    }
    groups = {
        "log_weights": results.group("log_weights", {"guide": log_w.cpu().numpy()}),
        "guide": results.group("guide", {"z": draws.z.cpu().numpy()[None]}, latent=latent_names(target)),
    }
    tell("draws of the guide", 1, 1)
    known = estimates["iwae"].khat if "iwae" in estimates else None
    return estimates, groups, weights.psis(log_w).khat.double().cpu().numpy() if known is None else known


def _with_khat(diagnostics: xr.Dataset, khat: np.ndarray, num_samples: int) -> xr.Dataset:
    attrs = {**diagnostics.attrs, "khat_threshold": weights.khat_threshold(num_samples)}
    variables = {str(name): values.values for name, values in diagnostics.data_vars.items()}
    return results.group("diagnostics", {"khat": khat, **variables}, attrs)


def _shown(target: Target, guide_z: np.ndarray, seed: int) -> dict[str, xr.Dataset]:
    """What a person looks at: the data, reconstructions of some of them, and draws from the prior."""
    some = target.rows(range(min(NUM_SHOWN, target.num_data)))
    z = torch.as_tensor(guide_z[0, :NUM_SHOWN, : some.num_data], dtype=target.dtype, device=target.device)
    with seeded(block_seed(seed, 2)):
        prior = target.sample_prior(NUM_SHOWN)
    first = target.rows([0])
    names = latent_names(target)
    observed = dict(zip(target.argument_names(), (x.cpu().numpy() for x in target.data), strict=True))
    return {
        "observed_data": results.group("observed_data", observed),
        "reconstruction": results.group("reconstruction", _numpy(some.expected_data(z))),
        "prior": results.group("prior", {"z": prior.cpu().numpy()[None]}, latent=names),
        "prior_predictive": results.group(
            "prior_predictive", {k: v[:, 0] for k, v in _numpy(first.expected_data(prior[:, :1])).items()}
        ),
    }


def _numpy(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in values.items()}


def _attributes(target: Target, seed: int, num_samples: int, seconds: float) -> dict[str, Any]:
    packages = ("pyrovae", "torch", "pyro-ppl", "arviz-stats")
    return {
        "seed": seed,
        "num_samples": num_samples,
        "num_data": target.num_data,
        "latent_dim": target.dim,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in packages},
        "seconds": seconds,
    }
