"""Many estimators of log p(x) on the same data, in one table, with their bias where the truth is known."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics import evidence
from pyrovae.diagnostics.evidence import Annealing
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.results import Evidence
from pyrovae.results.sandwich import sandwich_group, with_bias
from pyrovae.seeding import block_seed
from pyrovae.target import Target

__all__ = ["BIDIRECTIONAL", "DEFAULT_METHODS", "ENDS", "evidence_table"]

BIDIRECTIONAL = "bidirectional"
"""The name for both of `ENDS`."""
ENDS = ("ais", "ais-reverse")
DEFAULT_METHODS = ("elbo", "iwae", "psis", "cumulant", "single-shot", "single-shot-laplace", BIDIRECTIONAL)

Progress = Callable[[str, int, int], None]
Step = tuple[str, Callable[[], list[Evidence]]]


def evidence_table(
    target: Target,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    num_samples: int | Sequence[int] = 1000,
    num_temperatures: int | Sequence[int] = 100,
    tolerance: float = 0.1,
    reference: xr.DataTree | Tensor | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Estimate log p(x) of every datum by several methods, with value, error bar, direction, cost and bias.

    Estimators from draws of the guide share the draws: K of them are the first K of the most. Where the truth is known,
    by "exact" or "quadrature", or from annealing in both directions that closes to `tolerance`, the bias of every
    other estimator is measured against it. What needs draws of the posterior takes them from `reference`, or makes
    them with `sample_posterior`; data whose reference has no verdict have no upper bound.

    Args:
        target: the model, guide and data.
        methods: keys of `METHODS` (see `log_evidence`), and "bidirectional" for "ais" and "ais-reverse" under one plan.
        num_samples: draws of the guide per datum; several numbers give one row each.
        num_temperatures: of annealing; several numbers give one row each.
        tolerance: gap in nats up to which annealing in both directions is called closed.
        reference: a tree of `sample_posterior` for the same data, or exact draws `[K, N, D]`.
        options: further options of a method, `{"cubo": {"defensive": 0.1}, "bidirectional": {"start": "prior"}}`.
        seed: same seed, machine and versions, same numbers.
        progress: called with (method, done, total).

    Returns:
        DataTree with `evidence` (per method and datum), `sandwich` where the truth or both ends were measured, and
        the `diagnostics` of the reference. `evidence_summary` averages over the data, `plot_evidence_cost` draws it.

    Raises:
        ValueError: whatever `log_evidence` and `sample_posterior` refuse.

    >>> import torch, pyro, pyro.distributions as dist, pyrovae as pv
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.35).to_event(1))  # half as wide as the posterior
    >>> tree = evidence_table(Target(model, guide, torch.zeros(3, 2)), ["elbo", "exact"])
    >>> table = pv.evidence_summary(tree)
    >>> bool(table.loc["elbo", "bias"] < -0.5)  # exact: -KL(q || p) = -(log 4 + 1/4 - 1)
    True
    """
    start = time.perf_counter()
    evidence.check_target(target)
    names = _expanded(methods)
    own = _own_options(names, options or {})
    counts = _budgets(num_samples), _budgets(num_temperatures)
    _check_budgets(names, own, counts)
    tell = progress or (lambda method, done, total: None)
    if reference is None and any(evidence.needs_reference(name) for name in names):
        reference = sample_posterior(
            target, seed=block_seed(seed, 1), progress=partial(tell, "reference posteriors")
        )
    found: list[Evidence] = []
    steps = _steps(target, names, own, counts, reference, seed)
    for done, (name, run) in enumerate(steps):
        tell(name, done, len(steps))
        found += run()
    tell("", len(steps), len(steps))
    found.sort(key=lambda made: (names.index(made.method), made.budget))
    groups = _groups(found, tolerance, reference)
    attrs = {
        "seed": seed,
        "num_data": target.num_data,
        "latent_dim": target.dim,
        "device": str(target.device),
    }
    return results.build_tree(groups, {**attrs, "seconds": time.perf_counter() - start})


def _expanded(methods: Sequence[str]) -> list[str]:
    """The methods, each once, with both ends in place of "bidirectional"."""
    evidence.check_methods(methods, BIDIRECTIONAL)
    if not methods:
        raise ValueError("methods must name at least one estimator of log p(x), but is empty")
    names = [name for method in methods for name in (ENDS if method == BIDIRECTIONAL else (method,))]
    return list(dict.fromkeys(names))


def _own_options(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The further options of every method; those of "bidirectional" are of both ends."""
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for method, given in options.items():
        for name in ENDS if method == BIDIRECTIONAL else (method,):
            if name not in own:
                raise ValueError(f"options are given for {method!r}, which is not among {', '.join(names)}")
            evidence.check_options(name, given)
            own[name] |= given
    return own


def _budgets(count: int | Sequence[int]) -> list[int]:
    return sorted({count} if isinstance(count, int) else set(count))


def _check_budgets(
    names: Sequence[str], own: Mapping[str, Mapping[str, Any]], counts: tuple[list[int], list[int]]
) -> None:
    """Before anything is run, what cannot be: too few draws, or annealing from nowhere."""
    if any(name in evidence.ESTIMATORS for name in names):
        evidence.check_draws(counts[0][0])
    for name in set(ENDS) & set(names):
        given = {key: value for key, value in own[name].items() if key in Annealing._fields}
        evidence.check_annealing(Annealing(**{**given, "num_temperatures": counts[1][0]}))


def _steps(
    target: Target,
    names: Sequence[str],
    own: Mapping[str, Mapping[str, Any]],
    counts: tuple[list[int], list[int]],
    reference: xr.DataTree | Tensor | None,
    seed: int,
) -> list[Step]:
    """What is to be run, each with a name: estimators that share draws or a plan are one step."""
    draws, temperatures = counts
    shared = [name for name in names if name in evidence.ESTIMATORS and not own[name]]
    both = ENDS if set(ENDS) <= set(names) and own[ENDS[0]] == own[ENDS[1]] else ()
    steps: list[Step] = []
    if shared:
        steps.append(("draws of the guide", partial(_from_shared_draws, target, shared, draws, seed)))
    for count in temperatures if both else ():
        options = {**own[ENDS[0]], "num_temperatures": count}
        run = partial(_both_ends, target, options, reference, seed)
        steps.append((f"annealing, {count} temperatures", run))
    for name in names:
        if name in shared or name in both:
            continue
        given = {**own[name], **({"reference": reference} if evidence.needs_reference(name) else {})}
        for budget in _own_budgets(name, draws, temperatures):
            steps.append((name, partial(_alone, target, name, {**budget, **given}, seed)))
    return steps


def _alone(target: Target, name: str, options: Mapping[str, Any], seed: int) -> list[Evidence]:
    return [evidence.log_evidence(target, name, seed=seed, **options)]


def _both_ends(
    target: Target, options: Mapping[str, Any], reference: xr.DataTree | Tensor | None, seed: int
) -> list[Evidence]:
    return list(evidence.from_both_ends(target, reference, Annealing(**options), seed=seed))


def _own_budgets(name: str, draws: list[int], temperatures: list[int]) -> list[dict[str, int]]:
    if name in evidence.ESTIMATORS:
        return [{"num_samples": count} for count in draws]
    return [{"num_temperatures": count} for count in temperatures] if name in ENDS else [{}]


def _from_shared_draws(target: Target, names: Sequence[str], counts: list[int], seed: int) -> list[Evidence]:
    start = time.perf_counter()
    log_w = evidence.draw_log_weights(target, counts[-1], seed=seed)
    seconds = time.perf_counter() - start
    return [
        evidence.estimate(name, log_w[:count], seconds=seconds * count / counts[-1])
        for name in names
        for count in counts
    ]


def _groups(
    found: Sequence[Evidence], tolerance: float, reference: xr.DataTree | Tensor | None
) -> dict[str, xr.Dataset]:
    groups = {"evidence": results.evidence_group(found)}
    sandwich = sandwich_group(found, tolerance)
    if sandwich is not None:
        groups = {"evidence": with_bias(groups["evidence"], sandwich), "sandwich": sandwich}
    if isinstance(reference, xr.DataTree) and "diagnostics" in reference.children:
        groups["diagnostics"] = reference["diagnostics"].to_dataset()
    return groups
