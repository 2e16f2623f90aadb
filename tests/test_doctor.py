"""`pyrovae doctor`: it passes here, and fails where an answer is wrong."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

from pyrovae.cli import app
from pyrovae.cli.self_checks import CHECKS, Check, self_checks
from pyrovae.data import LinearGaussian

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.mark.slow
def test_every_check_passes_and_the_facts_are_told():
    result = runner.invoke(app, ["doctor", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [check["name"] for check in found["checks"]] == list(CHECKS)
    assert all(check["passed"] for check in found["checks"])
    assert "pyro-ppl" in found["facts"]["packages"]


@pytest.fixture
def few(monkeypatch):
    """The quick checks alone."""
    for name in set(CHECKS) - {"importance weights", "importance sampling", "Laplace", "files"}:
        monkeypatch.delitem(CHECKS, name)


def test_a_wrong_density_is_found(few, monkeypatch):
    right = LinearGaussian.log_evidence
    monkeypatch.setattr(LinearGaussian, "log_evidence", lambda self, x=None: right(self, x) + 0.1)
    result = runner.invoke(app, ["doctor", "--device", "cpu"])
    assert result.exit_code == 3
    assert result.output.count("FAILED") == 3
    assert "1 of 4 checks passed" in result.output


def test_quiet_names_what_failed_and_json_wins_over_quiet(few, monkeypatch):
    def broken(device: str, dtype: str):
        raise OSError("no such disk")

    monkeypatch.setitem(CHECKS, "files", broken)
    result = runner.invoke(app, ["doctor", "--device", "cpu", "--quiet"])
    assert result.exit_code == 3
    assert (result.stdout, result.stderr) == ("", "1 of 4 checks failed: files.\n")
    result = runner.invoke(app, ["doctor", "--device", "cpu", "--quiet", "--json"])
    assert result.exit_code == 3
    assert [check["passed"] for check in json.loads(result.stdout)["checks"]] == [True, True, True, False]


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(few, monkeypatch):
    def broken(device: str, dtype: str):
        raise OSError("no such disk")

    monkeypatch.setitem(CHECKS, "importance weights", broken)
    checks = list(self_checks("cpu", "float32"))
    assert [check.is_passed for check in checks] == [False, True, True, True]
    assert checks[0].note == "OSError: no such disk"
    assert checks[0].plain()["error"] is None


def test_what_is_no_number_is_not_passed():
    check = partial(Check, "a", limit=1.0, unit="", seconds=0.0)
    assert check(1.0).is_passed
    assert not check(float("nan")).is_passed
    assert not check(1.1).is_passed


def test_wrong_options_exit_with_2():
    assert runner.invoke(app, ["doctor", "--dtype", "float16"]).exit_code == 2
    assert runner.invoke(app, ["doctor", "--device", "abacus"]).exit_code == 2
