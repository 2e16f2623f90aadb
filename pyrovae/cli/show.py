"""What commands share on the terminal: devices, progress bars, the verdict table."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "METRICS",
    "WRONG_OPTIONS",
    "choose_device",
    "failures",
    "print_error",
    "print_evidence",
    "print_summary",
    "progress",
    "stage_bar",
    "stage_bars",
    "training_bar",
    "with_error",
]

COLUMNS: dict[str, Any] = {
    "estimator": "left",
    "nats": "right",
    "direction": "left",
    "bias": "right",
    "evals": "right",
    "s": "right",
    "doubt": "right",
}
METRICS = {
    "val_elbo": "validation ELBO",
    "val_bound": "validation bound",
    "elbo": "ELBO",
    "bound": "bound",
    "weighted_elbo": "weighted ELBO",
}
"""What the history of a run may hold, the first of which is shown."""
SMALLEST_ERROR = 5e-4  # nats; smaller ones are not shown
WRONG_OPTIONS, FAILED, BAD_INPUT = 2, 3, 4
"""Exit codes: wrong options; training failed or no datum has a verdict; data or a run cannot be read."""


def choose_device(name: str) -> str:
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


@contextmanager
def progress(console: "Console") -> Iterator["Progress"]:
    """Progress bars with a note behind each."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield bars


def training_bar(bars: "Progress", max_epochs: int) -> Any:
    """The progress callback of `fit`, shown as a bar."""
    task = bars.add_task("training", total=max_epochs, note="")

    def tell(epoch: int, total: int, metrics: dict[str, float]) -> None:
        name = next(name for name in METRICS if name in metrics)
        label = METRICS[name]
        bars.update(
            task, completed=epoch + 1, note=f"epoch {epoch + 1} of {total}, {label} {metrics[name]:.2f} nats"
        )

    return tell


def stage_bar(bars: "Progress", name: str) -> Any:
    """A progress callback (stage, done, total), shown as a bar."""
    task = bars.add_task(name, note="")
    return lambda stage, done, total: bars.update(task, completed=done, total=total, note=stage)


def stage_bars(bars: "Progress") -> Any:
    """A progress callback (stage, done, total) with one bar a stage."""
    tasks: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, note="")
        bars.update(tasks[stage], completed=done, total=total)

    return tell


def print_error(console: "Console", error: Exception | str) -> None:
    """A message as it is: what stands in brackets is text, not rich's markup."""
    console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def failures() -> Iterator[None]:
    """What the model or the machine cannot do ends the command with its own exit code and the reason; a full disk, too.

    Not with the 1 of Python's tracebacks, which says that a gate failed.
    """
    from rich.console import Console

    try:
        yield
    except (typer.Exit, typer.Abort):  # which are RuntimeErrors
        raise
    except (FloatingPointError, NotImplementedError, OSError, RuntimeError) as error:
        print_error(Console(stderr=True), error)
        raise typer.Exit(FAILED) from error


def print_summary(console: "Console", tree: "xr.DataTree", title: str) -> None:
    """The headline numbers of a result tree as a table, and the sentences that they allow."""
    from rich import box
    from rich.table import Table

    import pyrovae as pv

    table = Table(title=title, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("quantity", overflow="fold")  # the one that gives way where the terminal is narrow
    for name in ("value", "unit", "direction", "data", "doubt"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("unit", "direction") else "right")
    for quantity, row in pv.summary(tree).iterrows():
        error = "" if row["std_error"] != row["std_error"] else f" ± {row['std_error']:.2g}"
        counts = (str(row["num_data"]), str(row["num_refused"]))
        unit = row["unit"].removesuffix(" per datum")
        table.add_row(str(quantity), f"{row['value']:.3g}{error}", unit, row["direction"], *counts)
    console.print(table)
    for sentence in pv.verdict_sentences(tree):
        console.print(f"- {sentence}", markup=False, highlight=False)


def print_evidence(console: "Console", tree: "xr.DataTree", title: str) -> None:
    """Every estimator of log p(x) as a row of a table, and the sentences that a result tree allows."""
    from rich import box
    from rich.table import Table

    import pyrovae as pv

    found = pv.evidence_summary(tree)
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, padding=0)
    for name, justify in COLUMNS.items():
        # Where the terminal is too narrow, the names are folded: no digit is cut off.
        table.add_column(name, no_wrap=name != "estimator", overflow="fold", justify=justify)
    for label, row in found.iterrows():
        table.add_row(
            str(label),
            with_error(row["value"], row["std_error"]),
            row["direction"] + ("*" if row["num_approximate"] else ""),
            with_error(row["bias"], row["bias_std_error"]),
            _evaluations(row["num_density_evaluations"], row["num_gradient_evaluations"]),
            _seconds(row["seconds"]),
            str(row["num_refused"]),
        )
    console.print(table)
    notes = [
        "evals: of log p(x, z) per datum; ∇: of its gradient. doubt: data whose error bar is not to be trusted."
    ]
    if found["num_approximate"].any():
        notes.append("*: as far as the reference draws are of the posterior.")
    console.print(*notes, highlight=False)
    for sentence in pv.verdict_sentences(tree):
        console.print(f"- {sentence}", markup=False, highlight=False)


def with_error(value: float, error: float) -> str:
    """A value and its error bar, to the second digit of the error."""
    if value != value:
        return ""
    if not SMALLEST_ERROR <= error < math.inf:
        return f"{value:.3f}"
    digits = min(max(1 - math.floor(math.log10(error)), 0), 3)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _seconds(seconds: float) -> str:
    """At most four characters below three hours, so that the width of the table does not hang on the machine."""
    if seconds < 0.05:
        return "<0.1"
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"


def _evaluations(densities: int, gradients: int) -> str:
    parts = [*([_count(densities)] if densities else []), *([f"{_count(gradients)} ∇"] if gradients else [])]
    return " + ".join(parts)


def _count(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.3g}k"
