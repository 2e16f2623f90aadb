"""One sentence on how good the inference is: the shape of the guide, the gap below log p(x), and what makes it."""

import math
from typing import Final

import xarray as xr

from pyrovae.results.calibration import calibration_clause
from pyrovae.results.guide_faults import correlation_rows, guide_faults, refusal_reasons
from pyrovae.results.inference_gaps import gap_cause, gap_parts, inference_gap_rows
from pyrovae.results.rows import Row, count_data, listed, measured, number
from pyrovae.results.sandwich import truth_name
from pyrovae.results.schema import check
from pyrovae.results.significance import is_above_zero
from pyrovae.results.summary import comparison_row, gap_rows

__all__ = ["best_gap", "headline", "is_of_few"]

_WHOLE: Final = "inference_gap"  # the row of `gaps`, whose parts are told beside it
_ORDER: Final = ("exact", "lower", "none", "upper")  # which gap is told where there are several
_BOUND: Final = {"lower": "at least ", "upper": "at most ", "none": "about ", "exact": ""}


def headline(tree: xr.DataTree) -> str:
    """The best-supported statement of how good the inference is, in one sentence.

    An error of the guide is called one from 3 standard errors on; the gap is that of `gaps` where it was measured, else
    by the truth about log p(x), else by a lower bound. Data without verdict are left out of everything that needs one;
    where they are most of the data, the sentence starts with them, and ends with what was found on simulated data.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> headline(xr.DataTree())
        'How good the inference is was not measured.'
    """
    check(tree)
    width = comparison_row(tree, "sd_ratio")
    simulated = calibration_clause(tree) if width is None or is_of_few(tree, width) else ""
    clauses = [clause for clause in (_shape(tree, width), _gap(tree), simulated) if clause]
    if not clauses:
        return "How good the inference is was not measured."
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _shape(tree: xr.DataTree, width: Row | None) -> str:
    """On the guide against the reference posterior."""
    faults = guide_faults(tree)
    if width is None or faults is None:
        return ""
    total = width.num_data + width.num_refused
    refused = f"no verdict on the shape of the guide for {count_data(width.num_refused, total)}{refusal_reasons(tree)}"
    if width.num_data == 0:
        return refused
    if math.isnan(width.std_error):
        return "no verdict on the shape of the guide, because its comparison has no error bar"
    found = (
        f"the guide is {listed(faults)}"
        if faults
        else f"no error in {_compared(tree)} of the guide was found"
    )
    if is_of_few(tree, width):
        return f"{refused}; for the other {width.num_data}, {found}"
    return (
        f"{found}, for the {count_data(width.num_data, total)} with a verdict" if width.num_refused else found
    )


def _compared(tree: xr.DataTree) -> str:
    return (
        "the widths or the means" if correlation_rows(tree) is None else "the widths, correlations or means"
    )


def is_of_few(tree: xr.DataTree, row: Row) -> bool:
    """Whether a row of the comparison, of `gaps` or of the evidence leaves out, or doubts, half of the data or more.

    Examples:
        >>> is_of_few(xr.DataTree(), Row("sd_ratio", "", 0.5, 0.1, "ratio", "none", 1, 2))
        True
    """
    return 2 * row.num_refused >= _total(tree, row)


def _total(tree: xr.DataTree, row: Row) -> int:
    """Estimates that are doubted are in their mean; what is refused is in no mean."""
    evidence = measured(tree, "evidence", "value")
    whole = row.num_data + row.num_refused
    return whole if evidence is None else min(whole, evidence.sizes["datum"])


def best_gap(tree: xr.DataTree) -> Row | None:
    """log p(x) - ELBO by what tells most: that of `gaps`, else by the truth, else by a lower bound.

    What leaves out or doubts most of the data comes after what does not.
    """
    whole = [row for row in inference_gap_rows(tree) if row.subject == _WHOLE]
    rows = [row for row in (*whole, *gap_rows(tree)) if not math.isnan(row.value)]
    truth = measured(tree, "sandwich", "truth", "source")
    sources = (_WHOLE, "" if truth is None else truth_name(truth))

    def rank(row: Row) -> tuple[bool, bool, int, int, int]:
        place = sources.index(row.subject) if row.subject in sources else len(sources)
        few = is_of_few(tree, row)
        return math.isnan(row.std_error), few, place, _ORDER.index(row.direction), row.num_refused

    return min(rows, key=rank, default=None)


def _gap(tree: xr.DataTree) -> str:
    row = best_gap(tree)
    if row is None:
        return ""
    if math.isnan(row.std_error):
        return "no verdict on the gap between the ELBO and log p(x), because no error bar can be trusted"
    doubt, told = _doubt(tree, row) if row.num_refused else "", f"{number(row)} nats per datum"
    if is_above_zero(row) or row.direction == "upper":
        cause = _cause(tree) if row.subject == _WHOLE else ""
        return f"the ELBO lies {_BOUND[row.direction]}{told} below log p(x){doubt}{cause}"
    return f"no gap between the ELBO and log p(x) was found: {told}{doubt}"


def _doubt(tree: xr.DataTree, row: Row) -> str:
    truth, total = measured(tree, "sandwich", "truth", "source"), _total(tree, row)
    if row.subject == _WHOLE:
        return f" (over the {count_data(row.num_data, total)} with a verdict)"
    if truth is not None and row.subject == truth_name(truth):
        return f" (over the {count_data(row.num_data, total)} where it is known)"
    return f" (its error bar cannot be trusted for {count_data(row.num_refused, total)})"


def _cause(tree: xr.DataTree) -> str:
    """What most of the gap is due to, if that can be told and is worth a change."""
    parts = gap_parts(tree)
    cause = "" if parts is None else gap_cause(parts)
    if parts is None or cause not in ("family", "amortization"):
        return ""
    if cause == "family":
        return f": mostly its family ({number(parts.approximation)} nats)"
    return f": mostly amortization ({number(parts.amortization)} nats)"
