"""Quadrature against exact integrals, with an error that covers the true one even at kinks."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate as scipy_integrate

from pyrovae.inference import quadrature
from pyrovae.inference.quadrature import integrate

F64 = torch.float64
LOG_ROOT = 0.5 * math.log(2 * math.pi)


def box(num_data: int, dim: int, half_width: float = 6.0) -> tuple[torch.Tensor, torch.Tensor]:
    high = torch.full((num_data, dim), half_width, dtype=F64)
    return -high, high


def covers(result: quadrature.Quadrature, truth: torch.Tensor | float) -> bool:
    """Whether the error estimate is no less than the true error, for every datum."""
    return bool(((result.log_integral - truth).abs() <= result.error).all())


@pytest.mark.parametrize("sd", [1e-3, 0.1, 1.0, 30.0])
def test_gaussians_of_any_width_on_the_line(sd):
    mean = torch.tensor([0.0, 1.234, -3.3], dtype=F64)
    result = integrate(lambda z: -0.5 * ((z[..., 0] - mean) / sd).square() - 2000.0, *box(3, 1))
    truth = math.log(sd) + LOG_ROOT - 2000.0
    assert result.is_converged.all()
    assert (result.log_integral - truth).abs().max() < 1e-10
    assert covers(result, truth)
    assert result.num_evaluations < 1000


@pytest.mark.parametrize("sd", [1e-3, 1.0])
@pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
def test_correlated_gaussians_in_the_plane(rho, sd):
    cov = sd**2 * torch.tensor([[1.0, rho], [rho, 1.0]], dtype=F64)
    precision = torch.linalg.inv(cov)
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0], [3.3, 2.1]], dtype=F64)
    result = integrate(lambda z: -0.5 * (((z - mean) @ precision) * (z - mean)).sum(-1), *box(3, 2))
    truth = 2 * LOG_ROOT + 0.5 * torch.logdet(cov)
    assert result.is_converged.all()
    assert (result.log_integral - truth).abs().max() < 1e-9
    assert covers(result, truth)


@pytest.mark.parametrize(("dim", "sd", "distance"), [(1, 1.0, 10.0), (1, 1e-3, 5.0), (2, 0.3, 8.0)])
def test_both_of_two_far_modes(dim, sd, distance):
    at = distance * torch.tensor([1.0, -0.37, 0.618], dtype=F64)[:, None]

    def log_density(z: torch.Tensor) -> torch.Tensor:
        right, left = (-0.5 * ((z - sign * at) / sd).square().sum(-1) for sign in (1, -1))
        return torch.logaddexp(right, math.log(0.3) + left)

    result = integrate(log_density, *box(3, dim, 12.0))
    assert result.is_converged.all()
    assert (result.log_integral - math.log(1.3) - dim * (math.log(sd) + LOG_ROOT)).abs().max() < 1e-9


def test_a_mode_between_points_is_lost_without_the_parabola(monkeypatch):
    """The planted bug: keep what is high on the grid as it is; then one of two narrow modes goes."""
    at = torch.tensor([5.0], dtype=F64)

    def log_density(z: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(*(-0.5 * ((z[..., 0] - m) / 1e-3).square() for m in (0.0, at)))

    def finds_both() -> bool:
        value = integrate(log_density, *box(1, 1)).log_integral
        return abs(value.item() - math.log(2e-3) - LOG_ROOT) < 1e-6

    assert finds_both()
    monkeypatch.setattr(quadrature, "_height", lambda value: value)
    assert not finds_both()


@pytest.mark.parametrize("shape", [0.1, 3.0])
def test_a_slow_tail(shape):
    """Gamma(shape) in the logarithm: exp(shape u) on the left, exp(-exp(u)) on the right; the box is too small."""
    for dim in (1, 2):
        result = integrate(lambda z: (shape * z - z.exp()).sum(-1), *box(2, dim, 1.0), tolerance=1e-4)
        truth = dim * math.lgamma(shape)
        assert covers(result, truth)
        assert (result.log_integral - truth).abs().max() < 1e-4
        is_easy = dim == 1 or shape > 1  # 450 units on the left, times 450, are too many for the largest grid
        assert result.is_converged.all() == is_easy


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_error_covers_at_kinks_wherever_they_lie(tolerance, monkeypatch):
    """|z - m| / s has a kink at a random place; with the last change alone (the planted bug) coverage fails."""
    torch.manual_seed(0)
    mean, scale = torch.randn(300, 1, dtype=F64), torch.rand(300, 1, dtype=F64) + 0.3

    def run() -> quadrature.Quadrature:
        return integrate(lambda z: -((z - mean).abs() / scale).sum(-1), *box(300, 1), tolerance=tolerance)

    truth = (2 * scale[:, 0]).log()
    result = run()
    assert result.is_converged.all()
    assert covers(result, truth)
    monkeypatch.setattr(quadrature, "_error", lambda changes: changes[0])
    assert not covers(run(), truth)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_error_covers_for_a_relu_decoder(dim):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(dim, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)).double()
    x = net(torch.randn(10, dim, dtype=F64)).detach() + 0.5 * torch.randn(10, 10, dtype=F64)

    def log_density(z: torch.Tensor) -> torch.Tensor:
        return -0.5 * z.square().sum(-1) - 2 * (x - net(z)).square().sum(-1)

    fine = integrate(log_density, *box(10, dim), tolerance=1e-12, max_points=1 << 18)
    coarse = integrate(log_density, *box(10, dim), tolerance=1e-2, max_points=1 << 14)
    assert fine.error.max() < 1e-3
    assert coarse.is_converged.all()
    assert ((coarse.log_integral - fine.log_integral).abs() <= coarse.error + fine.error).all()
    assert not fine.is_converged.any()  # and says so


def test_a_tanh_decoder_against_adaptive_quadrature():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    net.requires_grad_(False)
    x = net(torch.randn(2, 2, dtype=F64)) + 0.5 * torch.randn(2, 5, dtype=F64)
    first, second = (net[i].weight.numpy() for i in (0, 2))
    first_bias, second_bias = (net[i].bias.numpy() for i in (0, 2))

    def log_density(z: torch.Tensor) -> torch.Tensor:
        return -0.5 * z.square().sum(-1) - 2 * (x - net(z)).square().sum(-1)

    def density(b: float, a: float, datum: np.ndarray) -> float:
        mean = second @ np.tanh(first @ np.array([a, b]) + first_bias) + second_bias
        return math.exp(-0.5 * (a * a + b * b) - 2 * float(((datum - mean) ** 2).sum()))

    result = integrate(log_density, *box(2, 2))
    assert result.is_converged.all()
    for n in range(2):
        value, _ = scipy_integrate.dblquad(density, -8, 8, -8, 8, (x[n].numpy(),), epsabs=1e-9, epsrel=1e-7)
        assert result.log_integral[n].item() == pytest.approx(math.log(value), abs=1e-5)


def test_a_bounded_support_and_a_box_beside_the_mass():
    low, high = torch.full((1, 1), 40.0, dtype=F64), torch.full((1, 1), 41.0, dtype=F64)
    result = integrate(lambda z: -0.5 * z[..., 0].square(), low, high)
    assert result.log_integral.item() == pytest.approx(LOG_ROOT, abs=1e-9)
    half = integrate(lambda z: torch.where(z > 0, -0.5 * z.square(), -math.inf)[..., 0], *box(1, 1))
    assert half.log_integral.item() == pytest.approx(LOG_ROOT - math.log(2.0), abs=1e-3)


def test_single_precision():
    low, high = (side.float() for side in box(2, 2))
    result = integrate(lambda z: -0.5 * z.square().sum(-1), low, high, tolerance=1e-4)
    assert result.log_integral.dtype == F64
    assert (result.log_integral - 2 * LOG_ROOT).abs().max() < 1e-5
    assert result.is_converged.all()


def test_one_bad_datum_leaves_the_others_alone():
    constant = torch.tensor([0.0, math.nan, math.inf, 0.0], dtype=F64)
    result = integrate(lambda z: -0.5 * z[..., 0].square() + constant, *box(4, 1))
    assert result.bad_point[:, 0].isnan().tolist() == [True, False, False, True]
    assert result.is_converged.tolist() == [True, False, False, True]
    assert result.log_integral.isnan().tolist() == [False, True, True, False]
    assert (result.error[1:3] == math.inf).all()
    assert covers(quadrature.Quadrature(*(field[[0, 3]] for field in result[:4]), 0), LOG_ROOT)


@pytest.mark.parametrize(("end", "tolerance"), [(8.0, 1e-6), (5.0, 1e-2)])
def test_nan_counts_as_nothing_where_the_density_has_come_to_nothing(end, tolerance):
    log_density = lambda z: (-0.5 * z.square()).masked_fill(z > end, math.nan).sum(-1)  # noqa: E731
    for dim in (1, 2):
        result = integrate(log_density, *box(1, dim, 10.0), tolerance=tolerance)
        assert result.is_converged.all()
        assert covers(result, dim * LOG_ROOT)
        assert result.bad_point.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dim", [1, 2])
def test_nan_or_infinity_where_it_matters_gives_no_value_but_a_place(dim, bad):
    """NaN from 1 on, in the first of two data; the planted bug, NaN as nothing, would give a smaller integral."""
    end = torch.tensor([1.0, math.inf], dtype=F64)
    log_density = lambda z: (-0.5 * z.square().sum(-1)).masked_fill(z[..., 0] > end, bad)  # noqa: E731
    result = integrate(log_density, *box(2, dim), tolerance=1e-2)
    assert result.is_converged.tolist() == [False, True]
    assert result.log_integral.isnan().tolist() == [True, False]
    assert result.error[0] == math.inf
    if math.isnan(bad):
        assert result.bad_point[0, 0].item() == pytest.approx(1.0, abs=0.1)


def test_a_box_whose_ends_two_grids_see_differently_is_found(monkeypatch):
    """A narrow ridge, aslant: some grids see it, some do not. The planted bug: to shrink without end."""

    def log_density(z: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        wide = -0.5 * z.square().sum(-1)
        end = 8.0 if len(calls) % 2 else 4.0  # as two grids might see it
        return wide.masked_fill(z.abs().amax(-1) > end, -math.inf)

    for shrinks, is_found in ((quadrature.SHRINKS, True), (quadrature.MAX_ZOOMS, False)):
        calls: list[int] = []
        monkeypatch.setattr(quadrature, "SHRINKS", shrinks)
        assert quadrature._find_box(log_density, *box(1, 1, 2.0)).is_found.all() == is_found


def overflowing(z: torch.Tensor) -> torch.Tensor:
    """Two normal latents, u and a, and a Poisson count of 3 of rate exp(a exp(u)), which overflows in float32."""
    u, a = z.float().unbind(-1)
    rate = (a * u.exp()).exp()
    return (-0.5 * (u.square() + a.square()) + torch.xlogy(torch.tensor(3.0), rate) - rate).double()


def test_a_rate_that_overflows_in_the_tail(monkeypatch):
    """The planted bug: parabolas at the foot of the wall of such a rate, which rise far above the density."""
    assert overflowing(torch.tensor([[[6.0, 6.0]]])).isnan().all()
    axis = torch.linspace(-10.0, 10.0, 1001, dtype=F64)
    truth = overflowing(torch.cartesian_prod(axis, axis)).nan_to_num(nan=-math.inf).logsumexp(
        0
    ) + 2 * math.log(0.02)
    result = integrate(overflowing, *box(1, 2), tolerance=1e-3)
    assert result.is_converged.all()
    assert (result.log_integral - truth).abs() < 1e-3
    monkeypatch.setattr(quadrature, "ALIKE", math.inf)
    assert not integrate(overflowing, *box(1, 2), tolerance=1e-3).is_converged.any()


def test_what_has_no_integral_does_not_converge():
    assert not integrate(lambda z: 0 * z[..., 0], *box(2, 1)).is_converged.any()
    nothing = integrate(lambda z: 0 * z[..., 0] - math.inf, *box(1, 2))
    assert nothing.log_integral.item() == -math.inf
    assert not nothing.is_converged.any()


def test_a_datum_does_not_depend_on_its_neighbours_and_no_call_is_large():
    rows = []

    def log_density(z: torch.Tensor) -> torch.Tensor:
        rows.append(z.shape[0] * z.shape[1])
        return -0.5 * (z / scale).square().sum(-1)

    scale = torch.tensor([[1.0, 1e-2], [0.1, 5.0], [1.0, 1.0]], dtype=F64)
    together = integrate(log_density, *box(3, 2))
    assert max(rows) <= 1 << 14
    assert sum(rows) == 3 * together.num_evaluations
    for n in range(3):
        scale_of_all, scale = scale, scale[n : n + 1]
        alone = integrate(log_density, *box(1, 2))
        scale = scale_of_all
        assert alone.log_integral.item() == pytest.approx(together.log_integral[n].item(), abs=1e-12)
        assert alone.num_evaluations <= together.num_evaluations


def test_what_is_refused():
    density = lambda z: z.sum(-1)  # noqa: E731
    with pytest.raises(ValueError, match="1 or 2 latent dimensions, but there are 3.*ais"):
        integrate(density, *box(2, 3))
    with pytest.raises(ValueError, match="datum 0"):
        integrate(density, *box(2, 1)[::-1])
    with pytest.raises(ValueError, match="tolerance"):
        integrate(density, *box(2, 1), tolerance=0.0)
