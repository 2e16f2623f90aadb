"""`pyrovae gradients RUN` and `pyrovae train --keep-epochs` as a user types them."""

from io import StringIO

import numpy as np
import pytest
import torch
import xarray as xr
from gradient_trees import gradient_tree, gradients, without
from rich.console import Console
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.cli.checkpoints import kept_epochs
from pyrovae.cli.gradient_table import print_gradients
from pyrovae.results import build_tree

runner = CliRunner(env={"COLUMNS": "100"})
QUICK = ["--data", "digits", "--hidden", "8", "--latent-dim", "2", "--max-epochs", "2"]


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    run("train", *QUICK, "--keep-epochs", "0,2", "--out", out)
    return out


@pytest.fixture
def measured(monkeypatch):
    """What was asked of the library, and synthetic gradients in place of measured ones."""
    calls: list[dict[str, object]] = []

    def measure(model, guide, *data, **options):
        calls.append({**options, "num_data": len(data[0]), "model": model})
        return gradient_tree(calls[0].get("answer") or gradients(counts=(1, 8, 64), seed=len(calls)))

    monkeypatch.setattr("pyrovae.diagnostics.gradients.gradient_statistics", measure)
    return calls


# checkpoints


def test_kept_epochs_are_the_model_before_during_and_after_training(trained):
    files = kept_epochs(trained)
    assert [path.name for path in files.values()] == ["epoch-0000.pyrovae", "epoch-0002.pyrovae"]
    start, end, last = (pv.load(path).state_dict() for path in (*files.values(), trained / "model.pyrovae"))
    config = pv.load(trained / "model.pyrovae").config
    assert pv.load(files[0]).config == config
    assert not any(torch.equal(start[name], end[name]) for name in start if name.endswith("weight"))
    history = pv.read(trained / "history.nc")["history"]["val_elbo"].values
    assert (all(torch.equal(end[name], last[name]) for name in end)) == (history.argmax() == 1)


def test_keeping_epochs_changes_nothing_else_and_a_new_training_removes_the_old(trained, tmp_path):
    out = tmp_path / "run"
    run("train", "--config", trained / "config.toml", "--out", out)
    assert "keep_epochs = [0, 2]" in (out / "config.toml").read_text()
    assert list(kept_epochs(out)) == [0, 2]
    run("train", *QUICK, "--out", out)
    first, second = (pv.load(folder / "model.pyrovae").state_dict() for folder in (trained, out))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("epochs", "message"), [("0,3", "from 0 to max_epochs, 2, got 3"), ("x", "must be integers")]
)
def test_epochs_that_are_never_reached_are_refused(tmp_path, epochs, message):
    assert message in run("train", *QUICK, "--keep-epochs", epochs, "--out", tmp_path / "run", code=2)
    assert not list(tmp_path.iterdir())


def test_a_training_that_fails_keeps_nothing(tmp_path):
    options = [*QUICK, "--lr", "1e30", "--keep-epochs", "0", "--out", tmp_path / "run"]
    assert "diverged" in run("train", *options, code=3)
    assert not list(tmp_path.iterdir())


# the command


def test_the_table_the_figures_and_the_tree(trained, measured):
    options = ["--estimators", "elbo, stl,iwae,dreg,miwae", "--particles", "1,8,64", "--replicates", "300"]
    output = run(
        "gradients", trained, *options, "--num-data", 20, "--num-outer", 1, "--per-parameter", "--seed", 3
    )
    (asked,) = measured
    assert asked["estimators"] == ["elbo", "stl", "iwae", "dreg", "miwae"]
    assert (asked["num_particles"], asked["num_replicates"], asked["seed"]) == ([1, 8, 64], 300, 3)
    assert (asked["num_data"], asked["per_parameter"], asked["reference"]) == (20, True, "auto")
    assert asked["options"] == {"miwae": {"num_outer": 1}}
    assert "Gradients of 20 data (test): encoder" in output
    assert "The encoder's SNR falls with the number of particles for IWAE" in output
    last = output.split(" - ")[-1]
    assert last.startswith("Decoder: ")
    assert "gradients.nc, gradient_snr.png, gradient_cost.png." in last
    assert pv.read(trained / "gradients.nc")["gradients"].sizes["count"] == 3
    for name in ("gradient_snr.png", "gradient_cost.png"):
        assert (trained / name).stat().st_size > 10_000


def test_checkpoints_are_measured_on_the_same_data_with_the_same_seed(trained, measured):
    output = run("gradients", trained, "--checkpoints", "--num-data", 4, "--log-evidence", "iwae")
    assert len(measured) == 2
    assert len({id(asked["model"]) for asked in measured}) == 2
    assert [asked["seed"] for asked in measured] == [0, 0]
    tree = pv.read(trained / "gradients.nc")
    assert tree["gradients"]["epoch"].values.tolist() == [0, 2]
    assert tree["gradients"]["variance"].dims[0] == "epoch"
    history = tree["history"].to_dataset()
    gap = history["log_evidence"] - history["elbo"]
    assert history["kl_posterior"].values == pytest.approx(gap.values)
    assert (history.attrs["method"], history.attrs["direction"]) == ("iwae", "lower")
    assert "Along training, nats per datum" in output
    assert "The best estimator for the encoder" in output
    assert (trained / "training_path.png").stat().st_size > 10_000


def test_without_a_verdict_the_command_exits_with_3(trained, measured):
    made = gradients({"elbo": ((0.1, 0.5), (0.1, 0.5))}, counts=(1,))
    measured.append({"answer": without(made, "elbo", 1, "the gradient is not finite")})
    output = run("gradients", trained, code=3)
    assert "No numbers on ELBO with 1 particle: the gradient is not finite." in output
    assert "Decoder: no verdict" in output
    result = runner.invoke(app, ["gradients", str(trained), "--quiet"])
    assert result.exit_code == 3
    why = "no verdict; no estimator has numbers."
    assert result.stderr == f"Encoder: {why} Decoder: {why}\n"
    assert not result.stdout


def test_what_cannot_be_done_exits_with_3(trained, monkeypatch):
    def fail(*arguments, **options):
        raise NotImplementedError("stl wants a guide that can score")

    monkeypatch.setattr("pyrovae.diagnostics.gradients.gradient_statistics", fail)
    assert "stl wants a guide that can score" in run("gradients", trained, code=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimators", "elbo,foo"], "foo"),
        (["--particles", "1,x"], "whole numbers"),
        (["--particles", "0"], "at least 1"),
        (["--replicates", "2"], "num_replicates must be at least"),
        (["--reference", "here"], "here"),
        (["--part", "all"], "part must be one of"),
        (["--beta", "0.5"], "--beta is for ciwae, got elbo"),
        (["--estimators", "miwae"], "num_outer"),
    ],
)
def test_wrong_options_exit_with_2(trained, options, message):
    assert message in run("gradients", trained, *options, "--num-data", 4, code=2)


def test_a_folder_without_run_or_checkpoints_exits_with_4(trained, tmp_path):
    assert "is not a run" in run("gradients", tmp_path, code=4)
    run("train", *QUICK, "--out", tmp_path / "run")
    assert "has no checkpoints: train it with" in run("gradients", tmp_path / "run", "--checkpoints", code=4)


@pytest.mark.slow
def test_a_real_measurement_along_training(trained):
    options = ["--estimators", "stl,iwae", "--particles", "1,4", "--replicates", "100", "--num-data", "8"]
    output = run("gradients", trained, *options, "--checkpoints")
    assert "Encoder: " in output
    tree = pv.read(trained / "gradients.nc")
    assert tree["gradients"]["snr_squared"].dims == ("epoch", "method", "count", "part")
    table = pv.gradient_summary(tree)
    assert np.isfinite(table["variance"]).all()
    assert table.index.names == ["epoch", "part", "method", "count"]
    assert (tree["history"]["num_unreliable"] >= 0).all()


# the table


def shown(tree: xr.DataTree, width: int) -> str:
    """The tables, without the notes below them."""
    text = StringIO()
    print_gradients(Console(file=text, width=width), tree, "Gradients of 64 data (test)")
    return text.getvalue().partition("SNR of one gradient;")[0]


def wide() -> xr.DataTree:
    """The longest names, and numbers of every size."""
    slopes = {"score_function_loo": ((1e-3, 0.5), (123.0, 0.5)), "analytic_kl": ((0.01, -0.5), (1e6, 0.5))}
    made = gradients(slopes, counts=(1, 64, 10_000), relative_error=0.3)
    made["own_bias_squared"].values[:] = 123.0
    made["own_bias_squared_std_error"].values[1] = 1e4
    return gradient_tree(made)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 0.1, 3.0, 1e4, 1e7])
def test_the_table_fits_into_80_columns_however_fast_the_machine_is(scale):
    made = wide()["gradients"].to_dataset()
    tree = build_tree({"gradients": made.assign(seconds=made["seconds"] * scale)})
    text = shown(tree, 80)
    assert "…" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith((" score_function_loo", " analytic_kl"))]
    assert len(rows) == 12  # no name is folded
    assert all(line.split()[1] in ("1", "64", "10000") for line in rows)


def test_a_narrow_terminal_folds_names_and_keeps_numbers():
    text = shown(wide(), 66)
    assert "…" not in text
    assert "10000" in text


def test_what_has_no_numbers_is_an_empty_row():
    tree = gradient_tree(without(gradients(counts=(1, 8)), "dreg", 1, "why"))
    row = next(line for line in shown(tree, 80).splitlines() if line.split()[:2] == ["dreg", "1"])
    assert row.split() == ["dreg", "1"]
