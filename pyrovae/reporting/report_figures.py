"""The figures of a report: which ones a tree allows, in reading order, each with a caption that holds its numbers."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyrovae.reporting import plots
from pyrovae.reporting.calibration import plot_calibration
from pyrovae.reporting.gaps import plot_gaps
from pyrovae.reporting.intervals import plot_evidence_intervals
from pyrovae.reporting.latents import plot_latent_space
from pyrovae.reporting.narrow import make_narrow
from pyrovae.reporting.svg import inline_svg, page_style
from pyrovae.results.rows import measured

__all__ = ["Drawn", "Undrawn", "draw_figures"]


class Drawn(NamedTuple):
    """One figure on the page: its anchor, the group that it shows, its name, the element, its caption, its width.

    `narrow` is the same figure laid out for a telephone; "" where `svg` serves there too.
    """

    key: str
    group: str
    name: str
    svg: str
    narrow: str
    caption: str
    is_wide: bool


class Undrawn(NamedTuple):
    """What stands in the place of a figure that could not be drawn: its anchor, group and name, and why."""

    key: str
    group: str
    name: str
    reason: str


class _Plan(NamedTuple):
    """A figure, the groups that it needs, the first of which it shows, and how it is read."""

    key: str
    needs: tuple[str, ...]
    name: str
    draw: Callable[[xr.DataTree], Figure]
    reading: str


def draw_figures(tree: xr.DataTree) -> list[Drawn | Undrawn]:
    """Draw all figures whose groups the tree has, in reading order; one that fails is told with its reason.

    The title of a figure, which is a sentence with numbers, becomes the start of its caption.
    """
    safe = _without_mathematics(tree)
    with page_style():
        return [_tried(plan, safe) for plan in _plans(tree) if set(plan.needs) <= set(tree.children)]


def _tried(plan: _Plan, tree: xr.DataTree) -> Drawn | Undrawn:
    """One figure must not take the page, and the numbers of hours, with it."""
    try:
        return _drawn(plan, plan.draw(tree))
    except ValueError as error:  # what a figure itself refuses
        reason = str(error)
    except Exception as error:
        reason = f"drawing it failed ({type(error).__name__}: {error})"
    return Undrawn(plan.key, plan.needs[0], plan.name, reason)


def _plans(tree: xr.DataTree) -> Iterator[_Plan]:
    has_path = "history" in tree.children and "log_evidence" in tree["history"].data_vars
    known = measured(tree, "sandwich", "truth")
    has_truth = known is not None and bool(np.isfinite(known["truth"].values).any())
    if not has_path:
        yield _Plan("training", ("history",), "Training", plots.plot_training, _TRAINING)
    yield _Plan("intervals", ("evidence",), "Estimates of log p(x)", plot_evidence_intervals, _INTERVALS)
    if has_truth:
        yield _Plan("cost", ("evidence",), "Error of log p(x) against cost", plots.plot_evidence_cost, _COST)
    else:
        yield _Plan("evidence", ("evidence",), "log p(x) of every datum", plots.plot_evidence, _EVIDENCE)
    yield _Plan("draws", ("comparison", "guide", "posterior"), "Guide and posterior", _plot_extremes, _DRAWS)
    yield _Plan("gaps", ("gaps",), "Where the ELBO loses", plot_gaps, _GAPS)
    yield _Plan(
        "calibration", ("calibration",), "Calibration on simulated data", plot_calibration, _CALIBRATION
    )
    yield _Plan("terms", ("decomposition",), "The ELBO taken apart", plots.plot_decomposition, _TERMS)
    yield _Plan("snr", ("gradients",), "Gradients: signal to noise", plots.plot_gradient_snr, _SNR)
    if has_path:
        yield _Plan("path", ("history",), "Along training", plots.plot_training_path, _PATH)
    shown = ("reconstruction", "observed_data")
    yield _Plan("reconstructions", shown, "Reconstructions and samples", plots.plot_reconstructions, _IMAGES)
    if "reconstruction" in tree.children and "log_likelihood" in tree["reconstruction"].data_vars:
        yield _Plan(
            "counts", ("reconstruction",), "How many draws are enough", plots.plot_draw_counts, _COUNTS
        )
    yield _Plan("latents", ("guide",), "The latent space", plot_latent_space, _LATENTS)


_COLUMN: Final = 9.5  # inches above which a figure is wider than the column of text
_TRAINING: Final = "Higher is better; a circle marks the best epoch on held-out data."
_INTERVALS: Final = (
    "Differences to the ELBO are taken datum by datum and averaged; the markers point to the side on which "
    "log p(x) lies."
)
_COST: Final = (
    "Lower is better, further left is cheaper; a hollow marker is an error that cannot be told from 0."
)
_EVIDENCE: Final = "Data in the order of their ELBO; hollow markers have an error bar that cannot be trusted."
_DRAWS: Final = (
    "Each panel shows the two latents where guide and reference differ most. Were the guide the posterior, the "
    "ellipses would coincide."
)
_GAPS: Final = (
    "One bar a datum: what its family of guides loses, and on top what one encoder for all data loses."
)
_CALIBRATION: Final = "A guide that is the posterior stays in the band; a curve outside it is an error."
_TERMS: Final = (
    "First the terms on average over the data, then the latents by their share of the KL to the prior."
)
_SNR: Final = (
    "Below 1 a single gradient is mostly noise. A falling line means that more particles make it worse."
)
_PATH: Final = "Bars are one standard error over the data."
_IMAGES: Final = "Samples from the prior show what the model generates; reconstructions, what the codes keep."
_COUNTS: Final = "Log-likelihoods are averaged over draws of z, images are not."
_LATENTS: Final = (
    "Where q(z) goes beyond the prior, the prior does not fit the codes; that it is patchy means little, since it is "
    "the mixture over these data only."
)


def _plot_extremes(tree: xr.DataTree) -> Figure:
    """Draws for the best, the median and the worst datum by Wasserstein-2 distance, of those with a verdict."""
    comparison = tree["comparison"].to_dataset()
    distance = comparison["wasserstein2"].values.astype(float) if "wasserstein2" in comparison else None
    if distance is None or "verdict" not in tree["diagnostics"].data_vars:
        return plots.plot_draws(tree)
    distance[tree["diagnostics"]["verdict"].values != "ok"] = np.nan
    order = np.argsort(distance)[: int(np.isfinite(distance).sum())]
    if not order.size:
        return plots.plot_draws(tree)
    ranks = dict.fromkeys((0, (order.size - 1) // 2, order.size - 1))
    chosen = comparison["datum"].values[order[list(ranks)]]
    figure = plots.plot_draws(tree, [int(datum) for datum in chosen])
    told = ", ".join(
        f"{distance[order[rank]]:.2g} for datum {int(d)}" for rank, d in zip(ranks, chosen, strict=True)
    )
    words = "best, median and worst" if len(ranks) == 3 else "best and worst"
    figure.suptitle(
        f"The {words} of {order.size} data with a verdict lie at a Wasserstein-2 distance between guide and reference "
        f"of {told}"
    )
    return figure


def _drawn(plan: _Plan, figure: Figure) -> Drawn:
    title = " ".join(figure.get_suptitle().replace("\\$", "$").split())
    figure.suptitle("")
    caption = f"{title}. {plan.reading}" if title else plan.reading
    label, is_wide = f"{plan.name}: {title}" if title else plan.name, figure.get_figwidth() > _COLUMN
    svg = inline_svg(figure, f"fig-{plan.key}", label)
    narrow = inline_svg(figure, f"narrow-{plan.key}", label) if make_narrow(figure) else ""
    return Drawn(plan.key, plan.needs[0], plan.name, svg, narrow, caption, is_wide)


def _without_mathematics(tree: xr.DataTree) -> xr.DataTree:
    """The tree with dollars in names marked as text: matplotlib would read what is between them as a formula."""
    groups = {}
    for name, node in tree.children.items():
        made = node.to_dataset()
        words = {d: made[d] for d in made.dims if d in made.coords and made[d].dtype.kind == "U"}
        groups[name] = made.assign_coords(
            {
                dim: (dim, [word.replace("$", r"\$") for word in names.values.tolist()])
                for dim, names in words.items()
            }
        )
    return xr.DataTree.from_dict(groups)
