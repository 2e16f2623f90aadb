"""Along training: the signal-to-noise ratio of gradient estimators, log p(x), the ELBO and KL(guide || posterior)."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.reporting.figures import COLORS, new_figure, require, set_title, simplify
from pyrovae.reporting.gradients import Look, draw_point, looks_of, name_of
from pyrovae.results.gradients import MAIN_PARTS, Record, gradient_records
from pyrovae.results.training_path import PATH_NAMES, path_sentences

__all__ = ["plot_training_path"]

_PATH_LOOKS: Final = {"log_evidence": ("green", "o"), "elbo": ("blue", "s"), "kl_posterior": ("purple", "D")}
_SHIFT: Final = 0.1  # of log(1 + epoch), between the first and the last method
_SIDES: Final = {"lower": "a lower bound", "upper": "an upper bound"}


def plot_training_path(tree: xr.DataTree, num_particles: int | None = None) -> Figure:
    """Does log p(x) rise while the guide gets worse, and do gradient estimators rank differently early and late?

    Above, the SNR of every estimator at one number of particles against the epoch, for encoder and decoder, as in
    `plot_gradient_snr`. Below, averages over the data with bars of one standard error: left log p(x) and the ELBO,
    right what is between them, KL(guide || posterior). Epoch 0 is before training; the axis goes
    like log(1 + epoch). What was not measured has no row.

    Args:
        tree: With `gradients` that have an `epoch`, or `history` of checkpoints, or both.
        num_particles: Of the upper row; the largest by default.

    Raises:
        ValueError: If the tree has neither, or not that number of particles.
    """
    drawers = [*_snr_panels(tree, num_particles), *_path_panels(tree)]
    if not drawers:
        raise ValueError(
            "the figure needs gradients along an 'epoch' or 'log_evidence' in 'history', which the tree lacks; "
            "`pyrovae gradients RUN --checkpoints` measures both"
        )
    figure = new_figure(8.6, 0.8 + 2.8 * (len(drawers) // 2))
    axes = figure.subplots(len(drawers) // 2, 2, squeeze=False).ravel()
    for ax, draw in zip(axes, drawers, strict=True):
        draw(ax)
        simplify(ax)
    said = [sentence.rstrip(".") for sentence in path_sentences(tree)]
    set_title(figure, said[-1] if said else "Gradient estimators along training")
    return figure


def _snr_panels(tree: xr.DataTree, num_particles: int | None) -> list[Callable[[Axes], None]]:
    """Encoder and decoder; none where there is no epoch."""
    if "gradients" not in tree.children or "epoch" not in tree["gradients"].dims:
        return []
    rows = [row for row in gradient_records(tree) if row["part"] in MAIN_PARTS[:2]]
    counts = sorted({row["count"] for row in rows})
    wanted = counts[-1] if num_particles is None else num_particles
    if wanted not in counts:
        raise ValueError(f"the gradients have the numbers of particles {counts}, got {wanted}")
    looks = looks_of(rows)
    kept = [row for row in rows if row["count"] == wanted]
    panels = {part: [row for row in kept if row["part"] == part] for part in MAIN_PARTS[:2]}
    return [_snr_panel(part, own, looks) for part, own in panels.items()]


def _snr_panel(part: str, rows: Sequence[Record], looks: dict[str, Look]) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        for method, look in looks.items():
            _draw_snr(ax, [row for row in rows if row["method"] == method], look, name_of(method))
        ax.set(yscale="log", ylabel="SNR of one gradient")
        particles = f"{rows[0]['count']:,} particle{'s' * (rows[0]['count'] != 1)}" if rows else ""
        ax.set_title(f"{part}, {particles}", fontsize=10, loc="left")
        _epoch_axis(ax, [row["epoch"] for row in rows])
        if part == MAIN_PARTS[0]:
            ax.legend(frameon=False, fontsize=8, ncols=2)

    return draw


def _draw_snr(ax: Axes, rows: Sequence[Record], look: Look, label: str) -> None:
    """Points as in `plot_gradient_snr`, joined."""
    x = [_place(row["epoch"]) + _SHIFT * look.shift for row in rows]
    y = [draw_point(ax, at, row, look) for at, row in zip(x, rows, strict=True)]
    ax.plot(x, y, color=look.color, linewidth=1, alpha=0.6, label="_line")
    ax.plot([], [], color=look.color, linewidth=1, marker=look.marker, markersize=5, label=label)


def _path_panels(tree: xr.DataTree) -> list[Callable[[Axes], None]]:
    """log p(x) with the ELBO, and their difference."""
    if "history" not in tree.children or "log_evidence" not in tree["history"].data_vars:
        return []
    path = require(tree, "history", "kl_posterior")
    side = _SIDES.get(str(path.attrs.get("direction")))
    method = name_of(str(path.attrs["method"])) if path.attrs.get("method") else ""
    told = ", ".join(filter(None, [method, side]))

    def draw_both(ax: Axes) -> None:
        _draw_path(ax, path, "log_evidence", f" ({told})" if told else "")
        _draw_path(ax, path, "elbo")
        ax.set_ylabel("nats per datum")
        ax.legend(frameon=False, fontsize=8, loc="lower right")

    def draw_gap(ax: Axes) -> None:
        _draw_path(ax, path, "kl_posterior")
        ax.set_ylabel("KL(guide || posterior), nats")
        ax.set_ylim(bottom=0)

    return [draw_both, draw_gap]


def _draw_path(ax: Axes, path: xr.Dataset, name: str, note: str = "") -> None:
    color, marker = _PATH_LOOKS[name]
    x = [_place(epoch) for epoch in path["epoch"].values.tolist()]
    y, error, label = path[name].values, path[f"{name}_std_error"].values, f"{PATH_NAMES[name]}{note}"
    ax.errorbar(x, y, error, color=COLORS[color], marker=marker, markersize=5, capsize=2, label=label)
    _epoch_axis(ax, path["epoch"].values.tolist())


def _place(epoch: int) -> float:
    """Checkpoints are spread like 0, 1, 5, 20, 100."""
    return math.log1p(epoch)


def _epoch_axis(ax: Axes, epochs: Sequence[int]) -> None:
    ticks = sorted(set(epochs))
    ax.set_xticks([_place(tick) for tick in ticks], [str(tick) for tick in ticks])
    ax.set_xlabel("epoch")
