"""The command line as a user types it."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app

runner = CliRunner(env={"COLUMNS": "200"})
COMMANDS = ["demo", "train", "audit", "evidence", "gradients", "gaps", "decompose", "reconstruct"]
COMMANDS += ["report", "merge", "doctor"]


def named(text: str) -> list[str]:
    """The commands of which a help has a row."""
    return [words[1] for words in map(str.split, text.splitlines()) if words[0:1] == ["│"] and len(words) > 1]


def test_help_names_the_commands():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert [name for name in named(result.output) if not name.startswith("--")] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_its_own(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f" {command} [OPTIONS]" in result.output


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "pyrovae", "--help"], capture_output=True, text=True, check=True
    )
    assert set(COMMANDS) <= set(named(done.stdout))


@pytest.mark.parametrize(
    "options", [["--num-data", "0"], ["--seed", "-1"], ["--max-epochs", "x"], ["--nonsense"]]
)
def test_wrong_options_exit_with_2(options):
    assert runner.invoke(app, ["demo", *options]).exit_code == 2


def test_an_unknown_device_is_refused_before_any_work(tmp_path):
    result = runner.invoke(app, ["demo", "--device", "abacus", "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "abacus" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_short_demo_writes_everything_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    result = runner.invoke(
        app, ["demo", "--out", str(out), "--max-epochs", "60", "--num-data", "6", "--seed", "3"]
    )
    assert result.exit_code == 0, result.output
    assert "How good is the inference?" in result.output
    assert "log p(x) by IWAE" in result.output
    assert "The reference posterior converged for" in result.output
    assert sorted(path.name for path in out.iterdir()) == [
        *("draws.png", "evidence.png", "model.pyrovae", "reconstructions.png"),
        *("report.html", "result.nc", "training.png"),
    ]
    tree = pv.read(out / "result.nc")
    assert tree["posterior"]["z"].sizes["datum"] == 6
    assert tree["history"].sizes["epoch"] <= 60
    assert pv.load(out / "model.pyrovae").config["latent_dim"] == tree["posterior"].sizes["latent"]


@pytest.mark.slow
def test_a_demo_without_any_verdict_exits_with_3(tmp_path, monkeypatch):
    module = sys.modules["pyrovae.cli.demo"]  # the package's attribute of that name is the command
    monkeypatch.setattr(module, "REFERENCE", {"num_chains": 2, "num_samples": 10, "warmup_steps": 5})
    result = runner.invoke(app, ["demo", "--out", str(tmp_path), "--max-epochs", "2", "--num-data", "2"])
    assert result.exit_code == 3, result.output
    assert "no verdict" in result.output
    assert (tmp_path / "result.nc").exists()
