"""Convolutional networks for images: from an image to a vector, and from a vector to an image."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pyrovae.models.networks import ACTIVATIONS, Residual, check_activation, check_hidden, check_width, mlp

__all__ = ["conv_decoder", "conv_encoder"]


def conv_encoder(
    out_dim: int,
    image_shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (),
    activation: str = "relu",
    residual: bool = False,
) -> nn.Sequential:
    """A network from images to vectors: convolutions that halve the image, then fully connected layers.

    Each entry of `channels` is a 3 x 3 convolution of stride 2 and an activation; height and width must be
    divisible by 2 that many times.

    Args:
        out_dim: width of the output, at least 1.
        image_shape: channels, height and width of an image.
        channels: channels of each convolution, at least one of them.
        hidden: widths of the fully connected layers between the convolutions and the output.
        activation: a key of `ACTIVATIONS`.
        residual: whether each convolution is followed by another one that adds its input to its output, and
            the fully connected layers are residual ones, see `mlp`.

    Returns:
        A module that maps `[n, *image_shape]` to `[n, out_dim]`.

    Raises:
        ValueError: a width below 1, an unknown activation, or an image that cannot be halved that often.

    >>> import torch
    >>> conv_encoder(16)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 16])
    """
    check_width("out_dim", out_dim)
    check_activation(activation)
    top = _top_shape(image_shape, channels)
    layers: list[nn.Module] = []
    for before, after in pairwise([image_shape[0], *channels]):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), ACTIVATIONS[activation]()]
        layers += [_residual(after, activation)] if residual else []
    head = mlp(top[0] * top[1] * top[2], hidden, out_dim, activation, residual)
    return nn.Sequential(*layers, nn.Flatten(), *head)


def conv_decoder(
    latent_dim: int,
    image_shape: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (64, 32),
    hidden: Sequence[int] = (),
    activation: str = "relu",
    residual: bool = False,
) -> nn.Sequential:
    """A network from vectors to images: fully connected layers, then convolutions that double the image.

    The mirror image of `conv_encoder`: each entry of `channels` is the input of a transposed 4 x 4 convolution
    of stride 2. The last has no activation after it. For a decoder that gives (loc, log_variance), pass twice
    the image's channels: the first half is loc.

    Args:
        latent_dim: width of z, at least 1.
        image_shape: channels, height and width of the output.
        channels: channels of each convolution's input, in their order, at least one.
        hidden: widths of the fully connected layers before the convolutions.
        activation: a key of `ACTIVATIONS`.
        residual: whether each transposed convolution follows one that adds its input to its output, and the
            fully connected layers are residual ones, see `mlp`.

    Returns:
        A module that maps `[n, latent_dim]` to `[n, *image_shape]`.

    Raises:
        ValueError: a width below 1, an unknown activation, or an image that cannot be halved that often.

    >>> import torch
    >>> conv_decoder(8)(torch.zeros(3, 8)).shape
    torch.Size([3, 1, 28, 28])
    """
    check_width("latent_dim", latent_dim)
    check_activation(activation)
    top = _top_shape(image_shape, tuple(reversed(channels)))
    layers: list[nn.Module] = []
    for before, after in pairwise([*channels, image_shape[0]]):
        layers += [_residual(before, activation)] if residual else []
        layers += [
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
        ]
    head = mlp(latent_dim, hidden, top[0] * top[1] * top[2], activation, residual)
    return nn.Sequential(*head, ACTIVATIONS[activation](), nn.Unflatten(1, top), *layers[:-1])


def _residual(width: int, activation: str) -> Residual:
    layer = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), ACTIVATIONS[activation]())
    return Residual(layer, nn.Identity())


def _top_shape(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width after the convolutions of an encoder with those `channels`."""
    check_hidden(image_shape, "image_shape")
    check_hidden(channels, "channels")
    if len(image_shape) != 3 or not channels:
        raise ValueError(
            "a convolutional network wants image_shape=(channels, height, width) and at least one entry in "
            f"channels, got {tuple(image_shape)} and {tuple(channels)}; a gray 28 x 28 image is (1, 28, 28)"
        )
    factor = 2 ** len(channels)
    _, height, width = image_shape
    if height % factor or width % factor:
        raise ValueError(
            f"{len(channels)} convolutions of stride 2 want a height and width divisible by {factor}, got "
            f"{height} x {width}; pass fewer channels, or pad or crop the images"
        )
    return channels[-1], height // factor, width // factor
