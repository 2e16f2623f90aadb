"""Exact relations between estimators that hold for Gaussian posteriors and guides, and for exponential weights."""

import math
from typing import NamedTuple

import pytest
import torch
from chance import means_agree
from scipy import special

from pyrovae.inference import bounds, corrections, weights
from pyrovae.inference.expansion import laplace_evidence

F64 = torch.float64
LOG_EVIDENCE = -3.7


class Pair(NamedTuple):
    """Posterior N(m, P^-1) and guide N(mu, C) of many data, and log p(x) = -3.7."""

    m: torch.Tensor
    P: torch.Tensor
    mu: torch.Tensor
    C: torch.Tensor

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        normal = torch.distributions.MultivariateNormal(self.m, precision_matrix=self.P)
        return LOG_EVIDENCE + normal.log_prob(z)

    def log_w(self, z: torch.Tensor) -> torch.Tensor:
        return self.log_joint(z) - torch.distributions.MultivariateNormal(self.mu, self.C).log_prob(z)

    def elbo(self) -> torch.Tensor:
        """log p(x) - KL(q || posterior), in closed form."""
        guide = torch.distributions.MultivariateNormal(self.mu, self.C)
        posterior = torch.distributions.MultivariateNormal(self.m, precision_matrix=self.P)
        return LOG_EVIDENCE - torch.distributions.kl_divergence(guide, posterior)


def positive_definite(num_data: int, dim: int) -> torch.Tensor:
    root = torch.randn(num_data, dim, dim, dtype=F64)
    return root @ root.mT + 0.3 * torch.eye(dim, dtype=F64)


def random_pair(num_data: int = 20, dim: int = 3) -> Pair:
    torch.manual_seed(0)
    center, offset = torch.randn(2, num_data, dim, dtype=F64)
    return Pair(center, positive_definite(num_data, dim), center + offset, positive_definite(num_data, dim))


def trace_gap(pair: Pair) -> torch.Tensor:
    return 0.5 * ((pair.P @ pair.C).diagonal(dim1=-2, dim2=-1).sum(-1) - pair.mu.shape[-1])


def log_det(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.slogdet(matrix).logabsdet


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_one_shot_at_the_mean_is_the_elbo_and_half_a_trace(dim):
    pair = random_pair(dim=dim)
    one_shot = pair.log_w(pair.mu)
    torch.testing.assert_close(one_shot, pair.elbo() + trace_gap(pair), rtol=0, atol=1e-10)
    assert (one_shot - pair.elbo() + trace_gap(pair)).abs().max() > 0.1  # the other sign


def test_one_shot_of_the_best_mean_field_guide_is_the_elbo():
    pair = random_pair()
    pair = pair._replace(C=torch.diag_embed(1 / pair.P.diagonal(dim1=-2, dim2=-1)))
    torch.testing.assert_close(pair.log_w(pair.mu), pair.elbo(), rtol=0, atol=1e-10)
    centred = pair._replace(mu=pair.m)
    hadamard = 0.5 * (pair.P.diagonal(dim1=-2, dim2=-1).log().sum(-1) - log_det(pair.P))
    torch.testing.assert_close(LOG_EVIDENCE - centred.elbo(), hadamard, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scaling_the_guide_shifts_the_one_shot_value_by_d_log_s(scale):
    """So it is no bound: above log p(x) for a wide guide, below for a narrow one."""
    pair = random_pair()
    scaled = pair._replace(C=scale**2 * pair.C)
    shift = scaled.log_w(pair.mu) - pair.log_w(pair.mu)
    torch.testing.assert_close(shift, torch.full_like(shift, 3 * math.log(scale)), rtol=0, atol=1e-10)


def test_when_the_one_shot_value_is_above_the_evidence():
    pair = random_pair(200)
    offset = pair.mu - pair.m
    distance = torch.einsum("ni,nij,nj->n", offset, pair.P, offset)
    is_above = log_det(pair.C) + log_det(pair.P) > distance
    assert torch.equal(pair.log_w(pair.mu) > LOG_EVIDENCE, is_above)
    assert 0 < is_above.sum() < 200


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_the_second_order_one_shot_is_exact_from_any_point_and_any_guide(dim):
    pair = random_pair(dim=dim)
    gradient = -torch.einsum("nij,nj->ni", pair.P, pair.mu - pair.m)
    value = laplace_evidence(pair.log_joint(pair.mu), gradient, pair.P)
    torch.testing.assert_close(value, torch.full_like(value, LOG_EVIDENCE), rtol=0, atol=1e-10)
    # The same from the weight: log w(mu) - 1/2 log |C P| + 1/2 g' P^-1 g, in which C drops out.
    newton = 0.5 * torch.einsum("ni,ni->n", gradient, torch.linalg.solve(pair.P, gradient))
    from_weight = pair.log_w(pair.mu) - 0.5 * (log_det(pair.C) + log_det(pair.P)) + newton
    torch.testing.assert_close(from_weight, value, rtol=0, atol=1e-10)


def test_the_largest_weight_is_finite_only_for_a_wide_guide():
    """The supremum lies at (P - C^-1)^-1 (P m - C^-1 mu), above log p(x); in a narrow direction w grows for ever."""
    pair = random_pair()
    wide = pair._replace(C=torch.linalg.inv(pair.P) + 0.5 * pair.C)
    assert (bounds.tail_index(wide.C, wide.P) < 0).all()
    precision = torch.linalg.inv(wide.C)
    pull = torch.einsum("nij,nj->ni", wide.P, wide.m) - torch.einsum("nij,nj->ni", precision, wide.mu)
    top = torch.linalg.solve(wide.P - precision, pull)
    largest = wide.log_w(top)
    assert (largest >= LOG_EVIDENCE).all()
    draws = torch.distributions.MultivariateNormal(wide.mu, wide.C).sample((2000,))
    assert (bounds.largest_weight(wide.log_w(draws)) <= largest + 1e-10).all()
    assert ((top - wide.mu).abs().amax(-1) > 1e-3).all()  # not at the guide's mean

    narrow = pair._replace(C=0.5 * torch.linalg.inv(pair.P))
    torch.testing.assert_close(bounds.tail_index(narrow.C, narrow.P), torch.full((20,), 0.5, dtype=F64))
    far = [narrow.log_w(narrow.mu + distance) for distance in (10.0, 100.0, 1000.0)]
    assert (far[0] < far[1]).all()
    assert (far[1] + 100 < far[2]).all()


def test_log_weights_are_constant_if_and_only_if_the_guide_is_the_posterior():
    pair = random_pair()
    z = torch.randn(100, 20, 3, dtype=F64)
    exact = Pair(pair.m, pair.P, pair.m, torch.linalg.inv(pair.P))
    log_w = exact.log_w(z)
    for estimate in (
        weights.elbo(log_w),
        weights.iwae(log_w),
        weights.psis(log_w).log_evidence,
        corrections.cumulant(log_w),
        corrections.jackknife(log_w),
        corrections.jackknife(log_w, order=2),
        bounds.cubo(log_w),
        bounds.eubo(log_w[None]),
        bounds.reciprocal(log_w[None]),
        bounds.largest_weight(log_w),
    ):
        torch.testing.assert_close(estimate, torch.full_like(estimate, LOG_EVIDENCE), rtol=0, atol=1e-9)
    assert (exact._replace(mu=pair.mu).log_w(z).std(0) > 0.1).all()


def test_lower_bound_upper_bound_and_the_jeffreys_divergence():
    """E_posterior[log w] - E_q[log w] = KL(q || p) + KL(p || q), by an exact average over the sigma points of both."""
    pair = random_pair()
    posterior = torch.distributions.MultivariateNormal(pair.m, precision_matrix=pair.P)
    guide = torch.distributions.MultivariateNormal(pair.mu, pair.C)
    root = math.sqrt(3.0) * torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)])
    at_posterior = pair.m + torch.einsum("nij,kj->kni", posterior.scale_tril, root)
    at_guide = pair.mu + torch.einsum("nij,kj->kni", guide.scale_tril, root)
    upper, lower = bounds.eubo(pair.log_w(at_posterior)[None]), weights.elbo(pair.log_w(at_guide))
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(upper - lower, kl(guide, posterior) + kl(posterior, guide), rtol=0, atol=1e-9)
    torch.testing.assert_close(lower, pair.elbo(), rtol=0, atol=1e-9)


def mean_field(rho: float) -> Pair:
    precision = torch.linalg.inv(torch.tensor([[[1.0, rho], [rho, 1.0]]], dtype=F64))
    zero = torch.zeros(1, 2, dtype=F64)
    return Pair(zero, precision, zero, torch.diag_embed(1 / precision.diagonal(dim1=-2, dim2=-1)))


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.5, 0.99])
def test_the_tail_index_of_the_best_mean_field_guide_is_the_correlation(rho):
    pair = mean_field(rho)
    assert bounds.tail_index(pair.C, pair.P).item() == pytest.approx(abs(rho), abs=1e-10)
    assert (LOG_EVIDENCE - pair.elbo()).item() == pytest.approx(-0.5 * math.log1p(-(rho**2)), abs=1e-10)


def test_the_estimated_tail_index_rises_with_the_exact_one():
    torch.manual_seed(0)
    found = []
    for rho in (0.5, 0.7, 0.9):
        pair = mean_field(rho)
        z = torch.randn(10_000, 20, 1, 2, dtype=F64) * pair.C.diagonal(dim1=-2, dim2=-1).sqrt()
        found.append(weights.psis(pair.log_w(z)[..., 0]).khat.mean().item())
        assert found[-1] == pytest.approx(bounds.tail_index(pair.C, pair.P).item(), abs=0.2)
    assert found[0] + 0.1 < found[1] < found[2] - 0.1


def exponential_log_weights(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=F64).exponential_().log()


def exponential_oracle_holds(estimator, log_w: torch.Tensor) -> bool:
    """E log-mean of K weights from Exp(1) is digamma(K) - log K."""
    return means_agree(estimator(log_w), special.digamma(len(log_w)) - math.log(len(log_w)))


@pytest.mark.parametrize("num_particles", [2, 10, 100])
def test_iwae_of_exponential_weights(num_particles):
    torch.manual_seed(0)
    log_w = exponential_log_weights(num_particles, 20_000)
    assert exponential_oracle_holds(weights.iwae, log_w)
    assert not exponential_oracle_holds(lambda x: x.logsumexp(0), log_w)  # log K dropped


def noise_is_independent(log_w: torch.Tensor, chi_squared: float) -> bool:
    """K Var[exp(IWAE_K)/p] = chi^2(p || q), by the mean of the squared deviation from 1."""
    squares = len(log_w) * (weights.iwae(log_w).exp() - 1.0).square()
    return means_agree(squares, chi_squared)


@pytest.mark.parametrize("num_particles", [2, 10, 50])
def test_the_variance_of_the_density_sees_noise_shared_by_particles(num_particles):
    """Exp(1) has mean and variance 1. The mean of the estimate cannot see shared noise; its variance does."""
    torch.manual_seed(0)
    log_w = exponential_log_weights(num_particles, 20_000)
    assert noise_is_independent(log_w, 1.0)
    half = log_w.clone()
    half[num_particles // 2 :] = log_w[: num_particles - num_particles // 2]  # every noise used twice
    assert means_agree(weights.iwae(half).exp(), 1.0)
    assert not noise_is_independent(half, 1.0)


def test_chi_squared_of_two_gaussians():
    """Posterior N(0, 1), guide N(0, s^2): E_q[(w/p)^2] = s^2 / sqrt(2 s^2 - 1)."""
    torch.manual_seed(0)
    sd = 1.4
    z = sd * torch.randn(8, 50_000, dtype=F64)
    log_w = -0.5 * z.square() + 0.5 * (z / sd).square() + math.log(sd)
    chi_squared = sd**2 / math.sqrt(2 * sd**2 - 1) - 1
    assert noise_is_independent(log_w, chi_squared)
    assert not noise_is_independent(log_w[:1].expand(8, -1), chi_squared)
