"""Advice: each rule speaks where its number says so, keeps still where it does not, and never from refused data."""

import numpy as np
import pytest
import xarray as xr
from gradient_trees import TIGHT, gradients
from report_trees import N, gaps_group, report_groups, terms_group
from trees import (
    THREE,
    all_groups,
    calibration_tree,
    comparison_tree,
    estimate,
    evidence_tree,
    sandwich_tree,
    widely_compared_tree,
)

from pyrovae.results import build_tree, group
from pyrovae.results.advice import advice
from pyrovae.results.verdicts import verdict_sentences

NOTHING = ["No change is indicated by these numbers."]
NO_BASIS = ["No advice: nothing was measured that it could rest on."]


def said(**groups: xr.Dataset) -> str:
    return " ".join(advice(build_tree(groups)))


@pytest.mark.parametrize(
    ("parts", "start"),
    [
        ((2.0, 0.5), "Use a full-covariance or flow encoder (the best full covariance gains 1."),
        (
            (0.5, 2.0),
            "Use a larger encoder, longer training, or refining q for each datum: amortization loses more",
        ),
        ((1.0, 1.0), "Family and amortization cannot be told apart as causes"),
        ((0.0, 0.0), NOTHING[0]),
        ((0.09, 0.12), "Family and amortization cannot be told apart as causes"),  # 0.21 nats in all
    ],
)
def test_the_larger_gap_names_the_cure(parts: tuple[float, float], start: str) -> None:
    assert said(gaps=gaps_group(*parts)).startswith(start)


def test_a_full_guide_is_not_told_to_become_full() -> None:
    gaps = gaps_group()
    gaps.attrs["family"] = "full"
    assert said(gaps=gaps).startswith("Use a flow or mixture encoder:")


def test_nothing_is_advised_from_refused_data() -> None:
    """Planted: the same numbers with verdicts do give advice."""
    groups = report_groups()
    kept = {name: groups[name] for name in ("posterior", "guide", "comparison")}
    refused = group("diagnostics", {"verdict": np.full(N, "no verdict"), "khat": np.full(N, np.nan)})
    assert advice(build_tree({**kept, "diagnostics": refused})) == NO_BASIS
    accepted = group("diagnostics", {"verdict": np.full(N, "ok")})
    assert "Use a full-covariance" in said(**kept, diagnostics=accepted)
    assert said(gaps=gaps_group(verdict=np.full(N, "not optimized"))) == NO_BASIS[0]


def test_correlations_count_where_the_guide_is_narrow_and_lacks_them() -> None:
    groups = report_groups()
    kept = ("posterior", "guide", "comparison", "diagnostics")
    text = said(**{name: groups[name] for name in kept})
    worth = -0.5 * np.log(1 - 0.9**2)
    assert "lacks correlations of the posterior that are worth" in text
    assert float(text.split("are worth ")[1].split(" ±")[0]) == pytest.approx(worth, abs=0.05)
    plain = report_groups(correlation=0.0)
    assert "correlations" not in said(**{name: plain[name] for name in kept})
    wide = report_groups(width=1.2)
    assert "correlations" not in said(**{name: wide[name] for name in kept})
    as_good = groups | {"guide": groups["posterior"].isel(chain=[0])}
    assert "correlations" not in said(**{name: as_good[name] for name in kept})


def test_heavy_weights_are_not_to_be_trusted() -> None:
    heavy = {"khat": np.full(N, 0.9), "verdict": np.full(N, "ok")}
    text = said(diagnostics=group("diagnostics", heavy, {"khat_threshold": 0.7}))
    assert text.startswith(
        f"Do not trust IWAE and PSIS for {N} of {N} data, where k-hat is above 0.7: measure log p(x)"
    )
    shut = sandwich_tree(
        *(estimate("ais", [-3.0] * N), estimate("ais-reverse", [-1.0] * N, direction="upper"))
    )
    open_ones = shut["sandwich"].to_dataset()
    heavy_ones = group("diagnostics", heavy, {"khat_threshold": 0.7})
    groups = {"evidence": shut["evidence"].to_dataset(), "diagnostics": heavy_ones}
    assert "did not tell log p(x) of any of these data either" in said(**groups, sandwich=open_ones)
    for count, told in (
        (N, "which tells it."),
        (3, f"which tells it but for {N - 3} of {N} data (give these more"),
    ):
        known = open_ones.copy(deep=True)
        known["truth"][:count], known["source"][:count] = -2.0, "ais and ais-reverse"
        assert f"read log p(x) by the sandwich, {told}" in said(**groups, sandwich=known)
    one = group("diagnostics", {"khat": np.r_[0.9, np.full(N - 1, 0.2)]}, {"khat_threshold": 0.7})
    assert said(diagnostics=one) == NOTHING[0]  # 1 of 12 is not above 0 by 3 standard errors


def test_a_gap_of_unknown_cause_is_to_be_looked_into() -> None:
    elbo, iwae = estimate("elbo", [-4.0, -4.0]), estimate("iwae", [-3.0, -3.0])
    assert advice(evidence_tree(elbo, iwae))[0].startswith("Find out where the ELBO loses 1.000 ± 0.010 nats")
    doubtful = estimate("iwae", [-3.0, -3.0], is_reliable=np.array([True, False]))
    assert advice(evidence_tree(elbo, doubtful)) == NO_BASIS


def other_family(below: float, gap: float) -> xr.Dataset:
    """Gaps of a flow that lies so far below the best full Gaussian, and so far below log p(x)."""
    made = gaps_group(0.0, gap)
    made["elbo_full"] = made["elbo"] + below
    made["approximation_gap"][:] = made["amortization_gap"][:] = np.nan
    return made.assign_attrs(family="other", family_reason="the guide is a flow")


def test_a_guide_of_another_family_is_advised_by_the_best_full_gaussian() -> None:
    said_of = {below: said(gaps=other_family(below, 0.45)) for below in (0.3, 0.02, -1.0)}
    assert said_of[0.3].startswith(
        "Use a full-covariance encoder, a larger encoder, longer training, or refining q"
    )
    assert "a full Gaussian fitted to each datum alone gains 0.3000 ± 0.0041 nats per datum" in said_of[0.3]
    for below in (0.02, -1.0):
        assert said_of[below].startswith("Use a richer encoder, a larger encoder")
        assert "the ELBO loses 0.4" in said_of[below]
    assert said(gaps=other_family(0.3, 0.02)) == NOTHING[0]


def test_parts_without_verdict_are_not_to_be_measured_again_in_the_same_way() -> None:
    trees = evidence_tree(estimate("elbo", [-4.0] * N), estimate("iwae", [-3.0] * N))
    groups = {name: node.to_dataset() for name, node in trees.children.items()}
    refused = gaps_group(verdict=np.full(N, "no verdict"), reason=np.full(N, "log p(x) is not known"))
    text = said(**groups, gaps=refused)
    assert text.startswith(
        "Find out where the ELBO loses 1.0000 ± 0.0041 nats per datum before the guide is changed"
    )
    assert "by more temperatures or a longer reference" in text
    assert "pyrovae gaps" not in text


def test_an_error_of_unknown_cost_is_to_be_measured() -> None:
    """A comparison alone: the guide is wrong, and nothing says by how many nats."""
    faulty = {name: node.to_dataset() for name, node in comparison_tree(["ok"] * 3, THREE).children.items()}
    assert said(**faulty).startswith("Find out what it costs that the guide is ")
    assert "`pyrovae gaps`" in said(**faulty)


def test_a_full_covariance_that_gains_nothing_is_not_advised() -> None:
    gaps = gaps_group(2.0, 0.5)
    gaps["elbo_full"] = gaps["elbo_diagonal"] + 0.02
    assert said(gaps=gaps).startswith("Use a flow or mixture encoder: the family")


def test_unused_units_are_those_that_the_sentence_calls_inactive() -> None:
    """Whatever the scale of z: the rule is that of `decompose`."""
    terms = terms_group(1e-4)
    assert said(decomposition=terms).startswith("1 of 3 latent units is unused")
    assert "or use a latent space of 2" in said(decomposition=terms)
    terms["is_active"][:] = True
    assert said(decomposition=terms) == NOTHING[0]
    terms["is_active"][:] = False
    assert said(decomposition=terms).startswith("The guide ignores the data")
    assert "0 of 3 latent units are active." in verdict_sentences(build_tree({"decomposition": terms}))
    few = terms_group(1e-4).isel(datum=slice(7))
    assert said(decomposition=few) == NOTHING[0]


def test_a_prior_is_changed_only_where_the_data_can_tell() -> None:
    assert said(decomposition=terms_group(marginal_kl=0.5)).startswith("Use a mixture, flow or Vamp prior")
    assert said(decomposition=terms_group(marginal_kl=0.05)) == NOTHING[0]
    apart = terms_group(marginal_kl=5.0, information=np.log(64.0) - 0.2)  # codes apart: q(z) is a comb
    assert said(decomposition=apart) == NOTHING[0]


@pytest.mark.parametrize(
    ("kl", "information", "told"),
    [
        (0.5, 1.0, "The prior costs the ELBO 0.5000 ± 0.0050 nats per datum:"),
        (
            0.01,
            1.0,
            "No cost of the prior was found: the aggregate q(z) of these data is 0.0100 ± 0.0050 nats",
        ),
        (
            5.0,
            float(np.log(64)) - 0.2,
            f"No verdict on what the prior costs: the codes of {N} data are too few",
        ),
    ],
)
def test_the_cost_of_the_prior_is_told_or_refused(kl: float, information: float, told: str) -> None:
    terms = terms_group(marginal_kl=kl, information=information)
    assert [said for said in verdict_sentences(build_tree({"decomposition": terms})) if said.startswith(told)]


def test_a_noisy_gradient_gets_a_better_estimator() -> None:
    snr = dict(TIGHT) | {"stl": ((9.0, 0.5), (1.0, 0.5))}
    text = said(gradients=gradients(snr))
    assert text.startswith("Take STL with")
    assert "is only" in text
    strong = {"elbo": ((3.0, 0.5), (3.0, 0.5)), "stl": ((9.0, 0.5), (9.0, 0.5))}
    assert said(gradients=gradients(strong)) == NOTHING[0]


def test_calibration_counts_where_real_data_show_no_fault() -> None:
    pit = np.stack([np.linspace(0, 1, 500) ** 2, np.linspace(0, 1, 500)], 1)
    made = calibration_tree(pit)["calibration"].to_dataset().assign_coords(latent=["a[0]", "a[1]"])
    still = {"sd_ratio": 1.0, "mean_error": 0.0, "narrowest_sd_ratio": 1.0}
    still |= {"correlation_error": 0.05, "classifier_auc": 0.5}

    def advised(verdict: list[str], **changes: float) -> str:
        groups = {name: node.to_dataset() for name, node in widely_compared_tree(verdict).children.items()}
        for name, value in {**still, **changes}.items():
            groups["comparison"][name][...] = value
        return said(**groups, calibration=made)

    fine = advised(["ok"] * 3)
    assert "wrong in 1 of 2 latents, although no error was found on 3 data at hand" in fine
    for fault in ({"correlation_error": 0.9}, {"classifier_auc": 0.9}, {"sd_ratio": 0.8}):
        assert "no error was found" not in advised(["ok"] * 3, **fault)
    refused = advised(["ok", "no verdict", "no verdict"])
    assert refused.startswith("Draw a longer reference")
    assert "2 data have no verdict, and on data that the model draws, its ranks are wrong in 1" in refused
    assert said(calibration=made).startswith("Compare the guide with a reference posterior on real data")


def test_nothing_measured_is_not_called_good() -> None:
    assert advice(build_tree({"history": all_groups()["history"]})) == NO_BASIS
