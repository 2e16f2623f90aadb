"""What is surely wrong with the guide's widths, correlations and means, where the reference posterior converged."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from pyrovae.results.rows import NATS, Row, average, measured, number, some
from pyrovae.results.significance import SURE, sure_of
from pyrovae.results.summary import comparison_row, with_verdict

__all__ = [
    "Classified",
    "are_means_wrong",
    "classified",
    "correlation_rows",
    "guide_faults",
    "mean_error_noise",
    "over_data",
    "refusal_reasons",
    "wrong_widths",
]


class Classified(NamedTuple):
    """What a classifier of the draws of guide and reference found; it saw those of all data, refused ones too."""

    auc: Row
    p_value: float
    chance: float
    """The AUC that the refused data alone could give, were their draws wholly apart; 0.5 where none was refused."""


def guide_faults(tree: xr.DataTree) -> list[str] | None:
    """What is wrong with the guide, in words with numbers; None where it was not compared with a reference.

    The average width, and that of each latent; the correlations, or else the directions in which the guide is
    narrowest and widest; the means; and where none of these is wrong, what a classifier sees. Each from 3 standard
    errors on, with Bonferroni's correction over latents. [] too where no datum has a verdict: look at
    `comparison_row` for that.

    Examples:
        >>> guide_faults(xr.DataTree()) is None
        True
    """
    width, location = (comparison_row(tree, name) for name in ("sd_ratio", "mean_error"))
    if width is None or location is None:
        return None
    faults = [*_on_widths(tree, width), *_on_means(tree, location), *_on_correlations(tree)]
    return faults or [*_on_directions(tree), *_on_classes(tree)][:1]


def _on_widths(tree: xr.DataTree, mean: Row) -> Iterator[str]:
    narrow, wide = wrong_widths(tree)
    is_sure = abs(mean.value - 1) > SURE * mean.std_error
    unit = " of the posterior's standard deviation"
    for word, found, is_side in (("narrow", narrow, mean.value < 1), ("wide", wide, mean.value > 1)):
        if is_sure and is_side and not (narrow and wide):
            yield f"too {word} ({number(mean)}{unit}s)"
        elif found:
            yield f"too {word} in {_named(found, tree['comparison'].sizes['latent'], unit)}"
            unit = ""


def _named(found: list[Row], total: int, unit: str) -> str:
    worst = max(found, key=lambda row: abs(row.value - 1))
    if len(found) == 1:
        return f"{worst.subject} ({number(worst)}{unit})"
    return f"{len(found)} of {some(total, 'latent')} (most in {worst.subject}: {number(worst)}{unit})"


def wrong_widths(tree: xr.DataTree) -> tuple[list[Row], list[Row]]:
    """The latents that are surely too narrow, and those surely too wide, each averaged over the data with a verdict."""
    comparison = measured(tree, "comparison", "sd_ratio")
    if comparison is None or "latent" not in comparison["sd_ratio"].dims:
        return [], []
    kept = comparison.isel(datum=with_verdict(tree, comparison.sizes["datum"])).transpose(
        "datum", "latent", ...
    )
    errors = kept.get("sd_ratio_std_error", xr.zeros_like(kept["sd_ratio"])).values
    rows = []
    for i, name in enumerate(kept["latent"].values):
        value, error, count = average(kept["sd_ratio"].values[:, i], errors[:, i])
        rows.append(
            Row(str(name), "", value, error, "ratio", "none", count, comparison.sizes["datum"] - count)
        )
    limit = sure_of(len(rows))
    narrow = [row for row in rows if 1 - row.value > limit * row.std_error]
    return narrow, [row for row in rows if row.value - 1 > limit * row.std_error]


def _on_means(tree: xr.DataTree, row: Row) -> Iterator[str]:
    if are_means_wrong(tree, row):
        yield f"off by {number(row)} posterior standard deviations"


def are_means_wrong(tree: xr.DataTree, row: Row) -> bool:
    """Whether the absolute error of the guide's means is surely above what Monte Carlo error alone would give."""
    return row.value - (mean_error_noise(tree) or 0.0) > SURE * row.std_error


def mean_error_noise(tree: xr.DataTree) -> float | None:
    """The absolute error of the means that a perfect guide would show; None where that was not measured."""
    comparison = measured(tree, "comparison", "mean_error_std_error")
    if comparison is None:
        return None
    errors = comparison["mean_error_std_error"].values[with_verdict(tree, comparison.sizes["datum"])]
    # E|e| of a normal error is sqrt(2 / pi) of its standard deviation.
    return math.sqrt(2 / math.pi) * float(np.nanmean(errors)) if np.isfinite(errors).any() else None


def _on_correlations(tree: xr.DataTree) -> Iterator[str]:
    rows = correlation_rows(tree)
    if rows is not None and rows[0].value - rows[1].value > SURE * rows[0].std_error:
        yield f"wrong in the correlations between latents (by {number(rows[0])})"


def correlation_rows(tree: xr.DataTree) -> tuple[Row, Row] | None:
    """The error of the guide's correlations, and what Monte Carlo error alone would give; None without a verdict."""
    found, noise = (over_data(tree, f"correlation_error{end}") for end in ("", "_noise"))
    if found is None or noise is None or found.num_data == 0:
        return None
    return found, noise


def _on_directions(tree: xr.DataTree) -> Iterator[str]:
    """What neither the single latents nor their correlations show; the directions of one latent are that latent."""
    for name, word, sign in (("narrowest", "narrow", -1), ("widest", "wide", 1)):
        row = over_data(tree, f"{name}_sd_ratio")
        is_new = row is not None and tree["comparison"].sizes["latent"] > 1
        if row is not None and is_new and sign * (row.value - 1) > SURE * row.std_error:
            yield f"too {word} along one direction ({number(row)} of the posterior's standard deviation)"


def _on_classes(tree: xr.DataTree) -> Iterator[str]:
    found = classified(tree)
    if found is not None and found.auc.value - found.chance > SURE * found.auc.std_error:
        yield f"told from the posterior by a classifier (with an AUC of {number(found.auc)}, where 0.5 is chance)"


def classified(tree: xr.DataTree) -> Classified | None:
    """The classifier's AUC; None where it was not measured, or no datum has a verdict."""
    names = [f"classifier_{name}" for name in ("auc", "auc_std_error", "p_value")]
    comparison = measured(tree, "comparison", *names)
    if comparison is None or not math.isfinite(comparison["classifier_auc"]):
        return None
    ok = with_verdict(tree, comparison.sizes["datum"])
    auc, error, p_value = (float(comparison[name]) for name in names)
    row = Row("auc", "", auc, error, "probability", "none", int(ok.sum()), int((~ok).sum()))
    # With both draws of a share s of the data at opposite ends, only the (1 - s)^2 other pairs are left to chance.
    return Classified(row, p_value, 1 - ok.mean() ** 2 / 2) if ok.any() else None


def over_data(tree: xr.DataTree, variable: str) -> Row | None:
    """The mean of a variable over the data that have a verdict; `comparison_row` for what `summary` does not show."""
    comparison = measured(tree, "comparison", variable)
    if comparison is None:
        return None
    values = comparison[variable].values.astype(float)
    values[~with_verdict(tree, len(values))] = np.nan
    errors = comparison.get(f"{variable}_std_error", xr.zeros_like(comparison[variable])).values
    value, error, count = average(values, errors)
    return Row(variable, variable, value, error, NATS, "none", count, len(values) - count)


def refusal_reasons(tree: xr.DataTree) -> str:
    """A clause in brackets on why data have no verdict, the most frequent reasons first; "" where none says."""
    diagnostics = measured(tree, "diagnostics", "verdict", "reason")
    if diagnostics is None:
        return ""
    reasons = diagnostics["reason"].values[diagnostics["verdict"].values != "ok"]
    counts = Counter(str(reason) for reason in reasons if reason).most_common(3)
    return f" ({', '.join(f'{reason}: {count}' for reason, count in counts)})" if counts else ""
