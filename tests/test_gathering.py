"""Results of a run put together: the better evidence, the same data, and notes on all that was left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_trees import gaps_group, report_groups
from trees import estimate, evidence_tree
from typer import Typer
from typer.testing import CliRunner

from pyrovae.cli.report import report
from pyrovae.results import build_tree, group, write
from pyrovae.results.gathering import gather

GROUPS = report_groups()


def put(folder: Path, name: str, *names: str, data: slice = slice(None), **attrs: object) -> None:
    kept = {key: GROUPS[key] for key in names}
    some = {key: made.isel(datum=data) if "datum" in made.sizes else made for key, made in kept.items()}
    write(build_tree(some, attrs), folder / f"{name}.nc")


def notes(folder: Path) -> list[str]:
    return json.loads(gather(folder).attrs.get("notes", "[]"))


def test_groups_come_from_the_first_file_that_has_them(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", "observed_data", seed=3)
    put(tmp_path, "history", "history")
    put(tmp_path, "decomposition", "decomposition", command=json.dumps({"command": "decomposition"}))
    tree = gather(tmp_path)
    assert set(tree.children) == {"comparison", "diagnostics", "observed_data", "history", "decomposition"}
    assert tree.attrs["seed"] == 3
    assert json.loads(tree.attrs["command_of_decomposition"]) == {"command": "decomposition"}
    assert not notes(tmp_path)


def test_evidence_with_both_ends_takes_the_place_of_evidence_without(tmp_path: Path) -> None:
    plain = evidence_tree(estimate("elbo", [-4.0] * 12), estimate("iwae", [-3.0] * 12))
    write(plain, tmp_path / "audit.nc")
    put(tmp_path, "evidence", "evidence", "sandwich")
    assert gather(tmp_path)["evidence"].sizes["method"] > 2
    (tmp_path / "evidence.nc").unlink()
    write(plain, tmp_path / "evidence.nc")
    assert gather(tmp_path)["evidence"].sizes["method"] == 2


def test_other_data_are_left_out_and_told(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", data=slice(0, 8))
    put(tmp_path, "decomposition", "decomposition")
    put(tmp_path, "reconstruction", "observed_data", "reconstruction")
    tree = gather(tmp_path)
    assert "decomposition" not in tree.children
    assert tree["reconstruction"].sizes["datum"] == 8
    told = " ".join(notes(tmp_path))
    assert (
        "decomposition of decomposition.nc: left out, it is about 12 data and the other results about 8"
        in told
    )
    assert "reconstruction of reconstruction.nc is about 12 data, of which 8 are shown." in told


def test_gaps_of_fewer_data_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics")
    write(build_tree({"gaps": gaps_group().isel(datum=slice(0, 5))}), tmp_path / "gaps.nc")
    assert "gaps" not in gather(tmp_path).children
    write(build_tree({"gaps": gaps_group()}), tmp_path / "gaps.nc")
    assert "gaps" in gather(tmp_path).children


@pytest.mark.parametrize("key", ["model", "part"])
def test_another_model_or_part_is_left_out(tmp_path: Path, key: str) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", command=json.dumps({"command": "audit", key: "a"}))
    put(
        tmp_path, "decomposition", "decomposition", command=json.dumps({"command": "decomposition", key: "b"})
    )
    assert notes(tmp_path) == [
        f"decomposition.nc is left out: it is of another {key} than the other results."
    ]
    put(
        tmp_path, "decomposition", "decomposition", command=json.dumps({"command": "decomposition", key: "a"})
    )
    assert not notes(tmp_path)


def test_facts_of_the_training_come_along(tmp_path: Path) -> None:
    put(tmp_path, "history", "history")
    (tmp_path / "run.json").write_text('{"best_epoch": 7}')
    (tmp_path / "config.toml").write_text("latent_dim = 3\n")
    attrs = gather(tmp_path).attrs
    assert (json.loads(attrs["run"]), json.loads(attrs["config"])) == ({"best_epoch": 7}, {"latent_dim": 3})


def command(*args: str) -> tuple[int, str]:
    app = Typer()
    app.command()(report)
    found = CliRunner().invoke(app, list(args))
    return found.exit_code, " ".join(found.output.split())


def test_the_command_writes_the_page_and_says_the_headline(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics")
    code, output = command(str(tmp_path))
    assert code == 0
    assert "The guide is too narrow (0." in output
    assert "The guide is too narrow (0." in (tmp_path / "report.html").read_text()
    code, _ = command(str(tmp_path / "audit.nc"), "--out", str(tmp_path / "other.html"))
    assert code == 0
    assert (tmp_path / "other.html").is_file()


def test_the_command_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    code, output = command(str(tmp_path))
    assert code == 4
    assert "holds no results" in output
    (tmp_path / "audit.nc").write_bytes(b"not a file of results")
    assert command(str(tmp_path))[0] == 4
    assert command(str(tmp_path), "--out", str(tmp_path / "report.pdf"))[0] == 2
    assert not list(tmp_path.glob("*.html"))


def test_a_path_along_training_gives_way_to_the_training(tmp_path: Path) -> None:
    put(tmp_path, "history", "history")
    path = group("history", {"elbo": np.zeros(2), "log_evidence": np.ones(2)}, epoch=[0, 5])
    write(build_tree({"history": path}), tmp_path / "gradients.nc")
    assert "log_evidence" in gather(tmp_path)["history"].data_vars
