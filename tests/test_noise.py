import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from pyrovae.models.decoders import GaussianDecoder, StudentTDecoder
from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.noise import (
    NOISES,
    HeteroscedasticNoise,
    OptimalNoise,
    PerDimensionNoise,
    ScaleFloorWarning,
)
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE, build_vae
from pyrovae.training.fit import fit


def blocks(*residuals: Tensor) -> list[tuple[Tensor, Tensor, None]]:
    return [(r, torch.zeros_like(r), None) for r in residuals]


def test_optimal_noise_is_its_closed_form_whatever_the_blocks() -> None:
    r, noise = torch.randn(100, 3), OptimalNoise(1.0)
    before = noise.scale
    for parts in ([r], r.split(7)):
        noise.update(blocks(*parts))
        assert noise().item() == pytest.approx(r.double().square().mean().sqrt().item(), rel=1e-6)
    assert noise.scale is before  # in place: what was compiled or noted keeps seeing it
    assert list(noise.parameters()) == []


def test_optimal_noise_of_a_vae_is_the_mean_squared_residual_at_draws_of_the_guide() -> None:
    vae, x = build_vae(5, 2, hidden=(6,), noise="optimal", seed=0).double(), torch.randn(9000, 5).double()
    torch.manual_seed(0)
    vae.end_epoch(x)
    torch.manual_seed(0)
    with torch.no_grad():
        z = torch.cat([vae.encoder(block).sample() for block in x.split(4096)])
        expected = (x - vae.decoder(z).mean).square().mean().sqrt()
    assert vae.decoder.noise().item() == pytest.approx(expected.item(), rel=1e-12)


def test_optimal_noise_of_a_linear_vae_is_the_exact_expectation() -> None:
    """E_q |x - Wz - b|^2 = |x - W m - b|^2 + tr(W diag(s^2) W'), against draws on 100,000 copies of the data."""
    vae, x = build_vae(5, 2, hidden=(), noise="optimal", seed=0).double(), torch.randn(20, 5).double()
    with torch.no_grad():
        q, weight = vae.encoder(x), vae.decoder.net[0].weight
        squares = (x - vae.decoder(q.mean).mean).square().sum(1) + q.variance @ weight.square().sum(0)
        torch.manual_seed(0)
        vae.end_epoch(x.repeat(5000, 1))
        per_datum = (x - vae.decoder(q.sample((5000,))).mean).square().sum(-1)
    error = per_datum.std(0).square().mean().sqrt() / math.sqrt(5000 * 20) / 5
    assert abs(vae.decoder.noise().item() ** 2 - squares.mean().item() / 5) < 5 * error
    assert abs(vae.decoder.noise().item() - squares.mean().item() / 5) > 5 * error  # planted: no square root


def test_optimal_noise_is_not_trained_and_is_saved() -> None:
    vae, x = build_vae(5, 2, hidden=(6,), noise="optimal", scale=3.0, seed=0), torch.randn(40, 5)
    assert vae.decoder.noise().item() == 3.0
    fit(vae.model, vae.guide, x, max_epochs=3, lr=1e-2)
    assert 0.3 < vae.decoder.noise().item() < 1.5
    assert "decoder.noise.scale" in vae.state_dict()


def test_the_best_epoch_brings_back_its_optimal_noise() -> None:
    vae, x = build_vae(5, 2, hidden=(6,), noise="optimal", scale=3.0, seed=0), torch.randn(40, 5)
    seen: list[float] = []
    result = fit(
        vae.model,
        vae.guide,
        x[:20],
        val_data=x[20:],
        max_epochs=60,
        lr=0.05,
        progress=lambda *_: seen.append(vae.decoder.noise().item()),
    )
    assert result.best_epoch < 59
    assert vae.decoder.noise().item() == seen[result.best_epoch] != seen[-1]


def test_memory_is_bounded_by_blocks() -> None:
    sizes: list[int] = []

    class Encoder(DiagonalGaussian):
        def forward(self, x: Tensor):
            sizes.append(len(x))
            return super().forward(x)

    decoder = GaussianDecoder(nn.Linear(2, 5000), noise="optimal")
    vae = VAE(StandardNormal(2), decoder, Encoder(nn.Linear(5000, 4)))
    sizes.clear()
    vae.end_epoch(torch.zeros(2000, 5000))
    assert max(sizes) == 2**22 // 5000
    assert sum(sizes) == 2000


def test_the_other_noises_ask_for_no_draws() -> None:
    def draws():
        raise AssertionError("drawn")
        yield

    for noise in ("fixed", "shared", "per-dimension"):
        GaussianDecoder(nn.Linear(2, 5), noise, event_shape=(5,)).update_noise(draws())


def test_heteroscedastic_noise() -> None:
    noise = HeteroscedasticNoise(0.5, min_scale=0.1).double()
    log_variance = torch.tensor([[-80.0, 0.0, 2.0, 1e9]], dtype=torch.float64)
    free = [0.0, 0.5, 0.5 * math.e, 0.5 * math.exp(15)]
    assert noise(log_variance)[0].tolist() == pytest.approx([math.hypot(f, 0.1) for f in free], rel=1e-6)


def test_heteroscedastic_noise_reports_its_floor_once() -> None:
    noise, x = HeteroscedasticNoise(1.0, min_scale=0.1), torch.zeros(4, 2)
    fine, one_row = torch.zeros(4, 2), torch.zeros(4, 2)
    one_row[0, 0] = -20.0
    noise.update([(x, x, fine)])
    noise.update([(x, x, one_row)])
    column = torch.zeros(4, 2)
    column[:, 1] = -20.0
    with pytest.warns(ScaleFloorWarning, match=r"min_scale=0\.1"):
        noise.update([(x, x, column)])
    noise.update([(x, x, column)])


def test_per_dimension_noise_reports_its_floor_once() -> None:
    noise = PerDimensionNoise(1.0, 0.1, (3,))
    noise.end_epoch()
    with torch.no_grad():
        noise.log_scale[1] = -3.0
    with pytest.warns(ScaleFloorWarning, match=r"min_scale=0\.1"):
        noise.end_epoch()
    noise.end_epoch()


def test_optimal_noise_stops_at_its_floor_and_reports_it_once() -> None:
    noise = OptimalNoise(1.0, 0.1)
    with pytest.warns(ScaleFloorWarning, match=r"min_scale=0\.1"):
        noise.update(blocks(torch.full((3, 2), 0.01)))
    assert noise().item() == pytest.approx(0.1)
    noise.update(blocks(torch.full((3, 2), 0.01)))


@pytest.mark.parametrize("noise", ["per-dimension", "heteroscedastic", "optimal"])
def test_a_collapsing_scale_is_reported_by_fit(noise: str) -> None:
    vae = build_vae(5, 2, hidden=(6,), noise=noise, min_scale=0.6, seed=0)
    with pytest.warns(ScaleFloorWarning):
        fit(vae.model, vae.guide, torch.zeros(40, 5), max_epochs=100, lr=0.05)


@pytest.mark.parametrize("noise", NOISES)
def test_scales_start_where_they_were_asked_to(noise: str) -> None:
    net = nn.Linear(2, 6 if noise == "heteroscedastic" else 3)
    for p in net.parameters():
        nn.init.zeros_(p)
    for make in (GaussianDecoder, StudentTDecoder):
        if make is StudentTDecoder and noise == "optimal":
            continue
        decoder = make(net, noise=noise, scale=0.3, min_scale=0.01, event_shape=(3,))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            decoder.end_epoch()
        assert decoder(torch.zeros(4, 2)).base_dist.scale.unique().tolist() == pytest.approx([0.3], rel=2e-3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("per-dimension", (1.0, 0.1, ()), r"wants the shape of one datum, got event_shape=\(\); pass"),
        ("heteroscedastic", (0.0, 0.1, ()), r"scale must be positive and finite, got 0\.0"),
        ("optimal", (0.1, 0.1, ()), r"must be above its floor min_scale=0\.1, got 0\.1"),
        ("heteroscedastic", (0.1, 0.2, ()), "must be above its floor"),
    ],
)
def test_what_is_refused(name: str, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NOISES[name](*arguments)
