"""The one sentence at the top: what it says of the guide, of the gap and of its cause, and what it refuses to say."""

import numpy as np
import pytest
import xarray as xr
from report_trees import N, gaps_group, report_groups
from trees import THREE, comparison_tree, ends, estimate, evidence_tree, sandwich_tree

from pyrovae.results import build_tree
from pyrovae.results.headline import best_gap, gap_parts, guide_faults, headline


def test_width_and_means_are_told_with_their_numbers() -> None:
    assert headline(comparison_tree(["ok", "ok", "no verdict"], THREE)) == (
        "The guide is too narrow (0.800 ± 0.050 of the posterior's standard deviations) and off by 0.200 ± 0.035 "
        "posterior standard deviations, for the 2 of 3 data with a verdict."
    )


def test_a_mean_error_that_monte_carlo_alone_gives_is_no_fault() -> None:
    tree = comparison_tree(["ok"] * 3, [[1.0, 1.0]] * 3)
    assert guide_faults(tree) == ["off by 0.200 ± 0.029 posterior standard deviations"]
    noisy = tree["comparison"].to_dataset()
    noisy["mean_error_std_error"] = noisy["mean_error_std_error"] * 5  # E|e| is then 0.2 as well
    groups = {"comparison": noisy, "diagnostics": tree["diagnostics"].to_dataset()}
    assert guide_faults(build_tree(groups)) == []
    assert headline(build_tree(groups)).startswith(
        "No error in the average width or the means of the guide was"
    )


def test_nothing_is_said_of_a_guide_whose_references_were_all_refused() -> None:
    said = headline(comparison_tree(["no verdict"] * 3, THREE))
    assert said == "No verdict on the shape of the guide, which can be compared for 0 of 3 data."
    assert guide_faults(comparison_tree(["no verdict"] * 3, THREE)) == []


def test_the_truth_goes_before_a_bound_and_a_bound_before_an_estimate() -> None:
    elbo, iwae = estimate("elbo", [-4.0, -4.0]), estimate("iwae", [-3.3, -3.3])
    psis = estimate("psis", [-3.1, -3.1], direction="none")
    assert "at least 0.700 ± 0.010 nats" in headline(evidence_tree(elbo, psis, iwae))
    assert "about 0.900 ± 0.010 nats" in headline(evidence_tree(elbo, psis))
    row = best_gap(sandwich_tree(elbo, iwae, *ends([0.02, 0.02])))
    assert row is not None
    assert row.value == pytest.approx(1.01)
    assert row.subject == "sandwich"


def test_doubtful_error_bars_are_told_and_none_at_all_gives_no_verdict() -> None:
    elbo = estimate("elbo", [-4.0, -4.0])
    half = estimate("iwae", [-3.0, -3.0], is_reliable=np.array([True, False]))
    assert "(its error bar cannot be trusted for 1 of 2 data)" in headline(evidence_tree(elbo, half))
    none = estimate("iwae", [-3.0, -3.0], is_reliable=np.zeros(2, bool))
    assert headline(evidence_tree(elbo, none)).startswith(
        "No verdict on the gap between the ELBO and log p(x)"
    )


def test_a_gap_within_its_error_is_not_called_one() -> None:
    elbo = estimate("elbo", [-4.0, -4.0])
    assert headline(evidence_tree(elbo, estimate("iwae", [-3.98, -3.98]))).startswith(
        "No gap between the ELBO"
    )


@pytest.mark.parametrize(("parts", "cause"), [((2.0, 0.5), "family"), ((0.5, 2.0), "amortization")])
def test_most_of_the_gap_has_a_cause(parts: tuple[float, float], cause: str) -> None:
    groups = {name: made for name, made in report_groups().items() if name in ("evidence", "sandwich")}
    groups["gaps"] = gaps_group(*parts)
    assert f"mostly {'its ' if cause == 'family' else ''}{cause} (" in headline(build_tree(groups))
    groups["gaps"] = gaps_group(1.0, 1.0)
    assert "mostly" not in headline(build_tree(groups))


def test_refused_data_have_no_part_in_the_cause() -> None:
    """Planted: the data that were not optimized would turn the cause round."""
    verdict = np.where(np.arange(N) < 3, "ok", "not optimized")
    gaps = gaps_group(verdict=verdict)
    gaps["amortization_gap"][3:] = 100.0
    parts = gap_parts(xr.DataTree.from_dict({"gaps": gaps}))
    assert parts is not None
    assert parts.difference.value > 0
    gaps["verdict"][:] = "ok"
    assert gap_parts(xr.DataTree.from_dict({"gaps": gaps})).difference.value < 0
