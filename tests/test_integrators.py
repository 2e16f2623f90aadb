"""The integrators of HMC: reversible, volume-preserving, of second order, and as many gradients as steps."""

import math
from functools import partial

import pytest
import torch
from test_hmc import WHITENED, WHITENED_2D, Counted, move, quartic_log_density, unkicked

from pyrovae.inference import hmc


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
