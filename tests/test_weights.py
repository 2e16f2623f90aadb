"""Estimators on log-weights: formulas, exact expectations, and the tails that Pareto smoothing sees."""

import math

import numpy as np
import pytest
import torch
from arviz_stats.base.array import array_stats
from chance import means_agree
from scipy import special

from pyrovae.inference import weights

REDUCTIONS = (
    weights.elbo,
    weights.elbo_std_error,
    weights.iwae,
    weights.iwae_std_error,
    weights.effective_sample_size,
)


def exponential_log_weights(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float64).exponential_().log()


def wide_guide_log_ratio(num_particles: int, num_rows: int) -> torch.Tensor:
    """log of w / p(x) for posterior N(0, 1) and guide N(0.3, 1.5^2): weights are bounded."""
    z = 0.3 + 1.5 * torch.randn(num_particles, num_rows, dtype=torch.float64)
    return -0.5 * z.square() + 0.5 * ((z - 0.3) / 1.5).square() + math.log(1.5)


def mean_field_log_weights(rho: float, num_particles: int, num_rows: int) -> torch.Tensor:
    """Log-weights of the best diagonal guide for a two-dimensional Gaussian of correlation rho: k = rho exactly."""
    precision = torch.linalg.inv(torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64))
    z = torch.randn(num_particles, num_rows, 2, dtype=torch.float64) / precision.diagonal().sqrt()
    return -0.5 * (z @ precision * z).sum(-1) + 0.5 * (z.square() * precision.diagonal()).sum(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 2, 3)])
def test_formulas_and_shapes(dtype, tolerance, shape):
    torch.manual_seed(0)
    log_w = torch.randn(shape, dtype=dtype)
    x = log_w.double().numpy()
    w, v = np.exp(x), np.exp(x) / np.exp(x).sum(0)
    expected = (
        x.mean(0),
        x.std(0, ddof=1) / math.sqrt(50),
        np.log(w.mean(0)),
        w.std(0, ddof=1) / math.sqrt(50) / w.mean(0),
        1 / (v**2).sum(0),
    )
    for function, value in zip(REDUCTIONS, expected, strict=True):
        result = function(log_w)
        assert result.dtype == dtype
        assert result.shape == shape[1:]
        np.testing.assert_allclose(result.numpy(), value, rtol=tolerance, atol=1e-15)
    np.testing.assert_allclose(weights.normalized_weights(log_w).numpy(), v, rtol=tolerance)


@pytest.mark.parametrize("shift", [-1e5, 1e5])
def test_weights_far_beyond_the_exponents_range(shift):
    torch.manual_seed(0)
    log_w = torch.randn(100, 3, dtype=torch.float64)
    for function in (weights.elbo, weights.iwae):
        torch.testing.assert_close(function(log_w + shift), function(log_w) + shift, rtol=1e-12, atol=0.0)
    for function in (weights.elbo_std_error, weights.iwae_std_error, weights.effective_sample_size):
        torch.testing.assert_close(function(log_w + shift), function(log_w), rtol=1e-8, atol=0.0)


def test_standard_error_in_float32_does_not_cancel():
    """A sum of squares minus the square of a sum would lose all digits here."""
    log_w = torch.tensor([-30000.0, -30000.25, -29999.75, -30000.0])
    assert weights.elbo_std_error(log_w).item() == pytest.approx(math.sqrt(0.125 / 3 / 4), rel=1e-6)


def test_zero_weights_are_legal():
    log_w = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    assert weights.iwae(log_w).tolist() == pytest.approx([math.log(0.5), -math.inf])
    assert weights.elbo(log_w).tolist() == [-math.inf, -math.inf]
    assert weights.effective_sample_size(log_w)[0] == 1.0
    assert weights.iwae_std_error(log_w)[0].item() == pytest.approx(1.0)


def test_one_draw_has_no_error_bar():
    one = torch.zeros(1, 2)
    assert weights.elbo_std_error(one).isnan().all()
    assert weights.iwae_std_error(one).isnan().all()
    assert torch.equal(weights.elbo(one), weights.iwae(one))


def exponential_oracle_holds(estimator, log_w: torch.Tensor) -> bool:
    """E log-mean of K weights from Exp(1) is digamma(K) - log K."""
    return means_agree(estimator(log_w), special.digamma(len(log_w)) - math.log(len(log_w)))


@pytest.mark.parametrize("num_particles", [1, 4, 32])
def test_iwae_has_its_exact_expectation(num_particles):
    torch.manual_seed(0)
    assert exponential_oracle_holds(weights.iwae, exponential_log_weights(num_particles, 20_000))


def test_iwae_oracle_catches_planted_bugs():
    torch.manual_seed(0)
    log_w = exponential_log_weights(4, 20_000)
    assert not exponential_oracle_holds(lambda x: x.logsumexp(0), log_w)
    assert not exponential_oracle_holds(weights.elbo, log_w)
    assert not exponential_oracle_holds(weights.iwae, log_w[:1].expand(4, -1))  # one noise for all particles


def test_the_mean_weight_is_the_evidence_at_any_number_of_particles():
    torch.manual_seed(0)
    for num_particles in (2, 3, 10):
        log_ratio = wide_guide_log_ratio(num_particles, 20_000)
        assert means_agree(weights.iwae(log_ratio).exp(), 1.0)
        assert not means_agree(weights.elbo(log_ratio).exp(), 1.0)
        assert not means_agree(weights.iwae(log_ratio - math.log(1.5)).exp(), 1.0)  # Jacobian dropped


def test_iwae_rises_with_particles_from_the_elbo_to_the_largest_weight():
    """Deterministic: the log of a mean of halves is at least the mean of their logs."""
    torch.manual_seed(0)
    log_w = wide_guide_log_ratio(64, 100)
    previous = weights.elbo(log_w)
    for size in (2, 4, 8, 16, 32, 64):
        bound = weights.iwae(log_w.reshape(size, 64 // size, 100)).mean(0)
        assert (bound >= previous - 1e-12).all()
        previous = bound
    assert (previous <= log_w.amax(0)).all()


def test_elbo_standard_error_is_calibrated():
    """Var log w is pi^2 / 6 for w from Exp(1), and the squared standard error has mean Var / K at any K."""
    torch.manual_seed(0)
    log_w = exponential_log_weights(5, 50_000)
    assert means_agree(5 * weights.elbo_std_error(log_w).square(), math.pi**2 / 6)
    assert not means_agree(5 * log_w.var(0, correction=0) / 5, math.pi**2 / 6)


def test_effective_sample_size_lies_between_one_and_all():
    torch.manual_seed(0)
    ess = weights.effective_sample_size(10 * torch.randn(100, 50))
    assert ((ess >= 1) & (ess <= 100)).all()
    assert weights.effective_sample_size(torch.full((100,), -3.0)).item() == pytest.approx(100)


def test_khat_threshold():
    found = [weights.khat_threshold(size) for size in (100, 320, 1000, 2200, 10**6)]
    assert found == pytest.approx([0.5, 0.6, 0.667, 0.7, 0.7], abs=2e-3)
    assert weights.khat_threshold(1) == -math.inf
    with pytest.raises(ValueError, match="at least 1"):
        weights.khat_threshold(0)


GOLDEN = {0.3: 0.3136, 0.5: 0.5001, 0.7: 0.6865, 1.0: 0.9660}
"""Mean k-hat of 3000 sets of 4000 Pareto weights of shape k; one k-hat has a standard deviation of 0.09 to 0.14."""


@pytest.mark.parametrize("shape", GOLDEN)
def test_khat_of_pareto_weights(shape):
    torch.manual_seed(0)
    log_w = shape * torch.empty(4000, 40, dtype=torch.float64).exponential_()
    assert means_agree(weights.psis(log_w).khat, GOLDEN[shape])
    assert not means_agree(weights.psis(-log_w).khat, GOLDEN[shape])  # the sign that ArviZ wants, taken twice


def test_khat_of_the_best_mean_field_guide():
    """The exact index is the correlation; its estimate is biased, rises with it, and stays within 0.2."""
    torch.manual_seed(0)
    correlations = (0.5, 0.7, 0.9)
    khats = [weights.psis(mean_field_log_weights(rho, 10_000, 20)).khat.mean().item() for rho in correlations]
    assert khats == sorted(khats)
    assert khats == pytest.approx(correlations, abs=0.2)


def test_psis_keeps_the_scale_of_the_weights():
    torch.manual_seed(0)
    log_w = 0.5 * torch.empty(1000, 4, dtype=torch.float64).exponential_() - 700.0
    result = weights.psis(log_w)
    order = log_w.argsort(0)
    head = order[: 1000 - 94]
    close = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close(result.log_weights.gather(0, head), log_w.gather(0, head), **close)
    assert (result.log_weights.gather(0, order).diff(dim=0) >= -1e-10).all()
    assert (result.log_weights.amax(0) <= log_w.amax(0) + 1e-10).all()
    torch.testing.assert_close(result.log_evidence, weights.iwae(result.log_weights), **close)
    shifted = weights.psis(log_w + 650.0)
    torch.testing.assert_close(shifted.log_evidence, result.log_evidence + 650.0, **close)
    torch.testing.assert_close(shifted.khat, result.khat, **close)


def test_psis_agrees_with_arviz_column_by_column():
    torch.manual_seed(0)
    log_w = torch.randn(400, 2, 3, dtype=torch.float64)
    result = weights.psis(log_w)
    for i, j in np.ndindex(2, 3):
        normalized, khat = array_stats.psislw(-log_w[:, i, j].numpy())
        assert result.khat[i, j].item() == pytest.approx(float(khat), abs=1e-12)
        np.testing.assert_allclose(result.log_weights[:, i, j].log_softmax(0).numpy(), normalized, atol=1e-10)


def test_psis_is_closer_to_the_evidence_than_plain_weights():
    """Weights of Pareto shape 0.7 have mean 1 / 0.3: the sum is ruled by its largest term, which smoothing tames."""
    torch.manual_seed(0)
    log_w = 0.7 * torch.empty(1000, 200, dtype=torch.float64).exponential_()
    plain, smoothed = weights.iwae(log_w), weights.psis(log_w).log_evidence
    truth = math.log(1 / 0.3)
    assert (smoothed - truth).square().mean() < 0.8 * (plain - truth).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_guide_has_no_tail(dtype):
    torch.manual_seed(0)
    noise = 2 * torch.finfo(dtype).eps * 500 * (torch.rand(1000, 3, dtype=dtype) - 0.5)
    for log_w in (torch.full((1000, 3), -500.0, dtype=dtype), -500.0 + noise):
        result = weights.psis(log_w)
        assert (result.khat == -math.inf).all()
        assert torch.equal(result.log_weights, log_w)
        assert (result.std_error < 1e-3).all()
        torch.testing.assert_close(result.log_evidence, torch.full((3,), -500.0, dtype=dtype))
        assert all(field.dtype == dtype for field in result)


def test_a_bounded_ratio_with_zeros_has_no_tail():
    """A uniform guide, twice as wide as a uniform posterior: half of the weights are 0, the others are equal."""
    log_w = torch.where(torch.arange(1000) % 2 == 0, math.log(2.0), -math.inf)
    result = weights.psis(log_w)
    assert result.khat == -math.inf
    assert result.log_evidence.item() == pytest.approx(0.0, abs=1e-6)
    assert result.std_error.item() == pytest.approx(1 / math.sqrt(999), rel=1e-5)


def test_zero_weights_leave_the_fit_to_the_others():
    torch.manual_seed(0)
    log_w = 0.5 * torch.empty(1000, dtype=torch.float64).exponential_()
    with_zeros = torch.cat([log_w, torch.full((1000,), -math.inf, dtype=torch.float64)])
    alone, mixed = weights.psis(log_w), weights.psis(with_zeros)
    assert torch.equal(alone.khat, mixed.khat)
    assert mixed.log_evidence.item() == pytest.approx(alone.log_evidence.item() - math.log(2.0), abs=1e-12)
    assert (mixed.log_weights[1000:] == -math.inf).all()


def hopeless_log_weights() -> dict[str, torch.Tensor]:
    ties = torch.zeros(1000, dtype=torch.float64)
    ties[:5] = 1.0
    return {
        "too few": torch.randn(24, dtype=torch.float64),
        "one": torch.zeros(1, dtype=torch.float64),
        "too wide": 3000.0 * torch.randn(1000, dtype=torch.float64),
        "ties": ties,
        "all zero": torch.full((100,), -math.inf, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", hopeless_log_weights())
def test_a_tail_that_cannot_be_fitted_is_not_trusted(name):
    torch.manual_seed(0)
    log_w = hopeless_log_weights()[name]
    result = weights.psis(log_w)
    assert result.khat == math.inf
    assert torch.equal(result.log_weights, log_w)
    assert torch.equal(result.log_evidence, weights.iwae(log_w))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_psis_refuses_and_names_the_row(bad):
    log_w = torch.zeros(100, 4)
    log_w[3, 2] = bad
    with pytest.raises(ValueError, match="1 of 100 of row 2 are NaN or"):
        weights.psis(log_w)
    with pytest.raises(ValueError, match="1 of 100 are NaN"):
        weights.psis(log_w[:, 2])


def test_psis_of_no_weights_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        weights.psis(torch.zeros(0, 3))


def test_weights_pass_gradients():
    log_w = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(weights.iwae(log_w).sum(), log_w)
    torch.testing.assert_close(gradient, weights.normalized_weights(log_w.detach()))
    assert not weights.psis(log_w).log_evidence.requires_grad
