"""One transition of HMC: what it says, in which shapes, and that a row which breaks is rejected and alone."""

import math
from functools import partial

import pytest
import torch
from test_hmc import WHITENED_2D, HostReads, move, quartic_log_density
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae.inference import hmc


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
