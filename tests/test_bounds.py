"""Upper bounds and what is taken for them: exact expectations, error bars, directions, tails."""

import math

import pytest
import torch
from chance import means_agree

from pyrovae.inference import bounds, weights

F64 = torch.float64


def gaussian_log_ratio(z: torch.Tensor, sd: float, shift: float = 0.0) -> torch.Tensor:
    """log of w / p(x) at z, for the posterior N(0, 1) and the guide N(shift, sd^2)."""
    return -0.5 * z.square() + 0.5 * ((z - shift) / sd).square() + math.log(sd)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=F64)


def chains(num_data: int, correlation: float = 0.9, num_chains: int = 4, length: int = 500) -> torch.Tensor:
    """Stationary autoregressions `[C, T, N]` of N(0, 1)."""
    z = [normal(num_chains, num_data)]
    for _ in range(length - 1):
        z.append(correlation * z[-1] + math.sqrt(1 - correlation**2) * normal(num_chains, num_data))
    return torch.stack(z, 1)


def eubo_oracle_holds(estimator, log_w: torch.Tensor) -> bool:
    """KL(N(0, 1) || N(0.4, 0.7^2)) above log p(x) = 0."""
    return means_agree(estimator(log_w), math.log(0.7) + (1 + 0.4**2) / (2 * 0.7**2) - 0.5)


def test_eubo_has_its_exact_expectation():
    torch.manual_seed(0)
    z = normal(1, 5, 20_000)
    assert eubo_oracle_holds(bounds.eubo, gaussian_log_ratio(z, 0.7, 0.4))
    of_the_guide = gaussian_log_ratio(0.4 + 0.7 * z, 0.7, 0.4)
    assert not eubo_oracle_holds(bounds.eubo, of_the_guide)  # draws of the guide instead: the ELBO
    assert not eubo_oracle_holds(bounds.reciprocal, gaussian_log_ratio(z, 0.7, 0.4))


def reciprocal_oracle_holds(estimator, log_w: torch.Tensor) -> bool:
    """E_posterior[1/w] = 1/p(x), here 1."""
    return means_agree((-estimator(log_w)).exp(), 1.0)


def test_the_reciprocal_is_unbiased_for_one_over_the_evidence():
    torch.manual_seed(0)
    log_w = gaussian_log_ratio(normal(2, 5, 20_000), 0.8, 0.3)
    assert reciprocal_oracle_holds(bounds.reciprocal, log_w)
    assert not reciprocal_oracle_holds(bounds.eubo, log_w)
    assert not reciprocal_oracle_holds(lambda x: bounds.reciprocal(x) - math.log(0.8), log_w)


def test_the_reciprocal_falls_from_the_eubo_to_the_smallest_weight():
    """Deterministic: -log of a mean of halves is at most the mean of their -logs."""
    torch.manual_seed(0)
    log_w = gaussian_log_ratio(normal(1, 64, 100), 0.6)
    previous = bounds.eubo(log_w)
    for size in (2, 4, 8, 16, 32, 64):
        bound = bounds.reciprocal(log_w.reshape(1, size, 64 // size, 100)).mean(0)
        assert (bound <= previous + 1e-12).all()
        previous = bound
    assert (previous >= log_w.amin((0, 1))).all()


@pytest.mark.parametrize("name", ["eubo", "reciprocal"])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_upper_bounds_and_their_error_bars_on_chains(name, correlation):
    torch.manual_seed(0)
    log_w = gaussian_log_ratio(chains(400, correlation), 0.8)
    value, error = getattr(bounds, name)(log_w), getattr(bounds, name + "_std_error")(log_w)
    assert (error.square().mean() / value.var()).sqrt().item() == pytest.approx(1.0, abs=0.15)
    if correlation:
        independent = (weights.elbo_std_error, lambda x: weights.iwae_std_error(-x))[name == "reciprocal"]
        assert independent(log_w.flatten(0, 1)).mean() < 0.6 * error.mean()  # the planted bug: ESS = C T
    else:
        exact = (weights.elbo_std_error, lambda x: weights.iwae_std_error(-x))[name == "reciprocal"]
        torch.testing.assert_close(exact(log_w.flatten(0, 1)).mean(), error.mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_perfect_guide_has_no_error(dtype):
    torch.manual_seed(0)
    exact = torch.full((4, 100, 3), -500.1, dtype=dtype)
    for log_w in (exact, exact[:1]):
        for function in (bounds.eubo_std_error, bounds.reciprocal_std_error):
            assert (function(log_w) < 1e-9).all()
        for function in (bounds.eubo, bounds.reciprocal):
            torch.testing.assert_close(function(log_w), exact[0, 0])
    rounded = exact.double() + 1e-13 * torch.randn(4, 100, 3, dtype=F64)
    for function in (bounds.eubo_std_error, bounds.reciprocal_std_error):
        assert (function(rounded) < 1e-9).all()
    assert (bounds.cubo_std_error(exact[0]) < 1e-9).all()
    torch.testing.assert_close(bounds.cubo(exact[0]), exact[0, 0])


def test_shapes_and_edges():
    log_w = torch.randn(2, 10, 3, 4)
    for function in (bounds.eubo, bounds.eubo_std_error, bounds.reciprocal, bounds.reciprocal_std_error):
        assert function(log_w).shape == (3, 4)
        assert function(log_w).dtype == torch.float32
        assert function(log_w[..., 0, 0]).shape == ()
    assert bounds.eubo_std_error(log_w[:, :3]).isnan().all()  # too short
    torch.testing.assert_close(bounds.reciprocal(log_w + 1e4), bounds.reciprocal(log_w) + 1e4)
    outside = torch.tensor([[0.0, math.inf]])  # the guide's density is 0 at one draw
    assert bounds.reciprocal(outside).item() == pytest.approx(math.log(2.0))
    assert bounds.eubo(outside) == math.inf


def wide_log_weights(num_particles: int, num_rows: int) -> torch.Tensor:
    return gaussian_log_ratio(1.3 * normal(num_particles, num_rows), 1.3)


def cubo_truth(sd: float, order: float) -> float:
    """1/n log E_q[w^n] for the posterior N(0, 1) and the guide N(0, sd^2): finite where n (1 - sd^2) < 1."""
    precision = order + (1 - order) / sd**2
    return math.log(sd) + (-math.log(sd) - 0.5 * math.log(precision)) / order


@pytest.mark.parametrize("order", [1.0, 2.0, 3.5])
def test_cubo_is_exact_in_the_population(order):
    torch.manual_seed(0)
    log_w = wide_log_weights(20, 20_000)
    truth = math.exp(order * cubo_truth(1.3, order))
    assert means_agree((order * bounds.cubo(log_w, order)).exp(), truth)
    assert not means_agree((order * bounds.cubo(log_w, order + 0.5)).exp(), truth)
    assert cubo_truth(1.3, order) >= -1e-12
    assert bounds.cubo(log_w, order).mean() < cubo_truth(1.3, order)  # Jensen


def test_cubo_at_one_draw_is_the_elbo_and_its_error_bar_is_right():
    torch.manual_seed(0)
    log_w = wide_log_weights(500, 4000)
    torch.testing.assert_close(bounds.cubo(log_w[:1], 3.0), weights.elbo(log_w[:1]))
    torch.testing.assert_close(bounds.cubo(log_w, 1.0), weights.iwae(log_w))
    ratio = bounds.cubo_std_error(log_w).mean() / bounds.cubo(log_w).std()
    assert ratio.item() == pytest.approx(1.0, abs=0.07)
    assert weights.iwae_std_error(2 * log_w).mean() / bounds.cubo(log_w).std() > 1.5  # 1/n forgotten
    with pytest.raises(ValueError, match="at least 1"):
        bounds.cubo(log_w, 0.5)
    with pytest.raises(ValueError, match="at least 1"):
        bounds.cubo_std_error(log_w, 0.5)


def growth_oracle_holds(growth, log_w: torch.Tensor, index: float) -> bool:
    """The maximum of K exponentials has the mean 1 + 1/2 + ... + 1/K."""
    size = len(log_w)
    return means_agree(growth(log_w), index * sum(1 / k for k in range(size // 2 + 1, size + 1)))


@pytest.mark.parametrize("size", [2, 10, 100])
def test_the_largest_weight_grows_without_limit_if_the_tail_is_heavy(size):
    torch.manual_seed(0)
    log_w = 0.7 * torch.empty(size, 20_000, dtype=F64).exponential_()
    assert torch.equal(bounds.largest_weight(log_w), log_w.amax(0))
    assert growth_oracle_holds(bounds.largest_weight_growth, log_w, 0.7)
    smaller_half = lambda x: torch.minimum(*(half.amax(0) for half in x.chunk(2)))  # noqa: E731
    assert not growth_oracle_holds(lambda x: x.amax(0) - smaller_half(x), log_w, 0.7)
    assert not growth_oracle_holds(bounds.largest_weight_growth, log_w, 0.5)


def test_the_largest_weight_settles_if_weights_are_bounded():
    torch.manual_seed(0)
    log_w = wide_log_weights(1000, 100)
    assert bounds.largest_weight_growth(log_w).max() < 0.01
    assert (bounds.largest_weight(log_w) <= math.log(1.3)).all()
    with pytest.raises(ValueError, match="at least 2"):
        bounds.largest_weight_growth(log_w[:1])


def random_covariances(*shape: int) -> torch.Tensor:
    root = normal(*shape, shape[-1])
    return root @ root.mT + 0.3 * torch.eye(shape[-1], dtype=F64)


def test_the_tail_index_decides_which_moments_are_finite():
    """E_q[w^n] is the integral of a Gaussian of precision n P + (1 - n) C^-1: finite iff that is positive definite."""
    torch.manual_seed(0)
    covariance, precision = random_covariances(50, 3), random_covariances(50, 3)
    index = bounds.tail_index(covariance, precision)
    assert index.shape == (50,)
    assert 0 < (index > 0).sum() < 50
    for n in (1.5, 2.0, 3.0):
        moment = torch.linalg.eigvalsh(n * precision + (1 - n) * torch.linalg.inv(covariance))[:, 0]
        assert torch.equal(moment > 0, n * index < 1)
        wrong = 1 - torch.linalg.eigvalsh(covariance @ covariance.mT @ precision)[:, 0]
        assert not torch.equal(moment > 0, n * wrong < 1)


def test_the_tail_index_is_unchanged_by_a_linear_map_and_zero_for_the_posterior():
    torch.manual_seed(0)
    covariance, precision = random_covariances(4, 5, 3), random_covariances(4, 5, 3)
    there = normal(3, 3)
    back = torch.linalg.inv(there)
    mapped = bounds.tail_index(there @ covariance @ there.mT, back.mT @ precision @ back)
    torch.testing.assert_close(mapped, bounds.tail_index(covariance, precision))
    assert bounds.tail_index(covariance, torch.linalg.inv(covariance)).abs().max() < 1e-10
    assert bounds.tail_index(-covariance[0], precision[0]).isnan().all()
