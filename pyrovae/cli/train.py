"""`pyrovae train`: a VAE on a data set, by options or a TOML file."""

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.building import build
from pyrovae.cli.checkpoints import check_epochs, keep_epochs
from pyrovae.cli.common import AsJson, Quiet, Threads, check_out, threads_set
from pyrovae.cli.finishing import finish_or_exit, print_facts, tell_result
from pyrovae.cli.logs import event_writer, log_epochs
from pyrovae.cli.ranks import console_of, listening_to, print_failure
from pyrovae.cli.runs import (
    RESUME_FOLDER,
    RunError,
    check_dtype,
    check_resume,
    load_shared,
    resolve,
)
from pyrovae.cli.settings import Settings, SettingsFileError, kind_of, read_settings
from pyrovae.cli.show import (
    BAD_INPUT,
    FAILED,
    WRONG_OPTIONS,
    choose_device,
    failures,
    progress,
    training_bar,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import Tensor

    from pyrovae.data import Rows, Split
    from pyrovae.models.vae import VAE
    from pyrovae.training.distributed import Ranks
    from pyrovae.training.fit import FitResult

__all__ = ["near", "train"]


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
    resume: Annotated[str, typer.Option(help="auto: go on with the run in --out; none: begin.")] = "none",
    checkpoint_every: Annotated[int, typer.Option(help="Epochs between checkpoints.", min=1)] = 1,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Train a VAE. Options win over the TOML file, which wins over the defaults.

    A run that was killed goes on with the same command and --resume auto. SIGINT and SIGTERM end the step, save, and
    exit with 130 and 143; a second one ends at once.

    Under torchrun the processes share each batch, of --batch-size data in all, and the first one writes.
    """
    place = choose_device(device)
    log = partial(log_epochs, out, event_writer() if tensorboard else None)
    with failures(), threads_set(threads), _together_on(place) as ranks:
        console = console_of(ranks, quiet or as_json)
        prepared = _prepare(ranks, out, config, given, resume)
        if prepared is None:
            console.print(f"{out} holds this run, finished.", markup=False, highlight=False)
            if as_json:
                print_facts(ranks, out)
            return
        settings, split, vae = prepared
        for note in split.notes:
            console.print(f"Note: {note}", markup=False, highlight=False)
        folder = out / RESUME_FOLDER
        _clear(folder, ranks)
        more = {"checkpoint": folder, "checkpoint_every": checkpoint_every, "progress": log}
        more["resume"] = None if resume == "none" else resume
        vae = vae.to(place if ranks.size == 1 else place.partition(":")[0])
        result = _fit_or_exit(ranks, console, vae, split, settings, more)
        finish_or_exit(ranks, out, settings, split, vae, result)
        tell_result(console, out, result)
        if as_json:
            print_facts(ranks, out)


@contextmanager
def _together_on(place: str) -> "Iterator[Ranks]":
    """The ranks that torchrun started, on the device; or this process alone."""
    from pyrovae.training.distributed import NoDeviceError, process_group

    try:
        with process_group(place) as ranks:
            yield ranks
    except NoDeviceError as error:
        raise typer.BadParameter(str(error)) from error


def _prepare(
    ranks: "Ranks", out: Path, config: Path | None, given: dict[str, Any], resume: str
) -> "tuple[Settings, Split, VAE] | None":
    """What to train and on what, None if that is done already; or exit, where it is wrong."""
    import pyrovae as pv
    from pyrovae.training.distributed import RankFailed

    try:
        with ranks.together():
            if ranks.is_first:
                check_out(out)
            settings = read_settings(config, given)
            check_dtype(settings)
            raw = pv.data.read(settings.data)
            settings = resolve(settings, raw)
            pv.FitConfig(**_options(settings))
            check_epochs(settings.keep_epochs, settings.max_epochs)
            is_done = ranks.is_first and check_resume(out, settings, _wish(out, resume), raw)
        if ranks.from_first(is_done):
            return None
        split = load_shared(settings, raw, ranks)
        with ranks.together():
            return settings, split, build(settings, split)
    except (RankFailed, typer.BadParameter, ValueError) as error:
        raise _refused(ranks, error) from error


def _refused(ranks: "Ranks", error: Exception) -> Exception:
    """What ends the command where options or files are refused: with one exit code on all ranks, the largest of theirs.

    A rank that failed because of another has none of its own.
    """
    from pyrovae.data import DataError
    from pyrovae.training.distributed import RankFailed

    is_input = isinstance(error, (DataError, RunError, SettingsFileError))
    own = 0 if isinstance(error, RankFailed) else BAD_INPUT if is_input else WRONG_OPTIONS
    code = int(ranks.largest(float(own)))
    if own == code == WRONG_OPTIONS:
        return typer.BadParameter(str(error))
    print_failure(error, ranks)
    return typer.Exit(code)


def _wish(out: Path, resume: str) -> str:
    """What `--resume` says, or "auto" where torchrun started anew what failed after it began this run."""
    from pyrovae.training.checkpoints import training_checkpoints
    from pyrovae.training.distributed import has_begun

    folder = out / RESUME_FOLDER
    return "auto" if has_begun(folder) and training_checkpoints(folder) else resume


def _options(settings: Settings) -> dict[str, Any]:
    import pyrovae as pv

    return {f.name: getattr(settings, f.name) for f in fields(pv.FitConfig)}


def _clear(folder: Path, ranks: "Ranks") -> None:
    """Drop what an unfinished training left, if nothing can go on from it."""
    from pyrovae.training.checkpoints import training_checkpoints

    if ranks.is_first and folder.is_dir() and not training_checkpoints(folder):
        shutil.rmtree(folder)
        with suppress(OSError):  # the run's folder holds something else
            folder.parent.rmdir()


def _fit_or_exit(
    ranks: "Ranks", console: "Console", vae: "VAE", split: "Split", settings: Settings, more: dict[str, Any]
) -> "FitResult":
    """Train, or say why not and exit; what was saved stays."""
    from pyrovae.training.checkpoint import CheckpointError
    from pyrovae.training.fit import TrainingStopped

    with listening_to(ranks) as stop:
        try:
            return _fit(ranks, console, vae, split, settings, {**more, "stop": stop})
        except TrainingStopped as error:
            notice = f"Stopped after {error.num_steps} steps and saved: the same command goes on with --resume auto."
            console.print(notice, highlight=False)
            raise typer.Exit(128 + int(ranks.largest(float(stop.number)))) from error
        except CheckpointError as error:
            print_failure(error, ranks)
            raise typer.Exit(FAILED if isinstance(error.__cause__, OSError) else BAD_INPUT) from error
        except (FloatingPointError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
            _clear(more["checkpoint"], ranks)
            print_failure(error, ranks)
            raise typer.Exit(FAILED) from error


def _fit(
    ranks: "Ranks", console: "Console", vae: "VAE", split: "Split", settings: Settings, more: dict[str, Any]
) -> "FitResult":
    """Train with a bar and a log, keeping checkpoints and the models of some epochs in the run's folder."""
    import torch

    import pyrovae as pv

    place = next(vae.parameters()).device
    free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else None
    train, val = near(place, free, split.train, split.val)
    kept = more["checkpoint"] / "kept"
    log = more["progress"]
    with progress(console) as bars:
        more = {**more, "val_data": val if len(val) else None, "progress": None}
        if ranks.is_first:
            if settings.keep_epochs:
                kept.mkdir(parents=True, exist_ok=True)
            tell = log(training_bar(bars, settings.max_epochs))
            more["progress"] = keep_epochs(vae, kept, settings.keep_epochs, tell)
        return pv.fit(vae.model, vae.guide, train, **more, **_options(settings))


def near(place: "torch.device", free: int | None, *parts: "Tensor | Rows") -> "list[Tensor | Rows]":
    """Data on the device, if they take at most half of its `free` bytes (None: all of its memory is theirs).

    Else they stay where they are, and each batch comes to the device from pinned memory when it is asked for.
    """
    from pyrovae.data import Rows

    size = sum(x.nbytes for x in parts if not isinstance(x, Rows))
    if free is None or 2 * size <= free:
        return [x.to(place) for x in parts]
    return [(x if isinstance(x, Rows) else Rows(x.numpy(), dtype=x.dtype)).to(place) for x in parts]
