"""Two processes that train one model give what one process gives; what they refuse, and what kills and signals do."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from share_training import OPTIONS, X, guide, model
from torch import distributed
from typer.testing import CliRunner

from pyrovae.cli import app
from pyrovae.training.distributed import Ranks
from pyrovae.training.fit import TrainingStopped, fit
from pyrovae.training.shares import share_of

HERE = Path(__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
PARITY = 1e-12


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, dict, dict]:
    """What one process gave, and each of two."""
    folder = tmp_path_factory.mktemp("shared")
    script = [str(HERE / "share_training.py"), str(folder)]
    log = folder / "alone.log"
    with open(log, "w") as file:
        alone = subprocess.Popen([sys.executable, *script], env=ENV, stderr=file)
    both = subprocess.run([*TORCHRUN, *script], env=ENV, capture_output=True, text=True, timeout=300)
    assert both.returncode == 0, both.stderr
    assert alone.wait(timeout=300) == 0, log.read_text()
    names = ("rank-0-of-1.pt", "rank-0-of-2.pt", "rank-1-of-2.pt")
    one, first, second = (torch.load(folder / name) for name in names)
    return one, first, second


def largest_difference(one: dict, other: dict) -> float:
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    assert tensors
    return max(float((one[name] - other[name]).abs().max()) for name in tensors)


CASES = ["vae traced", "vae untraced", "functions traced", "functions untraced"]
CASES += ["functions", "mixture", "iwae", "dreg in chunks", "stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(found, case) -> None:
    """The last batch of each epoch has one row, of which one rank has none."""
    one, first, second = (each[case] for each in found)
    assert largest_difference(first, second) == 0.0
    assert largest_difference(one, first) < PARITY


@pytest.mark.slow
def test_parity_sees_weights_and_noise_that_are_wrong(found) -> None:
    one, first, _ = found
    assert largest_difference(one["functions"], first["mean of means"]) > 1e-6
    assert largest_difference(one["vae traced"], first["own noise"]) > 1e-6


@pytest.mark.slow
def test_ranks_stop_after_the_same_step_and_the_first_one_writes_and_tells(found) -> None:
    one, first, second = (each["stopped"] for each in found)
    assert one["num_steps"] == first["num_steps"] == second["num_steps"] == 4
    assert one["epochs told"] == first["epochs told"] == [1, 2]
    assert second["epochs told"] == []


@pytest.mark.slow
def test_latents_without_explicit_noise_keep_ranks_together(found) -> None:
    _, first, second = found
    assert largest_difference(first["gammas"], second["gammas"]) == 0.0
    assert torch.isfinite(first["gammas"]["tensors"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "data",
            r"every rank must have the same data \(all of them: each takes its rows itself\), but data\[0\] is",
        ),
        ("options", "every rank must have the same options, but lr is 0.1 on rank 0 and 0.2 on rank 1"),
        ("arguments", "same arguments, given or not, but stop is False on rank 0 and True on rank 1"),
        ("start", "every rank must have the same parameters at the start, but loc is"),
        ("plate", "want to know the plate over the data, but model and guide have none called 'rows'"),
        ("rows", "every rank must have the same state after the same steps, but norm.running_mean is"),
        ("hmc", 'objective "hmc" draws'),
    ],
)
def test_what_is_refused_is_refused_on_all_ranks(found, what, message) -> None:
    sentences = [each["refused"][what] for each in found[1:]]
    assert any(re.search(message, sentence) for sentence in sentences), sentences
    assert "nothing" not in sentences


@pytest.mark.slow
def test_ranks_diverge_together(found) -> None:
    first, second = (each["refused"]["nan"] for each in found[1:])
    assert first.startswith("TrainingDiverged: training diverged at epoch 0, batch 0")
    assert second.startswith("TrainingDiverged: on rank 0: training diverged at epoch 0, batch 0")


def test_shares_are_the_whole_batch_once() -> None:
    for whole in range(1, 9):
        for size in range(1, 9):
            shares = [share_of(whole, rank, size) for rank in range(size)]
            rows = [row for s in shares if not s.is_borrowed for row in range(s.start, s.stop)]
            assert rows == list(range(whole))
            assert all(s.rows >= 1 for s in shares)
            assert shares[0].is_whole == (size == 1)


def test_alone_nothing_waits() -> None:
    ranks = Ranks()
    tensors = [torch.ones(2)]
    assert ranks.sum(tensors)[0] is tensors[0]
    assert (ranks.any(True), ranks.largest(3.0), ranks.totals([2.0]), ranks.from_first("x")) == (
        True,
        3.0,
        [2.0],
        "x",
    )
    ranks.check_same("options", {"lr": 1.0})
    with pytest.raises(ValueError, match="mine"), ranks.together():
        raise ValueError("mine")


@pytest.fixture
def launch(monkeypatch):
    """Make this process one that torchrun started: `launch()` begins another, `launch.fails()` starts it anew."""
    stores = []

    def begin() -> None:
        stores.append(distributed.TCPStore("localhost", 0, is_master=True))
        monkeypatch.setenv("MASTER_PORT", str(stores[-1].port))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")

    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    begin.fails = lambda: monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    return begin


def test_a_launch_goes_on_after_a_restart_with_what_it_began_and_with_nothing_else(launch, tmp_path) -> None:
    def train(stop=None, **more):
        return fit(model, guide, X, checkpoint=tmp_path / "a", stop=stop, **OPTIONS, **more)

    launch()
    with pytest.raises(TrainingStopped):
        train(stop=lambda: True)
    with pytest.raises(ValueError, match="wants a folder without checkpoints"):
        train()
    launch.fails()
    with pytest.raises(TrainingStopped, match="after 2 steps"):
        train(stop=lambda: True)
    launch()
    for _ in range(2):
        with pytest.raises(ValueError, match="wants a folder without checkpoints"):
            train()
        launch.fails()
    assert train(resume="auto").num_steps == 9


def test_the_command_refuses_at_a_restart_what_it_refused(launch, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X.numpy())
    quick = [
        "train",
        "--data",
        "npy:x.npy",
        "--max-epochs",
        "2",
        "--hidden",
        "3",
        "--latent-dim",
        "2",
        "--out",
        "a",
    ]
    launch()
    fit(model, guide, X, checkpoint=tmp_path / "a" / "resume", **OPTIONS)
    launch()
    for _ in range(2):
        refused = CliRunner().invoke(app, quick)
        assert (refused.exit_code, "unfinished run" in refused.output) == (2, True), refused.output
        launch.fails()


QUICK = [
    "--data",
    "npy:x.npy",
    "--batch-size",
    "20",
    "--max-epochs",
    "30",
    "--hidden",
    "4",
    "--latent-dim",
    "2",
]


def start(out: Path, *more: str, restarts: int = 0) -> subprocess.Popen:
    """The command on two ranks, in the folder of `out`, where its data are."""
    command = [*TORCHRUN, "--max-restarts", str(restarts), "-m", "pyrovae", "train", *QUICK, *more]
    command += ["--keep-epochs", "0,5", "--out", out.name]
    with open(out.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, env=ENV, stdout=log, stderr=log, cwd=out.parent)


def saved(out: Path) -> set[str]:
    return {path.name for path in (out / "resume").glob("step-*")}


def wait_until(is_so: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers(process: subprocess.Popen) -> set[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return set(map(int, text.split()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
def test_a_killed_rank_and_a_signal_end_as_an_undisturbed_run(tmp_path) -> None:
    """A rank is killed, and torchrun starts both anew; SIGTERM stops these, and the same command goes on."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 5)))
    plain, disturbed = tmp_path / "plain", tmp_path / "disturbed"
    undisturbed = start(plain)

    process = start(disturbed, restarts=1)
    wait_until(lambda: saved(disturbed), process)
    first = workers(process)
    os.kill(max(first), signal.SIGKILL)
    wait_until(lambda: len(workers(process) - first) == 2, process)  # others are there in their place
    seen = saved(disturbed)
    wait_until(lambda: saved(disturbed) - seen, process)
    process.terminate()
    assert process.wait(timeout=120) != 0
    log = disturbed.with_suffix(".log").read_text()
    assert log.count("and saved: the same command goes on with --resume auto") == 1, log
    assert saved(disturbed)
    assert start(disturbed, "--resume", "auto").wait(timeout=120) == 0, disturbed.with_suffix(
        ".log"
    ).read_text()
    assert undisturbed.wait(timeout=120) == 0, plain.with_suffix(".log").read_text()

    for name in ("model", "checkpoints/epoch-0000", "checkpoints/epoch-0005"):
        assert (plain / f"{name}.pyrovae").read_bytes() == (disturbed / f"{name}.pyrovae").read_bytes()
    assert len((disturbed / "metrics.jsonl").read_text().splitlines()) == 30
    assert disturbed.with_suffix(".log").read_text().count("Written to") == 1
