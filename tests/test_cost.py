"""The figure of error against cost shows the numbers of the table, and says where an error cannot be told from 0."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from trees import BENCHMARK, benchmark_tree, estimate, evidence_tree, sandwich_tree

from pyrovae.reporting.plots import plot_evidence_cost
from pyrovae.results.sandwich import evidence_summary


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def legend(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


def markers(ax: Axes) -> list[tuple[float, float, bool]]:
    """(cost, height, whether it is filled) of every point."""
    drawn = [
        line for line in ax.lines if line.get_marker() not in ("", "None") and len(line.get_xdata()) == 1
    ]
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_markerfacecolor() != "white")
        for line in drawn
    ]


def known(*values: float) -> object:
    return estimate("exact", list(values), std_error=np.zeros(len(values)), direction="exact")


def test_points_are_the_bias_and_hollow_where_it_is_none() -> None:
    near = {
        "std_error": np.full(2, 0.2),
        "num_gradient_evaluations": 7,
        "num_density_evaluations": 3,
        "seconds": 5.0,
    }
    iwae = [
        estimate("iwae", [-4.0, -4.0], budget=10, num_density_evaluations=10, seconds=0.1),
        estimate("iwae", [-3.1, -3.1], budget=100, **near),
    ]
    figure = plot_evidence_cost(sandwich_tree(*iwae, known(-3.0, -3.0)))
    height = 0.1 + 2 * 0.2 / np.sqrt(2)
    for ax, first, second in zip(figure.axes, (10, 0.1), (10, 5.0), strict=True):
        assert markers(ax) == [(first, pytest.approx(1.0), True), (second, pytest.approx(height), False)]
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert legend(figure) == ["IWAE (too low)", "not told from 0: the marker is |error| + 2 standard errors"]
    assert title(figure) == (
        "IWAE with 100 draws has a mean error of -0.10 ± 0.14 nats, not told from 0; the truth is known by exact value "
        "for 2 of 2 data"
    )


def test_the_title_tells_how_well_the_sandwich_closed() -> None:
    table = [
        estimate("iwae", [-4.2, -4.2, -4.2], budget=1000, num_density_evaluations=1000, seconds=1.0),
        estimate("ais", [-3.0, -3.0, -3.0]),
        estimate("ais-reverse", [-2.96, -2.96, 0.0], direction="upper"),
    ]
    figure = plot_evidence_cost(sandwich_tree(*table))
    assert title(figure) == (
        "IWAE with 1000 draws has a mean error of -1.220 ± 0.026 nats; the ends of the sandwich are 0.040 ± 0.010 nats "
        "apart for 2 of 3 data"
    )
    assert legend(figure) == ["IWAE (too low)", "the truth is known to 0.02 nats (sandwich)"]


def test_twelve_estimators_look_different_and_hide_nothing() -> None:
    tree = benchmark_tree()
    figure = plot_evidence_cost(tree)
    table = evidence_summary(tree)
    handles = figure.legends[0].legend_handles[: len(BENCHMARK)]
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == len(BENCHMARK)
    for ax in figure.axes:
        assert len(markers(ax)) == int(table["bias"].notna().sum()) == len(table) - 2
    hollow = table["bias"].abs() < 2 * table["bias_std_error"]
    assert sum(not filled for _, _, filled in markers(figure.axes[0])) == int(hollow.sum()) > 0
    sides = dict(zip(BENCHMARK, legend(figure), strict=False))
    assert (sides["ais-reverse"], sides["elbo"]) == ("reverse AIS (too high)", "ELBO (too low)")
    assert sides["cubo"] == "CUBO"  # too low with few draws, too high with many


def test_the_legend_and_the_title_cover_no_points() -> None:
    figure = plot_evidence_cost(benchmark_tree())
    figure.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert not any(figure.legends[0].get_window_extent().overlaps(box) for box in boxes)


def test_what_costs_nothing_has_no_place_on_a_logarithmic_axis() -> None:
    free = estimate("iwae", [-4.0, -4.0], seconds=1.0)
    figure = plot_evidence_cost(sandwich_tree(free, known(-3.0, -3.0)))
    assert [len(markers(ax)) for ax in figure.axes] == [0, 1]


def test_where_only_the_truth_was_measured_the_title_says_so() -> None:
    assert title(plot_evidence_cost(sandwich_tree(known(-3.0, -3.0)))).startswith("No estimator was measured")


def test_without_truth_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match=r"'truth' of group 'sandwich'.*evidence_table with 'bidirectional'"):
        plot_evidence_cost(evidence_tree(estimate("elbo", [1.0, 2.0])))
    wide = [estimate("ais", [-3.0]), estimate("ais-reverse", [0.0], direction="upper")]
    with pytest.raises(ValueError, match="known for none of the 1 data.*raise the number of temperatures"):
        plot_evidence_cost(sandwich_tree(*wide))
