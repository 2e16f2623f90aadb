"""The command line: `pyrovae demo`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import xarray as xr
    from rich.progress import Progress

    from pyrovae.models.vae import VAE

__all__ = ["app"]

NO_VERDICT = 3  # exit code: the run is done, but says nothing about any datum
REFERENCE = {"num_chains": 16, "num_samples": 1000, "warmup_steps": 300}
PIXEL_SPREAD = 0.3  # where the learned noise starts: near the spread of a pixel, not at 1

app = typer.Typer(
    help="Train variational autoencoders written in Pyro, then measure how good the inference is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def main() -> None:
    """Train variational autoencoders written in Pyro, then measure how good the inference is."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the model, the results and the figures.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of data split, weights, training and audit.")] = 0,
    num_data: Annotated[int, typer.Option(min=1, max=359, help="Held-out digits to audit.")] = 64,
    max_epochs: Annotated[int, typer.Option(min=1, help="Epochs of training at the most.")] = 200,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Train a VAE on real handwritten digits, then audit its guide against HMC: about a minute."""
    from rich.console import Console

    import pyrovae as pv

    console, place = Console(), _device(device)
    digits = pv.data.digits(seed=seed)
    train, val, test = (part.to(place) for part in (digits.train, digits.val, digits.test[:num_data]))
    vae = pv.build_vae(train.shape[1], latent_dim=8, hidden=(256,), scale=PIXEL_SPREAD, seed=seed).to(place)
    console.print(
        f"[bold]Digits[/bold]: {len(train)} to train, {len(val)} to validate, {len(test)} held out to audit; "
        f"8 x 8 pixels in \\[0, 1], dequantized. Device: {place}."
    )
    with _progress(console) as bars:
        history = _train(vae, train, val, bars, seed=seed, max_epochs=max_epochs)
        tree = _audit(vae, test, bars, history=history, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    pv.save(vae, out / "model.pyrovae")
    pv.write(tree, out / "result.nc")
    figures = _write_figures(tree, out)
    _print_verdict(console, tree)
    console.print(f"Written to {out}: model.pyrovae, result.nc, {', '.join(figures)}.")
    if "ok" not in tree["diagnostics"].to_dataset()["verdict"].values:
        raise typer.Exit(NO_VERDICT)


def _device(name: str) -> str:
    """The torch device of that name; "auto" is CUDA where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.zeros(1, device=name).device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(
            f"device {name!r} cannot be used here ({error}): pass cpu, cuda or auto"
        ) from error


def _train(
    vae: "VAE", train: Any, val: Any, bars: "Progress", *, seed: int, max_epochs: int
) -> dict[str, Any]:
    import pyrovae as pv

    task = bars.add_task("training", total=max_epochs, note="")

    def tell(epoch: int, total: int, metrics: dict[str, float]) -> None:
        bars.update(task, completed=epoch + 1, note=f"validation ELBO {metrics['val_elbo']:.2f} nats")

    result = pv.fit(
        vae.model,
        vae.guide,
        train,
        val_data=val,
        max_epochs=max_epochs,
        early_stopping_patience=30,
        seed=seed,
        progress=tell,
    )
    bars.update(task, completed=max_epochs, note=f"kept epoch {result.best_epoch + 1}")
    return result.history


def _audit(vae: "VAE", test: Any, bars: "Progress", *, history: dict[str, Any], seed: int) -> "xr.DataTree":
    import pyrovae as pv

    tasks: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, note="")
        bars.update(tasks[stage], completed=done)

    return pv.audit(
        vae.model, vae.guide, test, reference=REFERENCE, history=history, seed=seed, progress=tell
    )


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


def _print_verdict(console: Any, tree: "xr.DataTree") -> None:
    from rich import box
    from rich.table import Table

    import pyrovae as pv

    table = Table(title="How good is the inference?", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("quantity", min_width=26)
    for name in ("value", "unit", "direction", "data", "doubtful"):
        table.add_column(
            name, no_wrap=True, justify="left" if name in ("unit", "direction") else "right"
        )
    for quantity, row in pv.summary(tree).iterrows():
        error = "" if row["std_error"] != row["std_error"] else f" ± {row['std_error']:.2g}"
        counts = (str(row["num_data"]), str(row["num_refused"]))
        unit = row["unit"].removesuffix(" per datum")
        table.add_row(str(quantity), f"{row['value']:.3g}{error}", unit, row["direction"], *counts)
    console.print(table)
    for sentence in pv.verdict_sentences(tree):
        console.print(f"- {sentence}", highlight=False)


@contextmanager
def _progress(console: Any) -> Iterator["Progress"]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield bars
