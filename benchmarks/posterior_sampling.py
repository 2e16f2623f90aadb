"""Reference posteriors: pyrovae against NUTS of Pyro, NumPyro and BlackJAX, by effective draws per second of a datum.

Install `pip install -e '.[bench]'`, run `python benchmarks/posterior_sampling.py --data IMAGES`, IMAGES the training
images of Fashion-MNIST in idx format (Debian's package dataset-fashion-mnist has them); without it, digits. It writes
`benchmarks/results/posterior_sampling.json`, `.md` and `.svg`, in about 25 minutes on one core, of which each peer
takes up to 8. `--latent-dims`, `--num-data` and `--samplers` choose rows; rows measured before stay in the tables.

One trained decoder, z -> 400 relu -> 784 pixels, for all. The figure of merit of a datum is its smallest effective
sample size over coordinates, of the bulk of z, z^2 and (z - mean)^2 and of the tail of z, by ArviZ; "min ESS" is its
median over the first 16 data, and a rate is N (min ESS) / seconds, the wall time of all N data. Everything has one
core and one thread but the rows that say otherwise. Peers are run under vmap over data and chains, which was faster
than one datum at a time by an order, from draws of the guide, with diagonal mass (dense mass: `TRIED`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
from machine import machine, matmul_rate
from posterior_problem import DATA_DIM, HIDDEN, load_problem
from posterior_rows import SAMPLERS, Row, confine, found, plan
from posterior_scaling import scaling, slopes
from posterior_score import largest_z, score
from posterior_tables import figure, markdown, ratios

RESULTS = Path(__file__).parent / "results"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}
PACKAGES = ("torch", "pyro-ppl", "pyrovae", "arviz-stats", "numpyro", "blackjax", "jax")
ROWS_OF_DEVICE = (1000, 10_000, 100_000)
TRIED = {
    "unit": "20 latent dimensions, 16 data, collapsed density: min ESS per second of processor time after the warm-up, "
    "and with it",
    "numpyro": "4 chains, diagonal mass, 500 warm-up steps: 4684, 1614; dense mass 4091, 1175; 16 chains 3926, 1484; "
    "1000 warm-up steps 4524, 1116. A datum at a time, by MCMC with vectorized chains: a row of its own",
    "blackjax": "4 chains, diagonal mass, 500 warm-up steps: 5026, 1715; dense mass 4215, 1216; 16 chains 3954, 1564",
    "pyro": "full_mass=True and jit_compile=True changed the rate of the potential by less than 15 %",
}


def run_rows(rows: list[Row], data: str, work: Path) -> list[dict[str, Any]]:
    """One new process for each sampler and choice of threads; a row that fails stops the benchmark."""
    for sampler, threads in sorted({(row.sampler, row.threads) for row in rows}):
        some = [asdict(row) for row in rows if (row.sampler, row.threads) == (sampler, threads)]
        (work / "rows.json").write_text(json.dumps(some))
        command = [sys.executable, __file__, "--worker", "--data", data, "--work", str(work)]
        subprocess.run(command, env=_environment(threads), check=True)
    return [json.loads(_result_path(row, work).read_text()) for row in rows]


def _environment(threads: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    all_cores = {"OMP_NUM_THREADS": str(os.cpu_count()), "JAX_PLATFORMS": "cpu"}
    return {**kept, **(ONE_THREAD if threads == "one" else all_cores)}


def _result_path(row: Row, work: Path) -> Path:
    return work / f"{row.name.replace('/', '-')}.json"


def work_on(data: str, work: Path) -> None:
    """The rows that `rows.json` names, in this process."""
    import posterior_ours

    for settings in json.loads((work / "rows.json").read_text()):
        row = Row(**settings)
        if row.threads == "one":
            confine()
        problem = load_problem(data, row.latent_dim, work)
        if row.sampler == "pyrovae":
            drawn = posterior_ours.sample(problem, row)
        else:
            import posterior_peers

            drawn = posterior_peers.SAMPLERS[row.sampler](problem, row)
        worth = score(drawn.z)
        result = found(row, drawn, worth)
        np.savez(_result_path(row, work).with_suffix(".npz"), mean=worth.mean, mcse=worth.mcse)
        _result_path(row, work).write_text(json.dumps(result))
        print(row.name, " ".join(f"{key}={result[key]:.4g}" for key in SHOWN), result["seconds"], flush=True)


SHOWN = ("rate", "rate_total", "rate_cpu", "ess_per_gradient", "gradients_per_draw")


def compare(rows: list[Row], results: list[dict[str, Any]], work: Path) -> None:
    """Adds the largest |z| between a row's posterior means and pyrovae's with the other density, for 16 data."""
    for row, result in zip(rows, results, strict=True):
        density = "generic" if (row.sampler, row.density) == ("pyrovae", "collapsed") else "collapsed"
        others = plan(["pyrovae"], [row.latent_dim], [16], False)
        other = next(o for o in others if (o.density, o.threads) == (density, "one"))
        paths = [_result_path(each, work).with_suffix(".npz") for each in (row, other)]
        if other != row and all(path.exists() for path in paths):
            a, b = (np.load(path) for path in paths)
            result["largest_z"] = largest_z(a["mean"], a["mcse"], b["mean"], b["mcse"])


def add_shares(results: list[dict[str, Any]], rate: float) -> None:
    """The share of the matrix-product rate that gradients of the generic density reach.

    A gradient in z takes two products a layer, one forward and one backward: 4 (D H + H X) operations a row. The
    gradient in the weights, a third, is not taken.
    """
    for result in results:
        if result["density"] == "generic" and result["threads"] == "one":
            flops = 4 * (result["latent_dim"] * HIDDEN + HIDDEN * DATA_DIM)
            result["share_of_matmul"] = result["gradients_per_second"] * flops / rate


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New rows in place of old ones with the same settings, in the order of the table."""
    keys = [*Row.__dataclass_fields__]
    rows = {tuple(row[key] for key in keys): row for row in [*old, *new]}
    order = (*SAMPLERS,)
    return sorted(
        rows.values(),
        key=lambda r: (
            r["latent_dim"],
            r["num_data"],
            r["threads"] != "one",
            r["density"],
            order.index(r["sampler"]),
            r["dense"],
        ),
    )


def throughputs(data: str, device: str, work: Path) -> list[dict[str, Any]]:
    """Draws per second of 20 latent dimensions for 10^3 to 10^5 rows; on a CPU without the last, which takes long."""
    from posterior_ours import throughput

    problem = load_problem(data, 20, work)
    counts = ROWS_OF_DEVICE if device != "cpu" else ROWS_OF_DEVICE[:2]
    return [
        throughput(problem, density, device, count)
        for density in ("collapsed", "generic")
        for count in counts
    ]


def write(path: Path, results: dict[str, Any]) -> None:
    """JSON, tables and figure."""
    from pyrovae.reporting.plots import save_figure

    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    if results["rows"]:
        save_figure(
            figure(results["rows"], min(row["num_data"] for row in results["rows"])), path.with_suffix(".svg")
        )


def main() -> None:
    """Measure what was asked for, and write it beside what was measured before."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.worker:
        work_on(args.data, args.work)
        return
    suffix = "" if args.device == "cpu" else f"_{args.device.replace(':', '')}"
    path = RESULTS / f"posterior_sampling{suffix}.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": []}
    problems = {dim: load_problem(args.data, dim, args.work) for dim in args.latent_dims}
    results["machine"] = {**machine(PACKAGES), "device": _device_name(args.device)}
    results |= {"data": problems[args.latent_dims[0]].source, "tried": TRIED}
    new: list[dict[str, Any]] = []
    if "rows" in args.parts and args.device == "cpu":
        rows = plan(args.samplers, args.latent_dims, args.num_data, args.everything)
        new = run_rows(rows, args.data, args.work)
        compare(rows, new, args.work)
    confine()  # not before: processes inherit it, and some rows have all cores
    rate = matmul_rate()
    results["matmul_gflops"] = rate / 1e9
    add_shares(new, rate)
    results["rows"] = merged(results["rows"], new)
    results["ratios"] = ratios(results["rows"])
    if "scaling" in args.parts and args.device == "cpu":
        results["scaling"] = slopes(scaling(_environment("one")))
    if "throughput" in args.parts:
        devices = ["cpu"] if args.device == "cpu" else ["cpu", args.device]
        results["throughput"] = [r for device in devices for r in throughputs(args.data, device, args.work)]
    write(path, results)
    print(path.with_suffix(".md").read_text())


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu, one core"
    import torch

    return str(torch.cuda.get_device_name(device))


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="digits, or an idx file of 28 x 28 images")
    parser.add_argument("--latent-dims", type=numbers, default=[8, 20, 50])
    parser.add_argument("--num-data", type=numbers, default=[16, 256])
    parser.add_argument("--samplers", type=lambda text: text.split(","), default=list(SAMPLERS))
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=["rows", "scaling", "throughput"]
    )
    parser.add_argument(
        "--everything", action="store_true", help="peers with 256 data at all latent dimensions"
    )
    parser.add_argument(
        "--device", default="cpu", help="cuda: draws per second on it, and on the CPU beside it"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pyrovae-posteriors")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
