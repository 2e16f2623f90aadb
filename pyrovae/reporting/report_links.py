"""Where on the page the numbers of a sentence stand: the rows of a table that hold them, a figure of its group."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from pyrovae.reporting.report_figures import Drawn, Undrawn

__all__ = ["Place", "Said", "linked", "places_of"]

_SEEN_IN: Final = {"sandwich": "evidence", "diagnostics": "comparison"}  # a group without figure of its own


class Place(NamedTuple):
    """An anchor of the page, and what its link is called."""

    anchor: str
    name: str


class Said(NamedTuple):
    """A sentence, and where its numbers stand."""

    sentence: str
    places: list[Place]


def places_of(rows: Sequence[Mapping[str, str]], estimates: Sequence[Mapping[str, str]]) -> dict[str, Place]:
    """{number with its error bar, as it is written: its place}: values in the first table, biases in the second.

    Examples:
        >>> places_of([{"value": "12"}, {"value": "0.80 ± 0.02"}], [{"bias": "-1.0 ± 0.1", "method": "iwae"}])
        {'-1.0 ± 0.1': Place(anchor='estimate-1', name='iwae'), '0.80 ± 0.02': Place(anchor='number-2', name='row 2')}
    """
    found = {row["bias"]: Place(f"estimate-{i}", row["method"]) for i, row in enumerate(estimates, 1)}
    for i, row in reversed([*enumerate(rows, 1)]):  # of equal numbers the first counts
        found[row["value"]] = Place(f"number-{i}", f"row {i}")
    return {text: place for text, place in found.items() if "±" in text}


def linked(
    sentence: str, group: str, numbers: Mapping[str, Place], figures: Sequence[Drawn | Undrawn]
) -> Said:
    """A sentence with the places of the numbers that it tells and the first figure of its group.

    A number is known by its error bar too, which sentences write as the tables do. Where neither is found, the place is
    the whole table.

    Examples:
        >>> numbers = {"0.80 ± 0.02": Place("number-2", "row 2")}
        >>> linked("The guide is too narrow (0.80 ± 0.02).", "comparison", numbers, []).places
        [Place(anchor='number-2', name='row 2')]
    """
    held = [
        place
        for text, place in numbers.items()
        if re.search(rf"(?<![\d.-]){re.escape(text)}(?!\d)", sentence)
    ]
    places = [*held, *_figure(group, figures)]
    return Said(sentence, places or [Place("numbers", "the numbers")])


def _figure(group: str, figures: Sequence[Drawn | Undrawn]) -> Iterator[Place]:
    drawn = [figure for figure in figures if isinstance(figure, Drawn)]
    for i, figure in enumerate(drawn, 1):
        if group and figure.group == _SEEN_IN.get(group, group):
            yield Place(f"figure-{figure.key}", f"figure {i}")
            return
