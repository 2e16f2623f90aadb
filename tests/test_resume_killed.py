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
    left = [f"step-{found['num_steps'] - back:09d}.pyrovae" for back in (4, 0)]  # steps of an epoch
    for how in ("random", "files") if case == "untraced" else ("random",):
        assert found[how]["digest"] == found["whole"]
        assert found[how]["kills"] >= 1
        assert found[how]["left"] == left  # the temporary files are gone, two are kept
    if case == "untraced":
        assert (found["files"]["kills"], found["files"]["inside"]) == (
            5,
            3,
        )  # three left a temporary file behind


def compiled(folder: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), "compiled", "once"], env=env)


def wait_for_a_save(folder: Path, process: subprocess.Popen) -> None:
    """Until the process has saved: it takes seconds to get there."""
    deadline = time.monotonic() + 180
    while not list(folder.glob("step-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_compiled_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    process = compiled(tmp_path)
    wait_for_a_save(tmp_path / "killed", process)
    time.sleep(random.Random(0).uniform(0.0, 0.1))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert compiled(tmp_path).wait(timeout=300) == 0
    assert (tmp_path / "killed.digest").read_text() == (tmp_path / "whole.digest").read_text()
