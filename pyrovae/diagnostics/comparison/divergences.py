"""What log-weights say of the distance of guide and posterior: KL both ways, their sum, and the tail of the weights."""

from typing import Final, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from pyrovae.inference import weights
from pyrovae.results import Evidence
from pyrovae.results.sandwich import truth_direction
from pyrovae.target import Target

__all__ = ["Truth", "divergences", "known_evidence", "sides", "why_missing", "with_truth"]

MAX_ROWS = 1 << 14  # rows (draws times data) that the model sees at once

_OPPOSITE: Final = {"lower": "upper", "upper": "lower"}
Mean = tuple[np.ndarray, np.ndarray]
"""A value `[N]` and its standard error."""


class Truth(NamedTuple):
    """log p(x) `[N]`, its standard error, and the side of log p(x) that it is on, as of `Evidence`."""

    value: np.ndarray
    std_error: np.ndarray
    direction: str


def divergences(
    target: Target,
    log_w: Float[Tensor, "k n"],
    reference: Float[np.ndarray, "c t n d"],
    truth: Truth | None,
) -> dict[str, np.ndarray]:
    """KL of guide and posterior, per datum `[N]`, with `_std_error`; NaN where it cannot be estimated.

    - `guide_log_weight` = E_q[log w], the ELBO, and `posterior_log_weight` = E_post[log w], by reference draws, which
      needs a guide that can score;
    - `kl_guide_posterior` = log p(x) - E_q[log w], needs log p(x);
    - `kl_posterior_guide` = E_post[log w] - log p(x), needs log p(x) and a guide that can score;
    - `jeffreys` = E_post[log w] - E_q[log w], their sum, needs only the latter;
    - `khat` of the weights of the guide's draws.

    All are without bias as far as log p(x) and the reference draws are. At most as many reference draws as there
    are draws of the guide are weighed, evenly thinned.
    """
    lower = _numpy(weights.elbo(log_w)), _numpy(weights.elbo_std_error(log_w))
    nothing = np.full(target.num_data, np.nan), np.full(target.num_data, np.nan)
    upper = _upper(target, reference, len(log_w)) if target.can_score_guide else nothing
    means = {
        "guide_log_weight": lower[0],
        "guide_log_weight_std_error": lower[1],
        "posterior_log_weight": upper[0],
        "posterior_log_weight_std_error": upper[1],
    }
    khat = {"khat": _numpy(weights.psis(log_w).khat)}
    return khat | means | _both_ways(lower, upper, nothing if truth is None else truth[:2])


def _both_ways(lower: Mean, upper: Mean, known: Mean) -> dict[str, np.ndarray]:
    """The KLs from E_q[log w], E_post[log w] and log p(x)."""
    pairs = {
        "kl_guide_posterior": (known, lower),
        "kl_posterior_guide": (upper, known),
        "jeffreys": (upper, lower),
    }
    found = {}
    for name, (above, below) in pairs.items():
        with np.errstate(invalid="ignore"):  # both may be infinite
            found[name] = above[0] - below[0]
        found[f"{name}_std_error"] = np.hypot(above[1], below[1])
    return found


def sides(truth: Truth | None) -> dict[str, str]:
    """On which side of their true values the KLs are, that follow log p(x)."""
    side = "none" if truth is None else truth.direction
    return {"kl_guide_posterior": side, "kl_posterior_guide": _OPPOSITE.get(side, side)}


def with_truth(comparison: xr.Dataset, sandwich: xr.Dataset) -> xr.Dataset:
    """The group `comparison` with both KLs by the truth about log p(x) of a group `sandwich`.

    NaN for the data whose log p(x) is not known. An estimate of log p(x) that was there before is forgotten.

    >>> values = {"guide_log_weight": [-5.0], "posterior_log_weight": [-3.0]}
    >>> values |= {f"{name}_std_error": [0.1] for name in values}
    >>> truth = {"truth": [-4.0], "truth_std_error": [0.0], "source": ["exact"]}
    >>> comparison, sandwich = (
    ...     xr.Dataset({name: ("datum", value) for name, value in group.items()}) for group in (values, truth)
    ... )
    >>> found = with_truth(comparison, sandwich)
    >>> found["kl_guide_posterior"].values, found["jeffreys"].values
    (array([1.]), array([2.]))
    """
    lower, upper = (
        (comparison[name].values, comparison[f"{name}_std_error"].values)
        for name in ("guide_log_weight", "posterior_log_weight")
    )
    known = _of_sandwich(sandwich)
    found = _both_ways(lower, upper, known[:2])
    made = comparison.assign({name: ("datum", value) for name, value in found.items()})
    for name, side in sides(known).items():
        made[name].attrs["direction"] = side
    return made.assign_attrs(reason=why_missing(not np.isnan(upper[0]).all(), known))


def known_evidence(evidence: Evidence | xr.DataTree | None, target: Target) -> Truth | None:
    """log p(x) of the target's data and its error, from an `Evidence` or a tree with the group `sandwich`.

    Raises:
        ValueError: if it is of other data, or a tree without `sandwich`.
    """
    if evidence is None:
        return None
    if isinstance(evidence, Evidence):
        known = Truth(evidence.value, evidence.std_error, evidence.direction)
    elif "sandwich" in evidence.children and "truth" in evidence["sandwich"].data_vars:
        known = _of_sandwich(evidence["sandwich"].to_dataset())
    else:
        raise ValueError(
            "evidence needs the group 'sandwich' with the truth about log p(x): pass what evidence_table(target) gives "
            "with 'bidirectional', 'exact' or 'quadrature' among its methods, or an Evidence of log_evidence"
        )
    if len(known.value) != target.num_data:
        raise ValueError(
            f"the evidence is of {len(known.value)} data and the target of {target.num_data}: pass that of the same "
            "data"
        )
    return Truth(known.value.astype(np.float64), known.std_error.astype(np.float64), known.direction)


def _of_sandwich(sandwich: xr.Dataset) -> Truth:
    return Truth(sandwich["truth"].values, sandwich["truth_std_error"].values, truth_direction(sandwich))


def why_missing(can_score_guide: bool, truth: Truth | None) -> str:
    """Why a divergence is NaN; "" where there is nothing to say."""
    reasons = [] if can_score_guide else ["the guide cannot score the reference draws"]
    if truth is None:
        reasons.append("no log p(x) was given")
    elif not np.isfinite(truth.value).all():
        reasons.append(f"log p(x) of {int((~np.isfinite(truth.value)).sum())} data is not known")
    return "; ".join(reasons)


def _upper(target: Target, reference: np.ndarray, limit: int) -> Mean:
    """The mean of log w over reference draws `[N]`, and its error by effective sample size."""
    from arviz_stats.base.array import array_stats

    num_chains, num_draws = reference.shape[:2]
    step = max(1, -(-num_chains * num_draws // limit))
    kept = reference[:, ::step]
    flat = torch.as_tensor(kept.reshape(-1, *kept.shape[2:]), dtype=target.dtype)
    pieces, first = [], 0
    for some in target.split(MAX_ROWS):
        z = flat[:, first : first + some.num_data].to(target.device)
        per_call = max(1, MAX_ROWS // some.num_data)
        pieces.append(torch.cat([some.log_joint(part) - some.log_guide(part) for part in z.split(per_call)]))
        first += some.num_data
    log_w = _numpy(torch.cat(pieces, 1)).reshape(kept.shape[:3])
    spread = log_w.std((0, 1))
    # A guide that is the posterior has constant weights, of which there is no effective sample size.
    is_constant = spread <= 1e-6 * (1 + np.abs(log_w).max((0, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = array_stats.mcse(log_w, method="mean", chain_axis=0, draw_axis=1)
    return log_w.mean((0, 1)), np.where(is_constant, spread, error)


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()
