"""Rows, sentences and the figure of a calibration, and what is said of directions, correlations and the classifier."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from trees import THREE, calibration_tree, comparison_tree, widely_compared_tree

from pyrovae.reporting.calibration import plot_calibration
from pyrovae.reporting.figures import COLORS, save_figure
from pyrovae.results.calibration import calibration_rows, calibration_sentences, wrong_latents
from pyrovae.results.guide_sentences import guide_sentences
from pyrovae.results.summary import summary

S = 2000
UNIFORM = (np.arange(S) + 0.5) / S


def crowded(u: np.ndarray, power: float) -> np.ndarray:
    """Numbers that crowd at both ends of [0, 1] for a power below 1, in the middle above."""
    centred = 2 * u - 1
    return 0.5 + 0.5 * np.sign(centred) * np.abs(centred) ** power


PIT = np.stack([UNIFORM, crowded(UNIFORM, 0.6), crowded(UNIFORM, 1.5), UNIFORM**1.15], 1)


def test_the_latents_are_told_by_their_fault():
    wrong = wrong_latents(calibration_tree(PIT)["calibration"].to_dataset())
    assert wrong["over-confident"].tolist() == [False, True, False, False]
    assert wrong["under-confident"].tolist() == [False, False, True, False]
    assert wrong["biased"].tolist() == [False, False, False, True]


def test_the_sentences():
    said = list(calibration_sentences(calibration_tree(PIT, rank=0.7, shift=0.8)))
    assert said[0] == (
        "On data that the model itself draws (2000 simulations) the guide is over-confident in 1 of 4 latents (z[1]); "
        "under-confident in 1 of 4 latents (z[2]); biased in 1 of 4 latents (z[3])."
    )
    assert said[1].startswith(
        "The guide's draws explain such data worse than the codes that made them: the true log"
    )
    assert "above 70.00 ± 0.65 % of draws" in said[1]
    assert said[2] == "The guide's 90% credible regions hold the truth in 81.00 ± 0.88 % of simulations."
    assert (
        said[3]
        == "There, guide and posterior are 0.2500 ± 0.0013 nats per datum apart, the sum of the KL both ways."
    )
    assert said[4] == (
        "Real codes differ from simulated ones (a classifier tells codes of real and simulated data apart with an AUC "
        "of 0.800 ± 0.020; the mean of z[3] lies +0.50 sds off, that of log p(x | z) -0.80 ± 0.10 sds), so this may "
        "not carry over to real data."
    )


def test_where_nothing_is_wrong_nothing_is_said_to_be():
    said = list(calibration_sentences(calibration_tree(PIT[:, :1])))
    assert "no error of the guide was found" in said[0]
    assert not [sentence for sentence in said if "explain" in sentence]
    assert said[-1].endswith("so this carries over as far as 7 data can show.")
    few = list(calibration_sentences(calibration_tree(PIT, shift=None)))
    assert (
        few[-1]
        == "Whether this carries over is not known: 7 data are too few to compare with simulated ones."
    )
    assert not list(calibration_sentences(comparison_tree(["ok"] * 3, THREE)))


def test_the_rows_are_in_the_summary():
    tree = calibration_tree(PIT, rank=0.7)
    rows = {row.subject: row for row in calibration_rows(tree)}
    assert [rows[name].value for name in ("over-confident", "under-confident", "biased")] == [1, 1, 1]
    table = summary(tree)
    assert isinstance(table, pd.DataFrame)
    assert table.loc["calibration: coverage of the guide's 90% regions", "value"] == pytest.approx(0.81)
    assert table.loc["calibration: rank of the true log p(x | z)", "value"] == 0.7
    assert table.loc["calibration: AUC of real against simulated codes", "num_data"] == 7
    assert table.loc["calibration: simulated_gap", "std_error"] == pytest.approx(0.0013, abs=1e-4)


def test_the_figure_colours_what_leaves_the_band(tmp_path):
    figure = plot_calibration(calibration_tree(PIT))
    latents, coverage, likelihood = figure.axes
    named = {line.get_label(): line for line in latents.lines if line.get_label().startswith("z[")}
    assert set(named) == {"z[1]", "z[2]", "z[3]"}
    for label, column in (("z[1]", 1), ("z[3]", 3)):
        shown = named[label].get_ydata()[50]
        assert shown == pytest.approx((PIT[:, column] <= 0.5).mean() - 0.5)
    colours = [to_hex(ax.lines[-1].get_color()).upper() for ax in (coverage, likelihood)]
    assert colours == [COLORS["vermillion"], COLORS["blue"]]
    assert "over-confident in 1, under-" in figure.get_suptitle().replace("\n", "")
    save_figure(figure, tmp_path / "calibration.png", dpi=40)


def test_directions_correlations_divergence_and_classifier_are_told():
    said = " ".join(guide_sentences(widely_compared_tree(["ok", "ok", "no verdict"])))
    assert (
        "It is too narrow in 1 and too wide in 0 of 2 latents; along the direction in which it is narrowest (mostly "
        "a[1]) its standard deviation is 0.50 ± 0.10 of the posterior's on average."
    ) in said
    assert "Its correlations between latents are off by 0.40 ± 0.10 (root mean square" in said
    assert "No error in its correlations was found" not in said
    assert "Monte Carlo error alone would give 0.05." in said
    assert "Guide and posterior are 1.10 ± 0.10 nats per datum apart, the sum of the KL both ways." in said
    assert (
        "A classifier tells draws of the guide from those of the reference: its AUC is 0.700 ± 0.010, p < 1e-6, where "
    ) in said
    alike = " ".join(guide_sentences(widely_compared_tree(["ok"] * 3, auc=0.505)))
    assert "A classifier cannot tell draws of the guide" in alike
    assert "0.5 is chance; 1 datum has no verdict on the reference, which alone could make it so." in said
    certain = " ".join(guide_sentences(widely_compared_tree(["ok", "ok", "no verdict"], auc=0.9)))
    assert "0.5 is chance; 1 datum has no verdict on the reference." in certain
    none = " ".join(guide_sentences(widely_compared_tree(["no verdict"] * 3)))
    assert not [word for word in ("classifier", "direction", "correlations", "apart") if word in none]
