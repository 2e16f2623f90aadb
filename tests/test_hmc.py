"""One transition of HMC: exact properties of the integrator, invariance, and the bugs that these must catch."""

import math
from functools import partial

import pytest
import torch
from chance import chi2_is_plausible, means_agree
from torch.fx.experimental.proxy_tensor import make_fx
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


def exact_start(num_draws: int = NUM_DRAWS) -> hmc.HMCState:
    return hmc.init(torch.randn(num_draws, 3, dtype=torch.float64), WHITENED)


PATHS = {1.6: (2, 3, 5, 2, 7, 3, 2, 5), 1.96: (8,) * 10}
"""Leapfrog steps at 0.8 and 0.98 of the stability limit 2 of a whitened Gaussian, such that most are accepted."""


def is_invariant(step, step_size: float) -> tuple[bool, float]:
    """Whether exact draws are still exact after some transitions, and the mean acceptance rate of these."""
    state, rates = exact_start(), []
    for num_steps in PATHS[step_size]:
        state, info = move(step, state, step_size, num_steps)
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


def distance_after_return(leapfrog) -> float:
    density = hmc.with_gradient(quartic_log_density)
    start = hmc.init(torch.randn(50, 2, dtype=torch.float64), density)
    momentum = torch.randn(50, 2, dtype=torch.float64)
    sizes = 0.05 + 0.1 * torch.rand(50, dtype=torch.float64)
    there, turned = leapfrog(start.position, momentum, start.gradient, density, sizes, 20)
    back, end = leapfrog(there.position, -turned, there.gradient, density, sizes, 20)
    return max((back.position - start.position).abs().max().item(), (end + momentum).abs().max().item())


def test_leapfrog_is_reversible():
    torch.manual_seed(0)

    def without_last_half_kick(position, momentum, gradient, function, step_size, num_steps):
        end, momentum = hmc.leapfrog(position, momentum, gradient, function, step_size, num_steps)
        return end, momentum - 0.5 * step_size.unsqueeze(-1) * end.gradient

    assert distance_after_return(hmc.leapfrog) < 1e-10
    assert distance_after_return(hmc.rotations) < 1e-10
    rows = {"stop_after": torch.arange(1, 51) % 20 + 1, "rotates": torch.arange(50) % 2 == 0}
    assert distance_after_return(partial(hmc.rotations, **rows)) < 1e-10
    assert distance_after_return(unkicked) > 1e-3
    assert distance_after_return(without_last_half_kick) > 1e-3


@pytest.mark.parametrize("integrator", [hmc.leapfrog, hmc.rotations])
def test_integrators_preserve_volume(integrator):
    def density(z):
        gradient = torch.stack([-(z[..., 0] ** 3) - 0.3 * z[..., 1], -(z[..., 1] ** 3) - 0.3 * z[..., 0]], -1)
        return quartic_log_density(z), gradient

    def end(point):
        position, momentum = point.chunk(2, -1)
        _, gradient = density(position)
        state, momentum = integrator(position, momentum, gradient, density, position.new_tensor(0.2), 7)
        return torch.cat([state.position, momentum])

    torch.manual_seed(0)
    jacobian = torch.autograd.functional.jacobian(end, torch.randn(4, dtype=torch.float64))
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-12)


def test_energy_error_is_of_second_order():
    """Halving the step at the same integration time quarters the error."""
    for integrator in (hmc.leapfrog, hmc.rotations):
        check_order(integrator)


def check_order(integrator) -> None:
    torch.manual_seed(0)
    density = hmc.with_gradient(quartic_log_density)
    state = hmc.init(torch.randn(2000, 2, dtype=torch.float64), density)
    noise = {"momentum": torch.randn_like(state.position), "log_uniform": torch.zeros(2000).double()}
    errors = []
    for halvings in (0, 1, 2):
        sizes = torch.full((2000,), 0.05 / 2**halvings, dtype=torch.float64)
        _, info = hmc.step(
            state, density, **noise, step_size=sizes, num_steps=20 * 2**halvings, integrator=integrator
        )
        errors.append(info.energy_error.abs().mean().item())
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


def test_rotations_are_exact_on_a_standard_normal():
    torch.manual_seed(0)
    start = hmc.init(torch.randn(50, 2, dtype=torch.float64), WHITENED_2D)
    momentum, angle = torch.randn(50, 2, dtype=torch.float64), torch.full((50,), 1.3, dtype=torch.float64)
    end, turned = hmc.rotations(start.position, momentum, start.gradient, WHITENED_2D, angle, 1)
    torch.testing.assert_close(end.position, math.cos(1.3) * start.position + math.sin(1.3) * momentum)
    torch.testing.assert_close(turned, math.cos(1.3) * momentum - math.sin(1.3) * start.position)


def test_rows_rest_after_their_steps_and_rotate_or_not():
    """A row in a batch ends where it would end alone, with its own integrator and number of steps."""
    torch.manual_seed(0)
    density = hmc.with_gradient(quartic_log_density)
    start = hmc.init(torch.randn(4, 2, dtype=torch.float64), density)
    momentum, sizes = torch.randn(4, 2, dtype=torch.float64), torch.linspace(0.1, 0.4, 4, dtype=torch.float64)
    stops, rotates = torch.tensor([1, 3, 2, 3]), torch.tensor([True, False, False, True])
    together, end = hmc.rotations(
        start.position, momentum, start.gradient, density, sizes, 3, stop_after=stops, rotates=rotates
    )
    for row in range(4):
        integrator = hmc.rotations if rotates[row] else hmc.leapfrog
        one = slice(row, row + 1)
        alone, alone_end = integrator(
            start.position[one], momentum[one], start.gradient[one], density, sizes[one], int(stops[row])
        )
        torch.testing.assert_close(together.position[one], alone.position)
        torch.testing.assert_close(end[one], alone_end)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_transition_costs_one_gradient_a_step(num_steps):
    density = Counted(WHITENED)
    state = hmc.init(torch.zeros(5, 3, dtype=torch.float64), density)
    assert density.calls == 1
    move(hmc.step, state, 0.1, num_steps, density)
    assert density.calls == 1 + num_steps


def test_no_steps_are_refused():
    state = hmc.init(torch.zeros(5, 3, dtype=torch.float64), WHITENED)
    with pytest.raises(ValueError, match="num_steps must be at least 1, but is 0"):
        move(hmc.step, state, 0.1, 0)


def test_with_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    z = torch.randn(4, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        value, gradient = hmc.with_gradient(quartic_log_density)(z)
    assert not any(tensor.requires_grad for tensor in (value, gradient, z))
    for i, shift in enumerate(1e-6 * torch.eye(2, dtype=torch.float64)):
        difference = (quartic_log_density(z + shift) - quartic_log_density(z - shift)) / 2e-6
        torch.testing.assert_close(gradient[..., i], difference, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (4,), (4, 3)])
def test_shapes_and_dtypes(shape, dtype):
    density = hmc.with_gradient(quartic_log_density)
    state, info = move(hmc.step, hmc.init(torch.zeros(*shape, 2, dtype=dtype), density), 0.1, 2, density)
    assert state.position.shape == state.gradient.shape == (*shape, 2)
    assert all(field.shape == shape for field in (state.log_density, *info))
    assert all(
        field.dtype == dtype for field in (*state, info.energy, info.energy_error, info.acceptance_rate)
    )
    assert info.accepted.dtype == info.diverging.dtype == torch.bool


def test_single_precision_follows_double():
    torch.manual_seed(0)
    density = hmc.with_gradient(quartic_log_density)
    start, momentum = torch.randn(100, 2, dtype=torch.float64), torch.randn(100, 2, dtype=torch.float64)
    found = []
    for dtype in (torch.float64, torch.float32):
        state = hmc.init(start.to(dtype), density)
        noise = {"momentum": momentum.to(dtype), "log_uniform": torch.full((100,), -1.0, dtype=dtype)}
        found.append(
            hmc.step(state, density, **noise, step_size=torch.full((100,), 0.1, dtype=dtype), num_steps=5)
        )
    torch.testing.assert_close(
        found[1][1].energy_error.double(), found[0][1].energy_error, rtol=0.0, atol=1e-5
    )


def test_what_info_says():
    """Energies are those of the kept point; the uniform number decides at exactly the energy error."""
    torch.manual_seed(0)
    density = hmc.with_gradient(quartic_log_density)
    start = hmc.init(torch.randn(500, 2, dtype=torch.float64), density)
    sizes = torch.full((500,), 0.7, dtype=torch.float64)
    momentum = torch.randn(500, 2, dtype=torch.float64)
    step = partial(hmc.step, start, density, momentum=momentum, step_size=sizes, num_steps=2)
    end, end_momentum = hmc.leapfrog(start.position, momentum, start.gradient, density, sizes, 2)
    before = 0.5 * momentum.square().sum(-1) - quartic_log_density(start.position)
    after = 0.5 * end_momentum.square().sum(-1) - quartic_log_density(end.position)
    _, info = step(log_uniform=torch.zeros(500, dtype=torch.float64))
    torch.testing.assert_close(info.energy_error, after - before)
    torch.testing.assert_close(info.acceptance_rate, (before - after).exp().clamp(max=1.0))
    assert torch.equal(info.accepted, info.energy_error < 0)
    for log_uniform in (
        torch.full_like(before, -math.inf),
        -info.energy_error - 1e-9,
        -info.energy_error + 1e-9,
    ):
        state, seen = step(log_uniform=log_uniform)
        took = log_uniform < -info.energy_error
        assert torch.equal(seen.accepted, took)
        torch.testing.assert_close(seen.energy, torch.where(took, after, before))
        assert torch.equal(state.position, torch.where(took[:, None], end.position, start.position))
        torch.testing.assert_close(hmc.init(state.position, density), state)


def poisoned(kind: str, row: int):
    """The whitened Gaussian, but one row has a bad value once it has moved away from the origin."""
    bad = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "gradient": math.nan}[kind]

    def evaluate(u):
        value, gradient = -0.5 * u.square().sum(-1), -u
        is_bad = (torch.arange(len(u)) == row) & (u.abs().sum(-1) > 0)
        if kind == "gradient":
            return value, torch.where(is_bad[:, None], bad, gradient)
        return torch.where(is_bad, bad, value), gradient

    return evaluate


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf", "gradient"])
def test_a_row_that_breaks_is_rejected_and_touches_no_other(kind):
    results = []
    for row in (3, -1):  # -1 is no row
        torch.manual_seed(0)
        start = hmc.init(torch.zeros(6, 2, dtype=torch.float64), poisoned(kind, row))
        results.append(move(hmc.step, start, 0.5, 3, poisoned(kind, row)))
    (broken, info), (clean, clean_info) = results
    others = torch.arange(6) != 3
    for one, other in zip((*broken, *info), (*clean, *clean_info), strict=True):
        assert torch.equal(one[others], other[others])
    assert all(field.isfinite().all() for field in (*broken, info.energy, info.acceptance_rate))
    assert info.diverging.tolist() == [False, False, False, True, False, False]
    assert not info.accepted[3]
    assert info.acceptance_rate[3] == 0
    assert info.energy_error[3] == math.inf


def test_an_unstable_step_size_diverges_in_its_own_row():
    torch.manual_seed(0)
    state = hmc.init(torch.randn(3, 2, dtype=torch.float64), WHITENED_2D)
    noise = {
        "momentum": torch.randn(3, 2, dtype=torch.float64),
        "log_uniform": torch.full((3,), -1e6).double(),
    }
    sizes = torch.tensor([0.5, 50.0, 1e200], dtype=torch.float64)
    result, info = hmc.step(state, WHITENED_2D, **noise, step_size=sizes, num_steps=3)
    assert info.diverging.tolist() == [False, True, True]
    assert info.energy_error[1].isfinite()
    assert torch.equal(result.position[2], state.position[2])


def WHITENED_2D(u):  # noqa: N802
    return -0.5 * u.square().sum(-1), -u


def test_a_start_of_zero_density_is_left_at_once():
    def density(u):
        value = torch.where(u[..., 0] < 0, -math.inf, -0.5 * u.square().sum(-1))
        return value, torch.where(u[..., :1] < 0, 0.0, -u)

    state = hmc.init(torch.tensor([[-0.1, 0.0]]), density)
    noise = {"momentum": torch.tensor([[1.0, 0.0]]), "log_uniform": torch.tensor([-1e-6])}
    state, info = hmc.step(state, density, **noise, step_size=torch.tensor([0.5]), num_steps=1)
    assert info.accepted
    assert state.log_density.isfinite()
    assert info.energy.isfinite()


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's value is read by Python, which on a GPU waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("integrator", [hmc.leapfrog, hmc.rotations])
def test_a_transition_reads_no_tensor_and_can_be_traced(integrator):
    torch.manual_seed(0)
    state = hmc.init(torch.randn(5, 2, dtype=torch.float64), WHITENED_2D)
    noise = (torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64).log())
    sizes = torch.full((5,), 0.4, dtype=torch.float64)

    def transition(state, momentum, log_uniform, step_size):
        return hmc.step(
            state,
            WHITENED_2D,
            momentum=momentum,
            log_uniform=log_uniform,
            step_size=step_size,
            num_steps=3,
            integrator=integrator,
        )

    with HostReads() as reads:
        eager = transition(state, *noise, sizes)
    assert reads.count == 0
    traced = make_fx(transition)(state, *noise, sizes)(state, *noise, sizes)
    torch.testing.assert_close(traced, eager)


def test_the_exact_gaussian_is_whitened_by_its_covariance():
    """What the invariance tests rest on: the whitened density is the standard normal."""
    u = torch.randn(10, 3, dtype=torch.float64)
    value, gradient = WHITENED(u)
    torch.testing.assert_close(value, -0.5 * u.square().sum(-1))
    torch.testing.assert_close(gradient, -u)
    z = unwhiten(Gaussian(LOC, torch.linalg.cholesky(COVARIANCE)), u)
    torch.testing.assert_close(correlated_log_density(z), value)
