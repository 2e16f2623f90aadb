"""`pyrovae report RUN`: everything that was measured of a run as one HTML page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyrovae.cli.common import AsJson, Common, Quiet, plain
from pyrovae.cli.show import BAD_INPUT, failures, print_error

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["report"]

Results = Annotated[Path, typer.Argument(help="Folder of a run, or one file of results in it.")]
Page = Annotated[
    Path | None, typer.Option(help="The page, an .html file; by default report.html in the folder.")
]


def report(run: Results, out: Page = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Write one self-contained page: the verdict first, then numbers, advice, figures, refusals and settings."""
    from pyrovae.reporting.report import write_report
    from pyrovae.results.gathering import gather
    from pyrovae.results.headline import headline

    common = Common(as_json=as_json, quiet=quiet)
    page = _page(out or (run if run.is_dir() else run.parent) / "report.html")
    try:
        tree = gather(run)
    except (OSError, ValueError) as error:
        print_error(common.errors, error)
        raise typer.Exit(BAD_INPUT) from error
    with failures():
        write_report(tree, page)
    if as_json:
        typer.echo(_as_json(tree, page))
    common.console.print(headline(tree), markup=False, highlight=False)
    common.console.print(f"Written to {page}.", markup=False, highlight=False)


def _page(page: Path) -> Path:
    """The same path, if a page can stand there.

    Raises:
        typer.BadParameter: another ending, a folder, or in no folder.
    """
    if page.suffix not in (".html", ".htm"):
        raise typer.BadParameter(f"--out must end in .html, got {page.name!r}")
    if page.is_dir():
        raise typer.BadParameter(f"--out must be a file, but {page} is a folder")
    if not page.parent.is_dir():
        raise typer.BadParameter(f"--out must be in a folder that is there, got {page}")
    return page


def _as_json(tree: "xr.DataTree", page: Path) -> str:
    """What the page says, for programs."""
    from pyrovae.results.advice import advice
    from pyrovae.results.headline import headline

    said = {"headline": headline(tree), "advice": advice(tree)}
    return json.dumps({**said, **plain(tree, [str(page)])}, indent=1)
