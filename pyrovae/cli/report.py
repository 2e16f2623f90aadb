"""`pyrovae report RUN`: everything that was measured of a run as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from pyrovae.cli.show import BAD_INPUT, print_error

__all__ = ["report"]

Results = Annotated[Path, typer.Argument(help="Folder of a run, or one file of results in it.")]
Page = Annotated[
    Path | None, typer.Option(help="The page, an .html file; by default report.html in the folder.")
]


def report(run: Results, out: Page = None) -> None:
    """Write one self-contained page: the verdict first, then numbers, advice, figures, refusals and settings."""
    from rich.console import Console

    from pyrovae.reporting.report import write_report
    from pyrovae.results.gathering import gather
    from pyrovae.results.headline import headline

    console = Console()
    page = out or (run if run.is_dir() else run.parent) / "report.html"
    if page.suffix not in (".html", ".htm"):
        raise typer.BadParameter(f"--out must end in .html, got {page.name!r}")
    if not page.parent.is_dir():
        raise typer.BadParameter(f"--out must be in a folder that is there, got {page}")
    try:
        tree = gather(run)
    except (OSError, ValueError) as error:
        print_error(console, error)
        raise typer.Exit(BAD_INPUT) from error
    write_report(tree, page)
    console.print(headline(tree), markup=False, highlight=False)
    console.print(f"Written to {page}.", markup=False, highlight=False)
