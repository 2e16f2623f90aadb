"""The truth about log p(x), from known values and closed sandwiches; and every estimator's bias against it."""

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from trees import benchmark_tree, ends, estimate, evidence_tree, sandwich_tree

from pyrovae.results import build_tree, content_hash, evidence_group, read, write
from pyrovae.results.sandwich import evidence_summary, sandwich_group, with_bias
from pyrovae.results.verdicts import verdict_sentences

NAN = float("nan")


def verdicts(gap: list[float], error: float = 0.01, tolerance: float = 0.1, **changes: object) -> list[str]:
    return sandwich_group(ends(gap, error, **changes), tolerance)["verdict"].values.tolist()


# verdicts

CLOSED, WIDE, NONE = "closed", "did not close", "no verdict"


@pytest.mark.parametrize(
    ("gap", "error", "verdict"),
    [
        (0.0, 0.01, CLOSED),
        (0.0999, 0.01, CLOSED),
        (0.1001, 0.01, WIDE),
        (5.0, 1.0, WIDE),
        (-0.04, 0.01, CLOSED),  # 2.8 standard errors of the gap, which is sqrt(2) of 0.01
        (-0.05, 0.01, NONE),  # 3.5: the ends have crossed
        (-2e-6, 0.0, CLOSED),  # rounding of -3 nats
        (-4e-6, 0.0, NONE),
        (0.05, 0.08, NONE),  # the error of the gap, 0.11, is above the tolerance
        (NAN, 0.01, NONE),
        (math.inf, 0.01, NONE),
    ],
)
def test_the_verdict_on_a_sandwich(gap: float, error: float, verdict: str) -> None:
    assert verdicts([gap], error) == [verdict]


def test_an_end_whose_error_bar_is_in_doubt_closes_nothing() -> None:
    doubtful = {"is_reliable": np.zeros(3, bool)}
    assert verdicts([0.0, 1.0, -1.0], **doubtful) == [NONE, WIDE, NONE]
    lower, upper = ends([0.0])
    unsure = estimate("ais", [-3.0], std_error=np.array([NAN]), is_reliable=np.array([False]))
    assert sandwich_group([unsure, upper], 0.1)["verdict"].values.tolist() == [NONE]
    assert sandwich_group([lower, upper], 0.1)["verdict"].values.tolist() == [CLOSED]


def test_two_infinite_ends_give_no_verdict() -> None:
    off = {"is_reliable": np.zeros(1, bool)}
    table = [estimate("ais", [-math.inf], **off), estimate("ais-reverse", [-math.inf], **off)]
    assert sandwich_group(table, 0.1)["verdict"].values.tolist() == [NONE]


@pytest.mark.parametrize("seed", range(5))
def test_a_larger_tolerance_closes_no_fewer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gap, error = list(rng.normal(0.1, 0.2, 50)), float(rng.uniform(0.001, 0.1))
    closed = [
        {i for i, v in enumerate(verdicts(gap, error, limit)) if v == CLOSED} for limit in (0.05, 0.2, 1.0)
    ]
    assert closed[0] <= closed[1] <= closed[2]
    refused = {i for i, v in enumerate(gap) if v < -(3 * math.sqrt(2) * error + 3e-6)}
    assert not closed[2] & refused


# the truth


def test_the_middle_of_a_closed_sandwich_is_the_truth() -> None:
    found = sandwich_group(ends([0.08, 1.0, -0.01, NAN]), 0.1)
    np.testing.assert_allclose(found["truth"], [-2.96, NAN, -3.005, NAN])
    error = [math.hypot(0.01 * math.sqrt(2), 0.08) / 2, NAN, 0.01 * math.sqrt(2) / 2, NAN]
    np.testing.assert_allclose(found["truth_std_error"], error)
    assert found["source"].values.tolist() == ["ais and ais-reverse", "", "ais and ais-reverse", ""]
    np.testing.assert_allclose(found["gap"], [0.08, 1.0, -0.01, NAN])


def test_a_known_value_goes_before_the_sandwich() -> None:
    some = {"is_reliable": np.array([True, False, False]), "direction": "exact"}
    exact = estimate("exact", [-1.0, NAN, NAN], std_error=np.zeros(3), **some)
    more = some | {"is_reliable": np.array([True, True, False])}
    by_grid = estimate("quadrature", [-1.1, -2.0, NAN], std_error=np.full(3, 1e-6), **more)
    found = sandwich_group([by_grid, *ends([0.0, 0.0, 0.0]), exact], 0.1)
    assert found["source"].values.tolist() == ["exact", "quadrature", "ais and ais-reverse"]
    np.testing.assert_allclose(found["truth"], [-1.0, -2.0, -3.0])
    np.testing.assert_allclose(found["truth_std_error"][:2], [0.0, 1e-6])


def test_without_a_pair_there_are_no_ends_and_without_truth_no_group() -> None:
    lower, upper = ends([0.0])
    assert sandwich_group([lower, estimate("iwae", [-3.0])], 0.1) is None
    assert sandwich_group([upper], 0.1) is None
    exact = estimate("exact", [-3.0], direction="exact")
    found = sandwich_group([lower, exact], 0.1)
    assert set(found.data_vars) == {"truth", "truth_std_error", "source"}
    assert found.attrs == {"tolerance": 0.1}


def test_the_pair_is_that_of_the_largest_budgets() -> None:
    table = [
        estimate("ais", [-3.5], budget=1000),
        estimate("ais", [-9.0], budget=10),
        estimate("ais-reverse", [-2.0], budget=10, direction="upper"),
        estimate("ais-reverse", [-3.4], budget=100, direction="upper"),
    ]
    found = sandwich_group(table, 0.2)
    assert (found["lower"].item(), found["upper"].item()) == (-3.5, -3.4)
    assert (found.attrs["lower_method"], found.attrs["upper_method"]) == ("ais-1000", "ais-reverse-100")


def test_an_approximate_upper_end_is_told() -> None:
    doubt = {"is_approximate": np.array([True, False]), "reason": "the draws come from HMC"}
    found = sandwich_group(ends([0.0, 0.0], **doubt), 0.1)
    assert found["is_approximate"].values.tolist() == [True, False]
    assert found.attrs["reason"] == "the draws come from HMC"
    said = verdict_sentences(build_tree({"sandwich": found}))[0]
    assert said.endswith("; the upper end is approximate for 1 (the draws come from HMC).")


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, NAN])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance is the largest gap, in nats, that counts as closed"):
        sandwich_group(ends([0.0]), tolerance)


def test_evidence_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{'ais': 1, 'ais-reverse': 1, 'iwae': 2\}"):
        sandwich_group([*ends([0.0]), estimate("iwae", [0.0, 0.0])], 0.1)
    with pytest.raises(ValueError, match="one Evidence or more"):
        sandwich_group([], 0.1)


# bias


def test_the_bias_is_against_the_truth_but_not_of_what_made_it() -> None:
    table = [estimate("iwae", [-4.0, -4.0], std_error=np.full(2, 0.3)), *ends([0.0, 1.0])]
    made = with_bias(evidence_group(table), sandwich_group(table, 0.1))
    np.testing.assert_allclose(made["bias"], [[-1.0, NAN], [NAN, NAN], [NAN, NAN]])
    error = math.sqrt(0.3**2 + 2 * 0.01**2 / 4)
    np.testing.assert_allclose(made["bias_std_error"], [[error, NAN], [NAN, NAN], [NAN, NAN]])
    assert made.drop_vars(["bias", "bias_std_error"]).identical(evidence_group(table))


def test_the_ends_are_held_against_a_known_value_and_smaller_budgets_against_the_ends() -> None:
    exact = estimate("exact", [-3.1], std_error=np.zeros(1), direction="exact")
    tree = sandwich_tree(*ends([0.0]), exact)
    np.testing.assert_allclose(tree["evidence"]["bias"].values[:, 0], [0.1, 0.1, NAN])
    table = [estimate("ais", [v], budget=b) for v, b in ((-5.0, 10), (-3.0, 100))]
    tree = sandwich_tree(*table, estimate("ais-reverse", [-3.0], direction="upper", budget=100))
    np.testing.assert_allclose(tree["evidence"]["bias"].values[:, 0], [-2.0, NAN, NAN])


def test_a_bias_needs_the_same_data_and_the_ends_in_the_evidence() -> None:
    table = ends([0.0, 0.0])
    with pytest.raises(ValueError, match=r"must be of the same data, got the data \[5 6\] and \[0 1\]"):
        with_bias(evidence_group(table, datum=[5, 6]), sandwich_group(table, 0.1))
    with pytest.raises(ValueError, match=r"the evidence lacks \['ais-reverse'\]"):
        with_bias(evidence_group(table[:1]), sandwich_group(table, 0.1))


# the table


def test_the_table_has_bias_and_cost_of_every_method() -> None:
    iwae = estimate(
        "iwae",
        [-4.0, -5.0, -9.0],
        budget=100,
        num_density_evaluations=100,
        seconds=2.0,
        is_reliable=np.array([True, False, True]),
        is_approximate=np.array([True, True, False]),
        reason="k-hat",
    )
    table = evidence_summary(sandwich_tree(iwae, *ends([0.08, 0.08, 1.0])))
    row = table.loc["iwae"]
    assert list(table.index) == ["iwae", "ais", "ais-reverse"]
    assert (row["estimator"], row["budget"], row["direction"], row["reason"]) == (
        "iwae",
        100,
        "lower",
        "k-hat",
    )
    assert (row["num_data"], row["num_with_truth"], row["num_refused"], row["num_approximate"]) == (
        3,
        2,
        1,
        2,
    )
    assert (row["num_density_evaluations"], row["num_gradient_evaluations"], row["seconds"]) == (100, 0, 2.0)
    assert row["value"] == pytest.approx(-6.0)
    assert row["bias"] == pytest.approx(-(1.04 + 2.04) / 2)
    assert row["rms_error"] == pytest.approx(math.sqrt((1.04**2 + 2.04**2) / 2))
    # The spread of the two over sqrt(2), and half the gap, which no number of data makes smaller.
    assert row["bias_std_error"] == pytest.approx(math.hypot(math.sqrt(0.5 / 2), 0.04))
    assert math.isnan(table.loc["ais", "bias"])
    assert table.loc["ais", "num_with_truth"] == 0


def test_the_half_gap_does_not_average_out() -> None:
    many = sandwich_tree(estimate("iwae", [-3.0] * 400), *ends([0.08] * 400, error=0.001))
    assert evidence_summary(many).loc["iwae", "bias_std_error"] == pytest.approx(0.04, rel=0.01)


def test_the_table_without_truth_and_without_evidence() -> None:
    table = evidence_summary(evidence_tree(estimate("elbo", [1.0, 2.0])))
    assert table["bias"].isna().all()
    assert (table["num_with_truth"] == 0).all()
    plain = evidence_tree(estimate("elbo", [1.0])).children["evidence"].to_dataset()
    old = build_tree({"evidence": plain.drop_vars(["estimator", "budget", "reason", "is_approximate"])})
    assert evidence_summary(old).loc["elbo", ["estimator", "budget", "reason"]].to_list() == ["elbo", 0, ""]
    with pytest.raises(ValueError, match="no evidence; pyrovae.evidence_table"):
        evidence_summary(xr.DataTree())


# files


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_files_give_the_groups_back(tmp_path: Path, name: str) -> None:
    tree = benchmark_tree(5)
    write(tree, tmp_path / name)
    assert read(tmp_path / name).identical(tree)
    assert content_hash(read(tmp_path / name)) == content_hash(tree)


def test_the_hash_sees_the_truth_but_not_the_clock() -> None:
    tree, slower, other = benchmark_tree(5), benchmark_tree(5), benchmark_tree(5)
    slower["evidence"]["seconds"].values[:] = 99.0
    assert content_hash(slower) == content_hash(tree)
    other["sandwich"]["truth"].values[0] += 1.0
    assert content_hash(other) != content_hash(tree)
