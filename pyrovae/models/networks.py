"""Fully connected networks, built from a list of widths, and how a decoder runs any network row by row."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Residual", "halves", "members", "mlp", "row_outputs"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def mlp(
    in_dim: int, hidden: Sequence[int], out_dim: int, activation: str = "relu", residual: bool = False
) -> nn.Sequential:
    """A multilayer perceptron: linear layers with an activation between them, and a linear last layer.

    out = W_L a(... a(W_1 in + b_1) ...) + b_L. Any number of leading axes, as `torch.nn.Linear`. Weights are
    torch's own initial ones, drawn from the caller's random state.

    Args:
        in_dim: width of the input, at least 1.
        hidden: widths of the hidden layers, each at least 1; `()` gives one linear (affine) layer.
        out_dim: width of the output, at least 1.
        activation: a key of `ACTIVATIONS`: relu, gelu, silu, elu, leaky_relu, softplus or tanh.
        residual: whether each hidden layer adds its input to its output, h + a(W h + b), see `Residual`.

    Returns:
        A module that maps `[*b, in_dim]` to `[*b, out_dim]`; its last layer is the linear one.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    >>> mlp(64, (32,), 8, activation="tanh")
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=True)
      (1): Tanh()
      (2): Linear(in_features=32, out_features=8, bias=True)
    )
    """
    check_activation(activation)
    check_width("in_dim", in_dim)
    check_width("out_dim", out_dim)
    check_hidden(hidden)
    widths = [in_dim, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layer = [nn.Linear(before, after), ACTIVATIONS[activation]()]
        skip = nn.Identity() if before == after else nn.Linear(before, after, bias=False)
        layers += [Residual(nn.Sequential(*layer), skip)] if residual else layer
    return nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))


class Residual(nn.Module):
    """A layer to which its input is added: h -> skip(h) + layer(h) (He et al. 2016).

    Args:
        layer: a module.
        skip: what is done to the input before it is added: the identity, or, where the layer changes the
            width, a linear map without bias.

    >>> import torch
    >>> Residual(nn.Tanh(), nn.Identity())(torch.zeros(3)).tolist()
    [0.0, 0.0, 0.0]
    """

    def __init__(self, layer: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.skip = skip

    def forward(self, h: Tensor) -> Tensor:
        """skip(h) + layer(h)."""
        out: Tensor = self.skip(h) + self.layer(h)
        return out


def members(output: object) -> tuple[Any, ...]:
    """What a network returned, one by one: a tuple's or list's members, a mapping's values, or the one thing it is.

    Mappings are what networks of other libraries return, such as {"embedding": ..., "log_covariance": ...}.
    """
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def row_outputs(net: nn.Module, z: Tensor) -> tuple[Tensor, ...]:
    """What `net` returns for z `[*b, D]` as rows `[n, D]`, as a tuple of tensors `[n, ...]`."""
    rows = z.reshape(-1, z.shape[-1])
    flat: tuple[Any, ...] = members(net(rows))
    for out in flat:
        if not isinstance(out, Tensor):
            raise TypeError(
                f"the decoder's net must return one tensor or a pair of them, got {type(out).__name__}"
            )
        if out.shape[:1] != rows.shape[:1]:
            raise ValueError(
                f"the decoder's net must return one row for each row of z, got shape {tuple(out.shape)} for "
                f"{len(rows)} rows; keep the first axis of its input as the first axis of its output"
            )
    return flat


def halves(flat: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """loc and log variance in what a heteroscedastic decoder's net returned, see `row_outputs`."""
    if len(flat) == 1 and flat[0].dim() > 1 and flat[0].shape[1] % 2 == 0:
        return flat[0].chunk(2, 1)
    if len(flat) == 2 and flat[0].shape == flat[1].shape:
        return tuple(flat)
    raise ValueError(
        "with noise='heteroscedastic' the decoder's net must return (loc, log_variance) of one shape, or one tensor "
        f"with axis 1 twice as long as the data's, got {' and '.join(str(tuple(out.shape)) for out in flat)}; "
        "make its last layer twice as wide"
    )


def check_activation(activation: object) -> None:
    """Raise ValueError unless `activation` is a key of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}; choose one"
        )


def check_width(name: str, width: object) -> None:
    """Raise ValueError unless `width`, the argument called `name`, is an integer of at least 1."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {width!r}; pass a number of units")


def check_hidden(hidden: object, name: str = "hidden") -> None:
    """Raise ValueError unless `hidden`, the argument called `name`, is a sequence of integers of at least 1."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ValueError(
            f"{name} must be a sequence of layer widths, got {hidden!r}; "
            f"write {name}=(256,) for one layer, () for none"
        )
    for index, width in enumerate(hidden):
        check_width(f"{name}[{index}]", width)
