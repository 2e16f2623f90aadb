"""What `pyrovae demo` finds and what it takes: README's table and figure, with the machine they were made on.

Run `python benchmarks/demo.py`; it writes `benchmarks/results/demo.json`, `demo.md` and `demo_draws.svg`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

import pyrovae as pv
from pyrovae.reporting.plots import plot_draws, save_figure

RESULTS = Path(__file__).parent / "results"


def markdown(tree: object) -> str:
    """The summary as README shows it."""
    rows = ["| quantity | value | unit | direction | data |", "|---|---|---|---|---|"]
    for quantity, row in pv.summary(tree).iterrows():
        error = "" if row["std_error"] != row["std_error"] else f" ± {row['std_error']:.2g}"
        doubtful = f", {row['num_refused']} doubtful" if row["num_refused"] else ""
        name = str(quantity).replace("||", "‖")
        rows.append(
            f"| {name} | {row['value']:.3g}{error} | {row['unit']} | {row['direction']} "
            f"| {row['num_data']}{doubtful} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run the demo in a new process, as a user does, and keep what it found."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pyrovae", "demo", "--out", folder], check=True)
        seconds = time.perf_counter() - start
        tree = pv.read(Path(folder) / "result.nc")
    posterior = tree["posterior"].attrs
    found = {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "training_seconds": round(float(tree["history"]["seconds"].sum()), 1),
        "reference_seconds": round(posterior["seconds"], 1),
        "reference_gradients_per_chain": posterior["num_gradient_evaluations"],
        "summary": pv.summary(tree).reset_index().to_dict("records"),
        "verdict": pv.verdict_sentences(tree),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "demo.md").write_text(markdown(tree))
    save_figure(plot_draws(tree), RESULTS / "demo_draws.svg")
    print(f"{seconds:.1f} seconds")


if __name__ == "__main__":
    main()
