"""What a trainer pays: the time of one plain backward pass, of all estimators in turn."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.diagnostics.gradients.estimators import Estimator
from pyrovae.diagnostics.gradients.parameters import Problem
from pyrovae.seeding import seeded

__all__ = ["Cost", "time_backward"]

LEAST_ROUNDS, MOST_ROUNDS = 5, 15
ENOUGH_SECONDS = 1.0  # per estimator, from which on no further round is begun


class Cost(NamedTuple):
    """The median time in seconds over rounds, and its standard error."""

    seconds: float
    std_error: float


def time_backward(problem: Problem, estimators: Sequence[Estimator]) -> dict[Estimator, Cost]:
    """The time of the loss and its backward pass, after one round that is not counted.

    Estimators take turns, so that whatever slows the machine for a while slows all of them. The clock is the process's
    own, which other processes touch little; on a GPU, which it does not see, that of the wall. The parameters' `grad`
    is what it was before.
    """
    objectives = {estimator: estimator.make(problem.plate) for estimator in estimators}
    times: dict[Estimator, list[float]] = {estimator: [] for estimator in estimators}
    before = [leaf.grad for leaf in problem.leaves]
    with seeded(0):
        while _goes_on(list(times.values())):
            for estimator, objective in objectives.items():
                times[estimator].append(_seconds(problem, objective))
    for leaf, grad in zip(problem.leaves, before, strict=True):
        leaf.grad = grad
    return {estimator: _cost(np.array(found[1:])) for estimator, found in times.items()}


def _goes_on(times: Sequence[Sequence[float]]) -> bool:
    if not times or len(times[0]) <= LEAST_ROUNDS:
        return bool(times)
    return len(times[0]) <= MOST_ROUNDS and sum(map(sum, times)) < ENOUGH_SECONDS * len(times)


def _seconds(problem: Problem, objective: Any) -> float:
    for leaf in problem.leaves:
        leaf.grad = None
    start = _now(problem.data[0])
    loss = objective.differentiable_loss(problem.model, problem.guide, *problem.data)
    if loss.requires_grad:
        loss.backward()
    return _now(problem.data[0]) - start


def _now(x: Tensor) -> float:
    if not x.is_cuda:
        return time.process_time()
    torch.cuda.synchronize(x.device)
    return time.perf_counter()


def _cost(times: np.ndarray) -> Cost:
    """The error of a median, from the median distance to it: 1.48 of them are a sd, 1.25 sd / sqrt(n) its error."""
    median = float(np.median(times))
    spread = 1.4826 * float(np.median(abs(times - median)))
    return Cost(median, 1.2533 * spread / len(times) ** 0.5)
