"""The audit of models that are not ours, against log p(x) by a grid; and a VAE that was trained elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn
from user_models import MODELS

import pyrovae as pv

REFERENCE = {"num_chains": 8, "num_samples": 300, "warmup_steps": 150, "max_samples": 900}
STAGES = ("weights", "comparison", "sandwich")


def audit(made, x, plate, params=None, stages=STAGES):
    more = {"num_samples": 500, "reference": REFERENCE, "sandwich": {"num_temperatures": 60}}
    return pv.audit(made.model, made.guide, x, plate=plate, params=params, stages=stages, **more)


@pytest.fixture(scope="module", params=MODELS)
def user(request):
    make, plate = MODELS[request.param]
    made = make(6)
    return make, made, plate, audit(made, made.x, plate, made.params)


def test_log_p_by_annealing_is_that_of_a_grid(user):
    _, made, _, tree = user
    exact, ends = made.log_evidence(), tree["sandwich"].to_dataset()
    assert (ends["verdict"] == "closed").sum() >= 5  # a datum without verdict has no upper end
    for sign, end in ((1, "lower"), (-1, "upper")):
        over = sign * (ends[end].values - exact)
        assert not (over > 5 * ends[f"{end}_std_error"].values + 0.02).any()
    near = (ends["truth"].values - exact)[ends["verdict"] == "closed"]
    assert np.abs(near).max() < 0.1


def test_the_guide_is_compared_with_posteriors_that_converged(user):
    *_, tree = user
    assert (tree["diagnostics"]["verdict"] == "ok").sum() >= 5
    assert np.isfinite(tree["comparison"]["sd_ratio"]).all()
    assert any("The means of the guide are off" in sentence for sentence in pv.verdict_sentences(tree))


def test_what_training_gives_can_be_audited(user):
    make, made, plate, before = user
    result = pv.fit(made.model, made.guide, make(400).x, plate=plate, max_epochs=8, lr=3e-3, seed=1)
    after = audit(made, made.x, plate, result.params, stages=("weights",))
    elbos = [
        float(tree["evidence"].to_dataset()["value"].sel({"method": "elbo"}).mean())
        for tree in (before, after)
    ]
    assert elbos[1] > elbos[0] + 0.1


class Pair(nn.Module):
    """An encoder written for plain PyTorch, (mean, log variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mean, self.log_variance = nn.Linear(64, 32), nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, x):
        hidden = torch.relu(self.hidden(x))
        return self.mean(hidden), self.log_variance(hidden)


def test_a_vae_that_was_trained_in_plain_torch():
    torch.manual_seed(0)
    encoder, decoder = Pair(), nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64))
    x = pv.data.digits().train[:512]
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(200):
        mean, log_variance = encoder(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(-1)
        loss = (0.5 * (x - decoder(z)).square().sum(-1) / 0.3**2 + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(3),
        decoder=pv.decoders.GaussianDecoder(decoder, noise="fixed", scale=0.3),
        encoder=pv.encoders.DiagonalGaussian(encoder),
    )
    tree = audit(vae, x[:6], "data", stages=("comparison", "sandwich"))
    own = -float(loss.detach()) - 32 * np.log(2 * np.pi * 0.3**2)
    estimate = pv.log_evidence(pv.Target(vae.model, vae.guide, x), "elbo", num_samples=50).value.mean()
    assert estimate == pytest.approx(own, abs=1.0)  # the last step's loss is of one draw, before that step
    assert (tree["diagnostics"]["verdict"] == "ok").sum() >= 5
    assert tree["sandwich"]["truth"].notnull().sum() >= 4
