from collections.abc import Callable

import pytest
import torch
from chance import means_agree
from torch import Tensor, nn

from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import (
    DiagonalGaussian,
    FlowGaussian,
    FullGaussian,
    GaussianMixtureEncoder,
    LaplaceEncoder,
    LowRankGaussian,
)
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import VAE
from pyrovae.target import Target
from pyrovae.training.fit import fit

F64 = torch.float64


class Cut(nn.Module):
    """Returns its input in two parts, or whatever `change` makes of them."""

    def __init__(self, where: int, change=lambda loc, rest: (loc, rest)) -> None:
        super().__init__()
        self.where = where
        self.change = change

    def forward(self, x: Tensor):
        return self.change(x[..., : self.where], x[..., self.where :])


def laplace(dim: int) -> LaplaceEncoder:
    decoder = GaussianDecoder(nn.Sequential(nn.Linear(dim, 6), nn.Tanh(), nn.Linear(6, 5)), scale=0.7)
    return LaplaceEncoder(StandardNormal(dim), decoder, DiagonalGaussian(nn.Linear(5, 2 * dim)), num_steps=3)


FAMILIES: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "diagonal": lambda net, dim: DiagonalGaussian(net),
    "full": lambda net, dim: FullGaussian(net),
    "low rank": lambda net, dim: LowRankGaussian(net, 2),
    "flow": lambda net, dim: FlowGaussian(net, dim, hidden=(8,)),
    "mixture": lambda net, dim: GaussianMixtureEncoder(net, 3),
}
WIDTHS: dict[str, Callable[[int], int]] = {
    "diagonal": DiagonalGaussian.width,
    "full": FullGaussian.width,
    "low rank": lambda dim: LowRankGaussian.width(dim, 2),
    "flow": FlowGaussian.width,
    "mixture": lambda dim: GaussianMixtureEncoder.width(dim, 3),
}
EVERY = [*FAMILIES, "laplace"]
SETTINGS = [(name, dim) for name in EVERY for dim in (1, 2) if (name, dim) != ("flow", 1)]


def make(name: str, dim: int = 2, seed: int = 0) -> nn.Module:
    """An encoder of data of 5 values, in float64."""
    torch.manual_seed(seed)
    if name == "laplace":
        return laplace(dim).double()
    return FAMILIES[name](nn.Linear(5, WIDTHS[name](dim)), dim).double()


def bare(name: str, dim: int = 2) -> nn.Module:
    """The same without a network: x is what a network would put out, or the data of a Laplace encoder."""
    torch.manual_seed(0)
    return laplace(dim).double() if name == "laplace" else FAMILIES[name](nn.Identity(), dim).double()


def outputs(name: str, dim: int = 2, rows: int = 1, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = 5 if name == "laplace" else WIDTHS[name](dim)
    return 0.7 * torch.randn(rows, width, generator=generator, dtype=F64)


def grid(dim: int) -> tuple[Tensor, float]:
    """Points `[g, 1, dim]` that cover the densities at hand, and the volume of a cell."""
    line = torch.linspace(-14, 14, 4001 if dim == 1 else 561, dtype=F64)
    axes = torch.meshgrid(*[line] * dim, indexing="ij")
    return torch.stack([a.flatten() for a in axes], -1).unsqueeze(1), float(line[1] - line[0]) ** dim


def bounded_statistics(z: Tensor) -> Tensor:
    """Bounded functions of z `[..., dim]`: first and second moments, squashed."""
    products = torch.einsum("...i,...j->...ij", z, z).flatten(-2)
    return torch.cat([torch.tanh(z), torch.tanh(products)], -1)


@pytest.mark.parametrize("batch", [(), (3,), (4, 3)])
@pytest.mark.parametrize("name", EVERY)
def test_shapes(name: str, batch: tuple[int, ...]) -> None:
    q = make(name)(torch.randn(*batch, 5, dtype=F64))
    assert (q.batch_shape, q.event_shape) == (batch, (2,))
    assert q.has_rsample
    assert q.log_prob(q.rsample()).shape == batch
    assert q.rsample((7,)).shape == (7, *batch, 2)
    assert q.expand((2, *batch)).rsample().shape == (2, *batch, 2)


@pytest.mark.parametrize(("name", "dim"), SETTINGS)
def test_density_integrates_to_one(name: str, dim: int) -> None:
    points, cell = grid(dim)
    q = bare(name, dim)(outputs(name, dim))
    assert (q.log_prob(points).exp().sum().item() * cell) == pytest.approx(1, abs=1e-6)


def draws_agree_with_density(name: str, dim: int, stretch: float = 1.0) -> bool:
    points, cell = grid(dim)
    q = bare(name, dim)(outputs(name, dim))
    expected = (q.log_prob(points).exp().unsqueeze(-1) * bounded_statistics(points)).sum((0, 1)) * cell
    torch.manual_seed(0)
    return means_agree(bounded_statistics(stretch * q.sample((40_000,))).flatten(0, 1), expected)


@pytest.mark.parametrize(("name", "dim"), SETTINGS)
def test_draws_agree_with_the_density(name: str, dim: int) -> None:
    assert draws_agree_with_density(name, dim)
    assert not draws_agree_with_density(name, dim, stretch=1.1)


def gradient_is_that_of_the_expectation(encoder: nn.Module, x: Tensor, dim: int) -> bool:
    """Row-wise gradients of one draw each, in everything that a network puts out, against those by quadrature."""
    points, cell = grid(dim)
    leaf = x.clone().requires_grad_()
    density = encoder(leaf).log_prob(points).exp()
    expectation = (density * bounded_statistics(points).sum(-1)).sum() * cell
    (expected,) = torch.autograd.grad(expectation, leaf)
    tiled = x.repeat(20_000, 1).requires_grad_()
    torch.manual_seed(0)
    value = bounded_statistics(encoder(tiled).rsample()).sum()
    (draws,) = torch.autograd.grad(value, tiled)
    return means_agree(draws, expected[0])


@pytest.mark.parametrize(("name", "dim"), SETTINGS)
def test_the_pathwise_gradient_is_that_of_the_expectation(name: str, dim: int) -> None:
    assert gradient_is_that_of_the_expectation(bare(name, dim), outputs(name, dim), dim)


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_independent(name: str) -> None:
    encoder, x, z = make(name), torch.randn(4, 5, dtype=F64), torch.randn(4, 2, dtype=F64)
    alone = torch.cat(
        [encoder(row).log_prob(value) for row, value in zip(x.split(1), z.split(1), strict=True)]
    )
    assert torch.allclose(encoder(x).log_prob(z), alone, atol=1e-10)
    assert torch.allclose(encoder(x.repeat(3, 1)).log_prob(z.repeat(3, 1)), alone.repeat(3), atol=1e-10)
    assert torch.allclose(encoder(x.flip(0)).log_prob(z.flip(0)), alone.flip(0), atol=1e-10)


@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    encoder = make(name)
    q = encoder(torch.randn(3, 5, dtype=F64))
    z = q.rsample()
    (z.pow(3).sum() - q.log_prob(torch.randn(3, 2, dtype=F64)).sum()).backward()
    without = [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_state_round_trip(name: str) -> None:
    one, two, x = make(name), make(name, seed=1), torch.randn(3, 5, dtype=F64)
    z = torch.randn(3, 2, dtype=F64)
    assert not torch.equal(one(x).log_prob(z), two(x).log_prob(z))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x).log_prob(z), two(x).log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", EVERY)
def test_dtype_follows_the_module(name: str, dtype: torch.dtype) -> None:
    q = make(name).to(dtype)(torch.randn(3, 5, dtype=dtype))
    z = q.rsample()
    assert z.dtype == q.log_prob(z.detach().clone()).dtype == dtype


@pytest.mark.parametrize("name", FAMILIES)
def test_one_tensor_and_a_pair_mean_the_same(name: str) -> None:
    x, z = outputs(name, rows=3), torch.randn(3, 2, dtype=F64)
    encoder = bare(name)
    one = encoder(x).log_prob(z)
    encoder.net = Cut(6 if name == "mixture" else 2)
    assert torch.equal(encoder(x).log_prob(z), one)


@pytest.mark.parametrize("raw", [-1e30, -200.0, 200.0, 1e30])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_finite_output_breaks_a_density_or_its_gradient(name: str, raw: float) -> None:
    """Everything but the means at an extreme, in float32."""
    encoder = bare(name).float()
    means = 6 if name == "mixture" else 2
    x = torch.full((1, WIDTHS[name](2)), raw)
    x[:, :means] = torch.arange(means)
    x.requires_grad_()
    torch.manual_seed(0)
    q = encoder(x)
    z = q.rsample()
    log_q = q.log_prob(z.detach().clone())
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_q).all()
    (gradient,) = torch.autograd.grad(z.sum() + log_q.sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", EVERY)
def test_each_makes_a_target_before_and_after_training(name: str) -> None:
    torch.manual_seed(0)
    if name == "laplace":
        encoder = laplace(3)
        prior, decoder = encoder.prior, encoder.decoder
    else:
        prior, decoder = StandardNormal(3), GaussianDecoder(nn.Linear(3, 5))
        encoder = FAMILIES[name](nn.Linear(5, WIDTHS[name](3)), 3)
    vae, x = VAE(prior, decoder, encoder), torch.randn(64, 3) @ torch.randn(3, 5)
    assert Target(vae.model, vae.guide, x[:8]).can_score_guide
    history = fit(vae.model, vae.guide, x, lr=0.02, max_epochs=15, batch_size=16).history["elbo"]
    assert history[-1] > history[0]
    assert Target(vae.model, vae.guide, x[:8]).can_score_guide


@pytest.mark.parametrize("name", FAMILIES)
def test_a_width_that_no_dimension_explains_is_refused(name: str) -> None:
    width = WIDTHS[name](2) + 1
    with pytest.raises(ValueError, match=r"must return a last axis of .*got .*\(3, \d+\)"):
        bare(name)(torch.randn(3, width, dtype=F64))


@pytest.mark.parametrize("name", ["full", "low rank", "flow", "mixture"])
def test_a_pair_cut_elsewhere_is_refused(name: str) -> None:
    encoder = bare(name)
    encoder.net = Cut(1)
    with pytest.raises(ValueError, match=r"a pair of widths \d+ and \d+"):
        encoder(outputs(name))
    encoder.net = Cut(1, lambda a, b: "loc")
    with pytest.raises(TypeError, match=r"one tensor or a pair.*got str"):
        encoder(outputs(name))
