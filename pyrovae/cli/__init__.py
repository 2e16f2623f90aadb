"""The command line: one file a command. Nothing heavy is imported before a command runs."""

from typing import Annotated

import typer

from pyrovae.cli.audit import audit
from pyrovae.cli.demo import demo
from pyrovae.cli.doctor import doctor
from pyrovae.cli.gaps import gaps
from pyrovae.cli.gradients import gradients
from pyrovae.cli.measure import decompose, evidence, reconstruct
from pyrovae.cli.merge import merge
from pyrovae.cli.report import report
from pyrovae.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    help="Train variational autoencoders written in Pyro, then measure how good the inference is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(is_asked: bool) -> bool:
    if is_asked:
        from pyrovae import __version__

        typer.echo(__version__)
        raise typer.Exit
    return is_asked


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """What comes before a command."""


COMMANDS = (demo, train, audit, evidence, gradients, gaps, decompose, reconstruct, report, merge, doctor)
for command in COMMANDS:
    app.command()(command)
