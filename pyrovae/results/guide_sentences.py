"""Sentences on the guide: its importance weights, the reference posterior, and how its draws differ from that."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import xarray as xr

from pyrovae.results.rows import NATS, Row, average, data_have, measured, number
from pyrovae.results.summary import comparison_row, khat_row, with_verdict, worst_row

__all__ = ["guide_sentences"]

_SURE: Final = 3.0  # standard errors from which a difference is called one
_MOST: Final = 0.8  # the share of a direction that the latents named for it hold
_MANY: Final = 3  # latents of which more are not named


def guide_sentences(tree: xr.DataTree) -> Iterator[str]:
    """What importance weights and a comparison with a reference say of the guide, or why they say nothing."""
    compared = (_say_width, _say_direction, _say_location, _say_correlation, _say_divergence, _say_classifier)
    for speaker in (_say_khat, _say_reference, *compared):
        yield from speaker(tree)


def _say_khat(tree: xr.DataTree) -> Iterator[str]:
    row = khat_row(tree)
    if row is None:
        return
    if row.num_data == 0:
        yield "No verdict on the importance weights: k-hat could not be estimated for any datum."
        return
    count, total = round(row.value * row.num_data), row.num_data + row.num_refused
    refused = f"; {data_have(row.num_refused)} no k-hat" if row.num_refused else ""
    yield f"Importance weights cannot be trusted for {count} of {total} data (k-hat above {row.subject}){refused}."


def _say_reference(tree: xr.DataTree) -> Iterator[str]:
    diagnostics = measured(tree, "diagnostics", "verdict")
    if diagnostics is None:
        return
    ok = with_verdict(tree, diagnostics.sizes["datum"])
    worst = [row for name in ("rhat", "ess_bulk", "ess_tail") if (row := worst_row(tree, name))]
    seen = ", ".join(f"{row.quantity} {row.value:.4g}" for row in worst)
    yield (
        f"The reference posterior converged for {int(ok.sum())} of {ok.size} data"
        f"{f' ({seen} over all)' if seen else ''}{_refusals(tree)}."
    )


def _refusals(tree: xr.DataTree) -> str:
    """A clause on the data that have no verdict, with the reasons, most frequent first."""
    diagnostics = measured(tree, "diagnostics", "verdict")
    if diagnostics is None:
        return ""
    refused = diagnostics["verdict"].values != "ok"
    if not refused.any():
        return ""
    reasons = diagnostics["reason"].values[refused] if "reason" in diagnostics else []
    counts = Counter(str(reason) for reason in reasons if reason).most_common(3)
    told = f" ({', '.join(f'{reason}: {count}' for reason, count in counts)})" if counts else ""
    return f"; {data_have(int(refused.sum()))} no verdict because the reference did not converge{told}"


def _say_width(tree: xr.DataTree) -> Iterator[str]:
    row = comparison_row(tree, "sd_ratio")
    if row is None:
        return
    if math.isnan(row.std_error):
        yield _refuse(tree, "the width of the guide", row)
        return
    yield (
        f"{_width(row)}: its standard deviations are {number(row)} of the posterior's on average over {row.num_data} "
        f"of {row.num_data + row.num_refused} data{_latent_range(tree)}."
    )


def _width(row: Row) -> str:
    margin = _SURE * row.std_error
    if abs(row.value - 1) <= margin:
        return "No error in the average width of the guide was found"
    return f"The guide is too {'narrow' if row.value < 1 else 'wide'}"


def _latent_range(tree: xr.DataTree) -> str:
    """A clause on the latents with the smallest and the largest ratio: an average hides them."""
    comparison = tree["comparison"].to_dataset()
    ratios = comparison["sd_ratio"].isel(datum=with_verdict(tree, comparison.sizes["datum"]))
    per_latent = ratios.mean("datum").values
    if per_latent.size < 2:
        return ""
    low, high = int(np.nanargmin(per_latent)), int(np.nanargmax(per_latent))
    name = comparison["latent"].values
    return f", from {per_latent[low]:.2f} for {name[low]} to {per_latent[high]:.2f} for {name[high]}"


def _say_direction(tree: xr.DataTree) -> Iterator[str]:
    """Which latents are too narrow or too wide, and how narrow the guide is where it is narrowest."""
    found = _over_data(tree, "narrowest_sd_ratio")
    if found is None or found.num_data == 0:
        return
    comparison = tree["comparison"].to_dataset()
    kept = comparison.isel(datum=with_verdict(tree, comparison.sizes["datum"]))
    rows = [
        average(*columns)
        for columns in zip(kept["sd_ratio"].T.values, kept["sd_ratio_std_error"].T.values, strict=True)
    ]
    narrow = sum(value < 1 - _SURE * error for value, error, _ in rows)
    wide = sum(value > 1 + _SURE * error for value, error, _ in rows)
    start = f"It is too narrow in {narrow} and too wide in {wide} of {len(rows)} latents"
    if found.value >= 1 - _SURE * found.std_error:
        yield f"{start}, and in no direction was it found too narrow."
        return
    yield (
        f"{start}; along the direction in which it is narrowest{_named(kept)} its standard deviation is "
        f"{number(found)} of the posterior's on average."
    )


def _named(comparison: xr.Dataset) -> str:
    """A clause on the few latents that the narrowest directions lie in; none where it takes many, or all."""
    shares = (comparison["narrowest_direction"] ** 2).mean("datum").values
    order = np.argsort(shares)[::-1]
    needed = int(np.searchsorted(np.cumsum(shares[order]), _MOST)) + 1
    if needed > _MANY or needed == shares.size:
        return ""
    return f" (mostly {', '.join(str(comparison['latent'].values[i]) for i in order[:needed])})"


def _say_location(tree: xr.DataTree) -> Iterator[str]:
    row = comparison_row(tree, "mean_error")
    if row is None:
        return
    if math.isnan(row.std_error):
        yield _refuse(tree, "the means of the guide", row)
        return
    yield (
        f"The means of the guide are off by {number(row)} posterior standard deviations on average over "
        f"{row.num_data} of {row.num_data + row.num_refused} data{_noise(tree)}."
    )


def _noise(tree: xr.DataTree) -> str:
    """A clause on the error of the mean that a perfect guide would show."""
    comparison = measured(tree, "comparison", "mean_error_std_error")
    if comparison is None:
        return ""
    errors = comparison["mean_error_std_error"].values[with_verdict(tree, comparison.sizes["datum"])]
    # E|e| of a normal error is sqrt(2 / pi) of its standard deviation.
    return f", where Monte Carlo error alone would give {math.sqrt(2 / math.pi) * np.nanmean(errors):.2g}"


def _say_correlation(tree: xr.DataTree) -> Iterator[str]:
    found, noise = _over_data(tree, "correlation_error"), _over_data(tree, "correlation_error_noise")
    if found is None or noise is None or found.num_data == 0:
        return
    yield (
        f"Its correlations between latents are off by {number(found)} (root mean square over pairs, averaged over "
        f"data), where Monte Carlo error alone would give {noise.value:.2g}."
    )


def _say_divergence(tree: xr.DataTree) -> Iterator[str]:
    found = _over_data(tree, "jeffreys")
    if found is not None and found.num_data:
        yield f"Guide and posterior are {number(found)} nats per datum apart, KL both ways."


def _say_classifier(tree: xr.DataTree) -> Iterator[str]:
    """The classifier saw the draws of all data, also of those whose reference has no verdict."""
    comparison = measured(
        tree, "comparison", "classifier_auc", "classifier_auc_std_error", "classifier_p_value"
    )
    if comparison is None or not math.isfinite(comparison["classifier_auc"]):
        return
    ok = with_verdict(tree, comparison.sizes["datum"])
    if not ok.any():
        return
    auc, error, p_value = (
        float(comparison[f"classifier_{name}"]) for name in ("auc", "auc_std_error", "p_value")
    )
    row = Row("auc", "", auc, error, "probability", "none", ok.size, 0)
    doubt = f"; {data_have(int((~ok).sum()))} no verdict on the reference" if not ok.all() else ""
    tells = "tells" if auc > 0.5 + _SURE * error else "cannot tell"
    size = f"p = {p_value:.1g}" if p_value >= 1e-6 else "p < 1e-6"
    yield (
        f"A classifier {tells} draws of the guide from those of the reference: its AUC is {number(row)}, {size}, where "
        f"0.5 is chance{doubt}."
    )


def _over_data(tree: xr.DataTree, variable: str) -> Row | None:
    """The mean of a variable over the data that have a verdict; `comparison_row` for what `summary` does not show."""
    comparison = measured(tree, "comparison", variable)
    if comparison is None:
        return None
    values = comparison[variable].values.astype(float)
    values[~with_verdict(tree, len(values))] = np.nan
    errors = comparison.get(f"{variable}_std_error", xr.zeros_like(comparison[variable])).values
    value, error, count = average(values, errors)
    return Row(variable, variable, value, error, NATS, "none", count, len(values) - count)


def _refuse(tree: xr.DataTree, what: str, row: Row) -> str:
    if measured(tree, "diagnostics", "verdict") is None:
        return f"No verdict on {what}: whether the reference converged was not measured."
    total = row.num_data + row.num_refused
    return f"No verdict on {what}: {row.num_data} of {total} data can be compared{_refusals(tree)}."
