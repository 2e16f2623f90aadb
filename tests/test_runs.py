"""`pyrovae train`, `decompose` and `reconstruct`, as a user types them."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.cli.runs import RunError, open_run

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
