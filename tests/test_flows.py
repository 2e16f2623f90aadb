import copy

import pytest
import torch

from pyrovae.models import flows
from pyrovae.models.flows import FlowPrior


def prior(kind: str, dim: int, size: float = 0.05) -> FlowPrior:
    torch.manual_seed(0)
    module = FlowPrior(dim, kind)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn_like(p))
    return module


CASES = [("autoregressive", 2), ("autoregressive", 3), ("spline", 1), ("spline", 2), ("spline", 5)]


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_the_density_is_that_of_the_map(kind: str, dim: int) -> None:
    p = prior(kind, dim).double()()

    def to_base(z: torch.Tensor) -> torch.Tensor:
        for step in reversed(p.transforms):
            z = step.inv(z)
        return z

    for z in 1.5 * torch.randn(6, dim).double():
        jacobian = torch.autograd.functional.jacobian(to_base, z)
        exact = p.base_dist.log_prob(to_base(z)) + torch.linalg.slogdet(jacobian)[1]
        assert p.log_prob(z).item() == pytest.approx(exact.item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_draws_go_back_to_the_base_that_they_came_from(kind: str, dim: int, dtype: torch.dtype) -> None:
    module = prior(kind, dim).to(dtype)
    p = module()
    base = torch.randn(50, dim, dtype=dtype)
    z = base
    for step in p.transforms:
        z = step(z)
    back = z.clone()  # a new tensor: nothing that was remembered helps
    for step in reversed(module().transforms):
        back = step.inv(back)
    assert z.dtype == dtype
    assert (back - base).abs().max() < (1e-3 if dtype == torch.float32 else 1e-9)
    assert (z - base).abs().max() > 0.05


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_it_starts_near_the_standard_normal(kind: str, dim: int) -> None:
    torch.manual_seed(0)
    p, z = FlowPrior(dim, kind)(), torch.randn(200, dim)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert (p.log_prob(z) - standard).abs().mean() < 0.5


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_gradients_reach_every_parameter_and_z(kind: str, dim: int) -> None:
    module, z = prior(kind, dim), torch.randn(500, dim, requires_grad=True)
    module().log_prob(z).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert z.grad is not None
    assert z.grad.abs().min() > 0
    assert module().rsample((3,)).requires_grad


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_it_can_be_copied_after_use_and_its_state_is_all_of_it(kind: str, dim: int) -> None:
    module, z = prior(kind, dim), torch.randn(5, dim)
    value = module().log_prob(z)
    twin = copy.deepcopy(module)
    assert torch.equal(twin().log_prob(z), value)
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1.0)
    assert torch.equal(module().log_prob(z), value)
    other = FlowPrior(dim, kind)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other().log_prob(z), value)


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_the_same_z_is_scored_anew_after_a_step(kind: str, dim: int) -> None:
    module, z = prior(kind, dim), torch.randn(5, dim)
    with torch.no_grad():
        before = module().log_prob(z)
        for p in module.flows.parameters():
            p.add_(0.3 * torch.randn_like(p))
        assert not torch.allclose(module().log_prob(z), before)
    assert module().log_prob(z).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "dim must be an integer of at least 1, got 0"),
        ((2, "planar"), "kind must be one of autoregressive, spline, got 'planar'"),
        ((2, "spline", 0), "num_flows must be an integer of at least 1, got 0"),
        ((4, "spline", 2, 3), "hidden must be at least dim=4, got 3"),
        ((1, "autoregressive"), "wants dim of at least 2, got 1.*use kind='spline'"),
    ],
)
def test_what_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowPrior(*arguments)


def test_it_exports_what_it_says() -> None:
    assert all(hasattr(flows, name) for name in flows.__all__)
