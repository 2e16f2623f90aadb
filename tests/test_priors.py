import pytest
import torch

from pyrovae.models.priors import StandardNormal


def test_shapes() -> None:
    prior = StandardNormal(3)()
    assert (prior.batch_shape, prior.event_shape) == ((), (3,))
    assert prior.sample((5, 2)).shape == (5, 2, 3)
    assert prior.log_prob(torch.zeros(5, 2, 3)).shape == (5, 2)


def test_density_is_the_standard_normal_and_integrates_to_one() -> None:
    prior = StandardNormal(1).double()()
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    density = prior.log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-10)
    assert torch.trapezoid(density * grid[:, 0] ** 2, grid[:, 0]).item() == pytest.approx(1, abs=1e-10)


def test_buffers_follow_the_dtype_and_there_is_no_parameter() -> None:
    module = StandardNormal(2).double()
    assert module().sample().dtype == torch.float64
    assert list(module.parameters()) == []
    assert set(module.state_dict()) == {"loc", "scale"}


@pytest.mark.parametrize("dim", [0, -2])
def test_what_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim must be an integer of at least 1, got {dim}"):
        StandardNormal(dim)
