"""The report: one self-contained HTML page of a result tree, the verdict first, without scripts or network."""

import os
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pyrovae.reporting import report_facts as facts
from pyrovae.reporting.report_figures import Drawn, Undrawn, draw_figures
from pyrovae.reporting.report_links import linked, places_of
from pyrovae.results.advice import advice
from pyrovae.results.headline import headline
from pyrovae.results.places import replacing
from pyrovae.results.schema import check
from pyrovae.results.storage import content_hash
from pyrovae.results.verdicts import findings

__all__ = ["render_report", "write_report"]


def write_report(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a result tree as one HTML page that needs no other file, replacing what is there, whole or not at all.

    The page holds the verdict in a sentence, the numbers of `summary`, sentences and advice that link to the rows and
    figures that they are taken from, figures, refused data, what was not measured, and settings. A figure that cannot
    be drawn leaves its reason in its place. The same tree gives the same page.

    Args:
        tree: A result tree; groups that it lacks are told as not measured.
        path: A file that ends in .html or .htm.

    Raises:
        ValueError: If the tree does not pass `check`, or the ending is another one.

    Examples:
        >>> import tempfile
        >>> made = xr.Dataset({"elbo": ("epoch", [-9.0, -8.0])}, {"epoch": [1, 2]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(xr.DataTree.from_dict({"history": made}), f"{folder}/report.html")
        ...     Path(folder, "report.html").read_text()[:15]
        '<!doctype html>'
    """
    target = Path(path)
    if target.suffix not in (".html", ".htm"):
        raise ValueError(f"a report is written as .html, got {target.name!r}: change the ending")
    text = render_report(tree)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_report(tree: xr.DataTree) -> str:
    """The page of `write_report` as text.

    Raises:
        ValueError: If the tree does not pass `check`.
    """
    check(tree)
    rows, estimates, drawn = facts.headline_table(tree), facts.evidence_table(tree), draw_figures(tree)
    numbers = places_of(rows, estimates)
    page: dict[str, Any] = {
        "headline": headline(tree),
        "about": _about(tree),
        "rows": rows,
        "findings": [linked(finding.sentence, finding.group, numbers, drawn) for finding in findings(tree)],
        "advice": [linked(sentence, "", numbers, drawn) for sentence in advice(tree)],
        "evidence": estimates,
        "figures": [_safe(figure) for figure in drawn],
        "refusals": facts.refusals(tree),
        "missing": facts.not_measured(tree),
        "notes": facts.notes(tree),
        "settings": facts.settings(tree),
        "commands": facts.command_lines(tree),
        "is_all_recorded": "command" in tree.attrs,
        "hash": content_hash(tree),
        "css": Markup(_packaged("report.css")),
    }
    return _environment().from_string(_packaged("report.html.jinja")).render(page)


def _environment() -> Environment:
    """Everything is escaped but what is marked as safe here: the style sheet and the figures."""
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _packaged(name: str) -> str:
    return files("pyrovae.reporting").joinpath("page", name).read_text(encoding="utf-8")


def _about(tree: xr.DataTree) -> list[str]:
    """Who, how many, with what: the line below the headline."""
    attrs = {str(name): value for name, value in tree.attrs.items()}
    groups = list(tree.children.values())[
        ::-1
    ]  # the first to have a dim counts: later ones may be of other data
    sizes = {str(dim): size for node in groups for dim, size in node.sizes.items()}
    number = partial(_counted, attrs, sizes)
    told = [number("num_data", "datum", "data"), number("latent_dim", "latent", "latent coordinates")]
    told += [f"{name} {attrs[name]}" for name in ("seed", "dtype", "device") if name in attrs]
    return [text for text in told if text]


def _counted(attrs: dict[str, Any], sizes: dict[str, int], attr: str, dim: str, words: str) -> str:
    count = attrs.get(attr, sizes.get(dim))
    return "" if count is None else f"{count} {words}"


def _safe(figure: Drawn | Undrawn) -> Drawn | Undrawn:
    """The elements of a figure are made by us, with what people named escaped."""
    if isinstance(figure, Undrawn):
        return figure
    return figure._replace(svg=Markup(figure.svg), narrow=Markup(figure.narrow))
