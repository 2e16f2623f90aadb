"""Reversible transforms of data, and the log-determinant that turns log p of what they give into that of raw data."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Real, Shaped
from torch import Tensor

from pyrovae.data.files import DataError
from pyrovae.data.moments import Moments
from pyrovae.data.tensors import block_rows
from pyrovae.seeding import seeded

__all__ = ["Affine", "Blocks", "Dequantize", "Pipeline", "no_integer"]

MIN_NOISE_BITS = 4
ROUNDING_BITS = 5  # what an affine map there and back may lose at the low end of a number


@runtime_checkable
class Blocks(Protocol):
    """Rows of numbers that come in blocks, again at every call: a tensor, or `Rows`."""

    @property
    def shape(self) -> torch.Size: ...

    def split(self, size: int) -> Iterable[Tensor]: ...


@dataclass(frozen=True)
class Dequantize:
    """Fill the steps between integers: y = x + u, u uniform on (0, 1); back by rounding down.

    For p the density of y, E_u[log p(x + u)] bounds log P(x), the log probability of the integers, from below (Theis,
    van den Oord & Bethge 2016, eq. 3-6). |dy/dx| = 1. The noise is u = (k + 1/2) / 2^bits, k uniform on the integers
    below 2^bits: uniform up to that step, and far enough from 0 and 1 for x to come back through rounded arithmetic.

    Args:
        seed: of the noise, 0 or more; the same seed and number of rows give the same noise.
        bits: of the noise, 4 to 24; `fit` finds what the dtype has room for.

    >>> dequantize = Dequantize.fit(torch.tensor([[0.0, 255.0]]), torch.float32, seed=1)
    >>> y = dequantize.forward(torch.tensor([[0.0, 255.0]]))
    >>> dequantize.bits, dequantize.inverse(y)
    (11, tensor([[  0., 255.]]))
    """

    seed: int
    bits: int

    def __post_init__(self) -> None:
        if self.seed < 0 or not MIN_NOISE_BITS <= self.bits <= 24:
            raise DataError(
                f"dequantization wants a seed of 0 or more and 4 to 24 bits of noise, got {self.seed} and {self.bits}; "
                "use Dequantize.fit"
            )

    @classmethod
    def fit(cls, x: Real[Tensor, "n x"], dtype: torch.dtype, seed: int) -> "Dequantize":
        """The finest noise that numbers of `dtype` as large as the largest of `x` can carry.

        Raises:
            DataError: numbers so large that fewer than 4 bits are left: above 2^15 in float32, 2^44 in float64.
        """
        largest = 1 + max(abs(int(limit)) for limit in x.aminmax())
        bits = round(-math.log2(torch.finfo(dtype).eps)) + 1 - ROUNDING_BITS - (largest - 1).bit_length()
        if bits < MIN_NOISE_BITS:
            name = str(dtype).removeprefix("torch.")
            raise DataError(
                f"{name} has no room for noise between integers as large as {largest - 1}; "
                "pass dtype=torch.float64, or data without dequantization"
            )
        return cls(seed, min(bits, 24))

    def forward(self, x: Float[Tensor, "n x"]) -> Float[Tensor, "n x"]:
        """x + u. Every call with as many rows adds the same noise.

        Raises:
            DataError: a number that is no integer.
        """
        if not all((rows == rows.floor()).all() for rows in x.split(block_rows(x.shape[1]))):
            row, column = (int(i) for i in (x != x.floor()).nonzero()[0])
            raise no_integer(float(x[row, column]), row, column)
        with seeded(self.seed):
            u = torch.rand(x.shape, dtype=torch.float32)
        return self.fill(x, u)

    def fill(self, x: Float[Tensor, "n x"], u: Float[Tensor, "n x"]) -> Float[Tensor, "n x"]:
        """x + u for u of one's own, float32 on [0, 1), which is rounded to `bits` in place."""
        steps = 2.0**self.bits
        return u.mul_(steps).floor_().add_(0.5).div_(steps).to(x).add_(x)

    def inverse(self, y: Float[Tensor, "*n x"]) -> Float[Tensor, "*n x"]:
        """The integers below y."""
        return y.floor()

    def log_abs_det(self, width: int) -> float:
        """0: noise moves a datum and scales nothing."""
        return 0.0


def no_integer(value: float, row: int, column: int) -> DataError:
    """What is said of a number that cannot be dequantized."""
    return DataError(
        f"dequantize wants integers, got {value} in row {row}, column {column}; multiply the data to integers, or "
        "leave it out for continuous data"
    )


@dataclass(frozen=True)
class Affine:
    """y = (x - loc) / scale, column by column; log |det dy/dx| = -sum log scale.

    Args:
        loc: what becomes 0: one number a column, or one for all.
        scale: what becomes a difference of 1, as many, above 0.
        constant: columns that did not vary in the data that it was fitted on; their scale is 1.

    >>> affine = Affine.standardize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> affine
    Affine(loc=(2.0, 5.0), scale=(1.0, 1.0), constant=(1,))
    >>> affine.forward(torch.tensor([[4.0, 6.0]]))
    tensor([[2., 1.]])
    """

    loc: tuple[float, ...]
    scale: tuple[float, ...]
    constant: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (*self.loc, *self.scale))
        if not (finite and 0 < len(self.loc) == len(self.scale) and min(self.scale) > 0):
            raise DataError(
                f"an affine map wants as many finite locs as positive scales, got {len(self.loc)} and "
                f"{len(self.scale)}, from {self.loc[:3]} and {self.scale[:3]}; fit it on finite data"
            )

    @classmethod
    def unit(cls, x: Real[Tensor, "n x"], step: float = 0.0) -> "Affine":
        """Map each column's smallest value to 0, and its largest, plus `step` (1 for integers to dequantize), to 1."""
        lower, upper = x.amin(0).double(), x.amax(0).double() + step
        return cls._fitted(lower, upper - lower, lower == upper)

    @classmethod
    def standardize(cls, x: Real[Tensor, "n x"] | Blocks) -> "Affine":
        """Give each column mean 0 and standard deviation 1 (divided by n, not n - 1); `Rows` are read once."""
        moments = Moments()
        for rows in x.split(block_rows(x.shape[1])):
            moments.update(rows.cpu().numpy())
        return cls.from_moments(moments)

    @classmethod
    def from_moments(cls, moments: Moments) -> "Affine":
        """As `standardize`, of rows that were seen already."""
        std = np.sqrt(moments.squares / moments.count)
        constant = (moments.lower == moments.upper) | (std == 0)
        loc = np.where(constant, moments.first, moments.mean)
        return cls._fitted(*(torch.from_numpy(each) for each in (loc, std, constant)))

    @classmethod
    def _fitted(
        cls, loc: Float[Tensor, " x"], scale: Float[Tensor, " x"], constant: Shaped[Tensor, " x"]
    ) -> "Affine":
        scale = torch.where(constant, torch.ones_like(scale), scale)
        return cls(tuple(loc.tolist()), tuple(scale.tolist()), tuple(constant.nonzero().flatten().tolist()))

    def forward(self, x: Float[Tensor, "*n x"]) -> Float[Tensor, "*n x"]:
        """(x - loc) / scale."""
        return (x - x.new_tensor(self.loc)).div_(x.new_tensor(self.scale))

    def inverse(self, y: Float[Tensor, "*n x"]) -> Float[Tensor, "*n x"]:
        """loc + scale y."""
        return (y * y.new_tensor(self.scale)).add_(y.new_tensor(self.loc))

    def log_abs_det(self, width: int) -> float:
        """-sum log scale over `width` columns, in nats."""
        return -math.fsum(math.log(scale) for scale in self.scale) * width / len(self.scale)


KINDS: dict[str, type[Any]] = {"dequantize": Dequantize, "affine": Affine}


@dataclass(frozen=True)
class Pipeline:
    """Transforms one after the other, of data with `width` columns; reversible, and storable as JSON.

    log p_raw(x) = log p(forward(x)) + log_abs_det, or a lower bound of log P_raw(x) in the mean over the noise where
    a step dequantizes.

    Args:
        width: X, the columns of the data, at least 1.
        steps: `Affine` and `Dequantize`, in the order of `forward`; dequantization only as the first.

    Raises:
        DataError: no such width, a step for another one, or dequantization of what is no longer integers.

    >>> pipeline = Pipeline(2, (Dequantize(seed=0, bits=11), Affine((0.0,), (256.0,))))
    >>> x = torch.tensor([[0.0, 255.0], [7.0, 128.0]])
    >>> torch.equal(pipeline.inverse(pipeline.forward(x)), x)
    True
    >>> round(pipeline.log_abs_det, 4)  # -2 log 256
    -11.0904
    >>> Pipeline.from_config(pipeline.to_config()) == pipeline
    True
    """

    width: int
    steps: tuple[Dequantize | Affine, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1:
            raise DataError(
                f"a pipeline wants a width of at least 1, got {self.width}; pass the columns of the data"
            )
        for index, step in enumerate(self.steps):
            if isinstance(step, Dequantize) and index > 0:
                raise DataError(f"only the first step can dequantize, got it as step {index}; put it first")
            if isinstance(step, Affine) and len(step.loc) not in (1, self.width):
                raise DataError(
                    f"step {index} wants {len(step.loc)} columns, the pipeline has {self.width}; fit it on these data"
                )

    def forward(self, x: Real[Tensor, "n x"]) -> Float[Tensor, "n x"]:
        """Raw data, as rows `[n, X]`, to what a model trains on; integers become float32, floats keep their dtype."""
        y = self._checked(x)
        for step in self.steps:
            y = step.forward(y)
        return y

    def inverse(self, y: Float[Tensor, "*n x"]) -> Float[Tensor, "*n x"]:
        """Data or draws, `[..., X]`, back to raw units: exact up to rounding, integers after dequantization exactly.

        Draws outside the range of the data stay outside: nothing is clamped.
        """
        x = self._checked(y)
        for step in reversed(self.steps):
            x = step.inverse(x)
        return x

    def _checked(self, x: Real[Tensor, "*n x"]) -> Float[Tensor, "*n x"]:
        if x.shape[-1] != self.width:
            raise DataError(
                f"the pipeline wants rows of {self.width} columns, got shape {tuple(x.shape)}; flatten each datum"
            )
        return x if x.is_floating_point() else x.float()

    @property
    def log_abs_det(self) -> float:
        """log |det d forward / dx| in nats a datum, the same for every datum."""
        return math.fsum(step.log_abs_det(self.width) for step in self.steps)

    def to_config(self) -> dict[str, Any]:
        """The pipeline in numbers, strings, lists and dicts, for JSON; the numbers come back to the last bit."""
        names = {cls: name for name, cls in KINDS.items()}
        steps = [{"kind": names[type(step)], **_listed(vars(step))} for step in self.steps]
        return {"width": self.width, "steps": steps}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Pipeline":
        """The pipeline that `to_config` described.

        Raises:
            DataError: a config of another make.
        """
        try:
            steps = []
            for step in config["steps"]:
                fields: dict[str, Any] = {
                    name: tuple(value) if isinstance(value, list) else value for name, value in step.items()
                }
                steps.append(KINDS[fields.pop("kind")](**fields))
            return cls(config["width"], tuple(steps))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"a pipeline's config has a width, and steps of a kind in {list(KINDS)} with their numbers; it failed "
                f"at {error}; pass what to_config gave"
            ) from error


def _listed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
