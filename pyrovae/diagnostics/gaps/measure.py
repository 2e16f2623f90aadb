"""The approximation and the amortization gap of every datum."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics.evidence import check_draws
from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.diagnostics.gaps.bounds import Bounds, Estimate, Settings, measure_bounds
from pyrovae.diagnostics.gaps.guide import FAMILIES, Guide, read_guide
from pyrovae.diagnostics.gaps.truth import Progress, find_truth
from pyrovae.diagnostics.gaps.verdict import Facts, judge
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import block_seed
from pyrovae.target import Target

__all__ = ["inference_gaps"]

Pair = tuple[np.ndarray, np.ndarray]


def inference_gaps(
    target: Target,
    family: str | None = None,
    *,
    evidence: xr.DataTree | None = None,
    num_samples: int = 1000,
    num_fitting_samples: int = 512,
    num_temperatures: int = 100,
    tolerance: float = 0.05,
    max_steps: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Split log p(x) - ELBO of every datum: what the guide's family loses, and what one network for all data loses.

    log p(x) - L[q] = (log p(x) - L[q*]) + (L[q*] - L[q]), approximation and amortization gap (Cremer, Li and Duvenaud
    2018), with L[q] the ELBO of the guide and q* the best member of the guide's family for that datum alone. Both the
    best diagonal and the best full Gaussian in unconstrained coordinates are found, for all data at once by L-BFGS on
    common draws, the full one from the diagonal one; their ELBOs and the guide's are then measured on fresh draws in
    common. What the fit misses moves from the amortization gap to the approximation gap: `shortfall` says how much that
    is likely to be.

    A guide of another family (flow, mixture, low rank) has no q* here: its `approximation_gap` and `amortization_gap`
    are NaN, and `elbo_full` tells what the best full Gaussian would reach.

    log p(x) is exact where log p(x, z) is quadratic in z, by quadrature where z has one or two dimensions and a grid is
    good to `tolerance`, else the middle of a closed sandwich of annealing in both directions.

    Args:
        target: the model, guide and data.
        family: "diagonal" or "full", to compare the guide with; None: as the guide's distributions say. A guide of
            another family may be better than the best of the one that is given; then it has no verdict.
        evidence: a tree of `evidence_table` with group `sandwich` for the same data; None: made here.
        num_samples: fresh draws for each ELBO, at least 2.
        num_fitting_samples: draws that Gaussians are fitted to, even, at least 2 D + 2.
        num_temperatures: of annealing, where it is needed.
        tolerance: nats by which an optimum may be missed, above 0.
        max_steps: of each fit, at least 1.
        seed: same seed, machine and versions, same numbers.
        progress: called with (stage, done, total).

    Returns:
        DataTree with `gaps`, over `datum` and each with `_std_error`: `log_evidence`, `elbo`, `elbo_diagonal`,
        `elbo_full`, `approximation_gap`, `amortization_gap`, `inference_gap` (their sum), `shortfall_diagonal`,
        `shortfall_full`; `predicted_approximation_gap`, the same from the curvature at the mode, without sampling
        (exact for a linear-Gaussian decoder, 0 for the full family); `verdict` and `reason`. A datum is "ok",
        "not optimized" (an optimum was missed, so that the gaps are of something else), or has "no verdict" (no
        log p(x), or another family). The attribute `family` is "diagonal", "full" or "other". Beside it `sandwich`, and
        what else the evidence has.

    Raises:
        ValueError: an unknown family, numbers out of range, evidence of other data, densities that are not finite.

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))  # the posterior has sd 0.7071
    >>> gaps = inference_gaps(Target(model, guide, torch.ones(3, 2)))["gaps"]
    >>> bool((gaps["approximation_gap"] < 1e-4).all()), gaps["amortization_gap"].values.round(3)  # log 2 - 1/2
    (True, array([0.193, 0.193, 0.193]))
    """
    _check(family, num_samples, tolerance)
    start = time.perf_counter()
    known = find_truth(
        target,
        evidence,
        tolerance=tolerance,
        num_temperatures=num_temperatures,
        seed=block_seed(seed, 0),
        progress=progress,
    )
    seconds_truth = time.perf_counter() - start
    guide = read_guide(target, seed=block_seed(seed, 1))
    settings = Settings(num_samples, num_fitting_samples, tolerance, max_steps)
    blocks = _measure_blocks(target, guide, settings, seed, progress or (lambda stage, done, total: None))
    chosen, reason = (family, "") if family else (guide.family, guide.reason)
    attrs = {
        **settings._asdict(),
        "family": chosen,
        "family_reason": reason,
        "num_gradient_evaluations": float(torch.cat([b.num_gradient_evaluations for b in blocks]).mean()),
        "seconds_log_evidence": seconds_truth,
        "seconds": time.perf_counter() - start,
    }
    is_member = guide.family == chosen or (guide.family, chosen) == ("diagonal", "full")
    made = _group(_joined(blocks), is_member, known["sandwich"].to_dataset(), attrs)
    groups = {
        name: known[name].to_dataset() for name in ("evidence", "sandwich", "diagnostics") if name in known
    }
    about = {
        "seed": seed,
        "num_data": target.num_data,
        "latent_dim": target.dim,
        "device": str(target.device),
    }
    return results.build_tree({**groups, "gaps": made}, about)


def _check(family: str | None, num_samples: int, tolerance: float) -> None:
    check_draws(num_samples)
    if family not in (None, *FAMILIES[:2]):
        raise ValueError(
            f"family must be one of {', '.join(FAMILIES[:2])}, or None to follow the guide, got {family!r}"
        )
    if not tolerance > 0:
        raise ValueError(f"tolerance is in nats, above 0, but is {tolerance}")


def _measure_blocks(
    target: Target, guide: Guide, settings: Settings, seed: int, tell: Progress
) -> list[Bounds]:
    """The best Gaussians and the ELBOs of all data, as many at a time as memory allows."""
    blocks, first = [], 0
    parts = target.split(max(1, MAX_ROWS // settings.num_fitting_samples))
    for i, some in enumerate(parts):
        tell("best Gaussians", i, len(parts))
        own = _rows(guide, slice(first, first + some.num_data))
        first += some.num_data
        blocks.append(measure_bounds(some, own, settings, seed=block_seed(seed, 2, i)))
    tell("", len(parts), len(parts))
    return blocks


def _rows(guide: Guide, rows: slice) -> Guide:
    if guide.gaussian is None:
        return guide
    return guide._replace(gaussian=Gaussian(*(field[rows] for field in guide.gaussian)))


def _joined(blocks: Sequence[Bounds]) -> dict[str, Pair]:
    """Every pair of value and standard error over all data, by a name for each."""
    found: dict[str, list[Estimate]] = {}
    for block in blocks:
        named = {f"elbo_{name}": each for name, each in block.elbo.items()}
        named |= {f"above_guide_{name}": each for name, each in block.above_guide.items()}
        named |= {f"shortfall_{name}": each for name, each in block.shortfall.items()}
        named["above_diagonal"] = block.above_diagonal
        named["hadamard"] = Estimate(block.hadamard, torch.zeros_like(block.hadamard))
        named["has_converged"] = Estimate(block.has_converged.double(), block.has_converged.double())
        for name, each in named.items():
            found.setdefault(name, []).append(each)
    return {name: (_joined_array(e, 0), _joined_array(e, 1)) for name, e in found.items()}


def _joined_array(estimates: Sequence[Estimate], field: int) -> np.ndarray:
    parts: list[Tensor] = [estimate[field] for estimate in estimates]
    return torch.cat(parts).double().cpu().numpy()


def _group(
    found: Mapping[str, Pair], is_member: bool, sandwich: xr.Dataset, attrs: Mapping[str, Any]
) -> xr.Dataset:
    family, reason = str(attrs["family"]), str(attrs["family_reason"])
    truth = sandwich["truth"].values, sandwich["truth_std_error"].values
    nothing = (np.full_like(truth[0], np.nan),) * 2
    is_own = family != "other"
    best = found[f"elbo_{family}"] if is_own else nothing
    above_guide = found[f"above_guide_{family}"] if is_own else nothing
    pairs = {
        "log_evidence": truth,
        "elbo": found["elbo_guide"],
        "elbo_diagonal": found["elbo_diagonal"],
        "elbo_full": found["elbo_full"],
        "approximation_gap": _minus(truth, best),
        "amortization_gap": above_guide,
        "inference_gap": _minus(truth, found["elbo_guide"]),
        "shortfall_diagonal": found["shortfall_diagonal"],
        "shortfall_full": found["shortfall_full"],
    }
    facts = Facts(
        truth,
        found["elbo_full"],
        found["above_diagonal"],
        above_guide,
        found[f"shortfall_{family if is_own else 'full'}"],
        is_member,
        found["has_converged"][0] > 0,
        sandwich["verdict"].values if "verdict" in sandwich else np.full(truth[0].shape, ""),
    )
    verdict, why = judge(facts, reason, float(attrs["tolerance"]))
    predicted = {"diagonal": found["hadamard"][0], "full": np.zeros_like(truth[0])}.get(family, nothing[0])
    variables = {name: value for name, (value, _) in pairs.items()}
    variables |= {f"{name}_std_error": error for name, (_, error) in pairs.items()}
    variables |= {"predicted_approximation_gap": predicted, "verdict": verdict, "reason": why}
    columns = {name: (("datum",), values) for name, values in variables.items()}
    return results.group("gaps", columns, attrs, datum=sandwich["datum"].values)


def _minus(one: Pair, other: Pair) -> Pair:
    return one[0] - other[0], np.hypot(one[1], other[1])
