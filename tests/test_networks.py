import pytest
import torch
from torch import nn

from pyrovae.models.networks import ACTIVATIONS, Residual, check_hidden, mlp, row_outputs


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_any_leading_axes(shape: tuple[int, ...]) -> None:
    assert mlp(5, (7, 6), 2)(torch.zeros(*shape, 5)).shape == (*shape, 2)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_layers_and_activations_alternate_and_the_last_is_linear(activation: str) -> None:
    net = mlp(5, [7, 6], 2, activation)
    assert [type(layer) for layer in net[0::2]] == [nn.Linear] * 3
    assert {type(layer) for layer in net[1::2]} == {type(ACTIVATIONS[activation]())}
    assert [(layer.in_features, layer.out_features) for layer in net[0::2]] == [(5, 7), (7, 6), (6, 2)]


def test_no_hidden_layer_is_affine() -> None:
    net = mlp(3, (), 2).double()
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.allclose(net(a) + net(b), net(a + b) + net(torch.zeros(3).double()), atol=1e-12)


def test_a_gradient_reaches_every_parameter() -> None:
    net = mlp(5, (7, 6), 2, "tanh")
    net(torch.randn(8, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_residual_layers_add_their_input() -> None:
    net, x = mlp(5, (7, 7), 2, "tanh", residual=True), torch.randn(3, 5)
    first, second, last = net
    assert isinstance(first.skip, nn.Linear)
    assert first.skip.bias is None
    assert isinstance(second.skip, nn.Identity)
    h = x @ first.skip.weight.mT + torch.tanh(first.layer[0](x))
    torch.testing.assert_close(net(x), last(h + torch.tanh(second.layer[0](h))))
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert isinstance(Residual(nn.Tanh(), nn.Identity())(x), torch.Tensor)


def test_row_outputs_gives_one_axis_of_rows_whatever_z_has() -> None:
    linear, z = nn.Linear(2, 3), torch.randn(4, 5, 2)
    (one,) = row_outputs(linear, z)
    assert torch.equal(one, linear(z.reshape(20, 2)))
    assert [out.shape for out in row_outputs(Twice(), z)] == [(20, 2), (20, 2)]
    with pytest.raises(ValueError, match=r"one row for each row of z, got shape \(2, 20\) for 20 rows"):
        row_outputs(Turned(), z)


class Twice(nn.Module):
    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows, 2 * rows


class Turned(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.mT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (3,), 2), "in_dim must be an integer of at least 1, got 0"),
        ((4, (3,), -1), "out_dim must be an integer of at least 1, got -1"),
        ((4, (3, 0), 2), r"hidden\[1\] must be an integer of at least 1, got 0"),
        ((4, (True,), 2), r"hidden\[0\] must be an integer"),
        ((4, (3,), 2, "swish"), "activation must be one of elu, .*, got 'swish'"),
    ],
)
def test_what_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlp(*arguments)


@pytest.mark.parametrize("hidden", [256, "256", None])
def test_hidden_must_be_a_sequence(hidden: object) -> None:
    with pytest.raises(ValueError, match=r"hidden must be a sequence of layer widths.*hidden=\(256,\)"):
        check_hidden(hidden)


def test_widths_must_be_integers() -> None:
    with pytest.raises(ValueError, match=r"hidden\[0\] must be an integer of at least 1, got 3\.5"):
        check_hidden([3.5])
