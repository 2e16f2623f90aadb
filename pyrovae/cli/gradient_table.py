"""Gradient estimators on the terminal: a table for each part of the parameters, what training did, the sentences."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyrovae.cli.show import SMALLEST_ERROR, with_error

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

    from pyrovae.results.gradients import Record

__all__ = ["print_gradients"]

COLUMNS: dict[str, Any] = {
    "estimator": "left",
    "K": "right",
    "SNR": "right",
    "own\nbias": "right",
    "of\nlog p": "right",
    "cosine": "right",
    "var x s": "right",
    "time": "right",
    "K for\nSNR 1": "right",
}
PATH_COLUMNS = {"log_evidence": "log p(x)", "elbo": "ELBO", "kl_posterior": "KL to the posterior"}


def print_gradients(console: "Console", tree: "xr.DataTree", title: str) -> None:
    """Every gradient estimator as a row, a table for each part, those along training too, and the sentences."""
    import pyrovae as pv
    from pyrovae.results.gradients import gradient_records

    rows = gradient_records(tree)
    last = rows[-1]["epoch"]
    at = "" if last is None else f", epoch {last}"
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part and row["epoch"] == last]
        _print_part(console, own, f"{title}: {part}{at}")
    console.print(
        "SNR of one gradient; bias of its mean over the length of its objective's gradient, and of that of log p(x); "
        "cosine to its objective's; variance x seconds; time of one gradient; particles, in independent estimates, for "
        "an SNR of 1. <: cannot be told from 0.",
        highlight=False,
    )
    _print_path(console, tree)
    for sentence in pv.verdict_sentences(tree):
        console.print(f"- {sentence}", markup=False, highlight=False)


def _print_part(console: "Console", rows: "Sequence[Record]", title: str) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, pad_edge=False, padding=0)
    has_truth = any(row["evidence_bias"] == row["evidence_bias"] for row in rows)
    names = [name for name in COLUMNS if has_truth or name != "of\nlog p"]
    for name in names:
        # Where the terminal is too narrow, the names are folded: no digit is cut off.
        table.add_column(name, no_wrap=name != "estimator", overflow="fold", justify=COLUMNS[name])
    for row in rows:
        cells = _gradient_cells(row)
        table.add_row(*(cells[name] for name in names))
    console.print(table)


def _gradient_cells(row: "Record") -> dict[str, str]:
    is_known = row["snr_squared"] == row["snr_squared"]
    return {
        "estimator": row["method"],
        "K": str(row["count"]),
        "SNR": _snr(row),
        "own\nbias": _bias(row, "own_bias"),
        "of\nlog p": _bias(row, "evidence_bias"),
        "cosine": f"{row['cosine_own']:.3f}" if row["cosine_own"] == row["cosine_own"] else "",
        "var x s": f"{row['variance_seconds']:.1e}" if is_known else "",
        "time": _time(row["seconds"]) if row["seconds"] == row["seconds"] else "",
        "K for\nSNR 1": _large(row["particles_for_snr_1"]),
    }


def _snr(row: "Record") -> str:
    """The SNR with its error, or what it is below."""
    if row["snr_squared"] != row["snr_squared"]:
        return ""
    if not row["snr_low"] > 0:
        return f"<{row['snr_high']:.2g}"
    snr, error = row["snr"], row["snr_std_error"]
    if not (error >= SMALLEST_ERROR and snr < 1000):
        return f"{snr:.3g}"
    digits = min(1 - math.floor(math.log10(error)), 3 - max(math.floor(math.log10(snr)), 0))
    return f"{snr:.{max(digits, 0)}f} ± {error:.{max(digits, 0)}f}"


def _bias(row: "Record", name: str) -> str:
    """In per cent, or what it is below; "?" where that says nothing."""
    squared, error = row[f"{name}_squared"], row[f"{name}_squared_std_error"]
    if squared != squared:
        return ""
    is_sure = squared > 2 * error
    size = 100 * math.sqrt(squared if is_sure else max(squared, 0.0) + 2 * error)
    shown = f"{size:.0f}%" if size >= 10 else f"{size:.1f}%"
    if size >= 1000:
        return ">999%" if is_sure else "?"
    return shown if is_sure else f"<{shown}"


def _time(seconds: float) -> str:
    """At most six characters, so that the width of the table does not hang on the machine."""
    for unit, size in (("h", 3600.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.{int(seconds < 10 * size)}f} {unit}"
    return f"{1e6 * seconds:.0f} µs"


def _large(count: float) -> str:
    """A number of particles in at most five characters."""
    if not math.isfinite(count):
        return "inf" if count > 0 else ""
    return f"{math.ceil(count)}" if count < 10_000 else f"{count:.0e}"


def _print_path(console: "Console", tree: "xr.DataTree") -> None:
    """log p(x), the ELBO and their difference at every checkpoint."""
    from rich import box
    from rich.table import Table

    if "history" not in tree.children or "kl_posterior" not in tree["history"].data_vars:
        return
    path = tree["history"].to_dataset()
    table = Table(
        title="Along training, nats per datum", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in ("epoch", *PATH_COLUMNS.values()):
        table.add_column(name, justify="right")
    for i, epoch in enumerate(path["epoch"].values):
        pairs = [(float(path[name][i]), float(path[f"{name}_std_error"][i])) for name in PATH_COLUMNS]
        table.add_row(str(epoch), *(with_error(*pair) for pair in pairs))
    console.print(table)
