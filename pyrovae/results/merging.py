"""Results of blocks of data put together: the tree of all data, in memory or in a file that is larger than memory."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from pyrovae.results import storage
from pyrovae.results.groups import build_tree
from pyrovae.results.merged_attributes import group_attributes, root_attributes
from pyrovae.results.places import settle
from pyrovae.results.schema import SCHEMA

__all__ = ["join_methods", "merge", "merge_files"]

_DRAWS: Final = ("posterior", "guide", "prior", "sample_stats", "log_weights", "observed_data")
"""Groups that grow with the data and their draws: in a zarr file they are written block by block."""
_SOME: Final = ("reconstruction", "prior_predictive", "calibration", "gradients", "history")
"""Groups that a block may lack because they are not about its data."""
_WORDS: Final = {"verdict": "no verdict", "reason": "not measured"}
_MEANS: Final = ("kl_per_latent",)


class _Block(NamedTuple):
    groups: dict[str, xr.Dataset]
    attrs: dict[str, Any]
    datum: np.ndarray
    """Positions in all data; empty for a block that is about none of them."""


def merge(trees: Sequence[xr.DataTree]) -> xr.DataTree:
    """Put the results of blocks of data together, in the order of the data.

    Arrays along `datum` are joined. A block that lacks what another has (a stage failed there) gets NaN, 0, False,
    and the verdict "no verdict". What is one number for a whole block follows its meaning: counts `num_*` are the
    largest, `seconds` are summed, reasons are told one after another, `kl_per_latent` is averaged over the data, a
    direction that differs is "none", and what has no such rule stays where it is equal. The terms of the aggregate
    posterior are about one block alone, and are left out where there are several.

    Args:
        trees: Of one audit, by the same settings; `datum` coordinates are positions in all data.

    Raises:
        ValueError: There is none, two have the same data, or they do not fit together.

    Examples:
        >>> def block(first):
        ...     x = xr.Dataset({"x": ("datum", [0.5, 1.5])}, {"datum": [first, first + 1]})
        ...     return xr.DataTree.from_dict({"observed_data": x})
        >>> merge([block(2), block(0)])["observed_data"]["datum"].values.tolist()
        [0, 1, 2, 3]
    """
    blocks = _in_order(map(_block, trees))
    return build_tree(_merged(blocks, SCHEMA), root_attributes([(b.attrs, len(b.datum)) for b in blocks]))


def merge_files(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    read: Callable[[str | os.PathLike[str]], xr.DataTree] = storage.read,
) -> None:
    """As `merge`, from files into a file, which it replaces; for `.zarr` never more than a block of draws is in memory.

    Args:
        paths: The blocks.
        out: A file as for `write`.
        read: How a block is read and checked; for `.zarr` each is read twice.

    Raises:
        ValueError: As `merge` and `read`.

    Examples:
        >>> import tempfile
        >>> from pyrovae.results import write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for first in (0, 2):
        ...         x = xr.Dataset({"x": ("datum", [0.5, 1.5])}, {"datum": [first, first + 1]})
        ...         write(xr.DataTree.from_dict({"observed_data": x}), f"{folder}/{first}.nc")
        ...     merge_files([f"{folder}/0.nc", f"{folder}/2.nc"], f"{folder}/all.zarr")
        ...     storage.read(f"{folder}/all.zarr")["observed_data"].sizes["datum"]
        4
    """
    target = Path(out)
    if target.suffix != ".zarr":
        storage.write(merge([read(path) for path in paths]), target)
        return
    settle(target)
    heads = [_head(_block(read(path))) for path in paths]
    order = sorted(range(len(paths)), key=lambda i: _position(heads[i]))
    heads = _in_order(heads)
    forms = _merged([head._replace(datum=head.datum[:0]) for head in heads], _DRAWS)
    rest = _merged(heads, [name for name in SCHEMA if name not in _DRAWS])
    attrs = root_attributes([(head.attrs, len(head.datum)) for head in heads])
    with storage.replaced_in_parts(target, attrs) as add:
        for i in order:
            block = _block(read(paths[i]))
            if len(block.datum):
                add({name: _formed(block, name, form) for name, form in forms.items()})
            del block  # or it would stay while the next one is read
        add(rest)


def join_methods(first: xr.Dataset, second: xr.Dataset, order: Sequence[str]) -> xr.Dataset:
    """One group `evidence` of two about the same data; a method of both is that of the second.

    Args:
        order: Methods in the order that is wanted; others follow.

    Examples:
        >>> def made(method):
        ...     return xr.Dataset({"value": (("method", "datum"), [[-3.0]])}, {"method": [method], "datum": [0]})
        >>> join_methods(made("psis"), made("elbo"), ["elbo", "psis"])["method"].values.tolist()
        ['elbo', 'psis']
    """
    found = {label: one for part in (first, second) for label, one in _columns(part).items()}
    ranks = {name: rank for rank, name in enumerate(order)}
    labels = sorted(found, key=lambda label: ranks.get(label, len(ranks)))
    return _stacked({label: found[label] for label in labels}, {**first.attrs, **second.attrs})


def _block(tree: xr.DataTree) -> _Block:
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    has_data = "observed_data" in groups
    return _Block(
        groups,
        {str(key): value for key, value in tree.attrs.items()},
        groups["observed_data"]["datum"].values if has_data else np.arange(0),
    )


def _position(block: _Block) -> int:
    return int(block.datum[0]) if len(block.datum) else -1


def _in_order(blocks: Iterable[_Block]) -> list[_Block]:
    ordered = sorted(blocks, key=_position)
    if not ordered:
        raise ValueError("there is no block to merge: pass the results of one or more")
    return ordered


def _head(block: _Block) -> _Block:
    """A block without its draws, but for the form of them."""
    forms = {
        name: made.isel(datum=slice(0)).copy(deep=True)
        for name, made in block.groups.items()
        if name in _DRAWS
    }
    return block._replace(groups=block.groups | forms)


def _merged(blocks: Sequence[_Block], names: Iterable[str]) -> dict[str, xr.Dataset]:
    groups = {}
    for name in names:
        members = [
            b for b in blocks if name in b.groups or (name not in _SOME and "observed_data" in b.groups)
        ]
        if any(name in block.groups for block in members):
            parts = [(block.groups.get(name, xr.Dataset()), block.datum) for block in members]
            groups[name] = _joined(name, parts)
    return groups


def _formed(block: _Block, name: str, form: xr.Dataset) -> xr.Dataset:
    """A group of draws of one block with the variables and the attributes that the whole has."""
    parts = [(form, block.datum[:0]), (block.groups.get(name, xr.Dataset()), block.datum)]
    made = _joined(name, parts)
    made.attrs = dict(form.attrs)
    return made


def _joined(name: str, parts: Sequence[tuple[xr.Dataset, np.ndarray]]) -> xr.Dataset:
    """One group of the parts, each with the data that it is, or should be, about."""
    attrs = group_attributes([part.attrs for part, _ in parts if part.variables])
    if not any("method" in part.sizes for part, _ in parts):
        return _beside(name, parts).assign_attrs(attrs)
    columns = [(_columns(part), datum) for part, datum in parts]
    labels = dict.fromkeys(label for found, _ in columns for label in found)
    empty = xr.Dataset()
    one = {label: _beside(name, [(found.get(label, empty), d) for found, d in columns]) for label in labels}
    return _stacked(one, attrs)


def _beside(name: str, parts: Sequence[tuple[xr.Dataset, np.ndarray]]) -> xr.Dataset:
    """Parts without `method`, beside one another."""
    forms = {variable: array for part, _ in reversed(parts) for variable, array in part.data_vars.items()}
    data = [part["datum"].values if "datum" in part.coords else datum for part, datum in parts]
    variables: dict[str, Any] = {}
    for variable in sorted(map(str, forms)):
        form = forms[variable]
        has = [
            (part[variable], len(datum))
            for (part, _), datum in zip(parts, data, strict=True)
            if variable in part
        ]
        if "datum" in form.dims:
            arrays = [
                part[variable].values if variable in part else _blank(form, {"datum": len(datum)})
                for (part, _), datum in zip(parts, data, strict=True)
            ]
            values: Any = _concatenate(f"{name}.{variable}", arrays, form.dims.index("datum"))
        else:
            values = _shared(name, variable, [(array.values, size) for array, size in has])
        if values is not None:
            variables[variable] = (form.dims, values, group_attributes([array.attrs for array, _ in has]))
    used = {dim for dims, *_ in variables.values() for dim in dims}
    coords = {
        dim: form[dim].values
        for form in forms.values()
        for dim in form.dims
        if dim in used and dim in form.coords
    }
    return xr.Dataset(variables, coords | ({"datum": np.concatenate(data)} if "datum" in used else {}))


def _concatenate(where: str, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    try:
        return np.concatenate(arrays, axis)
    except ValueError as error:
        raise ValueError(
            f"the blocks differ in the shape of {where}: {[array.shape for array in arrays]}; merge blocks of one "
            "audit only"
        ) from error


def _shared(name: str, variable: str, has: Sequence[tuple[np.ndarray, int]]) -> np.ndarray | None:
    """What blocks that say one thing about all their data say together; None if nothing."""
    values = [value for value, _ in has]
    first = values[0]
    if variable == "seconds":
        return np.asarray(sum(values))
    if len(values) > 1 and name == "decomposition":
        weights = [size for _, size in has]
        return np.average(values, 0, weights) if variable in _MEANS else None
    if all(np.array_equal(value, first, equal_nan=first.dtype.kind == "f") for value in values):
        return first
    if variable == "direction":
        return np.array("none")
    if first.dtype.kind == "U" and first.ndim == 0:
        clauses = [clause for value in values for clause in str(value).split("; ")]
        return np.array("; ".join(dict.fromkeys(filter(None, clauses))))
    if first.dtype.kind == "b":
        return np.asarray(np.logical_and.reduce(values))
    return np.asarray(np.maximum.reduce(values)) if variable.startswith("num_") else None


def _blank(form: xr.DataArray, sizes: dict[str, int]) -> np.ndarray:
    """What stands for data that were not measured."""
    shape = [sizes.get(str(dim), size) for dim, size in form.sizes.items()]
    if form.dtype.kind == "U":
        return np.full(shape, _WORDS.get(str(form.name), ""))
    return np.full(shape, np.nan if form.dtype.kind == "f" else 0, form.dtype)


def _columns(part: xr.Dataset) -> dict[str, xr.Dataset]:
    labels: Iterable[Any] = part["method"].values if "method" in part.sizes else []
    return {str(label): part.isel(method=i).drop_vars("method") for i, label in enumerate(labels)}


def _stacked(columns: dict[str, xr.Dataset], attrs: dict[str, Any]) -> xr.Dataset:
    """Methods as rows; NaN where one lacks what another has."""
    parts = list(columns.values())
    forms = {str(variable): array for part in reversed(parts) for variable, array in part.data_vars.items()}
    variables: dict[str, Any] = {}
    for variable in sorted(forms):
        form = forms[variable]
        rows = [part[variable].values if variable in part else _blank(form, {}) for part in parts]
        variables[variable] = (("method", *form.dims), np.stack(rows), form.attrs)
    return xr.Dataset(variables, {"method": list(columns), **_coordinates(parts)}, attrs)


def _coordinates(parts: Sequence[xr.Dataset]) -> dict[Any, Any]:
    return {dim: part[dim].values for part in parts for dim in part.sizes if dim in part.coords}
