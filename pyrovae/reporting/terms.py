"""The terms of the ELBO as steps from the reconstruction down to the ELBO and up to log p(x), and per latent."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify

__all__ = ["plot_decomposition"]


class _Bar(NamedTuple):
    """A total, which stands on the floor (start None), or a step from one value to another."""

    label: str
    start: float | None
    end: float
    color: str


def plot_decomposition(tree: xr.DataTree) -> Figure:
    """Both forms of the ELBO on average over the data, and the KL to the prior of each latent coordinate.

    Left, from the reconstruction term the KL to the prior leads down to the ELBO, in two steps where the aggregate
    posterior was measured: the mutual information and KL(q(z) || p(z)). From the ELBO the KL to the posterior leads up
    to log p(x), where that was measured. Right, the latents by their KL; units that are not active are hollow.

    Raises:
        ValueError: If the tree has no `decomposition` with the terms of the ELBO.
    """
    terms = require(tree, "decomposition", "reconstruction")
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_bars(left, _bars(terms))
    _draw_latents(right, terms)
    set_title(figure, _title(terms))
    return figure


def _bars(terms: xr.Dataset) -> list[_Bar]:
    mean = {
        str(name): float(values.mean())
        for name, values in terms.data_vars.items()
        if values.dtype.kind == "f"
    }
    elbo, reconstruction = mean["elbo"], mean["reconstruction"]
    bars = [_Bar("reconstruction", None, reconstruction, "sky")]
    if "mutual_information" in mean:
        # The aggregate terms are averages over some of the data: scaled, so that the steps meet.
        share = mean["kl_prior"] / mean["mean_kl_prior"]
        middle = reconstruction - share * mean["mutual_information"]
        bars.append(_Bar("mutual\ninformation", reconstruction, middle, "orange"))
        bars.append(_Bar("KL of q(z)\nto the prior", middle, elbo, "vermillion"))
    else:
        bars.append(_Bar("KL to the\nprior", reconstruction, elbo, "vermillion"))
    bars.append(_Bar("ELBO", None, elbo, "blue"))
    if "kl_posterior" in mean:
        bars.append(_Bar("KL to the\nposterior", elbo, mean["log_evidence"], "purple"))
        bars.append(_Bar("log p(x)", None, mean["log_evidence"], "green"))
    return bars


def _draw_bars(ax: Axes, bars: list[_Bar]) -> None:
    values = [bar.end for bar in bars]
    height = max(values) - min(values) or 1.0
    floor = min(values) - 0.25 * height
    for place, bar in enumerate(bars):
        start = floor if bar.start is None else bar.start
        ax.bar(place, bar.end - start, bottom=start, color=COLORS[bar.color], width=0.7)
        text = f"{bar.end:.2f}" if bar.start is None else f"{bar.end - bar.start:+.2f}"
        top = (place, max(start, bar.end))
        ax.annotate(text, top, (0, 2), textcoords="offset points", ha="center", fontsize=8)
    ax.set_xticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
    ax.set_ylabel("nats per datum")
    ax.set_ylim(floor, max(values) + 0.08 * height)
    simplify(ax)


def _draw_latents(ax: Axes, terms: xr.Dataset) -> None:
    kl = terms["kl_per_latent"]
    order = np.argsort(kl.values)[::-1]
    for place, index in enumerate(order):
        filled = bool(terms["is_active"].values[index])
        ax.bar(place, kl.values[index], color=COLORS["blue"] if filled else "white", edgecolor=COLORS["blue"])
    ax.set_xticks(range(len(order)), kl["latent"].values[order], rotation=90, fontsize=7)
    ax.set_ylabel("KL to the prior (nats)")
    simplify(ax)


def _title(terms: xr.Dataset) -> str:
    active, count = int(terms["is_active"].sum()), terms.sizes["latent"]
    lost = f", {float(terms['kl_posterior'].mean()):.2f} below log p(x)" if "kl_posterior" in terms else ""
    return (
        f"The ELBO is {float(terms['elbo'].mean()):.2f} nats per datum{lost}, over {terms.sizes['datum']} data; "
        f"{active} of {count} latent units are active"
    )
