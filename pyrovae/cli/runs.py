"""A run's folder: settings, model, history and what the data were; written whole, read back and checked."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.common import DTYPES
from pyrovae.cli.settings import Settings, SettingsError, read_settings, to_toml

if TYPE_CHECKING:
    import torch

    from pyrovae.data import RawData, Split
    from pyrovae.models.vae import VAE
    from pyrovae.training.distributed import Ranks
    from pyrovae.training.fit import FitResult

__all__ = [
    "PARTS",
    "RESUME_FOLDER",
    "RunError",
    "check_dtype",
    "check_resume",
    "load_shared",
    "open_run",
    "resolve",
    "write_run",
    "write_text",
]

RESUME_FOLDER = "resume"
"""Of a run, holds what an unfinished training goes on from; there is none once the run is written."""
PARTS = ("train", "val", "test")
PATIENCE = 60.0
"""Seconds after which ranks that wait hear from the one that works: well within what a process group allows."""


class RunError(ValueError):
    """A folder that is not a run, or a damaged one, or whose data are not those it was trained on."""


def resolve(settings: Settings, raw: "RawData") -> Settings:
    """The settings with every default that depends on the data, which they name, made explicit."""
    if settings.dequantize is not None:
        return settings
    return replace(settings, dequantize=raw.is_integer and settings.decoder != "bernoulli")


def load_shared(settings: Settings, raw: "RawData", ranks: "Ranks") -> "Split":
    """The split that the settings describe, of the data that they name, on every rank.

    Mapped data are read by the first rank alone, which tells the others what it saw; those read a sample, see
    `pyrovae.data.reopen`.

    Raises:
        DataError, ValueError: what `pyrovae.data.load` refuses.
        RankFailed: another rank failed.
    """
    from pyrovae import data

    if ranks.size == 1 or not ranks.from_first(raw.is_mapped):
        with ranks.together():
            return _load(settings, raw)
    with ranks.together():
        split = _by_first(lambda: _load(settings, raw), ranks)
    description = ranks.from_first(split and split.describe())
    with ranks.together():
        return split or data.reopen(raw, description)


def _by_first(work: "Callable[[], Split]", ranks: "Ranks") -> "Split | None":
    """What the work gives, which the first rank does; None on the others, which wait, however long it takes."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work) if ranks.is_first else None
        is_done = False
        while not is_done:
            wait([job] if job else [], PATIENCE)
            is_done = ranks.any(job is not None and job.done())
        return job.result() if job else None


def _load(settings: Settings, raw: "RawData") -> "Split":
    from pyrovae import data

    return data.load(
        raw,
        scale=None if settings.scaling == "none" else settings.scaling,
        dequantize=bool(settings.dequantize),
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
        dtype=_dtype(settings),
    )


def check_dtype(settings: Settings) -> None:
    """Refuse a dtype that is none.

    Raises:
        SettingsError: neither float32 nor float64.
    """
    if settings.dtype not in DTYPES:
        raise SettingsError(f"dtype must be one of {', '.join(DTYPES)}, got {settings.dtype!r}")


def _dtype(settings: Settings) -> "torch.dtype":
    import torch

    kind: torch.dtype = getattr(torch, settings.dtype)
    return kind


def check_resume(out: Path, settings: Settings, resume: str, raw: "RawData") -> bool:
    """Whether the folder holds this run already, finished, so that a resumed training has nothing to do.

    Args:
        out: the folder.
        settings: as `resolve` gave them.
        resume: "auto" or "none".
        raw: the data that they name.

    Raises:
        SettingsError: `resume` is another word, or "none" and there is an unfinished run, or "auto" and a finished one
            of other settings.
        RunError: "auto" and a finished one that is damaged, or whose data are not what they were.
    """
    from pyrovae.training.checkpoints import training_checkpoints

    if resume not in ("auto", "none"):
        raise SettingsError(f"--resume must be auto or none, got {resume!r}")
    is_unfinished = bool(training_checkpoints(out / RESUME_FOLDER))
    if resume == "none" and is_unfinished:
        raise SettingsError(
            f"{out} holds an unfinished run: go on with --resume auto, or remove {out / RESUME_FOLDER} to begin anew"
        )
    if resume == "none" or is_unfinished or not (out / "model.pyrovae").is_file():
        return False
    before = _settings(out)
    if before.data == settings.data:
        _check_data(raw, _facts(out)["data"], out)
    if before != settings:
        raise SettingsError(
            f"{out} holds a finished run of other settings (see {out / 'config.toml'}): pass another --out, or "
            "--resume none to replace it"
        )
    return True


def write_run(out: Path, settings: Settings, split: "Split", vae: "VAE", result: "FitResult") -> None:
    """Write all of a run but its figure, the model last."""
    from pyrovae import results
    from pyrovae.cli.logs import METRICS_FILE, whole_log
    from pyrovae.training.checkpoint import save

    out.mkdir(parents=True, exist_ok=True)
    counts = {"num_data": len(split.train), "num_val_data": len(split.val)}
    history = result.history
    group = results.group("history", history, counts, epoch=range(1, len(history["seconds"]) + 1))
    results.write(results.build_tree({"history": group}), out / "history.nc")
    facts = {
        "data": split.describe(),
        "best_epoch": result.best_epoch + 1,
        "num_epochs": len(history["seconds"]),
        "num_steps": result.num_steps,
        "seconds": result.seconds,
        "stopped_early": result.stopped_early,
        "val_elbo": _best(history, "val_elbo"),
        "val_bound": _best(history, "val_bound"),
    }
    write_text(out / METRICS_FILE, whole_log(history))
    _write_split(out / "split.npz", split)
    write_text(out / "run.json", json.dumps(facts, indent=1) + "\n")
    write_text(out / "config.toml", to_toml(settings))
    save(vae, out / "model.pyrovae")


def open_run(folder: Path) -> "tuple[VAE, Split, dict[str, Any]]":
    """The model of a run, its data, checked against what it was trained on, and `run.json`.

    The data are cut and transformed as `run.json` says, and nothing is fitted anew. Mapped data are not read but for a
    sample, see `pyrovae.data.reopen`.

    Raises:
        RunError: the folder is not a run, or a damaged one, or the data have changed since.
        DataError: the data cannot be read.
        CheckpointError: the model cannot be read.
    """
    from pyrovae import data
    from pyrovae.training.checkpoint import load

    missing = [name for name in ("config.toml", "run.json", "model.pyrovae") if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{folder} is not a run of `pyrovae train`: it lacks {', '.join(missing)}")
    settings, facts = _settings(folder), _facts(folder)
    raw = data.read(settings.data)
    _check_data(raw, facts["data"], folder)
    with _readable(folder / "run.json"):
        split = data.reopen(raw, facts["data"])
    vae = load(folder / "model.pyrovae")
    return vae, split, facts


def _settings(folder: Path) -> Settings:
    """Those of a run."""
    with _readable(folder / "config.toml"):
        return read_settings(folder / "config.toml", {})


def _facts(folder: Path) -> dict[str, Any]:
    """What `run.json` says, with "data" in it."""
    with _readable(folder / "run.json"):
        facts = json.loads((folder / "run.json").read_text())
        return {**facts, "data": {**facts["data"]}}


def _check_data(raw: "RawData", description: Mapping[str, Any], folder: Path) -> None:
    """Refuse other data than those that a run was trained on."""
    with _readable(folder / "run.json"):
        known = {name: description[name] for name in ("sha256", "sample_sha256")}
    if not raw.is_that_of(known):
        raise RunError(f"the data {raw.spec} are not those that {folder} was trained on: put them back")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What fails in the block is due to a file that is damaged, or of another version."""
    try:
        yield
    except (KeyError, OSError, TypeError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path} is damaged, or of another version ({what}): put a good copy back, or train again with "
            "--resume none"
        ) from error


def _write_split(path: Path, split: "Split") -> None:
    """The rows of the data that each part holds."""
    import numpy as np

    from pyrovae.results.places import replacing

    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{part: getattr(split, f"{part}_index").numpy() for part in PARTS})


def _best(history: Mapping[str, Any], name: str) -> float | None:
    return float(history[name].max()) if name in history else None


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    from pyrovae.results.places import replacing

    with replacing(path) as temporary:
        temporary.write_text(text)
