"""A figure laid out again for a narrow screen: panels and legends below one another, letters as large as they were."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.ticker import FixedLocator

from pyrovae.reporting.figures import COLORS

__all__ = ["make_narrow"]

_WIDTH: Final = 4.0  # inches: on a telephone's 360 to 400 pixels letters of 9 points keep 8 of them
_PANEL: Final = 2.9  # inches high, at most, where there are several
_LINE: Final = 0.22  # inches of a line of a legend
_MOST_COLUMNS: Final = 4  # of panels; more are a table of small pictures
_CHARACTERS: Final = 28  # of a line of a label
_NAMES: Final = 48  # characters under an axis, side by side


def make_narrow(figure: Figure) -> bool:
    """Put the panels of a figure one below the other, and the legends below these, at 4 inches of width.

    A legend of more than 3 entries goes into one column or two. What the panels shared of a vertical axis each has now.
    Of a table of pictures the first 4 columns stay.

    Returns:
        Whether it was done: not where there is no panel, or the figure is as narrow.

    Examples:
        >>> figure = Figure(figsize=(9, 3), layout="constrained")
        >>> _ = figure.subplots(1, 3)
        >>> make_narrow(figure), figure.get_size_inches().tolist()
        (True, [4.0, 8.7])
    """
    shown = [ax for ax in figure.axes if ax.get_visible()]
    places = {ax: place for ax in shown if (place := ax.get_subplotspec()) is not None}
    if not places or figure.get_figwidth() <= _WIDTH:
        return False
    lines = sum(_move_legend_below(figure, i) for i in range(len(figure.legends)))
    if max(place.get_geometry()[1] for place in places.values()) > _MOST_COLUMNS:
        height = _keep_columns(figure, places)
    else:
        height = _stack(figure, list(places))
    figure.set_size_inches(_WIDTH, height + _LINE * lines)
    return True


def _keep_columns(figure: Figure, places: Mapping[Axes, SubplotSpec]) -> float:
    """The first pictures of each row, and the height in inches that they want."""
    rows = next(iter(places.values())).get_gridspec()
    grid = GridSpec(rows.nrows, _MOST_COLUMNS, figure=figure, height_ratios=rows.get_height_ratios())
    for ax, place in places.items():
        if place.colspan.start < _MOST_COLUMNS:
            ax.set_subplotspec(grid[place.rowspan.start, place.colspan.start])
        else:
            ax.remove()
    figure.supxlabel(fill(figure.get_supxlabel(), 2 * _CHARACTERS), fontsize=8, color=COLORS["grey"])
    return float(figure.get_figheight())


def _stack(figure: Figure, panels: Sequence[Axes]) -> float:
    """The panels one below the other, and the height in inches that they want."""
    rows = GridSpec(len(panels), 1, figure=figure)
    for i, ax in enumerate(panels):
        ax.set_subplotspec(rows[i])
        _unshare(ax, panels[0])
        _break_labels(ax)
        _stand_names_upright(ax)
        _narrow_legend(ax)
    height = float(figure.get_figheight())
    return height if len(panels) == 1 else len(panels) * min(_PANEL, height)


def _unshare(ax: Axes, first: Axes) -> None:
    """The labels of a vertical axis that only its left neighbour had."""
    if ax is not first and ax.get_shared_y_axes().joined(ax, first):
        ax.tick_params(labelleft=True)
        ax.set_ylabel(ax.get_ylabel() or first.get_ylabel())


def _break_labels(ax: Axes) -> None:
    ax.set_xlabel(fill(ax.get_xlabel(), _CHARACTERS))
    ax.set_ylabel(fill(ax.get_ylabel(), _CHARACTERS))


def _stand_names_upright(ax: Axes) -> None:
    if not isinstance(ax.xaxis.get_major_locator(), FixedLocator):
        return
    names = [text.get_text() for text in ax.get_xticklabels()]
    if sum(max(map(len, name.split("\n"))) + 1 for name in names) > _NAMES:
        ax.tick_params(axis="x", labelrotation=90, labelsize=8)


def _narrow_legend(ax: Axes) -> None:
    legend = ax.get_legend()
    if legend is not None and len(legend.get_texts()) > 3:
        legend.set_ncols(1 if legend.get_bbox_to_anchor().y0 < ax.bbox.y0 else 2)


def _move_legend_below(figure: Figure, index: int) -> int:
    """Replace a legend of the figure by one below its panels; the number of its lines."""
    old = figure.legends[index]
    pairs = zip(old.legend_handles, old.get_texts(), strict=True)
    known = [(handle, text.get_text()) for handle, text in pairs if handle is not None]
    old.remove()
    handles, labels = zip(*known, strict=True) if known else ((), ())
    new = figure.legend(handles, labels, loc="outside lower left", ncols=1, frameon=False, fontsize=9)
    figure.legends.insert(index, figure.legends.pop())
    return len(new.get_texts())
