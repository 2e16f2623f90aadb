"""The same numbers on a CUDA device as on the CPU: the device follows the data."""

import numpy as np
import pytest
import torch

import pyrovae as pv

pytestmark = pytest.mark.gpu

FAST = {"num_chains": 8, "num_samples": 250, "warmup_steps": 100, "min_ess": 200.0}


@pytest.fixture(scope="module")
def pair():
    """One trained VAE and ten digits, on the CPU and on the GPU."""
    digits = pv.data.digits(seed=0)
    vae = pv.build_vae(64, 3, hidden=(32,), scale=0.3, seed=0)
    pv.fit(vae.model, vae.guide, digits.train, max_epochs=5)
    other = pv.build_vae(**vae.config).cuda()
    other.load_state_dict(vae.state_dict())
    x = digits.test[:10]
    return pv.Target(vae.model, vae.guide, x), pv.Target(other.model, other.guide, x.cuda())


def test_densities_and_curvature_agree(pair):
    cpu, gpu = pair
    z = torch.randn(4, 10, 3)
    assert gpu.device.type == "cuda"
    assert torch.allclose(gpu.log_joint(z.cuda()).cpu(), cpu.log_joint(z), rtol=1e-4, atol=1e-2)
    assert torch.allclose(gpu.log_guide(z.cuda()).cpu(), cpu.log_guide(z), rtol=1e-4, atol=1e-2)
    assert torch.allclose(gpu.curvature(z.cuda()).cpu(), cpu.curvature(z), rtol=1e-3, atol=1e-2)


def test_draws_stay_on_the_device(pair):
    _, gpu = pair
    assert gpu.sample_guide(3).z.is_cuda
    assert gpu.sample_prior(3).is_cuda
    assert gpu.simulate(5).data[0].is_cuda


def test_estimates_agree_within_their_errors(pair):
    a, b = (pv.log_evidence(target, "elbo", num_samples=2000) for target in pair)
    assert (np.abs(a.value - b.value) < 6 * np.hypot(a.std_error, b.std_error)).all()


def test_reference_posteriors_agree_within_their_errors(pair):
    a, b = (pv.sample_posterior(target, **FAST) for target in pair)
    assert (b["diagnostics"]["verdict"] == "ok").mean() > 0.5
    found = pv.compare(pair[0], a)["comparison"]["sd_ratio"].values
    other = pv.compare(pair[1], b)["comparison"]["sd_ratio"].values
    assert np.allclose(found, other, rtol=0.3)


def test_training_and_audit_on_the_device():
    digits = pv.data.digits(seed=0)
    vae = pv.build_vae(64, 3, hidden=(32,), scale=0.3, seed=0).cuda()
    result = pv.fit(vae.model, vae.guide, digits.train.cuda(), val_data=digits.val.cuda(), max_epochs=3)
    assert result.history["val_elbo"][-1] > result.history["val_elbo"][0]
    tree = pv.audit(vae.model, vae.guide, digits.test[:5].cuda(), reference=FAST)
    assert tree.attrs["device"].startswith("cuda")
    assert np.isfinite(tree["evidence"]["value"].values).all()


METHODS = {
    "iwae": {},
    "cubo": {"defensive": 0.1},
    "psis": {},
    "jackknife-2": {},
    "single-shot-laplace": {},
    "laplace": {},
    "eubo": {},
    "reciprocal": {},
    "ais": {"num_temperatures": 30},
    "ais-reverse": {"num_temperatures": 30, "start": "prior"},
}


@pytest.mark.parametrize("method", METHODS)
def test_estimators_of_log_p_agree_within_their_errors(pair, method):
    found = []
    for target in pair:
        options = dict(METHODS[method])
        if method in ("eubo", "reciprocal", "ais-reverse"):
            options["reference"] = pv.sample_posterior(target, **FAST)
        found.append(pv.log_evidence(target, method, **options))
    a, b = found
    both = a.is_reliable & b.is_reliable
    assert (np.abs(a.value - b.value)[both] < 6 * np.hypot(a.std_error, b.std_error)[both] + 0.05).all()


def test_a_table_on_the_device(pair):
    tree = pv.evidence_table(pair[1], ["elbo", "bidirectional"], num_temperatures=40)
    assert tree.attrs["device"].startswith("cuda")
    assert (tree["sandwich"]["verdict"] == "closed").mean() > 0.5


def test_the_simulated_gap_agrees(pair):
    a, b = (
        pv.summary(pv.simulated_gap(t.model, t.guide, *t.data, num_simulations=2000)).loc[
            "calibration: simulated_gap"
        ]
        for t in pair
    )
    assert abs(a["value"] - b["value"]) < 6 * np.hypot(a["std_error"], b["std_error"])
