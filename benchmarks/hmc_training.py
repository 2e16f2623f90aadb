"""Decoder gradients from HMC draws (Hoffman 2017) against the ELBO's: held-out log p(x) after equal time.

Run `python benchmarks/hmc_training.py`; it writes `benchmarks/results/hmc_training.json` and `.md`. A VAE of the digits
is trained on the ELBO until validation says stop. Then copies of it go on for `--seconds` each, by objective "elbo" and
by "hmc", at the same learning rate, with tracing and compilation in their time. log p(x) of held-out digits is by
annealing in both directions; differences are taken datum by datum, ± one standard error over digits and seeds.
"""

import argparse
import copy
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
from machine import machine

import pyrovae as pv
from pyrovae.training.fit import TrainingStopped

RESULTS = Path(__file__).parent / "results"
CONTINUED = {"elbo": {"max_epochs": 100_000}, "hmc": {"max_epochs": 300, "num_transitions": 4}}
"""More epochs than the time allows. Their number decides whether "auto" compiles, which takes minutes for chains."""
LATENT_DIM, HIDDEN, LR, NUM_TEST = 8, (256,), 3e-4, 64


def trained(seed: int) -> tuple[pv.VAE, Any]:
    """A VAE that the ELBO has trained, and its data."""
    data = pv.data.digits(seed=seed)
    vae = pv.build_vae(64, LATENT_DIM, hidden=HIDDEN, scale=0.3, seed=seed)
    options = {"max_epochs": 300, "early_stopping_patience": 30, "seed": seed}
    pv.fit(vae.model, vae.guide, data.train, val_data=data.val, **options)
    return vae, data


def go_on(vae: pv.VAE, data: Any, objective: str, seconds: float, seed: int) -> int:
    """Train for so long, in place; gives the number of steps."""
    start, steps = time.perf_counter(), 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return time.perf_counter() - start > seconds

    options = {"lr": LR, "seed": seed, "compile": "auto", **CONTINUED[objective]}
    with suppress(TrainingStopped):
        pv.fit(vae.model, vae.guide, data.train, objective=objective, stop=stop, **options)
    return steps


def measured(vae: pv.VAE, x: torch.Tensor, seed: int) -> dict[str, Any]:
    """ELBO and log p(x) of each datum."""
    target = pv.Target(vae.model, vae.guide, x)
    reference = pv.sample_posterior(target, num_chains=8, num_samples=300, warmup_steps=200, seed=seed)
    tree = pv.evidence_table(
        target,
        ["elbo", "bidirectional"],
        num_temperatures=100,
        num_samples=1000,
        reference=reference,
        seed=seed,
    )
    ends = tree["sandwich"].to_dataset()
    elbo = tree["evidence"].to_dataset()["value"].sel({"method": "elbo"}).values
    return {
        "elbo": elbo.tolist(),
        "log_evidence": ends["lower"].values.tolist(),
        "gap": float(ends["gap"].mean()),
        "num_closed": int((ends["verdict"] == "closed").sum()),
    }


def rows(seeds: int, seconds: float) -> list[dict[str, Any]]:
    """Start and both continuations, for every seed."""
    found = []
    for seed in range(seeds):
        start, data = trained(seed)
        x = data.test[:NUM_TEST]
        found.append({"seed": seed, "objective": "start", "steps": 0, **measured(start, x, seed)})
        for objective in CONTINUED:
            vae = copy.deepcopy(start)
            steps = go_on(vae, data, objective, seconds, seed)
            found.append({"seed": seed, "objective": objective, "steps": steps, **measured(vae, x, seed)})
        for row in found[-3:]:
            print(
                row["seed"],
                row["objective"],
                row["steps"],
                np.mean(row["elbo"]),
                np.mean(row["log_evidence"]),
            )
    return found


def markdown(results: dict[str, Any]) -> str:
    """What each objective made of the same start."""
    seconds = results["seconds"]
    lines = ["# Decoder gradients from HMC draws, after equal time", "", f"{results['machine']}", ""]
    lines += [
        f"Digits, 64-256-{LATENT_DIM}, {results['seeds']} seeds, {NUM_TEST} held-out digits each; {seconds:.0f} s more "
        "of training from the same trained VAE. Nats per datum, changes from the start.",
        "",
        "| objective | steps | change of held-out ELBO | change of held-out log p(x) | log p(x) - ELBO | closed |",
        "|---|---|---|---|---|---|",
    ]
    for objective in ("start", *CONTINUED):
        lines.append(_line(results["rows"], objective))
    return "\n".join([*lines, "", _verdict(results["rows"]), ""])


def _line(rows: list[dict[str, Any]], objective: str) -> str:
    own, start = _values(rows, objective), _values(rows, "start")
    cells = [_with_error(own[name] - start[name]) if objective != "start" else "" for name in own]
    steps = np.mean([row["steps"] for row in rows if row["objective"] == objective])
    closed = sum(row["num_closed"] for row in rows if row["objective"] == objective)
    gap = _with_error(own["log_evidence"] - own["elbo"])
    return f"| {objective} | {steps:.0f} | {' | '.join(cells)} | {gap} | {closed} of {len(own['elbo'])} |"


def _verdict(rows: list[dict[str, Any]]) -> str:
    a, b = _values(rows, "hmc"), _values(rows, "elbo")
    names = {"log_evidence": "log p(x)", "elbo": "ELBO"}
    said = [f"{_with_error(a[name] - b[name])} nats in held-out {label}" for name, label in names.items()]
    return f"hmc less elbo: {', '.join(said)}."


def _values(rows: list[dict[str, Any]], objective: str) -> dict[str, np.ndarray]:
    own = [row for row in rows if row["objective"] == objective]
    return {name: np.concatenate([row[name] for row in own]) for name in ("elbo", "log_evidence")}


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {"machine": machine(), "seconds": args.seconds, "seeds": args.seeds}
    results["rows"] = rows(args.seeds, args.seconds)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "hmc_training.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
