"""Where the ELBO loses, after Cremer, Li and Duvenaud (2018): family or amortization, by the encoder and its width.

Run `python benchmarks/inference_gaps.py`; `--fashion PATH` adds Fashion-MNIST, from its training images in idx format.
It writes `benchmarks/results/inference_gaps.json`, `inference_gaps.md` and `inference_gaps.svg`, in three quarters
of an hour on one core of a busy machine.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import xarray as xr
from inference_gaps_figure import plot_encoders
from machine import machine

import pyrovae as pv
from pyrovae.data import Split
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.reporting.figures import save_figure
from pyrovae.results.inference_gaps import inference_gap_rows, inference_gap_sentences

RESULTS = Path(__file__).parent / "results"
ENCODERS = {
    "diagonal": lambda net, dim: pv.encoders.DiagonalGaussian(net(pv.encoders.DiagonalGaussian.width(dim))),
    "full": lambda net, dim: pv.encoders.FullGaussian(net(pv.encoders.FullGaussian.width(dim))),
    "flow": lambda net, dim: pv.encoders.FlowGaussian(net(pv.encoders.FlowGaussian.width(dim)), dim),
}


class Problem(NamedTuple):
    """Data, and what is trained on them; the decoder is the same for all encoders."""

    name: str
    split: Split
    latent_dim: int
    decoder_width: int
    encoders: tuple[str, ...]
    encoder_widths: tuple[int, int]
    fit: dict[str, int]


def digits() -> Problem:
    """Digits of 8 by 8, of which 1437 to train on."""
    return Problem("digits", pv.data.digits(seed=0), 8, 256, tuple(ENCODERS), (16, 512), {"max_epochs": 120})


def fashion(path: str) -> Problem:
    """Fashion-MNIST, 54,000 images of 28 by 28 to train on."""
    split = pv.data.load(
        f"idx:{path}", scale="unit", dequantize=True, val_fraction=0.05, test_fraction=0.05, seed=0
    )
    options = {"max_epochs": 5, "batch_size": 256}
    return Problem("Fashion-MNIST", split, 20, 400, ("diagonal", "flow"), (50, 800), options)


def trained(problem: Problem, family: str, width: int) -> pv.VAE:
    """A VAE with that encoder, stopped where its validation ELBO was best."""
    torch.manual_seed(0)
    dim, data_dim = problem.latent_dim, problem.split.train.shape[1]
    vae = pv.VAE(
        prior=pv.priors.StandardNormal(dim),
        decoder=pv.decoders.GaussianDecoder(pv.mlp(dim, (problem.decoder_width,), data_dim), noise="shared"),
        encoder=ENCODERS[family](lambda out: pv.mlp(data_dim, (width,), out), dim),
    )
    pv.fit(vae.model, vae.guide, problem.split.train, val_data=problem.split.val, seed=0, **problem.fit)
    return vae.eval()


def rows_of(problem: Problem, num_data: int) -> Iterator[dict[str, Any]]:
    """Every encoder on training and test data."""
    for family in problem.encoders:
        for width in problem.encoder_widths:
            start = time.perf_counter()
            vae = trained(problem, family, width)
            seconds = time.perf_counter() - start
            for part in ("train", "test"):
                x = getattr(problem.split, part)[:num_data]
                tree = inference_gaps(pv.Target(vae.model, vae.guide, x))
                about = {"problem": problem.name, "encoder": family, "width": width, "part": part}
                made = {**about, "seconds_fit": round(seconds, 1), **measured(tree)}
                print(*about.values(), f"{made['seconds_gaps']:.1f} s", flush=True)
                yield made


def measured(tree: xr.DataTree) -> dict[str, Any]:
    """The rows of one tree, with what they took and what is said of them."""
    gaps = tree["gaps"].to_dataset()
    seconds = float(gaps.attrs["seconds_log_evidence"])
    found = {
        row.subject: {"value": row.value, "std_error": row.std_error} for row in inference_gap_rows(tree)
    }
    counts = {word: int((gaps["verdict"] == word).sum()) for word in ("ok", "not optimized", "no verdict")}
    return {
        "gaps": found,
        "log_evidence": float(gaps["log_evidence"].mean()),
        "num_known": int(gaps["log_evidence"].notnull().sum()),
        "num_data": gaps.sizes["datum"],
        "verdicts": counts,
        "shortfall": {name: float(gaps[f"shortfall_{name}"].mean()) for name in ("diagonal", "full")},
        "num_gradient_evaluations": round(float(gaps.attrs["num_gradient_evaluations"])),
        "seconds_log_evidence": round(seconds, 2),
        "seconds_gaps": round(float(gaps.attrs["seconds"]) - seconds, 2),
        "sentences": list(inference_gap_sentences(tree)),
    }


def markdown(found: dict[str, Any]) -> str:
    """One table a problem."""
    lines = [
        "Mean over data of log p(x) - ELBO, in nats, and its parts; ± one standard error over data, and for what has "
        "log p(x) in it, half the gap of the sandwich. A flow has no best member here: the last column holds the best "
        "full Gaussian for each datum against it. Gradients are per datum, of both fits; seconds are wall-clock, of "
        "the fits and the ELBOs of all data without log p(x), with whatever else the machine was doing.",
    ]
    for problem in dict.fromkeys(row["problem"] for row in found["rows"]):
        lines += ["", f"{problem}:", "", *_table([row for row in found["rows"] if row["problem"] == problem])]
    return "\n".join(lines) + "\n"


COLUMNS = {
    "inference_gap": "gap",
    "approximation_gap": "family",
    "predicted_approximation_gap": "family, by curvature",
    "amortization_gap": "amortization",
    "full_over_diagonal": "full over diagonal",
    "guide_below_full": "full over guide",
}


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = ["encoder", "width", "data", *COLUMNS.values(), "used", "gradients", "seconds"]
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for row in rows:
        cells = [row["encoder"], str(row["width"]), row["part"]]
        for name in COLUMNS:
            made = row["gaps"].get(name)
            cells.append("" if made is None else f"{made['value']:.3f} ± {made['std_error']:.3f}")
        used = row["num_known"] if row["encoder"] == "flow" else row["verdicts"]["ok"]
        cells += [f"{used} of {row['num_data']}", f"{row['num_gradient_evaluations']:,}"]
        yield f"| {' | '.join([*cells, str(row['seconds_gaps'])])} |"


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion", help="training images of Fashion-MNIST, idx format, gzip allowed")
    parser.add_argument("--num-data", type=int, default=48, help="data of each part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    start = time.perf_counter()
    problems = [digits(), *([fashion(arguments.fashion)] if arguments.fashion else [])]
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    for problem in problems:
        for row in rows_of(problem, arguments.num_data):
            found["rows"].append(row)
            keep(found, time.perf_counter() - start)
    print(f"{found['seconds']:.0f} seconds")


def keep(found: dict[str, Any], seconds: float) -> None:
    """Write what there is after every row, so that a run that is stopped leaves its results."""
    found["seconds"] = round(seconds, 1)
    (RESULTS / "inference_gaps.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "inference_gaps.md").write_text(markdown(found))
    save_figure(plot_encoders(found["rows"]), RESULTS / "inference_gaps.svg")


if __name__ == "__main__":
    main()
