"""The models along training, kept in a run's folder: one file an epoch, epoch 0 before training."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.runs import RunError
from pyrovae.cli.settings import SettingsError

if TYPE_CHECKING:
    from pyrovae.models.vae import VAE

__all__ = ["check_epochs", "keep_epochs", "kept_epochs", "put_checkpoints"]

FOLDER = "checkpoints"


def check_epochs(epochs: Sequence[int], max_epochs: int) -> None:
    """Refuse epochs that training never reaches.

    Raises:
        SettingsError: an epoch below 0 or above `max_epochs`.
    """
    if wrong := [epoch for epoch in epochs if not 0 <= epoch <= max_epochs]:
        raise SettingsError(f"keep_epochs must be from 0 to max_epochs, {max_epochs}, got {wrong[0]}")


def keep_epochs(
    vae: "VAE", folder: Path, epochs: Sequence[int], tell: Callable[..., object]
) -> Callable[..., None]:
    """The progress callback of `fit` that saves the model after some epochs; saves epoch 0 at once."""
    from pyrovae.training.checkpoint import save

    def keep(epoch: int) -> None:
        if epoch in epochs:
            save(vae, folder / f"epoch-{epoch:04d}.pyrovae")

    def after(epoch: int, max_epochs: int, metrics: dict[str, Any]) -> None:
        keep(epoch + 1)
        tell(epoch, max_epochs, metrics)

    keep(0)
    return after


def put_checkpoints(folder: Path, run: Path) -> None:
    """Move what was kept into a run's folder, in the place of what an earlier training left there."""
    target = run / FOLDER
    if target.exists():
        shutil.rmtree(target)
    if any(folder.iterdir()):
        run.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, target)


def kept_epochs(run: Path) -> dict[int, Path]:
    """{epoch: file} of the checkpoints of a run, in their order.

    Raises:
        RunError: there are none.
    """
    files = {path: re.fullmatch(r"epoch-(\d+)\.pyrovae", path.name) for path in (run / FOLDER).glob("*")}
    found = {int(match[1]): path for path, match in files.items() if match}
    if not found:
        raise RunError(f"{run} has no checkpoints: train it with `pyrovae train --keep-epochs 0,1,5,20`")
    return dict(sorted(found.items()))
