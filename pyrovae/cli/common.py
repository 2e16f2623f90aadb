"""What every measuring command takes: seed, device, dtype, threads, where to write, going on, and how to print."""

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.show import FAILED, failures, print_error

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = [
    "DTYPES",
    "AsJson",
    "Common",
    "Device",
    "Quiet",
    "Threads",
    "check_out",
    "plain",
    "threads_set",
    "with_common",
]

DTYPES = ("float32", "float64")
RESUME = ("auto", "none")

Seed = Annotated[int, typer.Option(min=0, help="Seed of the draws.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
DType = Annotated[str | None, typer.Option(help="float32 or float64; by default as the run was trained.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch; by default as torch has them.")]
Out = Annotated[Path | None, typer.Option(help="Folder for what is written; by default the run's.")]
Resume = Annotated[str, typer.Option(help="auto: keep what the same command left there; none: measure anew.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only; and what --json prints.")]


@dataclass(frozen=True, kw_only=True)
class Common:
    """The common options of a command, as they were given."""

    seed: Seed = 0
    device: Device = "auto"
    dtype: DType = None
    threads: Threads = None
    out: Out = None
    resume: Resume = "none"
    as_json: AsJson = False
    quiet: Quiet = False

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise typer.BadParameter(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.resume not in RESUME:
            raise typer.BadParameter(f"--resume must be one of {', '.join(RESUME)}, got {self.resume!r}")
        if self.out is not None:
            check_out(self.out)

    @property
    def console(self) -> "Console":
        """Where a person reads: silent where nobody is to."""
        from rich.console import Console

        return Console(quiet=self.quiet or self.as_json)

    @property
    def errors(self) -> "Console":
        """Where errors are told, whatever is silent."""
        from rich.console import Console

        return Console(stderr=True)

    def folder(self, run: Path) -> Path:
        """Where to write: --out, made if it is not there, else the run's folder."""
        folder = self.out or run
        check_out(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def measured(
        self, run: Path, name: str, settings: Mapping[str, Any], measure: Callable[[], "xr.DataTree"]
    ) -> "xr.DataTree":
        """What the same command left under that name, if --resume asks for it; else measured and written.

        The same are command, settings, seed, dtype and the bytes of the run's model. A file that cannot be read is as
        none, with a notice.
        """
        import pyrovae as pv
        from pyrovae.results.gathering import model_sha256

        path = self.folder(run) / f"{name}.nc"
        about = {**settings, "command": name, "seed": self.seed, "dtype": self.dtype}
        about["model"] = model_sha256(run)
        mark = json.dumps(about, sort_keys=True)
        if self.resume == "auto" and path.is_file():
            kept = self._kept(path)
            if kept is not None and kept.attrs.get("command") == mark:
                return kept
        tree = measure()
        tree.attrs["command"] = mark
        pv.write(tree, path)
        return tree

    def _kept(self, path: Path) -> "xr.DataTree | None":
        """What a file holds, None if it is damaged, which is said."""
        import pyrovae as pv

        try:
            return pv.read(path)
        except Exception as error:  # HDF5 raises almost anything on damaged bytes
            notice = f"{path} cannot be read and is measured anew: {error}"
            self.errors.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
            return None

    def tell(
        self, tree: "xr.DataTree", files: Sequence[str], folder: Path, show: Callable[["Console"], None]
    ) -> None:
        """Show a tree to a person by `show`, or to a program as JSON, and say what was written."""
        if self.as_json:
            typer.echo(json.dumps(plain(tree, [str(folder / name) for name in files]), indent=1))
            return
        show(self.console)
        self.console.print(f"Written to {folder}: {', '.join(files)}.", markup=False, highlight=False)

    def without_verdict(self, sentences: Iterable[str]) -> typer.Exit:
        """The exit of a command that gives no verdict, after saying so in these words, whatever is silent."""
        print_error(self.errors, " ".join(sentences))
        return typer.Exit(FAILED)


def check_out(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed; makes nothing.

    Raises:
        typer.BadParameter: it, or the nearest one above it that is there, is a file or not to be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise typer.BadParameter(f"--out must be a folder, but {there} is a file: pass another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise typer.BadParameter(
            f"--out must be a folder to write to, but {there} is closed to you: pass another one"
        )


def plain(tree: "xr.DataTree", files: Sequence[str]) -> dict[str, Any]:
    """What a person would read, for programs; NaN is null."""
    import pandas as pd

    import pyrovae as pv

    tables = {"summary": pv.summary(tree)}
    if "evidence" in tree.children:
        tables["evidence"] = pv.evidence_summary(tree)
    if "gradients" in tree.children:
        tables["gradients"] = pv.gradient_summary(tree)
    rows: dict[str, Any] = {
        name: json.loads(pd.DataFrame(table).reset_index().to_json(orient="records", double_precision=15))
        for name, table in tables.items()
    }
    return {**rows, "sentences": pv.verdict_sentences(tree), "files": list(files)}


def with_common(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, whose first argument is a `Common`, an option for every field of it; some with other defaults."""
    return partial(_with_common, defaults)


def _with_common(defaults: Mapping[str, Any], command: Callable[..., None]) -> Callable[..., None]:
    own = list(inspect.signature(command).parameters.values())[1:]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=field.type,
        )
        for field in fields(Common)
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        common = Common(**{field.name: given.pop(field.name) for field in fields(Common)})
        with failures(), threads_set(common.threads):
            command(common, **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


@contextmanager
def threads_set(number: int | None) -> Iterator[None]:
    """Within the block torch has that many threads; None: as before."""
    if number is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
