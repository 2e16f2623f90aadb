"""The best Gaussian per datum: closed forms, exact noise, the climb itself, and what is refused."""

import pytest
import torch

from pyrovae.inference import lbfgs
from pyrovae.inference.gaussian_fit import (
    DIAGONAL,
    FULL,
    fit_gaussian,
    gaussian_kl,
    hadamard_gap,
    standard_noise,
)
from pyrovae.inference.laplace import Gaussian

F64 = torch.float64


def posteriors(num_data: int = 4, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and precisions of correlated Gaussians, one per datum."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(num_data, dim, dim, generator=generator, dtype=F64)
    mean = torch.randn(num_data, dim, generator=generator, dtype=F64)
    return mean, factor @ factor.mT + 0.3 * torch.eye(dim, dtype=F64)


def quadratic(mean, precision):
    """Densities of some of the data, as a fit asks for them."""

    def density_of(rows):
        def log_density(z):
            centred = z - mean[rows]
            return -0.5 * torch.einsum("kni,nij,knj->kn", centred, precision[rows], centred)

        return log_density

    return density_of


def rough(num_data: int = 4, dim: int = 3) -> Gaussian:
    """A bad start: unit scale, away from everything."""
    tril = torch.eye(dim, dtype=F64).expand(num_data, dim, dim)
    return Gaussian(torch.full((num_data, dim), 2.0, dtype=F64), tril)


def fitted(family, noise=None, **options):
    mean, precision = posteriors()
    noise = standard_noise(16, 3, dtype=F64) if noise is None else noise
    return fit_gaussian(
        quadratic(mean, precision), family, rough(), [rough()], noise, tolerance=1e-12, **options
    )


def best_scales_are_found(noise) -> bool:
    mean, precision = posteriors()
    found = fitted(DIAGONAL, noise)
    wanted = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    scale = found.gaussian.scale_tril.diagonal(dim1=-2, dim2=-1)
    is_close = torch.allclose(scale, wanted, atol=1e-5) and torch.allclose(
        found.gaussian.loc, mean, atol=1e-5
    )
    return is_close and bool(found.has_converged.all())


def test_the_best_diagonal_gaussian_has_the_scales_of_the_precision():
    assert best_scales_are_found(standard_noise(16, 3, dtype=F64))


def test_mutant_noise_whose_moments_are_right_only_on_average_is_caught():
    for seed in range(5):
        noise = torch.randn(16, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
        assert not best_scales_are_found(noise)


def test_the_best_full_gaussian_is_the_posterior_and_the_loss_of_the_diagonal_one_hadamards():
    mean, precision = posteriors()
    full, diagonal = fitted(FULL), fitted(DIAGONAL)
    covariance = full.gaussian.scale_tril @ full.gaussian.scale_tril.mT
    assert torch.allclose(covariance, torch.linalg.inv(precision), atol=1e-5)
    assert torch.allclose(full.gaussian.loc, mean, atol=1e-5)
    assert torch.allclose(full.elbo - diagonal.elbo, hadamard_gap(precision), atol=1e-9)
    assert torch.allclose(gaussian_kl(diagonal.gaussian, full.gaussian), hadamard_gap(precision), atol=1e-5)
    log_evidence = 1.5 * torch.log(torch.tensor(2 * torch.pi, dtype=F64)) - 0.5 * precision.logdet()
    assert torch.allclose(full.elbo, log_evidence, atol=1e-9)


def test_a_quartic_density_has_the_scale_that_its_draws_say():
    """ELBO of N(0, s^2) under -z^4 / 4: -s^4 mean(u^4) / 4 + log s, largest at s = mean(u^4)^(-1/4)."""
    noise = standard_noise(64, 1, dtype=F64)
    unit = Gaussian(torch.zeros(2, 1, dtype=F64), torch.ones(2, 1, 1, dtype=F64))
    for family in (DIAGONAL, FULL):
        found = fit_gaussian(
            lambda rows: lambda z: -z.pow(4).sum(-1) / 4, family, unit, [unit], noise, tolerance=1e-13
        )
        wanted = noise.pow(4).mean() ** -0.25
        assert torch.allclose(found.gaussian.scale_tril.flatten(), wanted.expand(2), atol=1e-5)


def test_noise_has_exact_moments_and_opposite_pairs():
    noise = standard_noise(12, 4, dtype=F64)
    assert noise.mean(0).abs().max() < 1e-12
    assert torch.allclose(noise.mT @ noise / 12, torch.eye(4, dtype=F64), atol=1e-12)
    assert torch.equal(noise[:6], -noise[6:])
    for count in (13, 8):
        with pytest.raises(ValueError, match="even in number and at least 10"):
            standard_noise(count, 4)


def test_the_kl_of_gaussians_is_torchs():
    mean, precision = posteriors()
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    q, p = Gaussian(mean, tril), Gaussian(mean.flip(0), tril.flip(0))
    normal = torch.distributions.MultivariateNormal
    wanted = torch.distributions.kl_divergence(
        normal(q.loc, scale_tril=q.scale_tril), normal(p.loc, scale_tril=p.scale_tril)
    )
    assert torch.allclose(gaussian_kl(q, p), wanted)


def test_hadamard_is_nan_without_a_precision():
    assert hadamard_gap(torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])).isnan().all()


def test_hadamard_is_never_below_zero():
    generator = torch.Generator().manual_seed(0)
    precision = torch.diag_embed(torch.rand(1000, 7, generator=generator, dtype=F64) * 1e3)
    assert (hadamard_gap(precision) >= 0).all()
    assert (hadamard_gap(precision.float()) >= 0).all()


def banana(rows):
    """Rosenbrock's valley, a bend in it for every row, with its maximum 0 at (1, 1)."""
    bend = torch.tensor([1.0, 10.0, 50.0, 100.0], dtype=F64)[rows]

    def evaluate(x):
        across, along = x[:, 1] - x[:, 0].square(), 1 - x[:, 0]
        slope_y = -2 * bend * across
        slope = torch.stack([-2 * x[:, 0] * slope_y + 2 * along, slope_y], -1)
        return -(along.square() + bend * across.square()), slope

    return evaluate


def test_the_climb_ends_at_the_top_of_a_bent_valley_in_every_row():
    start = torch.tensor([[-1.2, 1.0]] * 4, dtype=F64)
    found = lbfgs.maximize(banana, start, tolerance=1e-16, max_steps=400)
    assert found.has_converged.all()
    assert torch.allclose(found.position, torch.ones(4, 2, dtype=F64), atol=1e-6)
    assert len(set(found.num_evaluations.tolist())) > 1  # rows leave on their own


def test_a_row_goes_the_same_way_in_any_company():
    start = torch.tensor([[-1.2, 1.0]] * 4, dtype=F64)
    together = lbfgs.maximize(banana, start, tolerance=1e-10, max_steps=300)
    for row in range(4):
        alone = lbfgs.maximize(
            lambda rows, row=row: banana(rows + row), start[row : row + 1], tolerance=1e-10, max_steps=300
        )
        assert torch.allclose(alone.position[0], together.position[row], atol=1e-12)
        assert int(alone.num_evaluations) == int(together.num_evaluations[row])


def test_a_search_that_is_cut_short_says_so_and_has_not_lost():
    start = torch.tensor([[-1.2, 1.0]] * 4, dtype=F64)
    values = [lbfgs.maximize(banana, start, tolerance=1e-10, max_steps=n) for n in (1, 3, 7, 20)]
    assert not values[0].has_converged.any()
    stacked = torch.stack([found.value for found in values])
    assert (stacked.diff(dim=0) >= 0).all()


def test_a_wall_of_infinite_density_is_backed_away_from():
    def of_rows(rows):
        def evaluate(x):
            return torch.where(x > 2.0, -torch.inf, -10.0 * (x - 1.9) ** 2).sum(-1), -20.0 * (x - 1.9)

        return evaluate

    found = lbfgs.maximize(of_rows, torch.zeros(1, 1, dtype=F64), tolerance=1e-12)
    assert found.has_converged.all()
    assert torch.allclose(found.position, torch.tensor([[1.9]], dtype=F64), atol=1e-5)


def test_what_cannot_be_fitted_is_refused():
    noise = standard_noise(8, 3, dtype=F64)
    with pytest.raises(ValueError, match="at least one Gaussian"):
        fit_gaussian(quadratic(*posteriors()), FULL, rough(), [], noise)
    with pytest.raises(ValueError, match="finite ELBO for datum 0"):
        fit_gaussian(lambda rows: lambda z: z.sum(-1) / 0.0, FULL, rough(), [rough()], noise)
    with pytest.raises(ValueError, match="max_steps at least 1"):
        fitted(FULL, max_steps=0)
