"""Training of any Pyro model and guide by Adam on mini-batches."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.seeding import seeded
from pyrovae.training.batches import blocks, check_data, check_val_data, derive_seed
from pyrovae.training.config import FitConfig
from pyrovae.training.divergence import TrainingDiverged
from pyrovae.training.epochs import train_epoch
from pyrovae.training.kl_weight import check_warmup, weight_at
from pyrovae.training.programs import Programs
from pyrovae.training.run import Run
from pyrovae.training.steps import evaluate

__all__ = ["FitConfig", "FitResult", "TrainingDiverged", "fit"]

VALIDATION_ROWS = 1000  # rows of a block of validation data, unless a training batch is larger


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
        seconds: wall time.
        stopped_early: whether patience ran out before `max_epochs`.
    """

    history: dict[str, NDArray[np.float64]]
    params: dict[str, Tensor]
    config: FitConfig
    best_epoch: int
    num_steps: int
    seconds: float
    stopped_early: bool


Progress = Callable[[int, int, dict[str, float]], object]


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    val_data: Tensor | tuple[Tensor, ...] | None = None,
    plate: str = "data",
    progress: Progress | None = None,
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

    Args:
        model: the Pyro model, called with a batch of `data`.
        guide: the Pyro guide, called likewise. For a `PyroModule`, either the module or a `@pyro_method` of it.
        *data: tensors with one row for each datum, any dtype.
        val_data: tensor or tuple of tensors, rows as in `data`; then the parameters of the epoch with the
            largest `val_elbo` (`val_bound`) are restored at the end.
        plate: name of the plate over the data.
        progress: called after each epoch with (epoch, max_epochs, metrics).
        **options: the fields of `FitConfig`: objective="elbo", num_particles=1, num_outer=None, beta=None,
            alpha=None, chunk_size=None, lr=1e-3, lr_schedule="constant", clip_norm=None, precision="full",
            compile="auto", batch_size=64, max_epochs=100, kl_weight=1.0, n_epochs_kl_warmup=0,
            early_stopping_patience=None, seed=0.

    Raises:
        TypeError: an unknown option, or data that are not tensors.
        ValueError: an option out of range; empty, unequal or non-finite data; patience without `val_data`.
        RuntimeError: no parameter reached the objective, or one with a gradient did not move.
        TrainingDiverged: a loss or gradient became NaN or infinite; it names epoch, batch and site, and the
            parameters are as before that step.

    >>> import pyro.distributions as dist
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
    with pyro.get_param_store().scope(), seeded(config.seed):
        return _train(run, config, checked, val, progress)


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


def _train(
    run: Run,
    config: FitConfig,
    data: tuple[Tensor, ...],
    val: tuple[Tensor, ...] | None,
    progress: Progress | None,
) -> FitResult:
    start = time.perf_counter()
    history: list[dict[str, float]] = []
    best, programs = _Best(), Programs(run, config, data)
    for epoch in range(config.max_epochs):
        history.append(_epoch(run, programs, data, val, epoch))
        best.update(run, epoch, history[-1].get(f"val_{config.metric}"))
        if progress is not None:
            progress(epoch, config.max_epochs, dict(history[-1]))
        if (
            config.early_stopping_patience is not None
            and epoch - best.epoch >= config.early_stopping_patience
        ):
            break
    best.restore(run)
    return FitResult(
        history={name: np.array([metrics[name] for metrics in history]) for name in history[0]},
        params=run.function_params(),
        config=config,
        best_epoch=best.epoch,
        num_steps=run.num_steps,
        seconds=time.perf_counter() - start,
        stopped_early=len(history) < config.max_epochs,
    )


def _epoch(
    run: Run, programs: Programs, data: tuple[Tensor, ...], val: tuple[Tensor, ...] | None, epoch: int
) -> dict[str, float]:
    start, config = time.perf_counter(), programs.config
    run.kl_weight = weight_at(epoch, config.kl_weight, config.n_epochs_kl_warmup)
    metrics = _training_metrics(config, train_epoch(run, programs, data, epoch), run.kl_weight)
    run.kl_weight = 1.0
    for module in run.modules:
        hook = getattr(module, "end_epoch", None)
        if callable(hook):
            hook(*data)
    if val is not None:
        metrics[f"val_{config.metric}"] = _validate(run, config, val, epoch)
    metrics["seconds"] = time.perf_counter() - start
    return metrics


def _training_metrics(config: FitConfig, elbo: float, kl_weight: float) -> dict[str, float]:
    if not config.is_weighted:
        return {config.metric: elbo}
    return {"weighted_elbo": elbo, "kl_weight": kl_weight}


def _validate(run: Run, config: FitConfig, val: tuple[Tensor, ...], epoch: int) -> float:
    size = max(config.batch_size, VALIDATION_ROWS)
    with seeded(derive_seed(config.seed, 1)):
        parts = enumerate(blocks(val, size))
        totals = [len(block[0]) * evaluate(run, block, epoch, index) for index, block in parts]
    return math.fsum(totals) / len(val[0])


@dataclass
class _Best:
    """The best epoch so far and its parameters; without validation every epoch counts as better."""

    epoch: int = -1
    value: float = -math.inf
    state: dict[tuple[int, str], Tensor] | None = None

    def update(self, run: Run, epoch: int, value: float | None) -> None:
        if value is None:
            self.epoch = epoch
        elif value > self.value:
            self.epoch, self.value = epoch, value
            self.state = {key: tensor.detach().clone() for key, tensor in run.state().items()}

    def restore(self, run: Run) -> None:
        now = run.state()
        with torch.no_grad():
            for key, tensor in (self.state or {}).items():
                now[key].copy_(tensor)
