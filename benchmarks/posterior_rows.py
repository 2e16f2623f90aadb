"""A row of the comparison: what is sampled, how, and what it took."""

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from posterior_score import Score

__all__ = ["SAMPLERS", "Drawn", "Row", "Seconds", "confine", "found", "now", "plan"]

SAMPLERS = ("pyrovae", "numpyro", "numpyro-loop", "blackjax", "pyro")


@dataclass(frozen=True)
class Row:
    """What to measure. `num_data` are asked for; one that takes a datum at a time measures `num_measured` of them."""

    sampler: str
    density: str
    """"generic" or "collapsed"."""
    latent_dim: int
    num_data: int
    num_measured: int
    num_chains: int
    num_samples: int
    warmup_steps: int
    dense: bool = False
    """Mass matrix of the peers."""
    threads: str = "one"
    """"one", or "default": what the libraries choose, on all cores."""

    @property
    def name(self) -> str:
        """Unique among rows."""
        return "/".join(map(str, asdict(self).values()))


@dataclass
class Seconds:
    """Wall time, and the process's own time for warm-up and draws, which other work on the machine touches less."""

    compilation: float = 0.0
    warmup: float = 0.0
    draws: float = 0.0
    cpu_warmup: float = 0.0
    cpu_draws: float = 0.0

    def add(self, phase: str, started: tuple[float, float], ended: tuple[float, float] | None = None) -> None:
        """Adds what passed between two values of `now()`, the second by default this moment, to a phase."""
        wall, cpu = ended or now()
        setattr(self, phase, getattr(self, phase) + wall - started[0])
        if phase != "compilation":
            setattr(self, f"cpu_{phase}", getattr(self, f"cpu_{phase}") + cpu - started[1])


@dataclass(frozen=True)
class Drawn:
    """Draws `[C, T, N, D]`, gradients they took after the warm-up, for all data and chains, and times."""

    z: np.ndarray
    num_gradients: float
    seconds: Seconds


def now() -> tuple[float, float]:
    """Wall and processor time."""
    return time.perf_counter(), time.process_time()


def found(row: Row, drawn: Drawn, score: Score) -> dict[str, Any]:
    """The row with its numbers.

    min ESS: the median over data of a datum's smallest effective sample size. A rate is N * (min ESS) / seconds, N
    the data that were sampled in these seconds: effective draws a second of one posterior, if it had the sampler
    to itself for its share of the time, and the sum over data that a second gives.
    """
    seconds = drawn.seconds
    size = drawn.z.shape[2]
    ess = float(np.median(score.ess))
    total = seconds.warmup + seconds.draws
    return {
        **asdict(row),
        "ess": ess,
        "ess_mean": float(score.ess.mean()),
        "ess_by_kind": score.by_kind,
        "rate": size * ess / seconds.draws,
        "rate_total": size * ess / total,
        "rate_compiled": size * ess / (total + seconds.compilation),
        "rate_cpu": size * ess / seconds.cpu_draws,
        "rate_cpu_total": size * ess / (seconds.cpu_warmup + seconds.cpu_draws),
        "ess_per_gradient": size * ess / drawn.num_gradients,
        "gradients_per_draw": drawn.num_gradients / np.prod(drawn.z.shape[:3]),
        "gradients_per_second": drawn.num_gradients / seconds.draws,
        "rhat": score.rhat if np.isfinite(score.rhat) else None,
        "seconds": {name: round(value, 2) for name, value in asdict(seconds).items()},
    }


def confine() -> None:
    """Keeps this process on one core, where the system can: no library then has a second thread to use."""
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})


def plan(samplers: list[str], latent_dims: list[int], nums_data: list[int], everything: bool) -> list[Row]:
    """The rows of a run; `everything` adds the peers' rows for many data at all latent dimensions, an hour more."""
    rows: list[Row] = []
    for dim in latent_dims:
        for num in nums_data:
            few = num <= 16
            for density in ("generic", "collapsed"):
                where: dict[str, Any] = {"density": density, "latent_dim": dim, "num_data": num}
                if "pyrovae" in samplers:
                    sizes = (16, 500, 200) if few else (4, 300, 200)
                    rows.append(Row("pyrovae", **where, num_measured=num, **_sizes(*sizes)))
                for peer in ("numpyro", "blackjax"):
                    if peer in samplers and (few or dim == 20 or everything):
                        sizes = (4, 500, 500) if few else (1, 300, 500)
                        rows.append(Row(peer, **where, num_measured=num, **_sizes(*sizes)))
                if "pyro" in samplers and few:
                    rows.append(Row("pyro", **where, num_measured=min(2, num), **_sizes(1, 300, 300)))
            if dim == 20 and few:
                rows += _others(samplers, dim, num)
    return rows


def _others(samplers: list[str], dim: int, num: int) -> list[Row]:
    """Chains of one datum at a time, as NumPyro has them; and the threads that libraries choose by themselves."""
    where: dict[str, Any] = {"density": "generic", "latent_dim": dim, "num_data": num}
    sizes = _sizes(4, 500, 500)
    rows = []
    if "numpyro-loop" in samplers:
        rows.append(Row("numpyro-loop", **where, num_measured=min(2, num), **sizes))
    if "pyrovae" in samplers:
        rows.append(Row("pyrovae", **where, num_measured=num, **_sizes(16, 500, 200), threads="default"))
    for peer in ("numpyro", "blackjax"):
        if peer in samplers:
            rows.append(Row(peer, **where, num_measured=num, **sizes, threads="default"))
    return rows


def _sizes(num_chains: int, num_samples: int, warmup_steps: int) -> dict[str, Any]:
    return {"num_chains": num_chains, "num_samples": num_samples, "warmup_steps": warmup_steps}
