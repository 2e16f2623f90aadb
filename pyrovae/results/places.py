"""Where a file or folder stands until it is whole, how it takes its place, and what killed processes leave."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

__all__ = ["remove", "replacing", "settle", "write_bytes"]

IDLE_SECONDS: Final = 3600.0
"""For which nobody wrote to what a killed process left; its number would tell nothing on another machine."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` for what the block writes, which takes its place when the block has ended well.

    Otherwise it is removed, and what is at `target` stays. A file does not take the place of a folder.

    Raises:
        FileNotFoundError: If the folder that it is to stand in does not exist.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target.name}: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        yield temporary
        _put_in_place(temporary, target)
    finally:
        remove(temporary)
    _sync(target.parent)


def write_bytes(content: memoryview, path: Path) -> None:
    """Write a file, and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, target: Path) -> None:
    """Put a folder where another may be: the old one is moved aside first, and back if the move fails."""
    aside = temporary.with_name(f"{temporary.name}.old")
    if temporary.is_dir() and target.exists():
        os.replace(target, aside)
    try:
        os.replace(temporary, target)
    except BaseException:
        if aside.exists():
            os.replace(aside, target)
        raise
    remove(aside)


def settle(target: Path) -> None:
    """Put back what a killed process had moved aside, and remove what such processes left half-written.

    What a live process is writing stays: only what nobody wrote to for `IDLE_SECONDS` goes.
    """
    for stray in _strays(target):
        is_old = stray.suffix == ".old"
        if is_old and not target.exists():
            os.replace(stray, target)
        elif is_old or _is_idle(stray):
            remove(stray)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there; another process may be removing it too."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _strays(target: Path) -> list[Path]:
    """What stands beside it under the names that `replacing` and `_put_in_place` give."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}(\.old)?")
    return [path for path in target.parent.glob(".*") if name.fullmatch(path.name)]


def _is_idle(path: Path) -> bool:
    """Whether the last that was written to a file, or to any folder in a folder, is long ago."""
    try:
        folders = [Path(folder) for folder, *_ in os.walk(path)]
        last = max(place.stat().st_mtime for place in (path, *folders))
    except FileNotFoundError:  # another process was faster
        return False
    return time.time() - last > IDLE_SECONDS


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
