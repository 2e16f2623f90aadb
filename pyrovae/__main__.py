"""`python -m pyrovae` is the command `pyrovae`."""

from pyrovae.cli import app

app()
