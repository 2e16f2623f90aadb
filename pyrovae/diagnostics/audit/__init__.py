"""The whole examination of a guide in one call: calibration, weights, reference, comparison, sandwich, gaps.

`settings` says what to do, `stages` does it, `plan` cuts the data into blocks, `running` examines one, `shards`
keeps them in a folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics.audit.plan import Plan, Rows
from pyrovae.diagnostics.audit.running import Deadline, Progress, examine, of_blocks, passes
from pyrovae.diagnostics.audit.settings import STAGES, Settings, stage_options
from pyrovae.results.merging import merge
from pyrovae.target import Target

__all__ = ["STAGES", "Plan", "Settings", "audit", "plan_audit", "with_history"]


def audit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Rows,
    plate: str = "data",
    params: Mapping[str, Tensor] | None = None,
    simulate: Callable[..., Any] | None = None,
    history: Mapping[str, Any] | None = None,
    max_seconds: float | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> xr.DataTree:
    """Measure how good a guide is: on data of the model's own, and on `data` against posteriors and log p(x).

    The stages, in the order of the work, are

    - `calibration`: ranks, coverage and the simulated gap, on data that the model draws;
    - `predictions`: draws from the prior, reconstructions of the first 16 data;
    - `weights`: draws of the guide, k-hat, log p(x) by `methods`;
    - `terms`: the ELBO taken apart, as by `decompose`, log p(x) by IWAE until `sandwich` or `gaps` know it;
    - `reference`: posteriors by HMC, as by `sample_posterior`;
    - `comparison`: the guide's means and widths against the reference's, log p(x) likewise;
    - `sandwich`: log p(x) between annealing forward and backward, as by `evidence_table`;
    - `gaps`: the gap below log p(x) of the guide's family, and of amortization.

    A stage that fails is no verdict: its reason stands in the attribute `stages`, and all else is kept. The data are
    cut into blocks, each with its own seed; only one is touched at a time, and the whole is `results.merging.merge` of
    the blocks: terms of the aggregate posterior are there only if the data are one block.

    Args:
        model, guide, *data, plate, params, simulate: as for `Target`; data may also be anything with a length whose
            slices are tensors, such as a file that is read a block at a time.
        history: `{metric: one value an epoch}`, such as `fit(...).history`, kept with the results.
        max_seconds: once they are spent no stage is begun; the cheaper ones come first, for all data. None: no limit.
        progress: called with (stage, done, total).
        **settings: `stages` (all; those that one needs are run too), `methods` (`("elbo", "iwae", "psis")`, as for
            `log_evidence`), `num_samples` (1000 draws of the guide per datum), `block_size` (256), `seed` (0); and
            options of stages: `reference` (of `sample_posterior`), `sandwich` (`num_temperatures`, `tolerance` and
            those of annealing), `calibration` (of `calibrate`), `gaps` (of `inference_gaps`).

    Returns:
        DataTree with what was measured: `calibration`, `prior`, `prior_predictive`, `reconstruction`, `observed_data`,
        `guide`, `log_weights`, `evidence`, `decomposition`, `posterior`, `sample_stats`, `diagnostics`, `comparison`,
        `sandwich`, `gaps` and, if given, `history`; `prior_predictive` and `reconstruction` hold the mean of the data
        given z, E[x | z], at draws of z, without the noise of x. The attribute `stages` is JSON, `{stage: {"status":
        "ok", "failed" or "skipped", "reason": ...}}`. The same seed, block size, data, machine and versions give the
        same content.

    Raises:
        ValueError: a setting that is not, or whatever `Target` refuses.
        TypeError: a setting that there is not.

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.35).to_event(1))  # half as wide as the posterior
    >>> some = {"num_samples": 200, "warmup_steps": 50}
    >>> tree = audit(model, guide, torch.zeros(3, 2), stages=("comparison",), reference=some)
    >>> round(float(tree["comparison"]["sd_ratio"].mean()), 1)
    0.5
    """
    make = partial(Target, model, guide, plate=plate, params=params, simulate=simulate)
    plan = plan_audit(make, *data, **settings)
    deadline, blocks = Deadline(max_seconds), plan.blocks
    plan.check_data(blocks)
    trees: list[xr.DataTree | None] = [None] * len(blocks)
    for stages in passes(plan, deadline):
        for i, block in enumerate(blocks):
            tell = of_blocks(progress, blocks, i)
            trees[i] = examine(plan, block, stages, trees[i], deadline=deadline, tell=tell)
    return with_history(merge([tree for tree in trees if tree is not None]), history)


def plan_audit(make_target: Callable[..., Target], *data: Rows, **settings: Any) -> Plan:
    """The plan of an audit with the settings of `audit`.

    Raises:
        ValueError, TypeError: as `audit`.
    """
    known = [field.name for field in fields(Settings)]
    for name in settings:
        if name not in known:
            raise TypeError(_unknown(name, known))
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    for name in ("stages", "methods"):
        if isinstance(given.get(name), str):
            raise ValueError(
                f"{name} is a list of names, got the word {given[name]!r}: pass [{given[name]!r}]"
            )
    given.update({name: tuple(given[name]) for name in ("stages", "methods") if name in given})
    return Plan(make_target, data, Settings(**given))


def _unknown(name: str, known: Sequence[str]) -> str:
    """What to say of a setting that there is not, which may be an option of a stage."""
    stages = [stage for stage, options in stage_options().items() if name in options]
    hint = "".join(f"; {stage} has such an option: pass {stage}={{{name!r}: ...}}" for stage in stages)
    return f"an audit has no setting {name!r}: its settings are {', '.join(known)}{hint}"


def with_history(tree: xr.DataTree, history: Mapping[str, Any] | None) -> xr.DataTree:
    """The tree with a group `history`."""
    if not history:
        return tree
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    groups["history"] = results.group("history", dict(history))
    return results.build_tree(groups, {str(name): value for name, value in tree.attrs.items()})
