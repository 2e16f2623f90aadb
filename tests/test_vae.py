import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.poutine import trace
from torch import nn

from pyrovae.data import linear_gaussian
from pyrovae.diagnostics.evidence import log_evidence
from pyrovae.models.convolution import conv_decoder, conv_encoder
from pyrovae.models.decoders import BernoulliDecoder, GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.networks import mlp
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE, build_vae
from pyrovae.target import Target
from pyrovae.training.fit import fit


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


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3, 3, 2, 5), r"latent shape, but it is \[3\] in the prior and \[2\] in the encoder"),
        ((3, 2, 3, 5), r"decoder fails on z of shape \[n, 3\], as the prior draws it: mat1 and mat2"),
        ((3, 3, 3, 4), r"encoder fails on x of shape \[n, 5\], as the decoder draws it: mat1 and mat2"),
    ],
)
def test_parts_of_unequal_widths_are_refused_when_built(widths: tuple[int, ...], message: str) -> None:
    prior, decoder, encoder, data = widths
    parts = GaussianDecoder(mlp(decoder, (), 5)), DiagonalGaussian(mlp(data, (), 2 * encoder))
    with pytest.raises(ValueError, match=message):
        VAE(StandardNormal(prior), *parts)


def test_building_changes_nothing() -> None:
    """Neither statistics nor modes of the modules, nor random state, nor Pyro's store."""
    norm = nn.BatchNorm1d(5)
    frozen = nn.Dropout().eval()
    encoder = DiagonalGaussian(nn.Sequential(norm, frozen, nn.Linear(5, 4)))
    decoder = GaussianDecoder(nn.Linear(2, 5))
    state, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    VAE(StandardNormal(2), decoder, encoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == store
    assert norm.num_batches_tracked == 0
    assert norm.training
    assert not frozen.training


def test_parts_of_several_dtypes_may_become_one_later() -> None:
    decoder = GaussianDecoder(nn.Linear(2, 5).double())
    vae = VAE(StandardNormal(2), decoder, DiagonalGaussian(nn.Linear(5, 4))).float()
    assert Target(vae.model, vae.guide, torch.zeros(3, 5)).dim == 2


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
        ((5, 2), {"prior": "normal"}, "prior must be one of flow, .*, vamp, got 'normal'; choose one"),
        ((5, 2), {"encoder": "lowrank"}, "encoder must be one of diagonal, .* did you mean 'low-rank'"),
        ((5, 2), {"noise": "none"}, "noise must be one of fixed, .*, shared, got 'none'"),
        ((5, 2), {"activation": "swish"}, "activation must be one of elu"),
        ((5, 2), {"scale": -1.0}, "scale must be positive and finite"),
        ((5, 2), {"decoder": "bernouli"}, "decoder must be one of bernoulli, .*; did you mean 'bernoulli'"),
        ((5, 2), {"network": "convolution"}, "network must be one of conv, mlp, residual, got 'convolution'"),
        ((5, 2), {"prior": "mixture", "components": 0}, "components must be an integer of at least 1, got 0"),
        (
            (5, 2),
            {"prior": "vamp", "pseudo_inputs": 0},
            "pseudo_inputs must be an integer of at least 1, got 0",
        ),
        ((5, 2), {"encoder": "low-rank", "rank": 0}, "rank must be an integer of at least 1, got 0"),
        ((5, 1), {"encoder": "flow"}, "dim must be at least 2, got 1"),
        ((5, 1), {"prior": "flow"}, "dim of at least 2, got 1"),
        ((5, 2), {"network": "conv"}, r"of data_dim=5 numbers, got None"),
        ((16, 2), {"network": "conv", "image_shape": (1, 4, 5)}, r"of data_dim=16 numbers, got \(1, 4, 5\)"),
        ((9, 2), {"network": "conv"}, "height and width divisible by 4, got 3 x 3"),
        ((5, 2), {"decoder": "bernoulli", "noise": "shared"}, "do not go together: a Bernoulli has no noise"),
    ],
)
def test_what_build_vae_refuses(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_vae(*arguments, **options)


@pytest.mark.parametrize("decoder", ["gaussian", "bernoulli", "student-t"])
@pytest.mark.parametrize("noise", ["shared", "heteroscedastic"])
def test_convolutional_networks_take_flat_rows(decoder: str, noise: str) -> None:
    options = {"network": "conv", "channels": (3, 4), "hidden": (6,), "activation": "tanh", "seed": 0}
    vae = build_vae(64, 2, decoder=decoder, noise=None if decoder == "bernoulli" else noise, **options)
    x = (torch.randn(7, 64) > 0).float()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    assert all((p != before[name]).any() for name, p in vae.named_parameters())
    assert vae.decoder(torch.zeros(7, 2)).event_shape == (64,)
    vae.end_epoch(x)


def test_convolutional_networks_see_the_image_that_the_row_is() -> None:
    vae = build_vae(24, 2, network="conv", image_shape=(1, 4, 6), channels=(3,), hidden=(), seed=0)
    x = torch.randn(5, 24)
    assert torch.equal(vae.encoder.net(x), vae.encoder.net[1:](x.reshape(5, 1, 4, 6)))
    image = vae.decoder.net[:-1](torch.ones(5, 2))
    assert image.shape == (5, 1, 4, 6)
    assert torch.equal(vae.decoder(torch.ones(5, 2)).mean, image.reshape(5, 24))
    assert build_vae(**json.loads(json.dumps(vae.config))).config == vae.config


@pytest.mark.parametrize("noise", ["shared", "per-dimension", "heteroscedastic", "optimal"])
def test_images_of_their_own_shape(noise: str) -> None:
    shape = (1, 8, 8)
    out = (2, 8, 8) if noise == "heteroscedastic" else shape
    decoder = GaussianDecoder(conv_decoder(2, out, (4, 3)), noise, event_shape=shape)
    vae, x = (
        VAE(StandardNormal(2), decoder, DiagonalGaussian(conv_encoder(4, shape, (3, 4)))),
        torch.randn(6, *shape),
    )
    result = fit(vae.model, vae.guide, x, max_epochs=3)
    assert torch.isfinite(torch.tensor(result.history["elbo"])).all()
    assert Target(vae.model, vae.guide, x).simulate(2).data[0].shape == (2, *shape)


@pytest.mark.parametrize("network", ["mlp", "residual"])
def test_networks_by_name(network: str) -> None:
    vae = build_vae(5, 2, hidden=(6, 7), network=network, seed=0)
    assert sum(type(m).__name__ == "Residual" for m in vae.modules()) == (4 if network == "residual" else 0)


@pytest.mark.parametrize("method", ["model", "fit", "target"])
def test_data_that_are_not_binary_are_refused_by_a_bernoulli_vae(method: str) -> None:
    vae, x = build_vae(5, 2, decoder="bernoulli", seed=0), torch.rand(6, 5)
    run = {
        "model": lambda: vae.model(x),
        "fit": lambda: fit(vae.model, vae.guide, x, max_epochs=1),
        "target": lambda: Target(vae.model, vae.guide, x),
    }
    with pytest.raises(ValueError, match=r"wants data of 0 and 1, got 0\.\d+ in row 0; binarize"):
        run[method]()
    by_hand = VAE(StandardNormal(2), BernoulliDecoder(nn.Linear(2, 5)), DiagonalGaussian(nn.Linear(5, 4)))
    by_hand.model((x > 0.5).float())


def test_pseudo_inputs_start_as_different_rows_of_the_data() -> None:
    x = torch.randn(30, 5, dtype=torch.float64)
    vae = build_vae(5, 2, prior="vamp", pseudo_inputs=20, data=x, seed=0)
    start = vae.prior.pseudo_inputs.detach()
    matches = (start[:, None] == x.float()).all(-1)
    assert start.dtype == torch.float32
    assert (matches.sum(1) == 1).all()
    assert matches.sum(0).max() == 1
    rebuilt = build_vae(**vae.config)
    assert rebuilt.prior.pseudo_inputs.shape == (20, 5)
    assert "data" not in vae.config
    for bad in (x[:10], x[:, :4]):
        with pytest.raises(ValueError, match=r"pseudo_inputs=20 of data_dim=5 want data of as many rows"):
            build_vae(5, 2, prior="vamp", pseudo_inputs=20, data=bad)


def test_a_vamp_vae_trains_its_encoder_once_and_saves_it_once() -> None:
    vae, x = build_vae(5, 2, prior="vamp", pseudo_inputs=3, hidden=(4,), seed=0), torch.randn(8, 5)
    names = [name for name, _ in vae.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len({id(p) for p in vae.parameters()})
    assert not any(name.startswith("prior.") and "pseudo" not in name for name in vae.state_dict())
    lone = build_vae(5, 2, prior="vamp", pseudo_inputs=3, hidden=(4,), seed=0)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    for name, p in vae.named_parameters():  # one step of Adam moves by lr, not by twice that
        assert (p - lone.get_parameter(name)).abs().max() < 1.01e-2


def ppca_maximum(x: torch.Tensor, latent_dim: int) -> tuple[float, torch.Tensor]:
    """Largest mean log p(x) of probabilistic PCA, and its principal axes (Tipping & Bishop 1999)."""
    n, width = x.shape
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.mT @ centred / n)
    noise = values[:-latent_dim].mean()
    log_det = values[-latent_dim:].log().sum() + (width - latent_dim) * noise.log()
    return -0.5 * (width * math.log(2 * math.pi) + log_det + width).item(), vectors[:, -latent_dim:]


def linear_answers(vae: VAE, x: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """Mean log p(x) and mean ELBO of a linear VAE, both exact, and the decoder's principal axes."""
    with torch.no_grad():
        evidence, posterior, q = vae.decoder.log_evidence(x), vae.decoder.posterior(x), vae.encoder(x)
        q = dist.MultivariateNormal(q.mean, scale_tril=getattr(q, "scale_tril", torch.diag_embed(q.stddev)))
        exact = dist.MultivariateNormal(posterior.loc, scale_tril=posterior.scale_tril.expand(len(x), -1, -1))
        kl = torch.distributions.kl_divergence(q, exact)
        return (
            evidence.mean().item(),
            (evidence - kl).mean().item(),
            torch.linalg.qr(vae.decoder.net.weight).Q,
        )


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "noise"), [("diagonal", "shared"), ("full", "optimal")])
def test_the_linear_vae_reaches_probabilistic_pca(encoder: str, noise: str) -> None:
    x = linear_gaussian(500, data_dim=8, latent_dim=3, scale=0.6, seed=2).x
    best, axes = ppca_maximum(x, 3)
    vae = build_vae(8, 3, hidden=(), decoder="linear", encoder=encoder, noise=noise, seed=0)
    for lr, epochs in ((3e-2, 600), (3e-3, 300), (3e-4, 150)):
        fit(vae.model, vae.guide, x.float(), lr=lr, batch_size=500, max_epochs=epochs, num_particles=4)
    evidence, elbo, found = linear_answers(vae.double(), x)
    degrees = torch.rad2deg(torch.linalg.svdvals(axes.mT @ found).clamp(max=1).acos())
    assert best - 0.01 < elbo < evidence <= best + 1e-9
    assert degrees.max() < 1
    assert ppca_maximum(x, 2)[0] < best - 0.02  # one component fewer would be seen


def clusters(count: int, seed: int) -> torch.Tensor:
    """Five clusters on a cross in two dimensions, seen through a linear map into eight."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3.0 * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    weight = 0.5 * torch.randn(2, 8, generator=torch.Generator().manual_seed(99))
    z = centres[torch.randint(5, (count,), generator=generator)] + 0.25 * torch.randn(
        count, 2, generator=generator
    )
    return z @ weight + 0.3 * torch.randn(count, 8, generator=generator)


@pytest.mark.slow
def test_richer_priors_beat_the_standard_normal_on_held_out_data_of_a_mixture() -> None:
    train, test = clusters(1000, 0), clusters(500, 1)
    options = {"hidden": (32,), "activation": "tanh", "scale": 0.5, "components": 8, "pseudo_inputs": 20}
    value = {}
    for prior in ("standard", "mixture", "vamp", "flow", "spline"):
        vae = build_vae(8, 2, prior=prior, data=train, seed=0, **options)
        fit(vae.model, vae.guide, train, lr=5e-3, batch_size=100, max_epochs=60)
        value[prior] = log_evidence(Target(vae.model, vae.guide, test), "iwae", num_samples=300).value
    for prior in ("mixture", "vamp", "flow", "spline"):
        gain = value[prior] - value["standard"]
        assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5
        assert gain.mean() > 0.3
