"""Tables on the terminal: on 80 columns no number is cut off."""

from io import StringIO

import pytest
from rich.console import Console
from trees import full_tree

import pyrovae as pv
from pyrovae.cli.show import print_summary


@pytest.mark.parametrize("width", [80, 70])
def test_the_summary_keeps_every_number_on_a_narrow_terminal(width):
    tree, text = full_tree(), StringIO()
    print_summary(Console(file=text, width=width), tree, "digits")
    lines = text.getvalue().splitlines()
    assert "…" not in text.getvalue()
    assert any(line.split()[-1:] == ["doubt"] for line in lines)
    counts = [f"{row['num_data']} {row['num_refused']}" for _, row in pv.summary(tree).iterrows()]
    shown = [
        " ".join(line.split()[-2:]) for line in lines if line.split()[-1:] and line.split()[-1].isdigit()
    ]
    assert [line for line in shown if line in counts] == counts
