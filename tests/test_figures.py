"""Figures are saved whole or not at all, and their titles fit."""

import os
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from pyrovae.reporting import figures


def small_figure() -> Figure:
    figure = figures.new_figure(3.0, 2.0)
    figure.subplots().plot([1, 2])
    return figure


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_saved_whole_and_the_same_each_time(tmp_path: Path, suffix: str) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "fixed"}):
        for name in ("a", "b"):
            figures.save_figure(small_figure(), tmp_path / f"{name}.{suffix}", dpi=50)
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert sorted(os.listdir(tmp_path)) == [f"a.{suffix}", f"b.{suffix}"]


def test_a_failure_while_saving_leaves_the_old_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    figure = small_figure()
    figures.save_figure(figure, path, dpi=50)
    before = path.read_bytes()

    def half(self: Figure, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        figures.save_figure(figure, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saved as \.png, \.svg or \.pdf, got 'a\.jpg'"):
        figures.save_figure(Figure(), tmp_path / "a.jpg")


@pytest.mark.parametrize("width", [3.0, 5.0, 9.0])
def test_a_title_fits_its_figure(width: float) -> None:
    text = (
        "The validation ELBO is best at epoch 72 of 100: 13.33 nats per datum, 2.33 below training, and so on"
    )
    figure = figures.new_figure(width, 2.0)
    figures.set_title(figure, text)
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert box.x1 <= width * figure.dpi
    assert figure.get_suptitle().replace("\n", " ") == text
