"""What the measurements of one run left in its folder, put together as one tree as far as they are of the same data."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from pyrovae.results.groups import build_tree
from pyrovae.results.schema import SCHEMA
from pyrovae.results.storage import read

__all__ = ["MODEL_FILE", "gather", "model_sha256"]

MODEL_FILE: Final = "model.pyrovae"

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
"""Names of files, the one that has most of a run first: the data of the first are those that the page is about."""
_ENDINGS: Final = (".nc", ".zarr")
_TOGETHER: Final = (
    ("evidence", "sandwich"),
    ("observed_data", "reconstruction", "prior_predictive"),
    ("posterior", "posterior_constrained", "sample_stats", "diagnostics"),
)
"""Groups that are of use only from one file."""
_SOME_DATA: Final = ("decomposition", "gaps", "calibration", "gradients", "reconstruction")
"""Groups that may be about other data than the page: fewer, or, of the decomposition, more."""
_SLICED: Final = ("observed_data", "reconstruction", "gaps", "evidence", "sandwich")
"""Groups all of whose numbers are of single data, so that those can be taken that the other groups are about."""
_SAME: Final = ("model", "part", "dtype")

Groups = dict[str, xr.Dataset]


class _Part(NamedTuple):
    """Groups of one file that belong together, and when it was written."""

    groups: Groups
    file: str
    written: int

    @property
    def words(self) -> str:
        return f"{' and '.join(self.groups)} of {self.file}"

    @property
    def num_data(self) -> int:
        """Data, or simulations."""
        return max(made.sizes.get("datum", made.sizes.get("simulation", 0)) for made in self.groups.values())

    @property
    def num_estimates(self) -> int:
        return sum(len(made.data_vars) * made.sizes.get("method", 1) for made in self.groups.values())


Parts = dict[tuple[str, ...], _Part]


def gather(folder: Path) -> xr.DataTree:
    """Read the result trees of a run and put them together.

    Of what several files have, the fullest is taken: most of the groups that belong together, then most data, then most
    estimates, then what was written last; of the history the first in the order of the files. What is of another
    model than `model.pyrovae`, or of another model, part of the data or dtype than what stands already, is left out,
    and so is what is about other data than the rest and no decomposition. The attribute `notes` tells all that was
    left out, with its reason; the attributes `run` and `config` hold what `run.json` and `config.toml` say.

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
    parts: Parts = {}
    notes: list[str] = []
    attrs: dict[str, dict[str, Any]] = {}
    known = [_trained(folder)]
    for path in paths:
        tree = _read(path)
        about = _about(tree.attrs)
        if other := next((key for key in _SAME if _differ(key, known, about)), ""):
            notes.append(f"{path.name} is left out: it is of another {other} than {_whose(other, known[0])}.")
            continue
        known.append(about)
        attrs[path.name] = {str(key): value for key, value in tree.attrs.items()}
        for names in _families(tree):
            own = {name: tree[name].to_dataset() for name in names if name in tree.children}
            _add(parts, names, _Part(own, path.name, path.stat().st_mtime_ns), notes)
    return _together(parts, attrs, notes, _facts(folder))


def model_sha256(run: Path) -> str:
    """By which the model of a run is known again."""
    return hashlib.sha256((run / MODEL_FILE).read_bytes()).hexdigest()


def _found(folder: Path) -> list[Path]:
    paths = [folder / f"{name}{ending}" for name in _FILES for ending in _ENDINGS]
    return [path for path in paths if path.exists()]


def _read(path: Path) -> xr.DataTree:
    try:
        return read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # HDF5 raises almost anything on damaged bytes
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): measure it again, or move it away"
        ) from error


def _families(tree: xr.DataTree) -> list[tuple[str, ...]]:
    """The groups of a file, those that belong together as one, by all that they might be."""
    bound = [names for names in _TOGETHER if set(names) & set(tree.children)]
    return bound + [(name,) for name in tree.children if not any(name in names for names in _TOGETHER)]


def _add(parts: Parts, names: tuple[str, ...], part: _Part, notes: list[str]) -> None:
    """Put a part among the others, in the place of a lesser one; or say why not."""
    others = {key: made for own, other in parts.items() if own != names for key, made in other.groups.items()}
    try:
        fitted = part._replace(groups=_fitted(part.groups, others))
    except ValueError as error:
        notes.append(f"{part.words}: left out, {error}.")
        return
    standing = parts.get(names)
    reason = "" if standing is None else _why_rather(standing, fitted)
    if standing is not None and reason:
        notes.append(f"{part.words}: left out, {standing.file} has {reason}.")
        return
    if standing is not None:
        notes.append(f"{standing.words}: left out, {part.file} has {_why_rather(fitted, standing)}.")
    parts[names] = fitted
    notes += [
        f"{key} of {part.file} is about {part.groups[key].sizes['datum']} data, of which {made.sizes['datum']} are "
        "shown."
        for key, made in fitted.groups.items()
        if made.sizes.get("datum", 0) < part.groups[key].sizes.get("datum", 0)
    ]


def _why_rather(one: _Part, other: _Part) -> str:
    """What speaks for one part against another; "" where the other is to be taken."""
    if "history" in one.groups:
        first, second = (_FILES.index(Path(part.file).stem) for part in (one, other))
        return "the one that is shown" if first < second else ""
    counts = (
        (len(one.groups), len(other.groups), "more that belongs with it"),
        (one.num_data, other.num_data, f"it for {one.num_data} data, not {other.num_data}"),
        (one.num_estimates, other.num_estimates, "more estimates"),
        (one.written, other.written, "a later one"),
    )
    for mine, yours, reason in counts:
        if mine != yours:
            return reason if mine > yours else ""
    return ""


def _fitted(part: Groups, others: Groups) -> Groups:
    """The groups as far as they are of the same data as the others.

    Raises:
        ValueError: They are not, or do not fit otherwise.
    """
    whole = next(
        (made for key, made in others.items() if "datum" in made.sizes and key not in _SOME_DATA), None
    )
    fitted = {key: _of_same_data(made, whole) if key in _SLICED else made for key, made in part.items()}
    try:
        _check_gaps(fitted, whole)
        build_tree({**others, **fitted})
    except ValueError as error:
        raise ValueError(str(error) if whole is None else _why_not(whole, part, str(error))) from error
    return fitted


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


def _together(
    parts: Parts, attrs: Mapping[str, Mapping[str, Any]], notes: list[str], facts: Mapping[str, Any]
) -> xr.DataTree:
    """One tree with the attributes of the first file that something was taken of, and the commands of the others."""
    files = [name for name in attrs if any(part.file == name for part in parts.values())]
    told = dict(attrs[files[0]]) if files else {}
    for name in files[1:]:
        if "command" in attrs[name]:
            told[f"command_of_{Path(name).stem}"] = attrs[name]["command"]
    groups = {key: made for part in parts.values() for key, made in part.groups.items()}
    ordered = {key: groups[key] for key in SCHEMA if key in groups}
    return build_tree(ordered, {**told, **facts, **({"notes": notes} if notes else {})})


def _differ(key: str, known: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> bool:
    """Whether what a command says that it measured is another than what others say; not where one does not say."""
    mine = about.get(key)
    return mine is not None and any((other.get(key) or mine) != mine for other in known)


def _whose(key: str, trained: Mapping[str, Any]) -> str:
    return "the run that is in the folder now" if key in trained else "the other results"


def _trained(folder: Path) -> dict[str, Any]:
    """The model of the run in the folder, which may have been trained anew since something was measured."""
    run = folder if folder.is_dir() else folder.parent
    return {"model": model_sha256(run)} if (run / MODEL_FILE).is_file() else {}


def _about(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """What a command says that it measured."""
    try:
        found = json.loads(str(attrs.get("command", "{}")))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _facts(folder: Path) -> dict[str, Any]:
    """What the training wrote of itself."""
    found: dict[str, Any] = {}
    home = folder if folder.is_dir() else folder.parent
    if (home / "run.json").is_file():
        found["run"] = json.loads((home / "run.json").read_text())
    if (home / "config.toml").is_file():
        found["config"] = tomllib.loads((home / "config.toml").read_text())
    return found
