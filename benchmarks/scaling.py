"""What training and an audit cost against data, latent and data dimension, chains and processes, with slopes.

Run `python benchmarks/scaling.py`: about ten minutes on two idle cores. It writes `benchmarks/results/scaling.json` and
`.md`; the latter carries the measured costs to 10^8 data on a cluster. Every point is a new process with one thread, on
an untrained VAE and data that it draws; those of two processes are started by torchrun. With `--kinds` only some kinds
are measured, and the others keep what `scaling.json` has of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
from machine import machine, matmul_rate
from scaling_page import page
from scaling_serial import serial

RESULTS = Path(__file__).parent / "results"
HIDDEN, BLOCK, BATCH = 400, 32, 64
TRAIN = {"num_data": 16_384, "latent_dim": 16, "data_dim": 784, "processes": 1}
AUDIT = {"num_data": 32, "latent_dim": 16, "data_dim": 784, "num_chains": 8, "processes": 1}
SWEEPS: dict[str, tuple[dict[str, int], dict[str, tuple[int, ...]]]] = {
    "train": (
        TRAIN,
        {
            "num_data": (4096, 16_384, 65_536),
            "latent_dim": (4, 16, 64),
            "data_dim": (196, 784, 3136),
            "processes": (1, 2),
        },
    ),
    "audit": (
        AUDIT,
        {
            "num_data": (32, 64, 128),
            "latent_dim": (4, 16, 32),
            "data_dim": (196, 784, 3136),
            "num_chains": (4, 8, 16),
            "processes": (1, 2),
        },
    ),
}


def measure(kinds: list[str]) -> list[dict[str, Any]]:
    """One row a point of every sweep; the centre is measured once."""
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        centre, axes = SWEEPS[kind]
        seen: dict[str, dict[str, Any]] = {}
        for axis, values in axes.items():
            for value in values:
                point = {**centre, axis: value}
                key = json.dumps(point)
                seen[key] = seen.get(key) or _run(kind, point)
                rows.append({"kind": kind, "axis": axis, **point, **seen[key]})
                print(kind, axis, value, seen[key], flush=True)
    return rows


def _run(kind: str, point: dict[str, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "point.json"
        own = [__file__, "--point", json.dumps([kind, point]), "--out", str(out)]
        processes = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={point['processes']}"]
        command = [sys.executable, *(processes if point["processes"] > 1 else []), *own]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def work(kind: str, point: dict[str, int], folder: Path) -> dict[str, Any]:
    """Measure a point in this process."""
    import torch

    import pyrovae as pv

    torch.set_num_threads(1)
    if kind == "serial":
        return serial(folder)
    sizes = point["data_dim"], point["latent_dim"]
    vae = pv.build_vae(*sizes, hidden=(HIDDEN,), noise="fixed", scale=0.5, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        z = torch.randn(point["num_data"], point["latent_dim"])
        x = torch.cat([vae.decoder(some).sample() for some in z.split(1024)])
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: what was loaded and drawn does not count
    found = _train(vae, x) if kind == "train" else _audit(vae, x, point, folder)
    num_weights = sum(p.numel() for p in vae.parameters())
    return {**found, "mib": _memory("VmHWM") - before, "num_weights": num_weights}


def _train(vae: Any, x: Any) -> dict[str, Any]:
    """Microseconds a datum in an epoch after the first, whose time holds the compilation."""
    import pyrovae as pv
    from pyrovae.training.distributed import process_group

    with process_group("cpu"):
        history = pv.fit(vae.model, vae.guide, x, max_epochs=3, batch_size=BATCH, compile=True).history
    return {"us_per_datum": 1e6 * float(history["seconds"][1:].min()) / len(x)}


def _audit(vae: Any, x: Any, point: dict[str, int], folder: Path) -> dict[str, Any]:
    """Milliseconds a datum by stages, and the bytes that its results take."""
    from functools import partial

    import pyrovae as pv
    from pyrovae.diagnostics.audit import plan_audit
    from pyrovae.diagnostics.audit.shards import audit_shard
    from pyrovae.results import read

    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    plan = plan_audit(
        partial(pv.Target, vae.model, vae.guide),
        x,
        block_size=min(BLOCK, len(x) // size),
        stages=("weights", "terms", "reference", "comparison", "sandwich", "gaps"),
        reference={
            "num_chains": point["num_chains"],
            "num_samples": 250,
            "warmup_steps": 200,
            "min_ess": 100,
        },
        sandwich={"num_temperatures": 50},
    )
    start = time.perf_counter()
    audit_shard(plan, folder / "blocks", shard=(rank, size), source={})
    seconds = time.perf_counter() - start
    files = sorted((folder / "blocks").glob("block*"))
    stages: dict[str, float] = {}
    for file in files if rank == 0 else ():
        for name, value in json.loads(read(file).attrs["stage_seconds"]).items():
            stages[name] = stages.get(name, 0.0) + 1e3 * value / len(x)
    return {
        "ms_per_datum": 1e3 * seconds / len(x),
        "stages": stages,
        "bytes_per_datum": sum(file.stat().st_size for file in files) / len(x),
    }


def _memory(name: str) -> float:
    """VmRSS, the resident memory, or VmHWM, its largest since it was last reset, in MiB; of Linux."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition(f"{name}:")[2].split()[0]) / (1 << 10)


def slope(rows: list[dict[str, Any]], axis: str, key: str) -> float:
    """d log(key) / d log(axis) by least squares."""
    x, y = (np.log([row[name] for row in rows]) for name in (axis, key))
    return float(np.polyfit(x, y, 1)[0])


def markdown(results: dict[str, Any]) -> str:
    """A table for training, one for the audit, one of its stages, and the page of 10^8 data."""
    lines = ["# What training and an audit cost", "", f"{results['machine']}", ""]
    lines += [f"Matrix products: {results['matmul_gflops']:.0f} GFLOP/s on one thread.", ""]
    for kind, key, name in (("train", "us_per_datum", "µs a datum"), ("audit", "ms_per_datum", "ms a datum")):
        centre, axes = SWEEPS[kind]
        at = ", ".join(f"{value:,} {axis}" for axis, value in centre.items())
        lines += [
            f"## {kind}, about {at}",
            "",
            f"| against | values | {name} | slope | MiB | slope |",
            "|---|---|---|---|---|---|",
        ]
        for axis in axes:
            rows = [row for row in results["rows"] if (row["kind"], row["axis"]) == (kind, axis)]
            cells = [", ".join(f"{row[axis]:,}" for row in rows)]
            for each in (key, "mib"):
                cells += [", ".join(f"{row[each]:.3g}" for row in rows), f"{slope(rows, axis, each):.2f}"]
            lines.append(f"| {axis} | {' | '.join(cells)} |")
        lines.append("")
    centre = next(row for row in results["rows"] if row["kind"] == "audit" and row["axis"] == "num_data")
    lines += ["| stage of the audit | ms a datum |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in centre["stages"].items()]
    return "\n".join([*lines, "", *page(results), ""])


def main() -> None:
    """Measure and write, or measure one point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = [*SWEEPS, "serial"]
    parser.add_argument("--kinds", nargs="*", default=kinds, choices=kinds)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        found = work(*args.point, args.out.parent)
        if os.environ.get("RANK", "0") == "0":
            args.out.write_text(json.dumps(found))
        return
    path = RESULTS / "scaling.json"
    results = json.loads(path.read_text()) if set(args.kinds) < set(kinds) else {"rows": []}
    if sweeps := [kind for kind in SWEEPS if kind in args.kinds]:
        kept = [row for row in results["rows"] if row["kind"] not in sweeps]
        rate = matmul_rate() / 1e9
        results |= {"machine": machine(), "matmul_gflops": rate, "rows": [*measure(sweeps), *kept]}
    if "serial" in args.kinds:
        results["serial"] = {"machine": machine(), **_run("serial", {"processes": 1})}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
