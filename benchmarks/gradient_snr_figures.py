"""The figures of the benchmark of gradient estimators, drawn from what it wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.reporting.figures import set_title
from pyrovae.reporting.plots import plot_gradient_snr, save_figure

__all__ = ["draw"]

VARIABLES = ("snr_squared", "snr_squared_std_error", "variance", "variance_std_error")
COSTS = ("seconds", "seconds_std_error")


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """SNR against K: the toy in the range of its fits, and the VAE at each point of its training."""
    for noise, own in found.get("toy", {}).get("noises", {}).items():
        low, high = own["fit"]
        rows = [row for row in own["rows"] if low <= row["count"] <= high]
        title = f"SNR of gradients against particles, toy of 20 dimensions, noise {noise}"
        _save(rows, title, folder / f"gradient_snr_toy_{noise}.svg")
    for name, own in found.get("digits", {}).get("points", {}).items():
        title = f"SNR of gradients against particles, VAE of digits: {name}"
        _save(own["rows"], title, folder / f"gradient_snr_digits_{name.split()[0]}.svg")


def _save(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    figure = plot_gradient_snr(_tree(rows))
    set_title(figure, title)
    save_figure(figure, path)


def _tree(rows: Sequence[Mapping[str, Any]]) -> xr.DataTree:
    """The group that `gradient_statistics` gives, as far as the figure needs it; NaN where there is no row."""
    dims = ("method", "count", "part")
    coords = {dim: list(dict.fromkeys(row[dim] for row in rows)) for dim in dims}
    coords["count"].sort()
    shape = tuple(len(coords[dim]) for dim in dims)
    values = {name: np.full(shape, np.nan) for name in VARIABLES}
    costs = {name: np.full(shape[:2], np.nan) for name in COSTS}
    for row in rows:
        at = tuple(coords[dim].index(row[dim]) for dim in dims)
        for name in VARIABLES:
            values[name][at] = row[name]
        for name in COSTS:
            costs[name][at[:2]] = row[name]
    variables: dict[str, Any] = {name: (dims, each) for name, each in values.items()}
    variables |= {name: (dims[:2], each) for name, each in costs.items()}
    variables["reason"] = (dims[:2], np.full(shape[:2], ""))
    return results.build_tree({"gradients": results.group("gradients", variables, {}, **coords)})
