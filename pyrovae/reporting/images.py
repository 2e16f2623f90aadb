"""Observed data, their reconstructions and samples from the prior, as images or as lines."""

import math
from typing import Any, Final

import numpy as np
import xarray as xr
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, data_variable, new_figure, require, set_title, simplify

__all__ = ["as_images", "plot_reconstructions"]

_PRIOR: Final = "from the prior"
_COLUMNS: Final = 5  # of line panels
_SMALLEST_SIDE: Final = 5  # shorter vectors are no images


def plot_reconstructions(
    tree: xr.DataTree, image_shape: tuple[int, ...] | None = None, *, num_data: int = 10, num_draws: int = 3
) -> Figure:
    """Observed data, the mean and some draws of their reconstruction, and samples from the prior.

    All images have the grey scale of the observed data. Data that are no images are drawn as lines. Samples from
    the prior are shown if the tree has `prior_predictive`.

    Args:
        tree: A result tree with `observed_data` and `reconstruction` of the same variable, such as `x`.
        image_shape: (height, width) or (height, width, 3); by default see `as_images`. (size,) draws lines.
        num_data: How many data, from the first; >= 1.
        num_draws: How many draws of each, from the first.

    Raises:
        ValueError: If a group is missing or the data do not have `image_shape`.
    """
    name = data_variable(tree)
    observed = require(tree, "observed_data", name)[name]
    draws = require(tree, "reconstruction", name)[name].isel(datum=slice(num_data))
    rows = _rows(observed, draws, num_draws)
    if "prior_predictive" in tree.children:
        prior = require(tree, "prior_predictive", name)[name]
        rows[_PRIOR] = prior.values[: draws.sizes["datum"]].astype(float)
    data = draws["datum"].values
    if as_images(rows["observed"], image_shape) is None:
        figure = _draw_lines({name: values.reshape(len(values), -1) for name, values in rows.items()}, data)
    else:
        figure = _draw_grid({name: as_images(values, image_shape) for name, values in rows.items()}, data)
    mean = draws.mean("draw").values
    error = math.sqrt(float(np.mean((rows["observed"] - mean) ** 2)))
    set_title(
        figure,
        f"The mean reconstruction of {data.size} of {observed.sizes['datum']} data is off by {error:.3g} "
        "(root mean square, in units of the data)",
    )
    return figure


def _rows(
    observed: xr.DataArray, draws: xr.DataArray, num_draws: int
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """What is shown of the data that were reconstructed: {name: one array a datum}."""
    shown = [(f"draw {i + 1}", draws.values[i]) for i in range(min(num_draws, draws.sizes["draw"]))]
    rows = {
        "observed": observed.sel(datum=draws["datum"].values).values,
        f"mean of {draws.sizes['draw']} draws": draws.mean("draw").values,
        **dict(shown),
    }
    return {name: values.astype(float) for name, values in rows.items()}


def as_images(
    values: Float[np.ndarray, "n ..."], image_shape: tuple[int, ...] | None = None
) -> Float[np.ndarray, "n h w ..."] | None:
    """Data as images [n, height, width] or [n, height, width, 3], or None if they are none.

    Without `image_shape`: vectors of 25 or more entries, if their number is a square; matrices; and matrices with
    1 or 3 channels, first or last.

    Raises:
        ValueError: If the data do not have `image_shape`.

    Examples:
        >>> as_images(np.zeros((2, 64))).shape
        (2, 8, 8)
        >>> as_images(np.zeros((2, 60))) is None
        True
    """
    size = math.prod(values.shape[1:])
    if image_shape is not None and math.prod(image_shape) != size:
        raise ValueError(
            f"image_shape {image_shape} has {math.prod(image_shape)} entries, a datum has {size}"
        )
    shape = values.shape[1:] if image_shape is None else image_shape
    side = math.isqrt(size)
    if image_shape is None and len(shape) == 1 and side >= _SMALLEST_SIDE and side**2 == size:
        shape = (side, side)
    shaped = values.reshape(len(values), *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        shaped = np.moveaxis(shaped, 1, -1)
    if len(shape) == 3 and shaped.shape[-1] == 1:
        shaped = shaped[..., 0]
    is_image = shaped.ndim == 3 or (shaped.ndim == 4 and shaped.shape[-1] == 3)
    return shaped if is_image else None


def _draw_grid(rows: dict[str, Any], data: Shaped[np.ndarray, " n"]) -> Figure:
    """One row of images for each entry; those from the prior stand apart."""
    low, high = float(np.nanmin(rows["observed"])), float(np.nanmax(rows["observed"]))
    span = high - low or 1.0
    heights = [0.1 if name is None else 1.0 for name in _with_gap(list(rows))]
    figure = new_figure(max(0.85 * data.size + 1.3, 5.0), 0.85 * sum(heights) + 0.8)
    axes = figure.subplots(len(heights), data.size, squeeze=False, height_ratios=heights)
    for row, name in zip(axes, _with_gap(list(rows)), strict=True):
        images = [] if name is None else np.clip((rows[name] - low) / span, 0, 1)
        for i, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i < len(images):
                ax.imshow(images[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if name == "observed":
                ax.set_title(f"datum {data[i]}", fontsize=8)
        row[0].set_ylabel(name or "", rotation=0, ha="right", va="center", fontsize=9)
    scale = (
        f"black {low:.3g}, white {high:.3g}: the range of these observed data; values outside it are clipped"
    )
    figure.supxlabel(scale, fontsize=8, color=COLORS["grey"])
    return figure


def _with_gap(names: list[str]) -> list[str | None]:
    """Row names, with None, a gap, before the samples from the prior."""
    return [entry for name in names for entry in ([None, name] if name == _PRIOR else [name])]


def _draw_lines(rows: dict[str, Float[np.ndarray, "n x"]], data: Shaped[np.ndarray, " n"]) -> Figure:
    """One panel for each datum, and one for each sample from the prior."""
    columns = min(_COLUMNS, data.size)
    samples = rows.get(_PRIOR, np.zeros((0, 1)))[:columns]
    num_rows = -(-data.size // columns) + (len(samples) > 0)
    figure = new_figure(max(2.1 * columns + 0.6, 5.0), 1.7 * num_rows + 1.0)
    axes = figure.subplots(num_rows, columns, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(axes.ravel()[: data.size]):
        _draw_datum(ax, {name: values[i] for name, values in rows.items() if name != _PRIOR})
        ax.set_title(f"datum {data[i]}", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for ax, sample in zip(axes[-1], samples, strict=False):
        ax.plot(sample, color=COLORS["green"], linewidth=1)
        ax.set_title(_PRIOR, fontsize=9)
    for ax in axes.ravel():
        simplify(ax)
        ax.set_visible(ax.has_data())
    for ax in axes[-1]:
        ax.set_xlabel("dimension of the data", fontsize=9)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.supylabel("value (units of the data)", fontsize=9)
    return figure


def _draw_datum(ax: Axes, lines: dict[str, Float[np.ndarray, " x"]]) -> None:
    """The draws thin, the mean over them, the observed datum as points."""
    for name, values in lines.items():
        if name.startswith("draw"):
            label = "draws" if name == "draw 1" else "_hidden"
            ax.plot(values, color=COLORS["orange"], linewidth=0.6, label=label)
        elif name.startswith("mean"):
            ax.plot(values, color=COLORS["blue"], linewidth=1.3, zorder=3, label=name)
        else:
            ax.plot(values, ".", color=COLORS["black"], markersize=3, zorder=4, label=name)
