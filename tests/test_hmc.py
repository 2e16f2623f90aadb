"""One transition of HMC: invariance from exact draws, the acceptance identity, and the bugs that these must catch."""

import math

import pytest
import torch
from chance import chi2_is_plausible, means_agree
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.inference import hmc
from pyrovae.inference.laplace import Gaussian, unwhiten, whitened_gradient

NUM_DRAWS = 20_000
COVARIANCE = torch.tensor([[2.0, 0.9, 0.1], [0.9, 1.0, -0.3], [0.1, -0.3, 0.5]], dtype=torch.float64)
LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def correlated_log_density(z: torch.Tensor) -> torch.Tensor:
    centred = z - LOC
    return -0.5 * (centred @ torch.linalg.inv(COVARIANCE) * centred).sum(-1)


WHITENED = whitened_gradient(
    Gaussian(LOC, torch.linalg.cholesky(COVARIANCE)), hmc.with_gradient(correlated_log_density)
)


def quartic_log_density(z: torch.Tensor) -> torch.Tensor:
    """Nothing Gaussian: coupled, with tails of fourth order."""
    return -0.25 * z.pow(4).sum(-1) - 0.3 * z[..., 0] * z[..., 1] + z[..., 1].sin()


class Counted:
    def __init__(self, log_density_and_gradient):
        self.function, self.calls = log_density_and_gradient, 0

    def __call__(self, position):
        self.calls += 1
        return self.function(position)


# Planted bugs. Each has the arguments and results of hmc.step.


def scaled_momentum(state, density, *, momentum, **rest):
    return hmc.step(state, density, momentum=1.1 * momentum, **rest)


def always_accepted(state, density, *, log_uniform, **rest):
    return hmc.step(state, density, log_uniform=torch.full_like(log_uniform, -math.inf), **rest)


def inverted_acceptance(state, density, *, log_uniform, **rest):
    proposal, info = always_accepted(state, density, log_uniform=log_uniform, **rest)
    keep = (log_uniform < -info.energy_error).unsqueeze(-1)
    return hmc.init(torch.where(keep, state.position, proposal.position), density), info


def forgotten_kinetic_energy(state, density, *, log_uniform, **rest):
    proposal, info = always_accepted(state, density, log_uniform=log_uniform, **rest)
    error = state.log_density - proposal.log_density
    took = (log_uniform < -error).unsqueeze(-1)
    info = info._replace(energy_error=error, acceptance_rate=torch.exp(-error.clamp(min=0.0)))
    return hmc.init(torch.where(took, proposal.position, state.position), density), info


def stale_gradient(state, density, **rest):
    result, info = hmc.step(state, density, **rest)
    return result._replace(gradient=state.gradient), info


def missing_half_kick(state, density, **rest):
    """The last half kick left out, by undoing it before energies are compared."""

    def leapfrog(position, momentum, gradient, function, step_size, num_steps):
        end, end_momentum = ORIGINAL_LEAPFROG(position, momentum, gradient, function, step_size, num_steps)
        return end, end_momentum - 0.5 * step_size.unsqueeze(-1) * end.gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmc, "leapfrog", leapfrog)
        return hmc.step(state, density, **rest)


ORIGINAL_LEAPFROG = hmc.leapfrog
MUTANTS = (
    scaled_momentum,
    always_accepted,
    inverted_acceptance,
    forgotten_kinetic_energy,
    stale_gradient,
    missing_half_kick,
)


def move(step, state, step_size: float, num_steps: int, density=WHITENED, **options):
    noise = {
        "momentum": torch.randn_like(state.position),
        "log_uniform": torch.rand_like(state.log_density).log(),
    }
    sizes = torch.full_like(state.log_density, step_size)
    return step(state, density, **noise, step_size=sizes, num_steps=num_steps, **options)


def exact_start(num_draws: int = NUM_DRAWS, density=WHITENED) -> hmc.HMCState:
    return hmc.init(torch.randn(num_draws, 3, dtype=torch.float64), density)


PATHS = {1.6: (2, 3, 5, 2, 7, 3, 2, 5), 1.96: (8,) * 10}
"""Leapfrog steps at 0.8 and 0.98 of the stability limit 2 of a whitened Gaussian, such that most are accepted."""


def is_invariant(step, step_size: float, density=WHITENED) -> tuple[bool, float]:
    """Whether exact draws are still exact after some transitions, and the mean acceptance rate of these."""
    state, rates = exact_start(density=density), []
    for num_steps in PATHS[step_size]:
        state, info = move(step, state, step_size, num_steps, density)
        rates.append(info.acceptance_rate.mean().item())
    u = state.position
    means = chi2_is_plausible(NUM_DRAWS * u.mean(0).square(), 1)
    squares = chi2_is_plausible(u.square().sum(), u.numel())
    return means and squares, sum(rates) / len(rates)


@pytest.mark.parametrize("step_size", PATHS)
def test_exact_draws_stay_exact(step_size):
    torch.manual_seed(0)
    invariant, rate = is_invariant(hmc.step, step_size)
    assert invariant
    assert 0.65 < rate < 0.85


# A momentum or a kinetic energy that is wrong by little shows at the smaller step alone.
CAUGHT = [(mutant, 1.6) for mutant in MUTANTS] + [
    (mutant, 1.96) for mutant in (always_accepted, inverted_acceptance, stale_gradient, missing_half_kick)
]


@pytest.mark.parametrize(("mutant", "step_size"), CAUGHT)
def test_invariance_catches_planted_bugs(mutant, step_size):
    torch.manual_seed(0)
    invariant, _ = is_invariant(mutant, step_size)
    assert not invariant


def test_a_gradient_that_is_too_steep_is_still_right_but_rejected():
    """It leaves the distribution alone; only acceptance shows it."""

    def steep(u):
        value, gradient = WHITENED(u)
        return value, 1.5 * gradient

    torch.manual_seed(0)
    invariant, rate = is_invariant(hmc.step, 1.6, steep)
    assert invariant
    assert not 0.65 < rate < 0.85


def narrow(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian of precision 3, where rotations are stable up to e = 1.3065, at which cot(e / 2) = e."""
    return -1.5 * u.square().sum(-1), -3.0 * u


def unkicked(position, momentum, gradient, function, step_size, num_steps):
    """Rotations with the last half kick left out."""
    end, end_momentum = hmc.rotations(position, momentum, gradient, function, step_size, num_steps)
    return end, end_momentum - 0.5 * step_size.unsqueeze(-1) * (end.gradient + end.position)


def unpulled(position, momentum, gradient, function, step_size, num_steps):
    """Rotations that kick by the whole gradient, so that the Gaussian part pulls twice."""

    def shifted(u):
        value, slope = function(u)
        return value, slope - u

    end, end_momentum = hmc.rotations(position, momentum, gradient - position, shifted, step_size, num_steps)
    return end._replace(gradient=end.gradient + end.position), end_momentum


def rotations_are_invariant(step, step_size: float, integrator=hmc.rotations) -> tuple[bool, float]:
    state, rates = hmc.init(torch.randn(NUM_DRAWS, 3, dtype=torch.float64) / 3**0.5, narrow), []
    for num_steps in ROTATIONS[step_size]:
        state, info = move(step, state, step_size, num_steps, narrow, integrator=integrator)
        rates.append(info.acceptance_rate.mean().item())
    u = state.position * 3**0.5
    means = chi2_is_plausible(NUM_DRAWS * u.mean(0).square(), 1)
    squares = chi2_is_plausible(u.square().sum(), u.numel())
    return means and squares, sum(rates) / len(rates)


ROTATIONS = {0.8 * 1.3065: (1, 2, 3, 1, 2, 3, 2, 1), 0.98 * 1.3065: (9,) * 10}
"""Steps at 0.8 and 0.98 of the stability limit."""


@pytest.mark.parametrize("step_size", ROTATIONS)
def test_exact_draws_stay_exact_under_rotations(step_size):
    torch.manual_seed(0)
    invariant, rate = rotations_are_invariant(hmc.step, step_size)
    assert invariant
    assert 0.5 < rate < 0.97


@pytest.mark.parametrize(
    ("mutant", "step_size"),
    [
        (mutant, size)
        for mutant in (
            scaled_momentum,
            always_accepted,
            inverted_acceptance,
            forgotten_kinetic_energy,
            stale_gradient,
        )
        for size in ROTATIONS
        if mutant in (always_accepted, inverted_acceptance) or size < 1.1
    ],
)
def test_invariance_of_rotations_catches_planted_bugs(mutant, step_size):
    torch.manual_seed(0)
    assert not rotations_are_invariant(mutant, step_size)[0]


def test_invariance_of_rotations_catches_a_missing_kick():
    torch.manual_seed(0)
    assert not rotations_are_invariant(hmc.step, 0.8 * 1.3065, unkicked)[0]


def test_a_gaussian_part_that_pulls_twice_is_still_right_but_rejected():
    """A wrong force leaves the distribution alone; only acceptance shows it."""
    torch.manual_seed(0)
    rates = [rotations_are_invariant(hmc.step, 0.8 * 1.3065, each)[1] for each in (hmc.rotations, unpulled)]
    assert rates[1] < 0.8 * rates[0]


def acceptance_identity_holds(step) -> bool:
    """E min(1, exp(-dH)) = 2 P(dH < 0) for a reversible, volume-preserving proposal from exact draws."""
    _, info = move(step, exact_start(2 * NUM_DRAWS), 1.2, 1)
    return identity_holds(info)


def identity_holds(info: hmc.HMCInfo) -> bool:
    return means_agree(info.acceptance_rate - 2.0 * (info.energy_error < 0).double(), 0.0)


def test_acceptance_identity():
    torch.manual_seed(0)
    assert acceptance_identity_holds(hmc.step)


def rotated(step) -> hmc.HMCInfo:
    start = hmc.init(torch.randn(2 * NUM_DRAWS, 3, dtype=torch.float64) / 3**0.5, narrow)
    return move(step, start, 0.9, 1, narrow, integrator=hmc.rotations)[1]


def test_acceptance_identity_of_rotations():
    torch.manual_seed(0)
    assert identity_holds(rotated(hmc.step))
    for mutant in (scaled_momentum, forgotten_kinetic_energy):
        assert not identity_holds(rotated(mutant))


@pytest.mark.parametrize("mutant", [scaled_momentum, forgotten_kinetic_energy])
def test_acceptance_identity_catches_planted_bugs(mutant):
    torch.manual_seed(0)
    assert not acceptance_identity_holds(mutant)


def WHITENED_2D(u):  # noqa: N802
    return -0.5 * u.square().sum(-1), -u


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's value is read by Python, which on a GPU waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_exact_gaussian_is_whitened_by_its_covariance():
    """What the invariance tests rest on: the whitened density is the standard normal."""
    u = torch.randn(10, 3, dtype=torch.float64)
    value, gradient = WHITENED(u)
    torch.testing.assert_close(value, -0.5 * u.square().sum(-1))
    torch.testing.assert_close(gradient, -u)
    z = unwhiten(Gaussian(LOC, torch.linalg.cholesky(COVARIANCE)), u)
    torch.testing.assert_close(correlated_log_density(z), value)
