"""The tables of the benchmark of gradient estimators, as Markdown."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

__all__ = ["THEORY", "markdown"]

THEORY = {
    ("encoder", "iwae"): -0.5,
    ("encoder", "dreg"): 0.5,
    ("encoder", "elbo"): 0.5,
    ("decoder", "iwae"): 0.5,
    ("decoder", "dreg"): 0.5,
    ("decoder", "elbo"): 0.5,
}
"""Slopes of log SNR in log K for K to infinity: Rainforth et al. 2018, Tucker et al. 2019."""

_ROUTES = ("naive", "vmap", "vmap+traced", "vmap+compiled")

Found = dict[str, Any]


def markdown(found: Found) -> str:
    """Every part that was measured."""
    parts = {"toy": _toy, "digits": _digits, "training": _training, "speed": _speed}
    where = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = ["# Gradient estimators", "", f"Measured on: {where}.", ""]
    for name, tell in parts.items():
        if name in found:
            own = found[name]
            lines += [*tell(own), f"Took {own['cpu_seconds']:.0f} s of the processor.", ""]
    return "\n".join(lines)


def _toy(found: Found) -> Iterator[str]:
    yield from (
        "## The toy of Rainforth et al. (2018)",
        "",
        "z ~ N(mu, I), x | z ~ N(z, I), 20 dimensions, 1024 data in one gradient, guide N(A x + b, 2/3 I): KL(guide ‖ "
        f"posterior) = {found['kl']:.3f} nats at the optimum. The parameters are the optimum and noise.",
        "",
    )
    for noise, own in found["noises"].items():
        yield from (f"### Noise {noise}", "", *_slopes(own), *_local(own), *_snr(own))


def _digits(found: Found) -> Iterator[str]:
    yield from (
        "## A VAE of digits, 64-256-8, along its training",
        "",
        f"{found['num_data']} training images in one gradient, {found['replicates']} replicates.",
        "",
    )
    for name, own in found["points"].items():
        yield from (f"### {name.capitalize()}", "", *_slopes(own), *_snr(own), *_scores(own["scores"]))


def _slopes(found: Found) -> Iterator[str]:
    """The fitted laws."""
    low, high = found["fit"]
    yield from (
        f"Slope of log SNR in log K, fitted over K = {low} to {high}, without the points whose 95 % interval of SNR² "
        "includes 0:",
        "",
        "| part | estimator | slope | 95 % interval | points | left out | theory, K to infinity | in the interval |",
        "|---|---|---|---|---|---|---|---|",
    )
    for row in found["slopes"]:
        theory = THEORY.get((row["part"], row["method"]))
        law = "" if theory is None else f"{theory:+.1f}"
        fit, is_in = ("", ""), ""
        if row["slope"] is not None:
            fit = (f"{row['slope']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}")
            is_in = "" if theory is None else ("yes" if row["low"] <= theory <= row["high"] else "no")
        yield (
            f"| {row['part']} | {row['method']} | {fit[0]} | {fit[1]} | {row['num_points']} | {row['num_left_out']} | "
            f"{law} | {is_in} |"
        )
    yield ""


def _local(found: Found) -> Iterator[str]:
    """How near the law is: slopes between neighbours, of the SNR and of its two parts."""
    low, high = found["fit"]
    counts = sorted({row["count"] for row in found["rows"] if low <= row["count"] <= high})
    pairs = list(pairwise(counts))
    yield from (
        "Slopes between neighbouring K: of log SNR ± one standard error, below it of log |mean| and of log variance "
        "(decoder, in theory: 0 and -1; encoder: -1 and -1 for iwae, -1 and -3 for dreg):",
        "",
        f"| part | estimator | of | {' | '.join(f'{a} to {b}' for a, b in pairs)} |",
        f"|---|---|---|{'---|' * len(pairs)}",
    )
    cells: dict[tuple[str, str], dict[int, Found]] = {}
    for row in found["rows"]:
        if row["method"] in ("iwae", "dreg"):
            cells.setdefault((row["part"], row["method"]), {})[row["count"]] = row
    for (part, method), own in cells.items():
        steps = [_step(own[a], own[b]) for a, b in pairs]
        for place, name in enumerate(("SNR", "mean", "variance")):
            yield f"| {part} | {method} | {name} | {' | '.join(step[place] for step in steps)} |"
    yield ""


def _step(first: Found, second: Found) -> tuple[str, str, str]:
    """The slopes from one K to the next; none where an SNR cannot be told from 0."""
    if not (first["snr_low"] and second["snr_low"]):
        return "", "", ""
    step = math.log(second["count"] / first["count"])
    snr = math.log(second["snr"] / first["snr"]) / step
    error = math.hypot(*(row["snr_std_error"] / row["snr"] for row in (first, second))) / step
    variance = math.log(second["variance"] / first["variance"]) / step
    return f"{snr:+.2f} ± {error:.2f}", f"{snr + variance / 2:+.2f}", f"{variance:+.2f}"


def _snr(found: Found) -> Iterator[str]:
    """SNR against K."""
    counts = sorted({row["count"] for row in found["rows"]})
    yield from (
        "SNR of one gradient ± one standard error; < where it cannot be told from 0:",
        "",
        f"| part | estimator | {' | '.join(f'K = {k}' for k in counts)} |",
        f"|---|---|{'---|' * len(counts)}",
    )
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in found["rows"]:
        cells.setdefault((row["part"], row["method"]), {})[row["count"]] = _snr_cell(row)
    for (part, method), own in cells.items():
        yield f"| {part} | {method} | {' | '.join(own.get(k, '') for k in counts)} |"
    yield ""


def _snr_cell(row: Found) -> str:
    if row["snr_squared"] is None:
        return "none"
    if not row["snr_low"]:
        return f"< {row['snr_high']:.2g}"
    return f"{row['snr']:.3g} ± {row['snr_std_error']:.1g}"


def _scores(rows: list[Found]) -> Iterator[str]:
    """What it is to do without reparameterization."""
    yield from (
        "Encoder, without reparameterization (score functions; `detached` has none at all):",
        "",
        "| estimator | K | variance | over that of elbo | SNR | seconds | particles for SNR 1 |",
        "|---|---|---|---|---|---|---|",
    )
    own = [row for row in rows if row["part"] == "encoder"]
    base = {row["count"]: row["variance"] for row in own if row["method"] == "elbo"}
    for row in sorted(own, key=lambda row: row["count"]):
        is_sure = row["variance"] > 0 and row["snr_low"] > 0
        snr = _snr_cell(row) if row["variance"] > 0 else "gradient exactly 0"
        wanted = f"{row['particles_for_snr_1']:.3g}" if is_sure else ""
        over = f"{row['variance'] / base[row['count']]:.3g}"
        yield (
            f"| {row['method']} | {row['count']} | {row['variance']:.3g} | {over} | {snr} | {row['seconds']:.2g} | "
            f"{wanted} |"
        )
    yield ""


def _training(found: Found) -> Iterator[str]:
    yield from (
        "## What is trained in equal time",
        "",
        f"The same VAE of digits, {found['seconds']:g} seconds of the processor with each objective, tracing and "
        "validation included; the parameters are the best by the objective's own validation bound. log p(x) of "
        f"{found['num_data']} held-out digits by annealing from the guide's moments (50 temperatures), a lower bound "
        "in expectation. ± is one standard error over data; that of the difference is of the paired differences, and "
        "knows nothing of the spread between seeds.",
        "",
        "| objective | K | seed | log p(x) | minus that of elbo | ELBO of its guide | steps | best epoch | doubtful |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    names = list(dict.fromkeys(row["objective"] for row in found["rows"]))
    for row in sorted(found["rows"], key=lambda row: names.index(row["objective"])):
        over = "" if row["objective"] == "elbo" else _pm(row["over_elbo"])
        yield (
            f"| {row['objective']} | {row['options'].get('num_particles', 1)} | {row['seed']} | "
            f"{_pm(row['log_evidence'])} | {over} | {_pm(row['elbo'])} | {row['num_steps']:,} | "
            f"{row['best_epoch']} of {row['num_epochs']} | {row['num_doubtful']} of {found['num_data']} |"
        )
    yield ""


def _pm(pair: list[float]) -> str:
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"


def _speed(found: Found) -> Iterator[str]:
    yield from (
        "## Speed",
        "",
        "Replicates of the gradient of a 64-256-8 VAE per second of the processor, batch 64, one thread; times that of "
        "the naive loop in brackets. The naive loop takes the loss and `backward()`, and adds nothing up; the "
        "laboratory's routes also add up all moments. Compiling, once for an estimator and K, is time of the processor "
        f"too, compilers included. Matrix products: {found['matmul_gflops']:.0f} GFLOP/s.",
        "",
        "| estimator | K | naive loop | vmap | traced | compiled | s to trace | s to compile |",
        "|---|---|---|---|---|---|---|---|",
    )
    for row in found["rows"]:
        rate, ratio, ready = row["per_second"], row["ratio"], row["seconds_to_make"]
        cells = [f"{rate[route]:,.0f} ({ratio[route]:.1f})" for route in _ROUTES[1:]]
        yield (
            f"| {row['estimator']} | {row['num_particles']} | {rate['naive']:,.0f} | {' | '.join(cells)} | "
            f"{ready['vmap+traced']:.1f} | {ready['vmap+compiled']:.1f} |"
        )
    yield ""
