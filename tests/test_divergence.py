import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrovae.data import linear_gaussian
from pyrovae.models.vae import VAE, build_vae
from pyrovae.training.fit import TrainingDiverged, fit

X = linear_gaussian(40, data_dim=5, latent_dim=2, dtype=torch.float32).x


def small() -> VAE:
    return build_vae(5, 2, hidden=(6,), seed=0)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def gaussian_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def gaussian_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 1.0))


def diverging(bad: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], None]:
    """A model whose mean is `bad(w, z)`, with a parameter w that starts at 0.05 and falls."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(0.05))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x)
            pyro.sample("x", dist.Normal(bad(w, z), 1.0), obs=x)

    return model


@pytest.mark.parametrize("validate", [True, False])
def test_nan_stops_and_names_epoch_batch_and_site(validate: bool) -> None:
    model, weights_seen = diverging(lambda w, z: w.log() + w.sqrt() * 1e3), []

    def guide(x: Tensor) -> None:
        weights_seen.append(pyro.get_param_store()["w"].item() if "w" in pyro.get_param_store() else 0.05)
        gaussian_guide(x)

    x = torch.full((30,), -10.0)
    with pyro.validation_enabled(validate), pytest.raises(TrainingDiverged) as caught:
        fit(model, guide, x, batch_size=10, max_epochs=9, lr=0.01)
    error = caught.value
    assert isinstance(error, FloatingPointError)
    steps = 3 * error.epoch + error.batch
    assert steps == next(i for i, w in enumerate(weights_seen) if w < 0)
    assert error.site == "x"
    assert f"epoch {error.epoch}, batch {error.batch} (both from 0)" in str(error)
    assert "'x' of the model" in str(error)
    assert "Lower lr (now 0.01)" in str(error)


@pytest.mark.parametrize("validate", [True, False])
def test_the_noise_of_the_failing_step_is_drawn_again(validate: bool) -> None:
    model = diverging(lambda w, z: w + torch.where(z > 3.2, torch.nan, z))  # NaN only for a rare z
    with pyro.validation_enabled(validate), pytest.raises(TrainingDiverged, match="'x' of the model"):
        fit(model, gaussian_guide, X[:, 0], batch_size=10, max_epochs=500, lr=1e-4, num_particles=2)


def test_a_guide_is_blamed_before_the_model() -> None:
    def guide(x: Tensor) -> None:
        w = pyro.param("w_guide", torch.tensor(0.05))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + 1e3 * w.log(), 1.0))

    with pytest.raises(TrainingDiverged, match="'z' of the guide") as caught:
        fit(gaussian_model, guide, X[:, 0] + 5e5, max_epochs=50, lr=0.02)
    assert caught.value.site == "z"


def test_parameters_are_those_of_the_last_finite_state() -> None:
    vae, seen = small(), []

    def spoil_late_small_batches(net: nn.Module, x: tuple[Tensor], out: Tensor) -> Tensor:
        return out * math.nan if len(seen) == 2 and len(x[0]) == 8 else out

    vae.encoder.net.register_forward_hook(spoil_late_small_batches)
    with pytest.raises(TrainingDiverged, match="epoch 2, batch 2.*site 'z' of the guide") as caught:
        fit(
            vae.model,
            vae.guide,
            X,
            batch_size=16,
            max_epochs=5,
            progress=lambda *_: seen.append(weights(vae)),
        )
    assert isinstance(caught.value.__cause__, ValueError)
    assert torch.isfinite(weights(vae)).all()
    moved = (weights(vae) - seen[-1]).abs().max()
    assert 0.5e-3 < moved < 2.1e-3  # two steps of lr on from the last whole epoch


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    vae = small()
    before = weights(vae)
    vae.decoder.net.register_forward_hook(lambda net, z, out: out + (out - out).sqrt())
    with pytest.raises(
        TrainingDiverged, match=r"loss is finite but the gradient of '(en|de)coder.* is not"
    ) as caught:
        fit(vae.model, vae.guide, X, max_epochs=2)
    assert (caught.value.epoch, caught.value.batch) == (0, 0)
    assert torch.equal(weights(vae), before)


def test_divergence_in_validation_is_named_too() -> None:
    model = diverging(lambda w, z: torch.where(z > 1e3, torch.nan, z) + w)
    with pytest.raises(TrainingDiverged, match="epoch 0, validation block 0"):
        fit(model, gaussian_guide, X[:, 0], val_data=1e6 + X[:, 0], max_epochs=2)


def test_errors_that_are_not_about_nan_propagate_untouched() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Gamma(z.exp(), 1.0), obs=x)

    with pytest.raises(ValueError, match="within the support") as caught:
        fit(model, gaussian_guide, -X[:, 0].abs(), max_epochs=1)
    assert not isinstance(caught.value, TrainingDiverged)
    mine = RuntimeError("mine")

    def fail(w: Tensor, z: Tensor) -> Tensor:
        raise mine

    with pytest.raises(RuntimeError) as other:
        fit(diverging(fail), gaussian_guide, X[:, 0], max_epochs=1)
    assert str(other.value).startswith("mine")  # Pyro adds the shapes of the trace
