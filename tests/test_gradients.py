"""The laboratory against closed forms, against a naive loop, and against exact gradients of log p(x)."""

import functools
import math

import pytest
import torch
from chance import z_score_limit
from gradient_models import Linear, expectation, row, within

from pyrovae import gradient_statistics
from pyrovae.diagnostics.gradients.moments import Summary
from pyrovae.training.objectives import OBJECTIVES, DReG, Plan, make_objective

MU, SD = 0.7, 0.8
REPLICATES = 4000
VARIANCES = {
    "score_function": MU**4 / SD**2 + 14 * MU**2 + 15 * SD**2,
    "with baseline": 8 * MU**2 + 6 * SD**2,
    "reparameterized": 4 * SD**2,
}
BASELINE = MU**2 + 3 * SD**2
"""The best constant one for f = z^2."""


def measured(f, method, **options):
    made = {"estimators": (method,), "num_particles": (1,), "reference": "none", "keep_mean": True} | options
    return gradient_statistics(*expectation(f, MU, SD), num_replicates=REPLICATES, **made)


def has_closed_form(f, method, variance) -> bool:
    """Whether mean, variance and SNR^2 are those of d/dmu E[z^2] = 2 mu with that variance."""
    tree = measured(f, method)
    found = row(tree, method, 1)
    mean = float(tree["gradients"]["mean"].squeeze())
    return (
        abs(mean - 2 * MU) <= z_score_limit() * math.sqrt(variance / REPLICATES)
        and within(found["variance"], variance, found["variance_std_error"])
        and within(found["snr_squared"], 4 * MU**2 / variance, found["snr_squared_std_error"])
        and within(
            abs(found["directional_snr"]), 2 * MU / math.sqrt(variance), found["directional_snr_std_error"]
        )
    )


def square(z):
    return z**2


@pytest.mark.parametrize(
    ("f", "method", "kind"),
    [
        (square, "score_function", "score_function"),
        (lambda z: z**2 - BASELINE, "score_function", "with baseline"),
        (square, "stl", "reparameterized"),
    ],
    ids=["score function", "with baseline", "reparameterized"],
)
def test_closed_forms(f, method, kind):
    assert has_closed_form(f, method, VARIANCES[kind])


@pytest.mark.slow
def test_the_assertion_sees_another_baseline_and_another_estimator():
    assert not has_closed_form(square, "score_function", VARIANCES["with baseline"])
    assert not has_closed_form(square, "elbo", VARIANCES["reparameterized"])  # the score term is in it


@pytest.mark.slow
def test_a_fast_wave_flips_the_order():
    """E[sin(20 z)]: the score function's estimate is bounded by |z|, the path derivative by 20."""
    variance = {
        method: row(measured(lambda z: torch.sin(20 * z), method), method, 1)["variance"]
        for method in ("score_function", "stl")
    }
    assert variance["stl"] > 50 * variance["score_function"]
    assert VARIANCES["score_function"] > 5 * VARIANCES["reparameterized"]  # and here the other way round


def noise_has_no_signal(seed=0) -> bool:
    """In 3000 coordinates of mean zero: SNR^2 and |mean| of 100 replicates are lost in their error bars."""
    made = expectation(square, 0.0, SD, size=3000)
    tree = gradient_statistics(
        *made, estimators=("stl",), num_particles=(1,), num_replicates=100, reference="none", seed=seed
    )
    found = row(tree, "stl", 1)
    return (
        within(found["snr_squared"], 0.0, found["snr_squared_std_error"])
        and within(found["directional_snr"], 0.0, found["directional_snr_std_error"])
        and within(found["variance"], 3000 * 4 * SD**2, found["variance_std_error"])
    )


def test_noise_has_no_signal():
    assert noise_has_no_signal()


@pytest.mark.slow
def test_the_assertion_sees_a_norm_that_is_not_debiased(monkeypatch):
    monkeypatch.setattr(Summary, "norm_squared", property(lambda self: self.mean.square().sum()))
    assert not noise_has_no_signal()


@pytest.mark.slow
def test_the_plain_ratio_has_a_floor():
    """|mean| / sd of pure noise is sqrt(2 / (pi R)) on average over coordinates: what is not to be reported."""
    made = expectation(square, 0.0, SD, size=300)
    options = {"estimators": ("stl",), "num_particles": (1,), "num_replicates": 100, "reference": "none"}
    tree = gradient_statistics(*made, **options, keep_mean=True)
    sd = math.sqrt(row(tree, "stl", 1)["variance"] / 300)
    plain = torch.as_tensor(tree["gradients"]["mean"].values).abs().mean() / sd
    assert plain == pytest.approx(math.sqrt(2 / (math.pi * 100)), rel=0.3)  # 6.9 standard errors


OPTIONS = {
    "miwae": {"num_outer": 2},
    "piwae": {"num_outer": 2},
    "ciwae": {"beta": 0.3},
    "renyi": {"alpha": 0.5},
}


SIDE_BY_SIDE = tuple(name for name in OBJECTIVES if name != "hmc")  # whose chains have noise of their own
QUICK = ("elbo", "stl", "dreg", "miwae", "detached")
"""Those that every run of the tests measures; the full run has all."""


@functools.cache
def _of_four_particles(names):
    lab = Linear()
    own = {name: options for name, options in OPTIONS.items() if name in names}
    tree = gradient_statistics(
        lab.model, lab.guide, lab.x, estimators=names, num_particles=(4,), num_replicates=240,
        options=own, keep_mean=True,
    )  # fmt: skip
    return lab, tree


def of_four_particles(name):
    """A small linear VAE, and some estimators on it, this one among them."""
    return _of_four_particles(
        QUICK if name in QUICK else tuple(each for each in SIDE_BY_SIDE if each not in QUICK)
    )


def marked(names):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


def naive(lab, name, num):
    """Gradients of a plain loop of backward passes, one row a replicate: encoder, then decoder."""
    objective = make_objective(name, 4, **OPTIONS.get(name, {}))
    own = {
        key: p for key, p in lab.named_parameters() if not key.startswith("decoder") and key != "log_noise"
    }
    ordered = [*own.values(), *(p for key, p in lab.named_parameters() if key not in own)]
    torch.manual_seed(1)
    rows = []
    for _ in range(num):
        lab.zero_grad()
        objective.differentiable_loss(lab.model, lab.guide, lab.x).backward()
        rows.append(
            torch.cat([torch.zeros(p.numel()) if p.grad is None else -p.grad.flatten() for p in ordered])
        )
    lab.zero_grad()
    return torch.stack(rows).double() / len(lab.x), sum(p.numel() for p in own.values())


@pytest.mark.parametrize("name", marked(SIDE_BY_SIDE))
def test_the_laboratory_agrees_with_a_naive_loop(name):
    lab, tree = of_four_particles(name)
    rows, size = naive(lab, name, 100)
    for part, own in (("encoder", rows[:, :size]), ("decoder", rows[:, size:])):
        found = row(tree, name, 4, part)
        centered = (own - own.mean(0)).square().sum(1)
        error = math.hypot(float(centered.std()) / math.sqrt(100), found["variance_std_error"])
        assert within(found["variance"], float(own.var(0).sum()), error)
        group = tree["gradients"].to_dataset().sel({"method": name, "count": 4})
        mine = torch.as_tensor(group["mean"].values[group["coordinate_part"].values == part])
        distance = (mine - own.mean(0)).square().sum()
        expected = found["variance"] * (1 / 100 + 1 / 240)
        assert distance < 6 * expected + 1e-24
    if name == "detached":
        assert row(tree, name, 4)["variance"] == row(tree, name, 4)["mean_norm"] == 0.0
        assert row(tree, name, 4)["own_bias"] == pytest.approx(1.0, abs=0.05)


UNBIASED = [name for name in SIDE_BY_SIDE if name not in ("detached", "rws", "rws_dreg")]


@pytest.mark.parametrize("name", marked(UNBIASED))
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_no_estimator_is_biased_for_its_own_objective(name, part):
    found = row(of_four_particles(name)[1], name, 4, part)
    assert within(found["own_bias_squared"], 0.0, found["own_bias_squared_std_error"])


class SingleReparameterization(DReG):
    """Planted: weights v where DReG has v^2, the gradient of sticking the landing with several particles."""

    def plan(self, log_w):
        return Plan(*super().plan(log_w)[:3], path=None)


@pytest.mark.slow
def test_the_assertion_sees_a_biased_dreg(monkeypatch):
    lab = Linear()
    monkeypatch.setitem(OBJECTIVES, "dreg", SingleReparameterization)
    tree = gradient_statistics(
        lab.model, lab.guide, lab.x, estimators=("iwae",), num_particles=(4,), num_replicates=400,
        reference="none",
    )  # fmt: skip
    found = row(tree, "iwae", 4)
    assert not within(found["own_bias_squared"], 0.0, found["own_bias_squared_std_error"])


def exact_gradients(lab):
    """Of log p(x) per datum in the model's parameters, by autograd of the closed form."""
    names = ["decoder.weight", "decoder.bias", "log_noise"]
    values = dict(lab.named_parameters())
    found = torch.autograd.grad(lab.log_evidence(lab.x).mean(), [values[name] for name in names])
    return dict(zip(names, found, strict=True))


def exact_elbo(lab):
    noise, variance = (2 * lab.log_noise).exp(), (2 * lab.log_sd).exp()
    mean = lab.encoder(lab.x)
    error = (lab.x - lab.decoder(mean)).square().sum(1) + (lab.decoder.weight.square() * variance).sum()
    likelihood = -0.5 * (error / noise + lab.x.shape[1] * (noise.log() + math.log(2 * math.pi)))
    kl = 0.5 * (variance.sum() + mean.square().sum(1) - len(variance) - variance.log().sum())
    return (likelihood - kl).mean()


def elbo_has_its_evidence_bias(reference="auto") -> bool:
    """Whether the bias of the ELBO's gradient against that of log p(x) is the exact one."""
    lab = Linear()
    truth = exact_gradients(lab)
    values = dict(lab.named_parameters())
    elbo = torch.autograd.grad(exact_elbo(lab), [values[name] for name in truth])
    distance = sum((a - b).square().sum() for a, b in zip(elbo, truth.values(), strict=True))
    expected = float(distance / sum(each.square().sum() for each in truth.values()))
    tree = gradient_statistics(
        lab.model, lab.guide, lab.x, estimators=("elbo",), num_particles=(8,), reference=reference
    )
    assert tree["gradients"].attrs["reference"] in ("exact", "given")
    found = row(tree, "elbo", 8, "decoder")
    return within(found["evidence_bias_squared"], expected, found["evidence_bias_squared_std_error"])


def test_the_bias_against_the_evidence_is_the_exact_one():
    assert elbo_has_its_evidence_bias()


@pytest.mark.slow
def test_the_assertion_sees_draws_that_are_not_of_the_posterior():
    from pyrovae import Target, sample_posterior

    lab = Linear()
    tree = sample_posterior(Target(lab.model, lab.guide, lab.x), "exact", num_chains=20, num_samples=100)
    tree["posterior"]["z"] = 1.3 * tree["posterior"]["z"]
    assert not elbo_has_its_evidence_bias(tree)


@pytest.mark.parametrize("name", marked(["elbo", "stl", "dreg", "rws_dreg", "iwae"]))
def test_who_is_silent_at_the_posterior(name):
    lab = Linear()
    lab.be_the_posterior()
    options = {"num_particles": (3,), "num_replicates": 80, "reference": "none"}
    found = row(gradient_statistics(lab.model, lab.guide, lab.x, estimators=(name,), **options), name, 3)
    if name in ("stl", "dreg", "rws_dreg"):
        assert found["variance"] < 1e-20
    else:
        assert found["variance"] > 1e-3


@pytest.mark.slow
def test_sticking_the_landing_has_the_mean_of_the_elbo_and_not_of_iwae():
    lab = Linear()
    means = {}
    for count in (1, 16):
        tree = gradient_statistics(
            lab.model, lab.guide, lab.x, estimators=("stl", "dreg"), num_particles=(count,),
            num_replicates=200, reference="none", keep_mean=True,
        )  # fmt: skip
        group = tree["gradients"].to_dataset()
        encoder = group["coordinate_part"].values == "encoder"
        means[count] = {
            name: torch.as_tensor(group["mean"].sel({"method": name, "count": count}).values[encoder])
            for name in ("stl", "dreg")
        }
        found = row(tree, "stl", count)
        assert within(found["own_bias_squared"], 0.0, found["own_bias_squared_std_error"])
    assert (means[1]["stl"] - means[1]["dreg"]).norm() < 0.1 * means[1]["dreg"].norm()
    assert means[16]["stl"].norm() > 2 * means[16]["dreg"].norm()
