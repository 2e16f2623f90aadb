"""Replicates of a gradient: side by side by `torch.func` over explicit noise, traced or compiled, or in a loop."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.compiled import FallbackWarning, compiled, draw_noise, traced, with_noise
from pyrovae.diagnostics.gradients.estimators import Estimator, single_draw_loss
from pyrovae.diagnostics.gradients.parameters import Problem, Substitute
from pyrovae.diagnostics.gradients.sums import Reducer, Sums
from pyrovae.seeding import block_seed, seeded
from pyrovae.training.objectives.handlers import DataPlate

__all__ = ["Replicates", "flat_gradient", "make_replicates"]

MAX_ROWS = 1 << 13  # rows that model and guide see at once, particles and replicates together
MOST_ROWS = 1 << 16  # rows of one replicate that may be in one graph
MAX_NUMBERS = 1 << 21  # numbers of the gradients of a block
MAX_NOISE = 1 << 22  # numbers of noise that are drawn at once
TRACE_CALLS = 100  # calls of a block from which on tracing pays
COMPILE_WORK = 1e12  # replicates x particles x data x parameters from which on compiling pays

Noise = Mapping[str, Tensor]
Gradients = tuple[Tensor, ...]
Run = Callable[[int, int, Tensor, Tensor], Iterator[Sums]]


class Replicates(NamedTuple):
    """A source of gradients of one estimator.

    `run(num, seed, center, direction)` yields the sums of `num` replicates, block by block.
    """

    run: Run
    route: str
    """"vmap+compiled", "vmap+traced", "vmap" or "loop"."""
    reason: str
    """Why it is a loop; "" if it is none."""


def make_replicates(
    problem: Problem, estimator: Estimator, reducer: Reducer, sizes: Sequence[int], compile: bool | str
) -> Replicates:
    """The fastest way to replicate that gives the gradients of a plain backward pass from the same noise.

    Args:
        sizes: of the groups of replicates there will be: tracing and compiling must pay.
        compile: "auto", or True or False for or against what takes time to start.
    """
    size = _block_size(problem, estimator, max(sizes))
    rows = estimator.num_particles * problem.num_data
    if rows > MOST_ROWS:
        return _loop(problem, estimator, reducer, size, f"one replicate has {rows} rows, over {MOST_ROWS}")
    side_by_side = _SideBySide(problem, estimator, reducer)
    try:
        with pyro.validation_enabled(False):
            examples = [side_by_side.example(size, seed) for seed in (0, 1)]
            side_by_side.check(examples[0][0])
            program, route = _faster(side_by_side, examples, sum(sizes), compile)
    except Exception as error:  # of any kind: a loop asks less of a program
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return _loop(problem, estimator, reducer, size, reason)

    def run(num: int, seed: int, center: Tensor, direction: Tensor) -> Iterator[Sums]:
        with pyro.validation_enabled(False):
            for noise, weight in side_by_side.blocks(num, size, seed):
                yield program(noise, weight, center, direction)

    return Replicates(run, route, "")


def flat_gradient(problem: Problem, bound: Tensor) -> Gradients:
    """The gradient of a scalar in every parameter of the problem; zeros where it does not depend on one."""
    if not bound.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in problem.leaves)
    found = torch.autograd.grad(bound, problem.leaves, allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if each is None else each
        for each, leaf in zip(found, problem.leaves, strict=True)
    )


def _block_size(problem: Problem, estimator: Estimator, group: int) -> int:
    """As memory allows, and such that blocks of one size fill a group with little left over."""
    rows = MAX_ROWS // (estimator.num_particles * problem.num_data)
    most = max(1, min(rows, MAX_NUMBERS // problem.num_coordinates))
    return math.ceil(group / math.ceil(group / most))


def _faster(
    side_by_side: "_SideBySide", examples: list[Any], num_replicates: int, compile: bool | str
) -> tuple[Any, str]:
    problem, size = side_by_side.problem, len(examples[0][1])
    work = num_replicates * side_by_side.estimator.num_particles * problem.num_data * problem.num_coordinates
    if compile is True or (compile == "auto" and work >= COMPILE_WORK):
        make: Any = compiled
    elif compile == "auto" and num_replicates >= TRACE_CALLS * size:
        make = traced
    else:
        return side_by_side, "vmap"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        program = make(side_by_side, *examples)
    route = {"captured": "vmap+compiled", "untraced": "vmap"}.get(program.route, f"vmap+{program.route}")
    return program, route


class _SideBySide:
    """The sums of a block as a function of its noise: what is vectorized, traced and compiled."""

    def __init__(self, problem: Problem, estimator: Estimator, reducer: Reducer) -> None:
        self.problem, self.estimator, self.reducer = problem, estimator, reducer
        self.single = single_draw_loss(estimator.name)
        # All particles in one graph: what is recomputed cannot be vectorized.
        self.objective: Any = estimator.make(problem.plate, chunk_size=estimator.num_particles)

    def __call__(self, noise: dict[str, Tensor], weight: Tensor, center: Tensor, direction: Tensor) -> Sums:
        return self.reducer(torch.func.vmap(self.gradient)(noise), weight, center, direction)

    def gradient(self, noise: dict[str, Tensor]) -> Gradients:
        """Of the bound per datum, from the noise of one replicate."""
        leaves = self.problem.leaves

        def bound(values: Gradients) -> Tensor:
            with Substitute(leaves, values):
                return -self.loss(noise) / self.problem.full_size

        return torch.func.grad(bound)(tuple(leaf.detach() for leaf in leaves))

    def loss(self, noise: dict[str, Tensor]) -> Tensor:
        model, guide, data = self.problem.model, self.problem.guide, self.problem.data
        single = self.single
        if single is None:
            return with_noise(self.objective.differentiable_loss, noise)(model, guide, *data)
        each = torch.func.vmap(lambda one: with_noise(single, one)(model, guide, *data))
        return each(noise).mean()

    def draw(self, num: int) -> dict[str, Tensor]:
        """Noise of `num` replicates: of all particles' rows in turn, or for a single draw's loss of K draws each."""
        problem, count = self.problem, self.estimator.num_particles
        if self.single is not None:
            drawn = draw_noise(problem.guide, *problem.data, num_replicates=num * count)
            return {site: noise.unflatten(0, (num, count)) for site, noise in drawn.items()}
        rows = [x.repeat(count, *[1] * (x.dim() - 1)) for x in problem.data]
        with DataPlate(problem.plate, len(rows[0]), count, rows[0].device):
            return draw_noise(problem.guide, *rows, num_replicates=num)

    def example(self, size: int, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        with seeded(seed):
            noise = self.draw(size)
            center, direction = torch.randn(2, self.problem.num_coordinates).to(self.reducer.signs)
        return noise, torch.ones(size).to(center), center, direction

    def blocks(self, num: int, size: int, seed: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Noise and weights of blocks of one size; what is left over in the last has no weight."""
        numbers = sum(noise.numel() for noise in self.draw(1).values())
        step = size * max(1, MAX_NOISE // (numbers * size))
        place = torch.arange(size, device=self.reducer.signs.device)
        for first in range(0, num, step):
            many = min(step, num - first)
            with seeded(block_seed(seed, first)):
                noise = self.draw(many)
            for start in range(0, many, size):
                index = (start + place).clamp(max=many - 1)
                weight = (start + place < many).to(self.reducer.signs)
                yield {site: each[index] for site, each in noise.items()}, weight

    def check(self, noise: dict[str, Tensor]) -> None:
        """Raise unless the gradient is that of the objective's own backward pass from the same noise."""
        one = {site: each[0] for site, each in noise.items()}
        found, wanted = self.gradient(one), self.plain_gradient(one)
        for mine, theirs in zip(found, wanted, strict=True):
            rtol = torch.finfo(theirs.dtype).eps ** (2 / 3)
            atol = rtol * max(float(each.abs().max()) for each in wanted)
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)

    def plain_gradient(self, noise: dict[str, Tensor]) -> Gradients:
        model, guide, data = self.problem.model, self.problem.guide, self.problem.data
        if self.single is None:
            loss = with_noise(self.objective.differentiable_loss, noise)(model, guide, *data)
        else:
            objective: Any = self.estimator._replace(num_particles=1).make(self.problem.plate)
            draws = [
                with_noise(
                    objective.differentiable_loss, {site: each[k].clone() for site, each in noise.items()}
                )(model, guide, *data)
                for k in range(self.estimator.num_particles)
            ]
            loss = sum(draws) / len(draws)
        return flat_gradient(self.problem, -loss / self.problem.full_size)


def _loop(problem: Problem, estimator: Estimator, reducer: Reducer, size: int, reason: str) -> Replicates:
    objective: Any = estimator.make(problem.plate)
    size = min(size, max(1, math.isqrt(MAX_NUMBERS // problem.num_coordinates)))

    def gradient() -> Gradients:
        loss = objective.differentiable_loss(problem.model, problem.guide, *problem.data)
        return flat_gradient(problem, -loss / problem.full_size)

    def run(num: int, seed: int, center: Tensor, direction: Tensor) -> Iterator[Sums]:
        for first in range(0, num, size):
            with seeded(block_seed(seed, first)):
                rows = [gradient() for _ in range(min(size, num - first))]
            stacked = [torch.stack(each) for each in zip(*rows, strict=True)]
            yield reducer(stacked, torch.ones(len(rows)).to(center), center, direction)

    return Replicates(run, "loop", reason)
