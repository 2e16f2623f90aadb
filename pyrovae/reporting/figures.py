"""What every figure shares: the groups it needs, its colours and title, and how it is saved."""

import os
import textwrap
from pathlib import Path
from typing import Final

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from pyrovae.results.places import replacing

__all__ = [
    "COLORS",
    "data_variable",
    "new_figure",
    "require",
    "save_figure",
    "set_title",
    "simplify",
]

COLORS: Final = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#767676",
}
"""The palette of Okabe and Ito (2008), which colour-blind people can tell apart, and a grey."""

_MEASURED_BY: Final = {
    "history": "pyrovae.fit",
    "posterior": "pyrovae.sample_posterior or pyrovae.audit",
    "guide": "pyrovae.compare or pyrovae.audit",
    "evidence": "pyrovae.evidence_table or pyrovae.audit",
    "sandwich": "pyrovae.evidence_table with 'bidirectional', or 'exact' or 'quadrature', among its methods",
    "observed_data": "pyrovae.audit",
    "prior_predictive": "pyrovae.reconstruct or pyrovae.audit",
    "decomposition": "pyrovae.decompose",
    "comparison": "pyrovae.compare or pyrovae.audit",
    "gaps": "pyrovae.inference_gaps or pyrovae.audit",
    "calibration": "pyrovae.calibrate or pyrovae.audit",
    "prior": "pyrovae.audit",
    "gradients": "pyrovae.gradient_statistics",
    "reconstruction": "pyrovae.reconstruct or pyrovae.audit",
}
_NO_DATE: Final = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same figure, the same file
_TITLE_SIZE: Final = 11


def require(tree: xr.DataTree, name: str, variable: str) -> xr.Dataset:
    """A group that a figure cannot do without.

    Raises:
        ValueError: If the tree lacks it, with what measures it.

    Examples:
        >>> require(xr.DataTree(), "history", "elbo")
        Traceback (most recent call last):
        ValueError: the figure needs 'elbo' of group 'history', which the tree lacks; pyrovae.fit measures it
    """
    if name not in tree.children or variable not in tree[name].data_vars:
        raise ValueError(
            f"the figure needs {variable!r} of group {name!r}, which the tree lacks; {_MEASURED_BY[name]} measures it"
        )
    return tree[name].to_dataset()


def data_variable(tree: xr.DataTree) -> str:
    """The name of the data: "x", or else the first variable of `observed_data` that was reconstructed too.

    Examples:
        >>> observed = xr.Dataset({"label": ("datum", [1]), "pixels": ("datum", [0.5])}, {"datum": [0]})
        >>> drawn = xr.Dataset({"pixels": (("draw", "datum"), [[0.5]])}, {"datum": [0]})
        >>> data_variable(xr.DataTree.from_dict({"observed_data": observed, "reconstruction": drawn}))
        'pixels'
    """
    groups = [tree[name].data_vars for name in ("observed_data", "reconstruction") if name in tree.children]
    names = [str(name) for name in (groups[0] if groups else ()) if all(name in group for group in groups)]
    return names[0] if names and "x" not in names else "x"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, outside pyplot's global state."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def set_title(figure: Figure, text: str) -> None:
    """Write a statement above a figure, from its left edge, in as few lines as fit, about equally long."""
    limit = 0.97 * 72 * figure.get_figwidth()
    broken = {textwrap.fill(text, characters) for characters in range(20, len(text) + 20)}
    fitting = [lines for lines in broken if _width(lines) <= limit] or [textwrap.fill(text, 20)]
    best = min(fitting, key=lambda lines: (lines.count("\n"), _width(lines)))
    figure.suptitle(best, x=0.01, ha="left", fontsize=_TITLE_SIZE)


def _width(lines: str) -> float:
    """Width in points of the longest line, set as a title."""
    font = FontProperties(size=_TITLE_SIZE)
    widths = [TextToPath().get_text_width_height_descent(line, font, False)[0] for line in lines.split("\n")]
    return float(max(widths))


def simplify(ax: Axes) -> None:
    """Take away what carries no data: the upper and right frame."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Save a figure as png, svg or pdf, by the ending of `path`; whole or not at all.

    Raises:
        ValueError: If the ending is another one.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(2.0, 1.0), f"{folder}/empty.png")
        ...     [path.name for path in Path(folder).iterdir()]
        ['empty.png']
    """
    target = Path(path)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a figure is saved as .png, .svg or .pdf, got {target.name!r}")
    with replacing(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:], dpi=dpi, metadata=_NO_DATE.get(target.suffix))
