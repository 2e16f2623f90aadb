"""Sentences with numbers, for a person: what a result tree shows, and a refusal where it shows nothing."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import pandas as pd
import xarray as xr

from pyrovae.results.calibration import calibration_sentences
from pyrovae.results.gradient_sentences import gradient_sentences
from pyrovae.results.guide_sentences import guide_sentences
from pyrovae.results.inference_gaps import inference_gap_sentences
from pyrovae.results.rows import Method, Row, data_have, largest_budgets, measured, methods_of, number
from pyrovae.results.sandwich import evidence_summary, sandwich_rows, truth_name
from pyrovae.results.schema import check
from pyrovae.results.summary import evidence_rows, gap_rows, told_methods
from pyrovae.results.training_path import path_sentences

__all__ = ["Finding", "findings", "verdict_sentences"]

_SURE: Final = 3.0  # standard errors from which a difference is called one
_NEAR: Final = 0.1  # nats from log p(x), two standard errors included, that are near enough
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
    cheapest estimator within 0.1 nats of it on average, and one on the furthest off.
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
    yield f"The sandwich closes for {count} of {closed.num_data} data{'; '.join([apart + limit, *notes])}."


def _say_truth(tree: xr.DataTree) -> Iterator[str]:
    for row in sandwich_rows(tree):
        total, name = row.num_data + row.num_refused, truth_name(tree["sandwich"].to_dataset())
        if row.subject == "truth" and row.num_data:
            over = f"on average over {row.num_data} of {total} data ({name})"
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
    ends = [m.label for m in largest_budgets(methods) if m.estimator != "elbo" and m.label in table.index]
    worst = str(table.loc[ends, "bias"].abs().idxmax()) if ends else best
    if worst != best:
        yield f"The furthest off at its largest budget is {_biased(table, named[worst])}."


def _biased(table: pd.DataFrame, method: Method) -> str:
    """A method with its bias, and how far it is off for one datum."""
    found = table.loc[method.label].to_dict()
    row = Row("", "", found["bias"], found["bias_std_error"], "", "", 0, 0)
    off = f"{found['rms_error']:.2g} in the root mean square over {found['num_with_truth']} data"
    return f"{method.described(' with ', always=True)}, with a bias of {number(row)} nats ({off})"


def _say_evidence(tree: xr.DataTree) -> Iterator[str]:
    rows = {row.subject: row for row in evidence_rows(tree)}
    for method in told_methods(tree):
        row, name = rows[method.label], method.described(" with ")
        notes = _notes(tree["evidence"].to_dataset().sel({"method": method.label}), row.num_refused)
        if math.isnan(row.std_error):
            yield f"No verdict on log p(x) by {name}{notes}."
        else:
            yield (
                f"{name} puts log p(x) at {number(row)} nats per datum on average over {row.num_data} "
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
            yield f"The ELBO lies {_BOUND[row.direction]}{number(row)} nats per datum below log p(x) ({by})."
        else:
            yield f"No gap between the ELBO and log p(x) was found: {number(row)} nats per datum ({by})."


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
