"""The warm-up: coordinates from gradients, step sizes, lengths, and what they are worth."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from arviz_stats.base.array import array_stats
from test_chains import (
    gaussian_density,
    gaussians,
    sample_some,
    settings,
    standard_normal,
    unit,
    warm_and_sample,
)
from test_hmc import HostReads

from pyrovae.inference import chains, hmc, trajectory, tuning, warmup, whitening
from pyrovae.inference.laplace import Gaussian, whiten
from pyrovae.inference.trajectory import Settings
from pyrovae.inference.tuning import tune
from pyrovae.inference.whitening import compose, from_gradients, misfit, rewhiten

AXES = {"chain_axis": 0, "draw_axis": 1}


def test_a_gaussian_is_found_from_a_few_badly_mixed_draws():
    """D + 2 points far from being draws give the exact moments; their covariance alone does not."""
    exact = gaussians(5, 4, torch.float64)
    torch.manual_seed(0)
    position = 3.0 + torch.randn(6, 5, 4, dtype=torch.float64)
    _, gradient = gaussian_density(exact)(position)
    found = from_gradients(position, gradient)
    torch.testing.assert_close(found.loc, exact.loc, rtol=0.0, atol=0.2)
    covariance, wanted = (each.scale_tril @ each.scale_tril.mT for each in (found, exact))
    assert ((covariance - wanted).norm(dim=(-2, -1)) < 0.05 * wanted.norm(dim=(-2, -1))).all()
    drawn = torch.stack([torch.cov(position[:, n].mT) for n in range(5)])
    assert not ((drawn - wanted).norm(dim=(-2, -1)) < 0.3 * wanted.norm(dim=(-2, -1))).any()


def test_it_minimizes_the_misfit():
    """Among Gaussians near it, for draws of a density that is none."""
    torch.manual_seed(0)
    position = torch.randn(400, 1, 3, dtype=torch.float64)
    gradient = -position.pow(3) - 0.5 * position.roll(1, -1)
    best = from_gradients(position, gradient)
    least = misfit(best, position, gradient)
    for _ in range(50):
        other = best._replace(
            loc=best.loc + 0.1 * torch.randn_like(best.loc),
            scale_tril=best.scale_tril @ (torch.eye(3) + 0.1 * torch.randn(3, 3).tril()).double(),
        )
        assert misfit(other, position, gradient) > least


def test_directions_without_draws_stay_as_they_are():
    position = torch.zeros(4, 1, 3, dtype=torch.float64)
    position[:, 0, 0] = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    found = from_gradients(position, -position / 25.0)
    torch.testing.assert_close(
        found.scale_tril[0].diagonal(), torch.tensor([5.0, 1.0, 1.0]).double(), rtol=0.05, atol=0.0
    )


def test_coordinates_change_only_where_that_is_clearly_better():
    torch.manual_seed(0)
    position = torch.randn(20, 8, 3, 2, dtype=torch.float64)
    gradient = -position * torch.tensor([1.0, 16.0, 1.0]).double()[:, None]
    gradient[0, 0, 2, 0] = math.nan
    found, is_new = rewhiten(position, gradient)
    assert is_new.tolist() == [False, True, False]
    torch.testing.assert_close(found.scale_tril[1], 0.25 * torch.eye(2).double(), rtol=0.0, atol=0.01)
    torch.testing.assert_close(found.scale_tril[::2], torch.eye(2).double().expand(2, 2, 2))


def test_noise_in_few_draws_is_not_taken_for_shape():
    torch.manual_seed(0)
    position, gradient = torch.randn(2, 4, 50, 12), torch.randn(2, 4, 50, 12)
    assert rewhiten(position, gradient - position)[1].float().mean() < 0.2


def test_composition():
    outer, inner = gaussians(3, 2, torch.float64), gaussians(6, 2, torch.float64)
    inner = Gaussian(inner.loc[3:], inner.scale_tril[3:])
    z = torch.randn(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(whiten(compose(outer, inner), z), whiten(inner, whiten(outer, z)))


def worst_ess_per_gradient(variances: torch.Tensor) -> float:
    def density(z):
        return -0.5 * (z.square() / variances).sum(-1), -z / variances

    start = 1.5 * torch.randn(8, 2, len(variances), dtype=torch.float64)
    _, found, z = warm_and_sample(density, start, num_samples=300, warmup_steps=150)
    draws, cost = z.numpy(), 8 * int(found.totals.num_gradient_evaluations.max())
    return float(min(array_stats.ess(each, **AXES).min() for each in (draws, draws**2)) / cost)


def test_new_coordinates_give_four_times_the_effective_draws(monkeypatch):
    """Measured at variances 0.25 to 4: 0.85 a gradient with them and 0.05 without, at dimension 20."""
    variances = torch.logspace(math.log10(0.25), math.log10(4.0), 10, dtype=torch.float64)
    torch.manual_seed(0)
    better = worst_ess_per_gradient(variances)
    monkeypatch.setattr(whitening, "BETTER", 0.0)
    assert better > 0.5
    assert better > 4 * worst_ess_per_gradient(variances)


def test_every_datum_gets_its_coordinates_and_rotates():
    exact = gaussians(6, 4, torch.float32)
    torch.manual_seed(0)
    start = exact.loc + torch.randn(8, 6, 4)
    tuned = tune(gaussian_density(exact), start, unit(6, 4, torch.float32), warmup_steps=100)
    covariance, wanted = (each.scale_tril @ each.scale_tril.mT for each in (tuned.whitening, exact))
    assert ((covariance - wanted).norm(dim=(-2, -1)) < 0.05 * wanted.norm(dim=(-2, -1))).all()
    assert tuned.rotates.all()
    assert (tuned.num_steps == 1).all()
    assert (tuned.num_changes >= 1).all()


def test_a_short_warm_up_or_a_single_chain_changes_no_coordinates():
    for num_chains, steps in ((8, 29), (1, 100)):
        tuned = tune(
            standard_normal, torch.randn(num_chains, 2, 3), unit(2, 3, torch.float32), warmup_steps=steps
        )
        assert torch.equal(tuned.whitening.scale_tril, unit(2, 3, torch.float32).scale_tril)
        assert not tuned.rotates.any()


@pytest.mark.parametrize("target", [0.65, 0.8, 0.95])
def test_every_datum_meets_its_acceptance_rate(target):
    """Data of widths 0.3 to 3 in one stage, where nothing rotates and no coordinates change."""
    torch.manual_seed(0)
    widths = torch.tensor([0.3, 1.0, 1.0, 3.0], dtype=torch.float64)[:, None]

    def density(u):
        return -0.5 * (u / widths).square().sum(-1), -u / widths.square()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "FEWEST", 10_000)
        tuned, found, _ = sample_some(
            density, 16, 4, 10, num_samples=200, warmup_steps=600, target_accept_prob=target
        )
    rates = (1.0 / (1.0 / found.draws.acceptance_rate.clamp(min=warmup.LEAST_RATE)).mean(0)).mean(0)
    assert ((rates[:3] - target).abs() < 0.12).all()
    assert rates[3] > target - 0.1  # one whole trajectory is a small step for the widest
    assert tuned.num_steps[0] > tuned.num_steps[1] > tuned.num_steps[3]


def test_far_modes_do_not_rotate():
    """Two modes 40 of their own widths apart: about no centre would forces be smaller."""

    def density(z):
        logits = torch.stack([-0.5 * (z - 20).square().sum(-1), -0.5 * (z + 20).square().sum(-1)])
        weight = logits.softmax(0)[0].unsqueeze(-1)
        return logits.logsumexp(0), -(z + 20) + 40 * weight

    start = torch.cat([torch.full((8, 1, 1), 20.0), torch.full((8, 1, 1), -20.0)]) + torch.randn(16, 1, 1)
    tuned, _, z = warm_and_sample(
        density, start, unit(1, 1, torch.float32), num_samples=300, warmup_steps=100
    )
    assert not tuned.rotates.any()
    within = z.abs() - 20  # a long first step of the warm-up may well have taken a chain across
    assert within.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("most_steps", [1, 4, 32])
def test_plans(most_steps):
    step_size = torch.tensor([1e-3, 0.1, 0.7, 1.3, 50.0], dtype=torch.float64)
    length = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0], dtype=torch.float64) * math.pi / 2
    most = torch.full((5,), most_steps)
    for share in trajectory.shares(50):
        move = trajectory.plan(share, Settings(step_size, length, most, most > 0, (5,) * most_steps))
        reached, time = move.step_size * move.stop_after, share * length
        assert (move.step_size <= step_size).all()
        assert ((move.stop_after >= 1) & (move.stop_after <= most_steps)).all()
        # Nearly the whole time, wherever the steps suffice for it.
        suffices = step_size * most_steps >= time
        assert (reached >= time - trajectory.SLACK * step_size - 1e-9)[suffices].all()
        assert (reached <= time + 1e-9).all()


def test_shares_fill_their_interval():
    torch.manual_seed(0)
    shares = np.array(trajectory.shares(1000))
    assert 0.7 <= shares.min() < 0.71
    assert 1.29 < shares.max() <= 1.3
    assert np.histogram(shares, bins=10, range=(0.7, 1.3))[0].tolist() == pytest.approx([100] * 10, abs=3)


def effective_share_of_squares() -> float:
    """ESS of u^2 per draw at a half turn, where a whitened Gaussian of fixed length only changes its sign."""
    state = hmc.init(torch.randn(32, 1, 10), standard_normal)
    noise = partial(trajectory.draw_noise, state.position)
    half_turn = settings(2 * math.pi, math.pi, (1,))
    found = chains.sample_chains(
        standard_normal, state, half_turn, shares=trajectory.shares(300), noise=noise
    )
    square = found.draws.position.square().numpy()
    return float(array_stats.ess(square, **AXES).mean()) / (32 * 300)


def test_jitter_breaks_resonance(monkeypatch):
    torch.manual_seed(0)
    assert effective_share_of_squares() > 0.15
    monkeypatch.setattr(trajectory, "SHORTEST", 1.0)
    monkeypatch.setattr(trajectory, "LONGEST", 1.0)
    assert effective_share_of_squares() < 0.05


def banana(z: torch.Tensor) -> torch.Tensor:
    bent = (z[..., 1] - 3.0 * z[..., 0].square() + 3.0) / 0.3
    return -0.5 * (z[..., 0].square() + bent.square() + z[..., 2:].square().sum(-1))


def lengths_and_worth() -> tuple[float, float]:
    """Share of data with longer trajectories than a quarter turn, and the median smallest ESS per gradient."""
    torch.manual_seed(0)
    _, num_data, dim = shape = 16, 16, 3
    tuned, found, z = warm_and_sample(
        hmc.with_gradient(banana),
        torch.randn(shape),
        unit(num_data, dim, torch.float32),
        num_samples=400,
        warmup_steps=200,
    )
    steps = found.draws.num_steps.double().mean((0, 1)).numpy()
    worth = array_stats.ess(z.numpy(), **AXES).min(-1) / (16 * 400 * steps)
    return float((tuned.trajectory_length > 2.0).double().mean()), float(np.median(worth))


@pytest.mark.slow
def test_trajectories_of_a_curved_posterior_get_longer_and_are_worth_it(monkeypatch):
    """Measured over three seeds: 1.8 to 2.5 times the draws per gradient."""
    share, longer = lengths_and_worth()
    assert share > 0.7
    monkeypatch.setattr(tuning, "lengthened", lambda length, positions: length)
    assert longer > 1.3 * lengths_and_worth()[1]


def test_trajectories_of_a_gaussian_stay_a_quarter_turn():
    tuned, _, _ = sample_some(num_chains=16, num_data=8, dim=10, num_samples=4, warmup_steps=200)
    torch.testing.assert_close(tuned.trajectory_length, torch.full_like(tuned.trajectory_length, math.pi / 2))


def test_the_warm_up_reads_the_device_rarely():
    """A few checks and one look in ten transitions."""
    with HostReads() as reads:
        tune(standard_normal, torch.randn(4, 2, 3), unit(2, 3, torch.float32), warmup_steps=200)
    assert reads.count <= 200 / 10 + 20


def test_progress_is_told_of_every_transition():
    seen = []
    tune(
        standard_normal,
        torch.randn(4, 2, 3),
        unit(2, 3, torch.float32),
        warmup_steps=35,
        progress=lambda: seen.append(1),
    )
    assert len(seen) == 35


OUT_OF_RANGE = (
    ({"warmup_steps": 0}, "warmup_steps must be at least 1, but is 0"),
    ({"max_num_steps": 0}, "max_num_steps must be at least 1, but is 0"),
    ({"target_accept_prob": 0.0}, "target_accept_prob must lie strictly between 0 and 1, but is 0.0"),
    ({"target_accept_prob": 1.0}, "target_accept_prob must lie strictly between 0 and 1"),
    ({"target_accept_prob": math.nan}, "target_accept_prob must lie strictly between 0 and 1"),
    ({"num_chains": 0}, r"none of them 0, but has \(0, 4, 5\)"),
)


@pytest.mark.parametrize(("options", "message"), OUT_OF_RANGE)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sample_some(**options)


def test_starts_that_are_not_finite():
    start = torch.zeros(3, 4, 5)
    start[1, 2, 0] = math.nan
    message = r"position must be finite, but is not at chain 1, datum 2 \(and 0 more\)"
    with pytest.raises(ValueError, match=message):
        tune(standard_normal, start, unit(4, 5, torch.float32), warmup_steps=1)

    def density(u):
        value, gradient = standard_normal(u)
        return torch.where(torch.arange(4) == 3, -math.inf, value), gradient

    message = r"where chains start, but are not at chain 0, datum 3 \(and 2 more\)"
    with pytest.raises(ValueError, match=message):
        sample_some(density)
