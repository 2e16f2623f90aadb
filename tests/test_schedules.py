"""Schedules: exact ends, published shapes, and equal increments where the variance is known."""

import math

import pytest
import torch

from pyrovae.inference.schedules import adapted, geometric, interpolate, linear, sigmoid, smoothed

FIXED = (linear, sigmoid, geometric)


@pytest.mark.parametrize("schedule", FIXED)
@pytest.mark.parametrize("num_temperatures", [1, 2, 3, 10, 1000])
def test_ends_are_exact_and_steps_positive(schedule, num_temperatures):
    betas = schedule(num_temperatures)
    assert betas.dtype == torch.float64
    assert betas.shape == (num_temperatures + 1,)
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    assert (betas.diff() > 0).all()


def test_published_shapes():
    raw = [1 / (1 + math.exp(-4.0 * (2 * t / 10 - 1))) for t in range(11)]
    expected = [(value - raw[0]) / (raw[-1] - raw[0]) for value in raw]
    torch.testing.assert_close(sigmoid(10), torch.tensor(expected, dtype=torch.float64))
    assert sigmoid(10, sharpness=8.0)[1] < sigmoid(10)[1]
    ratios = geometric(10, first=1e-5)[2:] / geometric(10, first=1e-5)[1:-1]
    torch.testing.assert_close(ratios, torch.full((9,), 10 ** (5 / 9), dtype=torch.float64))
    assert geometric(10, first=1e-5)[1] == pytest.approx(1e-5, rel=1e-12)


PRECISIONS = torch.tensor([[0.05, 1.5], [30.0, 8.0], [1.0, 1.0]], dtype=torch.float64)
"""Of the end, where the start is N(0, I), one row a datum; the last end is the start."""


def gaussian_variance(betas: torch.Tensor) -> torch.Tensor:
    """Var(end - start) at beta: 1/2 sum ((p - 1) / (1 - beta + beta p))^2 for ends with the same mean."""
    rate = (PRECISIONS - 1) / (1 + betas[..., None] * (PRECISIONS - 1))
    return 0.5 * rate.square().sum(-1)


def columns(betas: torch.Tensor, num_data: int = 3) -> torch.Tensor:
    return betas[:, None].expand(-1, num_data)


def increment_spread(betas: torch.Tensor) -> torch.Tensor:
    """Standard deviation of every increment, in units of its mean over the schedule."""
    middle = 0.5 * (betas[1:] + betas[:-1])
    deviation = betas.diff(dim=0) * gaussian_variance(middle).sqrt()
    return (deviation / deviation.mean(0))[:, :2]


def test_increments_of_equal_variance():
    fine = columns(linear(2000))
    found = adapted(fine, gaussian_variance(fine), 50)
    assert ((increment_spread(found) - 1).abs() < 0.05).all()
    torch.testing.assert_close(found[:, 2], linear(50))
    assert (increment_spread(columns(linear(50))) - 1).abs().max() > 0.5


def test_a_coarse_and_noisy_look_is_enough():
    torch.manual_seed(0)
    coarse = columns(sigmoid(25))
    noise = torch.randn(16, 26, 3, dtype=torch.float64).var(0)
    found = adapted(coarse, gaussian_variance(coarse) * noise, 50)
    assert (found[0] == 0).all()
    assert (found[-1] == 1).all()
    assert (found.diff(dim=0) > 0).all()
    spread = increment_spread(found)
    assert 0.4 < spread.min() < spread.max() < 2.5


def test_lengths_not_variances_are_made_equal():
    """Equal steps of the integral of the variance, the natural misreading, are far from equal increments."""
    fine = columns(linear(2000))
    misread = adapted(fine, gaussian_variance(fine).square(), 50)
    assert (increment_spread(misread) - 1).abs().max() > 0.5


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -1.0])
def test_no_gap_where_the_pilot_saw_nothing(bad):
    betas = columns(linear(20))
    variances = torch.ones_like(betas)
    variances[10:, 0] = bad
    variances[:, 1] = bad
    found = adapted(betas, variances, 100)
    assert (found.diff(dim=0) > 0).all()
    assert found.diff(dim=0)[:, 0].max() < 0.12
    torch.testing.assert_close(found[:, 1], linear(100))
    torch.testing.assert_close(found[:, 2], linear(100))


def test_every_datum_has_its_own():
    betas = columns(linear(20))
    together = adapted(betas, gaussian_variance(betas), 30)
    for n in range(3):
        alone = adapted(betas[:, n : n + 1], gaussian_variance(betas)[:, n : n + 1], 30)
        assert torch.equal(together[:, n : n + 1], alone)


def test_interpolation_and_smoothing():
    knots = torch.tensor([[0.0, 0.0], [1.0, 0.5], [3.0, 1.0]])
    values = torch.tensor([[0.0, 5.0], [2.0, 5.0], [0.0, 7.0]])
    at = torch.tensor([[-1.0, 0.0], [0.5, 0.25], [1.0, 0.75], [2.0, 1.0], [9.0, 9.0]])
    expected = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 6.0], [1.0, 7.0], [0.0, 7.0]])
    torch.testing.assert_close(interpolate(at, knots, values), expected)
    torch.testing.assert_close(smoothed(values), torch.tensor([[0.5, 5.0], [1.0, 5.5], [0.5, 6.5]]))


@pytest.mark.parametrize("schedule", FIXED)
def test_no_temperatures_are_refused(schedule):
    with pytest.raises(ValueError, match="num_temperatures must be at least 1, but is 0"):
        schedule(0)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="num_temperatures must be at least 1"):
        adapted(columns(linear(2)), torch.ones(3, 3), 0)
    for first in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="first must lie strictly between 0 and 1"):
            geometric(5, first=first)
    for sharpness in (0.0, -4.0, math.nan):
        with pytest.raises(ValueError, match="sharpness must be above 0"):
            sigmoid(5, sharpness)
