"""What the measurements of one run left in its folder, put together as one tree as far as they are of the same data."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from pyrovae.results.groups import build_tree
from pyrovae.results.schema import SCHEMA
from pyrovae.results.storage import read

__all__ = ["gather"]

_FILES: Final = (
    "audit",
    "result",
    "evidence",
    "reconstruction",
    "gaps",
    "calibration",
    "decomposition",
    "gradients",
    "history",
)
"""Names of files, the one that has most of a run first."""
_ENDINGS: Final = (".nc", ".zarr")
_TOGETHER: Final = (
    ("evidence", "sandwich"),
    ("observed_data", "reconstruction", "prior_predictive"),
    ("posterior", "posterior_constrained", "sample_stats", "diagnostics"),
)
"""Groups that are of use only from one file."""
_SOME_DATA: Final = ("decomposition", "gaps", "calibration", "gradients", "reconstruction")
"""Groups that may be about fewer data than the others."""
_SLICED: Final = ("observed_data", "reconstruction", "gaps")
"""Groups all of whose numbers are of single data, so that those can be taken that the other groups are about."""
_SAME: Final = ("model", "part", "dtype")

Groups = dict[str, xr.Dataset]


def gather(folder: Path) -> xr.DataTree:
    """Read the result trees of a run and put them together; a group is taken from the first file that has it.

    Evidence with both ends around log p(x) takes the place of evidence without. What is of another model, part of the
    data or number of data than what stands already is left out, which the attribute `notes` tells, with its reason; the
    attributes `run` and `config` hold what `run.json` and `config.toml` say.

    Args:
        folder: Of a run, or a single file of one.

    Raises:
        FileNotFoundError: If there is no result tree.
        ValueError: If one cannot be read or does not pass `check`.

    Examples:
        >>> import tempfile
        >>> from pyrovae.results import build_tree, group, write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(build_tree({"history": group("history", {"elbo": np.zeros(2)})}), f"{folder}/history.nc")
        ...     list(gather(Path(folder)).children)
        ['history']
    """
    paths = [folder] if folder.suffix in _ENDINGS else _found(folder)
    if not paths:
        wanted = ", ".join(f"{name}.nc" for name in _FILES)
        raise FileNotFoundError(
            f"{folder} holds no results, looked for {wanted}: run `pyrovae audit` or another measurement first"
        )
    groups: Groups = {}
    notes: list[str] = []
    attrs: dict[str, Any] = {}
    for path in paths:
        tree = read(path)
        more = _added(groups, tree, attrs, path.name, notes)
        if not groups:
            attrs = {str(key): value for key, value in tree.attrs.items()}
        elif more is not groups and "command" in tree.attrs:
            attrs[f"command_of_{path.stem}"] = tree.attrs["command"]
        groups = more
    attrs |= _facts(folder)
    return build_tree(groups, {**attrs, "notes": notes} if notes else attrs)


def _found(folder: Path) -> list[Path]:
    paths = [folder / f"{name}{ending}" for name in _FILES for ending in _ENDINGS]
    return [path for path in paths if path.exists()]


def _added(
    groups: Groups, tree: xr.DataTree, attrs: Mapping[str, Any], name: str, notes: list[str]
) -> Groups:
    """The groups and those of one more file that fit to them."""
    own = {key: node.to_dataset() for key, node in tree.children.items()}
    if other := _difference(_about(attrs), _about(tree.attrs)):
        notes.append(f"{name} is left out: it is of another {other} than the other results.")
        return groups
    for bundle in _bundles(own):
        part = {key: own[key] for key in bundle}
        is_better = "sandwich" in part and "sandwich" not in groups
        if set(groups) & set(part) and not is_better:
            if name == "gradients.nc" and "history" in part:
                notes.append(
                    f"The path along training in {name} is left out: the history is that of the training."
                )
            continue
        groups = _tried(groups, part, name, notes)
    return groups


def _bundles(own: Groups) -> list[list[str]]:
    """The groups of one file, those that belong together as one."""
    bound: list[list[str]] = [[key for key in together if key in own] for together in _TOGETHER]
    single: list[list[str]] = [[key] for key in own if not any(key in together for together in _TOGETHER)]
    return [bundle for bundle in [*bound, *single] if bundle]


def _tried(groups: Groups, part: Groups, name: str, notes: list[str]) -> Groups:
    """The groups with some more, as far as these are of the same data, or as they were."""
    words = " and ".join(part)
    whole = next((g for key, g in groups.items() if "datum" in g.sizes and key not in _SOME_DATA), None)
    fitted = {key: _of_same_data(made, whole) if key in _SLICED else made for key, made in part.items()}
    try:
        _check_gaps(fitted, whole)
        build_tree({**groups, **fitted})
    except ValueError as error:
        reason = str(error) if whole is None else _why_not(whole, part, str(error))
        notes.append(f"{words} of {name}: left out, {reason}.")
        return groups
    notes += [
        f"{key} of {name} is about {part[key].sizes['datum']} data, of which {made.sizes['datum']} are shown."
        for key, made in fitted.items()
        if "datum" in made.sizes and made.sizes["datum"] < part[key].sizes["datum"]
    ]
    return {key: {**groups, **fitted}[key] for key in SCHEMA if key in groups or key in fitted}


def _of_same_data(made: xr.Dataset, whole: xr.Dataset | None) -> xr.Dataset:
    if whole is None or "datum" not in made.sizes or np.array_equal(made["datum"], whole["datum"]):
        return made
    return made.isel(datum=np.isin(made["datum"].values, whole["datum"].values))


def _check_gaps(fitted: Groups, whole: xr.Dataset | None) -> None:
    """Gaps stand beside the evidence of the same data, datum by datum."""
    if "gaps" in fitted and whole is not None and not np.array_equal(fitted["gaps"]["datum"], whole["datum"]):
        raise ValueError("the gaps are about fewer data")


def _why_not(whole: xr.Dataset, part: Groups, error: str) -> str:
    """That the data are others, or what else does not fit."""
    wanted = whole["datum"].values
    for made in part.values():
        if "datum" in made.sizes and not np.array_equal(made["datum"].values, wanted):
            told = f"it is about {made.sizes['datum']} data and the other results about {wanted.size}"
            return f"{told}; measure the same data (--num-data, --part)"
    return error


def _about(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """What a command says that it measured."""
    try:
        found = json.loads(str(attrs.get("command", "{}")))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The first thing that both tell, and not alike."""
    return next((key for key in _SAME if key in first and key in second and first[key] != second[key]), "")


def _facts(folder: Path) -> dict[str, Any]:
    """What the training wrote of itself."""
    found: dict[str, Any] = {}
    home = folder if folder.is_dir() else folder.parent
    if (home / "run.json").is_file():
        found["run"] = json.loads((home / "run.json").read_text())
    if (home / "config.toml").is_file():
        found["config"] = tomllib.loads((home / "config.toml").read_text())
    return found
