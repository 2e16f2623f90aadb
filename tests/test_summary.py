"""Headline numbers agree with hand-computed ones, and data without a verdict are left out and counted."""

import math

import numpy as np
import pytest
import xarray as xr
from trees import THREE, comparison_tree, estimate, evidence_tree, full_tree

from pyrovae.results import build_tree, group
from pyrovae.results.summary import summary
from pyrovae.results.verdicts import verdict_sentences

NAN = float("nan")


def test_log_p_is_averaged_over_data_with_the_spread_as_error() -> None:
    row = summary(evidence_tree(estimate("iwae", [1.0, 2.0, 3.0, 6.0]))).loc["log p(x) by IWAE"]
    assert row["value"] == pytest.approx(3.0)
    assert row["std_error"] == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert (row["unit"], row["direction"], row["num_data"], row["num_refused"]) == (
        "nats per datum",
        "lower",
        4,
        0,
    )


def test_the_error_is_never_below_the_monte_carlo_error() -> None:
    same = estimate("iwae", [2.0] * 4, std_error=np.full(4, 0.3))
    one = estimate("iwae", [2.0], std_error=np.array([0.3]))
    assert summary(evidence_tree(same))["std_error"].item() == pytest.approx(0.3 / 2)
    assert summary(evidence_tree(one))["std_error"].item() == pytest.approx(0.3)


def test_values_with_a_doubtful_error_bar_stay_in_the_mean_and_are_counted() -> None:
    doubtful = estimate("psis", [1.0, 3.0, 5.0], is_reliable=np.array([True, False, True]))
    row = summary(evidence_tree(doubtful)).loc["log p(x) by PSIS"]
    assert (row["value"], row["num_data"], row["num_refused"]) == (3.0, 3, 1)
    assert row["std_error"] == pytest.approx(2 / math.sqrt(3))


def test_there_is_no_error_bar_where_none_can_be_trusted() -> None:
    row = summary(evidence_tree(estimate("psis", [1.0, 3.0], is_reliable=np.zeros(2, bool)))).iloc[0]
    assert row["value"] == 2.0
    assert math.isnan(row["std_error"])


def test_missing_values_are_left_out_and_counted() -> None:
    holes = estimate("ais", [1.0, NAN, 3.0], is_reliable=np.array([True, False, True]))
    row = summary(evidence_tree(holes)).iloc[0]
    assert (row["value"], row["num_data"], row["num_refused"]) == (2.0, 2, 1)


def test_the_gap_is_paired_by_datum_and_has_the_direction_of_its_method() -> None:
    elbo = estimate("elbo", [-10.0, 0.0, 10.0])
    table = summary(
        evidence_tree(elbo, estimate("iwae", [-9.0, 1.5, 11.0]), estimate("eubo", [-8.0, 2.0, 12.0]))
    )
    row = table.loc["KL(guide || posterior) by IWAE - ELBO"]
    assert row["value"] == pytest.approx(3.5 / 3)
    assert row["std_error"] == pytest.approx(np.std([1.0, 1.5, 1.0], ddof=1) / math.sqrt(3))
    assert table.loc["KL(guide || posterior) by EUBO - ELBO", "std_error"] == pytest.approx(
        math.hypot(0.01, 0.01) / math.sqrt(3)
    )
    assert "KL(guide || posterior) by ELBO - ELBO" not in table.index
    assert not [name for name in summary(evidence_tree(estimate("iwae", [1.0, 2.0]))).index if "KL" in name]


def test_the_share_of_bad_weights_counts_infinite_and_refuses_missing_khat() -> None:
    khat = np.array([0.2, 0.69, 0.71, np.inf, NAN])
    tree = build_tree({"diagnostics": group("diagnostics", {"khat": khat}, {"khat_threshold": 0.7})})
    row = summary(tree).loc["share of data with k-hat above 0.7"]
    assert (row["value"], row["num_data"], row["num_refused"]) == (0.5, 4, 1)
    assert row["std_error"] == pytest.approx(math.sqrt(0.25 * 4 / 3 / 4))
    assert verdict_sentences(tree)[0] == (
        "Importance weights cannot be trusted for 2 of 5 data (k-hat above 0.7); 1 datum has no k-hat."
    )


def test_the_reference_is_counted_and_its_worst_values_are_shown() -> None:
    table = summary(comparison_tree(["ok", "ok", "no verdict"], THREE))
    row = table.loc["data with a converged reference"]
    assert (row["value"], row["num_data"], row["num_refused"]) == (2.0, 3, 1)
    assert table.loc["largest R-hat", "value"] == 1.2
    assert table.loc["smallest bulk ESS", "value"] == 400.0
    assert "smallest tail ESS" not in table.index


def test_the_guide_is_compared_over_data_that_have_a_verdict() -> None:
    table = summary(comparison_tree(["ok", "ok", "no verdict"], THREE))
    width = table.loc["guide: its sd over the posterior's"]
    assert width["value"] == pytest.approx(0.8)
    assert width["std_error"] == pytest.approx(0.05)
    assert (width["num_data"], width["num_refused"]) == (2, 1)
    location = table.loc["guide: absolute error of its mean"]
    assert (location["value"], location["direction"]) == (pytest.approx(0.2), "upper")
    assert location["std_error"] == pytest.approx(0.05 / math.sqrt(2))
    assert table.loc["guide: Wasserstein-2 distance to the posterior", "value"] == 1.5


def test_without_a_verdict_nothing_is_averaged() -> None:
    no_verdict = comparison_tree(["no verdict"] * 3, THREE)
    not_measured = build_tree({"comparison": no_verdict["comparison"].to_dataset()})
    for tree in (no_verdict, not_measured):
        row = summary(tree).loc["guide: its sd over the posterior's"]
        assert math.isnan(row["value"])
        assert (row["num_data"], row["num_refused"]) == (0, 3)


def test_terms_of_the_decomposition_have_a_row_each() -> None:
    terms = {
        "elbo": np.array([1.0, 2.0, NAN]),
        "elbo_std_error": np.full(3, 0.1),
        "num_steps": np.arange(3),
        "aggregate": (("family",), np.ones(2)),
    }
    made = {name: array if isinstance(array, tuple) else (("datum",), array) for name, array in terms.items()}
    dataset = group("decomposition", made)
    dataset["elbo"].attrs["direction"] = "upper"
    table = summary(build_tree({"decomposition": dataset}))
    assert list(table.index) == ["decomposition: elbo"]
    row = table.iloc[0]
    assert (row["value"], row["direction"], row["num_data"], row["num_refused"]) == (1.5, "upper", 2, 1)


def test_nothing_measured_is_an_empty_table() -> None:
    assert summary(xr.DataTree()).empty
    assert list(summary(full_tree()).columns) == [
        *("value", "std_error", "unit", "direction"),
        *("num_data", "num_refused"),
    ]


def test_a_tree_that_does_not_fit_is_refused() -> None:
    tree = xr.DataTree.from_dict({"evidence": xr.Dataset({"value": ("datum", [1.0])})})
    for speak in (summary, verdict_sentences):
        with pytest.raises(ValueError, match=r"evidence\.value must have dims"):
            speak(tree)
