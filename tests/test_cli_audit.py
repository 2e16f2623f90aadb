"""`pyrovae audit` and `pyrovae merge` as a user types them: files, shards, gates, exit codes."""

import json
import math
import resource
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli.audit import audit
from pyrovae.cli.merge import merge
from pyrovae.cli.shards import find_shard
from pyrovae.reporting.report_facts import command_lines
from pyrovae.results import content_hash
from pyrovae.results.record import NAMES

app = typer.Typer()
app.command()(audit)
app.command()(merge)
runner = CliRunner(env={"COLUMNS": "150"})

MODULE = """
import pyro, pyro.distributions as dist, torch

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

def factory():
    return model, guide, torch.arange(10.0).reshape(5, 2) / 10

def pair():
    return model, guide

def words():
    return model, guide, 3

table = 7
"""
QUICK = ["--num-samples", 50, "--block-size", 3]
WEIGHTS = [*QUICK, "--stages", "weights"]
HMC = ["--num-chains", 4, "--posterior-samples", 100, "--warmup-steps", 50, "--min-ess", 50]


@pytest.fixture(autouse=True)
def factories(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "made_for_audit.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def invoke(command: str, *arguments: object, code: int = 0):
    result = runner.invoke(app, [command, *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def run(*arguments: object, code: int = 0, out: str = "out"):
    return invoke("audit", "--model", "made_for_audit:factory", "--out", out, *arguments, code=code)


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_the_files_the_table_and_the_same_numbers_in_the_record(tmp_path):
    result = run(*WEIGHTS)
    assert "log p(x) by IWAE" in result.stdout
    assert "Written to out: audit.nc, audit.json." in flat(result.stdout)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit", "audit.json", "audit.nc"]
    tree = pv.read("out/audit.nc")
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (record["format"], record["version"], record["num_data"]) == ("pyrovae-audit", 1, 5)
    assert record["content_hash"] == content_hash(tree)
    assert record["sentences"] == pv.verdict_sentences(tree)
    assert record["stages"] == {"weights": {"status": "ok", "reason": ""}}
    assert record["settings"]["block_size"] == 3
    table = pv.summary(tree)
    for row in record["rows"].values():
        if row["quantity"] != "largest k-hat":
            value = float(table.loc[row["quantity"], "value"])
            assert row["value"] == value or (row["value"] is None and math.isnan(value))
    assert len(record["rows"]) == len(table) + 2  # the largest k-hat, and the best gap
    assert record["rows"]["khat"]["value"] == float(tree["diagnostics"]["khat"].max())
    assert {"log_evidence.iwae", "gap", "khat_share"} <= set(record["rows"])


def test_json_is_all_that_is_printed_and_wins_over_quiet(tmp_path):
    result = run(*WEIGHTS, "--json")
    assert result.output == (tmp_path / "out" / "audit.json").read_text()
    assert json.loads(result.stdout)["format"] == "pyrovae-audit"
    assert run(*WEIGHTS, "--json", "--quiet").output == result.output
    assert invoke("merge", "out", "--json", "--quiet").output == result.output
    assert not invoke("merge", "out", "--quiet").output


def test_shards_and_merge_are_the_whole():
    run(*WEIGHTS, out="whole")
    for i in range(2):
        result = run(*WEIGHTS, "--shard", f"{i}/2")
        assert "pyrovae merge out" in flat(result.stdout)
    assert not list(Path("out").glob("audit.*"))
    invoke("merge", "out")
    assert content_hash(pv.read("out/audit.nc")) == content_hash(pv.read("whole/audit.nc"))


def test_a_missing_block_is_named(tmp_path):
    run(*WEIGHTS, "--shard", "1/2")
    result = invoke("merge", "out", code=4)
    assert "block-00002.nc" in flat(result.output)
    assert "no blocks" in flat(invoke("merge", "elsewhere", "--out", "other", code=4).output)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "other").exists()


def test_a_merge_into_another_folder():
    run(*WEIGHTS)
    before = Path("out/audit.nc").stat().st_mtime_ns
    result = invoke("merge", "out", "--out", "some/where")
    assert "Written to some/where: audit.nc, audit.json." in flat(result.stdout)
    assert content_hash(pv.read("some/where/audit.nc")) == content_hash(pv.read("out/audit.nc"))
    assert Path("out/audit.nc").stat().st_mtime_ns == before


def test_one_result_stays_whichever_way_it_is_kept(tmp_path, monkeypatch):
    for size, name in ((0, "audit.zarr"), (1 << 31, "audit.nc")):
        monkeypatch.setattr(sys.modules["pyrovae.cli.merge"], "SMALL", size)  # not the function of that name
        run(*WEIGHTS)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == sorted(["audit", "audit.json", name])


@contextmanager
def files_of(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_command_which_goes_on_later(tmp_path):
    with files_of(4000):
        result = run(*WEIGHTS, code=3)
    assert "File too large" in result.stderr
    assert "kept in out/audit: once that is mended, the same command goes on" in flat(result.stderr)
    assert not list((tmp_path / "out" / "audit").iterdir())
    run(*WEIGHTS, "--quiet")
    blocks = [path.stat() for path in sorted((tmp_path / "out" / "audit").iterdir())]
    Path("out/audit.nc").unlink()
    with files_of(max(block.st_size for block in blocks)):
        assert "File too large" in invoke("merge", "out", code=3).stderr
        assert "File too large" in run(*WEIGHTS, "--quiet", code=3).stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit", "audit.json"]
    invoke("merge", "out")
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "audit").iterdir())] == [
        block.st_mtime_ns for block in blocks
    ]


def test_a_foreign_folder_is_refused_or_measured_anew():
    run(*WEIGHTS)
    assert "have seed = 0, not 1" in flat(run(*WEIGHTS, "--seed", 1, code=4).output)
    run(*WEIGHTS, "--seed", 1, "--resume", "none")
    assert pv.read("out/audit.nc").attrs["seed"] == 1


@pytest.mark.slow
def test_a_reference_by_hmc_and_gates_on_it():
    options = [*QUICK, *HMC, "--stages", "comparison", "--block-size", 5]
    run(*options, "--fail-on", "rhat>2, sd_ratio<0.9")
    tree = pv.read("out/audit.nc")
    assert tree["posterior"]["z"].shape == (4, 100, 5, 2)
    failed = run(*options, "--fail-on", "sd_ratio>0.9,rhat>2", code=1)
    assert "Gate sd_ratio>0.9 failed: sd_ratio is 1." in flat(failed.output)
    assert "rhat>2 failed" not in flat(failed.output)


def test_a_gate_on_what_was_not_measured_is_no_verdict():
    result = run(*WEIGHTS, "--fail-on", "simulated_gap>1", code=3)
    assert "simulated_gap was not measured" in flat(result.output)
    run(*WEIGHTS, "--fail-on", "simulated_gap>1,khat>-9", code=1)
    invoke("merge", "out", "--fail-on", "log_evidence.iwae<0", code=1)


def test_without_time_there_is_no_verdict_and_the_same_command_goes_on():
    result = run(*WEIGHTS, "--max-seconds", 0, code=3)
    told = "No verdict of the stage weights, skipped: max_seconds = 0 were spent"
    assert told in flat(result.stderr)
    assert told in flat(run(*WEIGHTS, "--max-seconds", 0, "--quiet", code=3).stderr)
    assert told in flat(invoke("merge", "out", "--json", code=3).stderr)
    run(*WEIGHTS)
    assert "evidence" in pv.read("out/audit.nc").children


@pytest.mark.slow
def test_a_reference_that_converged_nowhere_is_told_even_when_quiet():
    options = [*QUICK, *HMC, "--stages", "reference", "--min-ess", 1e6, "--quiet"]
    told = "No verdict of the stage reference: it converged for none of 5 data."
    assert told in flat(run(*options, code=3).stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "all"], "unknown stage 'all'"),
        (["--fail-on", "khat"], "a gate is NAME"),
        (["--fail-on", "kaht>0.7"], "unknown row 'kaht'"),
        (["--shard", "2/2"], "a shard is i/n"),
        (["--shard", "0/2", "--json"], "pass them to `pyrovae merge`"),
        (["--resume", "maybe"], "auto, none"),
        (["--part", "test"], "are for a run"),
        (["a-run"], "exclude each other"),
    ],
)
def test_wrong_options_exit_with_2(options, message):
    assert message in flat(run(*options, code=2).output)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("made_for_audit", "wants package.module:factory"),
        ("made_for_nothing:factory", "cannot import"),
        ("made_for_audit:nothing", "cannot import"),
        ("made_for_audit:pair", "must be a function without arguments that returns (model, guide, data)"),
        ("made_for_audit:table", "got int"),
        ("made_for_audit:words", "a tensor or a tuple of tensors, got int"),
    ],
)
def test_a_factory_that_is_none(name, message):
    assert message in flat(invoke("audit", "--model", name, "--out", "out", code=2).output)


def test_what_to_audit_must_be_said():
    assert "say what to audit" in flat(invoke("audit", code=2).output)
    assert "wants --out" in flat(invoke("audit", "--model", "made_for_audit:factory", code=2).output)
    assert "is not a run" in flat(invoke("audit", "nowhere", code=4).output)


def test_help_names_the_rows():
    text = flat(invoke("audit", "--help").output)
    for name in NAMES:
        assert name in text


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "2"}
         | {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_MAX": "6"}, (2, 3)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # a batch script, without srun
    ],
)  # fmt: skip
def test_the_shard_comes_from_the_launcher(environment, shard):
    assert find_shard(None, environment) == shard
    assert find_shard("1/5", environment) == (1, 5)


@pytest.mark.parametrize(("task", "tasks", "step"), [(5, (2, 5), 1), (2, (2, 5), 1), (0, (0, 2, 8), 2)])
def test_a_slurm_array_with_gaps_wants_to_be_told(task, tasks, step):
    values = {"ID": task, "COUNT": len(tasks), "MIN": tasks[0], "MAX": tasks[-1], "STEP": step}
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}
    with pytest.raises(typer.BadParameter, match=f"have gaps.*pass --shard i/{len(tasks)}"):
        find_shard(None, environment)
    assert find_shard("1/2", environment) == (1, 2)


@pytest.mark.slow
def test_a_run_is_audited(tmp_path):
    from pyrovae.cli import app as whole

    options = ["--data", "digits", "--max-epochs", "1", "--hidden", "8", "--latent-dim", "2", "--out", "run"]
    assert runner.invoke(whole, ["train", *options]).exit_code == 0
    stages = ["--stages", "calibration,weights", "--num-simulations", 50]
    invoke("audit", "run", "--num-data", 4, *QUICK, *stages)
    tree = pv.read("run/audit.nc")
    assert tree.attrs["num_data"] == 4
    assert {"calibration", "evidence"} <= set(tree.children)
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "audit").iterdir()}
    assert len(blocks) == 3
    invoke("audit", "run", "--num-data", 4, *QUICK, *stages, "--dtype", "float32")  # as it was trained
    assert {path: path.stat().st_mtime_ns for path in blocks} == blocks
    other = invoke("audit", "run", "--num-data", 4, *QUICK, *stages, "--dtype", "float64", code=4)
    assert "have dtype = 'float32', not 'float64'" in flat(other.output)
    (line,) = command_lines(pv.read("run/audit.nc"))
    words = ["run" if word == "RUN" else word for word in shlex.split(line)[1:]]
    invoke(*words, "--out", "again")
    assert content_hash(pv.read("again/audit.nc")) == content_hash(tree)


@pytest.mark.slow
def test_a_run_on_a_file_larger_than_memory_is_read_in_blocks(tmp_path, monkeypatch):
    from pyrovae.cli import app as whole
    from pyrovae.data import Rows

    np.save("x.npy", np.random.default_rng(0).integers(0, 9, (400, 6)).astype("u1"))
    options = [
        "--data",
        "npy:x.npy",
        "--max-epochs",
        "1",
        "--hidden",
        "8",
        "--latent-dim",
        "2",
        "--out",
        "run",
    ]
    assert runner.invoke(whole, ["train", *options]).exit_code == 0
    wanted = [*WEIGHTS, "--num-data", 8, "--dtype", "float64"]
    invoke("audit", "run", *wanted, "--out", "in-memory")
    sizes, read = [], Rows._read
    monkeypatch.setattr("pyrovae.data.sources.LARGE", 1)
    monkeypatch.setattr(Rows, "_read", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
    invoke("audit", "run", *wanted, "--out", "mapped")
    assert max(sizes) <= 3 < sum(sizes)
    assert content_hash(pv.read("mapped/audit.nc")) == content_hash(pv.read("in-memory/audit.nc"))
