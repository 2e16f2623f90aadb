"""An audit in blocks: the same content however it is shared, resumed or killed; what is damaged or foreign is told."""

import json
import os
import shutil
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zoo

import pyrovae as pv
from pyrovae.diagnostics.audit import plan_audit, shards
from pyrovae.diagnostics.audit.running import Deadline, examine
from pyrovae.diagnostics.audit.shards import audit_shard
from pyrovae.results import content_hash, places, read
from pyrovae.results.blocks import (
    BlockError,
    MissingBlocksError,
    block_path,
    merge_blocks,
    read_block,
    write_block,
)
from pyrovae.results.merging import merge

SPECIMEN = zoo.linear_gaussian(guide_scale=0.7)
OPTIONS = {"stages": ("predictions", "weights"), "num_samples": 20, "block_size": 2}


class Slices:
    """Data that are read a slice at a time; remembers the longest."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.longest = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        assert isinstance(rows, slice)
        self.longest = max(self.longest, len(self.values[rows]))
        return self.values[rows]


def plan(*data: torch.Tensor, **options):
    make = partial(pv.Target, SPECIMEN.model, SPECIMEN.guide)
    return plan_audit(make, *(data or SPECIMEN.data), **{**OPTIONS, **options})


def merged_hash(folder: Path, name: str = "audit.nc") -> str:
    merge_blocks(folder / "audit", folder / name)
    return content_hash(read(folder / name))


@pytest.fixture(scope="module")
def whole() -> str:
    return content_hash(pv.audit(SPECIMEN.model, SPECIMEN.guide, *SPECIMEN.data, **OPTIONS))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_are_the_whole(tmp_path, whole, count):
    for i in reversed(range(count)):
        audit_shard(plan(), tmp_path / "audit", shard=(i, count))
    assert merged_hash(tmp_path) == whole
    assert read(tmp_path / "audit.nc")["evidence"]["datum"].values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_file_larger_than_memory_has_the_same_content(done, whole):
    for _ in range(2):  # the second takes the place of the first
        assert merged_hash(done, "audit.zarr") == whole


@pytest.mark.slow
def test_every_stage_in_blocks_is_the_whole(tmp_path):
    options = {
        "stages": None,
        "calibration": {"num_simulations": 50},
        "reference": {"method": "exact", "num_samples": 50},
        "sandwich": {"num_temperatures": 5, "num_chains": 4},
        "gaps": {"num_fitting_samples": 32},
        "block_size": 3,
    }
    audit_shard(plan(**options), tmp_path / "audit")
    tree = merge([read_block(path)[0] for path in (tmp_path / "audit").iterdir()])
    assert {stage["status"] for stage in json.loads(tree.attrs["stages"]).values()} == {"ok"}
    assert merged_hash(tmp_path) == content_hash(tree)
    assert merged_hash(tmp_path, "audit.zarr") == content_hash(tree)


def test_the_truth_comes_into_earlier_stages_alike_in_one_go_and_in_two(tmp_path):
    """The terms come from an estimate of log p(x), are kept and read again before the sandwich puts the truth there."""
    options = {
        "stages": ("terms", "comparison", "sandwich"),
        "reference": {"method": "exact", "num_samples": 50},
        "sandwich": {"num_temperatures": 5, "num_chains": 4},
        "block_size": 5,
    }
    made, path = plan(**options), tmp_path / "first.nc"
    settings = {"deadline": Deadline(None), "tell": lambda stage, done, total: None}
    whole = examine(made, made.blocks[0], made.settings.stages, **settings)
    early = examine(made, made.blocks[0], ("weights", "terms", "reference", "comparison"), **settings)
    pv.write(early, path)
    late = examine(made, made.blocks[0], made.settings.stages, read(path), **settings)
    assert early["decomposition"].attrs["log_evidence_by"] == "iwae"
    assert content_hash(early) != content_hash(late)
    assert content_hash(late) == content_hash(whole)


def test_blocks_differ_in_their_noise_and_the_seed_in_all(whole):
    again = zoo.linear_gaussian(guide_scale=0.7)
    x = again.data[0][:1].expand(4, -1)
    z = pv.audit(again.model, again.guide, x, stages=("weights",), num_samples=5, block_size=2)["guide"][
        "z"
    ].values
    assert not np.isclose(z[:, :, :2], z[:, :, 2:]).any()
    assert content_hash(pv.audit(again.model, again.guide, *again.data, **OPTIONS, seed=1)) != whole


def test_data_are_touched_a_block_at_a_time(tmp_path, whole):
    x = Slices(SPECIMEN.data[0])
    audit_shard(plan(x), tmp_path / "audit")
    assert x.longest == 2
    assert merged_hash(tmp_path) == whole


def test_what_is_done_is_not_done_again(tmp_path, whole, monkeypatch):
    audit_shard(plan(), tmp_path / "audit", shard=(0, 2))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "audit").iterdir()}
    audit_shard(plan(), tmp_path / "audit")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert merged_hash(tmp_path) == whole
    audit_shard(plan(), tmp_path / "audit", resume="none")
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def killed(work, folder, instant):
    """Do it in a process that kills itself before something is renamed in the folder the `instant`-th time, from 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child makes none
        child = os.fork()
    if child == 0:
        replace, count = os.replace, iter(range(100))

        def rename(a, b):
            if Path(b).parent == folder and next(count) == instant:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(a, b)

        places.os.replace = rename
        work()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def strays(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def let_time_pass(path):
    for place in (path, *path.rglob("*")):
        os.utime(place, (time.time() - 2 * places.IDLE_SECONDS,) * 2)


@pytest.mark.parametrize("instant", [0, 3])
def test_a_killed_audit_goes_on_and_has_the_same_content(tmp_path, whole, instant):
    killed(lambda: audit_shard(plan(), tmp_path / "audit"), tmp_path / "audit", instant)
    (stray,) = strays(tmp_path / "audit")
    audit_shard(plan(), tmp_path / "audit")
    assert stray.exists()  # its process could be alive
    assert merged_hash(tmp_path) == whole
    let_time_pass(stray)
    audit_shard(plan(), tmp_path / "audit")
    assert not strays(tmp_path / "audit")


@pytest.mark.parametrize(("name", "instant"), [("audit.nc", 0), ("audit.zarr", 0), ("audit.zarr", 1)])
def test_a_killed_merge_leaves_nothing_once_merged_again(done, whole, name, instant):
    """Also not where the old result was moved aside already."""
    assert merged_hash(done, name) == whole
    killed(lambda: merge_blocks(done / "audit", done / name), done, instant)
    assert (done / name).exists() == (instant == 0)
    for stray in strays(done):
        let_time_pass(stray)
    assert len(strays(done)) == 1 + instant
    assert merged_hash(done, name) == whole
    assert not strays(done)


def test_another_process_of_the_same_blocks_takes_nothing_away(tmp_path, whole, monkeypatch):
    """It begins whenever a file is about to take its place."""
    replace = os.replace

    def late(temporary, target):
        shards._clean(tmp_path / "audit", (0, 1), "auto")
        replace(temporary, target)

    monkeypatch.setattr(places.os, "replace", late)
    audit_shard(plan(), tmp_path / "audit")
    assert merged_hash(tmp_path) == whole


def test_stages_that_found_no_time_are_made_up_for(tmp_path, whole):
    audit_shard(plan(), tmp_path / "audit", max_seconds=0.0)
    assert merged_hash(tmp_path) != whole
    tree = read(tmp_path / "audit.nc")
    assert {stage["status"] for stage in json.loads(tree.attrs["stages"]).values()} == {"skipped"}
    audit_shard(plan(), tmp_path / "audit", max_seconds=1e6)
    assert merged_hash(tmp_path) == whole


def test_what_a_process_has_not_come_to_is_no_verdict(tmp_path):
    audit_shard(plan(), tmp_path / "audit")
    own = plan()
    first = own.blocks[0]
    path = block_path(tmp_path / "audit", first.number)
    _, header = read_block(path)
    tree = examine(own, first, ("predictions",), deadline=Deadline(None), tell=lambda *_: None)
    write_block(tree, header, path)  # as the file is while the second stage runs
    merged_hash(tmp_path)
    stages = json.loads(read(tmp_path / "audit.nc").attrs["stages"])
    assert stages["predictions"]["status"] == "ok"
    assert stages["weights"]["status"] == "skipped"
    assert "not measured yet" in stages["weights"]["reason"]
    assert "1 of 3 blocks" in stages["weights"]["reason"]


def test_the_cheap_stages_of_all_blocks_come_before_the_dear_ones(monkeypatch, tmp_path):
    seen = []
    tell = lambda stage, done, total: seen.append(stage)  # noqa: E731
    audit_shard(plan(), tmp_path / "a", max_seconds=1e6, progress=tell)
    assert seen == sorted(seen, key=["predictions", "weights"].index)
    seen.clear()
    audit_shard(plan(), tmp_path / "b", progress=tell)
    assert seen.index("weights") < len(seen) - 1 - seen[::-1].index("predictions")


def test_a_failure_in_one_block_is_no_verdict_there(monkeypatch):
    from pyrovae.diagnostics.audit import stages

    measure = stages.reference

    def broken(work):
        if work.first == 2:
            raise MemoryError("too large")
        yield from measure(work)

    monkeypatch.setitem(stages.STAGE_FUNCTIONS, "reference", broken)
    options = {"stages": ("comparison",), "reference": {"method": "exact", "num_samples": 50}}
    tree = pv.audit(SPECIMEN.model, SPECIMEN.guide, *SPECIMEN.data, **{**OPTIONS, **options})
    assert tree["diagnostics"]["verdict"].values.tolist() == ["ok", "ok", "no verdict", "no verdict", "ok"]
    assert np.isnan(tree["comparison"]["sd_ratio"].values).all(1).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert np.isfinite(tree["evidence"]["value"]).all()
    found = json.loads(tree.attrs["stages"])["reference"]
    assert found == {"status": "failed", "reason": "MemoryError: too large (in 1 of 3 blocks)"}


# what is there and is not right


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    audit_shard(plan(), folder / "audit")
    return folder


@pytest.fixture
def done(made, tmp_path) -> Path:
    shutil.copytree(made / "audit", tmp_path / "audit")
    return tmp_path


def put(path: Path, content: bytes) -> None:
    """In the place of a file, not into it: HDF5 may still have that open."""
    path.unlink()
    path.write_bytes(content)


def test_missing_blocks_are_named(done):
    block_path(done / "audit", 2).unlink()
    with pytest.raises(MissingBlocksError, match="1 of the 3 blocks .*: block-00002.nc; run"):
        merge_blocks(done / "audit", done / "audit.nc")
    assert not (done / "audit.nc").exists()
    with pytest.raises(MissingBlocksError, match="no blocks"):
        merge_blocks(done, done / "audit.nc")


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    put(path, {"truncated": content[: len(content) // 2], "empty": b"", "altered": content}[kind])
    if kind == "altered":
        with h5py.File(path, "r+") as file:
            values = file["guide/z"]
            values[0, 0, 0, 0] = values[0, 0, 0, 0] + 1.0


@pytest.mark.parametrize("kind", ["truncated", "empty", "altered"])
def test_a_damaged_block_is_refused_and_measured_again(done, whole, kind):
    path = block_path(done / "audit", 2)
    damage(path, kind)
    with pytest.raises(BlockError, match="block-00002.nc is damaged"):
        merge_blocks(done / "audit", done / "audit.nc")
    notices = []
    audit_shard(plan(), done / "audit", notice=notices.append)
    assert len(notices) == 1
    assert "block-00002.nc is damaged" in notices[0]
    assert merged_hash(done) == whole


def test_blocks_of_another_audit_are_refused(done, whole):
    others = {
        "have num_samples = 20, not 30": plan(num_samples=30),
        "have seed = 0, not 1": plan(seed=1),
        "the model or the data have changed": plan(SPECIMEN.data[0] + 0.1),
        "num_data is 5, not 4": plan(SPECIMEN.data[0][:4]),
    }
    for message, other in others.items():
        with pytest.raises(BlockError, match=message):
            audit_shard(other, done / "audit")
    with pytest.raises(BlockError, match="source have run = None, not 'b'"):
        audit_shard(plan(), done / "audit", source={"run": "b"})
    late = SPECIMEN.data[0].clone()
    late[4] += 1.0
    with pytest.raises(BlockError, match="block-00003.nc is of other data"):
        audit_shard(plan(late), done / "audit")
    assert merged_hash(done) == whole


def test_a_foreign_block_is_not_merged(done, tmp_path):
    audit_shard(plan(seed=1), tmp_path / "other")
    path = block_path(done / "audit", 3)
    put(path, block_path(tmp_path / "other", 3).read_bytes())
    with pytest.raises(
        BlockError, match="block-00003.nc is of another audit: its settings have seed = 1, not 0"
    ):
        merge_blocks(done / "audit", done / "audit.nc")
    put(path, block_path(done / "audit", 2).read_bytes())
    with pytest.raises(BlockError, match="holds block 2: it was renamed"):
        merge_blocks(done / "audit", done / "audit.nc")
    audit_shard(plan(num_samples=20, block_size=1), done / "audit", resume="none")
    assert read_block(block_path(done / "audit", 5))[1]["num_blocks"] == 5
    audit_shard(plan(), done / "audit", resume="none")
    assert len(list((done / "audit").iterdir())) == 3


def test_a_shard_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="0 <= i < n"):
        audit_shard(plan(), tmp_path / "audit", shard=(2, 2))
    assert shards.BLOCK_FILE.fullmatch("block-00001.nc")
