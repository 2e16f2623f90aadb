"""What the numbers that a network puts out mean, for the Gaussian encoders, and which outputs are refused."""

import math

import pytest
import torch
from torch import nn

from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian, FullGaussian, LowRankGaussian

F64 = torch.float64


class Pair(nn.Module):
    """Returns the halves of a linear layer as a pair, or whatever `change` makes of them."""

    def __init__(self, linear: nn.Linear, change=lambda loc, log_variance: (loc, log_variance)) -> None:
        super().__init__()
        self.linear = linear
        self.change = change

    def forward(self, x: torch.Tensor):
        return self.change(*self.linear(x).chunk(2, -1))


def test_full_and_low_rank_covariance() -> None:
    x = torch.tensor([0.0, 0.0, math.log(4.0), math.log(9.0), 0.5], dtype=F64)
    # s = (2, 3): L = [[2, 0], [1.5, 3]]
    assert torch.allclose(
        FullGaussian(nn.Identity())(x).covariance_matrix, torch.tensor([[4.0, 3.0], [3.0, 11.25]]).double()
    )
    x = torch.tensor([0.0, 0.0, math.log(4.0), math.log(9.0), 0.5, 1.0], dtype=F64)
    # S (I + R R') S with R = (0.5, 1)
    assert torch.allclose(
        LowRankGaussian(nn.Identity(), 1)(x).covariance_matrix,
        torch.tensor([[5.0, 3.0], [3.0, 18.0]]).double(),
    )
    full = FullGaussian(nn.Identity())(torch.arange(9.0) * torch.tensor([1.0] * 3 + [0.0] * 3 + [1.0] * 3))
    assert full.scale_tril.tolist() == [[1, 0, 0], [6, 1, 0], [7, 8, 1]]


def test_zero_ratios_are_the_diagonal_encoder() -> None:
    x, z = torch.randn(3, 4, dtype=F64), torch.randn(3, 2, dtype=F64)
    diagonal = DiagonalGaussian(nn.Identity())(x).log_prob(z)
    full = FullGaussian(nn.Identity())(torch.cat([x, x.new_zeros(3, 1)], -1)).log_prob(z)
    low = LowRankGaussian(nn.Identity(), 1)(torch.cat([x, x.new_zeros(3, 2)], -1)).log_prob(z)
    assert torch.allclose(full, diagonal)
    assert torch.allclose(low, diagonal)


@pytest.mark.parametrize("rank", [0, -1, True])
def test_a_rank_is_a_positive_integer(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be an integer of at least 1"):
        LowRankGaussian(nn.Identity(), rank)


def test_the_second_half_is_the_log_variance() -> None:
    q = DiagonalGaussian(nn.Identity())(torch.tensor([[1.0, 2.0, 0.0, 2 * torch.log(torch.tensor(3.0))]]))
    assert q.mean.tolist() == [[1.0, 2.0]]
    assert q.stddev[0].tolist() == pytest.approx([1.0, 3.0])


def test_nan_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="nan"):
        DiagonalGaussian(nn.Identity())(torch.tensor([[0.0, float("nan")]]))


def test_a_mapping_is_its_values_in_order() -> None:
    linear, x = nn.Linear(4, 6), torch.randn(3, 4)
    pair, named = Pair(linear), Pair(linear, lambda a, b: {"embedding": a, "log_covariance": b})
    for name in ("mean", "stddev"):
        expected = getattr(DiagonalGaussian(pair)(x), name)
        assert torch.equal(getattr(DiagonalGaussian(named)(x), name), expected)
    whole = Pair(linear, lambda a, b: {"output": torch.cat([a, b], -1)})
    assert torch.equal(DiagonalGaussian(whole)(x).mean, DiagonalGaussian(pair)(x).mean)
    decoder = GaussianDecoder(Pair(linear, lambda a, b: {"reconstruction": a}), noise="fixed", scale=0.5)
    assert torch.equal(decoder(x).mean, pair(x)[0])


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
