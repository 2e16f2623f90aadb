"""Many estimators in one table: what they share, what is measured against what, and what is refused."""

import numpy as np
import pytest
import torch
import zoo

import pyrovae as pv
from pyrovae.diagnostics import evidence_table as table_module
from pyrovae.diagnostics.evidence import METHODS, log_evidence
from pyrovae.diagnostics.evidence_table import evidence_table
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.target import Target

FAST = {"num_chains": 8, "num_samples": 400, "warmup_steps": 100, "min_ess": 100.0, "max_rhat": 1.05}


def make(specimen: zoo.Specimen) -> Target:
    return Target(specimen.model, specimen.guide, *specimen.data)


def test_every_estimator_fits_one_table_with_its_bias_against_the_exact_answer():
    specimen = zoo.linear_gaussian(guide_scale=0.8)
    target = make(specimen)
    methods = [name for name in METHODS if name != "quadrature"]
    tree = evidence_table(
        target, methods, num_samples=200, num_temperatures=5, reference=sample_posterior(target, "exact")
    )
    found = tree["evidence"].to_dataset()
    assert found["method"].values.tolist() == methods
    truth = specimen.log_evidence.numpy()
    assert np.abs(tree["sandwich"]["truth"] - truth).max() < 1e-9
    for method in methods:
        row = found.sel({"method": method})
        assert np.allclose(row["bias"], row["value"] - truth, atol=1e-9, equal_nan=True) or method == "exact"
    assert np.isnan(found.sel({"method": "exact"})["bias"]).all()
    summary = pv.evidence_summary(tree)
    assert list(summary.index) == methods
    assert summary.loc["elbo", "bias"] == pytest.approx(float(found.sel({"method": "elbo"})["bias"].mean()))


def test_rows_are_those_of_log_evidence_and_budgets_share_their_draws():
    target = make(zoo.linear_gaussian(guide_scale=0.8))
    tree = evidence_table(target, ["elbo", "iwae"], num_samples=[50, 400], seed=3)
    rows = tree["evidence"].to_dataset()
    assert rows["method"].values.tolist() == ["elbo-50", "elbo-400", "iwae-50", "iwae-400"]
    alone = log_evidence(target, "iwae", num_samples=400, seed=3)
    assert np.allclose(rows.sel({"method": "iwae-400"})["value"], alone.value, atol=1e-12)
    assert "sandwich" not in tree.children
    assert "bias" not in rows


def test_bidirectional_is_both_ends_under_one_plan():
    specimen = zoo.tanh_decoder()
    target = make(specimen).rows([1, 2, 3])
    reference = sample_posterior(target, **FAST)
    methods = ["elbo", "bidirectional"]
    tree = evidence_table(target, methods, num_temperatures=[5, 60], reference=reference, tolerance=0.2)
    assert tree["evidence"]["method"].values.tolist() == [
        "elbo",
        "ais-5",
        "ais-60",
        "ais-reverse-5",
        "ais-reverse-60",
    ]
    sandwich = tree["sandwich"].to_dataset()
    assert (sandwich.attrs["lower_method"], sandwich.attrs["upper_method"]) == ("ais-60", "ais-reverse-60")
    assert (sandwich["verdict"] == "closed").all()
    truth = specimen.log_evidence[[1, 2, 3]].numpy()
    assert (np.abs(sandwich["truth"] - truth) < 5 * sandwich["truth_std_error"]).all()
    assert "diagnostics" in tree.children
    # The two ends asked for by name are the same thing.
    named = evidence_table(target, ["ais", "ais-reverse"], num_temperatures=60, reference=reference)
    lower = tree["evidence"].to_dataset().sel({"method": "ais-60"})["value"]
    assert np.array_equal(named["evidence"].to_dataset().sel({"method": "ais"})["value"], lower)


def test_a_wide_gap_did_not_close_and_gives_no_truth():
    target = make(zoo.linear_gaussian(guide_scale=0.2, shift=1.0))
    options = {"bidirectional": {"start": "guide"}}
    reference = sample_posterior(target, "exact")
    tree = evidence_table(
        target,
        ["elbo", "bidirectional"],
        num_temperatures=2,
        tolerance=0.01,
        reference=reference,
        options=options,
    )
    assert (tree["sandwich"]["verdict"] == "did not close").all()
    assert np.isnan(tree["sandwich"]["truth"]).all()
    assert np.isnan(tree["evidence"].to_dataset()["bias"]).all()


def test_options_go_to_their_method_alone():
    target = make(zoo.linear_gaussian(guide_scale=0.4))
    tree = evidence_table(target, ["iwae", "cubo"], num_samples=500, options={"cubo": {"defensive": 0.3}})
    rows = tree["evidence"].to_dataset()
    defended = log_evidence(target, "cubo", num_samples=500, defensive=0.3)
    assert np.allclose(rows.sel({"method": "cubo"})["value"], defended.value)
    assert np.allclose(
        rows.sel({"method": "iwae"})["value"], log_evidence(target, "iwae", num_samples=500).value
    )


def test_a_reference_is_made_only_where_it_is_needed(monkeypatch):
    calls = []

    def fake(target, **options):
        calls.append(options)
        return sample_posterior(target, "exact", num_samples=50)

    monkeypatch.setattr(table_module, "sample_posterior", fake)
    target = make(zoo.linear_gaussian())
    evidence_table(target, ["elbo", "ais"], num_temperatures=2)
    assert not calls
    tree = evidence_table(target, ["elbo", "eubo"])
    assert len(calls) == 1
    assert tree["diagnostics"]["verdict"].values.tolist() == ["ok"] * 5


def test_the_tree_survives_a_file_and_does_not_depend_on_the_clock(tmp_path):
    target = make(zoo.linear_gaussian(guide_scale=0.8))
    first, second = (evidence_table(target, ["elbo", "exact"], num_samples=50) for _ in range(2))
    assert pv.results.content_hash(first) == pv.results.content_hash(second)
    pv.write(first, tmp_path / "evidence.nc")
    assert pv.results.content_hash(pv.read(tmp_path / "evidence.nc")) == pv.results.content_hash(first)


def test_progress_names_what_runs():
    told = []
    target = make(zoo.linear_gaussian())
    evidence_table(target, ["elbo", "laplace"], num_samples=10, progress=lambda *step: told.append(step))
    assert told == [("draws of the guide", 0, 2), ("laplace", 1, 2), ("", 2, 2)]


def test_what_is_refused():
    target = make(zoo.linear_gaussian())
    with pytest.raises(ValueError, match="unknown method 'foo'.*bidirectional"):
        evidence_table(target, ["elbo", "foo"])
    with pytest.raises(ValueError, match="at least one estimator"):
        evidence_table(target, [])
    with pytest.raises(ValueError, match="options are given for 'ais', which is not among elbo"):
        evidence_table(target, ["elbo"], options={"ais": {"start": "prior"}})
    with pytest.raises(ValueError, match="'elbo' has no option 'start'"):
        evidence_table(target, ["elbo"], options={"elbo": {"start": "prior"}})
    with pytest.raises(ValueError, match="quadrature"):
        evidence_table(target, ["quadrature"])
    with pytest.raises(ValueError, match="tolerance"):
        evidence_table(target, ["exact"], tolerance=0.0)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        evidence_table(target, ["elbo"], num_samples=[1, 10])


def test_exact_draws_may_be_the_reference():
    specimen = zoo.gamma_poisson()
    target = make(specimen)
    z = target.sample_guide(100).z
    tree = evidence_table(target, ["reciprocal", "quadrature"], reference=z)
    assert np.abs(tree["evidence"].to_dataset().sel({"method": "reciprocal"})["bias"]).max() < 1e-4
    assert torch.is_tensor(z)
