"""The blocks of an audit in a folder: several processes share them, and what was done is not done again."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from pyrovae.diagnostics.audit.plan import Plan
from pyrovae.diagnostics.audit.running import Deadline, Progress, examine, of_blocks, passes, versions
from pyrovae.results.blocks import (
    BlockError,
    DamagedBlockError,
    block_path,
    check_same_audit,
    read_block,
    write_block,
)
from pyrovae.results.places import settle

__all__ = ["audit_shard"]

BLOCK_FILE = re.compile(r"\.?(block-(\d{5,})\.nc)(?:\..*)?")


def audit_shard(
    plan: Plan,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    source: Mapping[str, Any] | None = None,
    resume: str = "auto",
    max_seconds: float | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Examine every n-th block of an audit and keep each in a file, written anew after each stage.

    Whatever the shards, and wherever a process was killed, the files have the same content in the end.

    Args:
        plan: the audit.
        folder: for the blocks; made if it is not there.
        shard: (i, n): the blocks with numbers i, i + n, i + 2n, ...; i from 0.
        source: plain values that say where model and data come from; a block of another source is foreign.
        resume: "auto" goes on from what is there; "none" measures anew.
        max_seconds: as for `audit`, for this shard; another call goes on with the stages that were skipped.
        progress: called with (stage, done, total).
        notice: called with a sentence for each block that is damaged, and so is measured again.

    Returns:
        The files of this shard.

    Raises:
        BlockError: a block of another audit.
        ValueError: a shard that is none, or whatever `Target` refuses.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"a shard is i of n with 0 <= i < n, but is {index} of {count}")
    folder.mkdir(parents=True, exist_ok=True)
    own = [block for block in plan.blocks if block.number % count == index]
    common = _common_header(plan, source or {})
    plan.check_data(own)
    _clean(folder, shard, resume)
    deadline = Deadline(max_seconds)
    headers = [{**common, "block": block.number, "rows": plan.rows_sha256(block)} for block in own]
    for stages in passes(plan, deadline):
        for i, (block, header) in enumerate(zip(own, headers, strict=True)):
            path = block_path(folder, block.number)
            examine(
                plan,
                block,
                stages,
                _known(path, header, notice),
                deadline=deadline,
                tell=of_blocks(progress, own, i),
                keep=partial(write_block, header=header, path=path),
            )
    return [block_path(folder, block.number) for block in own]


def _common_header(plan: Plan, source: Mapping[str, Any]) -> dict[str, Any]:
    """What all blocks of an audit say alike."""
    blocks = plan.blocks
    common = {
        "settings": plan.settings.as_dict(),
        "versions": versions(),
        "source": dict(source),
        "num_data": plan.num_data,
        "num_blocks": len(blocks),
        "has_model_block": blocks[0].number == 0,
        "probe": plan.probe(),
    }
    found: dict[str, Any] = json.loads(json.dumps(common))  # as it comes back from a file
    return found


def _clean(folder: Path, shard: tuple[int, int], resume: str) -> None:
    """Remove what killed processes left half-written of this shard, and its blocks if they are to be measured anew."""
    index, count = shard
    found = [match for path in folder.iterdir() if (match := BLOCK_FILE.fullmatch(path.name))]
    for match in found:
        is_own = int(match[2]) % count == index
        if is_own and match[0].startswith("."):
            settle(folder / match[1])
        elif is_own and resume == "none":
            (folder / match[1]).unlink(missing_ok=True)


def _known(path: Path, header: Mapping[str, Any], notice: Callable[[str], None]) -> xr.DataTree | None:
    """What is there of a block; None if nothing is."""
    if not path.exists():
        return None
    try:
        tree, found = read_block(path)
    except DamagedBlockError as error:
        notice(f"{error}: it is measured again")
        return None
    check_same_audit(path, found, header)
    if (found["block"], found["rows"]) != (header["block"], header["rows"]):
        raise BlockError(f"{path} is of other data: pass --resume none to measure anew, or another folder")
    return tree
