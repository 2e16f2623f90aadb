"""Advice: each rule speaks where its number says so, keeps still where it does not, and never from refused data."""

import numpy as np
import pytest
import xarray as xr
from gradient_trees import TIGHT, gradients
from report_trees import N, gaps_group, report_groups, terms_group
from trees import THREE, all_groups, comparison_tree, estimate, evidence_tree

from pyrovae.results import build_tree, group
from pyrovae.results.advice import advice

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
    one = group("diagnostics", {"khat": np.r_[0.9, np.full(N - 1, 0.2)]}, {"khat_threshold": 0.7})
    assert said(diagnostics=one) == NOTHING[0]  # 1 of 12 is not above 0 by 3 standard errors


def test_a_gap_of_unknown_cause_is_to_be_looked_into() -> None:
    elbo, iwae = estimate("elbo", [-4.0, -4.0]), estimate("iwae", [-3.0, -3.0])
    assert advice(evidence_tree(elbo, iwae))[0].startswith("Find out where the ELBO loses 1.000 ± 0.010 nats")
    doubtful = estimate("iwae", [-3.0, -3.0], is_reliable=np.array([True, False]))
    assert advice(evidence_tree(elbo, doubtful)) == NO_BASIS


def test_idle_units_are_told_beyond_the_error_of_their_variance() -> None:
    assert said(decomposition=terms_group(1e-4)).startswith("1 of 3 latent units are unused")
    assert "or a latent space of 2" in said(decomposition=terms_group(1e-4))
    assert said(decomposition=terms_group(0.008)) == NOTHING[0]
    idle = terms_group(1e-4)
    idle["mean_variance"][:] = 1e-4
    assert said(decomposition=idle).startswith("The guide ignores the data")


def test_a_prior_is_changed_only_where_the_data_can_tell() -> None:
    assert said(decomposition=terms_group(marginal_kl=0.5)).startswith("Use a mixture, flow or Vamp prior")
    assert said(decomposition=terms_group(marginal_kl=0.05)) == NOTHING[0]
    apart = terms_group(marginal_kl=5.0, information=np.log(64.0) - 0.2)  # codes apart: q(z) is a comb
    assert said(decomposition=apart) == NOTHING[0]


def test_a_noisy_gradient_gets_a_better_estimator() -> None:
    snr = dict(TIGHT) | {"stl": ((9.0, 0.5), (1.0, 0.5))}
    text = said(gradients=gradients(snr))
    assert text.startswith("Take STL with")
    assert "is only" in text
    strong = {"elbo": ((3.0, 0.5), (3.0, 0.5)), "stl": ((9.0, 0.5), (9.0, 0.5))}
    assert said(gradients=gradients(strong)) == NOTHING[0]


def test_calibration_counts_where_real_data_show_no_fault() -> None:
    p_values = {"pit_spread_p_value": np.array([1e-6, 0.5]), "pit_mean_p_value": np.array([0.5, 0.01])}
    made = group("calibration", p_values, latent=["a[0]", "a[1]"])
    made["pit_spread_p_value"].attrs = {}
    fine = comparison_tree(["ok"] * 3, [[1.0, 1.0]] * 3)
    still = fine["comparison"].to_dataset()
    still["mean_error_std_error"] = still["mean_error_std_error"] * 5
    diagnostics = fine["diagnostics"].to_dataset()
    tree = xr.DataTree.from_dict({"comparison": still, "diagnostics": diagnostics, "calibration": made})
    from pyrovae.results.advice import _on_calibration

    assert "wrong in 1 of 2 latents" in next(_on_calibration(tree))
    assert "although no error was found on 3 data at hand" in next(_on_calibration(tree))
    faulty = comparison_tree(["ok"] * 3, THREE)
    groups = {name: node.to_dataset() for name, node in faulty.children.items()}
    assert not list(_on_calibration(xr.DataTree.from_dict({**groups, "calibration": made})))


def test_nothing_measured_is_not_called_good() -> None:
    assert advice(build_tree({"history": all_groups()["history"]})) == NO_BASIS
