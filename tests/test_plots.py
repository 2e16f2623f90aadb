"""Figures of training and evidence carry the numbers of the tree, and every figure names the group that it lacks."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from trees import benchmark_tree, estimate

from pyrovae.reporting import figures, plots
from pyrovae.results import build_tree, evidence_group, group

BLUE, RED = (figures.COLORS[name].lower() for name in ("blue", "vermillion"))


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def evidence_tree(num_data: int = 3, *, methods: tuple[str, ...] = ("elbo", "iwae")) -> xr.DataTree:
    """The ELBO falls with the datum; other methods are 1 nat above it, and unreliable for the first datum."""
    value = -np.arange(float(num_data))
    is_reliable = np.arange(num_data) > 0
    table = [
        estimate(
            m,
            list(value + (m != "elbo")),
            std_error=np.full(num_data, 0.3),
            is_reliable=is_reliable | (m == "elbo"),
        )
        for m in methods
    ]
    return build_tree({"evidence": evidence_group(table)})


# training


def history(**metrics: object) -> xr.DataTree:
    attrs = {"num_data": 100, "num_val_data": 20}
    return build_tree(
        {"history": group("history", {k: np.array(v, float) for k, v in metrics.items()}, attrs)}
    )


def test_training_draws_both_curves_and_marks_the_best_epoch() -> None:
    figure = plots.plot_training(history(elbo=[-9, -8, -7, -6], val_elbo=[-9.5, np.nan, -7.5, -8.5]))
    training, validation, best = figure.axes[0].lines
    assert training.get_xydata().tolist() == [[1, -9], [2, -8], [3, -7], [4, -6]]
    assert validation.get_xydata().tolist() == [[1, -9.5], [3, -7.5], [4, -8.5]]
    assert best.get_xydata().tolist() == [[3, -7.5]]
    assert title(figure) == (
        "The validation ELBO is best at epoch 3 of 4: -7.50 nats per datum, 0.50 below training "
        "(100 training data, 20 validation data)"
    )


def test_training_on_another_bound_is_called_a_bound() -> None:
    figure = plots.plot_training(history(bound=[-9, -8, -7], val_bound=[-9.5, -7.5, -8.5]))
    assert figure.axes[0].get_ylabel() == "bound (nats per datum)"
    assert title(figure).startswith("The validation bound is best at epoch 2 of 3: -7.50 nats per datum")


def test_training_without_validation() -> None:
    figure = plots.plot_training(history(elbo=[-9, -8]))
    assert len(figure.axes[0].lines) == 1
    assert title(figure).startswith("The training ELBO is -8.00 nats per datum after epoch 2")


def test_a_steep_start_is_cut_and_the_figure_says_so() -> None:
    elbo = [-1000.0, -500.0, *np.linspace(-10, -5, 48)]
    ax = plots.plot_training(history(elbo=elbo)).axes[0]
    assert ax.get_ylim()[0] > -11
    hidden = sum(value < ax.get_ylim()[0] for value in elbo)
    assert [t.get_text() for t in ax.texts] == [f"the first {hidden} epochs lie below this axis"]
    assert not plots.plot_training(history(elbo=[-9, -8, -7])).axes[0].texts


# evidence


def points(figure: Figure, panel: int) -> dict[str, list[tuple[float, float, str]]]:
    """{method: [(rank, value, face colour)]} of one panel."""
    ax, found, label = figure.axes[panel], {}, ""
    for drawn in [c for c in ax.containers if isinstance(c, ErrorbarContainer)]:
        label = drawn.get_label() if drawn.get_label() != "_hidden" else label
        face = to_hex(drawn.lines[0].get_markerfacecolor())
        found.setdefault(label, []).extend((round(x), y, face) for x, y in drawn.lines[0].get_xydata())
    return {name: sorted(at) for name, at in found.items()}


def test_evidence_is_sorted_by_the_elbo_and_hollow_where_it_cannot_be_trusted() -> None:
    figure = plots.plot_evidence(evidence_tree())
    assert points(figure, 0) == {
        "ELBO": [(0, -2.0, RED), (1, -1.0, RED), (2, 0.0, RED)],
        "IWAE": [(0, -1.0, BLUE), (1, 0.0, BLUE), (2, 1.0, "#ffffff")],
    }
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()][
        -1
    ] == "error bar cannot be trusted"
    assert title(figure) == (
        "IWAE lies 1.00 ± 0.00 nats above the ELBO on average over 3 data; "
        "1 have an error bar that cannot be trusted"
    )


def test_the_gap_has_a_panel_with_the_error_of_both() -> None:
    figure = plots.plot_evidence(evidence_tree())
    gaps = points(figure, 1)
    assert [y for _, y, _ in gaps["IWAE"]] == [1.0, 1.0, 1.0]
    assert np.isnan([y for _, y, _ in gaps["ELBO"]]).all()
    bars = next(c.lines[2][0].get_segments() for c in figure.axes[1].containers if c.get_label() == "IWAE")
    assert bars[0][1, 1] - bars[0][0, 1] == pytest.approx(2 * 0.3 * np.sqrt(2))
    assert figure.axes[1].get_ylabel() == "log p(x) − ELBO (nats)"


def test_without_the_elbo_there_is_no_gap() -> None:
    figure = plots.plot_evidence(evidence_tree(), methods=["iwae"])
    assert len(figure.axes) == 1
    assert title(figure).startswith("log p(x) of 3 data")
    assert figure.axes[0].get_xlabel() == "rank of the datum by IWAE"


def test_many_data_are_thinned_and_the_title_says_so() -> None:
    figure = plots.plot_evidence(evidence_tree(1000), max_data=11)
    ranks = [rank for rank, _, _ in points(figure, 0)["ELBO"]]
    assert (len(ranks), ranks[0], ranks[-1]) == (11, 0, 999)
    assert "1000 data, 11 of them shown" in title(figure)


def test_of_many_methods_those_with_a_direction_are_shown_at_their_largest_budget() -> None:
    figure = plots.plot_evidence(benchmark_tree())
    assert list(points(figure, 0)) == ["ELBO", "IWAE", "EUBO", "AIS", "reverse AIS"]
    assert title(figure).startswith("IWAE lies ")
    chosen = plots.plot_evidence(benchmark_tree(), methods=["iwae-10", "psis-100"])
    assert list(points(chosen, 0)) == ["IWAE-10", "PSIS-100"]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has the methods \['elbo', 'iwae'\], got \['ais'\]"):
        plots.plot_evidence(evidence_tree(), methods=["elbo", "ais"])


@pytest.mark.parametrize(
    ("plot", "tree", "group_name", "by"),
    [
        (plots.plot_training, xr.DataTree(), "history", "pyrovae.fit"),
        (plots.plot_evidence, xr.DataTree(), "evidence", "pyrovae.evidence_table"),
        (plots.plot_evidence_cost, xr.DataTree(), "sandwich", "pyrovae.evidence_table with 'bidirectional'"),
        (plots.plot_draws, xr.DataTree(), "posterior", "pyrovae.sample_posterior"),
        (plots.plot_reconstructions, xr.DataTree(), "observed_data", "pyrovae.audit"),
    ],
)
def test_a_missing_group_is_named_with_what_measures_it(
    plot: object, tree: xr.DataTree, group_name: str, by: str
) -> None:
    with pytest.raises(ValueError, match=f"of group '{group_name}', which the tree lacks; {by}"):
        plot(tree)
