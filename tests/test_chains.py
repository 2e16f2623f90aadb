"""The sampling loop: exact posteriors of many data at once, its books, and the bugs that these tests must catch."""

import math

import numpy as np
import pytest
import torch
from arviz_stats.base.array import array_stats
from chance import FALSE_ALARM, chi2_is_plausible
from scipy import stats
from test_hmc import HostReads, always_accepted, inverted_acceptance, scaled_momentum

from pyrovae.inference import chains, hmc
from pyrovae.inference.chains import sample_chains
from pyrovae.inference.laplace import Gaussian, unwhiten, whitened_density, widen

ORIGINAL_STEP = hmc.step


def standard_normal(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -0.5 * u.square().sum(-1), -u


def gaussians(num_data: int, dim: int, dtype: torch.dtype) -> Gaussian:
    """Different means and correlated covariances."""
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(num_data, dim, dim, generator=generator, dtype=torch.float64)
    covariance = noise @ noise.mT / dim + 0.1 * torch.eye(dim)
    loc = 3 * torch.randn(num_data, dim, generator=generator, dtype=torch.float64)
    return Gaussian(loc.to(dtype), torch.linalg.cholesky(covariance).to(dtype))


def draws_from_gaussians(
    num_chains: int, num_samples: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Draws [C, T, 16, 4] in whitened coordinates, by way of coordinates that are 1.3 times too wide."""
    exact = gaussians(16, 4, dtype)
    precision = torch.cholesky_inverse(exact.scale_tril)

    def log_density(z):
        centred = z - exact.loc
        return -0.5 * (torch.einsum("...ni,nij->...nj", centred, precision) * centred).sum(-1)

    wide = widen(exact, 1.3)
    start = 2 * torch.randn(num_chains, 16, 4, dtype=dtype)
    density = hmc.with_gradient(whitened_density(wide, log_density))
    found = sample_chains(density, start, num_samples=num_samples, warmup_steps=100)
    z = unwhiten(wide, found.position)
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
    found = sample_chains(standard_normal, start, num_samples=40, warmup_steps=20)
    last = found.position[:, -1].reshape(4000, 5)
    means = chi2_is_plausible(4000 * last.mean(0).square(), 1)
    squares = chi2_is_plausible(last.square().sum(0), 4000)
    moved = (found.position.diff(dim=1) != 0).any(-1).double()
    rate = found.acceptance_rate[:, 1:]
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
    options = {"num_samples": 20, "warmup_steps": 35, **options}
    return sample_chains(density, torch.zeros(num_chains, num_data, dim, dtype=torch.float64), **options)


def test_shapes():
    found = sample_some()
    assert found.position.shape == (3, 20, 4, 5)
    for name in ("log_density", "acceptance_rate", "energy", "energy_error", "diverging"):
        assert getattr(found, name).shape == (3, 20, 4)
    assert found.num_steps.shape == (20,)
    assert found.step_size.shape == (4,)
    torch.testing.assert_close(found.log_density, standard_normal(found.position)[0])


def test_the_same_seed_gives_the_same_bits():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(sample_some())
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(results[0], results[1], strict=True)
    )
    assert not torch.equal(results[0].position, results[2].position)


def test_gradients_are_counted():
    calls = [0]

    def density(u):
        calls[0] += 1
        return standard_normal(u)

    found = sample_some(density)
    assert found.num_gradient_evaluations == calls[0]
    warmup = found.num_gradient_evaluations - int(found.num_steps.sum())
    assert found.num_warmup_gradient_evaluations == warmup >= 1 + 35


def test_the_loop_does_not_read_the_device():
    """Reads are few and do not grow with draws: checks, one random number, and one look in ten warm-up steps."""
    with HostReads() as short:
        sample_some()
    with HostReads() as long:
        sample_some(num_samples=200)
    assert short.count == long.count <= 4 + 1 + 4


def test_progress_is_told_of_every_transition():
    seen = []
    sample_some(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 55) for i in range(55)]


@pytest.mark.parametrize("target", [0.65, 0.8, 0.95])
def test_every_datum_meets_its_acceptance_rate(target):
    """Data of widths 0.3 to 3 under one common number of steps."""
    torch.manual_seed(0)
    widths = torch.tensor([0.3, 1.0, 1.0, 3.0], dtype=torch.float64)[:, None]

    def density(u):
        return -0.5 * (u / widths).square().sum(-1), -u / widths.square()

    found = sample_some(density, 16, 4, 10, num_samples=200, warmup_steps=600, target_accept_prob=target)
    rates = found.acceptance_rate.mean((0, 1))
    assert ((rates - target).abs() < 0.1).all()
    torch.testing.assert_close(found.step_size / found.step_size[1], widths[:, 0], rtol=0.25, atol=0.0)


@pytest.mark.parametrize("typical", [1e-3, 0.1, 0.7, 1.3, 5.0, 100.0])
@pytest.mark.parametrize("max_num_steps", [1, 4, 32])
def test_times_are_jittered_and_within_limits(typical, max_num_steps):
    phases = chains._phases(200)
    moves = [
        chains._plan(phase, typical, trajectory_length=math.pi / 2, max_num_steps=max_num_steps)
        for phase in phases
    ]
    times = np.array([move.num_steps * move.scale * typical for move in moves])
    assert all(1 <= move.num_steps <= max_num_steps for move in moves)
    assert all(0.0 < move.scale <= 1.0 + 1e-12 for move in moves)
    np.testing.assert_allclose(times / times.max(), np.array(phases) / max(phases))
    free = 1.4 * math.pi / 2
    if typical <= free <= max_num_steps * typical:
        np.testing.assert_allclose(times, np.array(phases) * math.pi / 2)


def test_phases_fill_their_interval():
    phases = np.array(chains._phases(1000))
    assert 0.6 <= phases.min() < 0.61
    assert 1.39 < phases.max() <= 1.4
    assert np.histogram(phases, bins=10, range=(0.6, 1.4))[0].tolist() == pytest.approx([100] * 10, abs=3)


def effective_share_of_squares() -> float:
    """ESS of u^2 per draw at a trajectory of pi, where a whitened Gaussian of fixed length only changes its sign."""
    found = sample_some(
        num_chains=32,
        num_data=1,
        dim=10,
        num_samples=300,
        warmup_steps=200,
        trajectory_length=math.pi,
        target_accept_prob=0.95,
    )
    squares = found.position.square().numpy()
    return float(array_stats.ess(squares, chain_axis=0, draw_axis=1).mean()) / (32 * 300)


def test_jitter_breaks_resonance(monkeypatch):
    torch.manual_seed(0)
    assert effective_share_of_squares() > 0.15
    monkeypatch.setattr(chains, "SHORTEST", 1.0)
    monkeypatch.setattr(chains, "LONGEST", 1.0)
    assert effective_share_of_squares() < 0.05


@pytest.mark.slow
def test_a_whitened_posterior_gives_an_effective_draw_for_a_few_gradients():
    """Measured: 0.31 for u, 0.23 for u^2, 0.27 for the tails, per gradient, at dimension 20."""
    torch.manual_seed(0)
    found = sample_some(num_chains=8, num_data=8, dim=20, num_samples=500, warmup_steps=200)
    num_gradients = 8 * int(found.num_steps.sum())
    u = found.position.numpy()
    axes = {"chain_axis": 0, "draw_axis": 1}
    assert array_stats.ess(u, **axes).mean() / num_gradients > 0.25
    assert array_stats.ess(u**2, **axes).mean() / num_gradients > 0.18
    assert array_stats.ess(u, method="tail", prob=0.05, **axes).mean() / num_gradients > 0.2
    assert found.num_steps.double().mean() < 3


def test_a_datum_that_breaks_leaves_the_others_alone():
    """Datum 2 has a density at its start and nowhere else."""

    def density(u):
        value, gradient = standard_normal(u)
        is_bad = (torch.arange(4) == 2) & (u != 0).any(-1)
        return torch.where(is_bad, math.nan, value), gradient

    torch.manual_seed(0)
    found = sample_some(density, num_chains=32, num_samples=400, warmup_steps=100)
    others = found.position[:, :, [0, 1, 3]]
    assert chain_means_agree(others, torch.zeros(5))
    assert chain_means_agree(others.square(), torch.ones(5))
    assert found.diverging[:, :, 2].all()
    assert not found.diverging[:, :, [0, 1, 3]].any()
    assert (found.position[:, :, 2] == 0).all()
    assert (found.step_size > 0).all()


OUT_OF_RANGE = (
    ({"num_samples": 0}, "num_samples must be at least 1, but is 0"),
    ({"warmup_steps": 0}, "warmup_steps must be at least 1, but is 0"),
    ({"max_num_steps": 0}, "max_num_steps must be at least 1, but is 0"),
    ({"target_accept_prob": 0.0}, "target_accept_prob must lie strictly between 0 and 1, but is 0.0"),
    ({"target_accept_prob": 1.0}, "target_accept_prob must lie strictly between 0 and 1"),
    ({"target_accept_prob": math.nan}, "target_accept_prob must lie strictly between 0 and 1"),
    ({"trajectory_length": 0.0}, "trajectory_length must be above 0 and finite, but is 0.0"),
    ({"trajectory_length": math.inf}, "trajectory_length must be above 0 and finite"),
    ({"num_chains": 0}, r"none of them 0, but has \(0, 4, 5\)"),
)


@pytest.mark.parametrize(("options", "message"), OUT_OF_RANGE)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sample_some(**options)


def test_starts_that_are_not_finite():
    start = torch.zeros(3, 4, 5)
    start[1, 2, 0] = math.nan
    with pytest.raises(
        ValueError, match=r"position must be finite, but is not at chain 1, datum 2 \(and 0 more\)"
    ):
        sample_chains(standard_normal, start, num_samples=1, warmup_steps=1)

    def density(u):
        value, gradient = standard_normal(u)
        return torch.where(torch.arange(4) == 3, -math.inf, value), gradient

    with pytest.raises(
        ValueError, match=r"where chains start, but are not at chain 0, datum 3 \(and 2 more\)"
    ):
        sample_some(density)
