"""`pyrovae evidence RUN` as a user types it: the table, the files, the exit codes."""

from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.cli.show import print_evidence

runner = CliRunner(env={"COLUMNS": "100"})


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, ["evidence", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    options = ["--data", "digits", "--max-epochs", "2", "--hidden", "16", "--latent-dim", "2"]
    assert runner.invoke(app, ["train", *options, "--out", str(out)]).exit_code == 0
    return out


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A run with a linear decoder, whose log p(x) is known."""
    folder = tmp_path_factory.mktemp("linear")
    np.savez(folder / "x.npz", x=pv.data.linear_gaussian(200, 6, 2, dtype=torch.float32).x.numpy())
    options = [
        "--data",
        f"npz:{folder / 'x.npz'}",
        "--decoder",
        "linear",
        "--latent-dim",
        "2",
        "--max-epochs",
        "2",
    ]
    assert runner.invoke(app, ["train", *options, "--out", str(folder / "run")]).exit_code == 0
    return folder / "run"


def test_the_table_the_figure_and_the_tree(trained):
    methods = "elbo,iwae,single-shot,quadrature"
    output = run(trained, "--methods", methods, "--num-data", 8, "--num-samples", "10,100")
    for label in ("elbo-10", "elbo-100", "iwae-100", "single-shot", "quadrature"):
        assert f" {label} " in output
    assert "lower" in output
    assert "exact" in output
    assert (trained / "evidence.png").stat().st_size > 10_000
    tree = pv.read(trained / "evidence.nc")
    assert tree["evidence"].sizes == {"method": 6, "datum": 8}
    assert (tree["sandwich"]["source"] == "quadrature").all()


@pytest.mark.slow
def test_annealing_in_both_directions(linear):
    output = run(linear, "--methods", "elbo,bidirectional", "--num-data", 4, "--num-temperatures", 20)
    assert "The sandwich closes for" in output
    assert "as far as the reference draws are of the posterior" in output
    assert "ais-reverse" in output


def test_a_linear_decoder_has_an_exact_answer(linear):
    output = run(linear, "--methods", "elbo,exact", "--num-data", 5)
    assert "exact" in output
    tree = pv.read(linear / "evidence.nc")
    assert (tree["sandwich"]["source"] == "exact").all()


def test_without_a_truth_the_figure_is_that_of_the_estimates(trained):
    run(trained, "--methods", "elbo,iwae", "--num-data", 4, "--num-samples", 50)
    assert "sandwich" not in pv.read(trained / "evidence.nc").children


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "elbo,foo"], "unknown method 'foo'"),
        (["--methods", "exact"], "use quadrature"),
        (["--num-samples", "10,x"], "whole numbers"),
        (["--num-samples", "1"], "at least 2"),
        (["--start", "here"], "unknown start"),
        (["--part", "all"], "part must be one of"),
    ],
)
def test_wrong_options_exit_with_2(trained, options, message):
    output = run(trained, *options, "--num-data", 4, code=2)
    assert message in " ".join(output.replace("│", " ").split())


def test_a_folder_that_is_no_run_exits_with_4(tmp_path):
    assert "is not a run" in " ".join(run(tmp_path, code=4).split())


def test_a_sandwich_that_closes_for_no_datum_exits_with_3(trained, monkeypatch):
    measure = pv.evidence_table

    def open_ended(*arguments, **options):
        tree = measure(*arguments, **options)
        sandwich = tree["sandwich"].to_dataset()
        tree["sandwich"].dataset = sandwich.assign(truth=sandwich["truth"] * np.nan)
        return tree

    monkeypatch.setattr("pyrovae.diagnostics.evidence_table.evidence_table", open_ended)
    options = ["--methods", "elbo,quadrature", "--num-data", "4", "--quiet"]
    result = runner.invoke(app, ["evidence", str(trained), *options])
    assert result.exit_code == 3
    assert result.stderr == "No verdict: log p(x) is known for none of 4 data.\n"
    assert not result.stdout


@pytest.fixture(scope="module")
def table(linear):
    methods = "elbo,single-shot-laplace,jackknife-2,exact"
    run(linear, "--methods", methods, "--num-data", 5, "--num-samples", 1000)
    return pv.read(linear / "evidence.nc")


def shown(tree, width: int) -> str:
    """The table, without the notes below it."""
    text = StringIO()
    print_evidence(Console(file=text, width=width), tree, "log p(x)")
    return text.getvalue().partition("evals:")[0]


@pytest.mark.parametrize("seconds", [1e-4, 0.0061, 0.3, 9.96, 4321.0])
def test_the_table_fits_into_80_columns_however_fast_the_machine_is(table, seconds):
    tree = table.copy()
    evidence = tree["evidence"].to_dataset()
    tree["evidence"].dataset = evidence.assign_coords(seconds=evidence["seconds"] * 0.0 + seconds)
    text = shown(tree, 80)
    assert "…" not in text
    assert "doubt" in text
    assert "single-shot-laplace" in text


def test_a_narrow_terminal_folds_names_and_keeps_numbers(table):
    text = shown(table, 66)
    assert "…" not in text
    assert "single-shot-laplace" not in text
    for number in ("1000", "32 + 3 ∇"):
        assert number in text
