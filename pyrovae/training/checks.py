"""What a training checkpoint must hold, beyond bytes that are whole, so that a run can go on from it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.training.archive import CheckpointError
from pyrovae.training.divergence import rng_state
from pyrovae.training.facts import strangers
from pyrovae.training.fingerprints import form
from pyrovae.training.loop import Training
from pyrovae.training.snapshots import ADAM, Position, named

__all__ = ["check_snapshot"]

SHOWN = 5


def check_snapshot(
    path: Any,
    training: Training,
    saved: Position,
    tensors: Mapping[str, Tensor],
    moved: set[str],
    is_same_device: bool,
) -> None:
    """Compare what was saved with what such a run saves, before anything is put back.

    Args:
        path: the checkpoint, for messages.
        training: the run, which `make_ready` has made ready.
        saved, tensors: what the checkpoint holds.
        moved: the parameters that the first step moves, of which Adam's state must be there.
        is_same_device: whether it was written on such a device as this one, so that its random state must be there.

    Raises:
        CheckpointError: it is of another model, or was not written by `fit`.
    """
    if problems := [*_other_tensors(training, saved, tensors)]:
        raise CheckpointError(f"{path} is of another model: {'; '.join(problems[:SHOWN])}")
    problems = [
        *_wrong_numbers(training, saved),
        *_wrong_best(training, saved, tensors),
        *_wrong_adam(saved, tensors, moved),
        *_wrong_random_states(training.data[0].device, tensors, is_same_device),
    ]
    if problems:
        raise CheckpointError(
            f"{path} is no checkpoint that training wrote: {'; '.join(problems[:SHOWN])}; remove it, to go on from "
            "the one before or to begin anew"
        )


def _other_tensors(training: Training, saved: Position, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names, shapes and dtypes that are not the model's."""
    known = dict(training.run.tensors.values())
    wanted = named("state", training.run.state())
    allowed = wanted | named("best", training.run.state())
    allowed |= {f"adam/{part}/{name}": t for part in ADAM[1:] for name, t in known.items()}
    allowed |= {f"adam/{ADAM[0]}/{name}": torch.zeros(()) for name in known}
    yield from (f"missing {name!r}" for name in wanted if name not in tensors)
    for name in saved.trained:
        if name not in known:
            yield f"{name!r} was trained, which the first step does not use"
    yield from (f"{name!r} was not trained" for name in known if name not in saved.trained)
    for name, tensor in tensors.items():
        if name in ("random/0", "random/1"):
            continue
        if name not in allowed:
            yield f"unexpected {name!r}"
        elif form(tensor) != form(allowed[name]):
            yield f"{name!r} is {form(tensor)} where the model has {form(allowed[name])}"


def _wrong_numbers(training: Training, saved: Position) -> Iterator[str]:
    """Counts that do not fit together, metrics of another objective, and numbers of modules that are not there."""
    size, num_data = training.config.batch_size, len(training.data[0])
    num_batches, num_epochs = math.ceil(num_data / size), len(saved.history)
    if len(saved.totals) >= num_batches:
        yield f"{len(saved.totals)} batches of an epoch under way that has {num_batches}"
    if saved.num_steps != num_epochs * num_batches + len(saved.totals):
        yield f"{saved.num_steps} steps after {num_epochs} epochs and {len(saved.totals)} batches"
    if num_epochs > training.config.max_epochs:
        yield f"{num_epochs} epochs of {training.config.max_epochs}"
    if saved.history and saved.history[0].keys() != training.metric_names:
        yield f"metrics {sorted(saved.history[0])} and not {sorted(training.metric_names)}"
    sizes = {min(size, num_data), num_data % size or size}
    yield from (f"a program for {rows} rows" for rows, _ in saved.programs["routes"] if rows not in sizes)
    keys = [(index, path, name) for index, path, name, _ in saved.attributes]
    for _, path, name in strangers(training.run, keys):
        yield f"{name!r} of {path!r}, which model and guide do not have"


def _wrong_best(training: Training, saved: Position, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A best epoch that is not the best of the history, or whose parameters are not all there."""
    best = (len(saved.history) - 1, -math.inf)
    if training.val is not None and saved.history:
        values = [metrics.get(f"val_{training.config.metric}", math.nan) for metrics in saved.history]
        best = (values.index(max(values)), max(values))
    if (saved.best_epoch, saved.best_value) != best:
        yield f"best epoch {saved.best_epoch} with {saved.best_value}, where the history says {best[0]} with {best[1]}"
    has_best = training.val is not None and saved.best_epoch >= 0
    for name in named("best", training.run.state()):
        if (name in tensors) != has_best:
            yield f"{'missing' if has_best else 'unexpected'} {name!r}"


def _wrong_adam(saved: Position, tensors: Mapping[str, Tensor], moved: set[str]) -> Iterator[str]:
    """Parts of Adam's state that are missing or that no training comes to."""
    for name in saved.trained:
        state = {part: tensors.get(f"adam/{part}/{name}") for part in ADAM}
        if name not in moved and all(tensor is None for tensor in state.values()):
            continue
        for part, tensor in state.items():
            if tensor is None:
                yield f"missing 'adam/{part}/{name}'"
            elif not _can_be(part, tensor, saved.num_steps):
                yield f"'adam/{part}/{name}' is out of its range"


def _can_be(part: str, tensor: Tensor, num_steps: int) -> bool:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if part == "step":
        return 1 <= float(values) <= num_steps
    return bool(torch.isfinite(values).all() if part == "exp_avg" else (values >= 0).all())


def _wrong_random_states(
    device: torch.device, tensors: Mapping[str, Tensor], is_same_device: bool
) -> Iterator[str]:
    """States that are missing or that no generator takes; that of a device of another kind is not looked at."""
    generators = [torch.Generator(), torch.Generator(device)][: len(rng_state(device))]
    for index, generator in enumerate(generators if is_same_device else generators[:1]):
        try:
            generator.set_state(tensors[f"random/{index}"])
        except KeyError:
            yield f"missing 'random/{index}'"
        except (RuntimeError, TypeError):
            yield f"'random/{index}' is no random state"
