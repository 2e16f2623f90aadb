"""Runs that are killed with SIGKILL at many instants, inside saves too, end bit for bit as those that were not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_training.py")


@pytest.mark.parametrize(
    "case",
    [
        "untraced",
        pytest.param("traced", marks=pytest.mark.slow),
        pytest.param("annealed", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path, case: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), case],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["random"]["digest"] == found["files"]["digest"] == found["whole"]["digest"]
    assert found["random"]["kills"] >= 1
    assert found["files"]["inside"] >= 1  # left a temporary file behind
    for how in ("random", "files"):
        assert found[how]["left"] == found["whole"]["left"]  # the temporary files are gone, two are kept


def compiled(folder: Path) -> subprocess.Popen:
    """A new interpreter, for the compiler hangs in a forked one; what it compiles is kept beside the folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(folder.with_name("inductor"))
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), "compiled", "once"], env=env)


def wait_for_more(folder: Path, process: subprocess.Popen) -> None:
    """Until the process has saved once more: it takes seconds to get there."""
    seen, deadline = set(folder.glob("step-*")), time.monotonic() + 180
    while not set(folder.glob("step-*")) - seen and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_compiled_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole, killed, draw = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    undisturbed, kills = compiled(whole), 0
    for _ in range(2):
        process = compiled(killed)
        wait_for_more(killed, process)
        time.sleep(draw.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert compiled(killed).wait(timeout=300) == 0
    assert undisturbed.wait(timeout=300) == 0
    assert kills >= 1
    assert killed.with_suffix(".digest").read_text() == whole.with_suffix(".digest").read_text()
