"""The sampling loop: exact posteriors of many data at once, its books, and the bugs that these tests must catch."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from arviz_stats.base.array import array_stats
from chance import FALSE_ALARM, chi2_is_plausible
from scipy import stats
from test_hmc import HostReads, always_accepted, inverted_acceptance, scaled_momentum

from pyrovae.inference import chains, hmc, trajectory
from pyrovae.inference.chains import sample_chains
from pyrovae.inference.laplace import Gaussian, unwhiten, whitened_gradient, widen
from pyrovae.inference.trajectory import Settings
from pyrovae.inference.tuning import tune

ORIGINAL_STEP = hmc.step


def standard_normal(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -0.5 * u.square().sum(-1), -u


def unit(num_data: int, dim: int, dtype: torch.dtype = torch.float64) -> Gaussian:
    identity = torch.eye(dim, dtype=dtype).expand(num_data, dim, dim)
    return Gaussian(torch.zeros(num_data, dim, dtype=dtype), identity)


def same_steps(tuned) -> Settings:
    """All data in one batch."""
    most = int(tuned.num_steps.max())
    of_data = tuned.step_size, tuned.trajectory_length, torch.full_like(tuned.num_steps, most), tuned.rotates
    return Settings(*of_data, active=(len(tuned.num_steps),) * most)


def settings(step_size: float, length: float, active: tuple[int, ...], rotates: bool = True) -> Settings:
    """The same for all data, the first `active[i]` of which make step i."""
    ones = torch.ones(active[0])
    steps = (torch.arange(active[0])[:, None] < torch.tensor(active)).sum(1)
    return Settings(step_size * ones, length * ones, steps, (ones > 0) == rotates, active)


def warm_and_sample(density, start, whitening=None, *, num_samples=20, warmup_steps=35, **options):
    """Tuned, Chains, and the draws in the coordinates of `density`."""
    whitening = unit(*start.shape[1:], start.dtype) if whitening is None else whitening
    tuned = tune(density, start, whitening, warmup_steps=warmup_steps, **options)
    whitened = whitened_gradient(tuned.whitening, density)
    found = sample_chains(
        whitened,
        hmc.init(tuned.position, whitened),
        same_steps(tuned),
        shares=trajectory.shares(num_samples),
        noise=partial(trajectory.draw_noise, start),
    )
    return tuned, found, unwhiten(tuned.whitening, found.draws.position)


def gaussians(num_data: int, dim: int, dtype: torch.dtype) -> Gaussian:
    """Different means and correlated covariances."""
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(num_data, dim, dim, generator=generator, dtype=torch.float64)
    covariance = noise @ noise.mT / dim + 0.1 * torch.eye(dim)
    loc = 3 * torch.randn(num_data, dim, generator=generator, dtype=torch.float64)
    return Gaussian(loc.to(dtype), torch.linalg.cholesky(covariance).to(dtype))


def gaussian_density(exact: Gaussian):
    precision = torch.cholesky_inverse(exact.scale_tril)

    def log_density(z):
        centred = z - exact.loc
        return -0.5 * (torch.einsum("...ni,nij->...nj", centred, precision) * centred).sum(-1)

    return hmc.with_gradient(log_density)


def draws_from_gaussians(
    num_chains: int, num_samples: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Draws [C, T, 16, 4] in exactly whitened coordinates, by way of coordinates that are 1.3 times too wide."""
    exact = gaussians(16, 4, dtype)
    start = exact.loc + 2 * torch.randn(num_chains, 16, 4, dtype=dtype)
    # Too short a warm-up to change the coordinates: rejections are what these tests are about.
    _, _, z = warm_and_sample(
        gaussian_density(exact), start, widen(exact, 1.3), num_samples=num_samples, warmup_steps=29
    )
    return torch.linalg.solve_triangular(
        exact.scale_tril, (z - exact.loc).unsqueeze(-1), upper=False
    ).squeeze(-1)


def chain_means_agree(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """A t-test on every coordinate of [C, T, ...]. Chains are the independent units, so autocorrelation is in it."""
    means = values.double().mean(1)
    t = (means.mean(0) - expected) / (means.std(0) / math.sqrt(len(means)))
    return bool((t.abs() <= stats.t.isf(FALSE_ALARM / (2 * t.numel()), len(means) - 1)).all())


def moments_agree(u: torch.Tensor) -> bool:
    products = torch.einsum("ctni,ctnj->ctnij", u, u)
    identity = torch.eye(4, dtype=torch.float64)
    bounded = torch.exp(
        -0.5 * u.square().sum(-1)
    )  # chains that run away also have large error bars elsewhere
    return (
        chain_means_agree(u, torch.zeros(4))
        and chain_means_agree(products, identity)
        and chain_means_agree(bounded, torch.tensor(0.25))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sixteen_gaussians_at_once(dtype):
    torch.manual_seed(0)
    u = draws_from_gaussians(32, 800, dtype)
    assert u.dtype == dtype
    assert moments_agree(u)
    axes = {"chain_axis": 0, "draw_axis": 1}
    assert array_stats.rhat(u.double().numpy(), **axes).max() < 1.01
    assert array_stats.ess(u.double().numpy(), **axes).min() > 32 * 800 / 5


@pytest.mark.parametrize("mutant", [scaled_momentum, always_accepted, inverted_acceptance])
def test_sixteen_gaussians_catch_planted_bugs(mutant, monkeypatch):
    def step(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hmc, "step", ORIGINAL_STEP)
            return mutant(*args, **kwargs)

    monkeypatch.setattr(hmc, "step", step)
    torch.manual_seed(0)
    assert not moments_agree(draws_from_gaussians(32, 400))


def rows_are_independent() -> bool:
    """4000 rows from exact starts: their mean after 60 transitions, and how many were accepted each time."""
    start = torch.randn(1000, 4, 5, dtype=torch.float64)
    _, found, z = warm_and_sample(
        standard_normal, start, num_samples=40, warmup_steps=20, target_accept_prob=0.6
    )
    last = z[:, -1].reshape(4000, 5)
    means = chi2_is_plausible(4000 * last.mean(0).square(), 1)
    squares = chi2_is_plausible(last.square().sum(0), 4000)
    moved = (z.diff(dim=1) != 0).any(-1).double()
    rate = found.draws.acceptance_rate[:, 1:]
    surprise = (moved - rate).sum((0, 2)).square() / (rate * (1 - rate)).sum((0, 2))
    return means and squares and chi2_is_plausible(surprise.sum(), len(surprise))


def test_rows_have_noise_of_their_own():
    torch.manual_seed(0)
    assert rows_are_independent()


@pytest.mark.parametrize("shared", ["log_uniform", "momentum"])
def test_shared_noise_is_caught(shared, monkeypatch):
    def step(*args, **kwargs):
        noise = kwargs[shared]
        kwargs[shared] = noise[:1, :1].expand_as(noise)
        return ORIGINAL_STEP(*args, **kwargs)

    monkeypatch.setattr(hmc, "step", step)
    torch.manual_seed(0)
    assert not rows_are_independent()


def sample_some(density=standard_normal, num_chains=3, num_data=4, dim=5, **options):
    return warm_and_sample(density, torch.zeros(num_chains, num_data, dim, dtype=torch.float64), **options)


def test_shapes():
    _, found, z = sample_some()
    assert z.shape == (3, 20, 4, 5)
    for name, value in found.draws._asdict().items():
        assert value.shape[:3] == (3, 20, 4), name
    torch.testing.assert_close(found.draws.log_density, standard_normal(z)[0])


def test_the_same_seed_gives_the_same_bits():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(sample_some()[1])
    assert all(torch.equal(a, b) for a, b in zip(results[0].draws, results[1].draws, strict=True))
    assert not torch.equal(results[0].draws.position, results[2].draws.position)


def test_gradients_are_counted():
    calls = [0]

    def density(u):
        calls[0] += 1
        return standard_normal(u)

    tuned, found, _ = sample_some(density)
    spent = found.totals.num_gradient_evaluations.unique()
    assert calls[0] == tuned.num_gradient_evaluations + 1 + spent.item()
    assert found.totals.num_transitions == 20


def test_the_loop_does_not_read_the_device():
    """Reads do not grow with draws; that which there is, is the random start of the times."""
    counts = []
    for num_samples in (20, 200):
        state = hmc.init(torch.randn(3, 4, 5), standard_normal)
        with HostReads() as reads:
            sample_chains(
                standard_normal,
                state,
                settings(1.0, 1.0, (4, 2)),
                shares=trajectory.shares(num_samples),
                noise=partial(trajectory.draw_noise, state.position),
            )
        counts.append(reads.count)
    assert counts == [1, 1]


def test_runs_join_as_one_run():
    """Sums, and draws thinned across the seam, are those of one long run."""
    torch.manual_seed(0)
    state = hmc.init(torch.randn(3, 2, 4), standard_normal)
    noises = [trajectory.draw_noise(state.position) for _ in range(15)]
    shares = trajectory.shares(15)

    def run(state, first, last, **options):
        more = iter(noises[first:last])
        return sample_chains(
            standard_normal,
            state,
            settings(0.9, 1.5, (2, 1), rotates=False),
            shares=shares[first:last],
            noise=lambda: next(more),
            **options,
        )

    whole, one = run(state, 0, 15), run(state, 0, 5)
    both = chains.joined(one, run(one.state, 5, 15))
    assert all(torch.equal(a, b) for a, b in zip(both.draws, whole.draws, strict=True))
    for name in ("num_transitions", "num_gradient_evaluations", "num_divergent", "acceptance_rate"):
        torch.testing.assert_close(getattr(both.totals, name), getattr(whole.totals, name))
    torch.testing.assert_close(both.totals.energy[:2], whole.totals.energy[:2])
    thin = chains.joined(chains.thinned(one), run(one.state, 5, 15, thinning=2, made=5))
    assert torch.equal(thin.draws.position, whole.draws.position[:, 1::2])
    some = chains.rows(both, torch.tensor([1]))
    assert torch.equal(some.draws.position, both.draws.position[:, :, 1:])
    assert torch.equal(some.totals.energy, both.totals.energy[..., 1:])


def test_bfmi_is_that_of_arviz_and_sees_a_funnel():
    torch.manual_seed(0)
    _, found, _ = sample_some(num_chains=4, num_data=2, num_samples=400, warmup_steps=100)
    fraction = chains.bfmi(found.totals).numpy()
    for n in range(2):
        expected = array_stats.bfmi(found.draws.energy[:, :, n].numpy(), chain_axis=0, draw_axis=1)
        assert np.allclose(fraction[:, n], expected, rtol=0.05)
    assert (fraction > 0.6).all()

    def funnel(z):
        v, w = z[..., 0], z[..., 1:]
        return -v.square() / 18 - 0.5 * w.square().sum(-1) * torch.exp(-v) - 4.5 * v

    start = torch.randn(8, 1, 10, dtype=torch.float64)
    _, found, _ = warm_and_sample(hmc.with_gradient(funnel), start, num_samples=300, warmup_steps=100)
    assert chains.bfmi(found.totals).min() < 0.3


@pytest.mark.slow
def test_a_whitened_posterior_gives_an_effective_draw_for_a_gradient():
    """Measured: 1.0 for u, 0.9 for u^2, 0.95 for the tails, per gradient, at dimension 20."""
    torch.manual_seed(0)
    _, found, z = sample_some(num_chains=8, num_data=8, dim=20, num_samples=500, warmup_steps=200)
    u, axes = z.numpy(), {"chain_axis": 0, "draw_axis": 1}
    num_gradients = 8 * int(found.totals.num_gradient_evaluations.max())
    assert array_stats.ess(u, **axes).mean() / num_gradients > 0.8
    assert array_stats.ess(u**2, **axes).mean() / num_gradients > 0.7
    assert array_stats.ess(u, method="tail", prob=0.05, **axes).mean() / num_gradients > 0.7


def test_a_datum_that_breaks_leaves_the_others_alone():
    """Datum 2 has a density at its start and nowhere else."""

    def density(u):
        value, gradient = standard_normal(u)
        is_bad = (torch.arange(4) == 2) & (u != 0).any(-1)
        return torch.where(is_bad, math.nan, value), gradient

    torch.manual_seed(0)
    _, found, z = sample_some(density, num_chains=32, num_samples=400, warmup_steps=100)
    others = z[:, :, [0, 1, 3]]
    assert chain_means_agree(others, torch.zeros(5))
    assert chain_means_agree(others.square(), torch.ones(5))
    assert found.draws.diverging[:, :, 2].all()
    assert found.totals.num_divergent.tolist() == [0, 0, 32 * 400, 0]
    assert (z[:, :, 2] == 0).all()


def test_counts_out_of_range():
    state = hmc.init(torch.zeros(3, 2, 1), standard_normal)
    run = partial(sample_chains, standard_normal, state, noise=partial(trajectory.draw_noise, state.position))
    one = settings(1.0, 1.0, (2,))
    for moves, options in (
        (one, {"shares": [1.0], "thinning": 0}),
        (one._replace(active=()), {"shares": [1.0]}),
        (one, {"shares": []}),
    ):
        with pytest.raises(ValueError, match="must be at least 1, but is 0"):
            run(moves, **options)


def test_data_that_need_fewer_steps_cost_no_gradient_and_move_as_alone():
    """The density is shown the data that make a step; each datum's draws are those it would have by itself."""
    torch.manual_seed(0)
    state, sizes = hmc.init(torch.randn(3, 3, 2), standard_normal), []
    noises = [trajectory.draw_noise(state.position) for _ in range(10)]
    shares = trajectory.shares(10)
    nested = settings(0.5, 1.2, (3, 2, 2, 1), rotates=False)

    def density(z):
        sizes.append(z.shape[1])
        return standard_normal(z)

    found = sample_chains(density, state, nested, shares=shares, noise=partial(next, iter(noises)))
    assert sizes == [3, 2, 2, 1] * 10
    assert found.totals.num_gradient_evaluations.tolist() == [40, 30, 10]
    for n, steps in enumerate([4, 3, 1]):
        alone = sample_chains(
            standard_normal,
            hmc.HMCState(*(each[:, n : n + 1] for each in state)),
            settings(0.5, 1.2, (1,) * steps, rotates=False),
            shares=shares,
            noise=partial(
                next, iter([trajectory.Noise(*(each[:, n : n + 1] for each in one)) for one in noises])
            ),
        )
        torch.testing.assert_close(found.draws.position[:, :, n : n + 1], alone.draws.position)
