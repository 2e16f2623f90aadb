"""Whether the gaps of a datum are to be believed: the optima found, in their order, and log p(x) known."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Facts", "judge"]

SURE: Final = 3.0  # standard errors from which an order counts as broken
ROUNDING: Final = 1e-6  # of log p(x): what single precision may put between two that are equal


class Facts(NamedTuple):
    """What the verdict on every datum hangs on; pairs are values and their standard errors."""

    log_evidence: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    elbo_full: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    above_diagonal: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    """Of the best full Gaussian."""
    above_guide: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    """Of the best Gaussian of the guide's family; NaN where that is another family."""
    shortfall: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    """Of the same."""
    is_member: bool
    """Whether the guide is of the family that it is held against: only then can it not be above its best Gaussian."""
    has_converged: Bool[np.ndarray, " n"]
    sandwich: np.ndarray
    """What the sandwich says of each datum, or "" """


def judge(facts: Facts, family_reason: str, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """The verdict, "ok", "not optimized" or "no verdict", and the reason for every datum; the first rule that holds.

    log p(x) >= L[q_full] >= L[q_diagonal] and L[q_F] >= L[q] must hold for the true optima. An order counts as broken
    from 3 standard errors and `tolerance` nats on, a bound above log p(x) from 3 standard errors on: then the one is
    no optimum, or the other not log p(x). A guide that is held against another family than its own may be above it.
    """
    truth, truth_error = facts.log_evidence
    slack = ROUNDING * np.fmax(1.0, np.abs(np.nan_to_num(truth)))
    error = np.hypot(truth_error, facts.elbo_full[1])
    is_above = facts.elbo_full[0] - truth > SURE * error + slack
    # What is missed may be small by luck where its error is not small.
    is_short = _is_above(facts.shortfall, tolerance) | (facts.shortfall[1] > tolerance)
    is_below = _is_below(facts.above_guide, tolerance)
    rules: list[tuple[np.ndarray | bool, str, str]] = [
        (family_reason != "", "no verdict", family_reason),
        (np.isnan(truth), "no verdict", "log p(x) is not known"),
        (is_above, "no verdict", "log p(x) lies below the ELBO of a Gaussian, so it is wrong"),
        (~facts.has_converged, "not optimized", "the search for the best Gaussian did not converge"),
        (_is_below(facts.above_diagonal, tolerance), "not optimized", "a full Gaussian below a diagonal one"),
        (is_below & facts.is_member, "not optimized", "the best Gaussian below the guide"),
        (is_below, "no verdict", "the guide is above the best of the family, of which it is no member"),
        (is_short, "not optimized", "too few draws to fit the best Gaussian to"),
    ]
    size = truth.shape
    masks = [np.broadcast_to(mask, size) for mask, _, _ in rules]
    reasons = [np.full(size, reason) for _, _, reason in rules]
    reasons[1] = np.char.add(reasons[1], _of_sandwich(facts.sandwich))
    verdict = np.select(masks, [np.full(size, verdict) for _, verdict, _ in rules], "ok")
    return verdict, np.select(masks, reasons, "")


def _of_sandwich(said: np.ndarray) -> np.ndarray:
    """Why the truth is missing, where a sandwich says so."""
    known = {"did not close": ": its sandwich did not close", "no verdict": ": its sandwich has no verdict"}
    return np.select([said == word for word in known], list(known.values()), "")


def _is_below(pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> np.ndarray:
    return pair[0] < -(SURE * pair[1] + tolerance)


def _is_above(pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> np.ndarray:
    return pair[0] > SURE * pair[1] + tolerance
