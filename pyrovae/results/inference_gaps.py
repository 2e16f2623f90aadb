"""What the ELBO loses to the guide's family and to amortization: rows of numbers, and sentences with what to change."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool

from pyrovae.results.rows import NATS, Row, average, count_data, data_have, measured, number, with_error
from pyrovae.results.sandwich import half_gap
from pyrovae.results.significance import SURE, WORTH, is_above_zero, is_worth

__all__ = [
    "GapParts",
    "full_gain",
    "gap_cause",
    "gap_parts",
    "inference_gap_rows",
    "inference_gap_sentences",
    "sandwich_margin",
    "trusted",
]

_FEW: Final = 20  # data, below which a worst tenth says nothing
_NAMES: Final = {
    "inference_gap": "inference gap, log p(x) - ELBO",
    "approximation_gap": "approximation gap, of the {family} family",
    "predicted_approximation_gap": "approximation gap by the curvature at the mode",
    "amortization_gap": "amortization gap, of one network for all data",
    "full_over_diagonal": "best full over best diagonal Gaussian",
    "guide_below_full": "guide below the best full Gaussian",
}
_OF_TRUTH: Final = ("inference_gap", "approximation_gap")
_WANTED: Final = (
    "log_evidence",
    "elbo",
    "elbo_diagonal",
    "elbo_full",
    "amortization_gap",
    "verdict",
    "reason",
)


class GapParts(NamedTuple):
    """log p(x) - ELBO on average over the data that have a verdict, its two parts, and their paired difference."""

    whole: Row
    approximation: Row
    amortization: Row
    difference: Row


def inference_gap_rows(tree: xr.DataTree) -> Iterator[Row]:
    """The gaps of `gaps`, each the mean over the data that can be trusted, so that they add up.

    Where the guide is of another family than diagonal or full Gaussians, only the whole gap, and the guide against the
    best full Gaussian. Direction: what a fit misses makes an approximation gap too large, an amortization gap too
    small. The place of log p(x) between the ends of a sandwich, which is no chance, is in the error of its differences.

    Examples:
        >>> list(inference_gap_rows(xr.DataTree()))
        []
    """
    gaps = measured(tree, "gaps", *_WANTED)
    if gaps is None:
        return
    family, kept = str(gaps.attrs.get("family", "")), trusted(gaps)
    for name, (values, errors) in _columns(gaps).items():
        value, error, count = average(np.where(kept, values, np.nan), errors)
        if count == 0 and not np.isfinite(values).any():
            continue
        if name in _OF_TRUTH:
            error = math.hypot(error, sandwich_margin(tree, kept))
        quantity = _NAMES[name].format(family=family)
        yield Row(
            name, quantity, value, error, NATS, _direction(tree, name), count, gaps.sizes["datum"] - count
        )


def trusted(gaps: xr.Dataset) -> Bool[np.ndarray, " n"]:
    """The data whose verdict is "ok"; for a guide of another family, those whose log p(x) is known.

    Examples:
        >>> words = {"verdict": ("datum", ["ok", "not optimized"]), "log_evidence": ("datum", [-3.0, -4.0])}
        >>> trusted(xr.Dataset(words, attrs={"family": "full"}))
        array([ True, False])
    """
    if gaps.attrs.get("family") == "other":
        return np.isfinite(gaps["log_evidence"].values)
    return np.asarray(gaps["verdict"].values == "ok")


def gap_parts(tree: xr.DataTree) -> GapParts | None:
    """The whole gap, the approximation and the amortization gap, and the second minus the third, paired by datum.

    None where they were not measured, or for no datum that can be trusted.
    """
    names = ("inference_gap", "approximation_gap", "amortization_gap")
    rows = {row.subject: row for row in inference_gap_rows(tree)}
    if not set(names) <= set(rows) or any(math.isnan(rows[name].std_error) for name in names):
        return None
    whole, approximation, amortization = (rows[name] for name in names)
    return GapParts(whole, approximation, amortization, _paired(tree, *names[1:]))


def gap_cause(parts: GapParts) -> str:
    """The larger part, "family" or "amortization", where it is surely larger, and surely above 0.1 nats.

    "either" where it cannot be told which is larger, "" where nothing is surely above 0.1 nats, the whole neither.
    """
    whole, approximation, amortization, difference = parts
    if is_worth(approximation) and difference.value > SURE * difference.std_error:
        return "family"
    if is_worth(amortization) and -difference.value > SURE * difference.std_error:
        return "amortization"
    return "either" if any(map(is_worth, (whole, approximation, amortization))) else ""


def full_gain(tree: xr.DataTree) -> Row | None:
    """What the best full Gaussian gains over the best diagonal one, where a diagonal guide would surely win by it."""
    gain = {row.subject: row for row in inference_gap_rows(tree)}.get("full_over_diagonal")
    is_diagonal = gain is not None and tree["gaps"].attrs.get("family") == "diagonal"
    return gain if gain is not None and is_diagonal and is_worth(gain) else None


def _paired(tree: xr.DataTree, one: str, other: str) -> Row:
    """The mean of a difference over the data that can be trusted; log p(x), which is in the first, may be a middle."""
    gaps = tree["gaps"].to_dataset()
    kept = trusted(gaps)
    values, errors = _difference(gaps, one, other)
    value, error, count = average(np.where(kept, values, np.nan), errors)
    error = math.hypot(error, sandwich_margin(tree, kept))
    return Row(f"{one} - {other}", "", value, error, NATS, "none", count, kept.size - count)


def inference_gap_sentences(tree: xr.DataTree) -> Iterator[str]:
    """How many nats the bound loses, to which cause, for how many data nothing can be said, and what to change.

    A difference is called one from 3 standard errors on; a change is named only for what is surely above 0.1 nats.

    Examples:
        >>> list(inference_gap_sentences(xr.DataTree()))
        []
    """
    gaps = measured(tree, "gaps", *_WANTED)
    if gaps is None:
        return
    rows = {row.subject: row for row in inference_gap_rows(tree)}
    kept = trusted(gaps)
    if not kept.any():
        yield f"No verdict on the gaps of the guide{_refusals(gaps, kept)}."
    elif gaps.attrs.get("family") == "other":
        yield from _say_other(gaps, rows, kept)
    else:
        yield from _say_split(gaps, rows, kept)
        yield from _say_cure(tree, rows["inference_gap"], kept)


def _columns(gaps: xr.Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and standard errors of everything in `_NAMES` that was measured."""
    found = {}
    for name in _NAMES:
        if name in gaps:
            errors = gaps[f"{name}_std_error"] if f"{name}_std_error" in gaps else xr.zeros_like(gaps[name])
            found[name] = gaps[name].values, errors.values
    found["full_over_diagonal"] = _difference(gaps, "elbo_full", "elbo_diagonal")
    if gaps.attrs.get("family") == "other":
        found["guide_below_full"] = _difference(gaps, "elbo_full", "elbo")
    return found


def _difference(gaps: xr.Dataset, one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    error = np.hypot(gaps[f"{one}_std_error"].values, gaps[f"{other}_std_error"].values)
    return gaps[one].values - gaps[other].values, error


def sandwich_margin(tree: xr.DataTree, kept: Bool[np.ndarray, " n"]) -> float:
    """How far log p(x) may lie from the middle of its sandwich, which is no chance, on average over `kept` data.

    The sandwiches may be of more data than the gaps.
    """
    sandwich = measured(tree, "sandwich", "source")
    if sandwich is None or not kept.any():
        return 0.0
    own = sandwich.sel(datum=tree["gaps"].to_dataset()["datum"].values[kept])
    return float(half_gap(own).mean())


def _direction(tree: xr.DataTree, name: str) -> str:
    sandwich = measured(tree, "sandwich", "source")
    is_exact = sandwich is not None and set(sandwich["source"].values.tolist()) <= {"exact", "quadrature"}
    sides = {"amortization_gap": "lower", "approximation_gap": "upper" if is_exact else "none"}
    return sides.get(name, "exact" if name == "inference_gap" and is_exact else "none")


def _say_split(gaps: xr.Dataset, rows: dict[str, Row], kept: Bool[np.ndarray, " n"]) -> Iterator[str]:
    total, near, far = (rows[name] for name in ("inference_gap", "approximation_gap", "amortization_gap"))
    family = gaps.attrs["family"]
    yield (
        f"The ELBO lies {number(total)} nats per datum below log p(x) on average over "
        f"{count_data(total.num_data, kept.size)}: {number(near)} are lost to the {family} Gaussian family, "
        f"{number(far)} to amortization{_refusals(gaps, kept)}."
    )
    if "predicted_approximation_gap" in rows and family == "diagonal":
        predicted = rows["predicted_approximation_gap"]
        yield f"The curvature at the mode alone predicts {_few_digits(predicted.value)} nats for the family."


def _say_cure(tree: xr.DataTree, total: Row, kept: Bool[np.ndarray, " n"]) -> Iterator[str]:
    parts = gap_parts(tree)
    if parts is None or math.isnan(total.std_error):
        yield "No verdict on the cause: the gaps have no error bar."
    elif not is_above_zero(total):
        yield "No gap was found that is above its error: there is nothing to change."
    else:
        yield {
            "": f"That is not surely above {WORTH} nats, below which no change is advised.",
            "either": "Which part is the larger cannot be told from these data.",
            "family": _cure_family(tree, parts.approximation),
            "amortization": _cure_amortization(tree["gaps"].to_dataset(), parts.amortization, kept),
        }[gap_cause(parts)]


def _cure_amortization(gaps: xr.Dataset, far: Row, kept: Bool[np.ndarray, " n"]) -> str:
    # A gap below zero is noise, and no share of what is lost.
    values = np.fmax(np.sort(gaps["amortization_gap"].values[kept]), 0.0)
    tenth = max(1, round(values.size / 10))
    share = ""
    if values.size >= _FEW and values.sum() > 0:
        share = f", {100 * values[-tenth:].sum() / values.sum():.0f} % of it by the worst tenth of the data"
    return (
        f"Most is lost to amortization{share}: a larger encoder, one trained longer or on more "
        f"data, or a few steps of optimization per datum from its output could win up to {far.value:.2g} nats; a "
        "richer family could not."
    )


def _cure_family(tree: xr.DataTree, near: Row) -> str:
    start = f"Most is lost to the family: a larger encoder could not win these {near.value:.2g} nats"
    gain = full_gain(tree)
    if gain is None:
        return f"{start}; a flow or a mixture could."
    if is_worth(_paired(tree, "log_evidence", "elbo_full")):
        won = f"a full-covariance guide could win up to {gain.value:.2g} of them"
        return f"{start}; {won}, a flow or a mixture the rest."
    return f"{start}; a full-covariance guide could."


def _say_other(gaps: xr.Dataset, rows: dict[str, Row], kept: Bool[np.ndarray, " n"]) -> Iterator[str]:
    total, below = rows["inference_gap"], rows["guide_below_full"]
    why = str(gaps.attrs.get("family_reason", "")) or "it is of another family"
    yield (
        f"The ELBO lies {number(total)} nats per datum below log p(x) on average over "
        f"{count_data(total.num_data, kept.size)}; no verdict on how much of it is lost to amortization, because the "
        f"best guide of its family was not sought ({why})."
    )
    if not abs(below.value) > SURE * below.std_error:
        yield "No difference was found between the guide and the best full Gaussian for each datum alone."
        return
    side = "below" if below.value > 0 else "above"
    size = number(below._replace(value=abs(below.value)))
    cure = "; a full Gaussian optimized for each datum would do better" if is_worth(below) else ""
    yield f"The guide lies {size} nats {side} the best full Gaussian for each datum alone{cure}."


def _few_digits(value: float) -> str:
    """Three digits, without those that rounding made.

    Examples:
        >>> _few_digits(1.8836), _few_digits(-1e-16)
        ('1.88', '0')
    """
    return f"{value:.3g}" if abs(value) > 1e-6 else "0"


def _refusals(gaps: xr.Dataset, kept: Bool[np.ndarray, " n"]) -> str:
    """A clause on the data that are left out, with the reasons, most frequent first."""
    if kept.all():
        return ""
    verdict, reason = gaps["verdict"].values[~kept], gaps["reason"].values[~kept]
    told = ", ".join(f"{why}: {count}" for why, count in Counter(map(str, reason)).most_common(3))
    missed, refused = int((verdict == "not optimized").sum()), int((verdict == "no verdict").sum())
    clauses = [f"{data_have(refused)} no verdict"] if refused else []
    clauses += [f"{missed} were not optimized"] if missed else []
    return f"; {' and '.join(clauses)} ({told}){_at_least(gaps, ~kept & (gaps['verdict'].values == 'no verdict'))}"


def _at_least(gaps: xr.Dataset, refused: Bool[np.ndarray, " n"]) -> str:
    """A clause on what the guide loses for sure where log p(x) is not known."""
    values, errors = _difference(gaps, "elbo_full", "elbo")
    value, error, count = average(np.where(refused, values, np.nan), errors)
    return (
        f", where the best full Gaussian lies {with_error(value, error)} nats above the guide"
        if count
        else ""
    )
