"""Runs that are killed with SIGKILL at many instants, inside saves too, end bit for bit as those that were not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "case",
    [
        "untraced",
        pytest.param("traced", marks=pytest.mark.slow),
        pytest.param("annealed", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path, case: str) -> None:
    script = Path(__file__).with_name("kill_training.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), case],
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
