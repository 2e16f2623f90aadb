"""Sentences on the guide: its importance weights, the reference posterior, its width and its means against that."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import xarray as xr

from pyrovae.results.rows import Row, data_have, measured, number
from pyrovae.results.summary import comparison_row, khat_row, with_verdict, worst_row

__all__ = ["guide_sentences"]

_SURE: Final = 3.0  # standard errors from which a difference is called one


def guide_sentences(tree: xr.DataTree) -> Iterator[str]:
    """What importance weights and a comparison with a reference say of the guide, or why they say nothing."""
    for speaker in (_say_khat, _say_reference, _say_width, _say_location):
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


def _refuse(tree: xr.DataTree, what: str, row: Row) -> str:
    if measured(tree, "diagnostics", "verdict") is None:
        return f"No verdict on {what}: whether the reference converged was not measured."
    total = row.num_data + row.num_refused
    return f"No verdict on {what}: {row.num_data} of {total} data can be compared{_refusals(tree)}."
