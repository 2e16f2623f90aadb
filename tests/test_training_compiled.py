"""The training step as a program, against the same step through Pyro: noise, gradients, Adam, and when it gives way."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrovae.compiled import FallbackWarning
from pyrovae.models.vae import VAE, build_vae
from pyrovae.seeding import seeded
from pyrovae.training import programs as module
from pyrovae.training.adam import FusedAdam, Snapshot, make_adam
from pyrovae.training.divergence import TrainingDiverged
from pyrovae.training.fit import FitResult, fit
from pyrovae.training.gradients import BatchGradients, same_gradients
from pyrovae.training.learning_rate import rate_at
from pyrovae.training.objectives import OBJECTIVES, make_objective
from pyrovae.training.run import Run
from pyrovae.training.steps import step

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
OPTIONS = {
    "miwae": {"num_outer": 2},
    "piwae": {"num_outer": 2},
    "ciwae": {"beta": 0.3},
    "renyi": {"alpha": 0.5},
}


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Traces from the second step on, whatever it costs, and notes the route of every program that is made."""
    found: list[str] = []
    monkeypatch.setattr(module, "TRACE_FROM", 0)

    class Noted(module.StepProgram):
        def __init__(self, run: Run, gradients: BatchGradients, program, adam: FusedAdam) -> None:
            super().__init__(run, gradients, program, adam)
            found.append(program.route)

    monkeypatch.setattr(module, "StepProgram", Noted)
    return found


def small(**options) -> VAE:
    return build_vae(5, 2, hidden=(6,), seed=0, **options)


def weights(vae: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def both(make=small, x: Tensor = X, **options) -> tuple[FitResult, FitResult]:
    """The same fit through Pyro and by programs, after comparing every number of them."""
    options = {"batch_size": 16, "max_epochs": 4, "lr": 1e-2, **options}
    vaes = [make(), make()]
    results = [
        fit(v.model, v.guide, x, compile=c, **options) for v, c in zip(vaes, (False, "auto"), strict=True)
    ]
    for name in results[0].history.keys() - {"seconds"}:
        np.testing.assert_allclose(results[1].history[name], results[0].history[name], rtol=1e-5)
    torch.testing.assert_close(weights(vaes[1]), weights(vaes[0]), rtol=1e-4, atol=1e-6)
    assert results[0].num_steps == results[1].num_steps
    return results[0], results[1]


# --- the same numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_traced_and_gives_the_history_of_pyro(name, routes):
    both(objective=name, num_particles=4, **OPTIONS.get(name, {}))
    assert routes == ["traced", "traced"]  # 16 rows and the last 8


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 5.0},
        {"kl_weight": 0.5, "n_epochs_kl_warmup": 3},
        {"objective": "stl", "kl_weight": 0.5, "n_epochs_kl_warmup": 3},
        {"objective": "analytic_kl", "kl_weight": 2.0},
        {"lr_schedule": "cosine"},
        {"precision": "bf16"},
        {"val_data": X[:9], "early_stopping_patience": 2},
        {"batch_size": 64},
    ],
    ids=str,
)
def test_every_option_gives_the_history_of_pyro_without_a_program_more(options, routes):
    both(**options)
    assert routes == ["traced"] * (1 if options.get("batch_size") else 2)


@pytest.mark.parametrize(
    "parts",
    [
        {"encoder": "full"},
        {"encoder": "mixture"},
        {"prior": "vamp"},
        {"noise": "optimal"},  # whose buffer end_epoch changes in place
        {"decoder": "student-t"},
    ],
    ids=str,
)
def test_parts_of_a_vae(parts, routes):
    both(lambda: small(**parts))
    assert routes == ["traced", "traced"]


def discrete_model(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.sample("x", dist.Normal(z + pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.sigmoid(pyro.param("slope", torch.tensor(0.1)) * x)))
        pyro.sample("z", dist.Normal(0.4 * x + k * pyro.param("shift", torch.tensor(0.1)), 0.7))


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_discrete_latent_has_the_score_function_gradient_of_pyro(num_particles, routes):
    options = {"batch_size": 40, "max_epochs": 20, "lr": 0.05, "num_particles": num_particles}
    runs = [fit(discrete_model, discrete_guide, X[:, 0], compile=c, **options) for c in (False, "auto")]
    assert routes == ["traced"]
    np.testing.assert_allclose(runs[1].history["elbo"], runs[0].history["elbo"], rtol=1e-5)
    for name, value in runs[0].params.items():
        torch.testing.assert_close(runs[1].params[name], value, rtol=1e-4, atol=1e-6)


def first_gradients(name: str) -> tuple[BatchGradients, tuple[Tensor, ...]]:
    vae = small()
    run = Run(vae.model, vae.guide, "data", make_objective(name), 1, 1e-3)
    step(run, (X,), 0, 0)
    return BatchGradients(run, (X,), weighted=False), (X,)


@pytest.mark.parametrize("name", ["elbo", "analytic_kl", "iwae"])
def test_gradients_are_those_of_pyros_own_objective(name):
    with pyro.get_param_store().scope():
        gradients, inputs = first_gradients(name)
        results = []
        for function in (gradients, gradients.by_pyro):
            with seeded(3):
                results.append(function(*inputs))
        same_gradients(*results)
        with seeded(4), pytest.raises(AssertionError):
            same_gradients(results[0], gradients(*inputs))  # another noise is seen


def test_a_gradient_that_is_off_by_a_thousandth_runs_untraced(routes, monkeypatch):
    """Planted: a loss whose gradient is 1.001 times the objective's."""
    real = BatchGradients.__call__
    monkeypatch.setattr(
        BatchGradients,
        "__call__",
        lambda self, *x: [(g if i == 0 else 1.001 * g) for i, g in enumerate(real(self, *x))],
    )
    vae = small()
    with pytest.warns(FallbackWarning, match="training runs untraced: AssertionError"):
        fit(vae.model, vae.guide, X, max_epochs=2)
    assert routes == []


def test_the_same_seed_gives_the_same_bits(routes):
    values = []
    for seed in (1, 1, 2):
        vae = small()
        fit(vae.model, vae.guide, X, batch_size=16, max_epochs=3, seed=seed)
        values.append(weights(vae))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert len(routes) == 6


def test_few_steps_are_not_traced_and_many_are(monkeypatch):
    made = []
    monkeypatch.setattr(
        module.Programs, "_gradients", lambda self, batch: made.append(len(batch[0])) or 1 / 0
    )
    monkeypatch.setattr(module, "TRACE_FROM", 20)
    vae = small()
    fit(vae.model, vae.guide, X, batch_size=12, max_epochs=6)  # 18 steps of 12, 6 of 4
    assert made == []
    with pytest.warns(FallbackWarning, match="ZeroDivisionError") as notices:
        fit(vae.model, vae.guide, X, batch_size=12, max_epochs=7)
    assert (made, len(notices)) == ([12], 1)
    fit(vae.model, vae.guide, X, batch_size=12, max_epochs=7, compile=False)
    assert made == [12]


# --- what changes between epochs ---------------------------------------------------------------------------


class Annealed(nn.Module):
    """A guide with a number in Python, a buffer, and a hook that changes one of them."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.register_buffer("scale", torch.tensor(1.0))
        self.factor = 1.0
        self.change = change

    def end_epoch(self, x: Tensor) -> None:
        if self.change == "in place":
            self.scale.mul_(0.5)
        elif self.change == "a new buffer":
            self.scale = self.scale * 0.5
        elif self.change == "a number":
            self.factor *= 0.5
        elif self.change == "freeze":
            self.net.train(False).weight.requires_grad_(False)

    def guide(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], self.factor * self.scale))


def gaussian_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("change", "count"), [("in place", 1), ("a new buffer", 3), ("a number", 3), ("freeze", 2)]
)
def test_what_a_hook_changes_is_seen(change, count, routes):
    histories = []
    for compile_ in (False, "auto"):
        torch.manual_seed(0)
        owner = Annealed(change)
        result = fit(gaussian_model, owner.guide, X[:, 0], batch_size=20, max_epochs=3, compile=compile_)
        histories.append(result.history["elbo"])
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-5)
    assert len(routes) == count


def test_a_module_that_changes_at_every_epoch_runs_untraced_in_the_end(routes):
    owner = Annealed("a number")
    with pytest.warns(FallbackWarning, match="change again and again") as notices:
        fit(gaussian_model, owner.guide, X[:, 0], batch_size=10, max_epochs=9)
    assert len(notices) == 1
    assert len(routes) == module.MAX_CHANGES + 1


def test_a_counter_that_does_not_matter_keeps_the_program(routes):
    class Counted(VAE):
        def end_epoch(self, *data: Tensor) -> None:
            self.epochs = getattr(self, "epochs", 0) + 1

    vae = Counted(*(getattr(small(), part) for part in ("prior", "decoder", "encoder")))
    fit(vae.model, vae.guide, X, batch_size=20, max_epochs=9)
    assert routes == ["traced"]


# --- what falls back ---------------------------------------------------------------------------------------


def with_layer(layer: nn.Module) -> VAE:
    vae = small()
    vae.decoder.net.insert(1, layer)
    return vae


class Branch(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h if h.sum() > 0 else 2 * h


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: with_layer(nn.BatchNorm1d(6)), {}, "BatchNorm"),
        (lambda: with_layer(Branch()), {}, "value in Python"),
        (small, {"objective": "iwae", "num_particles": 4, "chunk_size": 2}, "pass chunk_size=num_particles"),
    ],
)
def test_what_cannot_be_traced_runs_through_pyro_with_one_notice(make, options, message, routes):
    with pytest.warns(FallbackWarning, match=message) as notices:
        both(make, **options)
    assert len(notices) == 1
    assert routes == []


def test_batch_norm_keeps_the_statistics_that_it_has_through_pyro(routes):
    buffers = []
    for compile_ in (False, "auto"):
        vae = with_layer(nn.BatchNorm1d(6))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            fit(vae.model, vae.guide, X, batch_size=20, max_epochs=2, compile=compile_)
        buffers.append([b.clone() for b in vae.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*buffers, strict=True))


def test_dropout_is_drawn_as_through_pyro(routes):
    both(lambda: with_layer(nn.Dropout(0.5)))
    assert routes == ["traced", "traced"]


# --- divergence --------------------------------------------------------------------------------------------


def falling(x: Tensor) -> None:
    """w starts at 0.05 and falls below 0, where its logarithm is NaN."""
    w = pyro.param("w", torch.tensor(0.05))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + 0.01 * w.log() + w.sqrt() * 1e3, 1.0), obs=x)


def shifted(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)) * x, 1.0))


def diverge(compile_: str | bool, model=falling) -> TrainingDiverged:
    x = torch.full((30,), -10.0)
    with pytest.raises(TrainingDiverged) as caught:
        fit(model, shifted, x, batch_size=10, max_epochs=9, lr=0.01, compile=compile_)
    return caught.value


def test_divergence_names_what_it_names_through_pyro(routes):
    mine, theirs = diverge("auto"), diverge(False)
    assert (mine.epoch, mine.batch, mine.site) == (theirs.epoch, theirs.batch, theirs.site)
    assert str(mine) == str(theirs)
    assert routes == ["traced"]


class Spoiled(nn.Module):
    """The identity, until its weight has moved by half: then the loss, or its gradient alone, is NaN."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.shift, self.what = nn.Parameter(torch.zeros(())), what

    def forward(self, h: Tensor) -> Tensor:
        gone = (self.shift.detach().abs() > 0.05).to(h.dtype)
        if self.what == "loss":
            return h + self.shift + torch.where(gone > 0, torch.nan, 0.0)
        return h + self.shift + (h - h + 1 - gone).sqrt()  # of which the slope at 0 is infinite


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_parameters_are_as_before_the_bad_step(what, routes):
    found = []
    for compile_ in (False, "auto"):
        vae = with_layer(Spoiled(what))
        with pytest.raises(TrainingDiverged) as caught:
            fit(vae.model, vae.guide, X, batch_size=8, max_epochs=90, lr=1e-2, compile=compile_)
        found.append((str(caught.value), weights(vae)))
    assert found[0][0] == found[1][0]
    assert ("the gradient of" in found[0][0]) == (what == "gradient")
    torch.testing.assert_close(found[1][1], found[0][1])
    assert torch.isfinite(found[1][1]).all()
    assert routes == ["traced"]


def test_an_observation_outside_its_support_raises_though_no_program_validates(routes):
    x = torch.ones(40)
    x[-1] = 0.5  # in a later batch: the data keep their order within an epoch of one seed

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z + pyro.param("loc", torch.tensor(0.0))), obs=x)

    for seed in range(4):
        with pytest.raises(ValueError, match="within the support"):
            fit(model, shifted, x, batch_size=4, max_epochs=2, seed=seed)


def test_a_program_alone_that_fails_gives_way(routes, monkeypatch):
    """Planted: a program that gives NaN at its third step, where Pyro does not."""
    real, calls = module.StepProgram.__call__, []

    def bad(self, batch):
        calls.append(1)
        return real(self, batch) * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(module.StepProgram, "__call__", bad)
    with pytest.warns(FallbackWarning, match="gave NaN or failed where Pyro does not"):
        both(batch_size=8)
    assert len(calls) == 4


# --- Adam --------------------------------------------------------------------------------------------------


def adams(clip: float | None) -> list[Tensor]:
    """Parameters after ten steps of torch's plain Adam, and of ours."""
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(s, generator=generator) for s in ((4, 3), (3,), ())] for _ in range(10)]
    ends = []
    for kind in ("plain", "ours"):
        params = [torch.ones_like(g).requires_grad_() for g in gradients[0]]
        optimizer = torch.optim.Adam(params, lr=0.1) if kind == "plain" else make_adam(params, 0.1)
        fused = None
        for some in gradients:
            if fused is None:
                for p, g in zip(params, some, strict=True):
                    p.grad = g.clone()
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(params, clip)
                optimizer.step()
                fused = None if kind == "plain" else FusedAdam(optimizer, params)
                continue
            norm = torch.nn.utils.get_total_norm(some)
            divisor = None if clip is None else ((norm + 1e-6) / clip).clamp_min(1.0)
            with torch.no_grad():
                fused.step([g.clone() for g in some], 0.1, divisor)
        ends.append(torch.cat([p.detach().flatten() for p in params]))
    return ends


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_fused_adam_is_adam_and_its_divisor_is_clipping(clip):
    plain, ours = adams(clip)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_clipping_changes_the_path_as_clip_grad_norm_does():
    def by_hand(clip: float) -> Tensor:
        vae = small()
        with pyro.get_param_store().scope(), seeded(0):
            optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
            for _ in range(5):
                optimizer.zero_grad()
                make_objective("elbo").differentiable_loss(vae.model, vae.guide, X).backward()
                norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), clip)
                optimizer.step()
        assert norm > 5.0
        return weights(vae)

    vae = small()
    fit(vae.model, vae.guide, X, lr=1e-2, clip_norm=5.0, batch_size=40, max_epochs=5)
    torch.testing.assert_close(weights(vae), by_hand(5.0), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(by_hand(5.0), by_hand(1e9), rtol=1e-5, atol=1e-6)


def test_a_snapshot_puts_everything_back():
    p = torch.ones(3, requires_grad=True)
    optimizer = make_adam([p], 0.1)
    p.sum().backward()
    optimizer.step()
    kept, before = Snapshot(optimizer, p.device), p.detach().clone()
    first = torch.rand(1)
    fused = FusedAdam(optimizer, [p])  # which moves the counts of steps
    with torch.no_grad():
        fused.step([torch.full((3,), torch.nan)], 0.1)
    kept.restore()
    assert torch.equal(p.detach(), before)
    assert torch.equal(torch.rand(1), first)
    assert optimizer.state[p]["step"] == fused.groups[0].steps[0] == 1


# --- options -----------------------------------------------------------------------------------------------


def test_the_cosine_falls_from_lr_to_0():
    rates = [rate_at(t, 10, 0.5, "cosine") for t in range(11)]
    assert rates[0] == 0.5
    assert rates[5] == pytest.approx(0.25)
    assert rates[10] == pytest.approx(0.0, abs=1e-15)
    assert sorted(rates, reverse=True) == rates
    assert rate_at(7, 10, 0.5, "constant") == 0.5


def test_bf16_trains_nearly_as_far_and_validates_in_full():
    results = []
    for precision in ("full", "bf16"):
        vae = small()
        options = {"val_data": X[:9], "batch_size": 16, "max_epochs": 40, "lr": 1e-2, "precision": precision}
        results.append(fit(vae.model, vae.guide, X, **options))
    full, bf16 = (r.history["val_elbo"] for r in results)
    assert full[-1] > full[0] + 0.1
    assert bf16[-1] == pytest.approx(full[-1], abs=0.05)
    assert not np.array_equal(full, bf16)


@pytest.mark.parametrize(
    "options",
    [
        {"compile": "yes"},
        {"compile": "1"},
        {"lr_schedule": "linear"},
        {"precision": "fp16"},
        {"clip_norm": 0.0},
    ],
    ids=str,
)
def test_options_that_are_refused(options):
    vae = small()
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        fit(vae.model, vae.guide, X, **options)


# --- compiled ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_fit_gives_the_history_of_pyro(monkeypatch):
    found = []
    real = module.compiled
    monkeypatch.setattr(module, "compiled", lambda *a, **k: found.append(real(*a, **k)) or found[-1])
    vaes = [small(), small()]
    options = {
        "batch_size": 16,
        "max_epochs": 6,
        "lr": 1e-2,
        "clip_norm": 20.0,
        "kl_weight": 0.5,
        "n_epochs_kl_warmup": 3,
    }
    runs = [fit(v.model, v.guide, X, compile=c, **options) for v, c in zip(vaes, (False, True), strict=True)]
    assert [program.route for program in found] == ["compiled"]  # the ragged batch does not pay
    np.testing.assert_allclose(runs[1].history["weighted_elbo"], runs[0].history["weighted_elbo"], rtol=1e-5)
    torch.testing.assert_close(weights(vaes[1]), weights(vaes[0]), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_bf16_fit_is_near_that_of_pyro():
    vaes = [small(), small()]
    options = {"batch_size": 20, "max_epochs": 6, "lr": 1e-2, "precision": "bf16"}
    runs = [fit(v.model, v.guide, X, compile=c, **options) for v, c in zip(vaes, (False, True), strict=True)]
    np.testing.assert_allclose(runs[1].history["elbo"], runs[0].history["elbo"], rtol=0.02)


@pytest.mark.slow
def test_without_a_compiler_the_trace_is_replayed_with_one_notice(routes, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("pyrovae.compiled.program._compile", broken)
    vae = small()
    with pytest.warns(
        FallbackWarning, match="runs traced, not compiled: RuntimeError: no compiler"
    ) as notices:
        fit(vae.model, vae.guide, X, batch_size=16, max_epochs=3, compile=True)
    assert len(notices) == 1
    assert routes == ["traced", "traced"]


@pytest.mark.gpu
def test_a_fit_on_the_gpu_is_captured_and_waits_once_an_epoch(monkeypatch):
    vaes = [small().cuda(), small().cuda()]
    options = {"batch_size": 20, "max_epochs": 6, "lr": 1e-2}
    found = []
    real = module.compiled
    monkeypatch.setattr(module, "compiled", lambda *a, **k: found.append(real(*a, **k)) or found[-1])
    runs = [
        fit(v.model, v.guide, X.cuda(), compile=c, **options)
        for v, c in zip(vaes, (False, True), strict=True)
    ]
    assert [program.route for program in found] == ["captured"]
    np.testing.assert_allclose(runs[1].history["elbo"], runs[0].history["elbo"], rtol=1e-4)
