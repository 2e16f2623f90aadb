"""The table and the slopes of gradient estimators, from trees whose answers were planted."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import xarray as xr
from gradient_trees import COUNTS, PARTS, TIGHT, gradient_tree, gradients, without

import pyrovae as pv
from pyrovae.results import group
from pyrovae.results.gradients import gradient_records, gradient_summary, snr_slopes

FIVE = 5.03  # standard errors: a false alarm in two million
OTHER_SEEDS = (1, 2, 3, 4, 5)


# the table


def test_one_row_for_each_part_method_and_number_of_particles() -> None:
    table = pv.gradient_summary(gradient_tree(gradients()))
    assert table.index.names == ["part", "method", "count"]
    assert len(table) == len(PARTS) * len(TIGHT) * len(COUNTS)
    row = table.loc[("decoder", "iwae", 4)]
    assert (row["snr"], row["snr_std_error"]) == (pytest.approx(2.0), pytest.approx(0.02 * 4 / (2 * 2)))
    assert row["snr_low"] == pytest.approx(math.sqrt(4 - 1.96 * 0.08))
    assert (row["variance"], row["seconds"]) == (pytest.approx(1.0), pytest.approx(1.4e-3))
    assert row["variance_seconds"] == pytest.approx(1.4e-3)
    assert row["snr_squared_per_second"] == pytest.approx(4 / 1.4e-3)
    assert (row["own_bias"], row["evidence_bias"]) == (0.0, pytest.approx(0.15))
    assert math.isnan(table.loc[("encoder", "iwae", 4), "evidence_bias"])
    assert not table["is_biased"].any()


def test_a_negative_snr_squared_is_an_snr_of_zero_with_an_upper_end() -> None:
    where = ("iwae", 64, "encoder")
    made = gradients(snr_squared={where: -0.01}, snr_squared_std_error={where: 0.02})
    row = gradient_summary(gradient_tree(made)).loc[("encoder", "iwae", 64)]
    assert (row["snr"], row["snr_low"]) == (0.0, 0.0)
    assert row["snr_high"] == pytest.approx(math.sqrt(-0.01 + 1.96 * 0.02))
    assert math.isnan(row["snr_std_error"])


def test_a_bias_is_called_one_if_it_is_sure_and_not_tiny() -> None:
    wrong, tiny, unsure = ("stl", 4, "encoder"), ("stl", 16, "encoder"), ("stl", 64, "encoder")
    made = gradients(
        own_bias_squared={wrong: 0.04, tiny: 1e-5, unsure: 0.04},
        own_bias_squared_std_error={wrong: 0.001, tiny: 1e-7, unsure: 0.02},
    )
    table = gradient_summary(gradient_tree(made))
    assert table.index[table["is_biased"]].to_list() == [("encoder", "stl", 4)]


def test_an_epoch_is_the_first_level() -> None:
    tree = gradient_tree(gradients(), gradients(), epoch=[0, 20])
    assert gradient_summary(tree).index.names == ["epoch", "part", "method", "count"]
    assert snr_slopes(tree).index.names == ["epoch", "part", "method"]
    assert [row["epoch"] for row in gradient_records(tree)[:1]] == [0]


def test_a_tree_without_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="no gradients; pyrovae.gradient_statistics measures them"):
        gradient_summary(xr.DataTree())


def test_names_of_parts_are_words() -> None:
    with pytest.raises(ValueError, match="'part'"):
        group("gradients", {"variance": (("part",), np.ones(2))})


# slopes


@pytest.mark.parametrize("seed", [0, *OTHER_SEEDS])
def test_planted_slopes_come_out(seed: int) -> None:
    slopes = pv.snr_slopes(gradient_tree(gradients(relative_error=0.05, seed=seed)))
    for method, powers in TIGHT.items():
        for part, (_, power) in zip(PARTS, powers, strict=True):
            row = slopes.loc[(part, method)]
            assert abs(row["slope"] - power) < FIVE * row["std_error"], (part, method)
            assert 0 < row["std_error"] < 0.03
            assert row["low"] < row["slope"] < row["high"]
            assert (row["num_points"], row["num_left_out"]) == (5, 0)
    wrong = abs(
        slopes.loc[("encoder", "iwae"), "slope"] - 0.5
    )  # planted: the law of the decoder for the encoder
    assert wrong > FIVE * slopes.loc[("encoder", "iwae"), "std_error"]


@pytest.mark.slow
def test_the_interval_covers_the_planted_slope_as_often_as_it_says() -> None:
    counts = (16, 32, 64, 128, 256, 512)
    fits = [
        snr_slopes(gradient_tree(gradients({"a": ((0.3, 0.5), (0.3, -0.5))}, counts=counts, seed=seed)))
        for seed in range(150)
    ]
    covered = [
        row["low"] <= power <= row["high"]
        for fit in fits
        for power, (_, row) in zip((0.5, -0.5), fit.iterrows(), strict=True)
    ]
    assert np.mean(covered) > 0.95 - FIVE * math.sqrt(0.95 * 0.05 / len(covered))


def test_without_noise_the_fit_is_exact_and_takes_the_range_that_it_is_given() -> None:
    bent = {("iwae", 1, "encoder"): 9.0}
    tree = gradient_tree(gradients(snr_squared=bent, snr_squared_std_error={("iwae", 1, "encoder"): 0.01}))
    row = snr_slopes(tree, min_particles=4, max_particles=64).loc[("encoder", "iwae")]
    assert row["slope"] == pytest.approx(-0.5)
    assert math.exp(row["intercept"]) == pytest.approx(0.5)
    assert row["num_points"] == 3
    assert snr_slopes(tree).loc[("encoder", "iwae"), "slope"] < -0.6
    with pytest.raises(ValueError, match=r"from 1000 to any, got \[1, 4, 16, 64, 256\]"):
        snr_slopes(tree, min_particles=1000)


def test_points_that_no_law_explains_widen_the_error() -> None:
    bent = {("iwae", 16, "encoder"): 0.5}
    smooth, rough = (snr_slopes(gradient_tree(gradients(snr_squared=c))) for c in ({}, bent))
    where = ("encoder", "iwae"), "std_error"
    assert rough.loc[where] > 10 * smooth.loc[where]


def test_points_whose_interval_includes_zero_are_left_out_and_counted() -> None:
    lost: Mapping[tuple[str, int, str], float] = {("iwae", k, "encoder"): 0.001 for k in (64, 256)}
    made = gradients(snr_squared=lost, snr_squared_std_error=lost)
    row = snr_slopes(gradient_tree(made)).loc[("encoder", "iwae")]
    assert (row["num_points"], row["num_left_out"]) == (3, 2)
    assert row["slope"] == pytest.approx(-0.5)
    fewer = without(made, "iwae", 16, "not finite")
    row = snr_slopes(gradient_tree(fewer)).loc[("encoder", "iwae")]
    assert (row["num_points"], row["num_left_out"]) == (2, 2)  # what has no numbers is not left out
    assert math.isnan(row["slope"])
    assert math.isnan(row["low"])


def test_an_estimator_without_variance_has_no_slope() -> None:
    perfect = {("stl", k, "encoder"): math.inf for k in COUNTS}
    row = snr_slopes(gradient_tree(gradients(snr_squared=perfect))).loc[("encoder", "stl")]
    assert (row["num_points"], row["num_left_out"]) == (0, 5)
