import json

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.poutine import trace
from torch import nn

from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.networks import mlp
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE, build_vae


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def by_hand() -> VAE:
    return VAE(StandardNormal(2), GaussianDecoder(mlp(2, (), 5)), DiagonalGaussian(mlp(5, (), 4)))


def test_sites_and_shapes() -> None:
    vae, x = by_hand(), torch.randn(7, 5)
    model, guide = trace(vae.model).get_trace(x), trace(vae.guide).get_trace(x)
    assert model.nodes["z"]["value"].shape == guide.nodes["z"]["value"].shape == (7, 2)
    assert model.nodes["x"]["value"] is x
    assert model.nodes["x"]["is_observed"]
    for t, name in ((model, "z"), (model, "x"), (guide, "z")):
        t.compute_log_prob()
        assert t.nodes[name]["log_prob"].shape == (7,)
        assert [f.name for f in t.nodes[name]["cond_indep_stack"]] == ["data"]


def test_rows_may_be_tiled_and_values_replaced() -> None:
    vae, x, z = by_hand(), torch.randn(3, 5), torch.randn(4, 3, 2)
    tiled = trace(pyro.condition(vae.model, {"z": z.flatten(0, 1)})).get_trace(x.repeat(4, 1))
    tiled.compute_log_prob()
    for k in range(4):
        one = trace(pyro.condition(vae.model, {"z": z[k]})).get_trace(x)
        one.compute_log_prob()
        assert torch.allclose(
            tiled.nodes["x"]["log_prob"].reshape(4, 3)[k], one.nodes["x"]["log_prob"], atol=1e-5
        )
    before = trace(vae.guide).get_trace(x).nodes["z"]["fn"].mean
    x.add_(1.0)
    assert not torch.equal(before, trace(vae.guide).get_trace(x).nodes["z"]["fn"].mean)


@pytest.mark.parametrize("noise", ["fixed", "shared"])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 7)])
def test_plain_svi_trains_every_parameter(noise: str, hidden: tuple[int, ...]) -> None:
    vae = build_vae(5, 2, hidden=hidden, noise=noise, activation="tanh", seed=0)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(torch.randn(16, 5))
    assert all((p != before[name]).any() for name, p in vae.named_parameters())


def test_predictive() -> None:
    vae, x = by_hand(), torch.randn(7, 5)
    draws = Predictive(vae.model, guide=vae.guide, num_samples=3, return_sites=["z", "x"])(x)
    assert draws["z"].shape == (3, 7, 2)
    draws = Predictive(pyro.poutine.uncondition(vae.model), num_samples=3, parallel=True)(x)
    assert draws["x"].shape == (3, 7, 5)


def test_images_by_hand() -> None:
    decoder = GaussianDecoder(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))))
    vae = VAE(StandardNormal(2), decoder, DiagonalGaussian(nn.Sequential(nn.Flatten(), nn.Linear(12, 4))))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert svi.step(torch.randn(6, 3, 4)) > 0
    with pytest.raises(ValueError, match=r"shape \[n, 3, 4\], got \[6, 2, 6\]"):
        vae.model(torch.randn(6, 2, 6))


def test_config_rebuilds_the_vae_bit_for_bit() -> None:
    vae = build_vae(5, 2, hidden=(6, 7), noise="fixed", activation="gelu", scale=0.3, seed=4)
    again = build_vae(**json.loads(json.dumps(vae.config)))
    assert again.config == vae.config
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    assert by_hand().config is None
    assert [m.out_features for m in vae.decoder.net if isinstance(m, nn.Linear)] == [7, 6, 5]


def test_seed() -> None:
    def weights(seed: int | None) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in build_vae(5, 2, hidden=(3,), seed=seed).parameters()])

    state = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(None), weights(None))


def test_double() -> None:
    vae, x = build_vae(5, 2, seed=0).double(), torch.randn(4, 5, dtype=torch.float64)
    assert trace(vae.model).get_trace(x).nodes["z"]["value"].dtype == torch.float64


def test_end_epoch_reaches_the_parts() -> None:
    calls = []

    class Decoder(GaussianDecoder):
        def end_epoch(self, *data: torch.Tensor) -> None:
            calls.append(data)

    x = torch.randn(4, 5)
    VAE(StandardNormal(2), Decoder(nn.Linear(2, 5)), DiagonalGaussian(nn.Linear(5, 4))).end_epoch(x)
    assert calls == [(x,)]


@pytest.mark.parametrize("method", ["model", "guide"])
def test_data_are_checked_at_the_door(method: str) -> None:
    vae = build_vae(5, 2, seed=0)
    with pytest.raises(
        TypeError, match=r"floating-point data, got torch\.int64; convert with x\.float.*dequantize"
    ):
        getattr(vae, method)(torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(
        TypeError, match=r"torch\.float32 and the data are torch\.float64.*x\.to\(torch\.float32"
    ):
        getattr(vae, method)(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"data of shape \[n, 5\], got \[3, 4\]; reshape"):
        getattr(vae, method)(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2), {}, "data_dim must be an integer of at least 1, got 0"),
        ((5, 0), {}, "latent_dim must be an integer of at least 1, got 0"),
        ((5, 2), {"hidden": (4, 0)}, r"hidden\[1\] must be an integer of at least 1, got 0"),
        ((5, 2), {"prior": "normal"}, "prior must be one of standard, got 'normal'"),
        ((5, 2), {"encoder": "full"}, "encoder must be one of diagonal, got 'full'"),
        ((5, 2), {"noise": "none"}, "noise must be one of fixed, shared, got 'none'"),
        ((5, 2), {"activation": "swish"}, "activation must be one of elu"),
        ((5, 2), {"scale": -1.0}, "scale must be positive and finite"),
    ],
)
def test_what_build_vae_refuses(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_vae(*arguments, **options)
