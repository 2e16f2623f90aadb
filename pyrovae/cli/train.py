"""`pyrovae train`: a VAE on a data set, by options or a TOML file."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.checkpoints import check_epochs, keep_epochs, put_checkpoints
from pyrovae.cli.runs import build, load_data, resolve, write_run
from pyrovae.cli.settings import Settings, SettingsError, kind_of, read_settings
from pyrovae.cli.show import BAD_INPUT, FAILED, METRICS, choose_device, print_error, progress, training_bar

if TYPE_CHECKING:
    from rich.console import Console

    from pyrovae.data import Split
    from pyrovae.models.vae import VAE
    from pyrovae.training.fit import FitResult

__all__ = ["train"]


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every field of `Settings`, so that options and TOML keys are the same."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in fields(Settings):
        kind = kind_of(field.name)
        option = typer.Option(help=field.metadata["help"], show_default=_shown(field.default))
        hint: Any = Annotated[(str if kind is tuple else kind) | None, option]
        own.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        )
    command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own}
    return command


def _shown(default: Any) -> str | bool:
    if default is None:
        return False
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


@_with_settings
def train(
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    config: Annotated[Path | None, typer.Option(help="TOML file with these options as keys.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    **given: Any,
) -> None:
    """Train a VAE. Options win over the TOML file, which wins over the defaults."""
    from rich.console import Console

    import pyrovae as pv

    console, place = Console(), choose_device(device)
    try:
        settings = resolve(read_settings(config, given))
        options = {f.name: getattr(settings, f.name) for f in fields(pv.FitConfig)}
        pv.FitConfig(**options)
        check_epochs(settings.keep_epochs, settings.max_epochs)
        split = load_data(settings)
        vae = build(settings, split.train).to(place)
    except pv.data.DataError as error:
        print_error(console, error)
        raise typer.Exit(BAD_INPUT) from error
    except (SettingsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    for note in split.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
    with TemporaryDirectory() as kept:
        try:
            result = _fit(console, vae, split, Path(kept), settings.keep_epochs, **options)
        except (FloatingPointError, NotImplementedError, RuntimeError, ValueError) as error:
            print_error(console, error)
            raise typer.Exit(FAILED) from error
        put_checkpoints(Path(kept), out)
    write_run(out, settings, split, vae.cpu(), result)
    _draw(out)
    best = [name for name in METRICS if name in result.history and name.startswith("val_")]
    value = f", {METRICS[best[0]]} {result.history[best[0]].max():.2f} nats" if best else ""
    console.print(f"Kept epoch {result.best_epoch + 1}{value}. Written to {out}.", highlight=False)


def _fit(
    console: "Console", vae: "VAE", split: "Split", kept: Path, epochs: Sequence[int], **options: Any
) -> "FitResult":
    """Train with a bar, keeping the models of some epochs in a folder."""
    import pyrovae as pv

    place = next(vae.parameters()).device
    val_data = split.val.to(place) if len(split.val) else None
    with progress(console) as bars:
        tell = keep_epochs(vae, kept, epochs, training_bar(bars, options["max_epochs"]))
        return pv.fit(
            vae.model, vae.guide, split.train.to(place), val_data=val_data, progress=tell, **options
        )


def _draw(out: Path) -> None:
    import pyrovae as pv
    from pyrovae.reporting.plots import plot_training, save_figure

    save_figure(plot_training(pv.read(out / "history.nc")), out / "training.png")
