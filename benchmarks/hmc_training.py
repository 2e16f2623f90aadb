"""Decoder gradients from HMC draws (Hoffman 2017) against the ELBO's: held-out log p(x) after equal time.

Run `python benchmarks/hmc_training.py`; it writes `benchmarks/results/hmc_training.json` and `.md`. A VAE of the digits
is trained on the ELBO until validation says stop. Then copies of it go on for `--seconds` each, by objective "elbo" and
by "hmc", at the same learning rate, with tracing and compilation in their time, which is the processor's. log p(x) of
held-out digits is by annealing in both directions. Where both ends agree, before and after, the change is known; for
all digits that have both ends it lies between bounds. Changes are taken datum by datum, ± one standard error over
digits and seeds.
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
    start, steps = time.process_time(), 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return time.process_time() - start > seconds

    options = {"lr": LR, "seed": seed, "compile": "auto", **CONTINUED[objective]}
    with suppress(TrainingStopped):
        pv.fit(vae.model, vae.guide, data.train, objective=objective, stop=stop, **options)
    return steps


def measured(vae: pv.VAE, x: torch.Tensor, seed: int) -> dict[str, Any]:
    """ELBO of each datum, both ends of log p(x), and whether they agree."""
    target = pv.Target(vae.model, vae.guide, x)
    reference = pv.sample_posterior(target, num_chains=8, num_samples=300, warmup_steps=200, seed=seed)
    tree = pv.evidence_table(
        target,
        ["elbo", "bidirectional"],
        num_temperatures=300,
        num_samples=1000,
        reference=reference,
        seed=seed,
    )
    ends = tree["sandwich"].to_dataset()
    elbo = tree["evidence"].to_dataset()["value"].sel({"method": "elbo"}).values
    return {
        "elbo": elbo.tolist(),
        **{name: _plain(ends[name].values) for name in ("lower", "upper")},
        "is_closed": (ends["verdict"] == "closed").values.tolist(),
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


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
            print(row["seed"], row["objective"], row["steps"], np.mean(row["elbo"]), sum(row["is_closed"]))
    return found


def markdown(results: dict[str, Any]) -> str:
    """What each objective made of the same start."""
    seconds = results["seconds"]
    lines = ["# Decoder gradients from HMC draws, after equal time", "", f"{results['machine']}", ""]
    lines += [
        f"Digits, 64-256-{LATENT_DIM}, {results['seeds']} seeds, {NUM_TEST} held-out digits each; {seconds:.0f} s of "
        "processor time more, from the same trained VAE. Changes from the start, nats per datum. Where log p(x) is "
        "known before and after, its change is a number; over all digits with both bounds, it lies between two.",
        "",
        "| objective | steps | ELBO | log p(x) where known | digits | at least | at most | digits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    start = _values(results["rows"], "start")
    for objective in CONTINUED:
        own = _values(results["rows"], objective)
        steps = np.mean([row["steps"] for row in results["rows"] if row["objective"] == objective])
        change = _with_error(own["elbo"] - start["elbo"])
        lines.append(f"| {objective} | {steps:.0f} | {change} | {_changed(own, start)} |")
    hmc, elbo = (_values(results["rows"], name) for name in ("hmc", "elbo"))
    lines.append(f"| hmc less elbo | | {_with_error(hmc['elbo'] - elbo['elbo'])} | {_changed(hmc, elbo)} |")
    return "\n".join([*lines, ""])


def _changed(own: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> str:
    """The change of log p(x) where both are known, and bounds of it where there are any."""
    middle = [(values["lower"] + values["upper"]) / 2 for values in (own, start)]
    known = own["is_closed"] & start["is_closed"]
    ends = [own["lower"] - start["upper"], own["upper"] - start["lower"]]
    has = np.isfinite(ends[0] + ends[1])
    cells = [_with_error((middle[0] - middle[1])[known]), f"{known.sum()}"]
    return " | ".join([*cells, *(_with_error(end[has]) for end in ends), f"{has.sum()}"])


def _values(rows: list[dict[str, Any]], objective: str) -> dict[str, np.ndarray]:
    own = [row for row in rows if row["objective"] == objective]
    kinds = {"elbo": float, "lower": float, "upper": float, "is_closed": bool}
    return {name: np.concatenate([np.array(row[name], kind) for row in own]) for name, kind in kinds.items()}


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
