"""The headline numbers of a result tree, one row each, with error bar, direction and number of refusals."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool

from pyrovae.results.calibration import calibration_rows
from pyrovae.results.inference_gaps import inference_gap_rows
from pyrovae.results.rows import (
    NATS,
    Method,
    Row,
    average,
    estimate_row,
    largest_budgets,
    measured,
    methods_of,
)
from pyrovae.results.sandwich import half_gap, sandwich_rows, truth_direction, truth_name
from pyrovae.results.schema import check

__all__ = [
    "comparison_row",
    "evidence_rows",
    "gap_rows",
    "khat_row",
    "summary",
    "term_rows",
    "told_methods",
    "with_verdict",
    "worst_row",
]

_ESTIMATE: Final = ("value", "std_error", "is_reliable", "direction")
_NO_ESTIMATES: Final = ("cubo", "largest-weight")  # their distance to log p(x) is not even roughly known
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
    from_evidence = [*evidence_rows(tree), *sandwich_rows(tree), *gap_rows(tree)]
    rows = [*from_evidence, *(row for row in single if row), *inference_gap_rows(tree)]
    rows += [*term_rows(tree), *calibration_rows(tree)]
    return pd.DataFrame(rows, columns=Row._fields).set_index("quantity").drop(columns="subject")


def evidence_rows(tree: xr.DataTree) -> Iterator[Row]:
    """log p(x) by every method, the label of which is `subject`; no error bar where none of the data has a good one."""
    evidence = measured(tree, "evidence", *_ESTIMATE)
    for method in [] if evidence is None else methods_of(evidence):
        quantity = f"log p(x) by {method.described(', ')}"
        yield estimate_row(
            tree["evidence"].to_dataset().sel({"method": method.label}), method.label, quantity
        )


def told_methods(tree: xr.DataTree) -> list[Method]:
    """The methods that a reader should be told of besides the truth about log p(x).

    None if the truth of every datum is known. If that of some is, the ends of the sandwich, which speak of the other
    data too: these are the hard ones. Else each estimator, with its largest budget.
    """
    evidence, truth = measured(tree, "evidence", *_ESTIMATE), measured(tree, "sandwich", "truth")
    methods = [] if evidence is None else largest_budgets(methods_of(evidence))
    if truth is None or not np.isfinite(truth["truth"]).any():
        return methods
    if np.isfinite(truth["truth"]).all():
        return []
    ends = [truth.attrs.get(name) for name in ("lower_method", "upper_method")]
    return [method for method in methods if method.label in ends] or methods


def gap_rows(tree: xr.DataTree) -> Iterator[Row]:
    """KL(guide || posterior) = log p(x) - ELBO, paired by datum: by the truth where it is known, and by `told_methods`.

    Not by "cubo" and "largest-weight", which are no estimates of log p(x). The estimate of the ELBO has no bias, so
    the direction is that of what stands for log p(x), the name of which is `subject`.
    """
    evidence = measured(tree, "evidence", *_ESTIMATE)
    largest = {} if evidence is None else {m.estimator: m for m in largest_budgets(methods_of(evidence))}
    if evidence is None or "elbo" not in largest:
        return
    elbo = evidence.sel({"method": largest["elbo"].label})
    truth = measured(tree, "sandwich", "truth", "truth_std_error", "source")
    if truth is not None and np.isfinite(truth["truth"]).any():
        yield _truth_row(truth, elbo)
    for method in told_methods(tree):
        if method.estimator not in ("elbo", *_NO_ESTIMATES):
            estimate = evidence.sel({"method": method.label})
            yield _gap_row(estimate, elbo, method.described(" with "), method.described(", "))


def _truth_row(truth: xr.Dataset, elbo: xr.Dataset) -> Row:
    """The gap below the truth; data without one are left out and counted."""
    name = truth_name(truth)
    known = xr.Dataset(
        {
            "value": truth["truth"],
            "std_error": truth["truth_std_error"],
            "is_reliable": np.isfinite(truth["truth"]),
            "direction": truth_direction(truth),
        }
    )
    row = _gap_row(known, elbo, name, name)
    margin = float(half_gap(truth).sum()) / max(row.num_data, 1)
    return row._replace(std_error=math.hypot(row.std_error, margin))


def _gap_row(estimate: xr.Dataset, elbo: xr.Dataset, subject: str, name: str) -> Row:
    gap = estimate.assign(
        value=estimate["value"] - elbo["value"],
        std_error=np.hypot(estimate["std_error"], elbo["std_error"]),
        is_reliable=estimate["is_reliable"] & elbo["is_reliable"],
    )
    return estimate_row(gap, subject, f"KL(guide || posterior) by {name} - ELBO")


def khat_row(tree: xr.DataTree) -> Row | None:
    """The share of data whose importance weights have too heavy a tail."""
    diagnostics = measured(tree, "diagnostics", "khat")
    if diagnostics is None:
        return None
    khat, limit = diagnostics["khat"].values, float(diagnostics.attrs.get("khat_threshold", 0.7))
    above = np.where(np.isnan(khat), np.nan, khat > limit)
    value, error, count = average(above, np.zeros_like(above))
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
    value, error, count = average(values, errors.mean(per_latent).values)
    quantity, unit, direction = _COMPARED[variable]
    return Row(variable, quantity, value, error, unit, direction, count, len(values) - count)


def term_rows(tree: xr.DataTree) -> Iterator[Row]:
    """Every number in `decomposition`, per datum or of all data, with its `_std_error` if it has one.

    The attributes `units` and `direction` of a variable go into its row. Without error bar where none of the data has
    one to be trusted; what hangs on the middle of a sandwich has its half gap in it, as in the gap itself.
    """
    terms = measured(tree, "decomposition") or xr.Dataset()
    for variable, array in terms.data_vars.items():
        is_term = array.dims in (("datum",), ()) and array.dtype.kind == "f"
        if not is_term or str(variable).endswith(("_std_error", "seconds")):
            continue
        errors = terms.get(f"{variable}_std_error", xr.zeros_like(array))
        value, error, count = average(np.atleast_1d(array.values), np.atleast_1d(errors.values))
        error = math.nan if np.isnan(errors).all() else math.hypot(error, _margin(tree, str(variable)))
        unit, direction = (
            str(array.attrs.get(key, other)) for key, other in (("units", NATS), ("direction", "none"))
        )
        refused = array.size - count
        count = count if array.dims else terms.sizes.get("datum", 1)
        yield Row(str(variable), f"decomposition: {variable}", value, error, unit, direction, count, refused)


def _margin(tree: xr.DataTree, variable: str) -> float:
    """How far a term may be off because its log p(x) is the middle of a sandwich."""
    truth = measured(tree, "sandwich", "truth", "source")
    is_by_truth = tree["decomposition"].attrs.get("log_evidence_by") == "truth"
    if truth is None or not is_by_truth or variable not in ("log_evidence", "kl_posterior"):
        return 0.0
    return float(half_gap(truth).sum()) / max(int(np.isfinite(truth["truth"]).sum()), 1)
