"""The loop over epochs, and all that changes in it from step to step, so that it can stop anywhere and go on."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrovae.seeding import seeded
from pyrovae.training.batches import Data, derive_seed
from pyrovae.training.config import FitConfig
from pyrovae.training.divergence import rng_state
from pyrovae.training.epochs import Stop, train_epoch
from pyrovae.training.fingerprints import fingerprints
from pyrovae.training.kl_weight import weight_at
from pyrovae.training.programs import Programs
from pyrovae.training.run import Run
from pyrovae.training.shares import shared_blocks
from pyrovae.training.steps import evaluate

__all__ = ["Best", "Training", "TrainingStopped"]

VALIDATION_ROWS = 1000  # rows of a block of validation data, unless a training batch is larger


class TrainingStopped(Exception):  # noqa: N818, as TrainingDiverged
    """A run was stopped because `stop` said so; the parameters are those after its last step.

    Attributes:
        num_steps: the steps that were taken.
    """

    def __init__(self, num_steps: int, is_saved: bool) -> None:
        rest = (
            'a checkpoint is written: go on with resume="auto"' if is_saved else "no checkpoint was asked for"
        )
        super().__init__(f"training was stopped after {num_steps} steps; {rest}")
        self.num_steps = num_steps


@dataclass
class Best:
    """The best epoch so far and its parameters; without validation every epoch counts as better."""

    epoch: int = -1
    value: float = -math.inf
    state: dict[tuple[int, str], Tensor] | None = None

    def update(self, run: Run, epoch: int, value: float | None) -> None:
        """Note an epoch that has ended, and copy its parameters if it is the best."""
        if value is None:
            self.epoch = epoch
        elif value > self.value:
            self.epoch, self.value = epoch, value
            self.state = {key: tensor.detach().clone() for key, tensor in run.state().items()}

    def restore(self, run: Run) -> None:
        """Give the parameters of the best epoch back to the modules."""
        now = run.state()
        with torch.no_grad():
            for key, tensor in (self.state or {}).items():
                now[key].copy_(tensor)


@dataclass
class Training:
    """Where a training is.

    Attributes:
        run, programs, data, val: what it trains, how, and on what; `data` and `val` were checked.
        best: the best epoch so far.
        history: the metrics of every epoch that has ended.
        totals: the ELBO of every batch of the epoch under way, times its rows.
        earlier, earlier_in_epoch: seconds that other processes spent on the run, and on the epoch under way.
    """

    run: Run
    programs: Programs
    data: tuple[Data, ...]
    val: tuple[Data, ...] | None
    best: Best = field(default_factory=Best)
    history: list[dict[str, float]] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    earlier: float = 0.0
    earlier_in_epoch: float = 0.0
    start: float = field(default_factory=time.perf_counter)
    epoch_start: float = field(default_factory=time.perf_counter)

    @property
    def config(self) -> FitConfig:
        """The options."""
        return self.programs.config

    @property
    def seconds(self) -> float:
        """Spent on the run so far."""
        return self.earlier + time.perf_counter() - self.start

    @property
    def seconds_in_epoch(self) -> float:
        """Spent on the epoch under way so far."""
        return self.earlier_in_epoch + time.perf_counter() - self.epoch_start

    @property
    def is_done(self) -> bool:
        """Whether all epochs were trained, or patience ran out."""
        patience, ended = self.config.early_stopping_patience, len(self.history)
        is_stuck = patience is not None and ended > 0 and ended - 1 - self.best.epoch >= patience
        return ended >= self.config.max_epochs or is_stuck

    @property
    def metric_names(self) -> set[str]:
        """Of the metrics that the history has of every epoch."""
        own = {"weighted_elbo", "kl_weight"} if self.config.is_weighted else {self.config.metric}
        return own | {"seconds"} | (set() if self.val is None else {f"val_{self.config.metric}"})

    def train_epoch(self, stop: Stop) -> bool:
        """Take the steps left of the epoch under way, and note it; False if `stop` said so before its last step.

        Raises:
            RuntimeError, TrainingDiverged: as `step` does.
        """
        run, config, epoch = self.run, self.config, len(self.history)
        self.epoch_start = time.perf_counter()
        run.kl_weight = weight_at(epoch, config.kl_weight, config.n_epochs_kl_warmup)
        train_epoch(run, self.programs, self.data, epoch, self.totals, stop)
        if len(self.totals) * config.batch_size < len(self.data[0]):
            return False
        metrics = self._training_metrics(math.fsum(self.totals) / len(self.data[0]))
        run.kl_weight = 1.0
        for module in run.modules:
            hook = getattr(module, "end_epoch", None)
            if callable(hook):
                hook(*self.data)
        value = self._validate(epoch)
        if value is not None:
            metrics[f"val_{config.metric}"] = value
        self._note(metrics, value)
        return True

    def check_ranks(self) -> None:
        """Compare what training changed with what it changed on the first rank.

        Raises:
            ValueError, RankFailed: they differ, as where BatchNorm in train mode sees the rows of one rank.
        """
        if self.run.ranks.size == 1:
            return
        state = {name: tensor for (_, name), tensor in self.run.state().items()}
        noise = {f"random state {i}": t for i, t in enumerate(rng_state(self.data[0].device))}
        self.run.ranks.check_same("state after the same steps", fingerprints(state | noise))

    def _note(self, metrics: dict[str, float], value: float | None) -> None:
        self.history.append(metrics | {"seconds": self.seconds_in_epoch})
        self.totals, self.earlier_in_epoch = [], 0.0
        self.best.update(self.run, len(self.history) - 1, value)

    def _training_metrics(self, elbo: float) -> dict[str, float]:
        if not self.config.is_weighted:
            return {self.config.metric: elbo}
        return {"weighted_elbo": elbo, "kl_weight": self.run.kl_weight}

    def _validate(self, epoch: int) -> float | None:
        if self.val is None:
            return None
        size = max(self.config.batch_size, VALIDATION_ROWS)
        with seeded(derive_seed(self.config.seed, 1)):
            parts = enumerate(shared_blocks(self.val, size, self.run.ranks.place))
            totals = []
            for index, (self.run.share, rows) in parts:
                totals.append(self.run.share.whole * evaluate(self.run, rows, epoch, index))
        return math.fsum(totals) / len(self.val[0])
