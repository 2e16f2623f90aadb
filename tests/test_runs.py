"""`pyrovae train`, `decompose` and `reconstruct`, as a user types them."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.cli.runs import RunError, load_shared, open_run
from pyrovae.cli.settings import Settings
from pyrovae.data import DataError, read

runner = CliRunner(env={"COLUMNS": "200"})
QUICK = ["--max-epochs", "2", "--hidden", "16", "--latent-dim", "2"]


def run(*arguments: object) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    run("train", "--data", "digits", *QUICK, "--prior", "mixture", "--encoder", "full", "--out", out)
    return out


def test_a_run_holds_everything_and_nothing_else(trained):
    names = {"config.toml", "history.nc", "model.pyrovae", "run.json", "split.npz", "training.png"}
    assert names <= {path.name for path in trained.iterdir()}
    facts = json.loads((trained / "run.json").read_text())
    assert (facts["num_epochs"], facts["data"]["num_train"]) == (2, 1257)
    index = np.load(trained / "split.npz")
    assert sorted(np.concatenate([index[part] for part in ("train", "val", "test")])) == list(range(1797))
    assert not list(trained.glob(".*"))


def test_the_resolved_configuration_trains_the_same_model(trained, tmp_path):
    assert "dequantize = true" in (trained / "config.toml").read_text()
    run("train", "--config", trained / "config.toml", "--out", tmp_path / "b")
    first, second = (pv.load(folder / "model.pyrovae").state_dict() for folder in (trained, tmp_path / "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_opens_with_its_model_and_its_data(trained):
    vae, split, facts = open_run(trained)
    assert vae.config["prior"] == "mixture"
    assert len(split.test) == facts["data"]["num_test"]


def test_decompose(trained):
    output = run("decompose", trained, "--num-data", 40, "--num-samples", 50)
    assert "decomposition: mutual_information" in output
    assert "latent units are active" in output
    tree = pv.read(trained / "decomposition.nc")
    assert tree["decomposition"].sizes["datum"] == 40
    assert (trained / "decomposition.png").exists()


def test_reconstruct(trained):
    output = run("reconstruct", trained, "--num-data", 12, "--num-samples", 200, "--part", "val")
    assert "One draw errs by" in output
    tree = pv.read(trained / "reconstruction.nc")
    assert tree["reconstruction"].sizes["count"] == 8
    vae, split, _ = open_run(trained)
    raw = pv.data.read("digits").values[split.val_index[:12]]
    assert np.array_equal(tree["observed_data"]["x"].values, raw)  # integers again, scaling and noise undone
    scaled = pv.reconstruct(pv.Target(vae.model, vae.guide, split.val[:12]), 200)["reconstruction"][
        "x"
    ].values
    assert np.abs(tree["reconstruction"]["x"].values - 17 * scaled).max() <= 1.001
    assert {"draw_counts.png", "reconstructions.png"} <= {path.name for path in trained.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--prior", "mixtur", "--out", "x"], 2, "mixture"),
        (["train", "--prior", "vamp", "--encoder", "laplace", "--out", "x"], 2, "do not go together"),
        (["train", "--data", "csv:nothing.csv", "--out", "x"], 4, "nothing.csv"),
        (["train", "--scaling", "log", "--out", "x"], 2, "scale"),
        (["train", "--latent-dim", "0", "--out", "x"], 2, "latent_dim"),
        (["train", "--max-epochs", "0", "--out", "x"], 2, "max_epochs"),
        (["decompose", "nowhere"], 4, "is not a run"),
        (["train", "--lr", "1e30", *QUICK, "--out", "x"], 3, "training diverged"),
        (["train", "--objective", "analytic_kl", "--prior", "mixture", *QUICK, "--out", "x"], 3, "elbo"),
        (["train"], 2, "--out"),
    ],
)
def test_what_is_refused_and_leaves_nothing(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_brackets_in_a_message_are_not_taken_for_markup(tmp_path):
    folder = tmp_path / "[bold]run"
    result = runner.invoke(app, ["decompose", str(folder)])
    assert result.exit_code == 4
    assert "[bold]run" in result.output


def test_a_part_that_does_not_exist_is_refused(trained):
    result = runner.invoke(app, ["decompose", str(trained), "--part", "all"])
    assert result.exit_code == 2
    assert "train, val, test" in result.output


def test_changed_data_are_refused(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 3))
    np.save(tmp_path / "x.npy", x)
    run(
        "train",
        "--data",
        f"npy:{tmp_path}/x.npy",
        "--scaling",
        "standardize",
        *QUICK,
        "--out",
        tmp_path / "run",
    )
    assert "dequantize = false" in (tmp_path / "run" / "config.toml").read_text()
    np.save(tmp_path / "x.npy", 2 * x)
    with pytest.raises(RunError, match="not those that"):
        open_run(tmp_path / "run")
    result = runner.invoke(app, ["decompose", str(tmp_path / "run")])
    assert result.exit_code == 4


def test_weighted_training_is_drawn_and_kept(tmp_path):
    run("train", *QUICK, "--kl-weight", "0.5", "--out", tmp_path / "run")
    history = pv.read(tmp_path / "run" / "history.nc")["history"]
    assert {"weighted_elbo", "kl_weight", "val_elbo"} <= set(history.data_vars)


SHORT = ["train", "--data", "npy:x.npy", "--scaling", "standardize", *QUICK, "--out", "run"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small file, and what `SHORT` makes of it there."""
    folder = tmp_path_factory.mktemp("small")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((60, 3)))
    with chdir(folder):
        run(*SHORT)
    return folder


@pytest.fixture
def short(small, tmp_path, monkeypatch):
    """A copy of it, as the working directory; the run in it."""
    shutil.copytree(small, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Path("run")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", '{"data": {"spec": "npy:', "run.json is damaged"),
        ("run.json", "[1]", "run.json is damaged"),
        ("run.json", "{}", "it lacks 'data'"),
        ("run.json", '{"data": {"sha256": "", "seed": 0}}', "it lacks 'sample_sha256'"),
        ("run.json", '{"data": 7}', "run.json is damaged"),
        ("config.toml", "latent_dims = 3", "config.toml is damaged, or of another version (unknown setting"),
        ("config.toml", "latent_dim = ", "config.toml is damaged"),
        ("model.pyrovae", "PK", "model.pyrovae"),
    ],
)
def test_damaged_runs_are_refused_by_file(short, name, content, message):
    (short / name).write_text(content)
    commands = [["decompose", "run"]]
    if name != "model.pyrovae":
        commands.append([*SHORT, "--resume", "auto"])
    for command in commands:
        result = runner.invoke(app, command)
        assert result.exit_code == 4, result.output
        assert message in " ".join(result.output.split()), result.output


@pytest.mark.parametrize("name", ["pipeline", "dtype", "notes", "val_fraction"])
@pytest.mark.parametrize("value", ["absent", 7])
def test_damaged_descriptions_are_refused(short, name, value):
    facts = json.loads((short / "run.json").read_text())
    facts["data"][name] = value
    if value == "absent":
        del facts["data"][name]
    (short / "run.json").write_text(json.dumps(facts))
    with pytest.raises(
        RunError, match=r"(?s)run/run.json is damaged, or of another version .*put a good copy back"
    ):
        open_run(short)


def test_a_finished_run_of_other_data_is_not_taken_for_this_one(short):
    assert "finished" in run(*SHORT, "--resume", "auto")
    x = np.load("x.npy")
    x[7, 1] += 1
    np.save("x.npy", x)
    result = runner.invoke(app, [*SHORT, "--resume", "auto"])
    assert result.exit_code == 4
    assert "the data npy:x.npy are not those that run was trained on" in result.output
    result = runner.invoke(app, [*SHORT, "--latent-dim", "3", "--data", "digits", "--resume", "auto"])
    assert result.exit_code == 2
    assert "a finished run of other settings" in " ".join(result.output.replace("│", " ").split())


def preads(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """{file descriptor: bytes} of what is read of mapped files from now on."""
    found: dict[int, int] = {}
    real = os.preadv

    def preadv(file: int, *arguments: Any) -> int:
        count = real(file, *arguments)
        found[file] = found.get(file, 0) + count
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return found


@pytest.mark.slow
def test_a_run_on_mapped_data_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyrovae.data.sources.LARGE", 1)
    monkeypatch.setattr("pyrovae.data.sources.BLOCK_BYTES", 4000)
    np.save("x.npy", np.random.default_rng(0).standard_normal((1000, 10)).astype("f4"))
    row = 40
    found = preads(monkeypatch)

    def rows_read(*arguments: object) -> float:
        found.clear()
        run(*arguments)
        return sum(found.values()) / row

    command = ["train", "--data", "npy:x.npy", "--scaling", "standardize", *QUICK, "--out", "run"]
    assert rows_read(*command) == 100 + 1000 + 64 + 2 * (
        700 + 150
    )  # integers?, one pass, a sample, two epochs
    assert rows_read(*command, "--resume", "auto") == 100 + 64
    assert rows_read("decompose", "run", "--num-data", 4, "--num-samples", 20) == 64 + 4
    audit = [
        "audit",
        "run",
        "--shard",
        "2/50",
        "--block-size",
        10,
        "--stages",
        "weights",
        "--num-samples",
        20,
    ]
    assert rows_read(*audit) <= 64 + 2 + 3 * 10
    _, split, facts = open_run(tmp_path / "run")
    fitted = pv.data.load("npy:x.npy", scale="standardize", memory="read")
    assert torch.equal(split.test[:], fitted.test)
    assert split.describe() == facts["data"] == fitted.describe()
    shutil.copy("x.npy", "y.npy")
    np.save("x.npy", 2 * np.load("x.npy"))
    with pytest.raises(RunError, match="the data npy:x.npy are not those"):
        open_run(tmp_path / "run")


class Together:
    """One of two ranks, which are threads here."""

    size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, said: list[Any]) -> None:
        self.rank, self.is_first, self._barrier, self._said = rank, rank == 0, barrier, said

    def _all(self, value: Any) -> list[Any]:
        self._said[self.rank] = value
        self._barrier.wait(10)
        found = [*self._said]
        self._barrier.wait(10)
        return found

    def any(self, answer: bool) -> bool:
        return any(self._all(answer))

    def from_first(self, value: Any) -> Any:
        return self._all(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._all(True)
            raise
        if any(self._all(False)):
            raise RuntimeError("another rank failed")


def on_two_ranks(settings: Settings) -> list[Any]:
    """What `load_shared` gives or raises on each of two ranks."""
    barrier, said, found = threading.Barrier(2), [None, None], [None, None]

    def work(rank: int) -> None:
        try:
            found[rank] = load_shared(settings, read(settings.data, "map"), Together(rank, barrier, said))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=work, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_mapped_data_are_read_by_the_first_rank_for_all(tmp_path, monkeypatch):
    x = np.random.default_rng(0).standard_normal((1000, 10)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("pyrovae.cli.runs.PATIENCE", 1e-4)  # they have to ask again and again
    found = preads(monkeypatch)
    settings = Settings(data=f"npy:{tmp_path / 'x.npy'}", scaling="standardize", dequantize=False)
    splits = on_two_ranks(settings)
    assert sorted(found.values()) == [64 * 40, (1000 + 64) * 40]
    assert splits[0].describe() == splits[1].describe()
    assert splits[0].train.sha256 == splits[1].train.sha256
    assert torch.equal(splits[0].val[:], splits[1].val[:])
    x[900, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    first, second = on_two_ranks(settings)
    assert isinstance(first, DataError)
    assert "row 900" in str(first)
    assert str(second) == "another rank failed"
