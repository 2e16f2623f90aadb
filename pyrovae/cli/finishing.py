"""How a training ends: its run written whole, or what it is made of kept; and what is told of it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pyrovae.cli.checkpoints import put_checkpoints
from pyrovae.cli.ranks import print_failure
from pyrovae.cli.runs import RESUME_FOLDER, write_run
from pyrovae.cli.settings import Settings
from pyrovae.cli.show import BAD_INPUT, FAILED, METRICS, print_error

if TYPE_CHECKING:
    from rich.console import Console

    from pyrovae.data import Split
    from pyrovae.models.vae import VAE
    from pyrovae.training.distributed import Ranks
    from pyrovae.training.fit import FitResult

__all__ = ["finish_or_exit", "print_facts", "tell_result"]

UNWRITTEN = (
    "The run is not written, but everything trained is saved: free room, or put right what is wrong; then the same "
    "command goes on with --resume auto."
)


def finish_or_exit(
    ranks: "Ranks", out: Path, settings: Settings, split: "Split", vae: "VAE", result: "FitResult"
) -> None:
    """Write the run, or say why not and exit; what it is made of stays."""
    from rich.console import Console

    try:
        with ranks.together():
            if ranks.is_first:
                _finish(out, settings, split, vae, result)
    except (OSError, RuntimeError) as error:
        print_failure(error, ranks)
        if ranks.is_first:
            print_error(Console(stderr=True), UNWRITTEN)
        raise typer.Exit(FAILED) from error


def _finish(out: Path, settings: Settings, split: "Split", vae: "VAE", result: "FitResult") -> None:
    """Write the run; only then drop what it could go on from."""
    kept = out / RESUME_FOLDER / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    put_checkpoints(kept, out)
    write_run(out, settings, split, vae.cpu(), result)
    _draw(out)
    shutil.rmtree(out / RESUME_FOLDER)


def print_facts(ranks: "Ranks", out: Path) -> None:
    """What `run.json` says, on the first rank."""
    if not ranks.is_first:
        return
    try:
        text = (out / "run.json").read_text()
    except OSError as error:
        print_failure(error, ranks)
        raise typer.Exit(BAD_INPUT) from error
    typer.echo(text, nl=False)


def tell_result(console: "Console", out: Path, result: "FitResult") -> None:
    """Say which epoch was kept, how good it is and where."""
    best = [name for name in METRICS if name in result.history and name.startswith("val_")]
    value = f", {METRICS[best[0]]} {result.history[best[0]].max():.2f} nats" if best else ""
    console.print(
        f"Kept epoch {result.best_epoch + 1}{value}. Written to {out}.", markup=False, highlight=False
    )


def _draw(out: Path) -> None:
    import pyrovae as pv
    from pyrovae.reporting.plots import plot_training, save_figure

    save_figure(plot_training(pv.read(out / "history.nc")), out / "training.png")
