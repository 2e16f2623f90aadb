"""Cumulant and jackknife estimates against oracles, and the expansion around a point."""

import itertools
import math
from decimal import Decimal, localcontext

import chance
import pytest
import torch

from pyrovae.inference import corrections, weights
from pyrovae.inference.expansion import laplace_evidence


def exponential(groups: int, k: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.empty(k, groups, dtype=torch.float64).exponential_().log()


def jackknife_oracle(k: int, order: int) -> float:
    """Its exact mean for weights Exp(1), E[w] = 1, where E[L_K] = digamma(K) - log K."""
    sizes = torch.arange(k, k - order - 1, -1, dtype=torch.float64)
    bounds = torch.digamma(sizes) - sizes.log()
    return sum(
        (-1) ** j * (k - j) ** order / (math.factorial(order - j) * math.factorial(j)) * float(bounds[j])
        for j in range(order + 1)
    )


@pytest.mark.parametrize(("k", "order"), [(2, 1), (5, 1), (20, 1), (3, 2), (5, 2), (20, 2)])
def test_the_jackknife_has_the_bias_that_its_formula_gives(k, order):
    log_w = exponential(200_000, k)
    expected = jackknife_oracle(k, order)
    assert chance.means_agree(corrections.jackknife(log_w, order), expected)
    assert abs(expected) < abs(jackknife_oracle(k, order - 1))
    assert not chance.means_agree(weights.iwae(log_w), expected)
    one_noise = log_w[:1].expand(k, -1)  # shared by all particles
    assert not chance.means_agree(corrections.jackknife(one_noise, order), expected)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_bias_falls_with_the_power_of_the_order(order):
    """Twice the particles divide it by 2^(m + 1); by 16 at order 2, because digamma has no third power."""
    fall = jackknife_oracle(50, order) / jackknife_oracle(100, order)
    assert fall == pytest.approx((2, 4, 16)[order], rel=0.05)


def all_pairs(log_w: list[float]) -> float:
    """Order 2 by its definition, in 300 digits."""
    with localcontext() as context:
        context.prec = 300
        k = len(log_w)
        w = [Decimal(x).exp() for x in log_w]
        total, size = sum(w), Decimal(k)
        one = math.prod((total - x) / (size - 1) for x in w).ln() / size
        pairs = [(total - x - y) / (size - 2) for x, y in itertools.combinations(w, 2)]
        two = math.prod(pairs).ln() / len(pairs)
        return float(size**2 / 2 * (total / size).ln() - (size - 1) ** 2 * one + (size - 2) ** 2 / 2 * two)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("k", [3, 4, 16, 17, 18, 30])
def test_order_two_is_the_sum_over_all_pairs(k, spread):
    torch.manual_seed(0)
    log_w = spread * torch.randn(k, dtype=torch.float64) - 700.0
    truth = all_pairs(log_w.tolist())
    assert corrections.jackknife(log_w, order=2).item() == pytest.approx(truth, rel=1e-12, abs=1e-10)
    two_giants = log_w.clone()
    two_giants[:2] += 60.0 + spread
    truth = all_pairs(two_giants.tolist())
    assert corrections.jackknife(two_giants, order=2).item() == pytest.approx(truth, rel=1e-12, abs=1e-10)


def test_order_two_agrees_with_the_pairs_of_a_thousand():
    torch.manual_seed(0)
    for log_w in (torch.randn(1000, 2, dtype=torch.float64), 3 * torch.randn(1000, 2, dtype=torch.float64)):
        v = log_w.softmax(0)
        rows, columns = torch.triu_indices(1000, 1000, 1)
        two = torch.log1p(-v[rows] - v[columns]).mean(0) + math.log(1000 / 998)
        one = torch.log1p(-v).mean(0) + math.log(1000 / 999)
        truth = weights.iwae(log_w) - 999**2 * one + 998**2 / 2 * two
        torch.testing.assert_close(corrections.jackknife(log_w, order=2), truth, rtol=0, atol=1e-9)


def test_order_two_where_weights_vanish():
    """Leaving out two of two positive weights leaves nothing; with three there is a value."""
    log_w = torch.tensor([0.0, 0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
    one, two = (3 * math.log(2 / 4) + 2 * math.log(3 / 4)) / 5, 3 * math.log(1 / 3) + 6 * math.log(2 / 3)
    truth = 12.5 * math.log(3 / 5) - 16 * one + 4.5 * (two + math.log(3 / 3)) / 10
    assert corrections.jackknife(log_w, order=2).item() == pytest.approx(truth, abs=1e-12)
    assert not corrections.jackknife(log_w[1:], order=2).isfinite()


@pytest.mark.parametrize("kind", ["exponential", "log-normal"])
@pytest.mark.parametrize("k", [10, 55])
def test_the_error_bar_of_order_two_is_the_spread(kind, k):
    log_w = exponential(600, k)
    if kind == "log-normal":
        log_w = torch.randn(k, 600, dtype=torch.float64)
    spread = corrections.jackknife(log_w, order=2).std()
    error = corrections.jackknife_std_error(log_w, order=2).square().mean().sqrt()
    assert float(error / spread) == pytest.approx(1.0, abs=0.17)
    twice = log_w.repeat_interleave(2, 0)  # no new draws
    error = corrections.jackknife_std_error(twice, order=2).square().mean().sqrt()
    assert float(error / spread) < 0.83


def test_the_jackknife_of_equal_weights_and_its_shapes():
    for order in (1, 2):
        log_w = torch.full((1000, 2, 3), -500.1, dtype=torch.float64)
        assert (corrections.jackknife(log_w, order) + 500.1).abs().max() < 1e-10
        assert corrections.jackknife_std_error(log_w, order).max() < 1e-9
        single = torch.randn(20, 4)
        for function in (corrections.jackknife, corrections.jackknife_std_error):
            assert function(single, order).dtype == torch.float32
            assert function(single, order).shape == (4,)
            torch.testing.assert_close(function(single, order), function(single.double(), order).float())
    assert corrections.jackknife_std_error(torch.zeros(3), order=2).isnan()


@pytest.mark.parametrize("function", [corrections.jackknife, corrections.jackknife_std_error])
def test_the_jackknife_refuses(function):
    for order in (0, 3):
        with pytest.raises(ValueError, match="order must be 1 or 2"):
            function(torch.zeros(10), order)
    for order in (1, 2):
        with pytest.raises(ValueError, match=f"at least {order + 1} log-weights"):
            function(torch.zeros(order), order)


def test_the_jackknife_is_the_naive_one():
    log_w = torch.randn(6, 3, dtype=torch.float64) * 20
    log_w[2] = 700.0  # one weight that dwarfs the others: its absence must not cancel
    naive = []
    for n in range(3):
        without = torch.stack([weights.iwae(torch.cat([log_w[:k, n], log_w[k + 1 :, n]])) for k in range(6)])
        naive.append(6 * weights.iwae(log_w[:, n]) - 5 * without.mean())
    assert torch.allclose(corrections.jackknife(log_w), torch.stack(naive))


def test_the_jackknife_standard_error():
    log_w = exponential(20_000, 50)
    spread = corrections.jackknife(log_w).std()
    assert corrections.jackknife_std_error(log_w).mean() == pytest.approx(float(spread), rel=0.05)


def test_the_cumulant_is_exact_for_normal_log_weights_and_its_error_bar_is_right():
    torch.manual_seed(0)
    log_w = 0.8 * torch.randn(400, 20_000, dtype=torch.float64) - 0.32 + 3.0
    values = corrections.cumulant(log_w)
    assert chance.means_agree(values, 3.0)
    assert not chance.means_agree(weights.elbo(log_w), 3.0)
    assert corrections.cumulant_std_error(log_w).mean() == pytest.approx(float(values.std()), rel=0.05)


def test_the_expansion_is_exact_for_a_gaussian_from_any_point():
    torch.manual_seed(0)
    root = torch.randn(4, 3, 3, dtype=torch.float64)
    curvature = root @ root.mT + torch.eye(3)
    mode, at = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mode, precision_matrix=curvature)
    gradient = -(curvature @ (at - mode).unsqueeze(-1)).squeeze(-1)
    value = laplace_evidence(normal.log_prob(at) - 7.0, gradient, curvature)
    assert torch.allclose(value, torch.full((4,), -7.0, dtype=torch.float64))


def test_the_expansion_has_no_value_at_a_saddle():
    curvature = torch.diag(torch.tensor([1.0, -1.0]))[None]
    assert torch.isnan(laplace_evidence(torch.zeros(1), torch.zeros(1, 2), curvature)).all()
