"""What the ELBO of every datum loses to the guide's family and to amortization, as stacked bars."""

from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, set_title, simplify
from pyrovae.results.inference_gaps import inference_gap_rows, trusted
from pyrovae.results.rows import measured, number

__all__ = ["plot_gaps"]

_PARTS: Final = {"approximation_gap": ("family", "sky"), "amortization_gap": ("amortization", "orange")}
_FEW: Final = 100  # data, up to which every bar has its own error bar
_NAMED: Final = 32  # data, up to which every bar bears its number
_WORST: Final = 3  # data that the title names
_TALL: Final = 4.0  # times the 95th percentile, from which the tallest bars are cut off


def plot_gaps(tree: xr.DataTree) -> Figure:
    """log p(x) - ELBO of every datum, sorted, as the approximation gap with the amortization gap on top.

    Up to 32 bars bear the number of their datum; the title names the data of the three largest.
    A bar of negative height is noise, or a missed optimum. Error bars, of one standard error, are of the whole gap;
    above 100 data they are a band. Data that are not "ok" are left out of the mean and marked: by a cross, or, where
    log p(x) is not known, by a triangle as high as the best full Gaussian, which the gap is at least. A guide of
    another family than diagonal or full Gaussians has bars of one colour, the whole gap, and a line for that of the
    best full Gaussian.

    Raises:
        ValueError: If the tree has no `gaps`.
    """
    gaps = measured(tree, "gaps", "inference_gap", "elbo_full", "verdict")
    if gaps is None:
        raise ValueError(
            "the figure needs the group 'gaps', which the tree lacks; pyrovae.inference_gaps measures it"
        )
    order = np.argsort(_heights(gaps))
    ranked, kept = gaps.isel(datum=order), trusted(gaps)[order]
    figure = new_figure(8.5, 3.8)
    ax = figure.subplots()
    if gaps.attrs.get("family") == "other":
        _draw_whole(ax, ranked)
    else:
        _draw_parts(ax, ranked, kept)
    _draw_errors(ax, ranked)
    _mark_refused(ax, ranked, kept)
    _cut_top(ax, ranked)
    ax.axhline(0, color=COLORS["black"], linewidth=0.8)
    ax.set_xlim(-1, kept.size)
    _name_bars(ax, ranked["datum"].values)
    ax.set_ylabel("nats")
    _add_legend(ax)
    simplify(ax)
    set_title(figure, f"{_title(tree)}{_largest(ranked)}")
    return figure


def _draw_parts(ax: Axes, gaps: xr.Dataset, kept: Bool[np.ndarray, " n"]) -> None:
    """Both gaps stacked; where one is below zero the other starts from zero too."""
    bottom = np.zeros(kept.size)
    for name, (label, color) in _PARTS.items():
        values = np.nan_to_num(gaps[name].values)
        text = f"lost to the {gaps.attrs['family']} family" if label == "family" else f"lost to {label}"
        _bars(ax, values, np.where(values > 0, bottom, 0.0), color, text)
        bottom = bottom + np.fmax(values, 0.0)


def _draw_whole(ax: Axes, gaps: xr.Dataset) -> None:
    values = np.nan_to_num(gaps["inference_gap"].values)
    _bars(ax, values, np.zeros(values.size), "sky", "log p(x) − ELBO of the guide")
    full = gaps["log_evidence"].values - gaps["elbo_full"].values
    ax.step(_ranks(full), full, where="mid", color=COLORS["blue"], label="of the best full Gaussian")


def _bars(
    ax: Axes, values: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"], color: str, label: str
) -> None:
    width = 0.85 if values.size <= _FEW else 1.0
    ax.bar(_ranks(values), values, width, bottom, color=COLORS[color], label=label, linewidth=0)


def _ranks(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return np.arange(values.size)


def _draw_errors(ax: Axes, gaps: xr.Dataset) -> None:
    """One standard error of the whole gap."""
    whole, error = gaps["inference_gap"].values, gaps["inference_gap_std_error"].values
    if whole.size <= _FEW:
        ax.errorbar(_ranks(whole), whole, error, fmt="none", ecolor=COLORS["black"], elinewidth=0.9)
    else:
        low, high = whole - error, whole + error
        ax.fill_between(_ranks(whole), low, high, step="mid", color=COLORS["black"], alpha=0.45, linewidth=0)


def _mark_refused(ax: Axes, gaps: xr.Dataset, kept: Bool[np.ndarray, " n"]) -> None:
    """Crosses on the gaps that cannot be trusted, triangles on what is only a lower bound of one."""
    is_known = np.isfinite(gaps["inference_gap"].values)
    for mask, marker, label in (
        (~kept & is_known, "x", "not to be trusted"),
        (~is_known, "^", "log p(x) not known: at least this"),
    ):
        if mask.any():
            at = np.flatnonzero(mask)
            ax.plot(at, _heights(gaps)[mask], marker, color=COLORS["vermillion"], markersize=5, label=label)


def _heights(gaps: xr.Dataset) -> Float[np.ndarray, " n"]:
    """The whole gap; where log p(x) is not known, how far the best full Gaussian lies above the guide."""
    whole, least = gaps["inference_gap"].values, (gaps["elbo_full"] - gaps["elbo"]).values
    return np.where(np.isfinite(whole), whole, least)


def _add_legend(ax: Axes) -> None:
    """Bars first, then what is marked on them."""
    pairs = list(zip(*ax.get_legend_handles_labels(), strict=True))
    pairs.sort(key=lambda pair: not isinstance(pair[0], BarContainer))
    handles, labels = zip(*pairs, strict=True)
    ax.legend(handles, labels, frameon=False, loc="upper left", fontsize=9)


def _name_bars(ax: Axes, data: Int[np.ndarray, " n"]) -> None:
    """Under each bar its datum, where there is room; else ranks."""
    if data.size > _NAMED:
        ax.set_xlabel("rank of the datum by log p(x) − ELBO")
        return
    ax.set_xticks(range(data.size), [str(datum) for datum in data], fontsize=8)
    ax.set_xlabel("datum, in the order of log p(x) − ELBO")


def _largest(gaps: xr.Dataset) -> str:
    """A clause on the data with the tallest bars; none where there are hardly more."""
    if gaps.sizes["datum"] <= _WORST:
        return ""
    heights = _heights(gaps)
    worst = np.argsort(np.nan_to_num(heights, nan=-np.inf))[: -_WORST - 1 : -1]
    told = ", ".join(f"{heights[i]:.3g} (datum {gaps['datum'].values[i]})" for i in worst)
    return f"; the largest bars are {told}"


def _cut_top(ax: Axes, gaps: xr.Dataset) -> None:
    """Let the tallest bars leave the axis where they would flatten all the others."""
    whole = _heights(gaps)
    if whole.max() <= _TALL * (usual := np.quantile(whole, 0.95)) or usual <= 0:
        return
    limit = 1.5 * usual
    ax.set_ylim(top=limit)
    above = int((whole > limit).sum())
    note = f"{above} above this axis, up to {whole.max():.3g}"
    ax.text(0.99, 0.98, note, transform=ax.transAxes, ha="right", va="top", fontsize=8, color=COLORS["grey"])


def _title(tree: xr.DataTree) -> str:
    rows = {row.subject: row for row in inference_gap_rows(tree)}
    whole = rows.get("inference_gap")
    if whole is None or whole.num_data == 0:
        return "No datum has a gap that can be trusted"
    total = whole.num_data + whole.num_refused
    start = (
        f"The ELBO lies {number(whole)} nats below log p(x) on average over {whole.num_data} of {total} data"
    )
    parts = [
        f"{number(rows[name])} by {'the family' if label == 'family' else label}"
        for name, (label, _) in _PARTS.items()
        if name in rows
    ]
    return f"{start}: {' and '.join(parts)}" if parts else start
