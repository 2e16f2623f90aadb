"""The truth about log p(x), known or between annealing forward and backward, and every estimator held against it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float

from pyrovae.results.groups import Evidence, evidence_labels, group
from pyrovae.results.rows import NATS, Row, average, estimate_row, measured, methods_of
from pyrovae.results.schema import SOURCES, check

__all__ = [
    "evidence_summary",
    "half_gap",
    "sandwich_group",
    "sandwich_rows",
    "truth_direction",
    "truth_name",
    "with_bias",
]

_KNOWN: Final = ("exact", "quadrature")
_PAIR: Final = ("ais", "ais-reverse")
_BY_PAIR: Final = SOURCES[2]
_COSTS: Final = ("num_density_evaluations", "num_gradient_evaluations", "seconds")
_CROSSED: Final = 3.0  # standard errors from which ends have crossed
_ROUNDING: Final = 1e-6  # of log p(x): what single precision may put between two ends that are equal


def sandwich_group(evidence: Sequence[Evidence], tolerance: float, *, datum: Any = None) -> xr.Dataset | None:
    """Put a lower and an upper end around log p(x) of every datum, and take the truth where there is one.

    The ends are "ais" (annealing forward, E[lower] <= log p(x)) and "ais-reverse" (backward, E[upper] >= log p(x)),
    each with its largest budget; their random numbers are taken as independent. Of a datum with gap = upper - lower,

    - "no verdict", if an end is missing, or the ends have crossed: a gap below zero by more than 3 standard errors
      (and 1e-6 of log p(x), which is rounding) says that one of them is wrong;
    - "did not close", if gap > tolerance;
    - "no verdict", if an end's error bar is not to be trusted, or that of the gap is above the tolerance, so that a
      small gap may be luck;
    - "closed" otherwise.

    The truth is "exact" where that was measured, else "quadrature", else the middle of a closed sandwich. The middle
    has two errors: Monte Carlo, gap_std_error / 2, and its place between the ends, at most gap / 2. Both are in
    `truth_std_error`, the second at its most, although the two ends give way alike as temperatures are added.

    Args:
        evidence: All of the same data; may hold any other methods.
        tolerance: The largest gap that counts as closed, nats; > 0.
        datum: Coordinates of the data; 0, 1, ... by default.

    Returns:
        The group `sandwich`; without ends if there is no pair, None if there is no known truth either. `is_approximate`
        is that of the upper end, whose draws may only nearly be the posterior's; the attributes `lower_method` and
        `upper_method` are the labels of the ends, `reason` what the upper end says of itself.

    Raises:
        ValueError: If `tolerance` is not a positive number, or `evidence` does not fit together.

    Examples:
        >>> def made(method, value, direction):
        ...     yes = np.ones(2, bool)
        ...     return Evidence(method=method, value=np.array(value), std_error=np.full(2, 0.01), direction=direction,
        ...                     is_unbiased_density=False, is_reliable=yes, is_approximate=~yes)
        >>> forward, backward = made("ais", [-3.0, -4.0], "lower"), made("ais-reverse", [-2.96, -3.0], "upper")
        >>> found = sandwich_group([forward, backward], tolerance=0.1)
        >>> found["verdict"].values.tolist(), found["truth"].values.tolist()
        (['closed', 'did not close'], [-2.98, nan])
    """
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(
            f"tolerance is the largest gap, in nats, that counts as closed: > 0, got {tolerance}"
        )
    found = dict(zip(evidence_labels(evidence), evidence, strict=True))
    ends = [_largest(found, name) for name in _PAIR]
    lower, upper = (found.get(label) for label in ends)
    known = {name: e for name in _KNOWN if (e := found.get(_largest(found, name))) is not None}
    attrs: dict[str, Any] = {"tolerance": float(tolerance)}
    variables: dict[str, np.ndarray] = {}
    if lower is not None and upper is not None:
        variables = _between(lower, upper, tolerance)
        attrs |= {"lower_method": ends[0], "upper_method": ends[1], "reason": upper.reason}
    elif not known:
        return None
    variables |= _truth(known, variables, evidence[0].num_data)
    return group("sandwich", variables, attrs, **({} if datum is None else {"datum": datum}))


def _largest(found: Mapping[str, Evidence], method: str) -> str:
    """The label of a method's largest budget, or ""."""
    labels = [label for label, e in found.items() if e.method == method]
    return max(labels, key=lambda label: found[label].budget, default="")


def _between(lower: Evidence, upper: Evidence, tolerance: float) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):  # both ends may be infinite
        gap, error = upper.value - lower.value, np.hypot(lower.std_error, upper.std_error)
    is_reliable = lower.is_reliable & upper.is_reliable
    return {
        "lower": lower.value,
        "lower_std_error": lower.std_error,
        "upper": upper.value,
        "upper_std_error": upper.std_error,
        "gap": gap,
        "gap_std_error": error,
        "is_approximate": upper.is_approximate,
        "verdict": _verdict(gap, error, is_reliable, _ROUNDING * np.fmax(1.0, abs(lower.value)), tolerance),
    }


def _verdict(
    gap: Float[np.ndarray, " n"],
    error: Float[np.ndarray, " n"],
    is_reliable: Bool[np.ndarray, " n"],
    rounding: Float[np.ndarray, " n"],
    tolerance: float,
) -> np.ndarray:
    """The first rule that holds gives the verdict; NaN fulfils none but the last."""
    has_crossed = gap < -(_CROSSED * error + rounding)
    is_wide = np.isfinite(gap) & (gap > tolerance)
    is_closed = np.isfinite(gap) & is_reliable & (error <= tolerance)
    rules = {"no verdict": has_crossed, "did not close": is_wide, "closed": is_closed}
    return np.select(list(rules.values()), list(rules), "no verdict")


def _truth(
    known: Mapping[str, Evidence], sandwich: Mapping[str, np.ndarray], num_data: int
) -> dict[str, np.ndarray]:
    """The truth of every datum by the best source that it has."""
    value, error, source = np.full(num_data, np.nan), np.full(num_data, np.nan), np.full(num_data, "", "U32")
    if sandwich:
        closed = sandwich["verdict"] == "closed"
        middle = (sandwich["lower"] + sandwich["upper"]) / 2
        spread = np.hypot(sandwich["gap_std_error"], np.fmax(sandwich["gap"], 0.0)) / 2
        value, error = np.where(closed, middle, np.nan), np.where(closed, spread, np.nan)
        source[closed] = _BY_PAIR
    for name in reversed(_KNOWN):
        if name in known:
            has = known[name].is_reliable
            value, error = (
                np.where(has, known[name].value, value),
                np.where(has, known[name].std_error, error),
            )
            source[has] = name
    return {"truth": value, "truth_std_error": error, "source": source}


def with_bias(evidence: xr.Dataset, sandwich: xr.Dataset) -> xr.Dataset:
    """Add to a group `evidence` each method's `bias`, value - truth, and `bias_std_error`, that of both together.

    NaN where a datum has no truth, and for the methods that the datum's truth was made of: an end of a sandwich is
    not held against the middle of the same sandwich. A bias of one datum has the estimator's Monte Carlo error in it.

    Raises:
        ValueError: If the two groups are not of the same data, or the evidence lacks an end of the sandwich.
    """
    if not np.array_equal(evidence["datum"].values, sandwich["datum"].values):
        raise ValueError(
            f"evidence and sandwich must be of the same data, got the data {evidence['datum'].values[:8]} and "
            f"{sandwich['datum'].values[:8]}"
        )
    source = sandwich["source"].values
    ends = [str(sandwich.attrs[name]) for name in ("lower_method", "upper_method") if name in sandwich.attrs]
    if missing := set(ends) - set(evidence["method"].values.tolist()):
        raise ValueError(f"the sandwich is between {ends}, of which the evidence lacks {sorted(missing)}")
    own = np.array([source == (_BY_PAIR if m.label in ends else m.estimator) for m in methods_of(evidence)])
    bias = np.where(own, np.nan, evidence["value"].values - sandwich["truth"].values)
    error = np.hypot(evidence["std_error"].values, sandwich["truth_std_error"].values)
    columns = {str(name): array.values for name, array in evidence.data_vars.items()}
    columns |= {"bias": bias, "bias_std_error": np.where(np.isnan(bias), np.nan, error)}
    coords = {dim: evidence[dim].values for dim in ("method", "datum")}
    return group("evidence", columns, evidence.attrs, **coords)


def evidence_summary(tree: xr.DataTree) -> pd.DataFrame:
    """Every estimator of log p(x) with its bias and its cost, one row for each method, in the order of the tree.

    Columns:

    - `estimator`, and `budget`, its draws or temperatures (0: none to choose);
    - `value`, the mean over data, nats; `std_error`, sd / sqrt(N) over data, never below the Monte Carlo error, NaN
      where no datum has an error bar to be trusted; `direction`, how the expectation of `value` lies to log p(x);
    - `bias`, the mean of value - truth over the data that have a truth, `num_with_truth` of them; `bias_std_error`,
      from their spread, never below the Monte Carlo error, and with it the half gap of the sandwich on average, which
      does not shrink with the number of data; `rms_error`, the root mean square of value - truth: how far a single
      datum is off, noise and all. NaN where there is no truth but what the method itself gave;
    - `num_density_evaluations`, `num_gradient_evaluations` of the model, per datum; `seconds`, for all data;
    - `num_data`, the data in `value`; `num_refused`, those whose error bar is not to be trusted; `num_approximate`,
      those whose direction is approximate; `reason`, why.

    Raises:
        ValueError: If the tree does not pass `check`, or has no `evidence`.

    Examples:
        >>> yes = np.ones(2, bool)
        >>> e = Evidence(method="iwae", value=np.array([-3.0, -5.0]), std_error=np.array([0.1, 0.1]), budget=100,
        ...              direction="lower", is_unbiased_density=True, is_reliable=yes, is_approximate=~yes)
        >>> from pyrovae.results import build_tree, evidence_group
        >>> evidence_summary(build_tree({"evidence": evidence_group([e])}))["value"].to_dict()
        {'iwae': -4.0}
    """
    check(tree)
    evidence = measured(tree, "evidence", "value", "std_error", "is_reliable", "direction")
    if evidence is None:
        raise ValueError("the tree has no evidence; pyrovae.evidence_table or pyrovae.audit measures it")
    sandwich = measured(tree, "sandwich", "source")
    margin = np.zeros(evidence.sizes["datum"]) if sandwich is None else half_gap(sandwich)
    rows = []
    for method in methods_of(evidence):
        estimate = evidence.sel({"method": method.label})
        mean = estimate_row(estimate, method.label, "")
        rows.append(
            {"estimator": method.estimator, "budget": method.budget}
            | {"value": mean.value, "std_error": mean.std_error, "direction": mean.direction}
            | _bias(estimate, margin)
            | {name: estimate[name].item() if name in estimate else 0 for name in _COSTS}
            | {"num_data": mean.num_data, "num_refused": mean.num_refused}
            | {
                "num_approximate": int(estimate["is_approximate"].sum())
                if "is_approximate" in estimate
                else 0
            }
            | {"reason": str(estimate["reason"].item()) if "reason" in estimate else ""}
        )
    index = pd.Index([str(label) for label in evidence["method"].values], name="method")
    return pd.DataFrame(rows, index=index)


def half_gap(sandwich: xr.Dataset) -> Float[np.ndarray, " n"]:
    """How far the truth of a datum may lie from the middle of its sandwich, which is no chance; 0 for other truths.

    Examples:
        >>> half_gap(xr.Dataset({"gap": ("datum", [0.1, 0.1]), "source": ("datum", ["ais and ais-reverse", "exact"])}))
        array([0.05, 0.  ])
    """
    if "gap" not in sandwich:
        return np.zeros(sandwich.sizes["datum"])
    return np.where(sandwich["source"].values == _BY_PAIR, np.fmax(sandwich["gap"].values, 0.0) / 2, 0.0)


def _bias(estimate: xr.Dataset, margin: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Mean bias over the data that have a truth, its error, and the size of the error of one datum."""
    if "bias" not in estimate:
        return {"bias": math.nan, "bias_std_error": math.nan, "rms_error": math.nan, "num_with_truth": 0}
    bias = estimate["bias"].values
    value, error, count = average(bias, estimate["bias_std_error"].values)
    kept = np.isfinite(bias)
    error = math.hypot(error, float(margin[kept].mean())) if count else math.nan
    rms = math.sqrt(float(np.mean(bias[kept] ** 2))) if count else math.nan
    return {"bias": value, "bias_std_error": error, "rms_error": rms, "num_with_truth": count}


def sandwich_rows(tree: xr.DataTree) -> Iterator[Row]:
    """The data where the sandwich closed, the mean gap over all data that have one, and the mean truth."""
    ends = measured(tree, "sandwich", "gap", "gap_std_error", "verdict")
    if ends is not None:
        verdict, gap = ends["verdict"].values, ends["gap"].values
        closed, total = int((verdict == "closed").sum()), verdict.size
        quantity = "data where the sandwich closed"
        yield Row("closed", quantity, float(closed), math.nan, "data", "exact", total, total - closed)
        value, error, count = average(gap, ends["gap_std_error"].values)
        is_approximate = "is_approximate" in ends and bool(ends["is_approximate"].any())
        refused, side = int((verdict == "no verdict").sum()), "none" if is_approximate else "exact"
        yield Row("gap", "gap between the ends of the sandwich", value, error, NATS, side, count, refused)
    known = measured(tree, "sandwich", "truth", "truth_std_error", "source")
    if known is not None:
        value, error, count = average(known["truth"].values, known["truth_std_error"].values)
        error = math.hypot(error, float(half_gap(known).sum()) / max(count, 1))
        name, refused = truth_name(known), known.sizes["datum"] - count
        side = truth_direction(known)
        yield Row("truth", f"log p(x), {name}", value, error, NATS, side, count, refused)


def truth_name(sandwich: xr.Dataset) -> str:
    """What the truth of the data is, in words.

    Examples:
        >>> truth_name(xr.Dataset({"source": ("datum", ["exact", "", "ais and ais-reverse"])}))
        'exact value or sandwich'
    """
    names = {"exact": "exact value", "quadrature": "quadrature", _BY_PAIR: "sandwich"}
    sources = set(sandwich["source"].values.tolist())
    return " or ".join(name for source, name in names.items() if source in sources) or "truth"


def truth_direction(sandwich: xr.Dataset) -> str:
    """On which side of log p(x) the truth lies: "none" is known where it is the middle of a sandwich, else "exact".

    Examples:
        >>> truth_direction(xr.Dataset({"source": ("datum", ["exact", ""])}))
        'exact'
    """
    return "none" if _BY_PAIR in sandwich["source"].values.tolist() else "exact"
