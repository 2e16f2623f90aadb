"""pyrovae's own rows: `sample_posterior` timed by its phases, and the rate of its chains on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from posterior_problem import Problem
from posterior_rows import Drawn, Row, Seconds, now

import pyrovae as pv
from pyrovae.diagnostics.reference import rounds

__all__ = ["make_target", "sample", "throughput", "undiagnosed"]


def make_target(problem: Problem, density: str, num_data: int, device: str = "cpu") -> pv.Target:
    """The Target with the collapsed likelihood, its default, or the generic one; data repeat if there are too few."""
    repeats = -(-num_data // len(problem.x))
    x = problem.x.repeat(repeats, 1)[:num_data].to(device)
    vae = problem.vae.to(device)
    return pv.Target(vae.model, vae.guide, x, prepare=density == "collapsed")


def sample(problem: Problem, row: Row) -> Drawn:
    """One round of the default sampler: the target, Laplace's Gaussians and the tuning are its warm-up.

    Programs are traced or compiled in between, which is not told apart: it counts where it happens. The diagnosis
    is left out, as the peers make none.
    """
    seconds, began = Seconds(), now()
    marks: list[tuple[float, float]] = []
    target = make_target(problem, row.density, row.num_measured)

    def watch(done: int, total: int) -> None:
        if done >= row.warmup_steps and not marks:
            marks.append(now())

    with _diagnosis() as diagnosis:
        tree = pv.sample_posterior(
            target,
            num_chains=row.num_chains,
            num_samples=row.num_samples,
            warmup_steps=row.warmup_steps,
            max_samples=row.num_samples,
            progress=watch,
        )
        end = now()
    seconds.add("warmup", began, marks[0])
    wall, cpu = (end[i] - diagnosis[i] for i in range(2))
    seconds.add("draws", marks[0], (wall, cpu))
    num_gradients = int(tree["sample_stats"]["n_steps"].values.sum())
    return Drawn(tree["posterior"]["z"].values, num_gradients, seconds)


@contextmanager
def _diagnosis() -> Iterator[list[float]]:
    """Counts the wall and processor time that goes into R-hat and effective sample sizes."""
    spent, diagnose = [0.0, 0.0], rounds.diagnose

    def timed(*args: Any, **options: Any) -> Any:
        began = now()
        result = diagnose(*args, **options)
        spent[:] = [total + b - a for total, a, b in zip(spent, began, now(), strict=True)]
        return result

    with mock.patch.object(rounds, "diagnose", timed):
        yield spent


def throughput(problem: Problem, density: str, device: str, num_rows: int) -> dict[str, Any]:
    """Draws per second after the warm-up, of `num_rows` = N x 10 chains."""
    num_chains = 10
    target = make_target(problem, density, num_rows // num_chains, device)
    num_samples = 30
    seconds, num_gradients = undiagnosed(target, num_chains, num_samples, 30)
    return {
        "density": density,
        "device": device,
        "rows": num_rows,
        "seconds": seconds.draws,
        "draws_per_second": num_rows * num_samples / seconds.draws,
        "gradients_per_second": num_rows * num_gradients / seconds.draws,
    }


def undiagnosed(
    target: pv.Target, num_chains: int, num_samples: int, warmup_steps: int
) -> tuple[Seconds, float]:
    """Seconds of one round whose draws nobody judges, and the gradients of its draws, the mean over chains and data."""
    seconds, began = Seconds(), now()
    marks: list[tuple[float, float]] = []

    def watch(done: int, total: int) -> None:
        if done >= warmup_steps and not marks:
            _wait(target)
            marks.append(now())

    options: dict[str, Any] = {
        "num_chains": num_chains,
        "num_samples": num_samples,
        "warmup_steps": warmup_steps,
    }
    with mock.patch.object(rounds, "diagnose", _no_verdict):
        tree = pv.sample_posterior(target, **options, max_samples=num_samples, progress=watch)
    seconds.add("warmup", began, marks[0])
    seconds.add("draws", marks[0])
    return seconds, float(tree["sample_stats"]["n_steps"].values.sum(1).mean())


def _no_verdict(z: np.ndarray, *_: Any, **__: Any) -> dict[str, np.ndarray]:
    count = z.shape[2]
    unknown = {name: np.full(count, np.nan) for name in ("rhat", "ess_bulk", "ess_tail")}
    return {**unknown, "verdict": np.full(count, "ok"), "reason": np.full(count, "")}


def _wait(target: pv.Target) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize()
