"""Gradient estimators: SNR against the particles on a toy and on digits, what they train in equal time, and speed.

Run `python benchmarks/gradient_snr.py`; `--parts toy digits training speed` measures some parts again and keeps the
others, `--parts` alone writes and draws again. It writes `benchmarks/results/gradient_snr.json`, `.md` and figures, in
about twenty minutes on one core. Times are of the processor, with one thread.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from gradient_snr_figures import draw
from gradient_snr_problems import TOY_KL, Toy, points_of_training, train_for
from gradient_snr_speed import matmul_gflops, speed_row
from gradient_snr_tables import markdown
from machine import machine

import pyrovae as pv
from pyrovae import results
from pyrovae.compiled import FallbackWarning

RESULTS = Path(__file__).parent / "results"
WANTED = {
    "OMP_NUM_THREADS": "1",
    # Large tensors are given back to the system at every free else, and page faults take a third of the time.
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # so that its time is seen
}
BOUNDS = ("iwae", "dreg")
FIT = (16, 256)
DIGITS = {"counts": (1, 4, 8, 16, 32, 64), "fit": (4, 64), "replicates": 200, "num_data": 64}
SCORES = ("elbo", "stl", "score_function", "score_function_loo", "detached")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "elbo": {},
    "analytic_kl": {},
    "stl": {},
    "score_function": {},
    "score_function_loo": {"num_particles": 8},
    "iwae": {"num_particles": 8},
    "dreg": {"num_particles": 8},
    "vimco": {"num_particles": 8},
    "miwae": {"num_particles": 8, "num_outer": 2},
    "piwae": {"num_particles": 8, "num_outer": 2},
    "ciwae": {"num_particles": 8, "beta": 0.5},
    "renyi": {"num_particles": 8, "alpha": 0.5},
    "rws": {"num_particles": 8},
    "rws_dreg": {"num_particles": 8},
}
SPEED = (("elbo", 1), ("dreg", 1), ("elbo", 8), ("iwae", 8), ("dreg", 8))


def toy(arguments: argparse.Namespace) -> dict[str, Any]:
    """SNR of the toy at both noises; more replicates where they are cheap."""
    found: dict[str, Any] = {"kl": TOY_KL, "noises": {}}
    for noise, few, many in ((0.01, 100, 300), (0.1, 80, 160)):
        problem = Toy(noise)
        plan = [
            (("elbo", "stl"), (1, 4, 16, 32, 64), few),
            (BOUNDS, (1, 4, 16, 32, 64), many),
            (BOUNDS, (128, 256), few),
        ]
        trees = [
            pv.gradient_statistics(
                problem.model, problem.guide, problem.x, estimators=names, num_particles=counts,
                num_replicates=num, reference="none", compile=False,
                options={name: {"chunk_size": 256} for name in names if name != "elbo"},
            )
            for names, counts, num in plan
        ]  # fmt: skip
        tree = _joined(trees, ("iwae", "dreg", "elbo", "stl"))
        found["noises"][str(noise)] = {"plan": plan, **_told(tree, FIT)}
    return found


def digits(arguments: argparse.Namespace) -> dict[str, Any]:
    """SNR of a VAE at three points of its training, and the estimators that need no reparameterization."""
    x = pv.data.digits(seed=0).train[: DIGITS["num_data"]]
    found: dict[str, Any] = {**DIGITS, "points": {}}
    for name, vae in points_of_training():
        tree = pv.gradient_statistics(
            vae.model, vae.guide, x, estimators=("iwae", "dreg", "elbo", "stl"), num_particles=DIGITS["counts"],
            num_replicates=DIGITS["replicates"], reference="none", compile=False,
        )  # fmt: skip
        scores = pv.gradient_statistics(
            vae.model, vae.guide, x, estimators=SCORES, num_particles=(1, 8), num_replicates=400,
            reference="none", compile=False,
        )  # fmt: skip
        found["points"][name] = {**_told(tree, DIGITS["fit"]), "scores": _rows(scores)}
    return found


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Held-out log p(x) after training for equal processor time, by annealing from the guide's moments."""
    x = pv.data.digits(seed=0).test[:128]
    rows, values = [], {}
    for seed in range(arguments.seeds):
        for name, options in OBJECTIVES.items():
            trained = train_for(arguments.seconds, name, seed, **options)
            target = pv.Target(trained.vae.model, trained.vae.guide, x)
            log_p = pv.log_evidence(target, "ais", num_temperatures=50, start="guide", seed=seed)
            elbo = pv.log_evidence(target, "elbo", num_samples=1000, seed=seed)
            values[seed, name] = log_p.value
            rows.append({
                "objective": name, "seed": seed, "options": options, "num_steps": trained.num_steps,
                "num_epochs": trained.num_epochs, "best_epoch": trained.best_epoch,
                "log_evidence": _mean(log_p.value), "elbo": _mean(elbo.value),
                "over_elbo": _mean(log_p.value - values[seed, "elbo"]),
                "monte_carlo_error": float(np.sqrt((log_p.std_error**2).sum()) / len(x)),
                "num_doubtful": int(np.count_nonzero(log_p.is_approximate)),
            })  # fmt: skip
            print(f"  {name}, seed {seed}: {rows[-1]['log_evidence'][0]:.2f}", flush=True)
    return {"seconds": arguments.seconds, "num_data": len(x), "rows": rows}


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replicates per second, with an empty compiler cache."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        return {
            "rows": [speed_row(name, count) for name, count in SPEED],
            "matmul_gflops": matmul_gflops(),
        }


def _mean(values: np.ndarray) -> tuple[float, float]:
    """With its standard error over data."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def _joined(trees: list[xr.DataTree], methods: tuple[str, ...]) -> xr.DataTree:
    """One group of several that have different methods or numbers of particles; NaN where none has a number."""
    made = [tree["gradients"].to_dataset().drop_vars(["reason", "spectrum"]) for tree in trees]
    whole = xr.merge(made, join="outer", compat="no_conflicts").sel({"method": list(methods)})
    variables = {str(name): (each.dims, each.values) for name, each in whole.data_vars.items()}
    variables["reason"] = (("method", "count"), np.full([whole.sizes["method"], whole.sizes["count"]], ""))
    attrs = {"num_data": trees[0]["gradients"].attrs["num_data"]}
    coords = {name: whole[name].values for name in ("method", "count", "part")}
    return results.build_tree({"gradients": results.group("gradients", variables, attrs, **coords)})


def _told(tree: xr.DataTree, fit: tuple[int, int]) -> dict[str, Any]:
    slopes = pv.snr_slopes(tree, min_particles=fit[0], max_particles=fit[1])
    return {"fit": fit, "rows": _rows(tree), "slopes": _records(slopes.reset_index())}


def _rows(tree: xr.DataTree) -> list[dict[str, Any]]:
    table = pv.gradient_summary(tree).reset_index()
    return _records(table[table["snr_squared"].notna() | (table["variance"] == 0)])


def _records(table: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "toy": toy,
    "digits": digits,
    "training": training,
    "speed": speed,
}


def main() -> None:
    """Measure and keep."""
    if any(
        os.environ.get(name) != value for name, value in WANTED.items()
    ):  # they are read when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WANTED})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="processor time to train with each objective"
    )
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FallbackWarning)
    RESULTS.mkdir(exist_ok=True)
    found: dict[str, Any]
    path = RESULTS / "gradient_snr.json"
    for name in arguments.parts:
        start = time.perf_counter(), time.process_time()
        part = PARTS[name](arguments)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        part |= {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}
        print(f"{name}: {cpu:.0f} s of the processor, {wall:.0f} s", flush=True)
        # Read only now: another process may have measured another part meanwhile.
        found = json.loads(path.read_text()) if path.exists() else {}
        found |= {"machine": machine(), name: part}
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    found = json.loads(path.read_text())
    path.with_suffix(".md").write_text(markdown(found))
    draw(found, RESULTS)


if __name__ == "__main__":
    main()
