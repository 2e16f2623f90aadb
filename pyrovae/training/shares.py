"""What one rank of several takes of each batch, so that the parts of all ranks sum up to the batch in one process."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.seeding import block_seed, seeded
from pyrovae.training.batches import Data, minibatch_indices, minibatches, take

__all__ = ["Share", "SharedBatch", "share_of", "shared_blocks", "shared_minibatches"]

Rows = tuple[Tensor, ...]


class Share(NamedTuple):
    """The rows from `start` to `stop` of a batch of `whole` rows; borrowed ones keep step with others, for nothing."""

    start: int
    stop: int
    whole: int
    is_borrowed: bool = False
    is_whole: bool = True
    """Whether one process has all rows of all batches."""

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def fraction(self) -> float:
        """Of the batch."""
        return self.rows / self.whole

    def plate_size(self, seen: int | None) -> int:
        """The number of data that the plate of the whole batch stands for, where that of these rows is `seen`."""
        return self.whole if seen in (None, self.rows) else int(seen or 0)

    def of(self, data: Sequence[Data], first: int = 0) -> Rows:
        """These rows of the batch that begins at row `first`."""
        return tuple(x[first + self.start : first + self.stop] for x in data)


def share_of(whole: int, rank: int, size: int) -> Share:
    """The rows of a batch that a rank takes: as many as others, or one more or less; a borrowed one if none is left.

    >>> [(share.start, share.stop) for share in (share_of(5, 0, 2), share_of(5, 1, 2))]
    [(0, 2), (2, 5)]
    >>> [share_of(1, rank, 2).is_borrowed for rank in range(2)]
    [True, False]
    """
    start, stop = (whole * r // size for r in (rank, rank + 1))
    if start < stop:
        return Share(start, stop, whole, is_whole=size == 1)
    return Share(0, 1, whole, is_borrowed=True, is_whole=False)


def shared_minibatches(
    data: tuple[Data, ...], batch_size: int, seed: int, epoch: int, place: tuple[int, int], start: int = 0
) -> Iterator[tuple[Share, Rows]]:
    """The share and the rows of rank, `place` (rank, size), in each batch of an epoch from number `start` on."""
    if place[1] == 1:
        for batch in minibatches(data, batch_size, seed, epoch, start):
            yield share_of(len(batch[0]), 0, 1), batch
        return
    for index in minibatch_indices(len(data[0]), batch_size, seed, epoch, start):
        share = share_of(len(index), *place)
        yield share, take(data, index[share.start : share.stop])


def shared_blocks(data: tuple[Data, ...], size: int, place: tuple[int, int]) -> Iterator[tuple[Share, Rows]]:
    """The share and the rows of a rank in each block of `size` data, in order."""
    for first in range(0, len(data[0]), size):
        share = share_of(min(size, len(data[0]) - first), *place)
        yield share, share.of(data, first)


class SharedBatch(Messenger):
    """Run model and guide on a share of a batch, so that losses and gradients of all ranks sum up to the batch's.

    A latent site inside the data plate draws the noise of the whole batch and takes its rows of it, as the generators
    of all ranks are in the same state before and after. A site that draws by other than normal, uniform, exponential
    and the like random numbers (Gamma, discrete) draws from a generator of the rank's own, which the common one seeds.
    What all data share, outside of the plate, has the same draw on every rank, and counts by the rank's rows; so do
    the data of a subsampled plate, whose scale is for these rows alone.

    Args:
        plate: name of the plate over the data.
        share: the rows that model and guide are called with.
        scales_itself: whether the objective multiplies by the plate's scale after the densities are summed.
    """

    def __init__(self, plate: str, share: Share, scales_itself: bool) -> None:
        super().__init__()
        self.plate, self.share, self.scales_itself = plate, share, scales_itself
        self.is_subsampled: bool | None = None

    def weighted(self, loss: Any) -> Any:
        """The loss of these rows as a term of the sum over the ranks.

        Raises:
            ValueError: no plate over the data was seen.
        """
        if self.share.is_whole:
            return loss
        if self.is_subsampled is None:
            raise ValueError(
                f"several ranks want to know the plate over the data, but model and guide have none called "
                f"{self.plate!r}; name it by plate=..."
            )
        if self.share.is_borrowed:
            return 0.0 * loss
        return self.share.fraction * loss if self.is_subsampled and self.scales_itself else loss

    def _pyro_sample(self, msg: Any) -> None:
        if self.share.is_whole:
            return
        if site_is_subsample(msg):
            if msg["name"] == self.plate:
                self._subsample(msg)
            return
        frame = next((frame for frame in msg["cond_indep_stack"] if frame.name == self.plate), None)
        if not self.scales_itself and (frame is None or frame.size != frame.full_size):
            msg["scale"] = msg["scale"] * self.share.fraction
        if frame is None or msg["value"] is not None:
            return
        if frame.dim is None:
            raise NotImplementedError(
                f"several ranks want the data side by side, but {self.plate!r} is a loop over them; write "
                f"`with pyro.plate({self.plate!r}, len(x)):`"
            )
        msg["value"] = self._drawn(msg, frame.dim)

    def _subsample(self, msg: Any) -> None:
        fn = msg["fn"]
        self.is_subsampled = int(msg["infer"].get("num_data", fn.size)) != self.share.rows
        if msg["value"] is None and fn.subsample_size is not None:
            indices = type(fn)(fn.size, self.share.whole, device=fn.device).sample()
            msg["value"] = indices[self.share.start : self.share.stop]

    def _drawn(self, msg: Any, dim: int) -> Tensor:
        fn = msg["fn"]
        try:
            with _WholeNoise(self.share, len(fn.batch_shape) + dim, fn.batch_shape[dim]):
                return fn(*msg["args"], **msg["kwargs"])
        except _NotByRows:
            own = block_seed(int(torch.randint(2**62, ())), self.share.start)
            with seeded(own):
                return fn(*msg["args"], **msg["kwargs"])


class _NotByRows(Exception):  # noqa: N818, never seen outside
    """Random numbers that do not belong to rows, or hang on the parameters of the distribution."""


class _WholeNoise(TorchDispatchMode):
    """Give random tensors, whose rows are `axis`, of `size`, as rows of what the whole batch would have drawn."""

    def __init__(self, share: Share, axis: int, size: int) -> None:
        super().__init__()
        self.share, self.axis, self.size = share, axis, size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func._schema.arguments[0].name == "size":
            return self._rows(func(self._whole(args[0]), *args[1:], **kwargs))
        if func._schema.is_mutable and not any(isinstance(each, Tensor) for each in args[1:]):
            whole = args[0].new_empty(self._whole(args[0].shape))
            return args[0].copy_(self._rows(func(whole, *args[1:], **kwargs)))
        raise _NotByRows

    def _whole(self, shape: Sequence[int]) -> list[int]:
        if len(shape) <= self.axis or shape[self.axis] != self.size:
            raise _NotByRows
        copies = self.size // self.share.rows  # of the batch, for particles side by side
        return [*shape[: self.axis], copies * self.share.whole, *shape[self.axis + 1 :]]

    def _rows(self, whole: Tensor) -> Tensor:
        copies = whole.unflatten(self.axis, (-1, self.share.whole))
        rows = copies.narrow(self.axis + 1, self.share.start, self.share.rows)
        return rows.flatten(self.axis, self.axis + 1)
