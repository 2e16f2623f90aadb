"""A training run as named tensors and numbers, from which it goes on bit for bit in another process."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.seeding import seeded
from pyrovae.training.adam import make_adam
from pyrovae.training.archive import CheckpointError
from pyrovae.training.divergence import rng_state, set_rng_state
from pyrovae.training.facts import put_attributes
from pyrovae.training.fingerprints import form
from pyrovae.training.loop import Best, Training
from pyrovae.training.run import Run, Watch, autocast
from pyrovae.training.shares import shared_minibatches

__all__ = ["Position", "check_tensors", "make_ready", "position_of", "put_back", "tensors_of"]

ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Position:
    """Every number that training changes.

    Raises:
        TypeError, ValueError, LookupError: a field is not what `position_of` gives, as in a file that lies.
    """

    num_steps: int
    trained: list[str]
    history: list[dict[str, float]]
    totals: list[float]
    best_epoch: int
    best_value: float
    seconds: float
    seconds_in_epoch: float
    programs: dict[str, Any]
    attributes: list[list[Any]]

    def __post_init__(self) -> None:
        names = {frozenset(metrics) for metrics in self.history}
        numbers = [*self.totals, *(v for metrics in self.history for v in metrics.values())]
        numbers += [self.best_value, self.seconds, self.seconds_in_epoch]
        counts = [self.num_steps, self.programs["num_changes"], *(n for n, _ in self.programs["routes"])]
        is_right = (
            all(isinstance(number, float) for number in numbers)
            and all(isinstance(count, int) and count >= 0 for count in counts)
            and len(names) <= 1
            and isinstance(self.best_epoch, int)
            and -1 <= self.best_epoch < max(len(self.history), 1)
            and all(isinstance(name, str) for name in self.trained)
            and len(set(self.trained)) == len(self.trained)
            and self.programs["limit"] in ("compiled", "captured", "traced", "untraced")
            and isinstance(self.programs["through_pyro"], bool)
            and all(isinstance(value, bool | int | float | str) for *_, value in self.attributes)
            and all(tuple(map(type, key)) == (int, str, str) for *key, _ in self.attributes)
        )
        if not is_right:
            raise ValueError("its numbers are not those of a training run")


def position_of(training: Training, changed: Mapping[tuple[int, str, str], Any]) -> dict[str, Any]:
    """The numbers of a run, of which `changed` are those that its modules hold in Python."""
    return asdict(
        Position(
            num_steps=training.run.num_steps,
            trained=[name for name, _ in training.run.tensors.values()],
            history=training.history,
            totals=training.totals,
            best_epoch=training.best.epoch,
            best_value=training.best.value,
            seconds=training.seconds,
            seconds_in_epoch=training.seconds_in_epoch if training.totals else 0.0,
            programs=training.programs.state,
            attributes=[[*key, value] for key, value in changed.items()],
        )
    )


def tensors_of(training: Training) -> dict[str, Tensor]:
    """Every tensor that training changes: parameters and buffers, the best ones, Adam's, the random state."""
    run = training.run
    found = _named("state", run.state()) | _named("best", training.best.state or {})
    if run.optimizer is not None:
        for name, tensor in run.tensors.values():
            state = run.optimizer.state.get(tensor, {})
            found |= {f"adam/{part}/{name}": state[part] for part in ADAM if part in state}
    return found | {f"random/{i}": state for i, state in enumerate(rng_state(training.data[0].device))}


def _named(kind: str, state: Mapping[tuple[int, str], Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{index}/{name}": tensor for (index, name), tensor in state.items()}


def make_ready(training: Training) -> None:
    """Run the objective once, as the first step does, so that every parameter exists that the first step made."""
    run, config = training.run, training.config
    run.share, batch = next(
        shared_minibatches(training.data, config.batch_size, config.seed, 0, run.ranks.place)
    )
    with seeded(config.seed), run.shared, Watch(run.plate) as watch, autocast(run, batch[0].device):
        run.objective.differentiable_loss(run.model, run.guide, *batch)
    run.tensors = dict(watch.tensors)


def check_tensors(path: Any, training: Training, trained: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors that were saved with those of the run, which is ready.

    Raises:
        CheckpointError: they are not the same, or not of the same shapes and dtypes.
    """
    known = dict(training.run.tensors.values())
    wanted = _named("state", training.run.state())
    moments = {f"adam/{part}/{name}": t for part in ADAM[1:] for name, t in known.items()}
    allowed = wanted | {name.replace("state", "best", 1): t for name, t in wanted.items()} | moments
    allowed |= {f"adam/{ADAM[0]}/{name}": torch.zeros(()) for name in known}
    problems = [f"missing {name!r}" for name in wanted if name not in tensors]
    problems += [
        f"{name!r} was trained, which the first step does not use" for name in trained if name not in known
    ]
    problems += [f"{name!r} was not trained" for name in known if name not in trained]
    for name, tensor in tensors.items():
        if name.startswith("random/"):
            continue
        if name not in allowed:
            problems.append(f"unexpected {name!r}")
        elif form(tensor) != form(allowed[name]):
            problems.append(f"{name!r} is {form(tensor)} where the model has {form(allowed[name])}")
    if problems:
        raise CheckpointError(f"{path} is of another model: {'; '.join(problems[:5])}")


def put_back(training: Training, saved: Position, tensors: Mapping[str, Tensor]) -> None:
    """Make a run that is ready what it was when it was saved; `check_tensors` found nothing."""
    run, device = training.run, training.data[0].device
    known = {name: (key, tensor) for key, (name, tensor) in run.tensors.items()}
    run.tensors = {known[name][0]: (name, known[name][1]) for name in saved.trained}
    state = run.state()
    with torch.no_grad():
        for key, tensor in state.items():
            tensor.copy_(tensors[f"state/{key[0]}/{key[1]}"])
    best = {
        key: tensors[name].to(tensor.device)
        for key, tensor in state.items()
        if (name := f"best/{key[0]}/{key[1]}") in tensors
    }
    _put_adam(run, tensors)
    run.num_steps = saved.num_steps
    training.history, training.totals = saved.history, saved.totals
    training.best = Best(saved.best_epoch, saved.best_value, best or None)
    training.earlier, training.earlier_in_epoch = saved.seconds, saved.seconds_in_epoch
    put_attributes(run, {(index, path, name): value for index, path, name, value in saved.attributes})
    if not training.is_done:
        training.programs.restore(saved.programs)
    now = rng_state(device)
    set_rng_state(tuple(tensors.get(f"random/{i}", own) for i, own in enumerate(now)), device)


def _put_adam(run: Run, tensors: Mapping[str, Tensor]) -> None:
    run.optimizer = make_adam([tensor for _, tensor in run.tensors.values()], run.lr)
    for name, tensor in run.tensors.values():
        for part in ADAM:
            if (value := tensors.get(f"adam/{part}/{name}")) is None:
                continue
            # torch keeps the count of steps beside the parameter only where its step is fused.
            if part == "step" and not run.optimizer.defaults["fused"]:
                run.optimizer.state[tensor][part] = value
                continue
            own = torch.empty_like(tensor if part != "step" else value, device=tensor.device).detach()
            run.optimizer.state[tensor][part] = own.copy_(value)
