import pytest
import torch
from torch import nn

from pyrovae.models.convolution import conv_decoder, conv_encoder


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels", "hidden"),
    [((1, 28, 28), (4, 6), ()), ((3, 8, 16), (4, 5, 6), (7,)), ((2, 6, 4), (4,), (7, 5))],
)
def test_shapes_and_gradients(shape: tuple, channels: tuple, hidden: tuple, residual: bool) -> None:
    encoder = conv_encoder(5, shape, channels, hidden, "tanh", residual)
    decoder = conv_decoder(5, shape, channels[::-1], hidden[::-1], "tanh", residual)
    x = torch.randn(3, *shape)
    code = encoder(x)
    image = decoder(code)
    assert (code.shape, image.shape) == ((3, 5), (3, *shape))
    image.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for net in (encoder, decoder) for p in net.parameters())


def test_the_defaults_are_for_gray_28_by_28_images() -> None:
    assert conv_encoder(7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert conv_decoder(7)(torch.zeros(2, 7)).shape == (2, 1, 28, 28)


def test_every_pixel_is_seen_and_every_pixel_is_written() -> None:
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    conv_encoder(5, (1, 8, 8), (4, 6), activation="tanh")(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    decoder = conv_decoder(5, (1, 8, 8), (6, 4), activation="tanh")
    assert (decoder(torch.randn(1, 5)) != decoder(torch.randn(1, 5))).all()


def test_the_last_layer_is_linear_and_residual_layers_add_convolutions() -> None:
    assert isinstance(conv_encoder(5)[-1], nn.Linear)
    assert isinstance(conv_decoder(5)[-1], nn.ConvTranspose2d)
    plain, residual = (
        sum(isinstance(m, nn.Conv2d) for m in conv_encoder(5, residual=r).modules()) for r in (False, True)
    )
    assert (plain, residual) == (2, 4)


@pytest.mark.parametrize("make", [conv_encoder, conv_decoder])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (1, 28, 30)}, "want a height and width divisible by 4, got 28 x 30; pass fewer"),
        ({"image_shape": (28, 28)}, r"wants image_shape=\(channels, height, width\).*got \(28, 28\)"),
        ({"channels": ()}, "at least one entry in channels"),
        ({"channels": (4, 0)}, r"channels\[\d\] must be an integer of at least 1, got 0"),
        ({"hidden": (0,)}, r"hidden\[0\] must be an integer of at least 1"),
        ({"activation": "swish"}, "activation must be one of elu"),
    ],
)
def test_what_is_refused(make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(5, **options)
