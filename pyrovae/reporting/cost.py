"""How far estimators of log p(x) are off, against what they cost."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify
from pyrovae.results.rows import Method, average, largest_budgets, methods_of, with_error
from pyrovae.results.sandwich import evidence_summary, half_gap, truth_name

__all__ = ["plot_evidence_cost"]

_COLORS: Final = ("vermillion", "blue", "green", "purple", "orange", "sky", "black")
_MARKERS: Final = ("o", "s", "D", "^", "P")
_SURE: Final = 2.0  # standard errors from which a bias is told from 0
_COSTS: Final = {"evaluations": "evaluations of the model per datum", "seconds": "seconds for all data"}
_NOTE: Final = "not told from 0: the marker is\n|error| + 2 standard errors"


class _Point(NamedTuple):
    """One method: what it costs, where it is drawn, its standard error, and whether its bias is told from 0."""

    costs: dict[str, float]
    bias: float
    height: float
    error: float
    is_sure: bool


class _Line(NamedTuple):
    """One estimator: its name, its points in the order of their budgets, and how it is drawn."""

    name: str
    points: list[_Point]
    color: str
    marker: str


def plot_evidence_cost(tree: xr.DataTree) -> Figure:
    """The error of every estimator of log p(x) against its cost: one line an estimator, one point a budget.

    Left against evaluations of the model, densities and gradients together, right against seconds; all axes
    logarithmic. A point is the absolute value of the bias averaged over the data whose truth is known, with a bar of
    one standard error. A bias within two standard errors of 0 has no place on a logarithmic axis: it is hollow, with
    an arrow down, at the largest error that fits it, |bias| + 2 standard errors. Below the grey line the truth itself
    is not known, where it is the middle of a sandwich. The legend says which estimators are too low or too high.

    Methods that the truth was made of are not shown, nor those that cost nothing.

    Raises:
        ValueError: If no truth was measured, or for none of the data.
    """
    sandwich = require(tree, "sandwich", "truth")
    evidence = require(tree, "evidence", "bias")
    if not np.isfinite(sandwich["truth"].values).any():
        raise ValueError(
            f"the truth is known for none of the {sandwich.sizes['datum']} data, so there is no error to show: raise "
            "the number of temperatures of 'bidirectional' until its sandwich closes, or its tolerance"
        )
    table = evidence_summary(tree).to_dict("index")
    methods = {method: _point(table[method.label]) for method in methods_of(evidence)}
    shown = {method: point for method, point in methods.items() if np.isfinite(point.height)}
    lines = _lines(shown)
    figure = new_figure(10.5, 4.6)
    axes = list(figure.subplots(1, 2, sharey=True))
    for ax, (cost, label) in zip(axes, _COSTS.items(), strict=True):
        _draw(ax, lines, cost)
        ax.set(xscale="log", yscale="log", xlabel=label)
        simplify(ax)
    axes[0].set_ylabel("|mean error of log p(x)| (nats, ± 1 standard error)")
    floor = _draw_floor(axes, sandwich)
    figure.legend(handles=_handles(lines, floor), loc="outside right center", frameon=False, fontsize=9)
    set_title(figure, _title(shown, sandwich))
    return figure


def _point(found: Mapping[Hashable, Any]) -> _Point:
    """A point from a row of `evidence_summary`."""
    size, error = abs(found["bias"]), found["bias_std_error"]
    is_sure = bool(size >= _SURE * error)
    evaluations = found["num_density_evaluations"] + found["num_gradient_evaluations"]
    costs = {"evaluations": float(evaluations), "seconds": float(found["seconds"])}
    return _Point(costs, found["bias"], size if is_sure else size + _SURE * error, error, is_sure)


def _lines(shown: Mapping[Method, _Point]) -> list[_Line]:
    """One line an estimator; colour and marker change together, so that both repeat only after 35 of them."""
    names = dict.fromkeys(method.name for method in shown)
    lines = []
    for i, name in enumerate(names):
        budgets = sorted(
            (method for method in shown if method.name == name), key=lambda method: method.budget
        )
        color, marker = COLORS[_COLORS[i % len(_COLORS)]], _MARKERS[i % len(_MARKERS)]
        lines.append(_Line(name, [shown[method] for method in budgets], color, marker))
    return lines


def _draw(ax: Axes, lines: Sequence[_Line], cost: str) -> None:
    for line in lines:
        points = [point for point in line.points if point.costs[cost] > 0 and point.height > 0]
        x, y = [point.costs[cost] for point in points], [point.height for point in points]
        ax.plot(x, y, color=line.color, linewidth=1, alpha=0.6)
        for at, point in zip(x, points, strict=True):
            face = line.color if point.is_sure else "white"
            if point.is_sure:
                ax.errorbar(at, point.height, point.error, color=line.color, linewidth=1.2)
            else:
                arrow = {"arrowstyle": "<-", "color": line.color, "linewidth": 1.2, "shrinkB": 0}
                end = (at, point.height)
                ax.annotate("", end, (0, -16), textcoords="offset points", arrowprops=arrow)
            ax.plot(at, point.height, line.marker, color=line.color, markerfacecolor=face, markersize=6)


def _draw_floor(axes: Sequence[Axes], sandwich: xr.Dataset) -> float:
    """A line at half the gap of the sandwich, on average over the data that have their truth from it; its height."""
    margin = half_gap(sandwich)
    if not (margin > 0).any():
        return 0.0
    floor = float(margin[np.isfinite(sandwich["truth"].values)].mean())
    for ax in axes:
        ax.axhline(floor, color=COLORS["grey"], linewidth=1, linestyle="--", zorder=0, label="_floor")
    return floor


def _handles(lines: Sequence[_Line], floor: float) -> list[Line2D]:
    handles = [
        Line2D([], [], color=line.color, marker=line.marker, linewidth=1, label=f"{line.name}{_side(line)}")
        for line in lines
    ]
    grey = COLORS["grey"]
    if not all(point.is_sure for line in lines for point in line.points):
        handles.append(
            Line2D([], [], color=grey, marker="o", markerfacecolor="white", linewidth=0, label=_NOTE)
        )
    if floor:
        label = f"the truth is known to\n{floor:.2g} nats (sandwich)"
        handles.append(Line2D([], [], color=grey, linewidth=1, linestyle="--", label=label))
    return handles


def _side(line: _Line) -> str:
    """On which side of the truth the estimates lie, where all that can be told agree."""
    sides = {" (too high)" if point.bias > 0 else " (too low)" for point in line.points if point.is_sure}
    return sides.pop() if len(sides) == 1 else ""


def _title(shown: Mapping[Method, _Point], sandwich: xr.Dataset) -> str:
    """The error of IWAE, or else of the first estimator, and how far the truth is known."""
    has_truth = np.isfinite(sandwich["truth"].values)
    over = f"for {int(has_truth.sum())} of {has_truth.size} data"
    known = f"the truth is known by {truth_name(sandwich)} {over}"
    if truth_name(sandwich) == "sandwich":
        gap, error, _ = average(*(sandwich[name].values[has_truth] for name in ("gap", "gap_std_error")))
        known = f"the ends of the sandwich are {with_error(gap, error)} nats apart {over}"
    largest = {method.estimator: method for method in largest_budgets(list(shown))}
    if not largest:
        return f"No estimator was measured against the truth; {known}"
    method = largest.get("iwae", next(iter(largest.values())))
    point = shown[method]
    told = f"has a mean error of {with_error(point.bias, point.error)} nats"
    doubt = "" if point.is_sure else ", not told from 0"
    return f"{method.described(' with ', always=True)} {told}{doubt}; {known}"
