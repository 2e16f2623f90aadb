"""README is true: its Python blocks run, its names exist, its commands are the command line's."""

import re
from pathlib import Path

import pyro
import pytest

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.diagnostics import evidence, reference
from pyrovae.models.noise import NOISES
from pyrovae.models.vae import DECODERS, ENCODERS, NETWORKS, PRIORS
from pyrovae.training.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with pyro.get_param_store().scope():  # plain SVI leaves its parameters behind
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(block, names)
    assert names["evidence"].direction == "lower"
    assert names["reference"]["diagnostics"].sizes["datum"] == 10
    assert {path.name for path in tmp_path.iterdir()} == {
        *("result.nc", "report.html", "digits.pyrovae", "checkpoints")
    }


def test_every_name_of_pv_in_readme_exists():
    for name in set(re.findall(r"\bpv\.(\w+)", README)):
        assert hasattr(pv, name), name


def test_the_table_of_parts_names_what_there_is():
    parts = README.split("## Parts")[1].split("## Commands")[0]
    for name in [
        *PRIORS,
        *DECODERS,
        *NOISES,
        *ENCODERS,
        *NETWORKS,
        *evidence.METHODS,
        *reference.METHODS,
        *OBJECTIVES,
    ]:
        assert f'"{name}"' in parts, name


def test_the_table_of_commands_is_the_command_line():
    commands = README.split("## Commands")[1].split("## Five")[0]
    assert set(re.findall(r"^\| `pyrovae (\w+)", commands, re.MULTILINE)) == {
        command.callback.__name__ for command in app.registered_commands
    }


def test_linked_files_exist():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_two_lines_of_setup_are_there():
    assert "\npip install -c .ci/constraints.txt -e . && pyrovae demo\n" in README
    assert "\npip install -c .ci/constraints.txt -e '.[test]' && pytest -n 2 --dist loadfile\n" in README
