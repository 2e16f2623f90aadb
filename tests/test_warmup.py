"""Dual averaging: the published recursion, one step size a datum, bounds."""

import math

import pytest
import torch

from pyrovae.inference import warmup

WIDTHS = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)


def acceptance(step_size: torch.Tensor) -> torch.Tensor:
    """Falls with the step size, at a rate of its own for every datum."""
    return torch.exp(-(step_size / WIDTHS).square())


def adapt(num_updates: int, *, noise: float = 0.0, num_chains: int = 1, target: float = 0.8):
    state = warmup.init(torch.full_like(WIDTHS, 0.8))
    for _ in range(num_updates):
        rate = acceptance(warmup.step_size(state)).expand(num_chains, -1)
        rate = (rate + noise * (torch.rand(rate.shape, dtype=rate.dtype) - 0.5)).clamp(0.0, 1.0)
        state = warmup.update(state, rate, target)
    return state


def test_the_recursion_is_the_published_one():
    """Written again in plain numbers from Hoffman and Gelman 2014, equation 6; a misread exponent or sign shows."""
    gamma, t0, kappa, target = 0.05, 10.0, 0.75, 0.8
    state = warmup.init(torch.tensor([0.5], dtype=torch.float64))
    shortfall, log_average = 0.0, 0.0
    for t in range(1, 30):
        rate = 0.72 + 0.01 * (t % 5)
        shortfall = (1 - 1 / (t + t0)) * shortfall + (target - rate) / (t + t0)
        log_step = math.log(10 * 0.5) - math.sqrt(t) / gamma * shortfall
        log_average = t**-kappa * log_step + (1 - t**-kappa) * log_average
        state = warmup.update(state, torch.tensor([[rate]], dtype=torch.float64), target)
        assert state.log_step.item() == pytest.approx(log_step, abs=1e-12)
        assert state.log_average.item() == pytest.approx(log_average, abs=1e-12)


def test_acceptance_is_averaged_over_chains_by_the_harmonic_mean():
    start = warmup.init(torch.tensor([0.5], dtype=torch.float64))
    apart = warmup.update(start, torch.tensor([[0.9], [0.5]], dtype=torch.float64), 0.8)
    mean = 2 / (1 / 0.9 + 1 / 0.5)
    equal = warmup.update(start, torch.tensor([[mean], [mean]], dtype=torch.float64), 0.8)
    torch.testing.assert_close(apart, equal)


@pytest.mark.parametrize("target", [0.65, 0.8, 0.95])
def test_every_datum_gets_the_step_size_that_meets_the_target(target):
    found = warmup.final_step_size(adapt(2000, target=target))
    expected = WIDTHS * math.sqrt(-math.log(target))
    torch.testing.assert_close(acceptance(found), torch.full_like(found, target), rtol=0.0, atol=0.01)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.0)


def test_it_is_close_after_a_usual_warm_up_with_noise():
    torch.manual_seed(0)
    found = acceptance(warmup.final_step_size(adapt(200, noise=0.4, num_chains=16)))
    assert ((found > 0.7) & (found < 0.9)).all()


def test_averaging_is_steadier_than_the_last_step():
    torch.manual_seed(0)
    states = [adapt(200, noise=1.0) for _ in range(50)]
    last = torch.stack([state.log_step for state in states]).std(0)
    average = torch.stack([state.log_average for state in states]).std(0)
    assert (average < 0.7 * last).all()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_step_size_stays_within_bounds(rate):
    initial = torch.tensor([0.8, 0.3])
    state = warmup.init(initial)
    for _ in range(3000):
        state = warmup.update(state, torch.full((4, 2), rate), 0.8)
        ratio = warmup.step_size(state) / initial
        assert ((ratio > 0.99e-4) & (ratio < 10.01)).all()
    limit = 1e-4 if rate == 0.0 else 10.0
    torch.testing.assert_close(warmup.final_step_size(state), limit * initial, rtol=1e-3, atol=0.0)


def test_one_datum_does_not_move_another():
    initial = torch.tensor([0.5, 0.5])
    rates = torch.rand(100, 3, 2)
    together, alone = warmup.init(initial), warmup.init(initial[:1])
    for rate in rates:
        together, alone = warmup.update(together, rate, 0.8), warmup.update(alone, rate[:, :1], 0.8)
    assert torch.equal(together.log_average[:1], alone.log_average)


def test_planted_bugs_miss_the_target():
    """The sign of the error turned, and the target compared with one chain instead of their average."""
    turned = warmup.init(torch.full_like(WIDTHS, 0.8))
    one_chain = turned
    for _ in range(2000):
        turned = warmup.update(turned, 1.6 - acceptance(warmup.step_size(turned)).expand(1, -1), 0.8)
        rate = acceptance(warmup.step_size(one_chain))
        chains = torch.stack([rate, rate / 2])
        one_chain = warmup.update(one_chain, chains[:1], 0.8)
    assert not ((acceptance(warmup.final_step_size(turned)) - 0.8).abs() < 0.01).any()
    mean_rate = 0.75 * acceptance(warmup.final_step_size(one_chain))
    assert not ((mean_rate - 0.8).abs() < 0.01).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_scaling_of_the_first_step(dtype):
    first = warmup.initial_step_size(torch.zeros(2, 3, 81, dtype=dtype))
    torch.testing.assert_close(first, torch.full((3,), 1.6 / 3, dtype=dtype))
    state = warmup.update(warmup.init(first), torch.ones(2, 3, dtype=dtype), 0.8)
    assert warmup.final_step_size(state).dtype == dtype
