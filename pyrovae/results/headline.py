"""One sentence on how good the inference is: the shape of the guide, the gap below log p(x), and what makes it."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import xarray as xr

from pyrovae.results.inference_gaps import inference_gap_rows, sandwich_margin, trusted
from pyrovae.results.rows import NATS, Row, average, measured, number
from pyrovae.results.sandwich import truth_name
from pyrovae.results.schema import check
from pyrovae.results.summary import comparison_row, gap_rows, with_verdict

__all__ = ["GapParts", "best_gap", "gap_parts", "guide_faults", "headline"]

_SURE: Final = 3.0  # standard errors from which a difference is called one
_ORDER: Final = ("exact", "lower", "none", "upper")  # which gap is told where there are several
_BOUND: Final = {"lower": "at least ", "upper": "at most ", "none": "about ", "exact": ""}


class GapParts(NamedTuple):
    """The two parts of log p(x) - ELBO on average over the data that have a verdict, and their paired difference."""

    approximation: Row
    amortization: Row
    difference: Row


def headline(tree: xr.DataTree) -> str:
    """The best-supported statement of how good the inference is, in one sentence.

    An error of the guide is called one from 3 standard errors on; the gap is by the truth about log p(x) where that is
    known, else by a lower bound. Data without verdict are left out of everything that needs one.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> headline(xr.DataTree())
        'How good the inference is was not measured.'
    """
    check(tree)
    clauses = [clause for clause in (_shape(tree), _gap(tree)) if clause]
    if not clauses:
        return "How good the inference is was not measured."
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _shape(tree: xr.DataTree) -> str:
    """On widths and means of the guide against the reference posterior."""
    width = comparison_row(tree, "sd_ratio")
    faults = guide_faults(tree)
    if width is None or faults is None:
        return ""
    total = width.num_data + width.num_refused
    if math.isnan(width.std_error):
        return f"no verdict on the shape of the guide, which can be compared for {width.num_data} of {total} data"
    over = f", for the {width.num_data} of {total} data with a verdict" if width.num_refused else ""
    if not faults:
        return f"no error in the average width or the means of the guide was found{over}"
    return f"the guide is {' and '.join(faults)}{over}"


def guide_faults(tree: xr.DataTree) -> list[str] | None:
    """What is wrong with the guide's average width and means, in words; None where that was not measured.

    [] too where no datum has a verdict: look at `comparison_row` for that.
    """
    width, location = (comparison_row(tree, name) for name in ("sd_ratio", "mean_error"))
    if width is None or location is None:
        return None
    faults = []
    if abs(width.value - 1) > _SURE * width.std_error:
        word = "narrow" if width.value < 1 else "wide"
        faults.append(f"too {word} ({number(width)} of the posterior's standard deviations)")
    if _mean_error_beyond_noise(tree) > _SURE * location.std_error:
        faults.append(f"off by {number(location)} posterior standard deviations")
    return faults


def _mean_error_beyond_noise(tree: xr.DataTree) -> float:
    """The absolute error of the guide's means above what Monte Carlo error alone would give; NaN without verdicts."""
    comparison = measured(tree, "comparison", "mean_error", "mean_error_std_error")
    if comparison is None:
        return math.nan
    ok = with_verdict(tree, comparison.sizes["datum"])
    # E|e| of a normal error is sqrt(2 / pi) of its standard deviation.
    noise = math.sqrt(2 / math.pi) * comparison["mean_error_std_error"].values[ok]
    beyond = np.abs(comparison["mean_error"].values[ok]) - noise
    return float(np.nanmean(beyond)) if np.isfinite(beyond).any() else math.nan


def best_gap(tree: xr.DataTree) -> Row | None:
    """log p(x) - ELBO by what tells most: the truth, else a lower bound, else what has fewest data in doubt."""
    rows = [row for row in gap_rows(tree) if not math.isnan(row.value)]
    truth = measured(tree, "sandwich", "truth", "source")
    name = "" if truth is None else truth_name(truth)
    ranks = {
        row: (math.isnan(row.std_error), row.subject != name, _ORDER.index(row.direction)) for row in rows
    }
    return min(rows, key=lambda row: (*ranks[row], row.num_refused), default=None)


def _gap(tree: xr.DataTree) -> str:
    row = best_gap(tree)
    if row is None:
        return ""
    if math.isnan(row.std_error):
        return "no verdict on the gap between the ELBO and log p(x), because no error bar can be trusted"
    parts = "".join(_source(tree))
    doubt, told = _doubt(tree, row) if row.num_refused else "", f"{number(row)} nats per datum"
    if row.value > _SURE * row.std_error or row.direction == "upper":
        return f"the ELBO lies {_BOUND[row.direction]}{told} below log p(x){doubt}{parts}"
    return f"no gap between the ELBO and log p(x) was found: {told}{doubt}"


def _doubt(tree: xr.DataTree, row: Row) -> str:
    truth, total = measured(tree, "sandwich", "truth", "source"), tree["evidence"].sizes["datum"]
    if truth is not None and row.subject == truth_name(truth):
        return f" (over the {row.num_data} of {total} data where it is known)"
    return f" (its error bar cannot be trusted for {row.num_refused} of {total} data)"


def _source(tree: xr.DataTree) -> Iterator[str]:
    """What most of the gap is due to, if that can be told."""
    parts = gap_parts(tree)
    if parts is None or not abs(parts.difference.value) > _SURE * parts.difference.std_error:
        return
    more = parts.approximation if parts.difference.value > 0 else parts.amortization
    cause = "its family" if parts.difference.value > 0 else "amortization"
    yield f": mostly {cause} ({number(more)} nats)"


def gap_parts(tree: xr.DataTree) -> GapParts | None:
    """The approximation and the amortization gap, and the first minus the second, paired by datum.

    None where they were not measured, or for no datum that can be trusted.
    """
    names = ("approximation_gap", "amortization_gap")
    rows = {row.subject: row for row in inference_gap_rows(tree)}
    if not set(names) <= set(rows) or any(math.isnan(rows[name].std_error) for name in names):
        return None
    gaps = tree["gaps"].to_dataset()
    kept = trusted(gaps)
    values = gaps[names[0]].values - gaps[names[1]].values
    errors = np.hypot(*(gaps[f"{name}_std_error"].values for name in names))
    value, error, count = average(values[kept], errors[kept])
    error = math.hypot(error, sandwich_margin(tree, kept))
    difference = Row("difference", "", value, error, NATS, "none", count, kept.size - count)
    return GapParts(rows[names[0]], rows[names[1]], difference)
