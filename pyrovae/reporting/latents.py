"""The latent space seen from the side on which the guide's means spread most: data, aggregate posterior and prior."""

from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify

__all__ = ["plot_latent_space"]

_MAX_POINTS: Final = 1500


class _Plane(NamedTuple):
    """The mean of the guide's means, their first two principal directions, and the share of variance in these."""

    centre: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "d 2"]
    share: float

    def project(self, z: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
        return (z - self.centre) @ self.axes


def plot_latent_space(tree: xr.DataTree) -> Figure:
    """Means of the guide along their first two principal components, and draws of q(z) against the prior there.

    Left, one point a datum, coloured by k-hat, with a cross where the reference has no verdict. Right, where the tree
    has draws of the prior, draws of the aggregate posterior q(z), a mixture over these data, on top of the prior's.
    Two components hide what lies in the others: the title says how much of the variance they hold.

    Raises:
        ValueError: If the tree has no `guide`, fewer than 3 data, or one latent coordinate only.
    """
    z = require(tree, "guide", "z")["z"]
    if z.sizes["latent"] < 2 or z.sizes["datum"] < 3:
        raise ValueError(
            f"the latent space is drawn from two latent coordinates and three data on, got {z.sizes['latent']} "
            f"and {z.sizes['datum']}"
        )
    means = z.mean(("chain", "draw")).transpose("datum", "latent").values.astype(float)
    plane = _plane(means)
    panels = 1 + ("prior" in tree.children)
    figure = new_figure(4.6 * panels, 4.2)
    axes = figure.subplots(1, panels, squeeze=False, sharex=True, sharey=True)[0]
    _draw_means(figure, axes[0], tree, plane.project(means))
    spread = _draw_aggregate(axes[1], tree, z, plane) if panels == 2 else ""
    for ax in axes:
        ax.set_xlabel("first principal component")
        simplify(ax)
    axes[0].set_ylabel("second principal component")
    held = f"Two principal components hold {plane.share:.0%} of the variance of the guide's means"
    set_title(figure, f"{held} over {len(means)} data{spread}")
    return figure


def _plane(means: Float[np.ndarray, "n d"]) -> _Plane:
    centre = means.mean(0)
    _, sizes, directions = np.linalg.svd(means - centre, full_matrices=False)
    total = float((sizes**2).sum()) or 1.0
    return _Plane(centre, directions[:2].T, float((sizes[:2] ** 2).sum()) / total)


def _draw_means(figure: Figure, ax: Axes, tree: xr.DataTree, points: Float[np.ndarray, "n 2"]) -> None:
    diagnostics = tree["diagnostics"].to_dataset() if "diagnostics" in tree.children else xr.Dataset()
    if "khat" in diagnostics:
        khat = diagnostics["khat"].values.astype(float)
        shown = ax.scatter(points[:, 0], points[:, 1], c=khat, s=18, cmap="viridis", linewidths=0)
        figure.colorbar(shown, ax=ax, location="left", label="k-hat", shrink=0.7, pad=0.02)
    else:
        ax.scatter(points[:, 0], points[:, 1], s=18, color=COLORS["blue"], linewidths=0)
    if "verdict" in diagnostics:
        refused = diagnostics["verdict"].values != "ok"
        if refused.any():
            ax.plot(*points[refused].T, "x", color=COLORS["vermillion"], markersize=7, label="no verdict")
            ax.legend(frameon=False, fontsize=9)
    ax.set_title("means of the guide", fontsize=10, loc="left")


def _draw_aggregate(ax: Axes, tree: xr.DataTree, z: xr.DataArray, plane: _Plane) -> str:
    """Draws of q(z) and of the prior; returns a clause on their spread along the two components."""
    drawn = {"prior": _some(require(tree, "prior", "z")["z"]), "q(z)": _some(z)}
    spread = {}
    for (name, draws), color in zip(drawn.items(), ("grey", "orange"), strict=True):
        points = plane.project(draws)
        spread[name] = points.std(0)
        ax.scatter(points[:, 0], points[:, 1], s=5, color=COLORS[color], alpha=0.5, linewidths=0, label=name)
    ax.legend(frameon=False, fontsize=9, markerscale=2)
    ax.set_title("aggregate posterior and prior", fontsize=10, loc="left")
    (a, b), (c, d) = spread["q(z)"], spread["prior"]
    return f"; along them q(z) has standard deviations of {a:.2f} and {b:.2f}, the prior {c:.2f} and {d:.2f}"


def _some(z: xr.DataArray) -> Float[np.ndarray, "n d"]:
    """At most so many draws of all data, the same ones for the same tree."""
    flat = z.values.reshape(-1, z.sizes["latent"]).astype(float)
    count = min(len(flat), _MAX_POINTS)
    return flat[np.random.default_rng(0).choice(len(flat), count, replace=False)]
