"""Figures of gradients show the numbers of the table, hollow where they are no more than a limit."""

import math

import numpy as np
import pytest
from gradient_trees import COUNTS, TIGHT, gradient_tree, gradients, without
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_gradient_choice import estimates

from pyrovae.reporting.plots import plot_gradient_cost, plot_gradient_snr, plot_training_path, save_figure
from pyrovae.results import build_tree
from pyrovae.results.training_path import path_group

LOST = ("iwae", 256, "encoder")


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def markers(ax: Axes) -> list[tuple[float, float, bool]]:
    """(x, y, whether it is filled) of every point."""
    drawn = [line for line in ax.lines if line.get_marker() in tuple("osD^P") and len(line.get_xdata()) == 1]
    return [
        (float(p.get_xdata()[0]), float(p.get_ydata()[0]), p.get_markerfacecolor() != "white") for p in drawn
    ]


def test_the_snr_figure_has_a_panel_a_part_and_a_fit_a_method() -> None:
    figure = plot_gradient_snr(gradient_tree(gradients()))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["encoder", "decoder"]
    for ax in figure.axes:
        assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "particles K")
        assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "4", "16", "64", "256"]
        assert len(markers(ax)) == len(TIGHT) * len(COUNTS)
        lines = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        assert len([line for line in lines if line.get_xdata()[0] == 1]) == len(TIGHT)
    assert figure.axes[0].get_ylabel() == "SNR of one gradient (95 % interval)"
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend[2].startswith("IWAE: slope -0.5")
    assert legend[2].endswith("(5 points)")
    assert title(figure) == "The encoder's SNR falls with K for IWAE (64 data, 1,000 replicates)"


def test_reference_lines_have_the_slopes_of_the_theory() -> None:
    ax = plot_gradient_snr(gradient_tree(gradients())).axes[0]
    theory = [line.get_xydata() for line in ax.lines if line.get_label() == "_theory"]
    slopes = [math.log(line[1, 1] / line[0, 1]) / math.log(line[1, 0] / line[0, 0]) for line in theory]
    assert slopes == pytest.approx([0.5, -0.5])


def test_methods_stand_side_by_side_and_look_different() -> None:
    figure = plot_gradient_snr(gradient_tree(gradients()))
    handles = figure.axes[0].get_legend().legend_handles
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == len(TIGHT)
    at_one = [x for x, _, _ in markers(figure.axes[1]) if x < 2]
    assert len(set(at_one)) == len(TIGHT)
    assert at_one == pytest.approx([1.0] * len(TIGHT), rel=0.1)


def test_what_cannot_be_told_from_zero_is_hollow_at_its_upper_end() -> None:
    made = gradients(snr_squared={LOST: 0.001}, snr_squared_std_error={LOST: 0.001})
    tree = gradient_tree(made)
    (hollow,) = [point for point in markers(plot_gradient_snr(tree).axes[0]) if not point[2]]
    assert hollow[1] == pytest.approx(math.sqrt(0.001 + 1.96 * 0.001))
    legend = plot_gradient_snr(tree).axes[0].get_legend().get_texts()
    assert legend[2].get_text().endswith("(4 points, 1 left out)")
    (hollow,) = [point for point in markers(plot_gradient_cost(tree).axes[0]) if not point[2]]
    assert hollow[:2] == (pytest.approx(26.6e-3), pytest.approx(1 / 2.96e-3))


def test_the_cost_figure_has_relative_variance_against_seconds() -> None:
    figure = plot_gradient_cost(gradient_tree(gradients({"elbo": TIGHT["elbo"]})))
    for ax, level in zip(figure.axes, (0.5, 1.0), strict=True):
        assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == (
            "log",
            "log",
            "seconds for one gradient",
        )
        wanted = [(1e-3 + 1e-4 * k, 1 / (level**2 * k), True) for k in COUNTS]
        assert np.array(markers(ax)) == pytest.approx(np.array(wanted))
        assert {text.get_text() for text in ax.texts} <= {str(k) for k in COUNTS}
        for line in (line for line in ax.lines if line.get_label() == "_averaging"):
            products = line.get_xdata() * line.get_ydata()
            assert products == pytest.approx(np.full(2, products[0]))
    assert "variance" in figure.axes[0].get_ylabel()


def test_rows_without_numbers_are_not_drawn_and_none_at_all_is_refused() -> None:
    made = gradients({"elbo": TIGHT["elbo"]}, counts=(1, 4))
    lacking = without(made, "elbo", 1, "too few particles")
    for plot in (plot_gradient_snr, plot_gradient_cost):
        assert len(markers(plot(gradient_tree(lacking)).axes[0])) == 1
        with pytest.raises(ValueError, match="nothing to draw: too few particles"):
            plot(gradient_tree(without(lacking, "elbo", 4, "too few particles")))
        with pytest.raises(ValueError, match=r"pyrovae.gradient_statistics measures it"):
            plot(build_tree({}))


def test_an_epoch_can_be_chosen_and_the_last_is_the_default() -> None:
    tree = gradient_tree(
        gradients(counts=(1, 4)),
        gradients(dict.fromkeys(TIGHT, ((1, 0), (1, 0))), counts=(1, 4)),
        epoch=[0, 9],
    )
    assert title(plot_gradient_snr(tree)).endswith("epoch 9)")
    assert max(y for _, y, _ in markers(plot_gradient_snr(tree).axes[0])) == pytest.approx(1.0)
    assert max(y for _, y, _ in markers(plot_gradient_snr(tree, 0).axes[0])) == pytest.approx(1.8)
    with pytest.raises(ValueError, match=r"epochs \[0, 9\], got 5"):
        plot_gradient_cost(tree, 5)


def path_tree() -> object:
    spread = np.array([0.0, 10.0, 20.0])
    log_p = estimates(*[list(spread + v) for v in (-9.0, -5.0, -4.0)])
    elbo = estimates(*[list(spread + v) for v in (-10.0, -5.5, -5.5)])
    path = path_group([0, 1, 20], elbo, log_p)
    return gradient_tree(*[gradients(counts=(1, 4))] * 3, epoch=[0, 1, 20], history=path)


def test_the_path_has_snr_above_and_nats_below(tmp_path) -> None:
    tree = path_tree()
    figure = plot_training_path(tree)
    encoder, decoder, both, gap = figure.axes
    assert encoder.get_title(loc="left") == "encoder, 4 particles"
    assert len(markers(encoder)) == len(markers(decoder)) == 3 * len(TIGHT)
    assert [text.get_text() for text in gap.get_xticklabels()] == ["0", "1", "20"]
    labels = [text.get_text() for text in both.get_legend().get_texts()]
    assert labels == ["log p(x) (AIS, a lower bound)", "ELBO"]
    heights = next(line.get_ydata() for line in gap.lines if len(line.get_ydata()) == 3)
    assert heights == pytest.approx([1.0, 0.5, 1.5])
    assert "the model gets better and the guide worse" in title(figure)
    one = plot_training_path(tree, num_particles=1)
    assert one.axes[0].get_title(loc="left") == "encoder, 1 particle"
    with pytest.raises(ValueError, match=r"\[1, 4\], got 3"):
        plot_training_path(tree, num_particles=3)
    save_figure(figure, tmp_path / "path.png")


def test_the_path_shows_what_there_is() -> None:
    tree = path_tree()
    assert len(plot_training_path(build_tree({"history": tree["history"].to_dataset()})).axes) == 2
    assert len(plot_training_path(build_tree({"gradients": tree["gradients"].to_dataset()})).axes) == 2
    with pytest.raises(ValueError, match="gradients along an 'epoch'"):
        plot_training_path(gradient_tree(gradients()))


def test_titles_and_legends_cover_no_points() -> None:
    for plot in (plot_gradient_snr, plot_gradient_cost):
        figure = plot(gradient_tree(gradients()))
        figure.draw_without_rendering()
        panels = [ax.get_window_extent() for ax in figure.axes]
        legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()] + figure.legends
        assert legends
        assert not any(legend.get_window_extent().overlaps(box) for legend in legends for box in panels)
