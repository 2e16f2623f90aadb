"""Rows, sentences and figure of the gaps, and `pyrovae gaps RUN` as a user types it."""

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app
from pyrovae.cli.gaps import gaps
from pyrovae.reporting.gaps import plot_gaps
from pyrovae.results import build_tree, group
from pyrovae.results.inference_gaps import inference_gap_rows, inference_gap_sentences, sandwich_margin

NAN = float("nan")


def made(
    near: float, far: float, num_data: int = 40, family: str = "diagonal", full: float = 0.3, **changes
) -> xr.DataTree:
    """Gaps of that size on average, a spread of a tenth and errors of 0.01."""
    rng = np.random.default_rng(0)
    spread = 1 + 0.1 * rng.normal(size=(2, num_data))
    elbo = -30 + rng.normal(size=num_data)
    pieces = {"approximation_gap": near * spread[0], "amortization_gap": far * spread[1]}
    best = elbo + pieces["amortization_gap"]
    values = {
        "log_evidence": best + pieces["approximation_gap"],
        "elbo": elbo,
        "elbo_diagonal": best,
        "elbo_full": best + full,
        **pieces,
        "inference_gap": pieces["approximation_gap"] + pieces["amortization_gap"],
    }
    errors = {f"{name}_std_error": np.full(num_data, 0.01) for name in values}
    words = {"verdict": np.full(num_data, "ok", "U16"), "reason": np.full(num_data, "", "U64")}
    variables = values | errors | words | {"predicted_approximation_gap": 0.9 * pieces["approximation_gap"]}
    variables |= changes
    attrs = {"family": family, "family_reason": "the guide is a flow" if family == "other" else ""}
    columns = {name: (("datum",), value) for name, value in variables.items()}
    return build_tree({"gaps": group("gaps", columns, attrs)})


def refused(tree: xr.DataTree, count: int, verdict: str, reason: str) -> xr.DataTree:
    """The first data without a trusted gap; without log p(x), too, where there is no verdict."""
    gaps = tree["gaps"].to_dataset()
    is_out = np.arange(gaps.sizes["datum"]) < count
    changes = {
        "verdict": ("datum", np.where(is_out, verdict, "ok")),
        "reason": ("datum", np.where(is_out, reason, "")),
    }
    if verdict == "no verdict":
        names = ("log_evidence", "inference_gap", "approximation_gap")
        changes |= {name: ("datum", np.where(is_out, NAN, gaps[name].values)) for name in names}
    tree["gaps"].dataset = gaps.assign(changes)
    return tree


def said(tree: xr.DataTree) -> str:
    return " ".join(inference_gap_sentences(tree))


def test_rows_add_up_over_the_same_data():
    tree = refused(made(0.5, 2.0), 5, "no verdict", "log p(x) is not known")
    rows = {row.subject: row for row in inference_gap_rows(tree)}
    whole = rows["inference_gap"]
    assert whole.value == pytest.approx(rows["approximation_gap"].value + rows["amortization_gap"].value)
    assert {(row.num_data, row.num_refused) for row in rows.values()} == {(35, 5)}
    assert rows["amortization_gap"].direction == "lower"
    kept = tree["gaps"]["amortization_gap"].values[5:]
    assert rows["amortization_gap"].std_error == pytest.approx(kept.std(ddof=1) / 35**0.5)


def test_the_place_of_log_evidence_between_the_ends_of_a_sandwich_is_in_the_error_of_its_gaps():
    tree = made(0.5, 2.0)
    plain = {row.subject: row for row in inference_gap_rows(tree)}
    source = np.full(40, "ais and ais-reverse")
    ends = group("sandwich", {"gap": np.full(40, 0.08), "source": source, "truth": np.zeros(40)})
    groups = {"sandwich": ends, "gaps": tree["gaps"].to_dataset()}
    rows = {row.subject: row for row in inference_gap_rows(build_tree(groups))}
    assert rows["approximation_gap"].std_error == pytest.approx(
        np.hypot(plain["approximation_gap"].std_error, 0.04)
    )
    assert rows["amortization_gap"].std_error == plain["amortization_gap"].std_error


@pytest.mark.parametrize(
    ("tree", "told", "not_told"),
    [
        (
            lambda: made(0.2, 2.0),
            "Most is lost to amortization, 12 % of it by the worst tenth",
            "to the family:",
        ),
        (
            lambda: made(2.0, 0.2),
            "a full-covariance guide could win up to 0.3 of them, a flow",
            "Most is lost to a",
        ),
        (
            lambda: made(2.0, 0.2, family="full", full=0.0),
            "a flow or a mixture could.",
            "full-covariance guide",
        ),
        (lambda: made(2.0, 0.2, full=0.0), "a flow or a mixture could.", "full-covariance guide"),
        (lambda: made(1.0, 1.0, num_data=4), "cannot be told", "Most"),
        (lambda: made(0.0, 0.0), "there is nothing to change", "Most"),
        (lambda: made(0.2, 2.0, num_data=8), "Most is lost to amortization: a larger encoder", "worst tenth"),
    ],
)
def test_sentences_name_the_cause_and_the_cure(tree, told, not_told):
    text = said(tree())
    assert told in text
    assert not_told not in text


def test_a_full_covariance_that_wins_all_leaves_nothing_to_a_flow():
    text = said(made(2.0, 0.2, full=1.98))
    assert text.endswith("could not win these 2 nats; a full-covariance guide could.")


def test_what_is_below_the_floor_of_advice_is_no_cause_to_change():
    text = said(made(0.001, 0.02))
    assert "That is not surely above 0.1 nats, below which no change is advised." in text
    assert "could win" not in text


def test_two_parts_that_are_worth_a_change_only_together_have_no_known_cause():
    assert "Which part is the larger cannot be told" in said(made(0.09, 0.09))


def test_the_share_of_the_worst_tenth_is_a_share():
    """Planted: gaps below zero, which are noise, made the share of the others more than all."""
    gaps = np.full(40, -0.2)
    gaps[:14] = 3.0
    tree = made(0.0, 0.0, amortization_gap=gaps, inference_gap=gaps)
    assert "29 % of it by the worst tenth" in said(tree)


def test_what_refused_data_lose_is_theirs_alone():
    """Planted: data that were not optimized, in which the best Gaussian seems to lie far below the guide."""
    tree = refused(made(0.2, 2.0), 3, "no verdict", "log p(x) is not known")
    gaps = tree["gaps"].to_dataset()
    gaps["verdict"][3:6] = "not optimized"
    gaps["elbo_full"][3:6] -= 50
    gaps["elbo_full"][:3] = gaps["elbo"][:3] + np.array([1.9, 2.0, 2.1])
    tree["gaps"].dataset = gaps
    assert "where the best full Gaussian lies 2.000 ± 0.058 nats above the guide" in said(tree)


def test_gaps_without_error_bar_have_no_cause():
    tree = made(
        0.2,
        2.0,
        num_data=1,
        **{f"{name}_gap_std_error": np.zeros(1) for name in ("inference", "amortization")},
    )
    assert "No verdict on the cause: the gaps have no error bar." in said(tree)
    assert "nothing to change" not in said(tree)


def test_sentences_count_what_is_left_out():
    text = said(refused(made(0.2, 2.0), 3, "no verdict", "log p(x) is not known"))
    assert "on average over 37 of 40 data" in text
    assert "3 data have no verdict (log p(x) is not known: 3), where the best full Gaussian lies 2." in text
    text = said(refused(made(0.2, 2.0), 2, "not optimized", "the search did not converge"))
    assert "2 were not optimized (the search did not converge: 2)" in text
    text = said(refused(made(0.2, 2.0), 40, "not optimized", "the search did not converge"))
    assert text.startswith("No verdict on the gaps of the guide; 40 were not optimized")


@pytest.mark.parametrize(
    ("full", "told"),
    [(0.3, "nats below the best full Gaussian"), (-3.0, "above the best full"), (-0.2, "No diff")],
)
def test_another_family_is_held_against_the_best_full_gaussian(full, told):
    nothing = {name: np.full(40, NAN) for name in ("approximation_gap", "amortization_gap")}
    tree = made(0.0, 0.2, family="other", full=full, **nothing, verdict=np.full(40, "no verdict"))
    text = said(tree)
    assert "(the guide is a flow)" in text
    assert told in text
    assert {row.subject for row in inference_gap_rows(tree)} >= {"inference_gap", "guide_below_full"}
    assert "approximation_gap" not in {row.subject for row in inference_gap_rows(tree)}


def test_a_tree_without_gaps_says_nothing():
    assert said(xr.DataTree()) == ""
    with pytest.raises(ValueError, match="gaps"):
        plot_gaps(xr.DataTree())


@pytest.mark.parametrize("num_data", [6, 500])
def test_the_figure_stacks_the_gaps_and_marks_what_is_refused(num_data):
    tree = refused(made(0.5, 2.0, num_data=num_data), 3, "no verdict", "log p(x) is not known")
    figure = plot_gaps(tree)
    (ax,) = figure.axes
    bars = {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers if c.get_label()[0] != "_"}
    assert set(bars) == {"lost to the diagonal family", "lost to amortization"}
    gaps = tree["gaps"].to_dataset()
    wanted = gaps["approximation_gap"].fillna(0.0) + gaps["amortization_gap"]
    assert np.allclose(np.sort(np.add(*bars.values())), np.sort(wanted))
    marks = [line for line in ax.get_lines() if "not known" in str(line.get_label())]
    assert len(marks[0].get_xdata()) == 3
    assert f"over {num_data - 3} of {num_data} data" in figure.get_suptitle().replace("\n", " ")


def test_the_figure_of_another_family_has_a_line_for_the_best_full_gaussian():
    figure = plot_gaps(made(0.0, 0.2, family="other", verdict=np.full(40, "no verdict")))
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert labels == {"log p(x) − ELBO of the guide", "of the best full Gaussian"}


def test_one_tall_bar_is_cut_and_told():
    tree = made(0.5, 2.0)
    gaps = tree["gaps"].to_dataset()
    tall = gaps["inference_gap"].values.copy()
    tall[3] = 80.0
    tree["gaps"].dataset = gaps.assign(inference_gap=("datum", tall))
    ax = plot_gaps(tree).axes[0]
    assert ax.get_ylim()[1] < 20
    assert any("1 above this axis, up to 80" in text.get_text() for text in ax.texts)


runner = CliRunner(env={"COLUMNS": "100"})
alone = typer.Typer()
alone.command()(gaps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    options = ["--data", "digits", "--max-epochs", "2", "--hidden", "16", "--latent-dim", "2"]
    assert runner.invoke(app, ["train", *options, "--out", str(out)]).exit_code == 0
    return out


@pytest.mark.slow
def test_the_command_writes_a_tree_and_a_figure_and_says_what_is_lost(trained):
    options = ["--num-data", "6", "--num-samples", "100", "--num-fitting-samples", "256"]
    result = runner.invoke(alone, [str(trained), *options])
    assert result.exit_code == 0, result.output
    for text in ("approximation gap", "amortization gap", "The ELBO lies"):
        assert text in " ".join(result.output.split())
    assert (trained / "gaps.png").stat().st_size > 10_000
    assert pv.read(trained / "gaps.nc")["gaps"].attrs["family"] == "diagonal"


@pytest.mark.slow
def test_the_command_refuses_with_its_exit_codes(trained, tmp_path):
    for options, code in (
        (["--family", "flow"], 2),
        (["--num-fitting-samples", "7"], 2),
        (["--part", "all"], 2),
    ):
        assert runner.invoke(alone, [str(trained), "--num-data", "4", *options]).exit_code == code
    assert runner.invoke(alone, [str(tmp_path)]).exit_code == 4
    few = ["--num-data", "4", "--num-samples", "10", "--num-fitting-samples", "6", "--tolerance", "1e-6"]
    assert runner.invoke(alone, [str(trained), *few]).exit_code == 3


def test_sandwiches_of_more_data_than_the_gaps_are_told_apart_by_datum() -> None:
    sandwich = xr.Dataset(
        {"gap": ("datum", [8.0, 0.2, 0.4]), "source": ("datum", ["ais and ais-reverse"] * 3)},
        {"datum": [0, 5, 7]},
    )
    gaps = xr.Dataset({"log_evidence": ("datum", [1.0, 2.0])}, {"datum": [5, 7]})
    tree = xr.DataTree.from_dict({"sandwich": sandwich, "gaps": gaps})
    assert sandwich_margin(tree, np.array([True, True])) == pytest.approx(0.15)
    assert sandwich_margin(tree, np.array([False, True])) == pytest.approx(0.2)
    assert sandwich_margin(tree, np.array([False, False])) == 0.0
