"""Sentences on the guide: its importance weights, the reference posterior, and how its draws differ from that."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import xarray as xr

from pyrovae.results.guide_faults import (
    are_means_wrong,
    classified,
    correlation_rows,
    mean_error_noise,
    over_data,
    refusal_reasons,
    wrong_widths,
)
from pyrovae.results.rows import Row, count_data, data_have, measured, number, some
from pyrovae.results.significance import SURE
from pyrovae.results.summary import comparison_row, khat_row, with_verdict, worst_row

__all__ = ["guide_sentences"]

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
    over = count_data(count, total)
    yield f"Importance weights cannot be trusted for {over} (k-hat above {row.subject}){refused}."


def _say_reference(tree: xr.DataTree) -> Iterator[str]:
    diagnostics = measured(tree, "diagnostics", "verdict")
    if diagnostics is None:
        return
    ok = with_verdict(tree, diagnostics.sizes["datum"])
    worst = [row for name in ("rhat", "ess_bulk", "ess_tail") if (row := worst_row(tree, name))]
    if not worst and not ok.any():
        yield f"No reference posterior was drawn for any datum{refusal_reasons(tree)}."
        return
    seen = ", ".join(f"{row.quantity} {row.value:.4g}" for row in worst)
    over = f" ({seen} over all)" if seen else ""
    yield f"The reference posterior converged for {count_data(int(ok.sum()), ok.size)}{over}{_refusals(tree)}."
    if "reason" in diagnostics and any("divergences" in str(why) for why in diagnostics["reason"].values):
        yield (
            "Shorter steps may give a verdict where draws diverged: --target-accept-prob 0.9, which is "
            "reference={'target_accept_prob': 0.9} of pyrovae.audit."
        )


def _refusals(tree: xr.DataTree) -> str:
    """A clause on the data that have no verdict, with the reasons, most frequent first."""
    diagnostics = measured(tree, "diagnostics", "verdict")
    refused = 0 if diagnostics is None else int((diagnostics["verdict"].values != "ok").sum())
    return f"; {data_have(refused)} no verdict{refusal_reasons(tree)}" if refused else ""


def _say_width(tree: xr.DataTree) -> Iterator[str]:
    row = comparison_row(tree, "sd_ratio")
    if row is None:
        return
    if math.isnan(row.std_error):
        yield _refuse(tree, "the width of the guide", row)
        return
    yield (
        f"{_width(row)}: its standard deviations are {number(row)} of the posterior's on average over {_kept(row)}"
        f"{_latent_range(tree)}."
    )


def _width(row: Row) -> str:
    if abs(row.value - 1) <= SURE * row.std_error:
        return "No error in the average width of the guide was found"
    return f"The guide is too {'narrow' if row.value < 1 else 'wide'}"


def _kept(row: Row) -> str:
    return count_data(row.num_data, row.num_data + row.num_refused)


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
    found = over_data(tree, "narrowest_sd_ratio")
    if found is None or found.num_data == 0:
        return
    comparison = tree["comparison"].to_dataset()
    kept = comparison.isel(datum=with_verdict(tree, comparison.sizes["datum"]))
    narrow, wide = wrong_widths(tree)
    total = comparison.sizes["latent"]
    start = f"It is too narrow in {len(narrow)} and too wide in {len(wide)} of {some(total, 'latent')}"
    if found.value >= 1 - SURE * found.std_error:
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
    noise = mean_error_noise(tree)
    alone = "" if noise is None else f", where Monte Carlo error alone would give {noise:.2g}"
    is_wrong = are_means_wrong(tree, row)
    start = "The means of the guide" if is_wrong else "No error in the means of the guide was found: they"
    yield f"{start} are off by {number(row)} posterior standard deviations on average over {_kept(row)}{alone}."


def _say_correlation(tree: xr.DataTree) -> Iterator[str]:
    rows = correlation_rows(tree)
    if rows is None:
        return
    found, noise = rows
    is_wrong = found.value - noise.value > SURE * found.std_error
    start = "Its correlations between latents" if is_wrong else "No error in its correlations was found: they"
    yield (
        f"{start} are off by {number(found)} (root mean square over pairs, averaged over data), where Monte Carlo "
        f"error alone would give {noise.value:.2g}."
    )


def _say_divergence(tree: xr.DataTree) -> Iterator[str]:
    found = over_data(tree, "jeffreys")
    if found is not None and found.num_data:
        yield f"Guide and posterior are {number(found)} nats per datum apart, the sum of the KL both ways."


def _say_classifier(tree: xr.DataTree) -> Iterator[str]:
    """What it tells apart may be the draws of data without verdict alone: then it says nothing of the guide."""
    found = classified(tree)
    if found is None:
        return
    auc, refused = found.auc, found.auc.num_refused
    tells = "tells" if auc.value > 0.5 + SURE * auc.std_error else "cannot tell"
    is_doubtful = refused and tells == "tells" and auc.value <= found.chance + SURE * auc.std_error
    alone = ", which alone could make it so" if is_doubtful else ""
    doubt = f"; {data_have(refused)} no verdict on the reference{alone}" if refused else ""
    size = f"p = {found.p_value:.1g}" if found.p_value >= 1e-6 else "p < 1e-6"
    yield (
        f"A classifier {tells} draws of the guide from those of the reference: its AUC is {number(auc)}, {size}, where "
        f"0.5 is chance{doubt}."
    )


def _refuse(tree: xr.DataTree, what: str, row: Row) -> str:
    if measured(tree, "diagnostics", "verdict") is None:
        return f"No verdict on {what}: whether the reference converged was not measured."
    return f"No verdict on {what}: {_kept(row)} can be compared{_refusals(tree)}."
