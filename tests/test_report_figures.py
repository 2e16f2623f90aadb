"""The two figures that only the report has: intervals of estimators, and the latent space along components."""

import numpy as np
import pytest
from report_trees import report_groups
from trees import ends, estimate, evidence_tree, sandwich_tree

from pyrovae.reporting.intervals import plot_evidence_intervals
from pyrovae.reporting.latents import plot_latent_space
from pyrovae.results import build_tree, group


def test_intervals_are_paired_and_point_to_the_truth() -> None:
    shared = np.array([0.0, 50.0, 100.0])  # what the data have in common falls out
    rise = np.array([0.9, 1.0, 1.1])
    tree = evidence_tree(estimate("elbo", list(shared)), estimate("iwae", list(shared + rise)))
    ax = plot_evidence_intervals(tree).axes[0]
    bar, mark = ax.lines[:2]
    assert mark.get_xdata()[0] == pytest.approx(1.0)
    assert mark.get_marker() == ">"
    assert np.ptp(bar.get_xdata()) == pytest.approx(2 * 2 * 0.1 / np.sqrt(3))


def test_doubtful_intervals_are_hollow_and_told() -> None:
    doubtful = estimate("iwae", [1.0, 1.0, 1.0], is_reliable=np.array([True, False, False]))
    figure = plot_evidence_intervals(evidence_tree(estimate("elbo", [0.0, 0.0, 0.0]), doubtful))
    assert figure.axes[0].lines[1].get_markerfacecolor() == "white"
    assert figure.get_suptitle().endswith("with an error bar that cannot be trusted")


def test_the_truth_is_a_band_and_the_title() -> None:
    tree = sandwich_tree(estimate("elbo", [-5.0, -5.0]), *ends([0.02, 0.02]))
    figure = plot_evidence_intervals(tree)
    assert figure.get_suptitle().startswith("log p(x) lies 2.01")
    low, high = (figure.axes[0].patches[0].get_corners()[i, 0] for i in (0, 1))
    assert low < 2.01 < high
    with pytest.raises(ValueError, match="needs 'elbo' and another method"):
        plot_evidence_intervals(evidence_tree(estimate("iwae", [0.0])))


def test_principal_components_hold_the_variance_that_the_title_tells() -> None:
    """Means on a line in three dimensions: one component holds all, and its coordinates are theirs."""
    t = np.linspace(-1, 1, 11)
    direction = np.array([2.0, -1.0, 2.0]) / 3
    z = np.broadcast_to(t[:, None] * direction, (1, 4, 11, 3)).copy()
    latent = ["a[0]", "a[1]", "a[2]"]
    figure = plot_latent_space(build_tree({"guide": group("guide", {"z": z}, latent=latent)}))
    assert figure.get_suptitle().startswith("Two principal components hold 100%")
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert np.abs(points[:, 0]) == pytest.approx(np.abs(t), abs=1e-9)
    assert np.abs(points[:, 1]).max() < 1e-9


def test_the_aggregate_is_held_against_the_prior_and_refusals_are_marked() -> None:
    groups = report_groups()
    kept = {name: groups[name] for name in ("guide", "prior", "diagnostics")}
    figure = plot_latent_space(build_tree(kept))
    assert "the prior" in figure.get_suptitle()
    left, right = figure.axes[:2]
    assert len(left.lines[0].get_xdata()) == 2  # two data without verdict
    assert [len(cloud.get_offsets()) for cloud in right.collections] == [108, 1500]
    single = groups["guide"].isel(latent=[0])
    with pytest.raises(ValueError, match="from two latent coordinates and three data on, got 1 and 12"):
        plot_latent_space(build_tree({"guide": single}))
