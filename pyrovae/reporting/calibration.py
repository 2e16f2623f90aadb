"""Calibration on simulated data: how far the ranks of the truth among the guide's draws are from uniform."""

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify
from pyrovae.results.calibration import wrong_latents

__all__ = ["plot_calibration"]

_PALETTE: Final = ("vermillion", "blue", "green", "purple", "orange", "sky", "black")


def plot_calibration(tree: xr.DataTree) -> Figure:
    """Three panels of ECDF minus level: the ranks of every latent, the coverage of all jointly, and log p(x | z).

    If the guide is the posterior on simulated data, all lines stay in the grey band with probability 0.95 in each
    panel. Left, an S that starts above 0 and ends below is an over-confident latent, the mirror image an
    under-confident one, one arch a bias; latents that leave the band have a colour, at most seven, the furthest first.
    Middle, below 0 a credible region of that level holds the truth too rarely (TARP). Right, an arch below 0 means
    that the truth explains the data better than the guide's draws do.

    Raises:
        ValueError: If the tree has no `calibration` with `ecdf`.
    """
    made = require(tree, "calibration", "ecdf")
    figure = new_figure(10.0, 3.7)
    axes = figure.subplots(1, 3, sharey=True)
    for ax in axes:
        _draw_band(ax, made)
    _draw_latents(axes[0], made)
    for ax, name in zip(axes[1:], ("tarp_ecdf", "likelihood_ecdf"), strict=True):
        color = COLORS["blue" if _stays(made, made[name].values) else "vermillion"]
        _draw(ax, made, made[name].values, color=color, linewidth=2)
    labels = ("rank of the true z", "credible level, all latents jointly", "rank of the true log p(x | z)")
    for ax, label in zip(axes, labels, strict=True):
        ax.set_xlabel(label)
        ax.set_xlim(0, 1)
        simplify(ax)
    axes[0].set_ylabel("ECDF − level")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=8, frameon=False, fontsize=9
    )
    set_title(figure, _title(made))
    return figure


def _draw_band(ax: Axes, made: xr.Dataset) -> None:
    level = made["level"].values
    lower, upper = (made[name].values - level for name in ("ecdf_lower", "ecdf_upper"))
    label = f"{made.attrs['band']:.0%} band"
    ax.fill_between(level, lower, upper, color=COLORS["grey"], alpha=0.25, linewidth=0, label=label)
    ax.axhline(0, color=COLORS["grey"], linewidth=0.8)


def _draw_latents(ax: Axes, made: xr.Dataset) -> None:
    """Latents that leave the band in colour, the furthest out first; the others thin and grey."""
    curves = made["ecdf"].transpose("latent", "level").values
    far = np.abs(curves - made["level"].values).max(1)
    order = sorted(range(len(curves)), key=lambda latent: -far[latent])
    coloured = [latent for latent in order if not _stays(made, curves[latent])][: len(_PALETTE)]
    for latent in order[::-1]:
        if latent not in coloured:
            _draw(ax, made, curves[latent], color=COLORS["grey"], linewidth=0.8)
    for latent, name in zip(coloured, _PALETTE, strict=False):
        label = str(made["latent"].values[latent])
        _draw(ax, made, curves[latent], color=COLORS[name], linewidth=1.5, label=label)


def _draw(ax: Axes, made: xr.Dataset, curve: np.ndarray, **style: Any) -> None:
    """One ECDF minus its level, from 0 to 1, where it is 0."""
    level = made["level"].values
    ax.plot([0, *level, 1], [0, *(curve - level), 0], **style)


def _stays(made: xr.Dataset, curve: np.ndarray) -> bool:
    return bool(((curve >= made["ecdf_lower"].values) & (curve <= made["ecdf_upper"].values)).all())


def _title(made: xr.Dataset) -> str:
    wrong, total = wrong_latents(made), made.sizes["latent"]
    found = [f"{fault} in {int(which.sum())}" for fault, which in wrong.items() if which.any()]
    start = f"On {made.sizes['simulation']:,} data that the model drew, the guide is"
    if found:
        start += f" {', '.join(found)} of {total} latents"
    else:
        start += f" not found wrong in any of {total} latents taken alone"
    auc = float(made["shift_auc"])
    shift = f"; real against simulated codes: AUC {auc:.2f}" if np.isfinite(auc) else ""
    return f"{start}{shift}"
