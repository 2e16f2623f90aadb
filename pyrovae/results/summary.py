"""The headline numbers of a result tree, one row each, with error bar, direction and number of refusals."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float

from pyrovae.results.schema import check

__all__ = [
    "Row",
    "comparison_row",
    "evidence_rows",
    "gap_rows",
    "khat_row",
    "measured",
    "summary",
    "with_verdict",
    "worst_row",
]

_NATS: Final = "nats per datum"
_ACRONYMS: Final = ("elbo", "iwae", "psis", "ais", "snis", "cubo", "eubo", "jvi", "hmc")
_ESTIMATE: Final = ("value", "std_error", "is_reliable", "direction")
_WORST: Final = {
    "rhat": ("largest R-hat", "ratio", np.max),
    "ess_bulk": ("smallest bulk ESS", "draws", np.min),
    "ess_tail": ("smallest tail ESS", "draws", np.min),
}
# Noise makes absolute errors and distances too large in expectation, hence "upper".
_COMPARED: Final = {
    "mean_error": ("guide: absolute error of its mean", "posterior sds", "upper"),
    "sd_ratio": ("guide: its sd over the posterior's", "ratio", "none"),
    "wasserstein2": ("guide: Wasserstein-2 distance to the posterior", "latent units", "upper"),
}


class Row(NamedTuple):
    """One headline quantity; `subject` is the method or variable that it is about."""

    subject: str
    quantity: str
    value: float
    std_error: float
    unit: str
    direction: str
    num_data: int
    num_refused: int


def summary(tree: xr.DataTree) -> pd.DataFrame:
    """One row for each headline quantity that was measured.

    Columns: `value`, a mean over data; `std_error`, sd / sqrt(N) over data, which holds the Monte Carlo error,
    and never below the Monte Carlo error alone; `unit`; `direction`, how the expectation of `value` lies to the
    truth ("lower", "upper", "none", "exact"); `num_data`, the data in the mean; `num_refused`, the data whose
    own number is not to be trusted. For log p(x) these stay in the mean, because leaving out the hard data would
    flatter; what is measured against the reference leaves out the data that have no verdict.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> made = xr.Dataset({"khat": ("datum", [0.2, 0.9])}, {"datum": [0, 1]}, {"khat_threshold": 0.7})
        >>> table = summary(xr.DataTree.from_dict({"diagnostics": made}))
        >>> float(table.loc["share of data with k-hat above 0.7", "value"])
        0.5
    """
    check(tree)
    single = [khat_row(tree), _converged_row(tree), *(worst_row(tree, name) for name in _WORST)]
    single += [comparison_row(tree, name) for name in _COMPARED]
    rows = [*evidence_rows(tree), *gap_rows(tree), *(row for row in single if row), *_term_rows(tree)]
    return pd.DataFrame(rows, columns=Row._fields).set_index("quantity").drop(columns="subject")


def measured(tree: xr.DataTree, name: str, *variables: str) -> xr.Dataset | None:
    """A group of the tree if it was measured with these variables, else None."""
    if name not in tree.children or not set(variables) <= set(tree[name].data_vars):
        return None
    return tree[name].to_dataset()


def evidence_rows(tree: xr.DataTree) -> Iterator[Row]:
    """log p(x) by every method; without error bar where none of the data has one to be trusted."""
    for method, estimate in _estimates(tree).items():
        label = " ".join(word.upper() if word in _ACRONYMS else word for word in method.split("_"))
        yield _estimate_row(estimate, label, f"log p(x) by {label}")


def gap_rows(tree: xr.DataTree) -> Iterator[Row]:
    """KL(guide || posterior) = log p(x) - ELBO, by every method but the ELBO, paired by datum.

    The estimate of the ELBO has no bias, so the direction is the method's.
    """
    estimates = _estimates(tree)
    for row, (method, estimate) in zip(evidence_rows(tree), estimates.items(), strict=True):
        if method == "elbo" or "elbo" not in estimates:
            continue
        elbo = estimates["elbo"]
        gap = estimate.assign(
            value=estimate["value"] - elbo["value"],
            std_error=np.hypot(estimate["std_error"], elbo["std_error"]),
            is_reliable=estimate["is_reliable"] & elbo["is_reliable"],
        )
        yield _estimate_row(gap, row.subject, f"KL(guide || posterior) by {row.subject} - ELBO")


def _estimates(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Each method's evidence."""
    evidence = measured(tree, "evidence", *_ESTIMATE)
    return (
        {} if evidence is None else {str(m): evidence.sel({"method": m}) for m in evidence["method"].values}
    )


def _estimate_row(estimate: xr.Dataset, subject: str, quantity: str) -> Row:
    value, error, count = _average(estimate["value"].values, estimate["std_error"].values)
    refused = int((~estimate["is_reliable"].values).sum())
    error = math.nan if refused == estimate.sizes["datum"] else error
    direction = str(estimate["direction"].item())
    return Row(subject, quantity, value, error, _NATS, direction, count, refused)


def _average(values: Float[np.ndarray, " n"], mc_error: Float[np.ndarray, " n"]) -> tuple[float, float, int]:
    """Mean, standard error and count over the finite values, each with its own Monte Carlo error.

    The spread over data has the Monte Carlo error in it already; it is rough for few data, so the Monte Carlo
    error alone is its floor.
    """
    is_finite = np.isfinite(values)
    kept, count = values[is_finite].astype(float), int(is_finite.sum())
    if count == 0:
        return math.nan, math.nan, 0
    floor = float(np.nansum(mc_error[is_finite].astype(float) ** 2)) / count**2
    spread = float(kept.var(ddof=1)) / count if count > 1 else 0.0
    error = math.sqrt(max(spread, floor))
    return float(kept.mean()), error if error > 0 or count > 1 else math.nan, count


def khat_row(tree: xr.DataTree) -> Row | None:
    """The share of data whose importance weights have too heavy a tail."""
    diagnostics = measured(tree, "diagnostics", "khat")
    if diagnostics is None:
        return None
    khat, limit = diagnostics["khat"].values, float(diagnostics.attrs.get("khat_threshold", 0.7))
    above = np.where(np.isnan(khat), np.nan, khat > limit)
    value, error, count = _average(above, np.zeros_like(above))
    quantity = f"share of data with k-hat above {limit:.3g}"
    return Row(f"{limit:.3g}", quantity, value, error, "share", "none", count, above.size - count)


def _converged_row(tree: xr.DataTree) -> Row | None:
    """How many data have a reference that converged."""
    diagnostics = measured(tree, "diagnostics", "verdict")
    if diagnostics is None:
        return None
    ok = with_verdict(tree, diagnostics.sizes["datum"])
    count, quantity = int(ok.sum()), "data with a converged reference"
    return Row("verdict", quantity, float(count), math.nan, "data", "exact", ok.size, ok.size - count)


def worst_row(tree: xr.DataTree, name: str) -> Row | None:
    """The worst value over all data of `rhat`, `ess_bulk` or `ess_tail`."""
    diagnostics = measured(tree, "diagnostics", name)
    if diagnostics is None:
        return None
    quantity, unit, worst = _WORST[name]
    values = diagnostics[name].values
    kept = values[~np.isnan(values)]
    value = float(worst(kept)) if kept.size else math.nan
    return Row(name, quantity, value, math.nan, unit, "none", kept.size, values.size - kept.size)


def with_verdict(tree: xr.DataTree, num_data: int) -> Bool[np.ndarray, " n"]:
    """The data whose reference converged; none where that was not measured."""
    diagnostics = measured(tree, "diagnostics", "verdict")
    return np.zeros(num_data, bool) if diagnostics is None else diagnostics["verdict"].values == "ok"


def comparison_row(tree: xr.DataTree, variable: str) -> Row | None:
    """The mean of `mean_error` (absolute), `sd_ratio` or `wasserstein2` over the data that have a verdict.

    The Monte Carlo errors of one datum's latents come from the same chains: they are averaged as if they were
    fully correlated, which can only widen the error bar.
    """
    comparison = measured(tree, "comparison", variable)
    if comparison is None:
        return None
    array = comparison[variable]
    errors = comparison.get(f"{variable}_std_error", xr.zeros_like(array))
    per_latent = [str(dim) for dim in array.dims if dim != "datum"]
    sizes: xr.DataArray = abs(array) if variable == "mean_error" else array
    values = sizes.mean(per_latent).values.astype(float)
    values[~with_verdict(tree, len(values))] = np.nan
    value, error, count = _average(values, errors.mean(per_latent).values)
    quantity, unit, direction = _COMPARED[variable]
    return Row(variable, quantity, value, error, unit, direction, count, len(values) - count)


def _term_rows(tree: xr.DataTree) -> Iterator[Row]:
    """Every number in `gaps` and `decomposition`, per datum or of all data, with its `_std_error` if it has one.

    The attributes `units` and `direction` of a variable go into its row.
    """
    for name in ("gaps", "decomposition"):
        terms = measured(tree, name) or xr.Dataset()
        for variable, array in terms.data_vars.items():
            is_term = array.dims in (("datum",), ()) and array.dtype.kind == "f"
            if not is_term or str(variable).endswith(("_std_error", "seconds")):
                continue
            errors = terms.get(f"{variable}_std_error", xr.zeros_like(array))
            value, error, count = _average(np.atleast_1d(array.values), np.atleast_1d(errors.values))
            unit, direction = (
                str(array.attrs.get(key, other)) for key, other in (("units", _NATS), ("direction", "none"))
            )
            quantity = f"{name}: {variable}"
            refused = array.size - count
            count = count if array.dims else terms.sizes.get("datum", 1)
            yield Row(str(variable), quantity, value, error, unit, direction, count, refused)
