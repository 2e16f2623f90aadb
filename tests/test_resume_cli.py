"""`pyrovae train` that is stopped, killed, resumed, or runs out of room."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app, finishing
from pyrovae.training import checkpoints, loop
from pyrovae.training.checkpoints import training_checkpoints

runner = CliRunner(env={"COLUMNS": "200"})
EPOCHS = 60  # of what is killed in its first ones
QUICK = ["--max-epochs", "4", "--hidden", "8", "--latent-dim", "2", "--keep-epochs", "0,2,4"]


def run(out: Path, *more: str, code: int = 0) -> str:
    result = runner.invoke(app, ["train", *QUICK, "--out", str(out), *more])
    assert result.exit_code == code, result.output
    return result.output


def lines(out: Path) -> list[dict]:
    """The log without its seconds."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def same(one: Path, other: Path) -> bool:
    files = ["model.pyrovae", *(f"checkpoints/epoch-{epoch:04d}.pyrovae" for epoch in (0, 2, 4))]
    return lines(one) == lines(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


def test_a_run_that_ended_has_its_log_and_nothing_to_go_on_from(whole):
    assert [line["epoch"] for line in lines(whole)] == [1, 2, 3, 4]
    assert {"elbo", "val_elbo"} < lines(whole)[0].keys()
    assert not (whole / "resume").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_exits(whole, tmp_path, monkeypatch, number, code):
    real, epochs = loop.train_epoch, []

    def raising(run, programs, data, epoch, totals, stop):
        epochs.append(epoch)
        if len(epochs) == 3:
            signal.raise_signal(number)
        real(run, programs, data, epoch, totals, stop)

    out, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", raising)
        output = run(out, code=code)
    assert "Stopped after 41 steps and saved: the same command goes on with --resume auto" in output
    assert signal.getsignal(number) is before
    assert "unfinished run: go on with --resume auto, or remove" in run(out, code=2)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "elb')  # torn
    told = run(out, "--resume", "auto", "--json", "--quiet")
    assert told == (out / "run.json").read_text()
    assert same(out, whole)
    assert not (out / "resume").exists()
    assert "holds this run, finished" in run(out, "--resume", "auto")
    assert run(out, "--resume", "auto", "--json") == told
    assert run(out, "--resume", "auto", "--json", "--quiet") == told
    assert not run(out, "--resume", "auto", "--quiet")
    assert "finished run of other settings" in run(out, "--resume", "auto", "--lr", "0.01", code=2)


def test_other_settings_or_a_full_disk_are_said(tmp_path, monkeypatch):
    real, out = checkpoints.write_archive, tmp_path / "run"

    def full(*args):
        if training_checkpoints(out / "resume"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_archive", full)
        assert "No space left on device" in run(out, code=3)
    assert len(training_checkpoints(out / "resume")) == 1
    assert "another configuration: lr is 0.001 there and 0.01 here" in run(
        out, "--resume", "auto", "--lr", "0.01", code=4
    )
    assert "auto or none" in run(out, "--resume", "maybe", code=2)


@pytest.mark.parametrize("name", ["write_run", "_draw"])
def test_a_full_disk_at_the_end_keeps_what_was_trained(whole, tmp_path, monkeypatch, name):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finishing, name, full)
        output = run(out, "--quiet", code=3)
    assert output.startswith(
        "[Errno 28] No space left on device\nThe run is not written, but everything trained is saved"
    )
    assert "goes on with --resume auto" in output
    run(out, "--resume", "auto")
    assert same(out, whole)
    assert not (out / "resume").exists()


def test_tensorboard_logs_each_epoch_or_names_its_package(tmp_path, monkeypatch):
    rows = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            rows.append((Path(folder).name, purge_step))

        def add_scalar(self, *row) -> None:
            rows.append(row)

        def flush(self) -> None:
            pass

    package = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    assert "pip install tensorboard" in run(tmp_path / "a", "--tensorboard", code=2)
    package.SummaryWriter = Writer
    run(tmp_path / "run", "--tensorboard")
    assert rows[0] == ("tensorboard", 1)
    assert [row[2] for row in rows[1:] if row[0] == "elbo"] == [1, 2, 3, 4]


def start(out: Path, *more: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "pyrovae",
        "train",
        *QUICK,
        "--max-epochs",
        str(EPOCHS),
        "--out",
        str(out),
        *more,
    ]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def wait_for_more(out: Path, process: subprocess.Popen) -> None:
    """Until the process has saved: imports take seconds, in which a signal finds nobody who would save."""
    seen, deadline = training_checkpoints(out / "resume"), time.monotonic() + 60
    while training_checkpoints(out / "resume") == seen and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_the_command_killed_and_signalled_ends_as_it_would_have(tmp_path):
    killed, plain = tmp_path / "killed", tmp_path / "plain"
    assert start(plain).wait() == 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(killed, "--resume", "auto")
        wait_for_more(killed, process)
        process.send_signal(number)
        assert process.wait() == code
        assert len(lines(killed)) < EPOCHS
    assert start(killed, "--resume", "auto").wait() == 0
    assert lines(killed) == lines(plain)
    first, second = (pv.load(out / "model.pyrovae").state_dict() for out in (killed, plain))
    assert all(torch.equal(first[name], second[name]) for name in first)
