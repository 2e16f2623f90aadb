"""Cumulant and jackknife estimates against oracles, and the expansion around a point."""

import chance
import pytest
import torch

from pyrovae.inference import corrections, weights
from pyrovae.inference.expansion import laplace_evidence


def exponential(groups: int, k: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.empty(k, groups, dtype=torch.float64).exponential_().log()


@pytest.mark.parametrize("k", [2, 5, 20])
def test_the_jackknife_has_the_bias_that_its_formula_gives(k):
    """Weights Exp(1), E[w] = 1: E[L_K] = digamma(K) - log K, so the jackknife's mean is known exactly."""
    log_w = exponential(200_000, k)
    numbers = torch.tensor([k, k - 1], dtype=torch.float64)
    bound = torch.digamma(numbers) - numbers.log()
    expected = k * bound[0] - (k - 1) * bound[1]
    assert chance.means_agree(corrections.jackknife(log_w), float(expected))
    assert abs(expected) < abs(bound[0])
    assert not chance.means_agree(weights.iwae(log_w), float(expected))


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
