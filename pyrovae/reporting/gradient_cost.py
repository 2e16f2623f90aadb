"""The relative variance of gradient estimators against what a gradient costs."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pyrovae.reporting.figures import COLORS, new_figure, set_title, simplify
from pyrovae.reporting.gradients import Look, about, draw_arrow, looks_of, name_of, parts_of, rows_of
from pyrovae.results.gradients import Record

__all__ = ["plot_gradient_cost"]

_Label = tuple[float, float, int]
_APART: Final = 14.0  # pixels between labels
_GUIDE: Final[dict[str, Any]] = {"color": COLORS["grey"], "linewidth": 0.8, "linestyle": ":"}


def plot_gradient_cost(tree: xr.DataTree, epoch: int | None = None) -> Figure:
    """Relative variance of each estimator against the seconds of one gradient, one line over the numbers of particles.

    The relative variance is V / |m|^2 = 1 / SNR^2, that of a gradient whose mean has length 1, so that estimators of
    several objectives can be compared. Grey lines have constant variance x seconds: averaging independent estimates
    moves along them, so the estimator on the lowest one is the best. Points are labelled by K, bars are 95 % intervals
    of SNR^2. An estimator whose SNR cannot be told from 0 is hollow, with an arrow up, at the lower end.

    Args:
        tree: With `gradients`.
        epoch: Which one, where there are several; the last by default.

    Raises:
        ValueError: As `plot_gradient_snr`.
    """
    rows = rows_of(tree, epoch)
    parts, looks = parts_of(rows), looks_of(rows)
    figure = new_figure(4.4 * len(parts) + 1.4, 4.2)
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for ax, part in zip(axes, parts, strict=True):
        own = [row for row in rows if row["part"] == part]
        labels: list[_Label] = []
        for method, look in looks.items():
            labels += _draw_cost(ax, [row for row in own if row["method"] == method], look)
        _finish_cost(ax)
        _add_labels(ax, labels)
        ax.set_title(part, fontsize=10, loc="left")
    axes[0].set_ylabel("variance / |mean|² of one gradient (95 % interval)")
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, linewidth=1, label=name_of(method))
        for method, look in looks.items()
    ]
    handles.append(Line2D([], [], **_GUIDE, label="averaging:\nsame variance\nx seconds"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    set_title(figure, f"What a gradient costs and how noisy it is; numbers are particles{about(tree, rows)}")
    return figure


def _draw_cost(ax: Axes, rows: Sequence[Record], look: Look) -> list[_Label]:
    """Points with their intervals, joined in the order of the numbers of particles; what is labelled by them."""
    x, y, counts = [], [], []
    for row in sorted(rows, key=lambda row: row["count"]):
        is_sure = row["snr_low"] > 0
        height = _over_square(row["snr"] if is_sure else row["snr_high"])
        if not (math.isfinite(height) and height > 0 and row["seconds"] > 0):
            continue
        if is_sure:
            ends = [[height - _over_square(row["snr_high"])], [_over_square(row["snr_low"]) - height]]
            ax.errorbar(row["seconds"], height, ends, color=look.color, linewidth=1.2, capsize=2)
        else:
            draw_arrow(ax, row["seconds"], height, look, 16)
        face = look.color if is_sure else "white"
        ax.plot(row["seconds"], height, look.marker, color=look.color, markerfacecolor=face, markersize=5.5)
        x.append(row["seconds"])
        y.append(height)
        counts.append(int(row["count"]))
    ax.plot(x, y, color=look.color, linewidth=1, alpha=0.6)
    return list(zip(x, y, counts, strict=True))


def _add_labels(ax: Axes, labels: Sequence[_Label]) -> None:
    """The number of particles beside every point, but for those that would cover another one."""
    taken: list[Any] = []
    for x, y, count in labels:
        at = ax.transData.transform((x, y))
        if all(abs(at[0] - left) > _APART or abs(at[1] - low) > _APART for left, low in taken):
            taken.append(at)
            ax.annotate(f"{count:,}", (x, y), (5, 4), textcoords="offset points", fontsize=7, zorder=5)


def _over_square(snr: float) -> float:
    """V / |m|^2."""
    return 1 / snr**2 if snr > 0 else math.inf


def _finish_cost(ax: Axes) -> None:
    """Axes, and lines of constant variance x seconds, one a decade."""
    ax.set(xscale="log", yscale="log", xlabel="seconds for one gradient")
    low_x, high_x = ax.get_xlim()
    low_y, high_y = ax.get_ylim()
    first, last = (math.log10(product) for product in (low_x * low_y, high_x * high_y))
    for power in range(math.floor(first), math.ceil(last) + 1):
        ends = np.array([low_x, high_x])
        ax.plot(ends, 10.0**power / ends, **_GUIDE, zorder=0, label="_averaging")
    ax.set(xlim=(low_x, high_x), ylim=(low_y, high_y))
    simplify(ax)
