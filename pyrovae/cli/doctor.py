"""`pyrovae doctor`: versions, devices, and a short check of this installation against exact answers."""

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import DTYPES, AsJson, Device, Quiet, threads_set
from pyrovae.cli.self_checks import self_checks
from pyrovae.cli.show import FAILED, choose_device, print_error, progress

if TYPE_CHECKING:
    from rich.console import Console

    from pyrovae.cli.self_checks import Check

__all__ = ["doctor"]

PACKAGES = ("pyrovae", "torch", "pyro-ppl", "numpy", "xarray", "arviz-stats", "arviz-base", "scikit-learn")


def doctor(
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; more than one are slower here.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print versions and devices, and check this installation against exact answers: about 20 seconds."""
    from rich.console import Console

    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    console, place = Console(quiet=quiet or as_json), choose_device(device)
    with threads_set(threads):
        facts = _facts(place)
        for name, value in facts.items():
            console.print(f"{name}: {value}", markup=False, highlight=False)
        checks = []
        with progress(console) as bars:
            task = bars.add_task("checks", total=None, note="")
            for check in self_checks(place, dtype):
                checks.append(check)
                bars.update(task, note=check.name)
    _print(console, checks)
    if as_json:
        typer.echo(json.dumps({"facts": facts, "checks": [check.plain() for check in checks]}, indent=1))
    if failed := [check.name for check in checks if not check.is_passed]:
        told = f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}."
        print_error(Console(stderr=True), told)
        raise typer.Exit(FAILED)


def _facts(place: str) -> dict[str, str]:
    """What a report of an error should name."""
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "CUDA devices": ", ".join(cards) or "none",
        "C++ compiler": next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "none"),
        "threads": str(torch.get_num_threads()),
        "checked on": place,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _print(console: "Console", checks: "list[Check]") -> None:
    """Every check as a row."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("check", "error", "limit", "unit", "s", "", "what"):
        table.add_column(
            name, overflow="fold", justify="right" if name in ("error", "limit", "s") else "left"
        )
    for check in checks:
        outcome = "passed" if check.is_passed else "FAILED"
        numbers = (f"{check.error:.2g}", f"{check.limit:.2g}", check.unit, f"{check.seconds:.1f}")
        table.add_row(check.name, *numbers, outcome, check.note)
    console.print(table)
    passed: list[Any] = [check for check in checks if check.is_passed]
    console.print(f"{len(passed)} of {len(checks)} checks passed.", highlight=False)
