"""Fully connected networks, built from a list of widths."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

__all__ = ["ACTIVATIONS", "mlp"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def mlp(in_dim: int, hidden: Sequence[int], out_dim: int, activation: str = "relu") -> nn.Sequential:
    """A multilayer perceptron: linear layers with an activation between them, and a linear last layer.

    out = W_L a(... a(W_1 in + b_1) ...) + b_L. Any number of leading axes, as `torch.nn.Linear`. Weights are
    torch's own initial ones, drawn from the caller's random state.

    Args:
        in_dim: width of the input, at least 1.
        hidden: widths of the hidden layers, each at least 1; `()` gives one linear (affine) layer.
        out_dim: width of the output, at least 1.
        activation: a key of `ACTIVATIONS`: relu, gelu, silu, elu, leaky_relu, softplus or tanh.

    Returns:
        A module that maps `[*b, in_dim]` to `[*b, out_dim]`.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    >>> mlp(64, (32,), 8, activation="tanh")
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=True)
      (1): Tanh()
      (2): Linear(in_features=32, out_features=8, bias=True)
    )
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}; choose one"
        )
    check_width("in_dim", in_dim)
    check_width("out_dim", out_dim)
    check_hidden(hidden)
    widths = [in_dim, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))


def check_width(name: str, width: object) -> None:
    """Raise ValueError unless `width`, the argument called `name`, is an integer of at least 1."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {width!r}; pass a number of units")


def check_hidden(hidden: object) -> None:
    """Raise ValueError unless `hidden` is a sequence of integers of at least 1."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ValueError(
            f"hidden must be a sequence of layer widths, got {hidden!r}; "
            "write hidden=(256,) for one layer, () for none"
        )
    for index, width in enumerate(hidden):
        check_width(f"hidden[{index}]", width)
