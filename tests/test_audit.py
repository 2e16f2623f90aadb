"""The whole examination on models with exact answers."""

import numpy as np
import pytest
import torch
import zoo

import pyrovae as pv
from pyrovae.results import check, content_hash

FAST = {"num_chains": 8, "num_samples": 250, "warmup_steps": 100, "min_ess": 200.0}


def run(specimen: zoo.Specimen, **options):
    return pv.audit(specimen.model, specimen.guide, *specimen.data, **{"reference": FAST, **options})


def test_the_audit_of_a_perfect_guide():
    specimen = zoo.linear_gaussian()
    tree = run(specimen)
    check(tree)
    for method in ("elbo", "iwae", "psis"):
        value = tree["evidence"]["value"].sel({"method": method})
        assert np.abs(value - specimen.log_evidence.numpy()).max() < 1e-9
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    assert (tree["diagnostics"]["khat"] < tree["diagnostics"].attrs["khat_threshold"]).all()
    assert np.abs(tree["comparison"]["sd_ratio"] - 1).max() < 0.1


def test_the_audit_of_a_narrow_guide_finds_how_narrow():
    tree = run(zoo.linear_gaussian(guide_scale=0.5))
    assert np.abs(tree["comparison"]["sd_ratio"].mean() - 0.5) < 0.02
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    assert (tree["diagnostics"]["khat"] > 0.5).all()


def test_everything_a_report_needs_is_there():
    tree = run(zoo.nested(mask=True), history={"elbo": np.array([-3.0, -2.0])}, num_samples=200)
    assert set(tree.children) == {
        *("evidence", "log_weights", "guide", "posterior", "sample_stats", "diagnostics", "comparison"),
        *("prior", "observed_data", "reconstruction", "prior_predictive", "history"),
    }
    assert set(tree["observed_data"].data_vars) == {"x", "argument_1"}
    assert tree["reconstruction"]["x"].shape == (16, 5, 3)
    assert tree["prior_predictive"]["x"].shape == (16, 3)
    assert tree.attrs["seed"] == 0


def test_methods_of_one_point_stand_beside_the_others():
    specimen = zoo.linear_gaussian(guide_scale=0.7)
    tree = run(specimen, methods=("elbo", "cumulant", "laplace"), num_samples=100)
    value = tree["evidence"]["value"].sel({"method": "laplace"}).values
    assert np.abs(value - specimen.log_evidence.numpy()).max() < 1e-9


def test_a_tree_survives_the_disk(tmp_path):
    tree = run(zoo.gamma_poisson(), num_samples=100)
    pv.write(tree, tmp_path / "result.nc")
    assert pv.read(tmp_path / "result.nc").identical(tree)


def test_the_same_seed_gives_the_same_content():
    specimen = zoo.linear_gaussian(guide_scale=0.7)
    first, again, other = (content_hash(run(specimen, seed=s, num_samples=100)) for s in (0, 0, 1))
    assert first == again != other


def test_a_guide_that_cannot_score_is_audited():
    tree = run(zoo.other_family("planar"), num_samples=200)
    assert np.isfinite(tree["evidence"]["value"]).all()


def test_progress_goes_through_the_stages():
    seen = []
    run(
        zoo.linear_gaussian(),
        num_samples=100,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "draws of the guide",
        "reference posteriors",
        "comparison",
    ]
    assert all(done <= total for _, done, total in seen)


def test_what_is_refused_before_any_work():
    specimen = zoo.linear_gaussian()
    with pytest.raises(ValueError, match="unknown method 'best'"):
        run(specimen, methods=("best",))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pv.audit(specimen.model, specimen.guide, torch.full((3, 6), torch.nan))
