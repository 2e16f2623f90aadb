"""One pass over the data: steps through Pyro or as programs, taken again through Pyro where a program met a NaN."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrovae.training.adam import Snapshot, is_finite
from pyrovae.training.batches import Data
from pyrovae.training.distributed import Ranks
from pyrovae.training.programs import Programs
from pyrovae.training.run import Run
from pyrovae.training.shares import shared_minibatches
from pyrovae.training.steps import step

__all__ = ["Stop", "train_epoch"]

WINDOW = 1000
"""Steps after which losses are fetched, at the latest: so many are lost and taken again where one was NaN."""


class Stop:
    """Whether a run shall stop: once asked for on any rank, for good, and on all of them after the same step."""

    def __init__(self, ask: Callable[[], bool] | None, ranks: Ranks) -> None:
        self.ask, self.ranks, self.is_asked = ask, ranks, False

    def __call__(self) -> bool:
        """Ask, unless that was answered with yes before."""
        self.is_asked = self.is_asked or (self.ask is not None and self.ranks.any(bool(self.ask())))
        return self.is_asked


def train_epoch(
    run: Run,
    programs: Programs,
    data: tuple[Data, ...],
    epoch: int,
    totals: list[float],
    stop: Stop,
) -> None:
    """Train on the batches of an epoch that are left, until `stop`, asked after each step, says so.

    Args:
        run, programs, data, epoch: what to train, how, on what, and the epoch's number from 0.
        totals: of each batch that was taken, its ELBO in nats per datum times its rows; those to come are appended.
        stop: asked after each step.

    Raises:
        RuntimeError: no parameter reached the objective, or one with a gradient is not trained.
        TrainingDiverged: a loss or its gradient is not finite; the parameters are as before that step.
    """
    config = programs.config
    place = run.ranks.place
    batches = partial(shared_minibatches, data, config.batch_size, config.seed, epoch, place)
    num_batches = math.ceil(len(data[0]) / config.batch_size)
    while len(totals) < num_batches:
        start = len(totals)
        end = start - start % WINDOW + WINDOW  # where it is too if nothing stopped the run in between
        totals += _window(run, programs, batches, epoch, range(start, end), stop)
        if stop.is_asked:
            return


def _window(
    run: Run,
    programs: Programs,
    batches: Callable[[int], Iterator[Any]],
    epoch: int,
    window: range,
    stop: Stop,
) -> list[float]:
    """The ELBO of each of some batches, of the numbers in `window`, times its rows."""
    steps = _Steps(run, programs)
    for index, (run.share, batch) in zip(window, batches(window.start), strict=False):
        if not steps.take(batch, epoch, index) or stop():
            break
    if (totals := steps.totals()) is not None:
        return totals
    first = steps.rewind()
    again = []
    for index, (run.share, batch) in zip(window[first - window.start :], batches(first), strict=False):
        again.append(run.share.whole * step(run, batch, epoch, index))
        if stop():
            break
    programs.give_up("a program gave NaN or failed where Pyro does not")
    return [*steps.through_pyro[: first - window.start], *again]


class _Steps:
    """Some steps in a row, of which nobody looks at the losses of programs until the end.

    A NaN spoils all steps after it. So before the first program runs, all that steps change is kept.
    """

    def __init__(self, run: Run, programs: Programs) -> None:
        self.run, self.programs = run, programs
        self.kept: tuple[Snapshot, int, int] | None = None
        self.has_failed = False
        self.losses: list[Tensor] = []
        self.factors: list[float] = []
        self.through_pyro: list[float] = []

    def take(self, batch: tuple[Tensor, ...], epoch: int, index: int) -> bool:
        """Take the step of batch number `index`; False if it failed after a program ran, whose fault it may be."""
        try:
            self._take(batch, epoch, index)
        except Exception:
            if self.kept is None or self.run.ranks.size > 1:  # the other ranks would not rewind
                raise
            self.has_failed = True
        return not self.has_failed

    def _take(self, batch: tuple[Tensor, ...], epoch: int, index: int) -> None:
        program = self.programs.at(batch)
        if program is None:
            self.through_pyro.append(self.run.share.whole * step(self.run, batch, epoch, index))
            return
        if self.kept is None and self.run.optimizer is not None:
            self.kept = Snapshot(self.run.optimizer, batch[0].device), index, self.run.num_steps
        self.losses.append(program(batch))
        self.factors.append(-self.run.share.whole / program.gradients.plate_size)

    def totals(self) -> list[float] | None:
        """The ELBO of each batch, in nats per datum, times its rows; None if one failed or was not finite."""
        if self.has_failed:
            return None
        if self.run.optimizer is None or not self.losses:
            return self.through_pyro
        losses = torch.stack(self.losses).tolist()
        if not all(map(math.isfinite, losses)) or not is_finite(self.run.optimizer):
            return None
        own = [factor * loss for factor, loss in zip(self.factors, losses, strict=True)]
        return [*self.through_pyro, *own]

    def rewind(self) -> int:
        """Put everything back to before the first program; returns the number of its batch."""
        if self.kept is None:
            raise ValueError("no program ran, so nothing was kept")
        snapshot, index, self.run.num_steps = self.kept
        snapshot.restore()
        return index
