"""The one sentence at the top: what it says of the guide, of the gap and of its cause, and what it refuses to say."""

import numpy as np
import pytest
import xarray as xr
from report_trees import N, gaps_group, report_groups
from trees import (
    THREE,
    calibration_tree,
    comparison_tree,
    ends,
    estimate,
    evidence_tree,
    groups_of,
    sandwich_tree,
    widely_compared_tree,
)

from pyrovae.results import build_tree
from pyrovae.results.guide_faults import guide_faults
from pyrovae.results.headline import best_gap, headline
from pyrovae.results.inference_gaps import gap_parts


def changed(tree: xr.DataTree, **variables: object) -> xr.DataTree:
    """The same tree with other values in its comparison."""
    groups = groups_of(tree)
    compared = groups["comparison"]
    for name, values in variables.items():
        compared[name] = compared[name].dims, np.broadcast_to(values, compared[name].shape).copy()
    return build_tree(groups)


def as_the_posterior(verdict: tuple[str, ...] = ("ok", "ok", "ok")) -> xr.DataTree:
    """A comparison in which nothing is wrong."""
    right: dict[str, object] = {"sd_ratio": 1.0, "mean_error": 0.0, "narrowest_sd_ratio": 1.0}
    right |= {"correlation_error": 0.05, "classifier_auc": 0.5}
    return changed(widely_compared_tree(list(verdict)), **right)


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
        "No error in the widths or the means of the guide was found"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "No error in the widths, correlations or means of the guide was found"),
        (
            {"sd_ratio": [0.5, 1.5]},
            "too narrow in a[0] (0.5000 ± 0.0058 of the posterior's standard deviation) and too",
        ),
        (
            {"sd_ratio": [0.9, 1.0]},
            "The guide is too narrow (0.9500 ± 0.0058 of the posterior's standard deviations).",
        ),
        ({"sd_ratio": [1.02, 0.99]}, "The guide is too wide in a[0] (1.0200 ± 0.0058 of the"),
        ({"sd_ratio": [1.018, 0.992]}, "No error"),  # 3.1 standard errors, of the largest of two
        (
            {"correlation_error": 0.9},
            "The guide is wrong in the correlations between latents (by 0.9000 ± 0.0058).",
        ),
        ({"narrowest_sd_ratio": 0.8}, "The guide is too narrow along one direction (0.800 ± 0.012 of the"),
        (
            {"classifier_auc": 0.6},
            "The guide is told from the posterior by a classifier (with an AUC of 0.600 ± 0.010",
        ),
        ({"classifier_auc": 0.52}, "No error"),
        ({"classifier_auc": 0.6, "mean_error": 0.5}, "The guide is off by 0.500 ± 0.029 posterior"),
    ],
)
def test_each_fault_is_told_in_plain_words(change: dict[str, object], told: str) -> None:
    assert told in headline(changed(as_the_posterior(), **change))


def test_a_classifier_that_the_refused_data_alone_could_help_tells_nothing_of_the_guide() -> None:
    """With a third of the data at opposite ends, chance between the others gives 1 - (2 / 3)^2 / 2 = 0.78."""
    for auc, told in ((0.75, False), (0.9, True)):
        tree = changed(as_the_posterior(("ok", "ok", "no verdict")), classifier_auc=auc)
        assert ("by a classifier" in headline(tree)) == told


def test_where_most_data_are_refused_these_come_first_and_simulated_data_last() -> None:
    pit = np.stack([np.linspace(0, 1, 500) ** 2, np.linspace(0, 1, 500)], 1)
    calibration = calibration_tree(pit)["calibration"].to_dataset().assign_coords(latent=["a[0]", "a[1]"])
    refused = groups_of(as_the_posterior(("ok", "no verdict", "no verdict")))
    said = headline(build_tree({**refused, "calibration": calibration}))
    first = "No verdict on the shape of the guide for 2 of 3 data (R-hat above 1.01: 2); for the other 1, no error in"
    assert said.startswith(first)
    assert "; on data that the model itself draws the guide is " in said
    assert "biased in 1 of 2 latents and 0.2500 ± 0.0026 nats per datum from the posterior" in said
    kept = groups_of(as_the_posterior())
    assert "the model itself draws" not in headline(build_tree({**kept, "calibration": calibration}))
    assert headline(calibration_tree(pit)).startswith("On data that the model itself draws the guide is")


def test_nothing_is_said_of_a_guide_whose_references_were_all_refused() -> None:
    said = headline(comparison_tree(["no verdict"] * 3, THREE))
    assert said == "No verdict on the shape of the guide for 3 of 3 data (R-hat above 1.01: 3)."
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


def test_a_truth_that_few_data_have_gives_way_to_a_bound_of_all() -> None:
    elbo = estimate("elbo", [-4.0] * 3)
    tree = sandwich_tree(elbo, *ends([0.02, 0.5, 0.5]))
    row = best_gap(tree)
    assert row is not None
    assert (row.subject, row.direction, row.num_refused) == ("AIS", "lower", 0)


def test_the_gap_of_the_parts_is_the_gap() -> None:
    """Of `gaps` alone, and before the noisier one from the same log p(x)."""
    alone = headline(build_tree({"gaps": gaps_group(2.0, 0.5)}))
    assert alone.startswith(
        "The ELBO lies about 2.523 ± 0.024 nats per datum below log p(x): mostly its family"
    )
    groups = report_groups()
    row = best_gap(build_tree({name: groups[name] for name in ("evidence", "sandwich", "gaps")}))
    assert row is not None
    assert row.subject == "inference_gap"


def test_no_cause_is_named_for_a_gap_that_is_not_worth_a_change() -> None:
    tree = build_tree({"gaps": gaps_group(0.001, 0.01, spread=0.001)})
    assert headline(tree).startswith("The ELBO lies about 0.01")
    assert "mostly" not in headline(tree)


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
