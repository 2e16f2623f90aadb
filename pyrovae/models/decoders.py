"""Decoders: modules whose forward turns z into the Pyro distribution of x."""

import math
import warnings
from collections.abc import Callable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["NOISES", "FixedNoise", "GaussianDecoder", "ScaleFloorWarning", "SharedNoise"]


class ScaleFloorWarning(UserWarning):
    """A learned noise scale has fallen to its floor: the likelihood is about to grow without bound."""


class GaussianDecoder(nn.Module):
    """A Gaussian likelihood around a network's output, p(x | z) = N(x | net(z), sigma^2 I).

    With noise="shared" the one sigma is learned together with the network, as in Rybkin et al. (2021); at its
    optimum sigma^2 = E_q |x - net(z)|^2 / X. On data of lower dimension than X (constant pixels, integers)
    the optimum is sigma = 0 and an infinite likelihood (Dai & Wipf 2019): hence the floor `min_scale`.

    Args:
        net: maps `[n, D]` to `[n, *event]`, any event shape; it always sees just one leading axis, whatever
            the batch shape of z, so a convolutional network serves as well as a linear one. It must treat the
            rows one by one (no batch normalization in training mode).
        noise: "fixed" (sigma = `scale`, not trained) or "shared" (one learned sigma for every coordinate).
        scale: sigma, or the value at which a learned sigma starts; in the units of x, above 0.
        min_scale: floor of a learned sigma, above 0 and below `scale`; without effect on a fixed one.

    Raises:
        ValueError: unknown noise, or a scale that is not positive and finite, or not above its floor.

    >>> decoder = GaussianDecoder(nn.Linear(2, 5), noise="fixed", scale=0.1)
    >>> p = decoder(torch.zeros(7, 3, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([7, 3]), torch.Size([5]))
    """

    def __init__(
        self, net: nn.Module, noise: str = "shared", scale: float = 1.0, min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(sorted(NOISES))}, got {noise!r}; choose one")
        self.net = net
        self.noise = NOISES[noise](scale, min_scale)

    def forward(self, z: Float[Tensor, "*b d"]) -> Distribution:
        """The distribution of x given z: batch shape `[*b]`, event shape that of one row of the net."""
        rows = z.reshape(-1, z.shape[-1])
        flat = self.net(rows)
        if flat.shape[:1] != rows.shape[:1]:
            raise ValueError(
                f"the decoder's net must return one row for each row of z, got shape {tuple(flat.shape)} for "
                f"{len(rows)} rows; keep the first axis of its input as the first axis of its output"
            )
        loc = flat.reshape(z.shape[:-1] + flat.shape[1:])
        return dist.Normal(loc, self.noise()).to_event(flat.dim() - 1)

    def end_epoch(self, *data: Tensor) -> None:
        """Called by `fit` after each epoch: lets the noise look at itself."""
        self.noise.end_epoch(*data)


class FixedNoise(nn.Module):
    """A noise scale that is given: sigma = `scale`, a buffer."""

    scale: Tensor

    def __init__(self, scale: float, min_scale: float) -> None:
        super().__init__()
        _check_scale("scale", scale)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self) -> Float[Tensor, ""]:
        """sigma."""
        return self.scale

    def end_epoch(self, *data: Tensor) -> None:
        """Nothing to do."""


class SharedNoise(nn.Module):
    """One learned noise scale above a floor: sigma^2 = exp(2 log_scale) + min_scale^2.

    The floor enters like a known noise that is added to a learned one, not as a clamp: a clamped sigma has no
    gradient and could never come back. Where exp(log_scale) is below `min_scale`, that is where sigma < 1.41
    `min_scale`, `end_epoch` says so with a `ScaleFloorWarning`, once for each module.
    """

    min_scale: Tensor

    def __init__(self, scale: float, min_scale: float) -> None:
        super().__init__()
        _check_scale("scale", scale)
        _check_scale("min_scale", min_scale)
        if scale <= min_scale:
            raise ValueError(
                f"scale, where a learned sigma starts, must be above its floor min_scale={min_scale}, "
                f"got {scale}; lower min_scale or raise scale"
            )
        self.log_scale = nn.Parameter(torch.tensor(0.5 * math.log(scale**2 - min_scale**2)))
        self.register_buffer("min_scale", torch.tensor(float(min_scale)))
        self._has_warned = False

    def forward(self) -> Float[Tensor, ""]:
        """sigma."""
        return torch.hypot(self.log_scale.exp(), self.min_scale)

    def end_epoch(self, *data: Tensor) -> None:
        """Warn, once, when the floor rather than the data sets sigma."""
        if self._has_warned or self.log_scale.detach().exp() >= self.min_scale:
            return
        self._has_warned = True
        warnings.warn(
            f"the learned noise scale has fallen to its floor min_scale={self.min_scale.item():g}: the data "
            "lie closer to the decoder's mean than that. Dequantize integer data, drop constant columns, use "
            "a smaller latent space, or set noise='fixed' or another min_scale",
            ScaleFloorWarning,
            stacklevel=2,
        )


NOISES: dict[str, Callable[[float, float], FixedNoise | SharedNoise]] = {
    "fixed": FixedNoise,
    "shared": SharedNoise,
}


def _check_scale(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}; pass a standard deviation")
