"""Replicates of a gradient per second of processor time: a naive loop, and the laboratory's programs."""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from gradient_snr_problems import digits_vae

import pyrovae as pv
from pyrovae.diagnostics.gradients import replicates
from pyrovae.diagnostics.gradients.bench import Bench
from pyrovae.diagnostics.gradients.estimators import Estimator
from pyrovae.diagnostics.gradients.parameters import Problem, cut_parts, read_problem
from pyrovae.training.objectives import make_objective

__all__ = ["ROUTES", "matmul_gflops", "speed_row"]

ROUTES = ("naive", "vmap", "vmap+traced", "vmap+compiled")
BATCH, REPLICATES = 64, 1000
ROUNDS, ROUND_SECONDS = 7, 0.4

Run = Callable[[int], None]


def speed_row(name: str, count: int) -> dict[str, Any]:
    """Rates of all routes, the median over rounds in which they take turns, and what it takes to make them ready."""
    x, vae = pv.data.digits(seed=0).train[:BATCH], digits_vae()
    with pyro.get_param_store().scope():
        problem = read_problem(vae.model, vae.guide, (x,), "data", {})
        runs: dict[str, Run] = {"naive": _naive(problem, name, count)}
        ready = {}
        for route in ROUTES[1:]:
            start = sum(os.times()[:4])  # with that of compilers, which are other processes
            runs[route] = _laboratory(problem, Estimator(name, count), route)
            ready[route] = round(sum(os.times()[:4]) - start, 1)
        rates = _rates(runs)
    return {
        "estimator": name,
        "num_particles": count,
        "num_parameters": problem.num_coordinates,
        "per_second": {route: round(rate, 1) for route, rate in rates.items()},
        "ratio": {route: round(rate / rates["naive"], 2) for route, rate in rates.items()},
        "seconds_to_make": ready,
    }


def matmul_gflops(size: int = 1024) -> float:
    """What a second of the processor can do: the best of some square products in float32."""
    a, b = torch.randn(2, size, size)
    times = []
    for _ in range(20):
        start = time.process_time()
        torch.mm(a, b)
        times.append(time.process_time() - start)
    return 2e-9 * size**3 / min(times)


def _naive(problem: Problem, name: str, count: int) -> Run:
    """What one would write: a loop of the objective's loss and `backward()`, whose gradients are not even added up."""
    objective: Any = make_objective(name, count)

    def run(num: int) -> None:
        for _ in range(num):
            for leaf in problem.leaves:
                leaf.grad = None
            objective.differentiable_loss(problem.model, problem.guide, *problem.data).backward()

    return run


def _laboratory(problem: Problem, estimator: Estimator, route: str) -> Run:
    """The laboratory's replicates by one route, moments and sketch included."""
    bench = Bench(problem, cut_parts(problem.parameters, False), REPLICATES, False, 0)
    before, replicates.TRACE_CALLS = replicates.TRACE_CALLS, 0
    try:
        mode: Any = {"vmap": False, "vmap+traced": "auto", "vmap+compiled": True}[route]
        made = replicates.make_replicates(problem, estimator, bench.reducer, bench.sizes, mode)
    finally:
        replicates.TRACE_CALLS = before
    if made.route != route:
        raise RuntimeError(f"wanted {route}, got {made.route}: {made.reason}")
    zero = torch.zeros(problem.num_coordinates)
    return lambda num: deque(made.run(num, 0, zero, zero), maxlen=0) and None


def _rates(runs: dict[str, Run]) -> dict[str, float]:
    """Replicates per second of processor time; as many in a round as take `ROUND_SECONDS`."""
    group = REPLICATES // 20
    nums = {}
    for route, run in runs.items():
        run(group)  # not counted
        nums[route] = max(1, round(ROUND_SECONDS / _seconds(run, group))) * group
    times: dict[str, list[float]] = {route: [] for route in runs}
    for _ in range(ROUNDS):
        for route, run in runs.items():
            times[route].append(_seconds(run, nums[route]) / nums[route])
    return {route: 1 / float(np.median(found)) for route, found in times.items()}


def _seconds(run: Run, num: int) -> float:
    start = time.process_time()
    run(num)
    return time.process_time() - start
