"""The weighted KL term: exact objective, warm-up, warning, and no trace of it afterwards."""

import pyro
import pytest
import torch
import zoo
from pyro.infer import Trace_ELBO

import pyrovae as pv
from pyrovae.target import Target
from pyrovae.training.kl_weight import LatentScale, weight_at


def test_the_weight_multiplies_the_kl_alone():
    specimen = zoo.linear_gaussian(guide_scale=1.2)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        with LatentScale(0.3):
            loss = Trace_ELBO().loss(specimen.model, specimen.guide, *specimen.data)
        torch.manual_seed(0)
        z, log_q = target.sample_guide(1)
    log_prior, log_likelihood = target.log_terms(z)
    assert loss == pytest.approx(-float((log_likelihood - 0.3 * (log_q - log_prior)).sum()))


def test_the_warm_up_rises_in_equal_steps_to_the_weight_and_stays():
    assert [weight_at(e, 2.0, 4) for e in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert weight_at(0, 1.0, 0) == 1.0


def fit(**options):
    digits = pv.data.digits(seed=0)
    vae = pv.build_vae(64, 2, hidden=(8,), scale=0.3, seed=0)
    with torch.no_grad():
        vae.encoder.net[-1].bias[:2] = 2.0  # means of 2: a KL of 4 nats from the start
    options = {"max_epochs": 5, "batch_size": 50, **options}
    return vae, pv.fit(vae.model, vae.guide, digits.train[:200], val_data=digits.val[:50], **options)


def test_history_says_what_was_optimized():
    _, plain = fit()
    _, weighted = fit(kl_weight=0.5, n_epochs_kl_warmup=4)
    assert set(plain.history) == {"elbo", "val_elbo", "seconds"}
    assert set(weighted.history) == {"weighted_elbo", "kl_weight", "val_elbo", "seconds"}
    assert weighted.history["kl_weight"].tolist() == [0.125, 0.25, 0.375, 0.5, 0.5]


def test_the_validation_elbo_is_not_weighted():
    """With a learning rate of almost nothing the parameters stay: then the weight must not show."""
    _, plain = fit(lr=1e-7)
    _, weighted = fit(lr=1e-7, kl_weight=0.01)
    assert weighted.history["val_elbo"] == pytest.approx(plain.history["val_elbo"], abs=0.05)
    assert abs(weighted.history["weighted_elbo"][0] - plain.history["elbo"][0]) > 0.3


def test_a_large_weight_pulls_the_guide_to_the_prior():
    x = pv.data.digits(seed=0).test[:50]
    kl = []
    for weight in (100.0, 0.01):
        vae, _ = fit(kl_weight=weight, max_epochs=60, lr=3e-3)
        target = Target(vae.model, vae.guide, x)
        z, log_q = target.sample_guide(50)
        kl.append(float((log_q - target.log_terms(z).log_prior).mean()))
    assert kl[0] < 0.5
    assert kl[1] > 2


def test_a_target_does_not_see_the_weight():
    specimen = zoo.linear_gaussian()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    z, _ = target.sample_guide(2)
    with LatentScale(0.1):
        inside = target.log_joint(z)
    assert torch.equal(inside, target.log_joint(z))


def test_a_warm_up_longer_than_training_warns():
    with pytest.warns(
        UserWarning, match=r"n_epochs_kl_warmup=9 is longer than max_epochs=5.*another objective"
    ):
        fit(n_epochs_kl_warmup=9)


@pytest.mark.parametrize("options", [{"kl_weight": 0.0}, {"kl_weight": -1.0}, {"n_epochs_kl_warmup": -1}])
def test_what_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fit(**options)
