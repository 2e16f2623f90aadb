import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.data import Rows, load
from pyrovae.training.archive import CheckpointError
from pyrovae.training.batches import blocks, check_data, check_val_data, minibatches, take
from pyrovae.training.fingerprints import fingerprints

X = np.random.default_rng(5).standard_normal((50, 4)).astype("f4")


def test_batches_of_rows_are_those_of_tensors() -> None:
    rows, x = Rows(X), torch.from_numpy(X)
    data = check_data("data", (rows, x))
    assert data[0] is rows
    assert check_val_data((rows, x), data) is not None
    for size in (16, 50):
        batches = [*minibatches(data, size, 3, 0), *blocks(data, size), take(data, torch.tensor([4, 1]))]
        assert all(isinstance(part, torch.Tensor) for batch in batches for part in batch)
        assert all(torch.equal(*batch) for batch in batches)


def test_rows_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.training.batches.CHECKED", 24)  # six rows at a time
    bad = X.copy()
    bad[[33, 41], 2] = np.nan, np.inf
    with pytest.raises(
        ValueError, match=r"data\[0\] must be finite, got .* in row 33 \(and in 2 rows in all\)"
    ):
        check_data("data", (Rows(bad),))
    check_data("data", (Rows(bad, is_checked=True),))  # what `load` has looked at is not read again
    with pytest.raises(
        ValueError, match=r"val_data must have rows of shapes \[\[4\]\] as the data, got \[\[3\]\]"
    ):
        check_val_data(Rows(X[:, :3]), (Rows(X),))


def fitted(train: torch.Tensor | Rows, val: torch.Tensor | Rows, **options: object) -> list[torch.Tensor]:
    """Everything that training gives: history and parameters."""
    vae = pv.build_vae(4, 2, hidden=(8,), noise="optimal", prior="vamp", pseudo_inputs=5, data=train, seed=1)
    result = pv.fit(vae.model, vae.guide, train, val_data=val, max_epochs=3, batch_size=16, **options)
    history = [torch.from_numpy(result.history[name]) for name in ("elbo", "val_elbo")]
    return [*history, *vae.state_dict().values()]


def test_training_on_rows_is_training_on_tensors(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.rint(X * 20))
    results = []
    for memory in ("read", "map"):
        split = load(f"npy:{tmp_path / 'x.npy'}", scale="unit", dequantize=True, memory=memory)
        options = {"checkpoint": tmp_path / memory, "resume": "auto", "compile": False}
        results.append(fitted(split.train, split.val, **options))
        results.append(fitted(split.train, split.val, **options))  # finds the end of the first
        results.append(fitted(split.train, split.val, compile=False))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    moved = split.train.part(torch.arange(34).flip(0))
    others = fitted(moved, split.val, compile=False)
    assert not all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
    with pytest.raises(CheckpointError, match="is of another data set"):
        fitted(moved, split.val, **options)


def test_rows_of_known_data_are_not_read_to_be_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", X)
    split = load(f"npy:{tmp_path / 'x.npy'}", memory="map")
    read: list[int] = []
    real = Rows._read
    monkeypatch.setattr(Rows, "_read", lambda self, rows: read.append(len(rows)) or real(self, rows))
    found = fingerprints({"x": split.train, "y": split.val, "z": Rows(X)})
    assert read == [50]  # of z alone, of which nothing is known
    assert found["x"] == f"float32 [34, 4], {split.train.sha256}"
    assert found["z"] == fingerprints({"z": torch.from_numpy(X)})["z"]


def growth(path: Path, rows: int, memory: str) -> float:
    """By how much a process grows that trains on a sparse file of zeros, as a share of its size."""
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 784), "f4")) | {"shape": (rows, 784)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + rows * 784 * 4
        file.truncate(size)
    script = Path(__file__).parent / "mapped_training.py"
    run = [sys.executable, script, path, memory]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout) / size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux keeps it")
def test_memory_stays_far_below_the_data(tmp_path: Path) -> None:
    assert growth(tmp_path / "x.npy", 700_000, "map") < 0.2
    assert growth(tmp_path / "x.npy", 100_000, "read") > 1.0  # planted: the same in memory
