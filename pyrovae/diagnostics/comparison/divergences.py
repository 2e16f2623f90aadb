"""What log-weights say of the distance of guide and posterior: KL both ways, their sum, and the tail of the weights."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from pyrovae.inference import weights
from pyrovae.results import Evidence
from pyrovae.target import Target

__all__ = ["divergences", "known_evidence", "why_missing"]

MAX_ROWS = 1 << 14  # rows (draws times data) that the model sees at once

Truth = tuple[np.ndarray, np.ndarray]
"""log p(x) `[N]` and its standard error."""


def divergences(
    target: Target,
    log_w: Float[Tensor, "k n"],
    reference: Float[np.ndarray, "c t n d"],
    truth: Truth | None,
) -> dict[str, np.ndarray]:
    """KL of guide and posterior, per datum `[N]`, with `_std_error`; NaN where it cannot be estimated.

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
    known = nothing if truth is None else truth
    found = {"khat": _numpy(weights.psis(log_w).khat)}
    pairs = {
        "kl_guide_posterior": (known, lower),
        "kl_posterior_guide": (upper, known),
        "jeffreys": (upper, lower),
    }
    for name, (above, below) in pairs.items():
        found[name] = above[0] - below[0]
        found[f"{name}_std_error"] = np.hypot(above[1], below[1])
    return found


def known_evidence(evidence: Evidence | xr.DataTree | None, target: Target) -> Truth | None:
    """log p(x) of the target's data and its error, from an `Evidence` or a tree with the group `sandwich`.

    Raises:
        ValueError: if it is of other data, or a tree without `sandwich`.
    """
    if evidence is None:
        return None
    if isinstance(evidence, Evidence):
        value, error = evidence.value, evidence.std_error
    elif "sandwich" in evidence.children and "truth" in evidence["sandwich"].data_vars:
        known = evidence["sandwich"].to_dataset()
        value, error = known["truth"].values, known["truth_std_error"].values
    else:
        raise ValueError(
            "evidence needs the group 'sandwich' with the truth about log p(x): pass what evidence_table(target) gives "
            "with 'bidirectional', 'exact' or 'quadrature' among its methods, or an Evidence of log_evidence"
        )
    if len(value) != target.num_data:
        raise ValueError(
            f"the evidence is of {len(value)} data and the target of {target.num_data}: pass that of the same data"
        )
    return value.astype(np.float64), error.astype(np.float64)


def why_missing(target: Target, truth: Truth | None) -> str:
    """Why a divergence is NaN; "" where there is nothing to say."""
    reasons = [] if target.can_score_guide else ["the guide cannot score the reference draws"]
    if truth is None:
        reasons.append("no log p(x) was given")
    elif not np.isfinite(truth[0]).all():
        reasons.append(f"log p(x) of {int((~np.isfinite(truth[0])).sum())} data is not known")
    return "; ".join(reasons)


def _upper(target: Target, reference: np.ndarray, limit: int) -> Truth:
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
