"""The folder of a run's training checkpoints: the last two are kept, and the newest good one is taken."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrovae.training.archive import DAMAGE, CheckpointError, read_archive, sync_folder, write_archive
from pyrovae.training.checks import check_snapshot
from pyrovae.training.facts import attributes, check_run, model_facts, run_facts, version_facts
from pyrovae.training.loop import Training
from pyrovae.training.snapshots import Position, make_ready, position_of, put_back, tensors_of

__all__ = ["FORMAT_VERSION", "Checkpoints", "training_checkpoints"]

FORMAT = "pyrovae training checkpoint"
FORMAT_VERSION = 1
KEPT = 2
WRITER = "fit(..., checkpoint=folder)"


def training_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a training run in a folder, the newest first; none if there is no folder.

    >>> training_checkpoints("nowhere")
    []
    """
    files = {path: re.fullmatch(r"step-(\d+)\.pyrovae", path.name) for path in Path(folder).glob("step-*")}
    found = {path: int(match[1]) for path, match in files.items() if match}
    return sorted(found, key=lambda path: -found[path])


class Checkpoints:
    """The checkpoints of one training run.

    Args:
        folder: for them alone; made when the first is written.
        training: the run, which has not begun.
    """

    def __init__(self, folder: Path, training: Training) -> None:
        self.folder, self.training = folder, training
        self.facts = run_facts(training.config, training.data, training.val)
        self.at_start = attributes(training.run)
        self.restored: set[tuple[int, str, str]] = set()
        self.saved_at = -1

    def save(self) -> None:
        """Write where the run is, unless that is written; then drop all checkpoints but the last two.

        Only the first rank writes, and the others wait until it has.

        Raises:
            CheckpointError: it could not be written. What was saved before is there still.
            RankFailed: the first rank could not write it.
        """
        ranks, num_steps = self.training.run.ranks, self.training.run.num_steps
        if num_steps == self.saved_at:
            return
        with ranks.together():
            if ranks.is_first:
                self._write(num_steps)
        self.saved_at = num_steps

    def _write(self, num_steps: int) -> None:
        path = self.folder / f"step-{num_steps:09d}.pyrovae"
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                sync_folder(self.folder.parent)
            write_archive(path, self._manifest(), tensors_of(self.training))
            for old in training_checkpoints(self.folder)[KEPT:]:
                old.unlink()
        except OSError as error:
            raise self._not_written(path, error) from error

    def _manifest(self) -> dict[str, Any]:
        now = attributes(self.training.run)
        changed = {k: v for k, v in now.items() if k in self.restored or v != self.at_start.get(k)}
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "versions": self._versions(),
            **self.facts,
            "model": model_facts(self.training.run),
            "position": position_of(self.training, changed),
        }

    def _versions(self) -> dict[str, str]:
        return version_facts(self.training.data[0].device, self.training.run.ranks)

    def _not_written(self, path: Path, error: OSError) -> CheckpointError:
        there = training_checkpoints(self.folder)
        rest = (
            f"{there[0]} is intact: go on from it"
            if there
            else "there is none before it: make room and begin"
        )
        return CheckpointError(
            f"the checkpoint {path} could not be written ({error.strerror or error}). {rest}"
            + (' with resume="auto" when there is room' if there else " anew")
        )

    def resume(self) -> None:
        """Go on from the newest good checkpoint; with none at all the run begins. Damaged ones give a warning each.

        The first rank reads it for all, so that no other needs the folder.

        Raises:
            CheckpointError: all are damaged, or the newest good one is of a newer version, of another model,
                configuration or data set, or holds what no training wrote.
        """
        ranks, found = self.training.run.ranks, None
        with ranks.together():
            if ranks.is_first:
                found = self._newest()
        found = ranks.from_first(found)
        if found is None:
            return
        path, manifest, tensors, saved = found
        check_run(path, manifest, self.facts)
        moved = make_ready(self.training)
        check_run(path, manifest, {"model": model_facts(self.training.run)})
        is_same_device = manifest["versions"].get("device") == self._versions()["device"]
        check_snapshot(path, self.training, saved, tensors, moved, is_same_device)
        self._warn_of_versions(path, manifest["versions"])
        put_back(self.training, saved, tensors)
        self.restored = {(index, owner, name) for index, owner, name, _ in saved.attributes}
        self.saved_at = saved.num_steps

    def _newest(self) -> tuple[Path, dict[str, Any], dict[str, Tensor], Position] | None:
        for stray in self.folder.glob(".step-*.tmp"):  # of a save that was killed
            stray.unlink()
        paths = training_checkpoints(self.folder)
        for path in paths:
            try:
                return path, *_read(path)
            except CheckpointError as error:
                if not error.is_damage:
                    raise
                warnings.warn(f"skipped a checkpoint: {error}", stacklevel=5)
        if paths:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be read; remove that folder to begin anew",
                True,
            )
        return None

    def _warn_of_versions(self, path: Path, saved: dict[str, str]) -> None:
        now = self._versions()
        changed = [
            f"{name} {saved.get(name)}, now {value}"
            for name, value in now.items()
            if saved.get(name) != value
        ]
        if changed:
            warnings.warn(
                f"{path} was written with {'; '.join(changed)}: the result may differ in the last bits from that of a "
                "run without interruption",
                stacklevel=5,
            )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Position]:
    """A file's manifest and tensors, and the position of the run, all of the form that they must have."""
    manifest, tensors = read_archive(path, FORMAT, FORMAT_VERSION, WRITER)
    try:
        for name in ("config", "data", "model", "versions"):
            dict(manifest[name])
        dict(manifest["val_data"] or {})
        return manifest, tensors, Position(**manifest["position"])
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})", True) from error
