"""Estimators of log p(x) by error and cost: where importance sampling wins, where annealing does, and by how much.

Run `python benchmarks/evidence.py`; `--fashion PATH` adds Fashion-MNIST, from its training images in idx format. It
writes `benchmarks/results/evidence.json`, `evidence.md` and one figure a problem, in about half an hour on two cores.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import evidence_problems as problems
import numpy as np
import torch
import xarray as xr
from machine import machine

import pyrovae as pv
from pyrovae.diagnostics.evidence import Annealing
from pyrovae.reporting.plots import plot_evidence_cost, save_figure

RESULTS = Path(__file__).parent / "results"
DRAWS = (10, 100, 1000, 10_000, 100_000)
TEMPERATURES = (10, 25, 50, 100, 200, 400)
FROM_GUIDE = ("elbo", "iwae", "jackknife", "jackknife-2", "psis", "cumulant", "cubo", "largest-weight")
FROM_POINT = ("single-shot", "single-shot-laplace", "laplace")
TOLERANCE = 0.1


def linear_table(problem: problems.Problem) -> xr.DataTree:
    """All estimators against the exact log p(x); annealing starts from the guide's moments."""
    exact = pv.sample_posterior(problem.target, "exact", num_chains=4, num_samples=500)
    return pv.evidence_table(
        problem.target,
        (*FROM_GUIDE, *FROM_POINT, "eubo", "reciprocal", "bidirectional", "exact"),
        num_samples=DRAWS,
        num_temperatures=TEMPERATURES,
        reference=exact,
        options={"bidirectional": {"start": "guide"}},
        tolerance=TOLERANCE,
    )


def trained_table(problem: problems.Problem, reference: xr.DataTree) -> xr.DataTree:
    """All estimators against the sandwich; annealing starts from Laplace's Gaussian."""
    return pv.evidence_table(
        problem.target,
        (*FROM_GUIDE, *FROM_POINT, "eubo", "reciprocal", "bidirectional"),
        num_samples=DRAWS[:4],
        num_temperatures=(10, 50, 400),
        reference=reference,
        tolerance=TOLERANCE,
    )


def sandwiches(
    target: pv.Target, reference: xr.DataTree, start: str, temperatures: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """The mean gap of annealing both ways against its gradients, reference draws not counted, up to one that closes."""
    defaults = Annealing()
    for count in temperatures:
        options = {"bidirectional": {"start": start}}
        tree = pv.evidence_table(
            target, ["bidirectional"], num_temperatures=count, reference=reference, options=options
        )
        forward = int(tree["evidence"].to_dataset().sel({"method": "ais"})["num_gradient_evaluations"])
        walk = defaults.num_chains * (1 + (count - 1) * defaults.num_steps)
        kept = tree["sandwich"].to_dataset().dropna("datum", subset=["gap"])
        gap = kept["gap"].values
        yield {
            "start": start,
            "num_temperatures": count,
            # Forward with its start and tuning, which are done once, and the same walk back.
            "num_gradient_evaluations": forward + walk,
            "gap": float(gap.mean()),
            "gap_std_error": float(gap.std(ddof=1) / gap.size**0.5),
            "num_data": gap.size,
        }
        if abs(gap.mean()) + 2 * gap.std(ddof=1) / gap.size**0.5 < TOLERANCE:
            return


def starts(problem: problems.Problem, reference: xr.DataTree) -> list[dict[str, Any]]:
    """What a gap below 0.1 nat costs from each start."""
    steps = (5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
    return [
        {"problem": problem.name, **row}
        for start in ("laplace", "guide", "prior")
        for row in sandwiches(problem.target, reference, start, steps)
    ]


def coverage(tree: xr.DataTree) -> dict[str, float]:
    """The share of data whose 95 % interval holds the truth, for every estimator that has an error bar."""
    rows = tree["evidence"].to_dataset()
    found = {}
    for label in rows["method"].values:
        row = rows.sel({"method": label})
        bias, error = row["bias"].values, row["bias_std_error"].values
        kept = np.isfinite(bias) & (error > 0)
        if kept.sum() >= 20:
            found[str(label)] = round(float((abs(bias[kept]) < 1.96 * error[kept]).mean()), 3)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, with a figure for each problem."""
    found: dict[str, Any] = {"machine": machine(), "tables": {}, "coverage": {}, "starts": []}
    for kl in (1, 6, 13, 27):
        problem = problems.linear(kl, arguments.num_linear)
        keep(found, problem, linear_table(problem), f"evidence_linear_{kl}")
        if kl == 13:
            found["starts"] += starts(problem, pv.sample_posterior(problem.target, "exact"))
    trained = [problems.nonlinear(arguments.num_data), problems.digits(arguments.num_data)]
    if arguments.fashion:
        trained.append(problems.fashion(arguments.fashion, arguments.num_data))
    for problem in trained:
        reference = pv.sample_posterior(problem.target, seed=1)
        keep(found, problem, trained_table(problem, reference), f"evidence_{problem.name.split(',')[0]}")
        found["starts"] += starts(problem, reference)
    return found


def keep(found: dict[str, Any], problem: problems.Problem, tree: xr.DataTree, name: str) -> None:
    """One problem's table, coverage and figure."""
    summary = pv.evidence_summary(tree).reset_index()
    found["tables"][problem.name] = {
        "guide_kl": problem.guide_kl,
        "rows": json.loads(summary.to_json(orient="records", double_precision=6)),
        "verdict": pv.verdict_sentences(tree),
    }
    found["coverage"][problem.name] = coverage(tree)
    save_figure(plot_evidence_cost(tree), RESULTS / f"{name}.svg")
    print(f"{problem.name}: {tree.attrs['seconds']:.0f} s", flush=True)


def markdown(found: dict[str, Any]) -> str:
    """The crossover, the cost of a sandwich by its start, and every table."""
    return "\n".join([*_crossover(found), "", *_start_rows(found), "", *_all_tables(found)]) + "\n"


def _crossover(found: dict[str, Any]) -> list[str]:
    lines = [
        "Linear-Gaussian decoder, 20 latent and 60 data dimensions. Error of the mean over data against the exact "
        "log p(x), in nats; annealing starts from the guide's moments.",
        "",
        "| KL(guide ‖ posterior) | IWAE, 1,000 draws | IWAE, 100,000 draws | "
        "annealing: gap at 100 temperatures | its gradients per datum |",
        "|---|---|---|---|---|",
    ]
    for table in found["tables"].values():
        if table["guide_kl"] is None:
            continue
        rows = {row["method"]: row for row in table["rows"]}
        lower, upper = rows["ais-100"], rows["ais-reverse-100"]
        gap = upper["value"] - lower["value"]
        gradients = lower["num_gradient_evaluations"] + upper["num_gradient_evaluations"]
        iwae = [
            f"{rows[f'iwae-{k}']['bias']:.3f} ± {rows[f'iwae-{k}']['bias_std_error']:.3f}"
            for k in DRAWS[2::2]
        ]
        lines.append(f"| {table['guide_kl']:.3g} | {iwae[0]} | {iwae[1]} | {gap:.3f} | {gradients:,} |")
    return lines


def _start_rows(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Gradient evaluations per datum for a sandwich whose mean gap is below {TOLERANCE} nat (with two standard "
        "errors), forward, backward and tuning, by the start; reference draws not counted.",
        "",
        "| problem | start | temperatures | gap | gradients per datum |",
        "|---|---|---|---|---|",
    ]
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["starts"]:
        last[row["problem"], row["start"]] = row
    for row in last.values():
        lines.append(
            f"| {row['problem']} | {row['start']} | {row['num_temperatures']} | {row['gap']:.3f} ± "
            f"{row['gap_std_error']:.3f} | {row['num_gradient_evaluations']:,} |"
        )
    return lines


def _all_tables(found: dict[str, Any]) -> Iterator[str]:
    for name, table in found["tables"].items():
        yield from (
            f"{name}:",
            "",
            "| estimator | nats | direction | bias | rms | densities | gradients | seconds | doubtful | coverage |",
            "|---|---|---|---|---|---|---|---|---|---|",
        )
        for row in table["rows"]:
            bias = "" if row["bias"] is None else f"{row['bias']:.3f} ± {row['bias_std_error']:.3f}"
            rms = "" if row["rms_error"] is None else f"{row['rms_error']:.3f}"
            covered = found["coverage"][name].get(row["method"], "")
            yield (
                f"| {row['method']} | {row['value']:.3f} | {row['direction']} | {bias} | {rms} "
                f"| {row['num_density_evaluations']} | {row['num_gradient_evaluations']} | {row['seconds']:.2g} "
                f"| {row['num_refused']} of {row['num_data']} | {covered} |"
            )
        yield ""


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion", help="training images of Fashion-MNIST, idx format, gzip allowed")
    parser.add_argument("--num-linear", type=int, default=50, help="data of the linear problems")
    parser.add_argument("--num-data", type=int, default=64, help="data of the trained models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    start = time.perf_counter()
    found = measure(arguments)
    found["seconds"] = round(time.perf_counter() - start, 1)
    (RESULTS / "evidence.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "evidence.md").write_text(markdown(found))
    print(f"{found['seconds']:.0f} seconds")


if __name__ == "__main__":
    main()
