"""The signal-to-noise ratio of gradient estimators against the number of particles."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify
from pyrovae.results.gradients import MAIN_PARTS, Record, gradient_records, snr_slopes
from pyrovae.results.rows import Method, with_error

__all__ = [
    "Look",
    "about",
    "draw_arrow",
    "draw_point",
    "looks_of",
    "name_of",
    "parts_of",
    "plot_gradient_snr",
    "rows_of",
]

_COLORS: Final = ("vermillion", "blue", "green", "purple", "orange", "sky", "black")
_MARKERS: Final = ("o", "s", "D", "^", "P")
_SHIFT: Final = 0.16  # of log K, between the first and the last method
_FACTS: Final = {"num_data": "data", "num_replicates": "replicates"}


class Look(NamedTuple):
    """How a method is drawn; `shift` moves it aside a little, so that equal methods are seen."""

    color: str
    marker: str
    shift: float


def plot_gradient_snr(tree: xr.DataTree, epoch: int | None = None) -> Figure:
    """The SNR of each estimator against its number of particles K, one panel a part, both axes logarithmic.

    Bars are the 95 % interval of SNR^2, taken to SNR. A point whose interval includes 0 has no place on a logarithmic
    axis: it is hollow, with an arrow down, at the upper end of the interval. The legend gives the slope of the fitted
    line with its error, one standard error, and how many points were left out of the fit; dashed grey lines have the
    slopes 1/2 and -1/2 of the theory for large K, at an arbitrary height.

    Args:
        tree: With `gradients`.
        epoch: Which one, where there are several; the last by default.

    Raises:
        ValueError: If the tree has no `gradients`, none with numbers for encoder or decoder, or not that epoch.
    """
    rows = rows_of(tree, epoch)
    parts, looks = parts_of(rows), looks_of(rows)
    slopes = _slopes(tree, rows[0]["epoch"])
    figure = new_figure(4.4 * len(parts) + 0.6, 4.8)
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for ax, part in zip(axes, parts, strict=True):
        own = [row for row in rows if row["part"] == part]
        for method, look in looks.items():
            _draw_snr(ax, [row for row in own if row["method"] == method], look, slopes[part, method])
        _finish_snr(ax, own)
        handles = [_handle(method, look, slopes[part, method]) for method, look in looks.items()]
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=8)
        ax.set_title(part, fontsize=10, loc="left")
    axes[0].set_ylabel("SNR of one gradient (95 % interval)")
    set_title(figure, _snr_title(tree, rows, slopes))
    return figure


def rows_of(tree: xr.DataTree, epoch: int | None) -> list[Record]:
    """The rows of the main parts that have numbers, at one epoch.

    Raises:
        ValueError: As `plot_gradient_snr`.
    """
    require(tree, "gradients", "snr_squared")
    rows = gradient_records(tree)
    known = [row["epoch"] for row in rows]
    if epoch is not None and epoch not in known:
        raise ValueError(f"the gradients are of the epochs {list(dict.fromkeys(known))}, got {epoch}")
    wanted = known[-1] if epoch is None else epoch
    kept = [row for row in rows if row["epoch"] == wanted and row["part"] in MAIN_PARTS]
    kept = [row for row in kept if math.isfinite(row["variance"]) and not math.isnan(row["snr_squared"])]
    if not kept:
        raise ValueError(f"there is nothing to draw: {rows[-1]['reason'] or 'all numbers are NaN'}")
    return kept


def looks_of(rows: Sequence[Record]) -> dict[str, Look]:
    """Colour and marker of every method, both change together, and shifts from -1/2 to 1/2."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shifts = np.linspace(-0.5, 0.5, len(methods)) if len(methods) > 1 else [0.0]
    return {
        method: Look(COLORS[_COLORS[i % len(_COLORS)]], _MARKERS[i % len(_MARKERS)], float(shifts[i]))
        for i, method in enumerate(methods)
    }


def parts_of(rows: Sequence[Record]) -> list[str]:
    """The parts of the parameters, in their order."""
    return list(dict.fromkeys(row["part"] for row in rows))


def _slopes(tree: xr.DataTree, epoch: Any) -> dict[tuple[str, str], Mapping[str, Any]]:
    """{(part, method): row of `snr_slopes`} at one epoch."""
    rows = snr_slopes(tree).reset_index().to_dict("records")
    kept = [{str(name): value for name, value in row.items()} for row in rows if row.get("epoch") == epoch]
    return {(row["part"], row["method"]): row for row in kept}


def _draw_snr(ax: Axes, rows: Sequence[Record], look: Look, slope: Mapping[str, Any]) -> None:
    for row in rows:
        draw_point(ax, row["count"] * math.exp(_SHIFT * look.shift), row, look)
    if rows and math.isfinite(slope["slope"]):
        k = np.array([min(row["count"] for row in rows), max(row["count"] for row in rows)], float)
        line = math.exp(slope["intercept"]) * k ** slope["slope"]
        ax.plot(k, line, color=look.color, linewidth=1, alpha=0.6)


def draw_point(ax: Axes, x: float, row: Record, look: Look) -> float:
    """The SNR with its interval, or hollow at the interval's upper end if that includes 0; returns the height."""
    is_sure = row["snr_low"] > 0
    height = float(row["snr"] if is_sure else row["snr_high"])
    if not (math.isfinite(height) and height > 0):
        return math.nan
    if is_sure:
        ends = [[height - row["snr_low"]], [row["snr_high"] - height]]
        ax.errorbar(x, height, ends, color=look.color, linewidth=1.2, capsize=2)
    else:
        draw_arrow(ax, x, height, look)
    face = look.color if is_sure else "white"
    ax.plot(x, height, look.marker, color=look.color, markerfacecolor=face, markersize=5.5)
    return height


def draw_arrow(ax: Axes, x: float, y: float, look: Look, length: int = -16) -> None:
    """Down from a point that is no more than an upper limit; up, with a positive length in points."""
    arrow = {"arrowstyle": "<-", "color": look.color, "linewidth": 1.2, "shrinkB": 0}
    ax.annotate("", (x, y), (0, length), textcoords="offset points", arrowprops=arrow)


def _finish_snr(ax: Axes, rows: Sequence[Record]) -> None:
    """Axes, ticks at the numbers of particles, and the two slopes of the theory through the middle of the points."""
    ax.set(xscale="log", yscale="log", xlabel="particles K")
    counts = sorted({row["count"] for row in rows})
    ax.set_xticks(counts, [f"{count:,}" for count in counts])
    ax.xaxis.set_minor_locator(NullLocator())
    heights = [row["snr"] for row in rows if 0 < row["snr"] < math.inf]
    if len(counts) > 1 and heights:
        low, high = min(heights), max(heights)
        ends = np.array([counts[0], counts[-1]], float)
        middle, at = math.sqrt(low * high), math.sqrt(ends[0] * ends[1])
        for power, name in ((0.5, "K$^{1/2}$"), (-0.5, "K$^{-1/2}$")):
            line = middle * (ends / at) ** power
            ax.plot(ends, line, "--", color=COLORS["grey"], linewidth=0.8, zorder=0, label="_theory")
            ax.annotate(name, (ends[1], line[1]), (3, 0), textcoords="offset points", va="center", fontsize=8)
    simplify(ax)


def _handle(method: str, look: Look, slope: Mapping[str, Any]) -> Line2D:
    fit = with_error(slope["slope"], max(slope["std_error"], 1e-3))
    told = "no slope" if math.isnan(slope["slope"]) else f"slope {fit}"
    left = f", {slope['num_left_out']} left out" if slope["num_left_out"] else ""
    label = f"{name_of(method)}: {told} ({slope['num_points']} points{left})"
    return Line2D([], [], color=look.color, marker=look.marker, linewidth=1, markersize=5, label=label)


def name_of(method: str) -> str:
    """A method as people write it."""
    return Method(method, method, 0).name


def _snr_title(
    tree: xr.DataTree, rows: Sequence[Record], slopes: Mapping[tuple[str, str], Mapping[str, Any]]
) -> str:
    falling = [name_of(m) for (part, m), row in slopes.items() if part == "encoder" and row["high"] < 0]
    text = "The encoder's SNR falls with K for " + ", ".join(falling) if falling else "SNR of gradients"
    if not falling and any(part == "encoder" and row["low"] > -1 for (part, _), row in slopes.items()):
        text = "No encoder's SNR was found to fall with K"
    return f"{text}{about(tree, rows)}"


def about(tree: xr.DataTree, rows: Sequence[Record]) -> str:
    """How many data and replicates, and which epoch, in brackets."""
    attrs = tree["gradients"].attrs
    facts = [f"{attrs[key]:,} {name}" for key, name in _FACTS.items() if key in attrs]
    facts += [f"epoch {rows[0]['epoch']}"] if rows[0]["epoch"] is not None else []
    return f" ({', '.join(facts)})" if facts else ""
