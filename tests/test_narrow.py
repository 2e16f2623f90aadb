"""Figures for narrow screens: panels and legends below one another, each with its own axis, nothing cut off."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyrovae.reporting.narrow import make_narrow


def figure(rows: int, columns: int, width: float = 9.0) -> Figure:
    made = Figure(figsize=(width, 3.0), layout="constrained")
    for ax in made.subplots(rows, columns, squeeze=False, sharey=True).ravel():
        ax.plot([0, 1], label="a line with a name of several words")
        ax.set_xlabel("a label that is longer than four inches can hold in one line")
    made.axes[0].set_ylabel("nats")
    made.legend(*made.axes[0].get_legend_handles_labels(), loc="outside right center")
    return made


def test_panels_and_legend_stand_below_one_another() -> None:
    made = figure(1, 3)
    assert make_narrow(made)
    made.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in made.axes]
    below = [made.legends[0].get_window_extent(), *boxes[::-1]]
    assert all(lower.y1 < upper.y0 for lower, upper in pairwise(below))
    assert [ax.get_ylabel() for ax in made.axes] == ["nats"] * 3
    assert all(ax.yaxis.get_ticklabels()[0].get_visible() for ax in made.axes)
    assert max(map(len, made.axes[0].get_xlabel().split("\n"))) <= 28
    whole = made.get_tightbbox()
    assert whole.x0 >= 0
    assert whole.x1 <= made.get_figwidth() == 4.0


def test_names_that_would_meet_stand_upright() -> None:
    made = Figure(figsize=(9, 3), layout="constrained")
    ax = made.subplots()
    for names, turned in ((["a", "b"], 0), ([f"a name {i}" for i in range(9)], 90)):
        ax.set_xticks(range(len(names)), names)
        made.set_size_inches(9, 3)
        make_narrow(made)
        assert ax.get_xticklabels()[0].get_rotation() == turned


def test_of_a_table_of_pictures_the_first_columns_stay() -> None:
    made = Figure(figsize=(9, 3), layout="constrained")
    for i, ax in enumerate(made.subplots(2, 10).ravel()):
        ax.imshow(np.full((2, 2), i))
    make_narrow(made)
    assert [int(ax.images[0].get_array()[0, 0]) for ax in made.axes] == [0, 1, 2, 3, 10, 11, 12, 13]


@pytest.mark.parametrize("made", [Figure(figsize=(9, 3)), figure(1, 1, width=3.5)])
def test_what_is_narrow_or_empty_stays(made: Figure) -> None:
    before = made.get_size_inches().tolist()
    assert not make_narrow(made)
    assert made.get_size_inches().tolist() == before
