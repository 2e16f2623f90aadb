"""How many draws of z are enough: the error of the average log-likelihood against their number."""

import math

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify

__all__ = ["plot_draw_counts"]


def plot_draw_counts(tree: xr.DataTree) -> Figure:
    """The error of the average log p(x | z) of each datum, against the number of draws of z.

    One thin line a datum, its standard error, and thick their root mean square; and the error that was seen, the root
    mean square of the average of the first draws minus that of all, up to a tenth of them. Both axes logarithmic. The
    title says how many draws bring that error to a tenth of a nat, from sd / sqrt(K).

    Raises:
        ValueError: If the tree has no `reconstruction` with `log_likelihood` and `log_likelihood_std_error`.

    Examples:
        >>> values = [[-9.0], [-8.0], [-7.9]], [[2.0], [0.2], [0.02]]
        >>> names = "log_likelihood", "log_likelihood_std_error"
        >>> made = {name: (("count", "datum"), value) for name, value in zip(names, values)}
        >>> group = xr.Dataset(made, {"count": [1, 100, 10_000], "datum": [0]})
        >>> plot_draw_counts(xr.DataTree.from_dict({"reconstruction": group})).axes[0].get_xlabel()
        'draws of z for each datum'
    """
    made = require(tree, "reconstruction", "log_likelihood_std_error")
    value = (
        require(tree, "reconstruction", "log_likelihood")["log_likelihood"].transpose("count", "datum").values
    )
    count, each = made["count"].values, made["log_likelihood_std_error"].transpose("count", "datum").values
    figure = new_figure(6.0, 4.0)
    ax = figure.subplots()
    ax.plot(count, each, color=COLORS["sky"], linewidth=0.6, alpha=0.6)
    ax.plot([], [], color=COLORS["sky"], linewidth=0.6, label="standard error, one datum")
    typical = _root_mean_square(each)
    ax.plot(count, typical, color=COLORS["blue"], linewidth=2, label="standard error, root mean square")
    seen = _root_mean_square(value - value[-1])
    early = (count <= count[-1] / 10) & (seen > 0)
    ax.plot(
        count[early],
        seen[early],
        "o",
        color=COLORS["vermillion"],
        markersize=5,
        label="error seen, root mean square",
    )
    ax.set(xscale="log", yscale="log", xlabel="draws of z for each datum")
    ax.set_ylabel("error of the average log p(x | z) (nats)")
    ax.legend(frameon=False, fontsize=9)
    simplify(ax)
    set_title(figure, _title(count, typical, each.shape[1]))
    return figure


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    """Over data, `[count]`."""
    return np.sqrt(np.mean(values**2, 1))


def _title(count: np.ndarray, typical: np.ndarray, num_data: int) -> str:
    needed = math.ceil((typical[0] * math.sqrt(count[0]) / 0.1) ** 2)
    return (
        f"One draw errs by {typical[0]:.2g} nats (root mean square over {num_data} data); "
        f"{max(needed, 1):,} draws bring that down to 0.1"
    )
