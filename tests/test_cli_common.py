"""The options that every measuring command takes: what they print, where they write, what they keep."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.results import content_hash

runner = CliRunner(env={"COLUMNS": "200"})
MEASURE = {
    "evidence": ["--methods", "elbo,iwae", "--num-samples", "50"],
    "decompose": ["--num-samples", "20"],
    "reconstruct": ["--num-samples", "20"],
    "gradients": ["--estimators", "elbo", "--particles", "1", "--replicates", "80"],
    "gaps": ["--num-samples", "100", "--num-fitting-samples", "256", "--num-temperatures", "20"],
}
TREES = {"evidence": "evidence", "decompose": "decomposition", "gaps": "gaps"}
TREES |= {"reconstruct": "reconstruction", "gradients": "gradients"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    options = [
        "--data",
        "digits",
        "--max-epochs",
        "1",
        "--hidden",
        "8",
        "--latent-dim",
        "2",
        "--out",
        str(out),
    ]
    assert runner.invoke(app, ["train", *options]).exit_code == 0
    return out


def run(command: str, trained: Path, *more: object, code: int = 0):
    arguments = [command, str(trained), "--num-data", "4", *MEASURE[command], *map(str, more)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("command", "options"),
    [*((name, ["--json", "--quiet"]) for name in MEASURE), ("decompose", ["--json"])],
)
def test_json_is_the_numbers_of_the_tree_and_nothing_else(command, options, trained, tmp_path):
    result = run(command, trained, *options, "--out", tmp_path)
    found = json.loads(result.stdout)
    tree = pv.read(tmp_path / f"{TREES[command]}.nc")
    assert found["sentences"] == pv.verdict_sentences(tree)
    assert [row["value"] for row in found["summary"]] == pytest.approx(pv.summary(tree)["value"].tolist())
    assert all(Path(name).is_file() for name in found["files"])
    assert sorted(Path(name).name for name in found["files"]) == sorted(p.name for p in tmp_path.iterdir())


@pytest.mark.parametrize("command", ["evidence", "decompose", "reconstruct"])
def test_quiet_prints_nothing_and_writes_the_same(command, trained, tmp_path):
    assert run(command, trained, "--out", tmp_path / "a").output
    assert not run(command, trained, "--out", tmp_path / "b", "--quiet").output
    a, b = (pv.read(tmp_path / name / f"{TREES[command]}.nc") for name in "ab")
    assert content_hash(a) == content_hash(b)


def test_quiet_still_tells_errors(tmp_path):
    result = runner.invoke(app, ["evidence", str(tmp_path), "--quiet"])
    assert result.exit_code == 4
    assert "is not a run" in result.stderr
    assert not result.stdout


def test_the_run_is_untouched_by_a_result_that_goes_elsewhere(trained, tmp_path):
    before = sorted(path.name for path in trained.iterdir())
    run("decompose", trained, "--out", tmp_path / "new" / "folder")
    assert sorted(path.name for path in trained.iterdir()) == before
    assert (tmp_path / "new" / "folder" / "decomposition.nc").is_file()


@pytest.mark.parametrize(
    ("changed", "is_kept"),
    [((), True), (("--seed", 1), False), (("--num-samples", 21), False), (("--dtype", "float64"), False)],
)
def test_resume_keeps_what_the_same_command_left(changed, is_kept, trained, tmp_path, monkeypatch):
    run("decompose", trained, "--out", tmp_path)
    calls = []
    measure = pv.decompose
    monkeypatch.setattr(
        "pyrovae.diagnostics.decomposition.decompose", lambda *a, **o: calls.append(1) or measure(*a, **o)
    )
    run("decompose", trained, "--out", tmp_path, "--resume", "auto", *changed)
    assert bool(calls) != is_kept


@pytest.mark.parametrize("damage", [lambda found: found[:3000], lambda found: b"no tree", lambda found: b""])
def test_resume_measures_anew_what_cannot_be_read_and_says_so(damage, trained, tmp_path):
    run("decompose", trained, "--out", tmp_path)
    file = tmp_path / "decomposition.nc"
    whole = pv.read(file)
    file.write_bytes(damage(file.read_bytes()))
    result = run("decompose", trained, "--out", tmp_path, "--resume", "auto", "--quiet")
    assert f"{file} cannot be read and is measured anew" in result.stderr
    assert content_hash(pv.read(file)) == content_hash(whole)


@pytest.mark.parametrize("writer", ["results.write", "reporting.plots.save_figure"])
def test_a_full_disk_exits_with_3_and_one_line(writer, trained, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"pyrovae.{writer}", full)
    result = run("decompose", trained, "--out", tmp_path, "--quiet", code=3)
    assert result.stderr == "[Errno 28] No space left on device\n"


def test_what_the_machine_cannot_do_exits_with_3_and_one_line(trained, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("pyrovae.diagnostics.decomposition.decompose", fail)
    result = run("decompose", trained, "--out", tmp_path, "--quiet", code=3)
    assert result.stderr == "tried to allocate 80 GiB\n"


def test_resume_measures_anew_for_another_model(trained, tmp_path):
    options = ["--data", "digits", "--max-epochs", "1", "--hidden", "8", "--latent-dim", "2", "--seed", "5"]
    assert runner.invoke(app, ["train", *options, "--out", str(tmp_path / "b")]).exit_code == 0
    run("decompose", trained, "--out", tmp_path)
    first = pv.read(tmp_path / "decomposition.nc")
    run("decompose", tmp_path / "b", "--out", tmp_path, "--resume", "auto")
    assert pv.read(tmp_path / "decomposition.nc").attrs["command"] != first.attrs["command"]


def test_dtype_is_that_of_model_and_data(trained, tmp_path):
    for dtype in ("float32", "float64"):
        run("reconstruct", trained, "--out", tmp_path, "--dtype", dtype)
        assert pv.read(tmp_path / "reconstruction.nc")["reconstruction"]["x"].dtype == np.dtype(dtype)


def test_threads_are_set_for_the_command_alone(trained, tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()
    measure = pv.decompose

    def noting(*arguments, **options):
        seen.append(torch.get_num_threads())
        return measure(*arguments, **options)

    monkeypatch.setattr("pyrovae.diagnostics.decomposition.decompose", noting)
    run("decompose", trained, "--out", tmp_path, "--threads", 2)
    assert (seen, torch.get_num_threads()) == ([2], before)


@pytest.mark.parametrize(
    "options", [("--dtype", "float16"), ("--resume", "perhaps"), ("--threads", 0), ("--seed", -1)]
)
def test_wrong_common_options_exit_with_2(options, trained):
    run("decompose", trained, *options, code=2)
