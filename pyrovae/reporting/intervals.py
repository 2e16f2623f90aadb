"""Estimators of log p(x) as intervals: how far each lies above the ELBO, and on which side of it the truth is."""

from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify
from pyrovae.results.rows import NATS, Row, average, largest_budgets, methods_of, number
from pyrovae.results.sandwich import half_gap, truth_name

__all__ = ["plot_evidence_intervals"]

_BARS: Final = 2.0  # standard errors to each side
_MARKERS: Final = {"lower": ">", "upper": "<", "none": "o", "exact": "D"}
_LABELS: Final = {
    "lower": "lower bound: log p(x) is further right",
    "upper": "upper bound: log p(x) is further left",
    "none": "bias of unknown sign",
    "exact": "no bias",
}
_DOUBT: Final = "error bar not to be trusted for half of the data or more"


class _Interval(NamedTuple):
    """One method above the ELBO on average over data."""

    name: str
    value: float
    error: float
    direction: str
    is_doubtful: bool


def plot_evidence_intervals(tree: xr.DataTree) -> Figure:
    """Every estimator of log p(x) with its largest budget, on average over the data, above the ELBO of the same data.

    Differences are taken datum by datum, so that what the data have in common falls out; bars are two standard errors.
    The markers point to where log p(x) lies. A grey band is log p(x) itself over the data where it is known, above the
    ELBO of those data.

    Raises:
        ValueError: If the tree has no `evidence`, or no other method than "elbo".
    """
    evidence = require(tree, "evidence", "value")
    found = _intervals(evidence)
    figure = new_figure(8.0, 1.5 + 0.32 * len(found))
    ax = figure.subplots()
    for place, interval in enumerate(found):
        _draw(ax, place, interval)
    truth = _truth(tree, evidence)
    if truth is not None:
        margin = max(_BARS * truth.std_error, 0.0)
        ax.axvspan(truth.value - margin, truth.value + margin, color=COLORS["sky"], alpha=0.35, linewidth=0)
    ax.axvline(0, color=COLORS["grey"], linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(range(len(found)), [interval.name for interval in found])
    ax.set(xlabel="nats per datum above the ELBO (± 2 standard errors)", ylim=(len(found) - 0.4, -0.6))
    simplify(ax)
    figure.legend(
        handles=_handles(found, truth), loc="outside lower left", frameon=False, fontsize=9, ncols=2
    )
    set_title(figure, _title(found, truth, evidence))
    return figure


def _intervals(evidence: xr.Dataset) -> list[_Interval]:
    largest = largest_budgets(methods_of(evidence))
    others = [method for method in largest if method.estimator != "elbo"]
    elbo = _elbo(evidence)
    if elbo is None or not others:
        names = evidence["method"].values.tolist()
        raise ValueError(f"the figure needs 'elbo' and another method in evidence, which has {names}")
    found = []
    for method in others:
        estimate = evidence.sel({"method": method.label})
        error = np.hypot(estimate["std_error"].values, elbo["std_error"].values)
        value, error_of_mean, _ = average((estimate["value"] - elbo["value"]).values, error)
        is_doubtful = 2 * int(estimate["is_reliable"].sum()) <= estimate.sizes["datum"]
        name = method.described(", ", always=True)
        found.append(_Interval(name, value, error_of_mean, str(estimate["direction"].item()), is_doubtful))
    return [interval for interval in found if np.isfinite(interval.value)]


def _elbo(evidence: xr.Dataset) -> xr.Dataset | None:
    largest = {method.estimator: method.label for method in largest_budgets(methods_of(evidence))}
    return evidence.sel({"method": largest["elbo"]}) if "elbo" in largest else None


def _truth(tree: xr.DataTree, evidence: xr.Dataset) -> Row | None:
    """log p(x) above the ELBO over the data where it is known; the place in a sandwich counts as error."""
    if "sandwich" not in tree.children or "truth" not in tree["sandwich"].data_vars:
        return None
    known, elbo = tree["sandwich"].to_dataset(), _elbo(evidence)
    gap = known["truth"].values - (np.nan if elbo is None else elbo["value"].values)
    value, error, count = average(gap, known["truth_std_error"].values)
    if count == 0 or np.isnan(error):
        return None
    error += float(half_gap(known)[np.isfinite(gap)].mean())
    return Row("", f"log p(x), {truth_name(known)}, {count} data", value, error, NATS, "none", count, 0)


def _draw(ax: Axes, place: int, interval: _Interval) -> None:
    color = COLORS["grey" if interval.is_doubtful else "blue"]
    bar = _BARS * interval.error if np.isfinite(interval.error) else 0.0
    ax.plot([interval.value - bar, interval.value + bar], [place, place], color=color, linewidth=1.6)
    face = "white" if interval.is_doubtful else color
    marker = _MARKERS[interval.direction]
    ax.plot(interval.value, place, marker, color=color, markerfacecolor=face, markersize=7)


def _handles(found: list[_Interval], truth: Row | None) -> list[Line2D]:
    sides = [side for side in _MARKERS if any(interval.direction == side for interval in found)]
    blue, grey = COLORS["blue"], COLORS["grey"]
    handles = [Line2D([], [], color=blue, marker=_MARKERS[s], linewidth=0, label=_LABELS[s]) for s in sides]
    if any(interval.is_doubtful for interval in found):
        handles.append(
            Line2D([], [], color=grey, marker="o", markerfacecolor="white", linewidth=0, label=_DOUBT)
        )
    if truth is not None:
        handles.append(Line2D([], [], color=COLORS["sky"], alpha=0.5, linewidth=6, label=truth.quantity))
    return handles


def _title(found: list[_Interval], truth: Row | None, evidence: xr.Dataset) -> str:
    num_data = evidence.sizes["datum"]
    if truth is not None:
        over = f"the {truth.num_data} of {num_data} data where it is known"
        return f"log p(x) lies {number(truth)} nats above the ELBO on average over {over}"
    first = min(found, key=lambda interval: (interval.is_doubtful, interval.direction != "lower"))
    told = number(Row("", "", first.value, first.error, "", "", 0, 0))
    doubt = ", with an error bar that cannot be trusted" if first.is_doubtful else ""
    return f"{first.name} lies {told} nats above the ELBO on average over {num_data} data{doubt}"
