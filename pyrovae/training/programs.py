"""The training step as tensor programs, one for each size of batch: made where they pay, and dropped where they lie."""

import operator
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrovae.compiled import FallbackWarning, Program, compiled, traced
from pyrovae.seeding import seeded
from pyrovae.training.adam import FusedAdam
from pyrovae.training.batches import Data
from pyrovae.training.config import FitConfig
from pyrovae.training.gradients import BatchGradients, same_gradients
from pyrovae.training.run import Run
from pyrovae.training.shares import share_of

__all__ = ["Programs", "StepProgram"]

TRACE_FROM = 500
"""Steps of one size that pay for a trace: it takes about half a second, and saves one to two milliseconds a step."""
COMPILE_SECONDS, COMPILE_SECONDS_OF_NODE, SECONDS_SAVED_OF_NODE = 3.0, 0.05, 4e-6
"""Compiling, and what it saves a step, by the number of operations of the trace: on two cores, torch 2.13."""
MAX_CHANGES = 3
"""Times that programs are made anew, since the modules changed in Python, before that is given up."""


class StepProgram:
    """One step for batches of one size: loss and gradients as a program, then Adam; nothing waits for the device.

    Args:
        run: it has taken a step.
        gradients: the function that was made a program.
        program: that program.
        adam: of the parameters that have a gradient.
    """

    def __init__(self, run: Run, gradients: BatchGradients, program: Program, adam: FusedAdam) -> None:
        self.run, self.gradients, self.program, self.adam = run, gradients, program, adam
        self.parts = self._parts()

    @property
    def route(self) -> str:
        """How it runs."""
        return self.program.route

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Take a step on a batch, of which these are this rank's rows; returns its loss before, which may be NaN."""
        with torch.no_grad():
            loss, *rest = self.program.run(*self.gradients.inputs(batch))
            if self.run.ranks.size > 1:
                loss, *rest = self.run.ranks.sum([loss, *rest])
                divisor = self.gradients.divisor(rest)
            else:
                divisor = rest.pop(0) if self.run.clip_norm is not None else None
            self.adam.step(rest, self.run.rate, divisor)
        self.run.num_steps += 1
        return loss

    def holds(self, batch: tuple[Tensor, ...]) -> bool:
        """Whether the program still reads the tensors that the modules have, and gives what Pyro gives."""
        now = self._parts()
        if now.keys() != self.parts.keys() or any(now[key] is not self.parts[key] for key in now):
            return False
        try:
            inputs = self.gradients.inputs(batch)
            found, wanted = _seeded(self.program.run, inputs), _seeded(self.gradients, inputs)
            same_gradients(found, wanted, self.run.precision == "bf16")
        except Exception:  # the function may well fail where the modules were changed
            return False
        return True

    def _parts(self) -> dict[Any, Tensor]:
        """The tensors of the modules that the program reads or that are to be trained."""
        read = {id(tensor) for tensor in self.program.captured}
        return {key: t for key, t in self.run.state().items() if t.requires_grad or id(t) in read}


class Programs:
    """The programs of a run, each made when a batch of its size comes, but not before the second step.

    Args:
        run: the run.
        config: its options.
        data: all data, from whose end examples are taken.
    """

    def __init__(self, run: Run, config: FitConfig, data: tuple[Data, ...]) -> None:
        self.run, self.config, self.data = run, config, data
        self.wish = {"true": True, "false": False}.get(str(config.compile), config.compile)
        self.limit = "untraced" if self.wish is False else "compiled"
        self.made: dict[int, StepProgram | None] = {}
        self.through_pyro = False
        self.num_changes = 0
        self.seen: Any = None

    def end_epoch(self) -> None:
        """Drop every program if the modules changed in Python since the last epoch, so that one no longer holds."""
        if self.limit == "untraced" or not self.made or (now := _signature(self.run)) == self.seen:
            return
        self.seen = now
        made = [(rows, program) for rows, program in self.made.items() if program is not None]
        if not self.run.ranks.any(not all(program.holds(self._rows(rows)) for rows, program in made)):
            return
        self.made.clear()
        self.through_pyro = True
        self.num_changes += 1
        if self.num_changes > MAX_CHANGES:
            self.give_up("its modules change again and again in Python, which no program sees")

    def at(self, batch: tuple[Tensor, ...]) -> StepProgram | None:
        """The program for the batch of which the run has its share, None where the step runs through Pyro."""
        if self.limit == "untraced" or self.run.num_steps == 0:
            return None
        if self.through_pyro:  # one step, which sees parameters that are new
            self.through_pyro = False
            return None
        rows = self.run.share.whole
        if rows not in self.made:
            self.made[rows] = self._agreed(batch)
        return self.made[rows]

    @property
    def state(self) -> dict[str, Any]:
        """What decides about the programs of the steps to come, for `restore` of a run that goes on elsewhere."""
        routes = [[rows, "untraced" if made is None else made.route] for rows, made in self.made.items()]
        return {
            "limit": self.limit,
            "routes": routes,
            "num_changes": self.num_changes,
            "through_pyro": self.through_pyro,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Make the programs that there were when `state` was read; one notice where one comes out otherwise."""
        self.num_changes, self.through_pyro = state["num_changes"], state["through_pyro"]
        if state["limit"] != "untraced":
            for rows, _ in state["routes"]:
                self.made[rows] = self._agreed(self._rows(rows))
        if state["limit"] == "untraced":
            self.limit = "untraced"
        elif self.state != state:
            found, wanted = (dict(map(tuple, routes)) for routes in (self.state["routes"], state["routes"]))
            warnings.warn(
                f"the steps run by other programs than before ({found} and not {wanted}), so that the result is not "
                "bit for bit that of a run without interruption",
                FallbackWarning,
                stacklevel=2,
            )

    def give_up(self, reason: str) -> None:
        """Run all further steps through Pyro, and say why."""
        self.limit = "untraced"
        warnings.warn(f"training runs untraced: {reason}", FallbackWarning, stacklevel=2)

    def _rows(self, rows: int) -> tuple[Tensor, ...]:
        """The run's share, from now on, of a batch of so many rows."""
        self.run.share = share_of(rows, *self.run.ranks.place)
        return self.run.share.of(self.data)

    def _agreed(self, batch: tuple[Tensor, ...]) -> StepProgram | None:
        """The program, unless another rank could not make one: all of them take the same way."""
        made = self._make(batch)
        if self.run.ranks.any(self.limit == "untraced"):
            if self.limit != "untraced":
                self.give_up("another rank could not trace its step")
            return None
        return made

    def _make(self, batch: tuple[Tensor, ...]) -> StepProgram | None:
        rows, size = self.run.share.whole, min(self.config.batch_size, len(self.data[0]))
        num_steps = self.config.max_epochs * (len(self.data[0]) // size if rows == size else 1)
        is_wanted = self.wish is True and rows == size
        if not is_wanted and num_steps < TRACE_FROM:
            return None
        try:
            with seeded(0):  # whatever a compiler draws, the run's own random numbers go on as they were
                gradients = self._gradients(batch)
                program = self._program(gradients, batch, num_steps, is_wanted)
            if program.route == "untraced":
                self.limit = "untraced"
                return None
            self.seen = _signature(self.run)
            return StepProgram(self.run, gradients, program, self._adam(gradients))
        except Exception as error:  # of any kind: the step through Pyro is right
            self.give_up(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return None

    def _gradients(self, batch: tuple[Tensor, ...]) -> BatchGradients:
        """The function, after checking that it changes nothing."""
        objective: Any = self.run.objective
        if getattr(objective, "chunk_size", objective.num_particles) < objective.num_particles:
            raise ValueError("particles in several chunks are drawn twice; pass chunk_size=num_particles")
        before, signature = self.run.state(), _signature(self.run)
        kept = {key: tensor.detach().clone() for key, tensor in before.items()}
        with seeded(0):
            gradients = BatchGradients(self.run, batch, self.config.is_weighted)
        # By value: what BatchNorm does to its statistics does not show in their version counters.
        changed = [key for key, tensor in before.items() if not torch.equal(tensor, kept[key])]
        with torch.no_grad():
            for key in changed:
                before[key].copy_(kept[key])
        if changed or signature != _signature(self.run):
            name = repr(changed[0][1]) if changed else "a module"
            raise ValueError(f"model or guide changes {name} when it runs, as BatchNorm in train mode does")
        return gradients

    def _program(
        self, gradients: BatchGradients, batch: tuple[Tensor, ...], num_steps: int, is_wanted: bool
    ) -> Program:
        compare = partial(same_gradients, is_bf16=self.run.precision == "bf16")
        inputs = gradients.inputs(batch)
        compare(_seeded(gradients, inputs), _seeded(gradients.by_pyro, inputs))
        others = gradients.inputs(tuple(x[-len(batch[0]) :].flip(0) for x in self.data))
        if gradients.weighted:
            others = (*others[:-1], 0.5 * others[-1])
        if is_wanted and self.limit == "compiled":
            return self._noted(compiled(gradients, inputs, others, compare=compare))
        program = traced(gradients, inputs, others, compare=compare)
        if program.graph is None or self.limit != "compiled":
            return program
        num_nodes = len(program.graph.graph.nodes)
        cost = COMPILE_SECONDS + COMPILE_SECONDS_OF_NODE * num_nodes
        if num_steps * SECONDS_SAVED_OF_NODE * num_nodes < cost:
            return program
        return self._noted(compiled(gradients, inputs, others, compare=compare))

    def _adam(self, gradients: BatchGradients) -> FusedAdam:
        """One for all programs, as long as they train the same parameters."""
        for other in self.made.values():
            if other is not None:
                same = map(operator.is_, other.gradients.tensors, gradients.tensors)
                if len(other.gradients.tensors) != len(gradients.tensors) or not all(same):
                    raise ValueError("batches of unequal sizes have unequal parameters")
                return other.adam
        if self.run.optimizer is None:
            raise ValueError("no step was taken before")
        return FusedAdam(self.run.optimizer, gradients.tensors)

    def _noted(self, program: Program) -> Program:
        """The program; where it could not be compiled, no other is tried: one notice is enough."""
        self.limit = self.limit if program.route in ("compiled", "captured") else program.route
        return program


def _seeded(function: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with seeded(0), torch.no_grad():
        return function(*inputs)


def _signature(run: Run) -> Any:
    """What a program cannot see change: which tensors the modules have, their modes, and their numbers in Python."""
    tensors = [(key, id(tensor), tensor.requires_grad) for key, tensor in run.state().items()]
    values = [
        (name, key, value)
        for module in run.modules
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, bool | int | float | str)
    ]
    return tensors, values
