"""Noise scales of a decoder: given, learned, computed by the network, or set in closed form."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae.models.outputs import MAX_LOG_VARIANCE

__all__ = [
    "NOISES",
    "FixedNoise",
    "HeteroscedasticNoise",
    "OptimalNoise",
    "PerDimensionNoise",
    "ScaleFloorWarning",
    "SharedNoise",
]


class ScaleFloorWarning(UserWarning):
    """A noise scale has fallen to its floor: without it the likelihood would grow without bound."""


class FixedNoise(nn.Module):
    """A noise scale that is given: sigma = `scale`, a buffer.

    Raises:
        ValueError: `scale` is not positive and finite.

    >>> round(FixedNoise(0.3)().item(), 3)
    0.3
    """

    scale: Tensor

    def __init__(self, scale: float, min_scale: float = 1e-3, event_shape: Sequence[int] = ()) -> None:
        super().__init__()
        _check_scale("scale", scale)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self) -> Float[Tensor, ""]:
        """sigma."""
        return self.scale

    def end_epoch(self, *data: Any) -> None:
        """Nothing to do."""


class SharedNoise(nn.Module):
    """One learned noise scale above a floor: sigma^2 = exp(2 log_scale) + min_scale^2.

    The floor enters like a known noise that is added to a learned one, not as a clamp: a clamped sigma has no
    gradient and could never come back. Where exp(log_scale) is below `min_scale`, that is where sigma < 1.41
    `min_scale`, `end_epoch` says so with a `ScaleFloorWarning`, once for each module.

    Raises:
        ValueError: a scale that is not positive and finite, or `scale` not above `min_scale`.

    >>> round(SharedNoise(0.3, min_scale=0.1)().item(), 3)
    0.3
    """

    min_scale: Tensor

    def __init__(self, scale: float, min_scale: float = 1e-3, event_shape: Sequence[int] = ()) -> None:
        super().__init__()
        _check_floor(scale, min_scale)
        start = 0.5 * math.log(scale**2 - min_scale**2)
        self.log_scale = nn.Parameter(torch.full(self._shape(event_shape), start))
        self.register_buffer("min_scale", torch.tensor(float(min_scale)))
        self._has_warned = False

    @staticmethod
    def _shape(event_shape: Sequence[int]) -> tuple[int, ...]:
        return ()

    def forward(self) -> Float[Tensor, " *event"]:
        """sigma."""
        return torch.hypot(self.log_scale.exp(), self.min_scale)

    def end_epoch(self, *data: Any) -> None:
        """Warn, once, when the floor rather than the data sets sigma, or one of them."""
        if not self._has_warned and bool((self.log_scale.detach().exp() < self.min_scale).any()):
            self._has_warned = True
            _warn_floor(self.min_scale)


class PerDimensionNoise(SharedNoise):
    """One learned noise scale for each data dimension, each as in `SharedNoise`: `[*event]`.

    With a linear decoder this is factor analysis.

    Raises:
        ValueError: as `SharedNoise`, or no `event_shape`.

    >>> PerDimensionNoise(0.3, event_shape=(5,))().shape
    torch.Size([5])
    """

    @staticmethod
    def _shape(event_shape: Sequence[int]) -> tuple[int, ...]:
        if not event_shape:
            raise ValueError(
                "noise='per-dimension' wants the shape of one datum, got event_shape=(); pass "
                "event_shape=(64,) for rows of 64 numbers"
            )
        return tuple(event_shape)


class HeteroscedasticNoise(nn.Module):
    """A noise scale that the network gives: sigma^2 = scale^2 exp(log_variance(z)) + min_scale^2.

    Without a floor its likelihood has no maximum (a single datum fitted exactly suffices). The log variance is
    held below 30; `update` says with a `ScaleFloorWarning`, once, where the floor sets some dimension's sigma.

    Raises:
        ValueError: a scale that is not positive and finite, or `scale` not above `min_scale`.

    >>> HeteroscedasticNoise(2.0)(torch.zeros(3, 5)).shape
    torch.Size([3, 5])
    """

    scale: Tensor
    min_scale: Tensor

    def __init__(self, scale: float, min_scale: float = 1e-3, event_shape: Sequence[int] = ()) -> None:
        super().__init__()
        _check_floor(scale, min_scale)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("min_scale", torch.tensor(float(min_scale)))
        self._has_warned = False

    def forward(self, log_variance: Float[Tensor, " *b"]) -> Float[Tensor, " *b"]:
        """sigma for the network's log variance."""
        return torch.hypot(self._free(log_variance), self.min_scale)

    def _free(self, log_variance: Tensor) -> Tensor:
        return self.scale * (0.5 * log_variance.clamp(max=MAX_LOG_VARIANCE)).exp()

    def end_epoch(self, *data: Any) -> None:
        """Nothing to do: `update` sees the network's output."""

    def update(self, blocks: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Warn, once, when some dimension's scale is at the floor for every row of the first block."""
        if self._has_warned:
            return
        for _, _, log_variance in blocks:
            if log_variance is not None and bool((self._free(log_variance) < self.min_scale).all(0).any()):
                self._has_warned = True
                _warn_floor(self.min_scale)
            return


class OptimalNoise(nn.Module):
    """The noise scale that maximizes the ELBO, in closed form: sigma^2 = E_q |x - f(z)|^2 / X.

    A buffer, not trained by gradient: `update` sets it after each epoch, to no less than `min_scale`, and says
    with a `ScaleFloorWarning`, once, when that floor holds. Until the first epoch has ended it is `scale`. The
    source is Rybkin et al. (2021), "Simple and effective VAE training with calibrated decoders".

    Raises:
        ValueError: a scale that is not positive and finite, or `scale` not above `min_scale`.

    >>> noise = OptimalNoise(1.0)
    >>> noise.update([(torch.full((3, 2), 0.5), torch.zeros(3, 2), None)])
    >>> noise().item()
    0.5
    """

    scale: Tensor
    min_scale: Tensor

    def __init__(self, scale: float, min_scale: float = 1e-3, event_shape: Sequence[int] = ()) -> None:
        super().__init__()
        _check_floor(scale, min_scale)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("min_scale", torch.tensor(float(min_scale)))
        self._has_warned = False

    def forward(self) -> Float[Tensor, ""]:
        """sigma."""
        return self.scale

    def end_epoch(self, *data: Any) -> None:
        """Nothing to do: `update` sees the residuals."""

    def update(self, blocks: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Set sigma from blocks of (x, f(z), None), each `[n, *event]`, z drawn from the guide."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.scale.device), 0
        for x, loc, _ in blocks:
            total += (x - loc).double().square().sum()
            count += x.numel()
        sigma = (total / max(count, 1)).sqrt().to(self.scale.dtype)
        self.scale.copy_(sigma.maximum(self.min_scale))
        if not self._has_warned and bool(sigma < self.min_scale):
            self._has_warned = True
            _warn_floor(self.min_scale)


Noise = FixedNoise | SharedNoise | HeteroscedasticNoise | OptimalNoise
NOISES: dict[str, Callable[[float, float, Sequence[int]], Noise]] = {
    "fixed": FixedNoise,
    "shared": SharedNoise,
    "per-dimension": PerDimensionNoise,
    "heteroscedastic": HeteroscedasticNoise,
    "optimal": OptimalNoise,
}


def _warn_floor(min_scale: Tensor) -> None:
    warnings.warn(
        f"the learned noise scale has fallen to its floor min_scale={min_scale.item():g}: the data "
        "lie closer to the decoder's mean than that. Dequantize integer data, drop constant columns, use "
        "a smaller latent space, or set noise='fixed' or another min_scale",
        ScaleFloorWarning,
        stacklevel=3,
    )


def _check_floor(scale: float, min_scale: float) -> None:
    _check_scale("scale", scale)
    _check_scale("min_scale", min_scale)
    if scale <= min_scale:
        raise ValueError(
            f"scale, where a learned sigma starts, must be above its floor min_scale={min_scale}, "
            f"got {scale}; lower min_scale or raise scale"
        )


def _check_scale(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}; pass a standard deviation")
