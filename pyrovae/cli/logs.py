"""A run's log: one line of JSON an epoch, and TensorBoard's event files where they are asked for."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

__all__ = ["METRICS_FILE", "event_writer", "log_epochs", "whole_log"]

METRICS_FILE = "metrics.jsonl"
Tell = Callable[[int, int, dict[str, float]], object]


def event_writer() -> Any:
    """TensorBoard's `SummaryWriter`.

    Raises:
        typer.BadParameter: its package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise typer.BadParameter(
            f"--tensorboard wants the package tensorboard ({error}): pip install tensorboard"
        ) from error
    return SummaryWriter


def log_epochs(out: Path, make_writer: Any, tell: Tell) -> Tell:
    """The progress callback of `fit` that logs each epoch. What is logged of it and of later ones already is dropped.

    Args:
        out: the run's folder, made with the first line.
        make_writer: what `event_writer` gave; None: no event files.
        tell: called then.
    """
    writers: list[Any] = []

    def log(epoch: int, max_epochs: int, metrics: dict[str, float]) -> None:
        path = out / METRICS_FILE
        if not writers:
            out.mkdir(parents=True, exist_ok=True)
            _keep_lines(path, epoch)
            folder = str(out / "tensorboard")
            writers.append(make_writer and make_writer(folder, purge_step=epoch + 1))
        with open(path, "a") as file:
            file.write(_line(epoch, metrics))
        if writers[0] is not None:
            for name, value in metrics.items():
                writers[0].add_scalar(name, value, epoch + 1)
            writers[0].flush()
        tell(epoch, max_epochs, metrics)

    return log


def whole_log(history: Mapping[str, Any]) -> str:
    """All lines of a run that has ended.

    >>> whole_log({"elbo": [1.5, 2.5]})
    '{"epoch": 1, "elbo": 1.5}\\n{"epoch": 2, "elbo": 2.5}\\n'
    """
    rows = zip(*history.values(), strict=True)
    return "".join(
        _line(epoch, dict(zip(history, map(float, row), strict=True))) for epoch, row in enumerate(rows)
    )


def _line(epoch: int, metrics: Mapping[str, float]) -> str:
    return json.dumps({"epoch": epoch + 1, **metrics}) + "\n"


def _keep_lines(path: Path, count: int) -> None:
    """Cut a file after so many lines."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())
