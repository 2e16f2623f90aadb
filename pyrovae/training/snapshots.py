"""A training run as named tensors and numbers, from which it goes on bit for bit in another process."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.seeding import seeded
from pyrovae.training.adam import make_adam
from pyrovae.training.divergence import rng_state, set_rng_state
from pyrovae.training.facts import put_attributes
from pyrovae.training.loop import Best, Training
from pyrovae.training.run import Run, Watch, autocast
from pyrovae.training.shares import shared_minibatches

__all__ = ["ADAM", "Position", "make_ready", "named", "position_of", "put_back", "tensors_of"]

ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter that had a gradient."""

ROUTES = ("compiled", "captured", "traced", "untraced")


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
        numbers += [self.seconds, self.seconds_in_epoch]
        counts = [self.num_steps, self.programs["num_changes"], *(n for n, _ in self.programs["routes"])]
        is_right = (
            all(isinstance(number, float) and math.isfinite(number) for number in numbers)
            and isinstance(self.best_value, float)
            and all(isinstance(count, int) and count >= 0 for count in counts)
            and len(names) <= 1
            and isinstance(self.best_epoch, int)
            and -1 <= self.best_epoch < max(len(self.history), 1)
            and all(isinstance(name, str) for name in self.trained)
            and len(set(self.trained)) == len(self.trained)
            and {self.programs["limit"], *(route for _, route in self.programs["routes"])} <= {*ROUTES}
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
    found = named("state", run.state()) | named("best", training.best.state or {})
    if run.optimizer is not None:
        for name, tensor in run.tensors.values():
            state = run.optimizer.state.get(tensor, {})
            found |= {f"adam/{part}/{name}": state[part] for part in ADAM if part in state}
    return found | {f"random/{i}": state for i, state in enumerate(rng_state(training.data[0].device))}


def named(kind: str, state: Mapping[tuple[int, str], Tensor]) -> dict[str, Tensor]:
    """The tensors of a state by the names that a checkpoint has for them."""
    return {f"{kind}/{index}/{name}": tensor for (index, name), tensor in state.items()}


def make_ready(training: Training) -> set[str]:
    """Run the objective once, as the first step does, so that every parameter exists that the first step made.

    Returns the names of those that have a gradient, so that Adam keeps something of them.
    """
    run, config = training.run, training.config
    run.share, batch = next(
        shared_minibatches(training.data, config.batch_size, config.seed, 0, run.ranks.place)
    )
    with seeded(config.seed), run.shared, Watch(run.plate) as watch, autocast(run, batch[0].device):
        loss = run.objective.differentiable_loss(run.model, run.guide, *batch)
    run.tensors = dict(watch.tensors)
    if not run.tensors or getattr(loss, "grad_fn", None) is None:
        return set()
    names, known = zip(*run.tensors.values(), strict=True)
    gradients = torch.autograd.grad(loss, known, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def put_back(training: Training, saved: Position, tensors: Mapping[str, Tensor]) -> None:
    """Make a run that is ready what it was when it was saved; `check_snapshot` found nothing."""
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
