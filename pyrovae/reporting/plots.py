"""Figures of a result tree: training, evidence and gradients with their cost, draws, terms, and reconstructions.

Each takes a tree and returns a `matplotlib.figure.Figure` that belongs to the caller; pyplot is never touched.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrovae.reporting.cost import plot_evidence_cost
from pyrovae.reporting.counts import plot_draw_counts
from pyrovae.reporting.draws import plot_draws
from pyrovae.reporting.figures import COLORS, new_figure, require, save_figure, set_title, simplify
from pyrovae.reporting.gradient_cost import plot_gradient_cost
from pyrovae.reporting.gradients import plot_gradient_snr
from pyrovae.reporting.images import plot_reconstructions
from pyrovae.reporting.terms import plot_decomposition
from pyrovae.reporting.training_path import plot_training_path
from pyrovae.results.rows import Method, largest_budgets, methods_of

__all__ = [
    "plot_decomposition",
    "plot_draw_counts",
    "plot_draws",
    "plot_evidence",
    "plot_evidence_cost",
    "plot_gradient_cost",
    "plot_gradient_snr",
    "plot_reconstructions",
    "plot_training",
    "plot_training_path",
    "save_figure",
]

_CURVES: Final = {"elbo": ("training", "vermillion"), "val_elbo": ("validation", "blue")}
_COUNTS: Final = {"num_data": "training", "num_val_data": "validation"}
_METHOD_COLORS: Final = ("vermillion", "blue", "green", "purple", "orange", "sky", "black")


def plot_training(tree: xr.DataTree) -> Figure:
    """Training and validation ELBO per epoch, with the best validation epoch marked.

    A steep start is cut off, and the figure says so. Shows `history.elbo`, or `history.weighted_elbo` where the KL
    term was weighted, and, where it was measured, `history.val_elbo`; `bound` and `val_bound` in their place where
    another bound than the ELBO was the objective; the attributes `num_data` and `num_val_data`
    of the group go into the title.

    Raises:
        ValueError: If the tree has no `history` with `elbo`.

    Examples:
        >>> made = xr.Dataset({"elbo": ("epoch", [-9.0, -8.0, -7.5])}, {"epoch": [1, 2, 3]})
        >>> figure = plot_training(xr.DataTree.from_dict({"history": made}))
        >>> figure.axes[0].get_ylabel()
        'ELBO (nats per datum)'
    """
    history = _history(tree)
    figure = new_figure(7.0, 4.0)
    ax = figure.subplots()
    for variable in [variable for variable in _CURVES if variable in history]:
        _draw_curve(ax, history[variable])
    _cut_start(ax, history)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{_name(history)} (nats per datum)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, fontsize=9)
    simplify(ax)
    set_title(figure, _training_title(history))
    return figure


def _history(tree: xr.DataTree) -> xr.Dataset:
    """The history, with the curves under the names `elbo` and `val_elbo`."""
    if "history" in tree.children and "weighted_elbo" in tree["history"].data_vars:
        history = tree["history"].to_dataset().rename({"weighted_elbo": "elbo"})
        history["elbo"].attrs["label"] = "training, KL term weighted"
        return history
    if "history" in tree.children and "bound" in tree["history"].data_vars:
        history = tree["history"].to_dataset()
        names = {"bound": "elbo", "val_bound": "val_elbo"}
        history = history.rename({old: new for old, new in names.items() if old in history})
        history["elbo"].attrs["name"] = "bound"
        return history
    return require(tree, "history", "elbo")


def _name(history: xr.Dataset) -> str:
    return str(history["elbo"].attrs.get("name", "ELBO"))


def _draw_curve(ax: Axes, metric: xr.DataArray) -> None:
    """One metric at the epochs where it was measured; the best one marked if it is the validation's."""
    label, color = _CURVES[str(metric.name)]
    label = metric.attrs.get("label", label)
    kept = metric.dropna("epoch")
    epoch, values = kept["epoch"].values, kept.values
    marker = "o" if kept.size <= 30 else ""
    ax.plot(epoch, values, color=COLORS[color], label=label, linewidth=1.5, marker=marker, markersize=3)
    if label == "validation" and kept.size:
        best = int(values.argmax())
        ax.plot(epoch[best], values[best], "o", color=COLORS[color], markerfacecolor="white", label="best")


def _cut_start(ax: Axes, history: xr.Dataset) -> None:
    """Leave the first epochs below the axis where they would flatten all the others."""
    values = np.concatenate([history[variable].values for variable in _CURVES if variable in history])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    top, low = values.max(), np.quantile(values, 0.15)
    if top - low > 0.3 * (top - values.min()):
        return
    margin = 0.08 * (top - low)
    ax.set_ylim(low - margin, top + margin)
    hidden = int((history["elbo"].values < low - margin).sum())
    note = f"the first {hidden} epochs lie below this axis"
    ax.text(0.99, 0.02, note, transform=ax.transAxes, ha="right", fontsize=8, color=COLORS["grey"])


def _training_title(history: xr.Dataset) -> str:
    elbo, epoch = history["elbo"].values, history["epoch"].values
    counts = [f"{history.attrs[key]} {name} data" for key, name in _COUNTS.items() if key in history.attrs]
    over = f" ({', '.join(counts)})" if counts else ""
    if "val_elbo" not in history or not np.isfinite(history["val_elbo"].values).any():
        return f"The training {_name(history)} is {elbo[-1]:.2f} nats per datum after epoch {epoch[-1]}{over}"
    best = int(np.nanargmax(history["val_elbo"].values))
    value = history["val_elbo"].values[best]
    side = "below" if value <= elbo[best] else "above"
    return (
        f"The validation {_name(history)} is best at epoch {epoch[best]} of {epoch[-1]}: {value:.2f} nats per datum, "
        f"{abs(value - elbo[best]):.2f} {side} training{over}"
    )


def plot_evidence(tree: xr.DataTree, methods: Sequence[str] | None = None, *, max_data: int = 200) -> Figure:
    """log p(x) of every datum by several methods, and below it how far each lies above the ELBO.

    Data are sorted by the ELBO, or by the first method where there is no "elbo". Bars are one standard error;
    hollow markers have an error bar that cannot be trusted. The error bar of a gap takes the errors of its two
    methods as independent.

    Args:
        tree: A result tree with `evidence`.
        methods: Which methods. By default each estimator's largest budget; of more than seven estimators, which are
            the colours that there are, those whose error has a known direction.
        max_data: Of more data than this, evenly spaced ranks are shown; >= 1.

    Raises:
        ValueError: If `evidence` or one of the methods is missing.
    """
    shown = _chosen(require(tree, "evidence", "value"), methods)
    by = "elbo" if "elbo" in shown["method"].values else str(shown["method"].values[0])
    ranked = _ranked(shown, by, max_data)
    panels = [(ranked, "log p(x) (nats)")]
    if by == "elbo" and shown.sizes["method"] > 1:
        panels.append((_above_elbo(ranked), "log p(x) − ELBO (nats)"))
    figure = new_figure(8.5, 1 + 2.5 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (panel, label) in zip(axes, panels, strict=True):
        _draw_methods(ax, panel)
        ax.set_ylabel(label)
        simplify(ax)
    if len(panels) > 1:
        axes[1].axhline(0, color=COLORS[_METHOD_COLORS[_position(shown, "elbo")]], linewidth=1)
    _add_legend(axes[0], some_unreliable=not ranked["is_reliable"].values.all())
    axes[-1].set_xlabel(f"rank of the datum by {_label(by)}")
    set_title(figure, _evidence_title(shown, ranked.sizes["datum"]))
    return figure


def _chosen(evidence: xr.Dataset, methods: Sequence[str] | None) -> xr.Dataset:
    known = [str(method) for method in evidence["method"].values]
    if missing := [method for method in methods or () if method not in known]:
        raise ValueError(f"the evidence has the methods {known}, got {missing}")
    return evidence.sel({"method": list(methods)}) if methods else _largest(evidence)


def _largest(evidence: xr.Dataset) -> xr.Dataset:
    """Each estimator with its largest budget, under its own name."""
    kept = largest_budgets(methods_of(evidence))
    if len(kept) > len(_METHOD_COLORS):
        direction = evidence["direction"]
        kept = [m for m in kept if direction.sel({"method": m.label}) != "none"][: len(_METHOD_COLORS)]
    chosen = evidence.sel({"method": [method.label for method in kept]})
    return chosen.assign_coords(method=[method.estimator for method in kept])


def _ranked(evidence: xr.Dataset, by: str, max_data: int) -> xr.Dataset:
    """Data in the order of one method's value, with their `rank`, thinned to `max_data`."""
    order = np.argsort(evidence["value"].sel({"method": by}).values)
    ranked = evidence.isel(datum=order).assign_coords(rank=("datum", np.arange(order.size)))
    return ranked.isel(datum=_spread(order.size, max_data))


def _spread(total: int, limit: int) -> Int[np.ndarray, " n"]:
    """At most `limit` of the positions 0 ... total - 1, evenly spaced, both ends among them."""
    return np.unique(np.linspace(0, total - 1, min(total, limit)).round().astype(int))


def _above_elbo(evidence: xr.Dataset) -> xr.Dataset:
    """Every method's distance to the ELBO; the ELBO's own is NaN, so it is not drawn."""
    elbo = evidence.sel({"method": "elbo"})
    above = evidence.assign(
        value=(evidence["value"] - elbo["value"]).where(evidence["method"] != "elbo"),
        std_error=np.hypot(evidence["std_error"], elbo["std_error"]),
        is_reliable=evidence["is_reliable"] & elbo["is_reliable"],
    )
    return above


def _draw_methods(ax: Axes, evidence: xr.Dataset) -> None:
    """Every method's values, side by side at the datum's rank; hollow where the error bar cannot be trusted."""
    methods = [str(method) for method in evidence["method"].values]
    shifts = np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else [0.0]
    for method, shift, name in zip(methods, shifts, _METHOD_COLORS * len(methods), strict=False):
        estimate = evidence.sel({"method": method})
        is_reliable = estimate["is_reliable"].values
        for face, kept in ((COLORS[name], is_reliable), ("white", ~is_reliable)):
            points = estimate.isel(datum=kept)
            at, value, error = (
                points["rank"].values + shift,
                points["value"].values,
                points["std_error"].values,
            )
            drawn = ax.errorbar(at, value, error, fmt="o", color=COLORS[name], markersize=3.5, linewidth=1.0)
            drawn.lines[0].set_markerfacecolor(face)
            drawn.set_label("_hidden" if face == "white" else _label(method))


def _add_legend(ax: Axes, *, some_unreliable: bool) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if some_unreliable:
        handles += ax.plot([], [], "o", color=COLORS["grey"], markerfacecolor="white", markersize=3.5)
        labels += ["error bar cannot be trusted"]
    ax.legend(
        handles,
        labels,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
        frameon=False,
        ncols=8,
        fontsize=9,
    )


def _position(evidence: xr.Dataset, method: str) -> int:
    return list(evidence["method"].values).index(method) % len(_METHOD_COLORS)


def _label(method: str) -> str:
    """A method as people write it."""
    return Method(method, method, 0).name


def _evidence_title(shown: xr.Dataset, num_shown: int) -> str:
    """The gap by the first method that is not the ELBO, and how many data are shown or in doubt."""
    total, refused = shown.sizes["datum"], int((~shown["is_reliable"]).any("method").sum())
    count = f"{total} data" if num_shown == total else f"{total} data, {num_shown} of them shown"
    doubt = f"; {refused} have an error bar that cannot be trusted" if refused else ""
    others = [str(method) for method in shown["method"].values if method != "elbo"]
    if "elbo" not in shown["method"].values or not others:
        return f"log p(x) of {count}{doubt}"
    gap = (shown["value"].sel({"method": others[0]}) - shown["value"].sel({"method": "elbo"})).values
    gap = gap[np.isfinite(gap)]
    mean = f"{gap.mean():.2f}" if gap.size else "nan"
    bar = f" ± {gap.std(ddof=1) / math.sqrt(gap.size):.2f}" if gap.size > 1 else ""
    return f"{_label(others[0])} lies {mean}{bar} nats above the ELBO on average over {count}{doubt}"
