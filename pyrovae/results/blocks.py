"""The blocks of one audit in a folder: each a file that says what it is of, checked whenever it is read."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from pyrovae.results import storage
from pyrovae.results.merging import merge_files

__all__ = [
    "BlockError",
    "DamagedBlockError",
    "MissingBlocksError",
    "block_path",
    "check_same_audit",
    "merge_blocks",
    "read_block",
    "write_block",
]

FORMAT, VERSION = "pyrovae-audit-block", 1
_SAME: Final = ("settings", "versions", "source", "num_data", "num_blocks", "has_model_block")
_CLOSE: Final = 1e-4
"""Relative; of the log densities by which a model is known again: machines differ in the last digits."""


class BlockError(ValueError):
    """A block of another audit."""


class DamagedBlockError(BlockError):
    """A file that is truncated, altered, or no block at all."""


class MissingBlocksError(BlockError):
    """Blocks that the audit needs and that are not there."""


def block_path(folder: str | os.PathLike[str], number: int) -> Path:
    """Where a block is: number 0 is about the model, the others about data.

    >>> block_path("audit", 3).name
    'block-00003.nc'
    """
    return Path(folder) / f"block-{number:05d}.nc"


def write_block(tree: xr.DataTree, header: Mapping[str, Any], path: Path) -> None:
    """Write a block with its header and its fingerprint, whole or not at all.

    Args:
        tree: Its result.
        header: `settings`, `versions`, `source`, `num_data`, `num_blocks`, `has_model_block`, which all blocks of an
            audit share; `probe`, which is nearly the same; `block`, its number; `rows`, the fingerprint of its data.
        path: As by `block_path`.
    """
    made = xr.DataTree.from_dict({name: node.to_dataset() for name, node in tree.children.items()})
    made.attrs = dict(tree.attrs)
    made.attrs["block"] = json.dumps({"format": FORMAT, "version": VERSION, **header}, sort_keys=True)
    made.attrs["content_sha256"] = storage.content_hash(made)
    storage.write(made, path)


def read_block(path: str | os.PathLike[str]) -> tuple[xr.DataTree, dict[str, Any]]:
    """A block and its header.

    Raises:
        DamagedBlockError: the file is truncated or altered, or is no block.
    """
    try:
        tree = storage.read(path)
        header: dict[str, Any] = json.loads(tree.attrs["block"])
        content = tree.attrs.pop("content_sha256")
    except FileNotFoundError:
        raise
    except Exception as error:  # HDF5 raises many kinds for a file that is cut or altered
        raise DamagedBlockError(
            f"{path} is damaged, or no block of an audit ({type(error).__name__})"
        ) from error
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise BlockError(
            f"{path} is {header.get('format')!r} of version {header.get('version')!r}, but {FORMAT!r} of version "
            f"{VERSION} is read here: measure it again with --resume none"
        )
    if storage.content_hash(tree) != content:
        raise DamagedBlockError(f"{path} is damaged: its content is not what was written")
    return tree, header


def check_same_audit(path: Path, header: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse a block of another audit than `other`, a header, is of.

    Raises:
        BlockError: what differs.
    """
    for name in _SAME:
        if header.get(name) != other.get(name):
            raise BlockError(
                f"{path} is of another audit: its {name} {_short(header.get(name), other.get(name))}; pass --resume "
                "none to measure anew, or another folder"
            )
    if not _is_close(header.get("probe", []), other.get("probe", [])):
        raise BlockError(
            f"{path} is of another audit: the model or the data have changed since; pass --resume none to "
            "measure anew, or another folder"
        )


def merge_blocks(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    about: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda header: {},
) -> None:
    """Put the blocks in a folder together into one file, as `merge_files`; a stage that is still to come is skipped.

    Args:
        folder: That of the blocks.
        out: A file as for `write`.
        about: Attributes of the whole, of the header, as for `write_block`, of its first block.

    Raises:
        MissingBlocksError: which blocks are not there.
        BlockError: a block that is damaged, or of another audit than the first.
    """
    paths = sorted(Path(folder).glob("block-*.nc"))
    if not paths:
        raise MissingBlocksError(f"there are no blocks of an audit in {folder}: run `pyrovae audit` first")
    one, first = read_block(paths[0])
    of_model = _stages(one) if first["has_model_block"] else {}
    start = 0 if first["has_model_block"] else 1
    wanted = [block_path(folder, start + i) for i in range(first["num_blocks"])]
    if missing := [path.name for path in wanted if path not in paths]:
        raise MissingBlocksError(
            f"{len(missing)} of the {len(wanted)} blocks of this audit are not in {folder}: {', '.join(missing)}; run "
            "the shards that make them, then merge again"
        )

    def read(path: str | os.PathLike[str]) -> xr.DataTree:
        tree, header = read_block(path)
        check_same_audit(Path(path), header, first)
        if block_path(folder, header["block"]) != Path(path):
            raise BlockError(f"{path} holds block {header['block']}: it was renamed; put it back")
        tree.attrs.update(about(first))
        if header["block"] > 0:
            _tell_pending(tree, set(header["settings"].get("stages", ())) - set(of_model))
        return tree

    if others := [path.name for path in paths if path not in wanted]:
        raise BlockError(f"{folder} holds blocks that are not of this audit: remove {', '.join(others)}")
    merge_files(wanted, out, read)


def _stages(tree: xr.DataTree) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tree.attrs.get("stages", "{}"))
    return found


def _tell_pending(tree: xr.DataTree, wanted: set[str]) -> None:
    """Say of the stages that a process has not come to, or was killed in, that they are not there."""
    told = _stages(tree)
    pending = {"status": "skipped", "reason": "not measured yet; the same audit goes on with it"}
    if missing := wanted - set(told):
        stages = {**told, **dict.fromkeys(missing, pending)}
        tree.attrs["stages"] = json.dumps(stages, sort_keys=True)


def _short(got: Any, wanted: Any) -> str:
    """Where two values differ: of mappings, the first entry."""
    if isinstance(got, Mapping) and isinstance(wanted, Mapping):
        for name in sorted({*got, *wanted}):
            if got.get(name) != wanted.get(name):
                return f"have {name} = {got.get(name)!r}, not {wanted.get(name)!r}"
    return f"is {got!r}, not {wanted!r}"


def _is_close(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE))
