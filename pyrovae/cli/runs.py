"""A run's folder: settings, model, history and what the data were; written whole, read back and checked."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.common import DTYPES
from pyrovae.cli.settings import Settings, SettingsError, read_settings, to_toml

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pyrovae.data import RawData, Rows, Split
    from pyrovae.models.vae import VAE
    from pyrovae.training.fit import FitResult

__all__ = [
    "PARTS",
    "RESUME_FOLDER",
    "RunError",
    "build",
    "check_dtype",
    "check_resume",
    "load_data",
    "open_run",
    "resolve",
    "write_run",
    "write_text",
]

RESUME_FOLDER = "resume"
"""Of a run, holds what an unfinished training goes on from; there is none once the run is written."""
PARTS = ("train", "val", "test")


class RunError(ValueError):
    """A folder that is not a run, or whose data are not those it was trained on."""


def resolve(settings: Settings, raw: "RawData | None" = None) -> Settings:
    """The settings with every default that depends on the data made explicit.

    Args:
        settings: as they were given.
        raw: the data that they name, if they were read already.
    """
    if settings.dequantize is not None:
        return settings
    from pyrovae import data

    raw = data.read(settings.data) if raw is None else raw
    return replace(settings, dequantize=raw.is_integer)


def load_data(settings: Settings, raw: "RawData | None" = None) -> "Split":
    """The split that the settings describe, of data that may have been read already."""
    from pyrovae import data

    return data.load(
        settings.data if raw is None else raw,
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


def build(settings: Settings, train: "Tensor | Rows") -> "VAE":
    """The VAE that the settings describe, for these training data."""
    from pyrovae.models.vae import build_vae

    same = (
        "prior",
        "decoder",
        "encoder",
        "noise",
        "network",
        "hidden",
        "channels",
        "activation",
        "min_scale",
    )
    counts = ("components", "encoder_components", "rank", "pseudo_inputs", "df", "seed")
    options: dict[str, Any] = {name: getattr(settings, name) for name in (*same, *counts)}
    options |= {"scale": settings.noise_scale, "data": train}
    return build_vae(train.shape[1], settings.latent_dim, **options).to(_dtype(settings))


def check_resume(out: Path, settings: Settings, resume: str) -> bool:
    """Whether the folder holds this run already, finished, so that a resumed training has nothing to do.

    Raises:
        SettingsError: `resume` is another word, or "none" and there is an unfinished run, or "auto" and a finished one
            of other settings.
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
    if read_settings(out / "config.toml", {}) != settings:
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
    """The model of a run, its data, read again and checked against what it was trained on, and `run.json`.

    Raises:
        RunError: the folder is not a run, or the data have changed since.
    """
    from pyrovae.training.checkpoint import load

    missing = [name for name in ("config.toml", "run.json", "model.pyrovae") if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{folder} is not a run of `pyrovae train`: it lacks {', '.join(missing)}")
    facts = json.loads((folder / "run.json").read_text())
    split = load_data(read_settings(folder / "config.toml", {}))
    if split.describe()["sha256"] != facts["data"]["sha256"]:
        raise RunError(
            f"the data {facts['data']['spec']} are not those that {folder} was trained on: put them back"
        )
    vae = load(folder / "model.pyrovae")
    return vae, split, facts


def _write_split(path: Path, split: "Split") -> None:
    """The rows of the data that each part holds."""
    import numpy as np

    with _whole(path) as temporary:
        np.savez(temporary, **{part: getattr(split, f"{part}_index").numpy() for part in PARTS})


def _best(history: Mapping[str, Any], name: str) -> float | None:
    return float(history[name].max()) if name in history else None


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with _whole(path) as temporary:
        temporary.write_text(text)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block has ended well."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
