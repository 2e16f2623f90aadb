"""The figures of two of README's questions, from the demo's VAE: how many draws, and the ELBO both ways.

Run `python benchmarks/questions.py`: about a minute. It writes `benchmarks/results/questions.json`, `draw_counts.svg`
and `decomposition.svg`. The other questions have their figures from `evidence.py`, `gradient_snr.py` and
`inference_gaps.py`.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from machine import machine

import pyrovae as pv
from pyrovae.reporting.plots import plot_decomposition, plot_draw_counts, save_figure

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train as the demo does, measure and draw."""
    torch.set_num_threads(1)
    digits = pv.data.digits(seed=0)
    vae = pv.build_vae(64, latent_dim=8, hidden=(256,), scale=0.3, seed=0)
    options = {"max_epochs": 200, "early_stopping_patience": 30, "seed": 0}
    pv.fit(vae.model, vae.guide, digits.train, val_data=digits.val, **options)
    draws = pv.reconstruct(pv.Target(vae.model, vae.guide, digits.test[:64]), 10_000, seed=0)
    target = pv.Target(vae.model, vae.guide, digits.train)
    terms = pv.decompose(target, pv.log_evidence(target, "iwae", num_samples=500, seed=1), num_samples=500)
    RESULTS.mkdir(exist_ok=True)
    counts = plot_draw_counts(draws)
    save_figure(counts, RESULTS / "draw_counts.svg")
    save_figure(plot_decomposition(terms), RESULTS / "decomposition.svg")
    found = {
        "machine": machine(),
        "draw_counts": counts.get_suptitle().replace("\n", " "),
        "decomposition": pv.verdict_sentences(terms),
        "summary": pv.summary(terms).reset_index().to_dict("records"),
    }
    (RESULTS / "questions.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(found["draw_counts"], *found["decomposition"], sep="\n")


if __name__ == "__main__":
    main()
