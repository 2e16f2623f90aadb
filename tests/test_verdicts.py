"""Sentences say what the numbers show, and refuse where nothing can be said."""

import math

import numpy as np
import pytest
import xarray as xr
from report_trees import report_tree
from trees import THREE, all_groups, comparison_tree, estimate, evidence_tree

from pyrovae.results import build_tree, evidence_group, group
from pyrovae.results.sandwich import sandwich_group, with_bias
from pyrovae.results.verdicts import findings, verdict_sentences

NAN = float("nan")


@pytest.mark.parametrize(
    ("ratio", "start"),
    [
        (
            [[0.80, 0.84], [0.82, 0.84]],
            "The guide is too narrow: its standard deviations are 0.8250 ± 0.0071 of the",
        ),
        (
            [[1.20, 1.24], [1.22, 1.24]],
            "The guide is too wide: its standard deviations are 1.2250 ± 0.0071 of the",
        ),
        ([[0.97, 1.05], [0.99, 1.01]], "No error in the average width of the guide was found: its"),
    ],
)
def test_the_width_is_called_by_three_standard_errors(ratio: list[list[float]], start: str) -> None:
    (said,) = [
        s for s in verdict_sentences(comparison_tree(["ok", "ok"], ratio)) if "standard deviations are" in s
    ]
    assert said.startswith(start)
    assert said.endswith(".")
    assert "no verdict" not in said


def test_a_mean_width_shows_its_worst_latents_and_how_many_data_it_is_about() -> None:
    (said,) = [
        s for s in verdict_sentences(comparison_tree(["ok", "ok", "no verdict"], THREE)) if "narrow" in s
    ]
    assert said == (
        "The guide is too narrow: its standard deviations are 0.800 ± 0.050 of the posterior's on average over 2 of 3 "
        "data, from 0.75 for a[0] to 0.85 for a[1]."
    )


def test_errors_of_the_mean_are_set_against_chance() -> None:
    said = " ".join(verdict_sentences(comparison_tree(["ok", "ok"], THREE[:2])))
    assert "off by 0.200 ± 0.035 posterior standard deviations on average over 2 of 2 data" in said
    assert f"Monte Carlo error alone would give {math.sqrt(2 / math.pi) * 0.05:.2g}." in said


def test_the_reference_sentence() -> None:
    said = verdict_sentences(comparison_tree(["ok", "ok", "no verdict"], THREE))[0]
    assert said == (
        "The reference posterior converged for 2 of 3 data (largest R-hat 1.2, smallest bulk ESS 400 over all); "
        "1 datum has no verdict (R-hat above 1.01: 1)."
    )


def test_a_reference_that_was_never_drawn_did_not_fail_to_converge() -> None:
    words = {"verdict": np.full(2, "no verdict"), "reason": np.full(2, "reference skipped: no time was left")}
    assert verdict_sentences(build_tree({"diagnostics": group("diagnostics", words)}))[0] == (
        "No reference posterior was drawn for any datum (reference skipped: no time was left: 2)."
    )


def test_sentences_refuse_where_no_reference_converged() -> None:
    said = verdict_sentences(comparison_tree(["no verdict"] * 3, THREE))
    assert said[1].startswith(
        "No verdict on the width of the guide: 0 of 3 data can be compared; 3 data have no verdict"
    )
    assert said[2].startswith("No verdict on the means of the guide: 0 of 3 data can be compared")
    assert not [s for s in said if "too narrow" in s or "too wide" in s or "off by" in s]


def test_sentences_refuse_where_convergence_was_not_measured() -> None:
    comparison = comparison_tree(["ok"] * 3, THREE)["comparison"].to_dataset()
    assert verdict_sentences(build_tree({"comparison": comparison})) == [
        "No verdict on the width of the guide: whether the reference converged was not measured.",
        "No verdict on the means of the guide: whether the reference converged was not measured.",
    ]


def test_sentences_refuse_where_nothing_was_measured() -> None:
    for tree in (xr.DataTree(), build_tree({"history": all_groups()["history"]})):
        assert verdict_sentences(tree)[-1].startswith("No verdict on the guide: neither evidence nor")


@pytest.mark.parametrize(
    ("direction", "value", "said"),
    [
        ("lower", 2.0, "The ELBO lies at least 2.000 ± 0.010 nats per datum below log p(x)"),
        ("upper", 2.0, "The ELBO lies at most 2.000 ± 0.010 nats per datum below log p(x)"),
        ("exact", 2.0, "The ELBO lies 2.000 ± 0.010 nats per datum below log p(x)"),
        ("lower", 0.02, "No gap between the ELBO and log p(x) was found: 0.020 ± 0.010 nats per datum"),
        ("upper", 0.02, "The ELBO lies at most 0.020 ± 0.010 nats per datum below log p(x)"),
    ],
)
def test_the_gap_is_told_by_its_direction(direction: str, value: float, said: str) -> None:
    elbo = estimate("elbo", [0.0, 1.0])
    other = estimate("iwae", [value, 1.0 + value], direction=direction)
    sentences = verdict_sentences(evidence_tree(elbo, other))
    assert sentences[-1] == f"{said} (IWAE - ELBO over 2 data)."


def test_what_bounds_nothing_says_nothing_of_the_gap() -> None:
    tree = evidence_tree(estimate("elbo", [0.0, 1.0]), estimate("iwae", [2.0, 3.0], direction="none"))
    assert not [sentence for sentence in verdict_sentences(tree) if "The ELBO lies" in sentence]


def test_doubts_about_evidence_are_told_with_their_reason() -> None:
    doubtful = estimate(
        "psis", [1.0, 3.0], is_reliable=np.array([True, False]), reason="k-hat above 0.7", direction="none"
    )
    approximate = estimate(
        "eubo", [2.0, 4.0], direction="upper", is_approximate=np.ones(2, bool), reason="draws are not exact"
    )
    assert verdict_sentences(evidence_tree(doubtful, approximate)) == [
        "PSIS puts log p(x) at 2.0 ± 1.0 nats per datum on average over 2 data (with a bias of unknown sign); the "
        "error bar cannot be trusted for 1 of 2 (k-hat above 0.7).",
        "EUBO puts log p(x) at 3.0 ± 1.0 nats per datum on average over 2 data (an upper bound in expectation); the "
        "direction is approximate for 2 of 2 (draws are not exact).",
    ]


def test_evidence_without_any_error_bar_to_be_trusted_gives_no_verdict() -> None:
    doubtful = estimate("psis", [1.0, 3.0], is_reliable=np.zeros(2, bool), reason="k-hat above 0.7")
    said = verdict_sentences(evidence_tree(estimate("elbo", [0.0, 1.0]), doubtful))
    assert said[1] == (
        "No verdict on log p(x) by PSIS; the error bar cannot be trusted for 2 of 2 (k-hat above 0.7)."
    )
    assert said[2] == "No verdict on the gap by PSIS - ELBO: no error bar can be trusted."


def test_no_khat_at_all_gives_no_verdict_on_the_weights() -> None:
    tree = build_tree({"diagnostics": group("diagnostics", {"khat": np.full(3, NAN)})})
    assert verdict_sentences(tree)[0].startswith("No verdict on the importance weights")


def test_every_sentence_names_the_group_whose_numbers_it_tells() -> None:
    tree = report_tree()
    found = findings(tree)
    assert [finding.sentence for finding in found] == verdict_sentences(tree)
    order = list(dict.fromkeys(finding.group for finding in found))
    assert order == ["sandwich", "evidence", "gaps", "comparison", "decomposition"]
    about = {finding.group: finding.sentence for finding in found}
    assert "lost to" in about["gaps"]
    assert "latent units are active" in about["decomposition"]
    assert "posterior standard deviations" in about["comparison"]


def test_a_sentence_on_what_is_not_there_names_no_group() -> None:
    assert [finding.group for finding in findings(xr.DataTree())] == [""]
    gaps = {"gaps": report_tree()["gaps"].to_dataset()}
    assert all(finding.group == "gaps" for finding in findings(build_tree(gaps)))


def test_what_is_no_more_than_chance_or_of_no_weight_is_not_called_furthest_off() -> None:
    truth = estimate("exact", [0.0, 1.0], direction="exact", std_error=np.zeros(2))
    for bias, is_told in ((0.001, False), (0.02, False), (0.5, True)):
        error = 0.0001 if bias < 0.01 else 0.01
        rest = estimate("iwae", [0.0, 1.0], budget=10)
        far = estimate("psis", [bias, 1.0 + bias], budget=10, std_error=np.full(2, error))
        table = [truth, rest, far]
        sandwich = sandwich_group(table, 0.1)
        tree = build_tree({"evidence": with_bias(evidence_group(table), sandwich), "sandwich": sandwich})
        assert any(s.startswith("The furthest off") for s in verdict_sentences(tree)) == is_told


def test_one_datum_is_told_as_one_with_its_noise() -> None:
    truth = estimate("exact", [0.0], direction="exact", std_error=np.zeros(1))
    table = [truth, estimate("iwae", [0.02], budget=10)]
    sandwich = sandwich_group(table, 0.1)
    tree = build_tree({"evidence": with_bias(evidence_group(table), sandwich), "sandwich": sandwich})
    said = " ".join(verdict_sentences(tree))
    assert "1 of 1 datum" in said
    assert "IWAE with 10 draws, off by 0.020 ± 0.010 nats for 1 datum, its Monte Carlo error included" in said
    assert "1 data" not in said
