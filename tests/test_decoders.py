import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.models import decoders
from pyrovae.models.decoders import BernoulliDecoder, GaussianDecoder, ScaleFloorWarning, StudentTDecoder


class Image(nn.Module):
    """A convolutional net, which takes exactly one leading axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 1, kernel_size=4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.up(z.reshape(-1, 2, 1, 1))


@pytest.mark.parametrize("batch", [(), (3,), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize(("net", "event"), [(nn.Linear(2, 5), (5,)), (Image(), (1, 4, 4))])
@pytest.mark.parametrize("noise", ["fixed", "shared"])
def test_any_batch_shape_and_any_event_shape(batch: tuple, net: nn.Module, event: tuple, noise: str) -> None:
    z = torch.randn(*batch, 2)
    p = GaussianDecoder(net, noise=noise)(z)
    assert (p.batch_shape, p.event_shape) == (batch, event)
    assert p.log_prob(p.sample()).shape == batch


def test_scalar_data_have_no_event_axis() -> None:
    p = GaussianDecoder(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))(torch.zeros(3, 2))
    assert (p.batch_shape, p.event_shape) == ((3,), ())


def test_rows_do_not_depend_on_the_batch_shape() -> None:
    decoder, z = GaussianDecoder(Image()), torch.randn(4, 3, 2)
    assert torch.equal(decoder(z).mean.flatten(0, 1), decoder(z.flatten(0, 1)).mean)


def integral(decoder: GaussianDecoder) -> float:
    grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    p = decoder(torch.zeros(len(grid), 2, dtype=torch.float64))
    return torch.trapezoid(p.log_prob(grid[:, None]).exp(), grid).item()


@pytest.mark.parametrize("noise", ["fixed", "shared"])
def test_density_integrates_to_one(noise: str) -> None:
    assert integral(GaussianDecoder(nn.Linear(2, 1), noise, scale=0.3).double()) == pytest.approx(1, abs=1e-9)


def test_a_likelihood_without_its_normalizer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unnormalized(dist.Normal):
        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return super().log_prob(value) + self.scale.log()

    monkeypatch.setattr(decoders.dist, "Normal", Unnormalized)
    assert abs(integral(GaussianDecoder(nn.Linear(2, 1), "fixed", scale=0.3).double()) - 1) > 0.5


def test_scale_is_what_was_asked_for() -> None:
    for noise in ("fixed", "shared"):
        decoder = GaussianDecoder(nn.Linear(2, 3), noise, scale=0.02, min_scale=1e-2).double()
        assert decoder(torch.zeros(4, 2).double()).stddev.unique().item() == pytest.approx(0.02, rel=1e-6)


def test_only_the_shared_scale_is_trained() -> None:
    names = {
        n: {k for k, _ in GaussianDecoder(nn.Identity(), n).named_parameters()} for n in ("fixed", "shared")
    }
    assert names == {"fixed": set(), "shared": {"noise.log_scale"}}


def test_a_gradient_reaches_every_parameter() -> None:
    decoder = GaussianDecoder(nn.Linear(2, 3))
    decoder(torch.randn(4, 2)).log_prob(torch.randn(4, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())


def test_the_learned_scale_never_passes_its_floor_and_can_come_back() -> None:
    decoder = GaussianDecoder(nn.Identity(), min_scale=0.1)
    with torch.no_grad():
        decoder.noise.log_scale.fill_(-4.0)
    assert decoder.noise().item() == pytest.approx(math.hypot(0.1, math.exp(-4)), rel=1e-6)
    decoder(torch.zeros(9, 2)).log_prob(torch.ones(9, 2)).sum().backward()
    assert decoder.noise.log_scale.grad is not None
    assert decoder.noise.log_scale.grad > 1  # the likelihood rises with sigma, and the gradient says so


def test_the_floor_is_reported_once_for_each_module() -> None:
    decoder = GaussianDecoder(nn.Identity(), min_scale=0.1)
    decoder.end_epoch()
    with torch.no_grad():
        decoder.noise.log_scale.fill_(-2.5)
    with pytest.warns(ScaleFloorWarning, match=r"fallen to its floor min_scale=0\.1.*Dequantize"):
        decoder.end_epoch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder.end_epoch()
        GaussianDecoder(nn.Identity(), "fixed").end_epoch()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "free"}, "noise must be one of fixed, .*, shared, got 'free'"),
        ({"scale": 0.0}, r"scale must be positive and finite, got 0\.0"),
        ({"scale": math.nan, "noise": "fixed"}, "scale must be positive and finite, got nan"),
        ({"min_scale": -1.0}, r"min_scale must be positive and finite, got -1\.0"),
        ({"scale": 0.1, "min_scale": 0.1}, r"must be above its floor min_scale=0\.1, got 0\.1"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianDecoder(nn.Identity(), **options)


def test_a_net_that_mixes_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one row for each row of z, got shape \(2, 3\) for 3 rows"):
        GaussianDecoder(Transposed())(torch.zeros(3, 2))


class Transposed(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.mT


class Pair(nn.Module):
    def __init__(self, net: nn.Module, axis: int) -> None:
        super().__init__()
        self.net, self.axis = net, axis

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loc, log_variance = self.net(z).chunk(2, self.axis)
        return loc, log_variance


@pytest.mark.parametrize("batch", [(), (3,), (2, 4, 3)])
@pytest.mark.parametrize(
    ("net", "event"),
    [(nn.Linear(2, 10), (5,)), (nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (2, 2, 3))), (1, 2, 3))],
)
@pytest.mark.parametrize("make", [GaussianDecoder, StudentTDecoder])
def test_a_net_may_give_loc_and_log_variance_as_one_tensor_or_two(make, net, event, batch) -> None:
    z = torch.randn(*batch, 2)
    one, two = (make(n, noise="heteroscedastic", min_scale=1e-6)(z) for n in (net, Pair(net, 1)))
    loc, log_variance = net(z.reshape(-1, 2)).chunk(2, 1)
    for p in (one, two):
        assert (p.batch_shape, p.event_shape) == (batch, event)
        assert torch.equal(p.base_dist.loc, loc.reshape(batch + event))
        torch.testing.assert_close(p.base_dist.scale, (log_variance / 2).exp().reshape(batch + event))


def test_a_pair_needs_heteroscedastic_noise_and_it_needs_a_pair() -> None:
    z = torch.zeros(3, 2)
    with pytest.raises(TypeError, match=r"must return one tensor, got 2;.*use noise='heteroscedastic'"):
        GaussianDecoder(Pair(nn.Linear(2, 10), 1))(z)
    with pytest.raises(ValueError, match=r"must return \(loc, log_variance\) of one shape.*got \(3, 5\)"):
        GaussianDecoder(nn.Linear(2, 5), "heteroscedastic")(z)
    with pytest.raises(TypeError, match="one tensor or a pair of them, got str"):
        GaussianDecoder(Text())(z)
    with pytest.raises(TypeError, match="one tensor of logits, got 2"):
        BernoulliDecoder(Pair(nn.Linear(2, 10), 1))(z)


class Text(nn.Module):
    def forward(self, z: torch.Tensor) -> str:
        return "loc"


@pytest.mark.parametrize(
    ("net", "event"), [(nn.Linear(2, 5), (5,)), (Image(), (1, 4, 4)), (nn.Sequential(nn.Linear(2, 1)), (1,))]
)
def test_per_dimension_noise_has_the_shape_of_a_datum(net: nn.Module, event: tuple) -> None:
    decoder = GaussianDecoder(net, "per-dimension", scale=0.5, event_shape=event)
    assert decoder.noise().shape == event
    x = torch.randn(3, *event)
    decoder(torch.randn(3, 2)).log_prob(x).sum().backward()
    assert (decoder.noise.log_scale.grad != 0).all()


def test_per_dimension_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"built for data of shape \[4\], and its net returns \[5\]; pass event"
    ):
        GaussianDecoder(nn.Linear(2, 5), "per-dimension", event_shape=(4,))(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"wants the shape of one datum, got event_shape=\(\)"):
        GaussianDecoder(nn.Linear(2, 5), "per-dimension")


@pytest.mark.parametrize("df", [0.0, -1.0, math.inf, math.nan])
def test_degrees_of_freedom_are_checked(df: float) -> None:
    with pytest.raises(ValueError, match=r"df must be positive and finite, got .*use GaussianDecoder"):
        StudentTDecoder(nn.Linear(2, 5), df)


def test_student_t_has_heavier_tails_and_the_gaussian_as_its_limit() -> None:
    net, z, x = nn.Linear(2, 5).double(), torch.randn(3, 2).double(), torch.randn(3, 5).double()
    near, far = (StudentTDecoder(net, df, "fixed").double()(z) for df in (1e7, 3.0))
    gaussian = GaussianDecoder(net, "fixed").double()(z)
    torch.testing.assert_close(near.log_prob(x), gaussian.log_prob(x), rtol=1e-5, atol=1e-5)
    assert (far.log_prob(x + 30) > gaussian.log_prob(x + 30) + 100).all()
    with pytest.raises(ValueError, match="closed form of the Gaussian likelihood.*use noise='shared'"):
        StudentTDecoder(net, noise="optimal")


def test_bernoulli_takes_zeros_and_ones_and_refuses_the_rest() -> None:
    decoder, x = BernoulliDecoder(nn.Linear(2, 5)), (torch.randn(3, 5) > 0).float()
    p = decoder(torch.zeros(3, 2))
    torch.testing.assert_close(p.base_dist.logits, decoder.net.bias.expand(3, 5))
    decoder.check_data(x)
    x[1, 2] = 0.25
    with pytest.raises(ValueError, match=r"wants data of 0 and 1, got 0\.25 in row 1; binarize.*bernoulli"):
        decoder.check_data(x)
    x[1, 2] = math.nan
    with pytest.raises(ValueError, match="got nan in row 1"):
        decoder.check_data(x)


def test_bernoulli_does_not_look_at_values_in_a_vectorized_program() -> None:
    decoder, x = BernoulliDecoder(nn.Linear(2, 5)), torch.zeros(4, 3, 5)

    def log_prob(block: torch.Tensor) -> torch.Tensor:
        decoder.check_data(block)
        return decoder.net.bias.sum() + block.sum()

    assert torch.func.vmap(log_prob)(x).shape == (4,)
