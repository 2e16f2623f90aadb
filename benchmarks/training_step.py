"""Training: pyrovae's `fit` against Pyro's SVI, hand-written PyTorch, NumPyro and pythae, by steps per second.

Run `python benchmarks/training_step.py --fashion IMAGES`, IMAGES the training images of Fashion-MNIST in idx format
(Debian's package dataset-fashion-mnist has them). NumPyro wants `pip install -e '.[bench]'`; pythae may live in an
environment of its own: `--pythae PYTHON`. It writes `benchmarks/results/training_step.json` and `.md`. Everyone has
one core and one thread, the same start weights, batches of the same sizes, Adam, and a process of its own.

The time to a held-out ELBO includes tracing and compiling, with an empty cache, and leaves out the measuring of the
ELBO. The ELBO to reach is the one that Pyro's SVI has after `--epochs` epochs, less a tenth of a nat; for one
that needs more than twice as many epochs, it says so. A rate of steps is that of the median epoch after the first two.
`--quick` shows in a few minutes that everything runs; its numbers mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
from machine import machine, matmul_rate

RESULTS = Path(__file__).parent / "results"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "TQDM_DISABLE": "1",
}
PACKAGES = ("torch", "pyro-ppl", "pyrovae", "numpyro", "jax", "pythae")
SIZES = {"784-400-20": (784, 400, 20), "64-256-8": (64, 256, 8)}
BATCHES = (64, 256, 1024)
NUM_DATA, NUM_ALL = 51_200, 60_000
SLACK = 0.1
"""Nats by which the ELBO to reach lies below that of Pyro's SVI: the noise of two trainings."""


@dataclass(frozen=True)
class Row:
    """What one process measures. `target`: a held-out ELBO, None where it is not asked for or is this row's own."""

    trainer: str
    problem: str
    batch_size: int
    num_data: int
    epochs: int
    target: float | None = None
    sets_target: bool = False


def work(row: Row, path: Path, source: str) -> dict[str, Any]:
    """Train as the row says, in this process, and give its numbers."""
    from posterior_rows import confine, now
    from training_peers import TRAINERS
    from training_problem import held_out_elbo, take

    confine()
    problem = take(path, SIZES[row.problem], source)
    times: list[tuple[float, float]] = []
    elbos: list[float] = []
    mark = now()

    def tell(weights: Any) -> bool:
        nonlocal mark
        ended = now()
        times.append((ended[0] - mark[0], ended[1] - mark[1]))
        found = weights()
        elbos.append(held_out_elbo(problem, found) if found else float("nan"))
        is_there = row.target is None or not found or elbos[-1] >= row.target
        mark = now()
        return len(times) >= row.epochs and is_there

    TRAINERS[row.trainer](problem, row.batch_size, row.epochs * (1 if row.target is None else 2), tell)
    here = machine(PACKAGES)
    versions = {name: here[name] for name in PACKAGES if here[name] != "absent"}
    return {**asdict(row), "source": source, "versions": versions, **_found(row, times, elbos)}


def _found(row: Row, times: list[tuple[float, float]], elbos: list[float]) -> dict[str, Any]:
    wall, cpu = np.array(times).T
    later = slice(min(2, len(times) - 1), None)
    num_steps = -(-row.num_data // row.batch_size)
    target = elbos[-1] - SLACK if row.sets_target and not np.isnan(elbos[-1]) else row.target
    reached = [i for i, elbo in enumerate(elbos) if target is not None and elbo >= target]
    end = reached[0] + 1 if reached else None
    return {
        "target": target,
        "steps_per_second": num_steps / float(np.median(wall[later])),
        "steps_per_cpu_second": num_steps / float(np.median(cpu[later])),
        "first_epoch_seconds": float(wall[0]),
        "seconds_to_target": float(wall[:end].sum()) if end else None,
        "cpu_seconds_to_target": float(cpu[:end].sum()) if end else None,
        "peak_mib": _peak_mib(),
        "elbos": [None if np.isnan(elbo) else round(elbo, 3) for elbo in elbos],
    }


def _peak_mib() -> float:
    # Not resource.getrusage, whose number begins with that of the parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def run(row: Row, problem: tuple[Path, str], pythae: str) -> dict[str, Any]:
    """The row in a new process, with an empty compiler cache; why there is no number if it fails."""
    python = pythae if row.trainer == "pythae's trainer" else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [
            python,
            __file__,
            "--worker",
            json.dumps([asdict(row), *map(str, problem)]),
            "--out",
            str(out),
        ]
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        done = subprocess.run(
            command, env={**os.environ, **ONE_THREAD, **own}, capture_output=True, text=True
        )
        if done.returncode:
            missing = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(row.trainer, row.problem, row.batch_size, "failed:", missing, flush=True)
            return {**asdict(row), "missing": missing}
        result: dict[str, Any] = json.loads(out.read_text())
    shown = {key: round(result[key], 2) for key in ("steps_per_second", "steps_per_cpu_second", "peak_mib")}
    print(row.trainer, row.problem, row.batch_size, shown, result["seconds_to_target"], flush=True)
    return result


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All rows: those that race to an ELBO, for each problem and batch, then one epoch of all images."""
    from training_peers import TRAINERS

    trainers = args.trainers or list(TRAINERS)
    num_data = 2048 if args.quick else NUM_DATA
    results = []
    for name in args.problems:
        problem = _written(folder, args.fashion, name, num_data)
        for size in args.batches:
            target = None
            for trainer in trainers:
                row = Row(trainer, name, size, num_data, args.epochs, target, trainer == trainers[0])
                results.append(run(row, problem, args.pythae))
                target = results[-1].get("target") if row.sets_target else target
    if not args.quick and args.fashion:
        problem = _written(folder, args.fashion, "784-400-20", NUM_ALL)
        rows = [Row(trainer, "784-400-20", 64, NUM_ALL, 1) for trainer in trainers]
        results += [run(row, problem, args.pythae) for row in rows]
    return results


def _written(folder: Path, fashion: str | None, name: str, num_data: int) -> tuple[Path, str]:
    from training_problem import keep, load_problem

    path = folder / f"{name}-{num_data}.npz"
    problem = load_problem(fashion, SIZES[name], num_data)
    keep(problem, path)
    return path, problem.source


def markdown(results: dict[str, Any]) -> str:
    """One table for each problem and batch."""
    lines = ["# Training steps per second", "", f"{results['machine']}", ""]
    lines += [f"Matrix products: {results['matmul_gflops']:.0f} GFLOP/s. Data: {results['source']}.", ""]
    for key in dict.fromkeys((r["problem"], r["batch_size"], r["num_data"]) for r in results["rows"]):
        rows = [r for r in results["rows"] if (r["problem"], r["batch_size"], r["num_data"]) == key]
        lines += [f"## {key[0]}, batches of {key[1]}, {key[2]} data", ""]
        lines += [
            "| trainer | steps/s | steps per CPU second | images/s | first epoch, s | s to the ELBO | peak MiB |",
            "|---|---|---|---|---|---|---|",
            *(_line(row) for row in rows),
            "",
        ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"| {row['trainer']} | missing: {row['missing']} | | | | | |"
    reached = row["seconds_to_target"]
    missed = "of another model" if set(row["elbos"]) == {None} else "not reached"
    to_elbo = "" if row["target"] is None else missed if reached is None else f"{reached:.1f}"
    images = row["num_data"] / row["first_epoch_seconds"] if row["epochs"] == 1 else None
    images = images or row["steps_per_second"] * row["batch_size"]
    return (
        f"| {row['trainer']} | {row['steps_per_second']:.0f} | {row['steps_per_cpu_second']:.0f} | {images:.0f} | "
        f"{row['first_epoch_seconds']:.1f} | {to_elbo} | {row['peak_mib']:.0f} |"
    )


def main() -> None:
    """Measure what was asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion", help="Fashion-MNIST's training images, idx; without: noise.")
    parser.add_argument("--problems", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--trainers", nargs="*", help="By name; default: all.")
    parser.add_argument("--epochs", type=int, default=5, help="Of Pyro's SVI, whose ELBO the others race to.")
    parser.add_argument("--pythae", default=sys.executable, help="A Python that has pythae.")
    parser.add_argument("--quick", action="store_true", help="2048 data: a smoke test, which writes nothing.")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        row, path, source = args.worker
        args.out.write_text(json.dumps(work(Row(**row), Path(path), source)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    source = next((row["source"] for row in rows if "source" in row), "")
    results = {
        "machine": machine(PACKAGES) | {k: v for row in rows for k, v in row.pop("versions", {}).items()},
        "matmul_gflops": matmul_rate() / 1e9,
        "source": source,
        "rows": rows,
    }
    if args.quick:
        print(markdown(results))
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "training_step.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
