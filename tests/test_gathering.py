"""Results of a run put together: the better evidence, the same data, and notes on all that was left out."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from report_trees import gaps_group, report_groups
from trees import estimate, evidence_tree
from typer import Typer
from typer.testing import CliRunner

from pyrovae.cli.report import report
from pyrovae.reporting.report import render_report
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
    put(tmp_path, "decomposition", "decomposition", data=slice(6, 12))
    put(tmp_path, "reconstruction", "observed_data", "reconstruction")
    tree = gather(tmp_path)
    assert "decomposition" not in tree.children
    assert tree["reconstruction"].sizes["datum"] == 8
    told = " ".join(notes(tmp_path))
    assert (
        "decomposition of decomposition.nc: left out, it is about 6 data and the other results about 8"
        in told
    )
    assert "reconstruction of reconstruction.nc is about 12 data, of which 8 are shown." in told


def written(folder: Path, *names: str) -> None:
    """As if these files had been written in this order."""
    for i, name in enumerate(names):
        os.utime(folder / f"{name}.nc", ns=(i, i))


def test_the_decomposition_of_the_whole_set_takes_the_place_of_that_of_some(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", "decomposition", data=slice(0, 8), num_data=8)
    put(tmp_path, "decomposition", "decomposition", command=json.dumps({"command": "decomposition"}))
    written(tmp_path, "decomposition", "audit")  # the number of data counts, not the time
    tree = gather(tmp_path)
    assert (tree["decomposition"].sizes["datum"], tree["comparison"].sizes["datum"]) == (12, 8)
    assert notes(tmp_path) == [
        "decomposition of audit.nc: left out, decomposition.nc has it for 12 data, not 8."
    ]
    assert "command_of_decomposition" in tree.attrs
    text = render_report(tree)
    assert "8 data · 3 latent coordinates" in text
    assert "over 12 data; 3 of 3 latent units are active" in text


def test_of_as_many_data_the_later_measurement_is_shown(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", "gaps")
    later = gaps_group().assign(elbo=GROUPS["gaps"]["elbo"] + 1)
    write(build_tree({"gaps": later}), tmp_path / "gaps.nc")
    for order, shown in ((("audit", "gaps"), 1.0), (("gaps", "audit"), 0.0)):
        written(tmp_path, *order)
        assert float((gather(tmp_path)["gaps"]["elbo"] - GROUPS["gaps"]["elbo"]).mean()) == shown
        assert notes(tmp_path) == [f"gaps of {order[0]}.nc: left out, {order[1]}.nc has a later one."]


def test_what_comes_with_gaps_gives_way_to_fuller_evidence(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", "evidence", "sandwich")
    few = GROUPS["evidence"].isel(method=slice(-2, None))
    write(
        build_tree({"evidence": few, "sandwich": GROUPS["sandwich"], "gaps": gaps_group()}),
        tmp_path / "gaps.nc",
    )
    tree = gather(tmp_path)
    assert tree["evidence"].sizes["method"] > 2
    assert "gaps" in tree.children
    assert notes(tmp_path) == ["evidence and sandwich of gaps.nc: left out, audit.nc has more estimates."]


def test_evidence_of_more_data_is_shown_for_those_of_the_audit(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics", data=slice(0, 8))
    put(tmp_path, "evidence", "evidence", "sandwich")
    assert gather(tmp_path)["evidence"].sizes["datum"] == 8
    assert "evidence of evidence.nc is about 12 data, of which 8 are shown." in notes(tmp_path)


def test_a_dtype_that_is_not_said_differs_from_none(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", command=json.dumps({"command": "audit", "dtype": "float32"}))
    put(
        tmp_path,
        "decomposition",
        "decomposition",
        command=json.dumps({"command": "decomposition", "dtype": None}),
    )
    assert not notes(tmp_path)
    put(tmp_path, "decomposition", "decomposition", command=json.dumps({"command": "x", "dtype": "float64"}))
    assert notes(tmp_path) == ["decomposition.nc is left out: it is of another dtype than the other results."]


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


def test_what_was_measured_before_another_training_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.pyrovae").write_bytes(b"trained anew")
    now = hashlib.sha256(b"trained anew").hexdigest()
    put(tmp_path, "audit", "comparison", "diagnostics", command=json.dumps({"model": "before"}))
    put(tmp_path, "evidence", "evidence", "sandwich", command=json.dumps({"model": now}))
    assert set(gather(tmp_path).children) == {"evidence", "sandwich"}
    (told,) = notes(tmp_path)
    assert told == "audit.nc is left out: it is of another model than the run that is in the folder now."


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


@pytest.mark.parametrize("names", [("history",), ("evidence", "sandwich"), ("gaps",)])
def test_a_single_measurement_makes_a_page(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, names[0], *names)
    code, output = command(str(tmp_path))
    assert code == 0, output
    assert (tmp_path / "report.html").is_file()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    put(tmp_path, "audit", "comparison", "diagnostics")
    put(tmp_path, "evidence", "evidence", "sandwich")
    whole = (tmp_path / "evidence.nc").read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:1000] + bytes(2000) + whole[3000:]):
        (tmp_path / "evidence.nc").write_bytes(content)
        code, output = command(str(tmp_path))
        assert code == 4
        assert "evidence.nc cannot be read" in output
        assert "measure it again, or move it away" in output


def test_a_path_along_training_gives_way_to_the_training(tmp_path: Path) -> None:
    put(tmp_path, "history", "history")
    path = group("history", {"elbo": np.zeros(2), "log_evidence": np.ones(2)}, epoch=[0, 5])
    write(build_tree({"history": path}), tmp_path / "gradients.nc")
    assert "log_evidence" in gather(tmp_path)["history"].data_vars
