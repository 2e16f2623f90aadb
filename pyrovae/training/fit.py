"""Training of any Pyro model and guide by Adam on mini-batches."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.seeding import seeded
from pyrovae.training.batches import Data, check_data, check_val_data
from pyrovae.training.checkpoints import Checkpoints, training_checkpoints
from pyrovae.training.config import FitConfig
from pyrovae.training.distributed import has_begun, joined, note_begun
from pyrovae.training.divergence import TrainingDiverged
from pyrovae.training.epochs import Stop
from pyrovae.training.facts import model_facts, run_facts
from pyrovae.training.kl_weight import check_warmup
from pyrovae.training.loop import Training, TrainingStopped
from pyrovae.training.programs import Programs
from pyrovae.training.run import Run

__all__ = ["FitConfig", "FitResult", "TrainingDiverged", "TrainingStopped", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns; modules are trained in place and are not in it.

    Attributes:
        history: one array `[epochs]` a metric: `elbo` and, with validation data, `val_elbo`, both in nats per
            datum; `seconds`. Where the KL term was weighted, `weighted_elbo` and `kl_weight` stand in for `elbo`;
            `val_elbo` is never weighted. An objective that is no ELBO, such as "iwae", has `bound` and `val_bound`.
        params: {name: value} of function-style parameters (`pyro.param`), constrained and detached.
        config: the options.
        best_epoch: the epoch, from 0, whose parameters the model now has: the best by `val_elbo` or `val_bound`, or
            the last one where there are no validation data.
        num_steps: gradient steps taken.
        seconds: wall time, that of earlier processes of a resumed run included.
        stopped_early: whether patience ran out before `max_epochs`.
    """

    history: dict[str, NDArray[np.float64]]
    params: dict[str, Tensor]
    config: FitConfig
    best_epoch: int
    num_steps: int
    seconds: float
    stopped_early: bool

    def __repr__(self) -> str:
        metric = f"val_{self.config.metric}"
        best = f", {metric} {self.history[metric][self.best_epoch]:.2f}" if metric in self.history else ""
        return (
            f"FitResult({len(self.history['seconds'])} epochs, best_epoch={self.best_epoch}{best}, "
            f"num_steps={self.num_steps}, seconds={self.seconds:.1f})"
        )


Progress = Callable[[int, int, dict[str, float]], object]


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Data,
    val_data: Data | tuple[Data, ...] | None = None,
    plate: str = "data",
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: str | None = None,
    stop: Callable[[], bool] | None = None,
    **options: Any,
) -> FitResult:
    """Train a Pyro model and guide: minimize the objective by Adam over shuffled mini-batches.

    The steps are those of `pyro.infer.SVI` with `pyro.optim.Adam`: under the same seed and the same batches the
    losses agree. Unlike it, `fit` works in a parameter store of its own, so that two models never share
    parameters by name, and it refuses to train silently nothing. Modules are trained in place and are neither
    put into train mode nor into eval mode. A module, the owner of model or guide, that has `end_epoch(*data)` has
    it called after each epoch.

    Where there are steps enough to pay for it, a step is traced through Pyro once and then runs as a tensor program,
    compiled if that pays too: option `compile`. Such a program draws the same noise and was compared, value and
    gradients, with the objective itself. It reads the modules' tensors where they are, so that in-place changes by
    `end_epoch` are seen; tensors, modes and numbers of modules that were replaced are noticed at the start of the
    next epoch. What a program reads in Python elsewhere is frozen: pass compile=False where model or guide depend
    on that. What cannot be traced (branches on values, BatchNorm in train mode, particles in several chunks) runs
    through Pyro, with one `FallbackWarning`.

    The history's `elbo` is the mean over an epoch, while the parameters move; `val_elbo` uses the same noise at
    every epoch, so that its changes are due to the parameters alone. A model whose data plate is subsampled
    scales its density to the plate's full size, by which the ELBO is divided; without such a plate it is divided
    by the number of rows.

    With `checkpoint`, a run that was killed at any instant, a save included, goes on with `resume="auto"` to the same
    bits, on the same machine with the same versions: parameters, history but its seconds, best epoch. Call `fit` as
    before, with a model built as before; its numbers in Python that training changed come back too. What neither
    model nor guide nor torch's random state holds does not: global variables, other libraries' random numbers,
    buffers of a module that is known through `pyro.module` alone, parameters that only appear after the first step.

    Where a process group of `torch.distributed` is up, as in a script under torchrun, its ranks train together. Each
    calls `fit` with the same arguments, all data included, and takes its rows of every batch: `batch_size` is that of
    all ranks together. Losses and gradients are summed, and the noise is that of the whole batch, so that parameters
    and history are those of one process but for rounding; except where a latent is no function of normal, uniform or
    exponential numbers (Gamma, discrete), which has noise of each rank's own. Random numbers that are not drawn by
    pyro.sample, such as dropout's, are the same on all ranks. What all data share, outside the plate, counts once. The
    first rank writes checkpoints and calls `progress`; all of them go on from its checkpoint. What torchrun starts anew
    (`--max-restarts`) goes on with the run that it had begun, whatever `resume` says. `stop` is heard on any rank.

    Args:
        model: the Pyro model, called with a batch of `data`.
        guide: the Pyro guide, called likewise. For a `PyroModule`, either the module or a `@pyro_method` of it.
        *data: tensors with one row for each datum, any dtype; or `pyrovae.data.Rows` in a tensor's stead, of which a
            batch at a time is read.
        val_data: tensor or tuple of tensors, rows as in `data`; then the parameters of the epoch with the
            largest `val_elbo` (`val_bound`) are restored at the end.
        plate: name of the plate over the data.
        progress: called after each epoch with (epoch, max_epochs, metrics), before its checkpoint is written: for an
            epoch that has to be repeated, it is called again.
        checkpoint: a folder for the checkpoints of this run, made if it is not there; the last two are kept. A
            checkpoint is as large as two models with Adam's state, and is whole or absent. None: nothing is written.
        checkpoint_every: epochs from one checkpoint to the next, at least 1; there is one at the end in any case.
        resume: "auto" goes on from the newest good checkpoint, or begins where there is none; all options must be those
            of that run, `max_epochs` too, so that a run cannot be made longer. None begins, in a folder without
            checkpoints.
        stop: asked after each step; when it says True, a checkpoint is written and TrainingStopped raised, unless that
            step was the last of the run: then it is finished as ever.
        **options: the fields of `FitConfig`: objective="elbo", num_particles=1, num_outer=None, beta=None,
            alpha=None, num_transitions=None, chunk_size=None, lr=1e-3, lr_schedule="constant", clip_norm=None,
            precision="full", compile="auto", batch_size=64, max_epochs=100, kl_weight=1.0, n_epochs_kl_warmup=0,
            early_stopping_patience=None, seed=0.

    Raises:
        TypeError: an unknown option, or data that are not tensors.
        ValueError: an option out of range; a model or guide that fails on such data, or latent sites that only one of
            them has; empty, unequal or non-finite data; patience without `val_data`; checkpoints
            in the folder of a run that is to begin; ranks that were given different things, or whose models change with
            the rows that they see, as BatchNorm in train mode does.
        NotImplementedError: objective "hmc" on several ranks.
        RuntimeError: no parameter reached the objective, or one with a gradient did not move.
        RankFailed: another rank of the process group failed; also a RuntimeError.
        TrainingDiverged: a loss or gradient became NaN or infinite; it names epoch, batch and site, and the
            parameters are as before that step.
        CheckpointError: no checkpoint could be read, the newest good one is of another model, configuration or data
            set, or of a newer version; or one could not be written, as on a full disk: the one before is intact.
        TrainingStopped: `stop` said so before the last step.

    >>> import torch, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     slope = pyro.param("slope", torch.tensor(0.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))
    >>> result = fit(model, guide, torch.linspace(-2, 2, 64), lr=0.05, max_epochs=100)
    >>> round(result.params["slope"].item(), 1)
    0.5
    """
    config = _config(options)
    checked = check_data("data", data)
    val = check_val_data(val_data, checked)
    if config.early_stopping_patience is not None and val is None:
        raise ValueError(
            "early_stopping_patience needs validation data, got val_data=None; pass val_data or drop the patience"
        )
    check_warmup(config.n_epochs_kl_warmup, config.max_epochs)
    run = _run(model, guide, plate, config, len(checked[0]))
    with joined() as run.ranks, pyro.get_param_store().scope(), seeded(config.seed):
        with run.ranks.together():
            if checkpoint is not None and has_begun(checkpoint):
                resume = "auto"
            folder = _folder(checkpoint, checkpoint_every, resume)
        if folder is not None:
            note_begun(folder)
        training = Training(run, Programs(run, config, checked), checked, val)
        _check_ranks(training, {"checkpoint": folder is None, "resume": resume, "stop": stop is None})
        checkpoints = None if folder is None else Checkpoints(folder, training)
        if checkpoints is not None and resume is not None:
            checkpoints.resume()
        _train(training, checkpoints, checkpoint_every, progress, Stop(stop, run.ranks))
        return _result(training)


def _config(options: dict[str, Any]) -> FitConfig:
    known = [f.name for f in fields(FitConfig)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}"
            raise TypeError(f"fit wants options of FitConfig, got {name!r}; {hint}")
    return FitConfig(**options)


def _run(
    model: Callable[..., Any], guide: Callable[..., Any], plate: str, config: FitConfig, num_data: int
) -> Run:
    return Run(
        model,
        guide,
        plate,
        config.make_objective(plate),
        config.num_particles,
        config.lr,
        lr_schedule=config.lr_schedule,
        max_steps=config.max_epochs * math.ceil(num_data / config.batch_size),
        clip_norm=config.clip_norm,
        precision=config.precision,
    )


def _folder(checkpoint: str | os.PathLike[str] | None, every: int, resume: str | None) -> Path | None:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(
            f"checkpoint_every must be an integer of at least 1, got {every!r}; pass such a number"
        )
    if resume not in (None, "auto"):
        raise ValueError(f'resume must be "auto" or None, got {resume!r}; choose one')
    if checkpoint is None:
        if resume is not None:
            raise ValueError(
                'resume="auto" wants the folder of the checkpoints, got checkpoint=None; pass it'
            )
        return None
    if resume is None and training_checkpoints(checkpoint):
        raise ValueError(
            f'a run that begins wants a folder without checkpoints, but {checkpoint} has some; pass resume="auto" to '
            "go on from them, or another folder"
        )
    return Path(checkpoint)


def _check_ranks(training: Training, others: dict[str, Any]) -> None:
    """Refuse ranks that were given different things."""
    run = training.run
    if run.ranks.size == 1:
        return
    if training.config.objective == "hmc":
        raise NotImplementedError(
            'objective "hmc" draws numbers of its own, which ranks do not share; train it in one process, or use '
            '"elbo" or "iwae"'
        )
    facts = run_facts(training.config, training.data, training.val)
    words = {
        "config": "options",
        "data": "data (all of them: each takes its rows itself)",
        "val_data": "val_data",
    }
    for name, word in words.items():
        run.ranks.check_same(word, facts[name] or {})
    run.ranks.check_same("model", model_facts(run))
    run.ranks.check_same("arguments, given or not", others)


def _train(
    training: Training, checkpoints: Checkpoints | None, every: int, progress: Progress | None, stop: Stop
) -> None:
    config = training.config
    while not training.is_done:
        is_whole = training.train_epoch(stop)
        training.check_ranks()
        epoch = len(training.history) - 1
        if is_whole and progress is not None and training.run.ranks.is_first:
            progress(epoch, config.max_epochs, dict(training.history[-1]))
        if is_whole and not training.is_done:
            training.programs.end_epoch()
        is_due = training.is_done or (is_whole and (epoch + 1) % every == 0)
        if checkpoints is not None and (is_due or stop.is_asked):
            checkpoints.save()
        if stop.is_asked and not training.is_done:
            raise TrainingStopped(training.run.num_steps, checkpoints is not None)


def _result(training: Training) -> FitResult:
    history, best = training.history, training.best
    best.restore(training.run)
    return FitResult(
        history={name: np.array([metrics[name] for metrics in history]) for name in history[0]},
        params=training.run.function_params(),
        config=training.config,
        best_epoch=best.epoch,
        num_steps=training.run.num_steps,
        seconds=training.seconds,
        stopped_early=len(history) < training.config.max_epochs,
    )
