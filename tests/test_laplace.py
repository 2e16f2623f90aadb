"""Laplace's approximation and Gaussians per datum: exact cases, rows that must be refused, changes of coordinates."""

import math

import pytest
import torch
from chance import chi2_is_plausible, means_agree
from scipy import special

from pyrovae.inference import hmc, laplace
from pyrovae.inference.laplace import Gaussian, fit_laplace, from_draws

NUM_DATA, DIM = 7, 3


def gaussians(dtype=torch.float64) -> Gaussian:
    """One Gaussian per datum, correlated, of different sizes."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(NUM_DATA, DIM, DIM, generator=generator, dtype=torch.float64)
    covariance = noise @ noise.mT + 0.2 * torch.eye(DIM)
    loc = 5 * torch.randn(NUM_DATA, DIM, generator=generator, dtype=torch.float64)
    return Gaussian(loc.to(dtype), torch.linalg.cholesky(covariance).to(dtype))


def precision_of(gaussian: Gaussian) -> torch.Tensor:
    return torch.cholesky_inverse(gaussian.scale_tril)


def exact_log_density(gaussian: Gaussian):
    precision = precision_of(gaussian)

    def log_density(z):
        centred = z - gaussian.loc
        return 3.0 - 0.5 * (torch.einsum("...ni,nij->...nj", centred, precision) * centred).sum(-1)

    return log_density


def exact_curvature(log_density):
    """Minus the Hessian by automatic differentiation, for a row-wise log density [n, d] -> [n]."""

    def curvature(z):
        def total(point):
            return log_density(point).sum()

        hessian = torch.autograd.functional.hessian(total, z[0])
        rows = torch.arange(z.shape[1])
        return -hessian[rows, :, rows, :].unsqueeze(0)

    return curvature


def fit(log_density, start, **options):
    return fit_laplace(hmc.with_gradient(log_density), exact_curvature(log_density), start, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gaussian_takes_one_step(dtype):
    torch.manual_seed(0)
    exact = gaussians(dtype)
    start = 10 * torch.randn(NUM_DATA, DIM, dtype=dtype)
    result = fit(exact_log_density(exact), start)
    assert result.num_steps == 1
    assert result.is_usable.all()
    atol = 1e-10 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(result.gaussian.loc, exact.loc, rtol=0.0, atol=atol)
    torch.testing.assert_close(result.gaussian.scale_tril, exact.scale_tril, rtol=0.0, atol=atol)
    torch.testing.assert_close(result.log_density, torch.full((NUM_DATA,), 3.0, dtype=dtype))


COUNTS = torch.tensor([0.0, 1.0, 5.0, 50.0, 3000.0], dtype=torch.float64)


def poisson_log_density(z):
    """z ~ N(0, 1), a count from Poisson(exp z): the mode is x - W(exp x), the curvature 1 + exp z."""
    return (COUNTS[:, None] * z - z.exp() - 0.5 * z.square()).sum(-1)


def poisson_mode() -> torch.Tensor:
    asymptotic = [x - special.lambertw(math.exp(x)).real for x in COUNTS[:4].tolist()]
    root = math.log(3000.0)
    for _ in range(50):  # exp(3000) is out of range: solve log(3000 - z) = z instead
        root = math.log(3000.0 - root)
    return torch.tensor([*asymptotic, root], dtype=torch.float64)


@pytest.mark.parametrize("start", [-3.0, 0.0, 6.0])
def test_a_nonlinear_model_from_far_away(start):
    result = fit(poisson_log_density, torch.full((5, 1), start, dtype=torch.float64), tolerance=1e-12)
    mode = poisson_mode()
    assert result.is_usable.all()
    torch.testing.assert_close(result.gaussian.loc[:, 0], mode, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(
        result.gaussian.scale_tril[:, 0, 0], (1 + mode.exp()).rsqrt(), rtol=1e-5, atol=0.0
    )
    torch.testing.assert_close(result.log_density, poisson_log_density(mode[:, None]))


def test_gauss_newton_reaches_the_mode_of_a_nonlinear_decoder():
    """x = tanh(A z) + noise: Gauss-Newton's curvature is not the Hessian, and the gradient still vanishes."""
    torch.manual_seed(0)
    weight = torch.randn(6, 2, dtype=torch.float64)
    data = torch.tanh(torch.randn(9, 2, dtype=torch.float64) @ weight.T)

    def log_density(z):
        return -0.5 * (data - torch.tanh(z @ weight.T)).square().sum(-1) / 0.1 - 0.5 * z.square().sum(-1)

    def gauss_newton(z):
        slope = 1 - torch.tanh(z @ weight.T).square()
        jacobian = slope.unsqueeze(-1) * weight
        return jacobian.mT @ jacobian / 0.1 + torch.eye(2)

    result = fit_laplace(
        hmc.with_gradient(log_density),
        gauss_newton,
        torch.zeros(9, 2).double(),
        tolerance=1e-14,
        max_steps=200,
    )
    assert result.is_usable.all()
    _, gradient = hmc.with_gradient(log_density)(result.gaussian.loc)
    assert gradient.abs().max() < 1e-4
    inverse = result.gaussian.scale_tril @ result.gaussian.scale_tril.mT
    torch.testing.assert_close(torch.linalg.inv(inverse), gauss_newton(result.gaussian.loc))


def double_well(z):
    """Modes at (-1, 0) and (1, 0), a saddle at the origin."""
    return -0.25 * (z[..., 0].square() - 1).square() - 0.5 * z[..., 1].square()


def test_a_saddle_is_flagged_and_left_where_possible():
    start = torch.tensor([[0.0, 0.0], [0.1, 0.5], [-0.1, -2.0]], dtype=torch.float64)
    result = fit(double_well, start)
    assert result.is_usable.tolist() == [False, True, True]
    modes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(result.gaussian.loc, modes, rtol=0.0, atol=3e-3)
    assert torch.equal(result.gaussian.scale_tril[0], torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "bad", ["nan everywhere", "-inf everywhere", "nan once it moves", "no maximum", "bad curvature"]
)
def test_a_bad_row_is_flagged_stays_finite_and_touches_no_other(bad):
    torch.manual_seed(0)
    start = torch.randn(5, 1, dtype=torch.float64)

    def log_density(z):
        poisson = poisson_log_density(z)
        row = torch.arange(5) == 2
        moved = (z != start).any(-1)
        replaced = {
            "nan everywhere": torch.full_like(poisson, math.nan),
            "-inf everywhere": torch.full_like(poisson, -math.inf),
            "nan once it moves": torch.where(moved, math.nan, poisson),
            "no maximum": z.sum(-1),
            "bad curvature": poisson,
        }[bad]
        return torch.where(row, replaced, poisson)

    def curvature(z):
        value = exact_curvature(poisson_log_density)(z)
        is_bad = (torch.arange(5) == 2)[:, None, None]
        worse = {"bad curvature": math.nan, "no maximum": 0.0}.get(bad)
        return value if worse is None else torch.where(is_bad, worse, value)

    found = fit_laplace(hmc.with_gradient(log_density), curvature, start)
    alone = fit(poisson_log_density, start)
    others = torch.arange(5) != 2
    assert torch.equal(found.is_usable, others)
    assert torch.equal(found.gaussian.loc[others], alone.gaussian.loc[others])
    assert torch.equal(found.gaussian.scale_tril[others], alone.gaussian.scale_tril[others])
    assert found.gaussian.loc.isfinite().all()
    assert found.gaussian.scale_tril.isfinite().all()


def test_too_few_steps_are_flagged():
    result = fit(poisson_log_density, torch.full((5, 1), -3.0, dtype=torch.float64), max_steps=1)
    assert result.num_steps == 1
    there = fit(poisson_log_density, torch.full((5, 1), -3.0, dtype=torch.float64)).gaussian
    off = ((result.gaussian.loc - there.loc) / there.scale_tril[..., 0]).abs()[:, 0]
    assert torch.equal(result.is_usable, off < 1.0)
    assert result.is_usable.sum() == 1


def test_the_log_density_never_falls():
    """Every budget of steps ends at least as high as a smaller one, also where full Newton steps overshoot."""
    start = torch.full((5, 1), -3.0, dtype=torch.float64)
    previous = poisson_log_density(start)
    for budget in range(1, 15):
        found = fit(poisson_log_density, start, max_steps=budget).log_density
        assert (found >= previous).all()
        previous = found


def test_steps_are_counted():
    calls = {"gradient": 0, "curvature": 0}
    density, curvature = hmc.with_gradient(poisson_log_density), exact_curvature(poisson_log_density)

    def counted_density(z):
        calls["gradient"] += 1
        return density(z)

    def counted_curvature(z):
        calls["curvature"] += 1
        return curvature(z)

    result = fit_laplace(counted_density, counted_curvature, torch.zeros(5, 1, dtype=torch.float64))
    assert calls == {"gradient": result.num_steps + 1, "curvature": result.num_steps + 1}


def test_arguments_out_of_range():
    start = torch.zeros(4, 1)
    start[2] = math.nan
    with pytest.raises(ValueError, match=r"start must be finite, but is not for datum 2"):
        fit(lambda z: -z.square().sum(-1), start)
    for options in ({"max_steps": 0}, {"tolerance": 0.0}, {"tolerance": math.nan}):
        with pytest.raises(ValueError, match="max_steps must be at least 1, tolerance above 0"):
            fit(lambda z: -z.square().sum(-1), torch.zeros(4, 1), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (5,), (2, 4)])
def test_whitening_is_undone_by_unwhitening(lead, dtype):
    torch.manual_seed(0)
    gaussian = gaussians(dtype)
    u = torch.randn(*lead, NUM_DATA, DIM, dtype=dtype)
    z = laplace.unwhiten(gaussian, u)
    assert z.dtype == dtype
    assert z.shape == u.shape
    torch.testing.assert_close(
        laplace.whiten(gaussian, z), u, rtol=0.0, atol=1e-12 if dtype == torch.float64 else 1e-4
    )
    expected = gaussian.loc[3] + gaussian.scale_tril[3] @ u[..., 3, :].reshape(-1, DIM)[0]
    torch.testing.assert_close(z[..., 3, :].reshape(-1, DIM)[0], expected)


def test_the_exact_gaussian_whitens_its_own_density():
    torch.manual_seed(0)
    exact = gaussians()
    u = torch.randn(5, NUM_DATA, DIM, dtype=torch.float64)
    density = exact_log_density(exact)
    value, gradient = hmc.with_gradient(lambda u: density(laplace.unwhiten(exact, u)))(u)
    torch.testing.assert_close(value, 3.0 - 0.5 * u.square().sum(-1))
    torch.testing.assert_close(gradient, -u)
    given = laplace.whitened_gradient(exact, hmc.with_gradient(density))(u)
    torch.testing.assert_close(given, (value, gradient))


def test_log_prob_is_torchs():
    torch.manual_seed(0)
    gaussian = gaussians()
    z = torch.randn(5, NUM_DATA, DIM, dtype=torch.float64)
    torch_normal = torch.distributions.MultivariateNormal(gaussian.loc, scale_tril=gaussian.scale_tril)
    torch.testing.assert_close(laplace.log_prob(gaussian, z), torch_normal.log_prob(z))


def test_widening():
    wide = laplace.widen(gaussians(), 2.0)
    torch.testing.assert_close(wide.scale_tril, 2 * gaussians().scale_tril)
    for factor in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="factor must be above 0"):
            laplace.widen(gaussians(), factor)


def exact_draws(num_draws: int) -> torch.Tensor:
    return laplace.unwhiten(gaussians(), torch.randn(num_draws, NUM_DATA, DIM, dtype=torch.float64))


def test_moments_of_many_draws():
    torch.manual_seed(0)
    exact = gaussians()
    draws = exact_draws(20_000)
    found = from_draws(draws)
    torch.testing.assert_close(found.loc, draws.mean(0))
    u = laplace.whiten(exact, found.loc)
    assert chi2_is_plausible(20_000 * u.square().sum(-1), DIM)
    centred = draws - exact.loc
    products = torch.einsum("kni,knj->knij", centred, centred)
    assert means_agree(products, found.scale_tril @ found.scale_tril.mT)
    assert not means_agree(products, 1.1 * found.scale_tril @ found.scale_tril.mT)


def test_shrinking_fades_with_draws_and_spares_standard_deviations():
    torch.manual_seed(0)
    gaps = []
    for num_draws in (10, 100, 10_000):
        draws = exact_draws(num_draws)
        found = from_draws(draws)
        covariance = found.scale_tril @ found.scale_tril.mT
        sample = torch.stack([draws[:, n].T.cov() for n in range(NUM_DATA)])
        torch.testing.assert_close(covariance.diagonal(dim1=1, dim2=2), sample.diagonal(dim1=1, dim2=2))
        gaps.append(((covariance - sample).norm() / sample.norm()).item())
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


def test_shrinking_helps_where_draws_are_few():
    """30 draws in 20 dimensions: the sample covariance is close to singular, the shrunk one is not."""
    torch.manual_seed(0)
    draws = torch.randn(30, 1, 20, dtype=torch.float64)
    shrunk = from_draws(draws).scale_tril[0]
    sample = torch.linalg.cholesky(draws[:, 0].T.cov())
    assert torch.linalg.cond(shrunk) < 4.0 < torch.linalg.cond(sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_draws_give_a_positive_definite_gaussian(dtype):
    torch.manual_seed(0)
    constant = torch.full((50, 1, 3), 7.0, dtype=dtype)
    line = torch.randn(50, 1, 1, dtype=dtype).expand(50, 1, 3)
    half = torch.cat([torch.randn(50, 1, 2, dtype=dtype), torch.zeros(50, 1, 1, dtype=dtype)], -1)
    few = torch.randn(2, 1, 3, dtype=dtype)
    single = torch.randn(50, 1, 1, dtype=dtype)
    for draws in (constant, line, half, few, single):
        found = from_draws(draws)
        assert found.loc.dtype == found.scale_tril.dtype == dtype
        assert found.scale_tril.isfinite().all()
        assert (found.scale_tril.diagonal(dim1=1, dim2=2) > 0).all()


def test_draws_that_give_no_moments_are_refused():
    with pytest.raises(ValueError, match="at least 2 draws, but there is 1"):
        from_draws(torch.zeros(1, 2, 3))
    draws = torch.zeros(5, 4, 3)
    draws[2, 1, 0] = math.inf
    with pytest.raises(ValueError, match="not for datum 1"):
        from_draws(draws)


@pytest.mark.parametrize(("height", "is_usable"), [(0.5, True), (5.0, False)])
def test_a_mode_on_a_kink_is_usable_only_if_a_step_promises_little(height, is_usable):
    """-h |z| - z^2 / 2: at its mode an undamped step promises h^2 / 2 nats that no step can give."""

    def density(z):
        return -height * z.abs().sum(-1) - 0.5 * z.square().sum(-1), -height * z.sign() - z

    def curvature(z):
        return torch.eye(1, dtype=torch.float64).expand(*z.shape, 1)

    fit = fit_laplace(density, curvature, torch.full((2, 1), 1e-3, dtype=torch.float64), max_steps=100)
    assert fit.gaussian.loc.abs().max() < 1e-3 + 1e-9
    assert fit.is_usable.tolist() == [is_usable] * 2
    assert fit.num_steps < 100
