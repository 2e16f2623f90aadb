"""What `weights` says of K log-weights that come in blocks: memory grows with the square root of K."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrovae.inference import weights

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WeightStream", "begin", "elbo", "elbo_std_error", "iwae", "iwae_std_error", "khat", "update"]


class WeightStream(NamedTuple):
    """All that is kept of the log-weights seen so far; float64, but for `largest`."""

    num_samples: int
    """At most so many log-weights will come, in each column."""
    num_seen: int
    num_bad: Int[Tensor, " *n"]
    """NaN or +inf."""
    log_w: "Moments"
    """Of those above -inf."""
    scale: Float[Tensor, " *n"]
    """The largest log-weight; 0 as long as there is none above -inf."""
    w: "Moments"
    """Of w / exp(scale), zeros included."""
    largest: Float[Tensor, " m *n"]
    """What the Pareto fit sees: the tail and its cutoff; falling, in the dtype of the log-weights."""
    smallest: Float[Tensor, " *n"]
    """Of those above -inf."""


class Moments(NamedTuple):
    """Mean and sum of squared deviations of `number` values."""

    number: Float[Tensor, " *n"]
    mean: Float[Tensor, " *n"]
    squares: Float[Tensor, " *n"]


def begin(
    num_samples: int,
    shape: tuple[int, ...] = (),
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> WeightStream:
    """Make the stream that has seen nothing.

    Args:
        num_samples: how many log-weights will come in each column, at most; 3 sqrt(K) of them are kept.
        shape: `*n`, the columns.
        dtype: of the log-weights, and of what will be read off.

    Raises:
        ValueError: if `num_samples` is below 1.

    >>> stream = begin(100_000, (3,))
    >>> stream.largest.shape  # 3 sqrt(K) and the cutoff
    torch.Size([949, 3])
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, but is {num_samples}: count the draws to come")
    zero = torch.zeros(shape, dtype=torch.float64, device=device)
    nothing = Moments(zero, zero, zero)
    num_kept = min(num_samples, max(weights.tail_size(num_samples) + 1, weights.MIN_DRAWS))
    largest = torch.full((num_kept, *shape), -math.inf, dtype=dtype, device=device)
    return WeightStream(num_samples, 0, zero.long(), nothing, zero, nothing, largest, zero + math.inf)


def update(stream: WeightStream, log_w: Float[Tensor, " b *n"]) -> WeightStream:
    """Take in a block of log-weights.

    How they are cut into blocks changes what is read off by rounding only. Nothing waits for the device.

    Args:
        log_w: -inf is legal; NaN and +inf are counted, and refused by `khat`.

    Raises:
        ValueError: if more came than announced.

    Source: Chan, Golub and LeVeque 1979, for the moments of two blocks together.

    >>> float(iwae(update(update(begin(3), torch.tensor([1.0, 3.0]).log()), torch.tensor([5.0]).log())).exp())
    3.0...
    """
    num_seen = stream.num_seen + len(log_w)
    if num_seen > stream.num_samples:
        raise ValueError(
            f"at most {stream.num_samples} log-weights were announced, but {num_seen} came: begin anew"
        )
    values = log_w.detach().double()
    is_positive = values != -math.inf
    peak = torch.where(is_positive.any(0), values.amax(0), stream.scale)
    scale = torch.where(stream.log_w.number > 0, torch.maximum(stream.scale, peak), peak)
    # Before the first weight above 0 there is nothing to shrink, and the factor could overflow.
    shrink = torch.where(stream.log_w.number > 0, (stream.scale - scale).exp(), 1.0)
    old = Moments(stream.w.number, shrink * stream.w.mean, shrink.square() * stream.w.squares)
    everything = torch.cat([stream.largest, log_w.detach().to(stream.largest)])
    return WeightStream(
        stream.num_samples,
        num_seen,
        stream.num_bad + (values.isnan() | (values == math.inf)).sum(0),
        _merge(stream.log_w, _moments(values, is_positive)),
        scale,
        _merge(old, _moments((values - scale).exp(), torch.ones_like(is_positive))),
        everything.topk(len(stream.largest), dim=0).values,
        torch.minimum(stream.smallest, torch.where(is_positive, values, math.inf).amin(0)),
    )


def elbo(stream: WeightStream) -> Float[Tensor, " *n"]:
    """Give `weights.elbo` of all log-weights seen: a lower bound of log p(x) in expectation.

    >>> elbo(update(begin(2), torch.tensor([0.0, 2.0])))
    tensor(1., dtype=torch.float64)
    """
    _refuse_nothing(stream)
    mean = torch.where(_has_zeros(stream), -math.inf, stream.log_w.mean)
    return mean.to(stream.largest.dtype)


def elbo_std_error(stream: WeightStream) -> Float[Tensor, " *n"]:
    """Give `weights.elbo_std_error` of all log-weights seen; NaN if there is one, or one of them is -inf.

    >>> elbo_std_error(update(begin(2), torch.tensor([0.0, 2.0])))
    tensor(1., dtype=torch.float64)
    """
    _refuse_nothing(stream)
    error = torch.where(_has_zeros(stream), math.nan, _std_error(stream.log_w))
    return error.to(stream.largest.dtype)


def iwae(stream: WeightStream) -> Float[Tensor, " *n"]:
    """Give `weights.iwae` of all log-weights seen: a lower bound of log p(x) in expectation.

    >>> iwae(update(begin(2), torch.tensor([1.0, 3.0]).log())).exp()
    tensor(2.0000, dtype=torch.float64)
    """
    _refuse_nothing(stream)
    return (stream.scale + stream.w.mean.log()).to(stream.largest.dtype)


def iwae_std_error(stream: WeightStream) -> Float[Tensor, " *n"]:
    """Give `weights.iwae_std_error` of all log-weights seen; NaN if there is one, or all are -inf.

    >>> iwae_std_error(update(begin(2), torch.tensor([1.0, 3.0]).log()))
    tensor(0.5000, dtype=torch.float64)
    """
    _refuse_nothing(stream)
    return (_std_error(stream.w) / stream.w.mean).to(stream.largest.dtype)


def khat(stream: WeightStream) -> Float[Tensor, " *n"]:
    """Give `weights.psis(log_w).khat` of all log-weights seen: the fit only looks at the largest ones.

    Holds one column of K numbers at a time, and waits for the device.

    Raises:
        ValueError: if a log-weight was NaN or +inf, or none has come.

    >>> _ = torch.manual_seed(0)
    >>> log_w = 0.5 * torch.empty(1000).exponential_()
    >>> stream = begin(1000, dtype=torch.float32)
    >>> for block in log_w.split(300):
    ...     stream = update(stream, block)
    >>> bool(khat(stream) == weights.psis(log_w).khat)
    True
    """
    _refuse_nothing(stream)
    shape = stream.largest.shape[1:]
    weights.refuse_bad(stream.num_bad.cpu().numpy().ravel(), stream.num_seen, is_single=not shape)
    rounding = weights.ROUNDING * torch.finfo(stream.largest.dtype).eps
    tails = stream.largest.double().reshape(len(stream.largest), -1).T.cpu().numpy()
    counts, smallest = (x.cpu().numpy().ravel() for x in (stream.log_w.number, stream.smallest))
    khats = [
        weights.smooth_column(_stand_in(tail, int(count), low), rounding)[1]
        for tail, count, low in zip(tails, counts, smallest, strict=True)
    ]
    return torch.tensor(khats, dtype=torch.float64).reshape(shape).to(stream.largest)


def _stand_in(tail: "np.ndarray", count: int, smallest: float) -> "np.ndarray":
    """A column of `count` log-weights above -inf that has the given tail and smallest value: same k-hat."""
    import numpy as np

    kept = tail[np.isfinite(tail)]
    if count <= len(kept):
        return kept
    column = np.full(count, kept[-1])
    column[: len(kept)] = kept
    column[-1] = smallest
    return column


def _moments(values: Float[Tensor, " b *n"], is_kept: Tensor) -> Moments:
    number = is_kept.sum(0).double()
    mean = torch.where(is_kept, values, 0.0).sum(0) / number.clamp(min=1.0)
    return Moments(number, mean, torch.where(is_kept, values - mean, 0.0).square().sum(0))


def _merge(a: Moments, b: Moments) -> Moments:
    number = a.number + b.number
    share = b.number / number.clamp(min=1.0)
    difference = b.mean - a.mean
    squares = a.squares + b.squares + a.number * share * difference.square()
    return Moments(number, a.mean + share * difference, squares)


def _std_error(moments: Moments) -> Float[Tensor, " *n"]:
    return (moments.squares / (moments.number - 1.0) / moments.number).sqrt()


def _has_zeros(stream: WeightStream) -> Tensor:
    return stream.log_w.number < stream.num_seen


def _refuse_nothing(stream: WeightStream) -> None:
    if not stream.num_seen:
        raise ValueError("no log-weight has come yet: update the stream first")
