"""The whole examination on models with exact answers, and stages that fail or find no time."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo

import pyrovae as pv
from pyrovae.diagnostics.audit import STAGES, Settings, stages
from pyrovae.diagnostics.audit.stages import Work
from pyrovae.results import check, content_hash
from pyrovae.results.verdicts import verdict_sentences
from pyrovae.target import Target

FAST = {"num_chains": 8, "num_samples": 100, "warmup_steps": 50, "min_ess": 100.0}
EXACT = {"method": "exact", "num_samples": 250}
QUICK = {"reference": EXACT, "calibration": {"num_simulations": 200}, "sandwich": {"num_temperatures": 10}}
AGAINST = ("comparison",)


def run(specimen: zoo.Specimen, **options):
    return pv.audit(specimen.model, specimen.guide, *specimen.data, **{**QUICK, **options})


def told(tree) -> dict[str, dict[str, str]]:
    return json.loads(tree.attrs["stages"])


def test_the_audit_of_a_perfect_guide():
    specimen = zoo.linear_gaussian()
    tree = run(specimen)
    check(tree)
    assert {name: stage["status"] for name, stage in told(tree).items()} == dict.fromkeys(STAGES, "ok")
    for method in ("elbo", "iwae", "psis", "ais", "ais-reverse"):
        value = tree["evidence"]["value"].sel({"method": method})
        assert np.abs(value - specimen.log_evidence.numpy()).max() < 1e-9
    assert np.abs(tree["gaps"]["inference_gap"]).max() < 1e-9
    assert np.abs(tree["calibration"]["simulated_gap"]).max() < 1e-9
    assert (tree["sandwich"]["verdict"] == "closed").all()
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    assert (tree["diagnostics"]["khat"] < tree["diagnostics"].attrs["khat_threshold"]).all()
    assert np.abs(tree["comparison"]["sd_ratio"] - 1).max() < 0.1


def test_the_audit_of_a_narrow_guide_finds_how_narrow():
    tree = run(zoo.linear_gaussian(guide_scale=0.5), stages=AGAINST, reference=FAST)
    assert set(told(tree)) == {"weights", "reference", "comparison"}
    assert np.abs(tree["comparison"]["sd_ratio"].mean() - 0.5) < 0.05
    assert (tree["diagnostics"]["verdict"] == "ok").all()
    assert tree["diagnostics"]["khat"].mean() > 0.5  # 3/4 in the limit, for half the width


def test_everything_a_report_needs_is_there():
    tree = run(zoo.nested(mask=True), history={"elbo": np.array([-3.0, -2.0])}, num_samples=200)
    assert set(tree.children) == {
        *("evidence", "log_weights", "guide", "posterior", "sample_stats", "diagnostics", "comparison"),
        *("prior", "observed_data", "reconstruction", "prior_predictive", "history", "decomposition"),
        *("sandwich", "gaps", "calibration"),
    }
    assert set(tree["observed_data"].data_vars) == {"x", "argument_1"}
    assert tree["reconstruction"]["x"].shape == (16, 5, 3)
    assert tree["prior_predictive"]["x"].shape == (16, 3)
    assert {"mutual_information", "kl_posterior"} <= set(tree["decomposition"].data_vars)
    assert tree.attrs["seed"] == 0


def test_methods_of_one_point_stand_beside_the_others():
    specimen = zoo.linear_gaussian(guide_scale=0.7)
    methods = ("elbo", "cumulant", "laplace", "reciprocal")
    tree = run(specimen, methods=methods, num_samples=100, stages=AGAINST)
    assert tree["evidence"]["method"].values.tolist() == list(methods)
    value = tree["evidence"]["value"].sel({"method": "laplace"}).values
    assert np.abs(value - specimen.log_evidence.numpy()).max() < 1e-9


# Of a guide that is 0.4 times as wide as the posterior in three dimensions; IWAE falls short of log p(x).
NARROW = {"num_data": 12, "guide_scale": 0.4}
FORWARD, BACKWARD = (3 * (r - 1 - np.log(r)) / 2 for r in (0.16, 1 / 0.16))


def distance(group, name: str, exact: float) -> float:
    return abs(float(group[name].mean()) - exact) / float(group[f"{name}_std_error"].mean())


def test_what_hangs_on_log_p_is_by_an_estimate_with_a_side_until_the_truth_is_known():
    tree = run(zoo.linear_gaussian(**NARROW), stages=("terms", "comparison"), num_samples=400)
    terms, compared = tree["decomposition"], tree["comparison"]
    assert terms.attrs["log_evidence_by"] == "iwae"
    assert [terms[name].attrs["direction"] for name in ("elbo", "kl_posterior")] == ["exact", "lower"]
    assert terms["kl_posterior"].mean() < FORWARD - 0.1
    sides = {name: compared[name].attrs["direction"] for name in ("kl_guide_posterior", "kl_posterior_guide")}
    assert sides == {"kl_guide_posterior": "lower", "kl_posterior_guide": "upper"}
    assert compared["kl_posterior_guide"].mean() > BACKWARD + 0.1
    no_bar = np.isnan(terms["kl_posterior_std_error"]).values
    is_reliable = tree["evidence"]["is_reliable"].sel({"method": "iwae"}).values
    assert np.array_equal(no_bar, ~is_reliable)
    assert no_bar.any()
    said = " ".join(verdict_sentences(tree))
    assert "log p(x) by IWAE" in said
    assert "what the ELBO loses of log p(x) (log p(x) -" not in said


@pytest.mark.parametrize(
    "methods",
    [
        ("elbo", "iwae"),
        pytest.param(("elbo",), marks=pytest.mark.slow),
        pytest.param(("elbo", "iwae", "exact"), marks=pytest.mark.slow),
    ],
)
def test_what_hangs_on_log_p_follows_the_truth_of_a_later_stage(methods):
    wanted = ("terms", "comparison", "sandwich")
    tree = run(zoo.linear_gaussian(**NARROW), stages=wanted, num_samples=400, methods=methods)
    terms, compared = tree["decomposition"], tree["comparison"]
    assert np.array_equal(terms["log_evidence"], tree["sandwich"]["truth"])
    assert terms.attrs["log_evidence_by"] == "truth"
    side = "exact" if "exact" in methods else "none"
    for group, name in ((terms, "kl_posterior"), (compared, "kl_guide_posterior")):
        assert group[name].attrs["direction"] == side
        assert distance(group, name, FORWARD) < 5
    assert distance(compared, "kl_posterior_guide", BACKWARD) < 5
    assert np.allclose(compared["kl_guide_posterior"] + compared["kl_posterior_guide"], compared["jeffreys"])


def test_the_truth_of_the_gaps_serves_too_where_there_is_no_sandwich():
    specimen = zoo.linear_gaussian(num_data=4, guide_scale=0.4)
    tree = run(specimen, stages=("terms", "gaps"), num_samples=100, gaps={"num_fitting_samples": 16})
    assert np.array_equal(tree["decomposition"]["log_evidence"], tree["gaps"]["log_evidence"])
    assert tree["decomposition"]["kl_posterior"].attrs["direction"] == "exact"


def test_a_tree_survives_the_disk(tmp_path):
    tree = run(zoo.nested(), num_samples=100)
    pv.write(tree, tmp_path / "result.nc")
    assert pv.read(tmp_path / "result.nc").identical(tree)


def test_the_same_seed_gives_the_same_content():
    specimen = zoo.linear_gaussian(guide_scale=0.7)
    first, again, other = (
        content_hash(run(specimen, seed=s, num_samples=100, stages=AGAINST)) for s in (0, 0, 1)
    )
    assert first == again != other


def test_a_guide_that_cannot_score_is_audited_as_far_as_it_can_be():
    tree = run(zoo.other_family("planar"), num_samples=200)
    assert np.isfinite(tree["evidence"]["value"]).any()
    assert (tree["diagnostics"]["verdict"] == "ok").any()
    assert "simulated_gap" not in tree["calibration"].data_vars


def test_progress_goes_through_the_stages():
    seen = []
    tell = lambda stage, done, total: seen.append((stage, done, total))  # noqa: E731
    run(zoo.linear_gaussian(), num_samples=100, stages=("calibration", *AGAINST), block_size=3, progress=tell)
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "calibration",
        "weights",
        "reference",
        "comparison",
    ]
    assert all(done <= total for _, done, total in seen)
    last = {stage: (done, total) for stage, done, total in seen}
    assert all(done == total for done, total in last.values())


def test_what_is_refused_before_any_work():
    specimen = zoo.linear_gaussian()
    refused = {
        "unknown method 'best'": {"methods": ("best",)},
        "unknown stage 'all'": {"stages": ("all",)},
        "has no option 'num_chain'": {"reference": {"num_chain": 4}},
        "no option 'num_draw': its options are num_draws": {"calibration": {"num_draw": 4}},
        "block_size": {"block_size": 0},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            run(specimen, **options)
    with pytest.raises(TypeError, match="no setting 'stage': its settings are stages"):
        run(specimen, stage=("weights",))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pv.audit(specimen.model, specimen.guide, torch.full((3, 6), torch.nan))
    bad = torch.cat([specimen.data[0], torch.full((1, 6), torch.inf, dtype=zoo.F64)])
    with pytest.raises(ValueError, match="data 4 to 5, there counted from 0: .* first in row 1"):
        pv.audit(specimen.model, specimen.guide, bad, block_size=2)
    with pytest.raises(ValueError, match="needs data"):
        pv.audit(specimen.model, specimen.guide)


def break_stage(monkeypatch, name: str) -> None:
    def broken(work: Work):
        yield from ()
        raise RuntimeError("the machine\n is on fire")

    monkeypatch.setitem(stages.STAGE_FUNCTIONS, name, broken)


def test_a_stage_that_fails_is_no_verdict_and_the_rest_stands(monkeypatch):
    break_stage(monkeypatch, "reference")
    tree = run(zoo.linear_gaussian(guide_scale=0.7), num_samples=100)
    check(tree)
    found = told(tree)
    assert found["reference"] == {"status": "failed", "reason": "RuntimeError: the machine is on fire"}
    for name in ("comparison", "sandwich"):
        assert found[name] == {"status": "skipped", "reason": "it needs the stage reference, which failed"}
    assert {name for name in found if found[name]["status"] == "ok"} == {
        *("calibration", "predictions", "weights", "terms", "gaps"),
    }
    assert (tree["diagnostics"]["verdict"] == "no verdict").all()
    assert "on fire" in str(tree["diagnostics"]["reason"].values[0])
    assert np.isfinite(tree["evidence"]["value"]).all()
    assert "No reference posterior was drawn for any datum (reference failed" in " ".join(
        pv.verdict_sentences(tree)
    )


def test_what_a_stage_measured_before_it_failed_is_kept():
    failing = run(zoo.gamma_poisson(), methods=("elbo", "exact"), stages=("weights",), num_samples=50)
    assert told(failing)["weights"]["status"] == "failed"
    assert "quadratic" in told(failing)["weights"]["reason"]
    assert failing["evidence"]["method"].values.tolist() == ["elbo"]


def test_a_model_that_cannot_simulate_gives_no_verdict_on_calibration():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x + 1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    tree = pv.audit(model, guide, torch.randn(4), stages=("calibration", "weights"), num_samples=50)
    assert told(tree)["calibration"]["status"] == "failed"
    assert "simulate" in told(tree)["calibration"]["reason"]
    assert told(tree)["weights"]["status"] == "ok"


def test_without_time_every_stage_is_skipped():
    tree = run(zoo.linear_gaussian(), max_seconds=0.0)
    check(tree)
    assert {stage["status"] for stage in told(tree).values()} == {"skipped"}
    assert "max_seconds = 0 were spent" in told(tree)["weights"]["reason"]
    assert set(tree.children) == {"observed_data", "diagnostics"}
    assert (tree["diagnostics"]["verdict"] == "no verdict").all()


def test_enough_time_changes_nothing():
    specimen, options = (
        zoo.linear_gaussian(guide_scale=0.7),
        {"stages": AGAINST, "num_samples": 50, "block_size": 2},
    )
    assert content_hash(run(specimen, max_seconds=1e6, **options)) == content_hash(run(specimen, **options))


def test_a_stage_can_be_called_alone():
    specimen = zoo.linear_gaussian(guide_scale=0.5)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    (found,) = stages.gaps(Work(target, Settings(gaps={"num_fitting_samples": 64})))
    kl = 1.5 * (np.log(4) - 0.75)  # of Gaussians in three dimensions, one with a quarter of the variances
    assert np.abs(found["gaps"]["amortization_gap"] - kl).max() < 0.1
    (drawn,) = stages.reference(Work(target, Settings(reference={"method": "exact"})))
    assert (drawn["diagnostics"]["verdict"] == "ok").all()
