"""Numbers on gradient estimators: one table to decide by, and how the signal-to-noise ratio goes with the particles."""

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from pyrovae.results.rows import measured
from pyrovae.results.schema import check
from pyrovae.results.significance import SURE

__all__ = [
    "MAIN_PARTS",
    "WITHIN",
    "Record",
    "gradient_records",
    "gradient_summary",
    "gradients_of",
    "snr_slopes",
]

Record = dict[str, Any]
"""A row of `gradient_summary`, with its index: part, method, count and perhaps epoch."""

MAIN_PARTS: Final = ("encoder", "decoder", "shared")
"""The parts that a person chooses an estimator for; others are single parameter tensors."""
WITHIN: Final = 1.96
"""Standard errors on either side in a 95 % interval."""

_NEEDED: Final = (
    "variance",
    "variance_std_error",
    "snr_squared",
    "snr_squared_std_error",
    "seconds",
    "seconds_std_error",
    "reason",
)
_SHOWN: Final = (
    *("snr_squared", "snr_squared_std_error", "directional_snr", "directional_snr_std_error"),
    *("variance", "variance_std_error", "own_bias_squared", "own_bias_squared_std_error"),
    *("evidence_bias_squared", "evidence_bias_squared_std_error", "cosine_own", "cosine_own_std_error"),
    *("cosine_evidence", "cosine_evidence_std_error", "seconds", "seconds_std_error"),
    *("num_density_evaluations", "variance_seconds", "particles_for_snr_1", "reason"),
)
_COLUMNS: Final = (
    *("snr", "snr_std_error", "snr_low", "snr_high", "directional_snr", "directional_snr_std_error"),
    *("variance", "variance_std_error", "own_bias", "own_bias_std_error", "is_biased"),
    *("evidence_bias", "evidence_bias_std_error", "cosine_own", "cosine_own_std_error"),
    *("cosine_evidence", "cosine_evidence_std_error", "seconds", "seconds_std_error"),
    *(
        "num_density_evaluations",
        "variance_seconds",
        "snr_squared_per_second",
        "particles_for_snr_1",
        "reason",
    ),
    *("snr_squared", "snr_squared_std_error", "own_bias_squared", "own_bias_squared_std_error"),
    *("evidence_bias_squared", "evidence_bias_squared_std_error"),
)
_SMALL: Final = 0.01  # of the gradient's length: a smaller bias is none to care about


def gradients_of(tree: xr.DataTree) -> xr.Dataset:
    """The group `gradients` of a checked tree.

    Raises:
        ValueError: If the tree does not pass `check`, or has no `gradients` with variances and signal-to-noise ratios.
    """
    check(tree)
    made = measured(tree, "gradients", *_NEEDED)
    if made is None:
        raise ValueError("the tree has no gradients; pyrovae.gradient_statistics measures them")
    return made


def gradient_summary(tree: xr.DataTree) -> pd.DataFrame:
    """What decides between gradient estimators, one row for each part of the parameters, method and particle number.

    With g one estimate of the gradient, all of it for one part, m = E g and V = trace Cov g:

    - `snr` = sqrt(max(|m|^2 / V, 0)) with |m|^2 debiased, so that `snr_squared` may be negative and pure noise has an
      SNR of 0, not of 1 / sqrt(replicates); `snr_std_error` by the delta method; `snr_low` and `snr_high`, the 95 %
      interval of SNR^2, taken to SNR. `directional_snr`, the same along the direction of m, where it was measured;
    - `variance`, V; `variance_seconds`, V times `seconds`: what averaging does not change, so that it ranks estimators
      of one objective, whose m is the same; `snr_squared_per_second`, which ranks those of several objectives;
    - `own_bias`, the distance of m to the gradient of the estimator's own objective over that gradient's length;
      `is_biased`, if its square is more than 3 standard errors above 0, and it is above 1 %;
    - `evidence_bias`, the same against the gradient of log p(x), for the decoder; `cosine_own`, `cosine_evidence`;
    - `seconds` for one training gradient, with `seconds_std_error`, `num_density_evaluations` per datum;
    - `particles_for_snr_1`, how many particles make an SNR of 1; `reason`, why a row has no numbers.

    Where `gradients` has an `epoch`, it is the first level of the index.

    Raises:
        ValueError: If the tree does not pass `check`, or has no `gradients`.

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", for the SNR.

    Examples:
        >>> from pyrovae.results import build_tree, group
        >>> dims, plain = ("method", "count", "part"), ("method", "count")
        >>> values = {"variance": 4.0, "variance_std_error": 0.1, "snr_squared": 0.25, "snr_squared_std_error": 0.01}
        >>> made = {name: (dims, np.full((1, 1, 1), value)) for name, value in values.items()}
        >>> made |= {"seconds": (plain, [[0.5]]), "seconds_std_error": (plain, [[0.01]]), "reason": (plain, [[""]])}
        >>> made = group("gradients", made, method=["elbo"], count=[8], part=["encoder"])
        >>> table = gradient_summary(build_tree({"gradients": made}))
        >>> table.loc[("encoder", "elbo", 8), ["snr", "variance_seconds", "snr_squared_per_second"]].to_list()
        [0.5, 2.0, 0.5]
    """
    made = gradients_of(tree)
    first = ["epoch"] if "epoch" in made.dims else []
    found = [name for name in _SHOWN if name in made]
    table = made[found].to_dataframe(dim_order=[*first, "part", "method", "count"])
    for name in set(_SHOWN) - set(found):
        table[name] = np.nan
    table["variance_seconds"] = table["variance"] * table["seconds"]
    squared, error = table["snr_squared"].to_numpy(float), table["snr_squared_std_error"].to_numpy(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["snr"], table["snr_std_error"] = _root(squared, error)
        table["snr_low"], table["snr_high"] = (
            _root(squared + s * error, error)[0] for s in (-WITHIN, WITHIN)
        )
        table["snr_squared_per_second"] = squared / table["seconds"].to_numpy(float)
        for name in ("own_bias", "evidence_bias"):
            pair = (table[f"{name}_squared{end}"].to_numpy(float) for end in ("", "_std_error"))
            table[name], table[f"{name}_std_error"] = _root(*pair)
    is_sure = table["own_bias_squared"] > SURE * table["own_bias_squared_std_error"]
    table["is_biased"] = is_sure & (table["own_bias"] > _SMALL)
    return table[list(_COLUMNS)]


def _root(
    squared: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """sqrt of a debiased square, 0 where that is negative, and its error by the delta method, NaN where it is 0."""
    root = np.sqrt(np.where(squared < 0, 0.0, squared))
    return root, np.where(root > 0, error / (2 * root), np.nan)


def gradient_records(tree: xr.DataTree) -> list[Record]:
    """The rows of `gradient_summary` one by one; `epoch` is None where there is none.

    Raises:
        ValueError: As `gradient_summary`.
    """
    rows = gradient_summary(tree).reset_index().to_dict("records")
    return [{"epoch": None} | {str(name): value for name, value in row.items()} for row in rows]


def snr_slopes(
    tree: xr.DataTree, *, min_particles: int = 1, max_particles: int | None = None
) -> pd.DataFrame:
    """How the SNR goes with the number of particles K: SNR = exp(intercept) K^slope, for each part and method.

    Weighted least squares of log SNR on log K, the error of log SNR being std_error(SNR^2) / (2 SNR^2). Where the
    points scatter more than their errors allow, because the law does not hold yet, the error of the slope is widened
    by the square root of chi-square per degree of freedom. Errors of different K are taken as independent.

    Points whose 95 % interval of SNR^2 includes 0 are left out, and so are those of zero variance; their number is
    told. Leaving out the points that came out low makes a falling slope look less steep.

    Theory, for K to infinity (Rainforth et al. 2018; Tucker et al. 2019): +1/2 for the decoder, -1/2 for the encoder
    by the reparameterized "iwae", +1/2 by "dreg" and by every average of K independent estimates, such as "elbo".

    Args:
        tree: With `gradients`.
        min_particles: The smallest K in the fit, >= 1.
        max_particles: The largest, all by default.

    Returns:
        One row for each part and method (and epoch, as the first level, where there is one): `slope`, `std_error`,
        `low` and `high` of the 95 % interval, `intercept`, all NaN with less than 3 points; `num_points` in the fit,
        `num_left_out` of those in the range that have numbers.

    Raises:
        ValueError: If the tree does not pass `check`, has no `gradients`, or the range holds no K.

    Examples:
        >>> from pyrovae.results import build_tree, group
        >>> dims, plain, count = ("method", "count", "part"), ("method", "count"), np.array([1, 4, 16])
        >>> made = {"snr_squared": 0.01 * count, "snr_squared_std_error": 0.001 * count}
        >>> made |= {"variance": np.ones(3), "variance_std_error": np.ones(3)}
        >>> made = {name: (dims, values[None, :, None]) for name, values in made.items()}
        >>> made |= {name: (plain, np.ones((1, 3))) for name in ("seconds", "seconds_std_error")}
        >>> made |= {"reason": (plain, [[""] * 3])}
        >>> made = group("gradients", made, method=["elbo"], count=count, part=["encoder"])
        >>> slopes = snr_slopes(build_tree({"gradients": made}))
        >>> round(float(slopes.loc[("encoder", "elbo"), "slope"]), 6)
        0.5
    """
    table = gradient_summary(tree).reset_index("count")
    count = table["count"]
    is_in = (count >= min_particles) & (count <= (math.inf if max_particles is None else max_particles))
    if not is_in.any():
        raise ValueError(
            f"need numbers of particles from {min_particles} to {max_particles or 'any'}, got "
            f"{sorted(set(count.to_list()))}: widen the range"
        )
    table = table[is_in]
    levels = list(table.index.names)
    rows = {key: _fit(kept) for key, kept in table.groupby(level=levels, sort=False)}
    index = pd.MultiIndex.from_tuples(list(rows), names=levels)
    return pd.DataFrame(list(rows.values()), index=index)


def _fit(points: pd.DataFrame) -> dict[str, float | int]:
    """The row of one part and method."""
    squared, error = points["snr_squared"].to_numpy(float), points["snr_squared_std_error"].to_numpy(float)
    kept = np.isfinite(squared) & np.isfinite(error) & (squared - WITHIN * error > 0)
    y = np.log(squared[kept]) / 2
    relative = np.maximum(error[kept] / (2 * squared[kept]), 1e-12)
    slope, std_error, intercept = _line(np.log(points["count"].to_numpy(float)[kept]), y, relative)
    ends = {"low": slope - WITHIN * std_error, "high": slope + WITHIN * std_error}
    counts = {"num_points": int(kept.sum()), "num_left_out": int((~np.isnan(squared) & ~kept).sum())}
    return {"slope": slope, "std_error": std_error, **ends, "intercept": intercept, **counts}


def _line(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
) -> tuple[float, float, float]:
    """Slope, its error and intercept of y on x; NaN with less than 3 points."""
    if len(x) < 3:
        return math.nan, math.nan, math.nan
    weight = error**-2.0
    middle_x, middle_y = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = float(weight @ (x - middle_x) ** 2)
    slope = float(weight @ ((x - middle_x) * (y - middle_y))) / spread
    intercept = float(middle_y - slope * middle_x)
    scatter = float(weight @ (y - intercept - slope * x) ** 2) / (len(x) - 2)
    return slope, math.sqrt(max(scatter, 1.0) / spread), intercept
