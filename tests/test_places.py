"""What stands beside a file: put in its place when whole, put back or removed when its process was killed."""

import os
import time
from pathlib import Path

import pytest

from pyrovae.results.places import IDLE_SECONDS, remove, replacing, settle

HEX = 32 * "0"


def put(path: Path, text: str, age: float = 0.0) -> Path:
    """A file, or a folder with one in a folder, to which nobody has written for so many seconds."""
    inner = path / "group" / "array" if path.name.startswith((".run.zarr", "run.zarr")) else path
    inner.parent.mkdir(parents=True, exist_ok=True)
    inner.write_text(text)
    for place in {inner, *inner.parents} & {path, *path.rglob("*")}:
        os.utime(place, (time.time() - age,) * 2)
    return path


def text_of(path: Path) -> str:
    return (path / "group" / "array" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_only_what_nobody_writes_to_is_removed(tmp_path: Path, name: str) -> None:
    target = put(tmp_path / name, "whole", 10 * IDLE_SECONDS)
    put(tmp_path / f".{name}.{HEX}", "dead", 2 * IDLE_SECONDS)
    others = {f".{name}.{HEX[:-1]}1", f".{name}.bak", f".x.{name}.{HEX}", f".{name}.{HEX}.txt"}
    put(tmp_path / f".{name}.{HEX[:-1]}1", "live", IDLE_SECONDS / 2)
    for foreign in others - {f".{name}.{HEX[:-1]}1"}:
        put(tmp_path / foreign, "foreign", 2 * IDLE_SECONDS)
    settle(target)
    assert {path.name for path in tmp_path.iterdir()} == {name, *others}


def test_a_folder_is_alive_where_anything_in_it_is(tmp_path: Path) -> None:
    stray = put(tmp_path / f".run.zarr.{HEX}", "live", 2 * IDLE_SECONDS)
    os.utime(stray / "group")
    settle(tmp_path / "run.zarr")
    assert stray.exists()


def test_what_was_moved_aside_is_put_back_or_removed(tmp_path: Path) -> None:
    target = tmp_path / "run.zarr"
    put(tmp_path / f".run.zarr.{HEX}.old", "old", 10 * IDLE_SECONDS)
    settle(target)
    assert text_of(target) == "old"
    put(tmp_path / f".run.zarr.{HEX}.old", "older")
    settle(target)
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]
    assert text_of(target) == "old"
    remove(target)
    remove(target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_the_old_stays_until_the_new_is_whole(tmp_path: Path, name: str) -> None:
    target = put(tmp_path / name, "old")
    with pytest.raises(KeyError), replacing(target) as temporary:
        {}[put(temporary, "half")]
    assert text_of(target) == "old"
    with replacing(target) as temporary:
        put(temporary, "new")
        assert text_of(target) == "old"
    assert text_of(target) == "new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "run.nc"
    put(target / "own", "a user's own")
    with pytest.raises(IsADirectoryError), replacing(target) as temporary:
        temporary.write_text("new")
    assert text_of(target / "own") == "a user's own"
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]
