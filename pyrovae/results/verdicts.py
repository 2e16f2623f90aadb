"""Sentences with numbers, for a person: what a result tree shows, and a refusal where it shows nothing."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.results.rows import Method, Row, largest_budgets, measured, methods_of
from pyrovae.results.sandwich import evidence_summary, sandwich_rows, truth_name
from pyrovae.results.schema import check
from pyrovae.results.summary import (
    comparison_row,
    evidence_rows,
    gap_rows,
    khat_row,
    told_methods,
    with_verdict,
    worst_row,
)

__all__ = ["verdict_sentences"]

_SURE: Final = 3.0  # standard errors from which a difference is called one
_NEAR: Final = 0.1  # nats from log p(x), two standard errors included, that are near enough
_SIDE: Final = {
    "lower": "a lower bound in expectation",
    "upper": "an upper bound in expectation",
    "none": "with a bias of unknown sign",
    "exact": "without bias",
}
_BOUND: Final = {"lower": "at least ", "upper": "at most ", "none": "about ", "exact": ""}


def verdict_sentences(tree: xr.DataTree) -> list[str]:
    """Sentences on log p(x), the gap, the importance weights, the reference and the guide, where measured.

    Where the truth about log p(x) is known, the sentences on each estimator give way to one on the truth, one on the
    cheapest estimator within 0.1 nats of it on average, and one on the furthest off.
    A difference is called one from 3 standard errors on. Where nothing can be said, the sentence says so and why.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> verdict_sentences(xr.DataTree())
        ['No verdict on the guide: neither evidence nor a comparison with a reference was measured.']
    """
    check(tree)
    on_evidence = (_say_sandwich, _say_truth, _say_nearest, _say_evidence, _say_gaps)
    speakers = (*on_evidence, _say_khat, _say_reference, _say_width, _say_location, _say_terms)
    said = [sentence for speaker in speakers for sentence in speaker(tree)]
    if not {"evidence", "comparison", "decomposition"} & set(tree.children):
        said.append(
            "No verdict on the guide: neither evidence nor a comparison with a reference was measured."
        )
    return said


def _say_sandwich(tree: xr.DataTree) -> Iterator[str]:
    ends = measured(tree, "sandwich", "gap", "gap_std_error", "verdict")
    if ends is None:
        return
    rows = {row.subject: row for row in sandwich_rows(tree)}
    closed, gap, verdict = rows["closed"], rows["gap"], ends["verdict"].values
    apart = f": its ends are {_number(gap)} nats apart on average over {gap.num_data}" if gap.num_data else ""
    count = "none" if closed.value == 0 else f"{closed.value:.0f}"
    wide, refused = int((verdict == "did not close").sum()), int((verdict == "no verdict").sum())
    notes = [f"{wide} did not close"] if wide else []
    notes += [f"{_data_have(refused)} no verdict"] if refused else []
    approximate = int(ends["is_approximate"].sum()) if "is_approximate" in ends else 0
    reason = f" ({ends.attrs['reason']})" if ends.attrs.get("reason") else ""
    notes += [f"the upper end is approximate for {approximate}{reason}"] if approximate else []
    limit = f" (tolerance {ends.attrs['tolerance']:.3g})" if "tolerance" in ends.attrs else ""
    yield f"The sandwich closes for {count} of {closed.num_data} data{'; '.join([apart + limit, *notes])}."


def _say_truth(tree: xr.DataTree) -> Iterator[str]:
    for row in sandwich_rows(tree):
        total, name = row.num_data + row.num_refused, truth_name(tree["sandwich"].to_dataset())
        if row.subject == "truth" and row.num_data:
            over = f"on average over {row.num_data} of {total} data ({name})"
            yield f"log p(x) is {_number(row)} nats per datum {over}."


def _say_nearest(tree: xr.DataTree) -> Iterator[str]:
    """The cheapest estimator near enough to the truth, or else the nearest; and, but for the ELBO, the furthest.

    Not those that have no error bar to be trusted: with heavy tails the spread over data tells little, either.
    """
    if measured(tree, "evidence", "value", "std_error", "is_reliable", "direction", "bias") is None:
        return
    table, methods = evidence_summary(tree), methods_of(tree["evidence"].to_dataset())
    table = table[table["bias_std_error"].notna() & table["std_error"].notna()]
    if table.empty:
        return
    size = table["bias"].abs() + 2 * table["bias_std_error"]
    cost = table["num_density_evaluations"] + table["num_gradient_evaluations"]
    named = {method.label: method for method in methods}
    if (size <= _NEAR).any():
        best = str(cost[size <= _NEAR].idxmin())
        start = f"The cheapest estimator within {_NEAR} nats of log p(x) on average"
    else:
        best = str(size.idxmin())
        start = f"No estimator is sure to be within {_NEAR} nats of log p(x) on average; the nearest"
    yield f"{start} is {_biased(table, named[best])} at {cost[best]} evaluations of the model per datum."
    ends = [m.label for m in largest_budgets(methods) if m.estimator != "elbo" and m.label in table.index]
    worst = str(table.loc[ends, "bias"].abs().idxmax()) if ends else best
    if worst != best:
        yield f"The furthest off at its largest budget is {_biased(table, named[worst])}."


def _biased(table: pd.DataFrame, method: Method) -> str:
    """A method with its bias, and how far it is off for one datum."""
    found = table.loc[method.label].to_dict()
    row = Row("", "", found["bias"], found["bias_std_error"], "", "", 0, 0)
    off = f"{found['rms_error']:.2g} in the root mean square over {found['num_with_truth']} data"
    return f"{method.described(' with ', always=True)}, with a bias of {_number(row)} nats ({off})"


def _say_evidence(tree: xr.DataTree) -> Iterator[str]:
    rows = {row.subject: row for row in evidence_rows(tree)}
    for method in told_methods(tree):
        row, name = rows[method.label], method.described(" with ")
        notes = _notes(tree["evidence"].to_dataset().sel({"method": method.label}), row.num_refused)
        if math.isnan(row.std_error):
            yield f"No verdict on log p(x) by {name}{notes}."
        else:
            yield (
                f"{name} puts log p(x) at {_number(row)} nats per datum on average over {row.num_data} "
                f"data ({_SIDE[row.direction]}){notes}."
            )


def _notes(evidence: xr.Dataset, num_refused: int) -> str:
    """A clause on the data whose error bar or direction is in doubt, with the method's reason."""
    approximate = int(evidence["is_approximate"].sum()) if "is_approximate" in evidence else 0
    doubts = [f"the error bar cannot be trusted for {num_refused}"] if num_refused else []
    doubts += [f"the direction is approximate for {approximate}"] if approximate else []
    if not doubts:
        return ""
    reason = str(evidence["reason"].item()) if "reason" in evidence else ""
    return f"; {' and '.join(doubts)} of {evidence.sizes['datum']}{f' ({reason})' if reason else ''}"


def _say_gaps(tree: xr.DataTree) -> Iterator[str]:
    truth = measured(tree, "sandwich", "truth", "source")
    for row in gap_rows(tree):
        is_truth = truth is not None and row.subject == truth_name(truth)
        doubt = "there is none" if is_truth else "the error bar cannot be trusted"
        refused = f"; {doubt} for {row.num_refused}" if row.num_refused else ""
        by = f"{row.subject} - ELBO over {row.num_data} data{refused}"
        if math.isnan(row.std_error):
            yield f"No verdict on the gap by {row.subject} - ELBO: no error bar can be trusted."
        elif row.value > _SURE * row.std_error or row.direction == "upper":
            yield f"The ELBO lies {_BOUND[row.direction]}{_number(row)} nats per datum below log p(x) ({by})."
        else:
            yield f"No gap between the ELBO and log p(x) was found: {_number(row)} nats per datum ({by})."


def _say_khat(tree: xr.DataTree) -> Iterator[str]:
    row = khat_row(tree)
    if row is None:
        return
    if row.num_data == 0:
        yield "No verdict on the importance weights: k-hat could not be estimated for any datum."
        return
    count, total = round(row.value * row.num_data), row.num_data + row.num_refused
    refused = f"; {_data_have(row.num_refused)} no k-hat" if row.num_refused else ""
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
    return f"; {_data_have(int(refused.sum()))} no verdict because the reference did not converge{told}"


def _data_have(count: int) -> str:
    return "1 datum has" if count == 1 else f"{count} data have"


def _say_width(tree: xr.DataTree) -> Iterator[str]:
    row = comparison_row(tree, "sd_ratio")
    if row is None:
        return
    if math.isnan(row.std_error):
        yield _refuse(tree, "the width of the guide", row)
        return
    yield (
        f"{_width(row)}: its standard deviations are {_number(row)} of the posterior's on average over {row.num_data} "
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
        f"The means of the guide are off by {_number(row)} posterior standard deviations on average over "
        f"{row.num_data} of {row.num_data + row.num_refused} data{_noise(tree)}."
    )


def _say_terms(tree: xr.DataTree) -> Iterator[str]:
    """What the guide gives away to the prior and to the posterior, and what its codes hold."""
    terms = measured(tree, "decomposition", "elbo", "reconstruction", "kl_prior")
    if terms is None:
        return
    mean = terms.mean()
    yield (
        f"The ELBO of {float(mean['elbo']):.2f} nats is a reconstruction of {float(mean['reconstruction']):.2f} "
        f"minus a KL to the prior of {float(mean['kl_prior']):.2f}, on average over {terms.sizes['datum']} data."
    )
    if "kl_posterior" in terms:
        yield f"The KL to the posterior is {float(mean['kl_posterior']):.2f} nats: what the ELBO loses of log p(x)."
    if "mutual_information" in terms:
        yield (
            f"The codes hold {float(mean['mutual_information']):.2f} of at most {float(mean['log_num_data']):.2f} nats "
            "about which of these data they came from; the aggregate q(z) is "
            f"{float(mean['marginal_kl']):.2f} nats from the prior."
        )
    if "is_active" in terms:
        active = terms["is_active"].values
        yield f"{int(active.sum())} of {active.size} latent units are active."


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


def _number(row: Row) -> str:
    """A value and its error bar, if it has one, both to the second digit of the error."""
    if math.isnan(row.std_error):
        return f"{row.value:.4f}"
    digits = 1 - math.floor(math.log10(row.std_error)) if row.std_error > 0 else 4
    digits = min(max(digits, 0), 6)
    return f"{row.value:.{digits}f} ± {row.std_error:.{digits}f}"
