import pytest
import torch
from torch import nn

from pyrovae.models.encoders import DiagonalGaussian


class Pair(nn.Module):
    """Returns the halves of a linear layer as a pair, or whatever `change` makes of them."""

    def __init__(self, linear: nn.Linear, change=lambda loc, log_variance: (loc, log_variance)) -> None:
        super().__init__()
        self.linear = linear
        self.change = change

    def forward(self, x: torch.Tensor):
        return self.change(*self.linear(x).chunk(2, -1))


@pytest.mark.parametrize("batch", [(), (3,), (4, 3)])
def test_shapes(batch: tuple[int, ...]) -> None:
    q = DiagonalGaussian(nn.Linear(5, 4))(torch.randn(*batch, 5))
    assert (q.batch_shape, q.event_shape) == (batch, (2,))
    assert q.log_prob(q.rsample()).shape == batch


def test_one_tensor_and_a_pair_mean_the_same() -> None:
    linear, x = nn.Linear(5, 4), torch.randn(3, 5)
    one, two = DiagonalGaussian(linear)(x), DiagonalGaussian(Pair(linear))(x)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.stddev, two.stddev)


def test_the_second_half_is_the_log_variance() -> None:
    q = DiagonalGaussian(nn.Identity())(torch.tensor([[1.0, 2.0, 0.0, 2 * torch.log(torch.tensor(3.0))]]))
    assert q.mean.tolist() == [[1.0, 2.0]]
    assert q.stddev[0].tolist() == pytest.approx([1.0, 3.0])


def test_density_integrates_to_one() -> None:
    grid = torch.linspace(-30, 30, 8001, dtype=torch.float64)
    q = DiagonalGaussian(nn.Identity())(torch.tensor([0.5, 1.2], dtype=torch.float64))
    assert torch.trapezoid(q.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("raw", [-1e30, -200.0, 200.0, 1e30])
def test_no_finite_output_gives_a_scale_of_zero_or_infinity(raw: float) -> None:
    q = DiagonalGaussian(nn.Identity())(torch.tensor([[0.0, raw]]))
    assert 0 < q.stddev.item() < float("inf")
    assert torch.isfinite(q.log_prob(q.rsample())).all()


def test_nan_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="nan"):
        DiagonalGaussian(nn.Identity())(torch.tensor([[0.0, float("nan")]]))


def test_a_gradient_reaches_every_parameter() -> None:
    encoder = DiagonalGaussian(nn.Linear(5, 4))
    q = encoder(torch.randn(3, 5))
    (q.rsample().square().sum() - q.log_prob(q.rsample()).sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_what_is_refused() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"last axis of 2 \* latent_dim.*got shape \(3, 5\)"):
        DiagonalGaussian(nn.Linear(4, 5))(x)
    with pytest.raises(TypeError, match=r"one tensor or a pair.*got str"):
        DiagonalGaussian(Pair(nn.Linear(4, 4), lambda a, b: "loc"))(x)
    with pytest.raises(TypeError, match=r"one tensor or a pair.*got tuple"):
        DiagonalGaussian(Pair(nn.Linear(4, 4), lambda a, b: (a, b, b)))(x)
    with pytest.raises(ValueError, match=r"of one shape, got \(3, 2\) and \(3, 1\)"):
        DiagonalGaussian(Pair(nn.Linear(4, 4), lambda a, b: (a, b[:, :1])))(x)
