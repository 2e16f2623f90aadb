"""Synthetic groups `gradients` with known signal-to-noise ratios, biases and costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from pyrovae.results import build_tree, group

COUNTS = (1, 4, 16, 64, 256)
PARTS = ("encoder", "decoder")
# {method: SNR at one particle and slope of log SNR in log K, for encoder and decoder}
TIGHT: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "elbo": ((0.5, 0.5), (1.0, 0.5)),
    "stl": ((0.9, 0.5), (1.0, 0.5)),
    "iwae": ((0.5, -0.5), (1.0, 0.5)),
    "dreg": ((0.9, 0.5), (1.0, 0.5)),
}
FULL = ("method", "count", "part")
CLOCK = 0.1
"""The relative error of a time."""


def gradients(
    snr: Mapping[str, Sequence[tuple[float, float]]] = TIGHT,
    *,
    counts: Sequence[int] = COUNTS,
    relative_error: float = 0.02,
    mean_norm: float = 2.0,
    seed: int | None = None,
    **changes: Mapping[tuple[str, int, str], float],
) -> xr.Dataset:
    """SNR = c K^slope for each method and part, all of the mean norm `mean_norm`, costs 1 ms + 0.1 ms per particle.

    With a `seed`, SNR^2 has noise of its error. `changes` are {variable: {(method, count, part): value}}.
    """
    methods, k = list(snr), np.array(counts, float)
    level = np.array([[c * k**slope for c, slope in snr[m]] for m in methods]).transpose(0, 2, 1)
    squared = level**2
    error = relative_error * squared
    if seed is not None:
        squared = squared + error * np.random.default_rng(seed).standard_normal(squared.shape)
    variance = mean_norm**2 / level**2
    seconds = np.broadcast_to(1e-3 + 1e-4 * k, (len(methods), len(k)))
    zero = np.zeros_like(squared)
    evidence = np.where(np.arange(2) == 1, 0.3**2 / k[None, :, None], np.nan) + zero
    variables = {
        "mean_norm": zero + mean_norm,
        "variance": variance,
        "variance_std_error": relative_error * variance,
        "snr_squared": squared,
        "snr_squared_std_error": error,
        "directional_snr": level,
        "directional_snr_std_error": relative_error * level,
        "own_bias_squared": zero,
        "own_bias_squared_std_error": zero + 1e-4,
        "evidence_bias_squared": evidence,
        "evidence_bias_squared_std_error": 0.02 * evidence,
        "cosine_own": zero + 1.0,
        "cosine_own_std_error": zero + 1e-3,
        "particles_for_snr_1": k[None, :, None] / level**2,
    }
    made = {name: (FULL, values.copy()) for name, values in variables.items()}
    made |= {
        "seconds": (FULL[:2], seconds.copy()),
        "seconds_std_error": (FULL[:2], CLOCK * seconds),
        "num_density_evaluations": (FULL[:2], np.broadcast_to(k, seconds.shape).copy()),
        "reason": (FULL[:2], np.full(seconds.shape, "", "U64")),
    }
    for name, entries in changes.items():
        dims, values = made[name]
        for (method, count, part), value in entries.items():
            at = (methods.index(method), list(counts).index(count), PARTS.index(part))
            values[at[: len(dims)]] = value
    attrs = {"num_data": 64, "num_replicates": 1000, "reference": "auto", "seed": 0}
    return group("gradients", made, attrs, method=methods, count=list(counts), part=list(PARTS))


def without(made: xr.Dataset, method: str, count: int, reason: str) -> xr.Dataset:
    """The group with NaN, and why, for one method and number of particles."""
    at = {
        "method": list(made["method"].values).index(method),
        "count": list(made["count"].values).index(count),
    }
    changed = made.copy(deep=True)
    for array in changed.data_vars.values():
        array[at] = reason if array.dtype.kind == "U" else np.nan
    return changed


def gradient_tree(*epochs: xr.Dataset, epoch: Sequence[int] = (), **groups: xr.Dataset) -> xr.DataTree:
    """One group as it is, several along `epoch`."""
    made = epochs[0]
    if epoch:
        stacked = xr.concat(epochs, xr.IndexVariable("epoch", list(epoch)))
        variables = {name: (array.dims, array.values) for name, array in stacked.data_vars.items()}
        coords = {dim: stacked[dim].values for dim in stacked.dims}
        made = group("gradients", variables, made.attrs, **coords)
    return build_tree({"gradients": made, **groups})
