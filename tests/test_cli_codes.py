"""What goes wrong in a command ends with the exit code of its kind and a reason on stderr; --json wins over --quiet."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from report_trees import report_tree
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.cli.ranks import print_failure
from pyrovae.cli.train import _prepare, near
from pyrovae.data import Rows
from pyrovae.results.advice import advice
from pyrovae.results.headline import headline
from pyrovae.training.distributed import RankFailed, Ranks

runner = CliRunner(env={"COLUMNS": "200"})
WRITING = ("evidence", "decompose", "reconstruct", "gradients", "gaps", "audit")


def run(*arguments: object, code: int = 0):
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


# --out


@pytest.mark.parametrize("command", [("train",), ("demo",), *((name, "nowhere") for name in WRITING)])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder_to_write_to(command, below, tmp_path):
    file = tmp_path / "file"
    file.touch()
    result = run(*command, "--out", file / below, code=2)
    assert "--out must be a folder, but" in result.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_a_closed_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert "closed to you" in run("train", "--out", tmp_path / "a" / "b", code=2).stderr
    assert not list(tmp_path.iterdir())


def test_a_page_of_a_report_is_a_file(tmp_path):
    (tmp_path / "page.html").mkdir()
    assert "must be a file" in run("report", tmp_path, "--out", tmp_path / "page.html", code=2).stderr


# files that are read


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 4, "cannot be read as TOML"),
        ("latent_dim = ", 4, "cannot be read as TOML"),
        ("latent_dims = 3", 2, "did you mean 'latent_dim'?"),
        ('latent_dim = "3"', 2, "must be of kind int"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_no_wrong_option(tmp_path, text, code, message):
    config = tmp_path / "a.toml"
    if text is not None:
        config.write_text(text)
    assert message in run("train", "--config", config, "--out", tmp_path / "run", code=code).stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", WRITING)
def test_what_is_no_run_exits_with_4(command, tmp_path):
    assert "is not a run" in run(command, tmp_path, "--quiet", code=4).stderr


def test_checkpoints_that_cannot_be_read_exit_with_4(tmp_path):
    out = tmp_path / "run"
    options = ["--max-epochs", 1, "--hidden", 8, "--latent-dim", 2, "--keep-epochs", 0]
    told = run("train", *options, "--out", out, "--json", "--quiet").stdout
    assert json.loads(told) == json.loads((out / "run.json").read_text())
    kept = out / "checkpoints" / "epoch-0000.pyrovae"
    kept.write_bytes(kept.read_bytes()[:100])
    assert "epoch-0000.pyrovae" in run("gradients", out, "--checkpoints", code=4).stderr
    (out / "run.json").unlink()
    assert "run.json" in run("train", *options, "--out", out, "--resume", "auto", "--json", code=4).stderr


# report


def test_a_report_tells_a_program_what_the_page_says(tmp_path, monkeypatch):
    tree, page, written = report_tree(), tmp_path / "report.html", []
    monkeypatch.setattr("pyrovae.reporting.report.write_report", lambda tree, path: written.append(path))
    pv.write(tree, tmp_path / "audit.nc")
    for options in (["--json"], ["--json", "--quiet"]):
        found = json.loads(run("report", tmp_path, *options).stdout)
        assert found["headline"] == headline(tree)
        assert found["advice"] == advice(tree)
        assert found["sentences"] == pv.verdict_sentences(tree)
        assert found["files"] == [str(page)]
    assert not run("report", tmp_path, "--quiet").output
    assert written == [page] * 3


def test_a_report_that_cannot_be_written_exits_with_3(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("pyrovae.reporting.report.write_report", full)
    pv.write(report_tree(), tmp_path / "audit.nc")
    assert run("report", tmp_path, "--quiet", code=3).stderr == "No space left on device\n"


# several ranks


@dataclass(frozen=True)
class OneOfTwo(Ranks):
    """One of two ranks, as it is where the other one ends with the exit code `other`; 0: it does not."""

    size: int = 2
    other: int = 0

    def largest(self, number: float) -> float:
        return max(number, float(self.other))

    def from_first(self, value):
        return value

    def _tell(self, error: Exception | None) -> None:
        if error is None and self.other:
            raise RankFailed("the other one failed: it says why")


@pytest.mark.parametrize(
    ("rank", "other", "given", "code"),
    [
        (0, 0, {"dtype": "float16"}, 2),
        (0, 0, {"data": "csv:nothing.csv"}, 4),
        (1, 2, {}, 2),
        (1, 4, {}, 4),
        (0, 4, {"dtype": "float16"}, 4),
        (1, 2, {"data": "csv:nothing.csv"}, 4),
    ],
)
def test_all_ranks_end_with_one_code(tmp_path, rank, other, given, code):
    with pytest.raises((typer.Exit, typer.BadParameter)) as error:
        _prepare(OneOfTwo(rank, other=other), tmp_path / "run", None, given, "none")
    assert error.value.exit_code == code


def test_a_rank_tells_why_it_failed_whatever_its_error_takes(capsys):
    damage = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    broken = json.JSONDecodeError("Expecting value", "x", 0)
    for rank in (0, 1):
        for error in (damage, broken, RankFailed("rank 0 failed")):
            print_failure(error, Ranks(rank, 2))
    assert capsys.readouterr().err.splitlines() == [
        *(str(damage), str(broken), "rank 0 failed"),
        *(f"rank 1: {damage}", f"rank 1: {broken}"),
    ]


# where the data are


def test_data_that_do_not_fit_on_the_device_stay_where_they_are():
    train, val = torch.randn(6, 4), torch.randn(2, 4, dtype=torch.float64)  # 96 and 64 bytes
    cpu = torch.device("cpu")
    for free in (None, 320):
        assert near(cpu, free, train, val) == [train, val]
    rows = near(cpu, 319, train, val)
    assert all(isinstance(part, Rows) and part.device == cpu for part in rows)
    index = torch.tensor([1, 0])
    for part, x in zip(rows, (train, val), strict=True):
        assert (part.dtype, part.shape) == (x.dtype, x.shape)
        assert torch.equal(part[index], x[index])
    mapped = Rows(train.numpy())
    assert all(isinstance(part, Rows) for part in near(cpu, None, mapped))
    assert near(cpu, 128, mapped, val)[1] is val
    assert len(near(cpu, 0, train, train[:0])[1]) == 0


@pytest.mark.gpu
def test_data_that_stay_come_to_the_device_batch_by_batch():
    place, train = torch.device("cuda"), torch.randn(6, 4)
    (rows,) = near(place, 10, train)
    assert rows[:2].is_cuda
    assert torch.equal(rows[:2].cpu(), train[:2])
    assert near(place, 1000, train)[0].is_cuda
