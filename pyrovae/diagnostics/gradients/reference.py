"""The gradient of log p(x) by Fisher's identity: the mean of that of log p(x, z) over draws of the posterior."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from pyrovae.diagnostics.gradients.moments import Moments, moments_of_rows
from pyrovae.diagnostics.gradients.parameters import Part, Problem
from pyrovae.diagnostics.gradients.replicates import flat_gradient
from pyrovae.diagnostics.reference import METHODS, sample_posterior
from pyrovae.target import Target
from pyrovae.training.objectives.densities import Call
from pyrovae.training.objectives.handlers import DataPlate

__all__ = ["MAX_REFUSED", "Reference", "check_reference", "find_reference"]

MAX_REFUSED = 0.1
"""Share of data without a verdict above which the mean over the data is not trusted."""
MAX_ROWS = 1 << 14  # draws times data whose density is evaluated at once
NUM_CHAINS, NUM_SAMPLES = 20, 500  # of exact draws: as many groups as the jackknife has elsewhere


class Reference(NamedTuple):
    """Gradients of log p(x), for what the model uses, and of E_posterior[log q(z | x)], for what only the guide uses.

    Both are per datum; `moments` has one group a chain, since chains are independent.
    """

    name: str
    """"exact", "hmc" or another method's, "given", or "none"."""
    reason: str
    """Why there is none, or what is to be known about it."""
    moments: Moments | None
    num_refused: int
    """Data without a verdict."""
    has_guide: bool
    """Whether the guide can score the draws, as the gradient of log q wants."""


def check_reference(reference: str | xr.DataTree) -> None:
    """Raise ValueError for a name that is none."""
    if isinstance(reference, str) and reference not in ("auto", "none", *METHODS):
        raise ValueError(
            f"reference must be auto, none, one of {', '.join(METHODS)}, or a tree of sample_posterior, got "
            f"{reference!r}"
        )


def find_reference(
    problem: Problem,
    reference: str | xr.DataTree,
    parts: list[Part],
    params: Mapping[str, Tensor],
    seed: int,
) -> Reference:
    """Draw from the posteriors, or take the draws that are given, and average the gradients chain by chain.

    Raises:
        ValueError: a reference that was asked for by name or given, and cannot be had; under "auto" its `reason`.
    """
    if isinstance(reference, str) and reference == "none":
        return _none("not asked for")
    try:
        target = Target(problem.model, problem.guide, *problem.data, plate=problem.plate, params=params)
        name, tree = _draws(target, reference, seed)
        rows, has_guide = _gradients(problem, target, tree)
    except (ValueError, NotImplementedError) as error:
        if not (isinstance(reference, str) and reference == "auto"):
            raise
        return _none(f"no draws of the posterior: {error}")
    verdict = tree["diagnostics"]["verdict"].values if "diagnostics" in tree.children else np.array(["ok"])
    num_refused = int(np.count_nonzero(verdict != "ok"))
    if num_refused > MAX_REFUSED * problem.num_data:
        reason = f"{num_refused} of {problem.num_data} data have no verdict, so their mean is not trusted"
        return Reference(name, reason, None, num_refused, has_guide)
    reason = f"{num_refused} of {problem.num_data} data have no verdict" if num_refused else ""
    return Reference(name, reason, moments_of_rows(parts, rows), num_refused, has_guide)


def _none(reason: str) -> Reference:
    return Reference("none", reason, None, 0, False)


def _draws(target: Target, reference: str | xr.DataTree, seed: int) -> tuple[str, xr.DataTree]:
    if not isinstance(reference, str):
        return "given", _checked(target, reference)
    if reference != "auto":
        options: dict[str, Any] = (
            {"num_chains": NUM_CHAINS, "num_samples": NUM_SAMPLES} if reference == "exact" else {}
        )
        return reference, sample_posterior(target, reference, seed=seed, **options)
    try:
        return _draws(target, "exact", seed)
    except ValueError:  # the posterior is not Gaussian
        return _draws(target, "hmc", seed)


def _checked(target: Target, tree: xr.DataTree) -> xr.DataTree:
    if "posterior" not in tree.children:
        raise ValueError("the reference has no group 'posterior': give a tree of sample_posterior")
    sizes = tree["posterior"]["z"].sizes
    if (sizes["datum"], sizes["latent"]) != (target.num_data, target.dim):
        raise ValueError(
            f"the reference is of {sizes['datum']} data with {sizes['latent']} coordinates, but there are "
            f"{target.num_data} with {target.dim}: draw it for the same data"
        )
    if sizes["chain"] < 2:
        raise ValueError("the reference has 1 chain: two or more are wanted, whose spread is its error")
    return tree


def _gradients(problem: Problem, target: Target, tree: xr.DataTree) -> tuple[Float[Tensor, "c p"], bool]:
    """The mean gradient of each chain, and whether the guide could score its draws."""
    z = torch.as_tensor(tree["posterior"]["z"].values, dtype=target.dtype, device=target.device)
    axes = _call(problem, 1).score(problem.guide, "guide").axes
    can_score = target.can_score_guide
    step = max(1, MAX_ROWS // problem.num_data)
    rows = []
    for chain in z:
        total: Any = 0.0
        for draws in chain.split(step):
            values = _placed(target.constrain(draws), axes)
            total = total + _one(problem, values, len(draws), can_score).double()
        rows.append(total / (len(chain) * problem.num_data))
    return torch.stack(rows), can_score


def _one(problem: Problem, values: Mapping[str, Tensor], count: int, can_score: bool) -> Float[Tensor, " p"]:
    """Summed over draws and data: the model's gradient, and the guide's for what only the guide uses."""
    call = _call(problem, count)
    in_model = flat_gradient(problem, call.score(problem.model, "model", values).log_prob.sum())
    in_guide = in_model
    if can_score:
        in_guide = flat_gradient(problem, call.score(problem.guide, "guide", values).log_prob.sum())
    pieces = [
        (guide if parameter.kind == "encoder" else model).flatten()
        for parameter, model, guide in zip(problem.parameters, in_model, in_guide, strict=True)
    ]
    return torch.cat(pieces)


def _call(problem: Problem, count: int) -> Call:
    data = tuple(x.repeat(count, *[1] * (x.dim() - 1)) for x in problem.data)
    return Call(DataPlate(problem.plate, len(data[0]), count, data[0].device), data, {})


def _placed(values: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
    """From `[K, N, *event]` of each site to the layout that the model has for K*N rows."""
    return {name: value.flatten(0, 1).movedim(0, axes[name]) for name, value in values.items()}
