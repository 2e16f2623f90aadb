"""The gaps of every encoder as stacked bars, training and test data side by side."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, set_title, simplify

__all__ = ["plot_encoders"]

PARTS = {
    "approximation_gap": ("family", "sky"),
    "amortization_gap": ("amortization", "orange"),
    "inference_gap": ("not split (flow)", "grey"),
}


def plot_encoders(rows: Sequence[dict[str, Any]]) -> Figure:
    """One panel a problem; what is shown of a row is its split, or the whole gap where there is none."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure = new_figure(4.6 * len(names), 4.2)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        _draw(ax, [row for row in rows if row["problem"] == name])
        ax.set_title(name, loc="left", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    axes[0].legend(seen.values(), seen.keys(), frameon=False, fontsize=8)
    axes[0].set_ylabel("log p(x) − ELBO (nats per datum)")
    set_title(figure, "What the ELBO loses, by the encoder; left bars training data, right bars test data")
    return figure


def _draw(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    kinds = list(dict.fromkeys((row["encoder"], row["width"]) for row in rows))
    for row in rows:
        place = kinds.index((row["encoder"], row["width"])) + (0.2 if row["part"] == "test" else -0.2)
        shown = ["inference_gap"] if row["encoder"] == "flow" else ["approximation_gap", "amortization_gap"]
        bottom = 0.0
        for name in shown:
            label, color = PARTS[name]
            value = row["gaps"][name]["value"]
            ax.bar(place, value, 0.36, bottom, color=COLORS[color], label=label)
            bottom += max(value, 0.0)
        error = row["gaps"]["inference_gap"]["std_error"]
        ax.errorbar(place, row["gaps"]["inference_gap"]["value"], error, color=COLORS["black"], capsize=2)
    ax.set_xticks(range(len(kinds)), [f"{family}\n{width}" for family, width in kinds], fontsize=8)
    simplify(ax)
