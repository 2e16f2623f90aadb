import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.data import digits, linear_gaussian
from pyrovae.models.decoders import ScaleFloorWarning
from pyrovae.models.vae import VAE, build_vae
from pyrovae.seeding import seeded
from pyrovae.training import programs
from pyrovae.training.batches import epoch_order
from pyrovae.training.fit import FitConfig, fit

X = linear_gaussian(40, data_dim=5, latent_dim=2, dtype=torch.float32).x


def small(seed: int = 0, **options) -> VAE:
    return build_vae(5, 2, hidden=(6,), seed=seed, **options)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def gaussian_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def gaussian_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.1))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def plain_svi(vae: VAE, batches: list[Tensor], seed: int) -> list[float]:
    with pyro.get_param_store().scope(), seeded(seed):
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=2))
        return [svi.step(batch) for batch in batches]


def test_losses_and_parameters_are_those_of_plain_svi_on_the_full_batch() -> None:
    mine, theirs = small(), small()
    result = fit(mine.model, mine.guide, X, lr=1e-2, num_particles=2, batch_size=100, max_epochs=30, seed=7)
    losses = plain_svi(theirs, [X] * 30, seed=7)
    np.testing.assert_allclose(-40 * result.history["elbo"], losses, rtol=1e-6)
    torch.testing.assert_close(weights(mine), weights(theirs), rtol=1e-5, atol=1e-6)
    one = small()
    other = fit(one.model, one.guide, X, lr=1e-2, batch_size=100, max_epochs=30, seed=7)
    assert not np.allclose(-40 * other.history["elbo"], losses, rtol=1e-3)  # one particle: it would be seen


def test_losses_are_those_of_plain_svi_on_the_same_ragged_batches() -> None:
    mine, theirs = small(), small()
    result = fit(mine.model, mine.guide, X, lr=1e-2, num_particles=2, batch_size=16, max_epochs=3, seed=7)
    batches = [X[index] for epoch in range(3) for index in epoch_order(40, 7, epoch).split(16)]
    losses = np.array(plain_svi(theirs, batches, seed=7)).reshape(3, 3)
    assert [len(b) for b in batches[:3]] == [16, 16, 8]
    assert result.num_steps == 9
    np.testing.assert_allclose(-40 * result.history["elbo"], losses.sum(1), rtol=1e-6)


def test_one_step_reaches_every_parameter() -> None:
    for noise in ("fixed", "shared"):
        vae = small(noise=noise)
        before = {name: p.detach().clone() for name, p in vae.named_parameters()}
        fit(vae.model, vae.guide, X, batch_size=40, max_epochs=1)
        assert all((p != before[name]).any() for name, p in vae.named_parameters())


def test_same_seed_same_bits_and_nothing_global_touched(capsys: pytest.CaptureFixture[str]) -> None:
    pyro.get_param_store().clear()
    mine = pyro.param("slope", torch.tensor(5.0))
    state, validation = torch.get_rng_state(), pyro.poutine.is_validation_enabled()
    results = [
        fit(gaussian_model, gaussian_guide, X[:, 0], max_epochs=3, batch_size=8, seed=s) for s in (1, 1, 2)
    ]
    assert np.array_equal(results[0].history["elbo"], results[1].history["elbo"])
    assert not np.array_equal(results[0].history["elbo"], results[2].history["elbo"])
    assert torch.equal(results[0].params["slope"], results[1].params["slope"])
    assert torch.equal(torch.get_rng_state(), state)
    assert pyro.poutine.is_validation_enabled() == validation
    assert list(pyro.get_param_store()) == ["slope"]
    assert pyro.param("slope").item() == mine.item() == 5.0
    assert capsys.readouterr() == ("", "")
    pyro.get_param_store().clear()


def test_function_style_parameters_come_back_constrained() -> None:
    result = fit(
        gaussian_model, gaussian_guide, X[:, 0], lr=0.05, batch_size=40, max_epochs=400, num_particles=8
    )
    assert set(result.params) == {"slope", "scale"}
    assert result.params["slope"].item() == pytest.approx(0.5, abs=0.05)
    assert result.params["scale"].item() == pytest.approx(0.5**0.5, abs=0.05)
    assert not result.params["scale"].requires_grad


def test_two_models_of_the_same_names_both_train() -> None:
    vaes = [small(seed=0), small(seed=1)]
    before = [weights(v) for v in vaes]
    for vae in vaes:
        fit(vae.model, vae.guide, X, max_epochs=2)
    assert all((weights(v) != b).all() for v, b in zip(vaes, before, strict=True))
    runs = [fit(gaussian_model, gaussian_guide, X[:, 0], max_epochs=2) for _ in range(2)]
    assert torch.equal(runs[0].params["slope"], runs[1].params["slope"])
    assert all(params == {} for params in [fit(v.model, v.guide, X, max_epochs=1).params for v in vaes])


def test_plain_torch_modules_train_through_pyro_module() -> None:
    net = nn.Linear(1, 1)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 0.7))

    result = fit(gaussian_model, guide, X[:, 0], lr=0.05, max_epochs=200)
    assert net.weight.item() == pytest.approx(0.5, abs=0.1)
    assert result.params == {}


def test_an_autoguide_of_shared_latents_trains() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = AutoNormal(model)
    fit(model, guide, X[:, 0], lr=0.05, batch_size=40, max_epochs=400)
    assert guide.median()["loc"].item() == pytest.approx(X[:, 0].mean().item(), abs=0.1)


class Part(PyroModule):
    """A guide or model whose method is, or is not, known to Pyro."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.net = nn.Linear(1, 1)

    def unknown(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 0.7))

    known = pyro_method(unknown)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.net(z[:, None])[:, 0], 1.0), obs=x)


def test_a_method_without_pyro_method_is_refused() -> None:
    part = Part()
    fit(gaussian_model, part.known, X[:, 0], max_epochs=1)
    with pytest.raises(RuntimeError, match="none reached the objective; decorate .* with @pyro_method"):
        fit(gaussian_model, part.unknown, X[:, 0], max_epochs=1)
    with pytest.raises(
        RuntimeError, match=r"known to Pyro, but 'net\.(weight|bias)' is not and would never move"
    ):
        fit(Part().model, part.unknown, X[:, 0], max_epochs=1)
    part.requires_grad_(False).eval()
    with pytest.raises(RuntimeError, match="none reached the objective"):
        fit(gaussian_model, part.known, X[:, 0], max_epochs=1)


def test_two_modules_whose_parameters_share_their_names_are_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"'net\.(weight|bias)' is not and would never move.*different names"
    ):
        fit(Part().model, Part().known, X[:, 0], max_epochs=1)
    fit(Part("a").model, Part("b").known, X[:, 0], max_epochs=1)

    class Scaled(PyroModule):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(value), constraint=constraints.positive)

        @pyro_method
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), self.scale), obs=x)

        @pyro_method
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, self.scale))

    with pytest.raises(RuntimeError, match="'scale_unconstrained' of one module was replaced"):
        fit(Scaled(1.0).model, Scaled(2.0).guide, X[:, 0], max_epochs=1)


def test_a_closed_over_network_that_pyro_does_not_know_is_refused() -> None:
    net = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

    with pytest.raises(
        RuntimeError, match=r"but a tensor of shape \[1(, 1)?\] is not .*pyro\.module.*requires_grad_"
    ):
        fit(model, gaussian_guide, X[:, 0], max_epochs=1)
    net.requires_grad_(False)
    fit(model, gaussian_guide, X[:, 0], max_epochs=1)


def test_a_parameter_that_does_not_move_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def guide(x: Tensor) -> None:
        far = pyro.param("far", torch.tensor(1e9))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + 1e-9 * far, 1.0))

    with pytest.raises(RuntimeError, match=r"must move, but 'far' did not in its first step with lr=0\.001"):
        fit(gaussian_model, guide, 1e5 * X[:, 0], batch_size=40, max_epochs=1)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(RuntimeError, match="must move, but '.*' did not"):
        fit(small().model, small().guide, X, max_epochs=1)


def test_frozen_parameters_stay() -> None:
    vae = small()
    vae.decoder.requires_grad_(False).eval()
    before = weights(vae.decoder), weights(vae.encoder)
    fit(vae.model, vae.guide, X, max_epochs=1)
    assert torch.equal(weights(vae.decoder), before[0])
    assert (weights(vae.encoder) != before[1]).all()


def test_parameters_that_appear_later_are_trained() -> None:
    calls = []

    def guide(x: Tensor) -> None:
        calls.append(1)
        shift = pyro.param("late", torch.tensor(3.0)) if len(calls) > 5 else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.tensor(0.1)) + shift, 1.0))

    result = fit(gaussian_model, guide, X[:, 0], batch_size=40, max_epochs=20, lr=0.1)
    assert result.params["late"].item() == pytest.approx(3.0 - 1.5, abs=0.5)


def test_labels_may_be_integers_and_shared_inputs_partial() -> None:
    def model(x: Tensor, label: Tensor, scale: float) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + loc[label], scale), obs=x)

    def guide(x: Tensor, label: Tensor) -> None:
        gaussian_guide(x)

    labels = torch.arange(40) % 3
    shared = partial(model, scale=0.5)
    result = fit(shared, guide, X[:, 0] + 4.0 * labels, labels, lr=0.1, max_epochs=300)
    assert result.params["loc"].diff().min() > 1


@pytest.mark.parametrize("subsample", [True, False])
def test_elbo_is_in_nats_per_datum_whatever_the_scale_of_the_plate(subsample: bool) -> None:
    def model(x: Tensor) -> None:
        plate = pyro.plate("data", 40, subsample_size=len(x)) if subsample else pyro.plate("data", len(x))
        with plate:
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    x, val = X[:, 0], X[:7, 1]
    result = fit(model, lambda x: None, x, val_data=val, batch_size=16, max_epochs=1, lr=1e-6)
    exact = [dist.Normal(0.0, 1.0).log_prob(t).mean().item() for t in (x, val)]
    assert result.history["elbo"][0] == pytest.approx(exact[0], rel=1e-4)
    assert result.history["val_elbo"][0] == pytest.approx(exact[1], rel=1e-4)


def test_validation_uses_the_same_noise_at_every_epoch_and_leaves_training_alone() -> None:
    with_val, without = (
        fit(vae.model, vae.guide, X, val_data=val, max_epochs=4, batch_size=16)
        for vae, val in ((small(), X[:9]), (small(), None))
    )
    assert np.array_equal(with_val.history["elbo"], without.history["elbo"])
    vae = small()
    still = fit(vae.model, vae.guide, X, val_data=(X[:9],), max_epochs=4, lr=1e-7)
    assert np.ptp(still.history["val_elbo"]) < 1e-3
    assert np.ptp(still.history["elbo"]) > 1e-2


def test_early_stopping_keeps_the_best_parameters_and_buffers() -> None:
    class Hooked(VAE):
        def end_epoch(self, *data: Tensor) -> None:
            self.epochs = self.epochs + 1  # a new tensor, not the old one changed in place

    vae = Hooked(*(getattr(small(), part) for part in ("prior", "decoder", "encoder")))
    vae.register_buffer("epochs", torch.tensor(0))
    seen = []
    options = {"max_epochs": 500, "lr": 3e-2, "batch_size": 8, "early_stopping_patience": 5}
    result = fit(
        vae.model,
        vae.guide,
        X[:20],
        val_data=X[20:],
        progress=lambda *_: seen.append(weights(vae)),
        **options,
    )
    val = result.history["val_elbo"]
    assert result.stopped_early
    assert result.best_epoch == val.argmax() == len(val) - 6
    assert torch.equal(weights(vae), seen[result.best_epoch])
    assert not torch.equal(weights(vae), seen[-1])
    assert vae.epochs == result.best_epoch + 1
    assert result.num_steps == 3 * len(val)


def test_end_epoch_and_progress() -> None:
    calls, reports = [], []

    class Hooked(VAE):
        def end_epoch(self, *data: Tensor) -> None:
            calls.append(data)

    vae = Hooked(*(getattr(small(), part) for part in ("prior", "decoder", "encoder")))
    vae.encoder.eval()
    result = fit(vae.model, vae.guide, X, max_epochs=3, progress=lambda *report: reports.append(report))
    assert len(calls) == 3
    assert all(torch.equal(data[0], X) and len(data) == 1 for data in calls)
    assert [report[:2] for report in reports] == [(0, 3), (1, 3), (2, 3)]
    assert [report[2]["elbo"] for report in reports] == result.history["elbo"].tolist()
    assert vae.decoder.training
    assert not vae.encoder.training


def test_a_collapsing_noise_scale_is_reported() -> None:
    vae = small(min_scale=0.6)
    with pytest.warns(ScaleFloorWarning):
        fit(vae.model, vae.guide, torch.zeros(40, 5), max_epochs=60, lr=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"max_epoch": 3},
            TypeError,
            "fit wants options of FitConfig, got 'max_epoch'; did you mean 'max_epochs'",
        ),
        ({"zzz": 3}, TypeError, "got 'zzz'; the options are objective, num_particles, num_outer"),
        ({"objective": "iwea"}, ValueError, "objective must be one of analytic_kl, .*elbo.* got 'iwea'"),
        ({"lr": 0.0}, ValueError, r"lr must be positive and finite, got 0\.0"),
        ({"lr": math.nan}, ValueError, "lr must be positive and finite, got nan"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"num_particles": -2}, ValueError, "num_particles must be an integer of at least 1, got -2"),
        ({"max_epochs": True}, ValueError, "max_epochs must be an integer of at least 1, got True"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0, got -1"),
        (
            {"early_stopping_patience": 0},
            ValueError,
            "early_stopping_patience must be an integer of at least 1",
        ),
        ({"early_stopping_patience": 3}, ValueError, "needs validation data, got val_data=None"),
    ],
)
def test_options_that_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(gaussian_model, gaussian_guide, X[:, 0], **options)


@pytest.mark.parametrize("trace_from", [0, 10**9])
def test_an_error_of_stop_ends_training_at_once(monkeypatch: pytest.MonkeyPatch, trace_from: int) -> None:
    monkeypatch.setattr(programs, "TRACE_FROM", trace_from)
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return 1 // (4 - len(calls)) > 1

    vae = small()
    with pytest.raises(ZeroDivisionError):
        fit(vae.model, vae.guide, X, batch_size=8, max_epochs=2, stop=stop)
    assert len(calls) == 4


def test_a_stop_after_the_last_step_lets_the_run_end() -> None:
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) == 8

    vae = small()
    result = fit(vae.model, vae.guide, X, batch_size=10, max_epochs=2, compile=False, stop=stop)
    assert (result.num_steps, len(result.history["elbo"]), result.stopped_early) == (8, 2, False)


def test_config_is_kept() -> None:
    result = fit(gaussian_model, gaussian_guide, X[:, 0], lr=0.5, max_epochs=2)
    assert result.config == FitConfig(lr=0.5, max_epochs=2)
    assert (result.best_epoch, result.num_steps, result.stopped_early) == (1, 2, False)
    assert set(result.history) == {"elbo", "seconds"}
    assert result.seconds >= result.history["seconds"].sum() > 0


def ppca_maximum(x: Tensor, latent_dim: int) -> float:
    """Largest mean log-likelihood of probabilistic PCA in nats per datum (Tipping & Bishop 1999)."""
    n, width = x.shape
    eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)) / n).flip(0)
    variance = eigenvalues[latent_dim:].mean()
    log_det = eigenvalues[:latent_dim].log().sum() + (width - latent_dim) * variance.log()
    return -0.5 * (width * math.log(2 * math.pi) + log_det + width).item()


def exact_elbo(vae: VAE, x: Tensor) -> float:
    """The ELBO of a VAE with a linear decoder without sampling, in nats per datum, in float64."""
    vae.double()
    with torch.no_grad():
        weight, bias = vae.decoder.net[0].weight, vae.decoder.net[0].bias
        q, variance = vae.encoder(x), vae.decoder.noise() ** 2
        squares = (x - q.mean @ weight.mT - bias).square().sum(1) + (q.variance @ weight.square().mT).sum(1)
        reconstruction = -0.5 * (squares / variance + x.shape[1] * (2 * math.pi * variance).log())
        kl = 0.5 * (q.variance + q.mean.square() - 1 - q.variance.log()).sum(1)
        return (reconstruction - kl).mean().item()


@pytest.mark.slow
def test_the_linear_vae_reaches_probabilistic_pca() -> None:
    x = linear_gaussian(500, data_dim=8, latent_dim=3, scale=0.6, seed=2).x
    best = ppca_maximum(x, 3)
    vae = build_vae(8, 3, hidden=(), seed=0)
    fit(vae.model, vae.guide, x.float(), lr=5e-2, batch_size=500, max_epochs=2500)
    fit(vae.model, vae.guide, x.float(), lr=2e-3, batch_size=500, max_epochs=1000, seed=1)
    elbo = exact_elbo(vae, x)
    assert best - 0.02 < elbo <= best
    assert ppca_maximum(x, 2) < best - 0.02  # one component fewer would be seen


@pytest.mark.slow
def test_digits_train() -> None:
    parts = digits()
    vae = build_vae(64, 8, hidden=(128,), scale=0.3, seed=0)
    options = {"max_epochs": 60, "lr": 3e-3, "early_stopping_patience": 10}
    result = fit(vae.model, vae.guide, parts.train, val_data=parts.val, **options)
    assert result.history["val_elbo"].max() > 25 > result.history["val_elbo"][0]
