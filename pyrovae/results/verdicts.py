"""Sentences with numbers, for a person: what a result tree shows, and a refusal where it shows nothing."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.results.calibration import calibration_sentences
from pyrovae.results.gradient_sentences import gradient_sentences
from pyrovae.results.guide_sentences import guide_sentences
from pyrovae.results.inference_gaps import inference_gap_rows, inference_gap_sentences
from pyrovae.results.prior import prior_sentences
from pyrovae.results.rows import (
    Method,
    Row,
    count_data,
    data_have,
    largest_budgets,
    measured,
    methods_of,
    number,
    with_error,
)
from pyrovae.results.sandwich import evidence_summary, sandwich_rows, truth_name
from pyrovae.results.schema import check
from pyrovae.results.significance import SURE
from pyrovae.results.summary import evidence_rows, gap_rows, term_rows, told_methods
from pyrovae.results.training_path import path_sentences

__all__ = ["Finding", "findings", "verdict_sentences"]

_NEAR: Final = 0.1  # nats from log p(x), two standard errors included, that are near enough
_WORTH: Final = 0.01  # nats from log p(x) below which no bias is told for its own sake
_SIDE: Final = {
    "lower": "a lower bound in expectation",
    "upper": "an upper bound in expectation",
    "none": "with a bias of unknown sign",
    "exact": "without bias",
}
_ON_THE_GUIDE: Final = {"evidence", "gaps", "comparison", "calibration", "decomposition", "gradients"}
_BOUND: Final = {"lower": "at least ", "upper": "at most ", "none": "about ", "exact": ""}


def verdict_sentences(tree: xr.DataTree) -> list[str]:
    """Sentences on log p(x), the gap and its parts, the guide, calibration, the ELBO and gradients, where measured.

    Where the truth about log p(x) is known, the sentences on each estimator give way to one on the truth, one on the
    cheapest estimator within 0.1 nats of it on average, and one on the furthest off if that is off by 0.01 nats.
    A difference is called one from 3 standard errors on. Where nothing can be said, the sentence says so and why.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> verdict_sentences(xr.DataTree())
        ['No verdict on the guide: neither evidence nor a comparison with a reference was measured.']
    """
    return [finding.sentence for finding in findings(tree)]


class Finding(NamedTuple):
    """A sentence, and the group of the tree that it speaks of; "" where it speaks of what is not there."""

    sentence: str
    group: str


def findings(tree: xr.DataTree) -> list[Finding]:
    """The sentences of `verdict_sentences`, each with the group whose numbers it tells.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> [finding.group for finding in findings(xr.DataTree())]
        ['']
    """
    check(tree)
    said = [Finding(text, name) for name, speaker in _speakers() for text in speaker(tree)]
    if not _ON_THE_GUIDE & set(tree.children):
        missing = "No verdict on the guide: neither evidence nor a comparison with a reference was measured."
        said.append(Finding(missing, ""))
    return said


def _speakers() -> Iterator[tuple[str, Callable[[xr.DataTree], Iterable[str]]]]:
    """What speaks of each group, in reading order."""
    yield "sandwich", _say_sandwich
    yield "sandwich", _say_truth
    yield "evidence", _say_nearest
    yield "evidence", _say_evidence
    yield "evidence", _say_gaps
    yield "gaps", inference_gap_sentences
    yield "comparison", guide_sentences
    yield "calibration", calibration_sentences
    yield "decomposition", _say_terms
    yield "history", path_sentences
    yield "gradients", gradient_sentences


def _say_sandwich(tree: xr.DataTree) -> Iterator[str]:
    ends = measured(tree, "sandwich", "gap", "gap_std_error", "verdict")
    if ends is None:
        return
    rows = {row.subject: row for row in sandwich_rows(tree)}
    closed, gap, verdict = rows["closed"], rows["gap"], ends["verdict"].values
    apart = f": its ends are {number(gap)} nats apart on average over {gap.num_data}" if gap.num_data else ""
    count = "none" if closed.value == 0 else f"{closed.value:.0f}"
    wide, refused = int((verdict == "did not close").sum()), int((verdict == "no verdict").sum())
    notes = [f"{wide} did not close"] if wide else []
    notes += [f"{data_have(refused)} no verdict"] if refused else []
    approximate = int(ends["is_approximate"].sum()) if "is_approximate" in ends else 0
    reason = f" ({ends.attrs['reason']})" if ends.attrs.get("reason") else ""
    notes += [f"the upper end is approximate for {approximate}{reason}"] if approximate else []
    limit = f" (tolerance {ends.attrs['tolerance']:.3g})" if "tolerance" in ends.attrs else ""
    yield f"The sandwich closes for {count} of {count_data(closed.num_data)}{'; '.join([apart + limit, *notes])}."


def _say_truth(tree: xr.DataTree) -> Iterator[str]:
    for row in sandwich_rows(tree):
        total, name = row.num_data + row.num_refused, truth_name(tree["sandwich"].to_dataset())
        if row.subject == "truth" and row.num_data:
            over = f"on average over {count_data(row.num_data, total)} ({name})"
            yield f"log p(x) is {number(row)} nats per datum {over}."


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
    is_off = table["bias"].abs() > np.fmax(SURE * table["bias_std_error"], _WORTH)
    ends = [
        m.label for m in largest_budgets(methods) if m.estimator != "elbo" and m.label in table.index[is_off]
    ]
    worst = str(table.loc[ends, "bias"].abs().idxmax()) if ends else best
    if worst != best:
        yield f"The furthest off at its largest budget is {_biased(table, named[worst])}."


def _biased(table: pd.DataFrame, method: Method) -> str:
    """A method with its bias, and how far it is off for one datum."""
    found, name = table.loc[method.label].to_dict(), method.described(" with ", always=True)
    told, count = with_error(found["bias"], found["bias_std_error"]), int(found["num_with_truth"])
    if count == 1:
        return f"{name}, off by {told} nats for {count_data(count)}, its Monte Carlo error included"
    return f"{name}, with a bias of {told} nats ({found['rms_error']:.2g} in the root mean square over {count} data)"


def _say_evidence(tree: xr.DataTree) -> Iterator[str]:
    rows = {row.subject: row for row in evidence_rows(tree)}
    for method in told_methods(tree):
        row, name = rows[method.label], method.described(" with ")
        notes = _notes(tree["evidence"].to_dataset().sel({"method": method.label}), row.num_refused)
        if math.isnan(row.std_error):
            yield f"No verdict on log p(x) by {name}{notes}."
        else:
            yield (
                f"{name} puts log p(x) at {number(row)} nats per datum on average over {count_data(row.num_data)} "
                f"({_SIDE[row.direction]}){notes}."
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
    told = {row.num_data for row in inference_gap_rows(tree) if row.subject == "inference_gap"}
    for row in gap_rows(tree):
        is_truth = truth is not None and row.subject == truth_name(truth)
        if is_truth and row.num_data in told:  # the sentences on `gaps` tell it with less noise
            continue
        if not is_truth and row.direction == "none":  # no bound of the gap, on either side
            continue
        doubt = "there is none" if is_truth else "the error bar cannot be trusted"
        refused = f"; {doubt} for {row.num_refused}" if row.num_refused else ""
        by = f"{row.subject} - ELBO over {count_data(row.num_data)}{refused}"
        if math.isnan(row.std_error):
            yield f"No verdict on the gap by {row.subject} - ELBO: no error bar can be trusted."
        elif row.value > SURE * row.std_error or row.direction == "upper":
            yield f"The ELBO lies {_BOUND[row.direction]}{number(row)} nats per datum below log p(x) ({by})."
        else:
            yield f"No gap between the ELBO and log p(x) was found: {number(row)} nats per datum ({by})."


def _say_terms(tree: xr.DataTree) -> Iterator[str]:
    """What the guide gives away to the prior and to the posterior, and what its codes hold."""
    terms = measured(tree, "decomposition", "elbo", "reconstruction", "kl_prior")
    if terms is None:
        return
    rows = {row.subject: row for row in term_rows(tree)}
    yield from _say_infinite(terms)
    if rows["elbo"].num_data:
        yield (
            f"The ELBO of {number(rows['elbo'])} nats is a reconstruction of {number(rows['reconstruction'])} minus a "
            f"KL to the prior of {number(rows['kl_prior'])}, on average over {count_data(rows['elbo'].num_data)}."
        )
        yield from _say_posterior(terms, rows)
    if "mutual_information" in rows:
        yield (
            f"The codes hold {number(rows['mutual_information'])} of at most {rows['log_num_data'].value:.2f} nats "
            "about which of these data they came from."
        )
        yield from prior_sentences(tree)
    if "is_active" in terms:
        active = terms["is_active"].values
        yield f"{int(active.sum())} of {active.size} latent units are active."


def _say_infinite(terms: xr.Dataset) -> Iterator[str]:
    """On the data that have no terms, since the guide puts draws where the posterior has none."""
    lost = ~np.isfinite(terms["elbo"].values)
    if not lost.any():
        return
    names = {"kl_prior": "p(z) is 0", "reconstruction": "p(x | z) is 0"}
    places = [place for name, place in names.items() if np.isinf(terms[name].values[lost]).any()]
    where = " or ".join(places) or "a density is not a number"
    yield (
        f"The ELBO is -inf for {count_data(int(lost.sum()), lost.size)}: draws of the guide fall where {where}. "
        "Nothing that is said of its terms is about these."
    )


def _say_posterior(terms: xr.Dataset, rows: dict[str, Row]) -> Iterator[str]:
    """What the ELBO loses of log p(x), by what stands for log p(x), with its side."""
    if "kl_posterior" not in rows:
        return
    row, method = rows["kl_posterior"], str(terms.attrs.get("log_evidence_by", "truth"))
    by = "" if method == "truth" else f" by {Method(method, method, 0).name}"
    errors = terms.get("kl_posterior_std_error", xr.zeros_like(terms["kl_posterior"])).values
    doubtful = int((np.isfinite(terms["kl_posterior"].values) & np.isnan(errors)).sum())
    doubt = f"; the error bar cannot be trusted for {doubtful}" if doubtful else ""
    over = f"log p(x){by} - ELBO over {count_data(row.num_data)}{doubt}"
    if row.num_data == 0:
        yield "No verdict on the KL to the posterior: log p(x) is not known."
    elif math.isnan(row.std_error):
        yield f"No verdict on the KL to the posterior: log p(x){by} has no error bar that can be trusted."
    elif row.value > SURE * row.std_error or row.direction == "upper":
        yield (
            f"The KL to the posterior is {_BOUND[row.direction]}{number(row)} nats: what the ELBO loses of log p(x) "
            f"({over})."
        )
    else:
        yield f"No KL to the posterior was found: {number(row)} nats ({over})."
