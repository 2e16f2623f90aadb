"""The terms of the ELBO as steps from the reconstruction down to the ELBO and up to log p(x), and per latent."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify
from pyrovae.results.rows import average, count_data, with_error
from pyrovae.results.significance import SURE

__all__ = ["plot_decomposition"]

_BOUND: Final = {"lower": "at least ", "upper": "at most ", "exact": ""}


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
        middle = reconstruction - _share(mean) * mean["mutual_information"]
        bars.append(_Bar("mutual\ninformation", reconstruction, middle, "orange"))
        bars.append(_Bar("KL of q(z)\nto the prior", middle, elbo, "vermillion"))
    else:
        bars.append(_Bar("KL to the\nprior", reconstruction, elbo, "vermillion"))
    bars.append(_Bar("ELBO", None, elbo, "blue"))
    if np.isfinite(mean.get("kl_posterior", np.nan)):
        top = elbo + mean["kl_posterior"]
        bars.append(_Bar("KL to the\nposterior", elbo, top, "purple"))
        bars.append(_Bar("log p(x)", None, top, "green"))
    return bars


def _share(mean: Mapping[str, float]) -> float:
    """The aggregate terms are averages over other draws, of some of the data: by how much the steps meet.

    1 where the KL to the prior cannot be told from 0: a ratio of two such is noise, or none at all.
    """
    whole = mean["mean_kl_prior"]
    return mean["kl_prior"] / whole if whole > SURE * mean.get("mean_kl_prior_std_error", 0.0) else 1.0


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
        filled = "is_active" not in terms or bool(terms["is_active"].values[index])
        ax.bar(place, kl.values[index], color=COLORS["blue"] if filled else "white", edgecolor=COLORS["blue"])
    ax.set_xticks(range(len(order)), kl["latent"].values[order], rotation=90, fontsize=7)
    ax.set_ylabel("KL to the prior (nats)")
    simplify(ax)


def _title(terms: xr.Dataset) -> str:
    elbo, told = float(terms["elbo"].mean()), ""
    if "is_active" in terms:  # not of one datum, nor of several blocks
        told = f"; {int(terms['is_active'].sum())} of {terms.sizes['latent']} latent units are active"
    return (
        f"The ELBO is {elbo:.2f} nats per datum{_lost(terms)}, over {count_data(terms.sizes['datum'])}{told}"
    )


def _lost(terms: xr.Dataset) -> str:
    """A clause on the KL to the posterior: its error, its side, and the data that have one if not all do."""
    if "kl_posterior" not in terms:
        return ""
    found = terms["kl_posterior"]
    errors = terms.get("kl_posterior_std_error", xr.zeros_like(found)).values
    value, error, num_data = average(found.values, errors)
    if num_data == 0:
        return ""
    some = f" for the {num_data} data where that is known" if num_data < found.size else ""
    side, told = str(found.attrs.get("direction", "none")), with_error(value, error)
    if value <= SURE * error and side != "upper":
        return f", no further below log p(x) than chance would have it ({told}){some}"
    return f", {_BOUND.get(side, 'about ')}{told} below log p(x){some}"
