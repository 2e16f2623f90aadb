"""Draws of the guide beside draws of the reference posterior, where they differ most."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from pyrovae.reporting.figures import COLORS, data_variable, new_figure, require, set_title, simplify
from pyrovae.reporting.images import as_images

__all__ = ["plot_draws"]

_COLUMNS: Final = 3
_DEFAULT: Final = 6  # data shown where the caller names none
_MAX_DRAWS: Final = 400
_MASSES: Final = {0.5: "-", 0.95: "--"}  # of a Gaussian, inside its ellipse
_COLORS: Final = {"posterior": "blue", "guide": "vermillion"}
_REFUSED: Final = "grey"


def plot_draws(tree: xr.DataTree, data: Sequence[int] | None = None) -> Figure:
    """Draws of guide and reference posterior for some data, in the two latents where they differ most.

    The pair of latents is the one with the largest Jeffreys divergence between the two Gaussians that have the
    draws' moments; ellipses hold 50 % and 95 % of these Gaussians. With one latent, histograms. A datum that is
    a square image stands above its panel. A reference that did not converge is grey, with "no verdict" above it.

    Args:
        tree: A result tree with `posterior` and `guide`; `diagnostics` and `observed_data` are used if there.
        data: Coordinates along `datum`; by default six, evenly spaced from least to largest disagreement.

    Raises:
        ValueError: If a group is missing or there is no such datum.
    """
    z = {name: require(tree, name, "z")["z"] for name in _COLORS}
    known = z["posterior"]["datum"].values
    chosen = _by_disagreement(z) if data is None else [int(datum) for datum in data]
    if not chosen or (missing := [datum for datum in chosen if datum not in known]):
        raise ValueError(f"name one datum or more of those with draws, got {missing if chosen else chosen}")
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(max(2.9 * columns + 0.2, 5.0), 3.1 * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, datum in zip(axes, chosen, strict=False):
        _draw_panel(ax, tree, {name: draws.sel(datum=datum) for name, draws in z.items()})
    for ax in axes[len(chosen) :]:
        ax.remove()
    _add_legend(
        figure,
        has_ellipses=z["guide"].sizes["latent"] > 1,
        has_refused=not all(_panel_title(tree, datum)[1] for datum in chosen),
    )
    order = ", least to largest disagreement" if data is None else ""
    set_title(
        figure, f"Guide against reference for {len(chosen)} of {known.size} data{order}{_refusals(tree)}"
    )
    return figure


def _by_disagreement(z: dict[str, xr.DataArray]) -> list[int]:
    """Some data, evenly spaced in the rank of the Jeffreys divergence summed over single latents."""
    mean = {name: draws.mean(("chain", "draw")) for name, draws in z.items()}
    var = {name: draws.var(("chain", "draw")) for name, draws in z.items()}
    ratio = var["guide"] / var["posterior"]
    shift = (mean["guide"] - mean["posterior"]) ** 2 * (1 / var["guide"] + 1 / var["posterior"])
    order = np.argsort((ratio + 1 / ratio - 2 + shift).sum("latent").values)
    ranks = np.unique(np.linspace(0, order.size - 1, min(_DEFAULT, order.size)).round().astype(int))
    return [int(datum) for datum in z["guide"]["datum"].values[order[ranks]]]


def _refusals(tree: xr.DataTree) -> str:
    """A clause on the references that did not converge."""
    if "diagnostics" not in tree.children or "verdict" not in tree["diagnostics"].data_vars:
        return "; whether the reference converged was not measured"
    verdict = tree["diagnostics"].to_dataset()["verdict"].values
    return f"; {(verdict != 'ok').sum()} of {verdict.size} references without verdict"


def _draw_panel(ax: Axes, tree: xr.DataTree, z: dict[str, xr.DataArray]) -> None:
    """One datum."""
    datum, names = int(z["guide"]["datum"]), z["guide"]["latent"].values
    title, has_verdict = _panel_title(tree, datum)
    flat = {name: draws.values.reshape(-1, names.size).astype(float) for name, draws in z.items()}
    shades = {name: COLORS[color] for name, color in _COLORS.items()}
    if not has_verdict:
        shades["posterior"] = COLORS[_REFUSED]
    if names.size == 1:
        _draw_histograms(ax, flat, shades)
        ax.set(xlabel=names[0], ylabel="density")
    else:
        pair = _worst_pair(flat["guide"], flat["posterior"])
        for name, draws in flat.items():
            _draw_cloud(ax, draws[:, pair], shades[name])
        ax.set(xlabel=names[pair[0]], ylabel=names[pair[1]])
    ax.set_title(title, fontsize=9, loc="right", linespacing=1.3, y=1.03)
    simplify(ax)
    _draw_thumbnail(ax, tree, datum)


def _panel_title(tree: xr.DataTree, datum: int) -> tuple[str, bool]:
    """The datum with its k-hat and R-hat, and whether its reference may be trusted."""
    if "diagnostics" not in tree.children:
        return f"datum {datum}", True
    row = tree["diagnostics"].to_dataset().sel(datum=datum)
    numbers = [
        f"{name} {row[variable].item():.{digits}f}"
        for variable, name, digits in (("khat", "k-hat", 2), ("rhat", "R-hat", 3))
        if variable in row
    ]
    has_verdict = "verdict" not in row or row["verdict"].item() == "ok"
    head = f"datum {datum}" if has_verdict else f"datum {datum}: no verdict"
    return f"{head}\n{', '.join(numbers)}", has_verdict


def _worst_pair(guide: Float[np.ndarray, "k d"], reference: Float[np.ndarray, "s d"]) -> list[int]:
    """The two latents with the largest Jeffreys divergence between Gaussians."""
    pairs = np.stack(np.triu_indices(guide.shape[1], 1), -1)
    rows, columns = pairs[:, :, None], pairs[:, None, :]
    cov_g, cov_r = (np.cov(draws.T)[rows, columns] for draws in (guide, reference))
    inv_g, inv_r = np.linalg.pinv(cov_g), np.linalg.pinv(cov_r)
    shift = (guide.mean(0) - reference.mean(0))[pairs]
    trace = np.einsum("pij,pji->p", inv_g, cov_r) + np.einsum("pij,pji->p", inv_r, cov_g)
    jeffreys = trace + np.einsum("pi,pij,pj->p", shift, inv_g + inv_r, shift)
    return [int(i) for i in pairs[jeffreys.argmax()]]


def _draw_cloud(ax: Axes, draws: Float[np.ndarray, "s 2"], color: str) -> None:
    """Points, and the ellipses of the Gaussian that has their moments."""
    step = -(-len(draws) // _MAX_DRAWS)
    ax.scatter(draws[::step, 0], draws[::step, 1], s=5, color=color, alpha=0.4, linewidths=0)
    variances, vectors = np.linalg.eigh(np.cov(draws.T))
    angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))
    centre = (float(draws[:, 0].mean()), float(draws[:, 1].mean()))
    for mass, line in _MASSES.items():
        # A fraction `mass` of a 2-D Gaussian lies within sqrt(-2 log(1 - mass)) standard deviations.
        minor, major = 2 * np.sqrt(-2 * np.log(1 - mass) * np.maximum(variances, 0))
        ax.add_patch(Ellipse(centre, major, minor, angle=angle, fill=False, ec=color, ls=line, lw=1.4))


def _draw_histograms(ax: Axes, z: dict[str, Float[np.ndarray, "s 1"]], shades: dict[str, str]) -> None:
    bins = np.histogram_bin_edges(np.concatenate(list(z.values())), 40).tolist()
    for name, draws in z.items():
        ax.hist(draws[:, 0], bins=bins, density=True, histtype="step", color=shades[name], linewidth=1.4)


def _draw_thumbnail(ax: Axes, tree: xr.DataTree, datum: int) -> None:
    """The datum above its panel, if it is an image."""
    name = data_variable(tree)
    if "observed_data" not in tree.children or name not in tree["observed_data"].data_vars:
        return
    x = tree["observed_data"].to_dataset()[name].sel(datum=[datum]).values.astype(float)
    images = as_images(x)
    if images is not None:
        thumbnail = ax.inset_axes((0.0, 1.03, 0.2, 0.2))
        thumbnail.imshow((images[0] - x.min()) / (np.ptp(x) or 1.0), cmap="gray", interpolation="nearest")
        thumbnail.set_axis_off()


def _add_legend(figure: Figure, *, has_ellipses: bool, has_refused: bool) -> None:
    """Guide and reference, and what the ellipses are."""
    marker, colors = "o" if has_ellipses else "", [*_COLORS.values(), _REFUSED]
    handles = [Line2D([], [], color=COLORS[color], marker=marker, ms=3) for color in colors]
    labels = ["reference", "guide", "reference without verdict"]
    if not has_refused:
        handles, labels = handles[:2], labels[:2]
    if has_ellipses:
        handles += [Line2D([], [], color=COLORS["black"], linestyle=line) for line in _MASSES.values()]
        labels += [f"{mass:.0%} of a Gaussian" for mass in _MASSES]
    columns = 2 if figure.get_figwidth() < 7 else 5
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
