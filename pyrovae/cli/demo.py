"""`pyrovae demo`: train on real digits, audit held-out ones, and write the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import check_out
from pyrovae.cli.show import (
    FAILED,
    choose_device,
    failures,
    print_summary,
    progress,
    stage_bars,
    training_bar,
)

if TYPE_CHECKING:
    import xarray as xr
    from rich.progress import Progress

    from pyrovae.models.vae import VAE

__all__ = ["demo"]

REFERENCE = {"num_chains": 16, "num_samples": 1000, "warmup_steps": 300}
PIXEL_SPREAD = 0.3  # where the learned noise starts: near the spread of a pixel, not at 1


@failures()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the model, the results and the figures.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of data split, weights, training and audit.")] = 0,
    num_data: Annotated[int, typer.Option(min=1, max=270, help="Held-out digits to audit.")] = 64,
    max_epochs: Annotated[int, typer.Option(min=1, help="Epochs of training at the most.")] = 200,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Train a VAE on real handwritten digits, audit its guide in every way, and write the report: about a minute."""
    from rich.console import Console

    import pyrovae as pv
    from pyrovae.results.headline import headline

    check_out(out)
    console, place = Console(), choose_device(device)
    digits = pv.data.digits(seed=seed)
    train, val, test = (part.to(place) for part in (digits.train, digits.val, digits.test[:num_data]))
    vae = pv.build_vae(train.shape[1], latent_dim=8, hidden=(256,), scale=PIXEL_SPREAD, seed=seed).to(place)
    console.print(
        f"[bold]Digits[/bold]: {len(train)} to train, {len(val)} to validate, {len(test)} held out to audit; "
        f"8 x 8 pixels in \\[0, 1], dequantized. Device: {place}."
    )
    with progress(console) as bars:
        history = _train(vae, train, val, bars, seed=seed, max_epochs=max_epochs)
        tree = _audit(vae, test, bars, history=history, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    pv.save(vae, out / "model.pyrovae")
    pv.write(tree, out / "result.nc")
    figures = _write_figures(tree, out)
    pv.write_report(tree, out / "report.html")
    print_summary(console, tree, "How good is the inference?")
    console.print(f"Written to {out}: model.pyrovae, result.nc, {', '.join(figures)}, and the report:")
    console.print(f"{out / 'report.html'}", highlight=False, markup=False)
    console.print(headline(tree), style="bold", highlight=False, markup=False)
    if "ok" not in tree["diagnostics"].to_dataset()["verdict"].values:
        raise typer.Exit(FAILED)


def _train(
    vae: "VAE", train: Any, val: Any, bars: "Progress", *, seed: int, max_epochs: int
) -> dict[str, Any]:
    import pyrovae as pv

    result = pv.fit(
        vae.model,
        vae.guide,
        train,
        val_data=val,
        max_epochs=max_epochs,
        early_stopping_patience=30,
        seed=seed,
        progress=training_bar(bars, max_epochs),
    )
    bars.update(bars.task_ids[-1], completed=max_epochs, note=f"kept epoch {result.best_epoch + 1}")
    return result.history


def _audit(vae: "VAE", test: Any, bars: "Progress", *, history: dict[str, Any], seed: int) -> "xr.DataTree":
    import pyrovae as pv

    options: dict[str, Any] = {"reference": REFERENCE, "history": history, "seed": seed}
    return pv.audit(vae.model, vae.guide, test, progress=stage_bars(bars), **options)


def _write_figures(tree: "xr.DataTree", out: Path) -> list[str]:
    from pyrovae.reporting import plots

    drawn = {
        "training": plots.plot_training,
        "draws": plots.plot_draws,
        "evidence": plots.plot_evidence,
        "reconstructions": plots.plot_reconstructions,
    }
    for name, plot in drawn.items():
        plots.save_figure(plot(tree), out / f"{name}.png")
    return [f"{name}.png" for name in drawn]
