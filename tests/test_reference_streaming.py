"""Draws that go to disk block by block: the same values, a memory that does not grow, and nothing half-written."""

import gc
import math
import tracemalloc
from pathlib import Path

import pytest
import torch
import xarray as xr
import zoo

from pyrovae import results
from pyrovae.diagnostics.comparison import compare
from pyrovae.diagnostics.reference import exact, hmc, importance, sample_posterior
from pyrovae.target import Target

SHORT = {"num_chains": 4, "num_samples": 30, "warmup_steps": 30, "max_samples": 30, "compile": False}
PYRO = {"num_chains": 2, "num_samples": 8, "warmup_steps": 8}


def target(num_data: int = 5) -> Target:
    specimen = zoo.linear_gaussian(num_data=num_data)
    return Target(specimen.model, specimen.guide, *specimen.data)


@pytest.fixture
def blocks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five data are three blocks, the last of them smaller."""
    monkeypatch.setattr(hmc, "MAX_ROWS", 2 * 4)
    monkeypatch.setattr(exact, "MAX_ROWS", 2 * 4 * 100)
    monkeypatch.setattr(importance, "MAX_KEPT", 2 * 1000)


METHODS = {
    "hmc": {**SHORT, "max_rhat": math.inf},
    "exact": {"num_chains": 4, "num_samples": 100},
    "importance": {"num_samples": 100, "num_draws": 1000},
    "pyro-importance": {"num_samples": 100, "num_draws": 1000},
    "pyro-hmc": PYRO,
    "pyro-nuts": PYRO,
}


@pytest.mark.usefixtures("blocks_of_two")
@pytest.mark.parametrize("method", METHODS)
def test_what_is_streamed_is_what_is_held_in_memory(method: str, tmp_path: Path) -> None:
    """Of every method: dims, dtypes, values, settings; opened, and read."""
    path, some = tmp_path / "draws.zarr", target(2 if method.startswith("pyro") else 5)
    held = sample_posterior(some, method, **METHODS[method], seed=3)
    streamed = sample_posterior(some, method, **METHODS[method], seed=3, path=path)
    read = results.read(path)
    for tree in (held, streamed, read):
        del tree["posterior"].attrs["seconds"]
    assert streamed.identical(held)
    assert read.identical(held)
    assert results.content_hash(streamed) == results.content_hash(read) == results.content_hash(held)
    for group, made in held.children.items():
        assert {name: each.dtype for name, each in made.data_vars.items()} == {
            name: each.dtype for name, each in streamed[group].data_vars.items()
        }
    assert [each.name for each in tmp_path.iterdir()] == ["draws.zarr"]
    other = sample_posterior(some, method, **METHODS[method], seed=4)
    assert results.content_hash(other) != results.content_hash(held)


MANY = {"num_chains": 200, "num_samples": 50, "warmup_steps": 5, "max_samples": 50, "compile": False}


def peak_memory(num_blocks: int, path: Path | None, monkeypatch: pytest.MonkeyPatch) -> float:
    """The most that numpy held while two data a block were sampled, in units of one block's z."""
    monkeypatch.setattr(hmc, "MAX_ROWS", 2 * MANY["num_chains"])
    some = target(2 * num_blocks)
    gc.collect()
    tracemalloc.start()
    try:
        tree = sample_posterior(some, **MANY, path=path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tree["posterior"].sizes["datum"] == 2 * num_blocks
    return peak * num_blocks / tree["posterior"]["z"].nbytes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_posterior(target(2), **SHORT, path=tmp_path / "first.zarr")  # imports
    few, many = (peak_memory(count, tmp_path / f"{count}.zarr", monkeypatch) for count in (2, 8))
    assert many < 1.2 * few
    # Planted: the same draws kept until the end.
    assert peak_memory(8, None, monkeypatch) > 2 * many


def test_an_opened_tree_reads_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datum is one chunk, and stays in memory only as long as the caller holds it."""
    monkeypatch.setattr(results.storage, "CHUNK_BYTES", 1)
    tree = sample_posterior(target(40), "exact", num_samples=500, path=tmp_path / "draws.zarr")
    size = tree["posterior"]["z"].nbytes
    tracemalloc.start()
    try:
        opened = results.read_lazily(tmp_path / "draws.zarr")
        one = opened["posterior"]["z"].isel(datum=7).values
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert one.nbytes == size / 40
    assert peak < size / 2
    tracemalloc.start()
    try:
        assert opened["posterior"]["z"].values.nbytes == size
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < size / 2 < size < peak


def test_an_opened_tree_is_a_reference(tmp_path: Path) -> None:
    """What compares a guide with its reference takes it as it is."""
    some = target()
    held = sample_posterior(some, "exact")
    streamed = sample_posterior(some, "exact", path=tmp_path / "draws.zarr")
    first, second = (compare(some, each)["comparison"].to_dataset() for each in (held, streamed))
    xr.testing.assert_equal(first, second)


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_there_is_never_replaced(tmp_path: Path, is_folder: bool) -> None:
    """Refused before the first draw, not after hours."""
    path, told = tmp_path / "draws.zarr", []
    path.mkdir() if is_folder else path.write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"already something at .*draws\.zarr: read it with pyrovae\.read, rem"
    ):
        sample_posterior(target(), **SHORT, path=path, progress=lambda *counts: told.append(counts))
    assert not told
    assert not list(path.iterdir()) if is_folder else path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.zarr, not 'draws\.nc'"):
        sample_posterior(target(), **SHORT, path=tmp_path / "draws.nc")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        sample_posterior(target(), **SHORT, path=tmp_path / "nowhere" / "draws.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("blocks_of_two")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Two blocks are on the disk, under another name, when the third one breaks."""
    path, on_disk, original = tmp_path / "draws.zarr", [], hmc._block

    def breaks(some: Target, *others: object) -> object:
        on_disk.append([each.name for each in tmp_path.iterdir()])
        if some.num_data == 1:
            raise error("broken")
        return original(some, *others)

    monkeypatch.setattr(hmc, "_block", breaks)
    with pytest.raises(error, match="broken"):
        sample_posterior(target(), **SHORT, path=path)
    assert on_disk[0] == []
    assert [name.startswith(".draws.zarr.") for name in on_disk[2]] == [True]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(hmc, "_block", original)
    tree = sample_posterior(target(), **SHORT, path=path)
    assert tree["posterior"].sizes["datum"] == 5


@pytest.mark.usefixtures("blocks_of_two")
def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    """Blocks are made one at a time, and a seed is in force only while one is."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sample_posterior(target(), **SHORT, path=tmp_path / "draws.zarr")
    assert torch.equal(torch.rand(3), expected)
