"""A figure as SVG inside a page: ids of its own, text as text, colours that follow the page's light and dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Final

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["inline_svg", "page_style"]

_MANY: Final = 150  # points from which marks are drawn as one picture: it is smaller
_DPI: Final = 200  # of such pictures
_COLORS: Final = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#767676": "var(--faint)",
    "#0072b2": "var(--blue)",
}
"""Of the figures' palette, those that a dark page cannot show, and what the page calls them."""
_TAG: Final = re.compile(r"<[^>]+>")
_NOT_FOR_PAGES: Final = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.S
)


@contextmanager
def page_style() -> Iterator[None]:
    """Settings of matplotlib under which figures for a page are made and written; as they were, afterwards."""
    settings = {"svg.fonttype": "none", "svg.image_inline": True, "font.family": ["sans-serif"]}
    with matplotlib.rc_context(settings):
        yield


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an `<svg>` element that scales with the page.

    Every id starts with `prefix`, so that figures on one page do not share any. Black and white become the page's ink
    and paper. Marks of more than 150 points become a picture. The element has the role of an image, named by `label`.

    Args:
        figure: Drawn under `page_style`.
        prefix: A word of letters, digits and hyphens, another one for each figure of a page.
        label: What a person who does not see it is told.

    Returns:
        The element, without XML header; what is in `label` is escaped.

    Examples:
        >>> with page_style():
        ...     text = inline_svg(Figure(figsize=(2, 1)), "a", "nothing < something")
        >>> text[:4], 'aria-label="nothing &lt; something"' in text, 'id="a-figure_1"' in text
        ('<svg', True, True)
    """
    for ax in figure.axes:
        for artist in (*ax.collections, *ax.lines):
            _flatten(artist)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", dpi=_DPI, facecolor="none", metadata={"Date": None})
    text = _NOT_FOR_PAGES.sub("", buffer.getvalue()).strip()
    text = _TAG.sub(lambda tag: _own(tag[0], prefix), text)
    return _named(text, label)


def _flatten(artist: Artist) -> None:
    """Draw clouds of many points as a picture."""
    is_cloud = isinstance(artist, PathCollection) and np.shape(artist.get_offsets())[0] > _MANY
    has_marks = isinstance(artist, Line2D) and artist.get_marker() not in ("", "None", None)
    if is_cloud or (has_marks and isinstance(artist, Line2D) and np.shape(artist.get_xydata())[0] > _MANY):
        artist.set_rasterized(True)


def _own(tag: str, prefix: str) -> str:
    """One tag with its ids and colours made the page's; text between tags is never touched."""
    tag = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', tag)
    tag = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", tag)
    tag = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', tag)
    for color, role in _COLORS.items():
        tag = tag.replace(f": {color}", f": {role}")
    return re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", tag)


def _named(text: str, label: str) -> str:
    """Give the element its role and name, and let its width follow the page."""
    start, end = text.index("<svg"), text.index(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", text[start:end])
    width = re.search(r' width="([\d.]+)pt"', text[start:end])
    size = f' style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    return f'{head}{size} role="img" aria-label="{escape(label)}">{text[end + 1 :]}'
