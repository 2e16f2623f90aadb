"""`pyrovae evidence RUN`, `pyrovae decompose RUN` and `pyrovae reconstruct RUN`: measurements of a trained run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import Common, with_common
from pyrovae.cli.runs import PARTS, RunError, open_run
from pyrovae.cli.show import (
    BAD_INPUT,
    choose_device,
    print_error,
    print_evidence,
    print_summary,
    progress,
    stage_bar,
)

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from torch import Tensor

    from pyrovae.data import Pipeline, Rows
    from pyrovae.models.vae import VAE
    from pyrovae.target import Target

__all__ = [
    "NumData",
    "Part",
    "Run",
    "bad_inputs",
    "bad_options",
    "decompose",
    "evidence",
    "numbers",
    "open_part",
    "open_rows",
    "reconstruct",
]

Run = Annotated[Path, typer.Argument(help="Folder that `pyrovae train` wrote.")]
Part = Annotated[str, typer.Option(help="Which part of the data: train, val or test.")]
NumData = Annotated[int | None, typer.Option(min=2, help="Data to measure; all of the part by default.")]
NumSamples = Annotated[int, typer.Option(min=2, help="Draws of the guide for each datum.")]

Methods = Annotated[
    str, typer.Option(help="Estimators, with commas between; bidirectional is ais and ais-reverse.")
]
Draws = Annotated[str, typer.Option(help="Draws of the guide for each datum; several with commas between.")]
Temperatures = Annotated[str, typer.Option(help="Temperatures of annealing; several with commas between.")]
Start = Annotated[str, typer.Option(help="Where annealing starts: laplace, guide or prior.")]
Tolerance = Annotated[
    float, typer.Option(min=0.0, help="Gap in nats at which annealing both ways has closed.")
]

METHODS = "elbo,iwae,psis,cumulant,cubo,single-shot,single-shot-laplace,laplace,bidirectional"


@with_common()
def evidence(
    common: Common,
    run: Run,
    methods: Methods = METHODS,
    num_data: NumData = 64,
    num_samples: Draws = "10,100,1000",
    num_temperatures: Temperatures = "10,100",
    start: Start = "laplace",
    tolerance: Tolerance = 0.1,
    part: Part = "test",
) -> None:
    """Estimate log p(x) of some data of a run by many methods: value, direction, bias and cost in one table."""
    import pyrovae as pv
    from pyrovae.reporting.plots import plot_evidence, plot_evidence_cost, save_figure
    from pyrovae.results.verdicts import findings

    names = [name.strip() for name in methods.split(",")]
    options: dict[str, Any] = {"num_samples": numbers(num_samples), "tolerance": tolerance}
    options["num_temperatures"] = numbers(num_temperatures)
    options["options"] = {"bidirectional": {"start": start}} if "bidirectional" in names else None
    target, _ = _target(common, run, part, num_data)

    def measure() -> "xr.DataTree":
        with progress(common.console) as bars, bad_options():
            tell = stage_bar(bars, "evidence")
            return pv.evidence_table(target, names, **options, seed=common.seed, progress=tell)

    settings = {**options, "methods": names, "num_data": num_data, "part": part}
    tree = common.measured(run, "evidence", settings, measure)
    folder = common.folder(run)
    is_measured = "sandwich" in tree.children
    has_truth = is_measured and bool(tree["sandwich"]["truth"].notnull().any())
    save_figure(plot_evidence_cost(tree) if has_truth else plot_evidence(tree), folder / "evidence.png")
    title = f"log p(x) of {target.num_data} data ({part})"
    show = partial(print_evidence, tree=tree, title=title)
    common.tell(tree, ("evidence.nc", "evidence.png"), folder, show)
    if is_measured and not has_truth:
        why = [found.sentence for found in findings(tree) if found.group == "sandwich"]
        unknown = f"No verdict: log p(x) is known for none of {target.num_data} data."
        raise common.without_verdict([unknown, *why])


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} must be whole numbers with commas between, such as 10,100"
        ) from error


@contextmanager
def bad_options() -> Iterator[None]:
    """What the library refuses here is an option of the command."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@with_common()
def decompose(
    common: Common, run: Run, part: Part = "test", num_data: NumData = None, num_samples: NumSamples = 500
) -> None:
    """Take the ELBO of a run apart: both forms per datum, and the aggregate posterior against the prior."""
    import pyrovae as pv
    from pyrovae.reporting.plots import plot_decomposition, save_figure

    target, _ = _target(common, run, part, num_data)

    def measure() -> "xr.DataTree":
        found = pv.log_evidence(target, "iwae", num_samples=num_samples, seed=common.seed + 1)
        return pv.decompose(target, found, num_samples=num_samples, seed=common.seed)

    settings = {"part": part, "num_data": num_data, "num_samples": num_samples}
    tree = common.measured(run, "decomposition", settings, measure)
    folder = common.folder(run)
    save_figure(plot_decomposition(tree), folder / "decomposition.png")
    title = f"The ELBO taken apart, {target.num_data} data ({part})"
    show = partial(print_summary, tree=tree, title=title)
    common.tell(tree, ("decomposition.nc", "decomposition.png"), folder, show)


@with_common()
def reconstruct(
    common: Common, run: Run, part: Part = "test", num_data: NumData = 64, num_samples: NumSamples = 10_000
) -> None:
    """Reconstruct data of a run, in raw units, and show how many draws of z are enough."""
    import pyrovae as pv
    from pyrovae.reporting.plots import plot_draw_counts, plot_reconstructions, save_figure

    target, pipeline = _target(common, run, part, num_data)
    settings = {"part": part, "num_data": num_data, "num_samples": num_samples}
    tree = common.measured(
        run,
        "reconstruction",
        settings,
        lambda: _in_raw_units(pv.reconstruct(target, num_samples, seed=common.seed), pipeline),
    )
    folder = common.folder(run)
    figure = plot_draw_counts(tree)
    save_figure(figure, folder / "draw_counts.png")
    save_figure(plot_reconstructions(tree), folder / "reconstructions.png")
    said = f"{figure.get_suptitle()}.".replace("\n", " ")
    files = ("reconstruction.nc", "draw_counts.png", "reconstructions.png")
    common.tell(tree, files, folder, lambda console: console.print(said, highlight=False))


@contextmanager
def bad_inputs(console: "Console") -> Iterator[None]:
    """What cannot be read ends the command with its own exit code."""
    from pyrovae.data import DataError
    from pyrovae.training.checkpoint import CheckpointError

    try:
        yield
    except (RunError, DataError, CheckpointError) as error:
        print_error(console, error)
        raise typer.Exit(BAD_INPUT) from error


def _target(common: Common, run: Path, part: str, num_data: int | None) -> "tuple[Target, Pipeline]":
    """The target of a run's model and some of its data, and the way back to raw units; or exit."""
    import pyrovae as pv

    with bad_inputs(common.errors):
        vae, x, pipeline = open_part(run, part, num_data, common.device, common.dtype)
    return pv.Target(vae.model, vae.guide, x), pipeline


def open_part(
    run: Path, part: str, num_data: int | None, device: str, dtype: str | None = None
) -> "tuple[VAE, Tensor, Pipeline]":
    """A run's model and some of its data, on the device and of the dtype, and the way back to raw units."""
    vae, rows, pipeline = open_rows(run, part, num_data, device, dtype)
    return vae, rows[:], pipeline


def open_rows(
    run: Path, part: str, num_data: int | None, device: str, dtype: str | None = None
) -> "tuple[VAE, Tensor | Rows, Pipeline]":
    """As `open_part`; data that do not stand in memory are read when they are asked for."""
    import torch

    from pyrovae.data import Rows

    if part not in PARTS:
        raise typer.BadParameter(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    place = choose_device(device)
    vae, split, _ = open_run(run)
    whole = getattr(split, part)
    x = whole.part(torch.arange(len(whole))[:num_data]) if isinstance(whole, Rows) else whole[:num_data]
    if len(x) < 2:
        raise RunError(
            f"the part {part!r} of {run} has {len(x)} data, too few to measure: choose another part"
        )
    kind = getattr(torch, dtype) if dtype else next(vae.parameters()).dtype
    return vae.to(place, kind).eval(), x.to(place, kind), split.pipeline


def _in_raw_units(tree: "xr.DataTree", pipeline: "Pipeline") -> "xr.DataTree":
    """The tree with data and reconstructions as they were before scaling and dequantization."""
    import torch

    from pyrovae import results

    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    for name in ("observed_data", "reconstruction"):
        x = groups[name]["x"]
        raw = pipeline.inverse(torch.from_numpy(x.values)).numpy()
        groups[name] = groups[name].assign(x=x.copy(data=raw))
    return results.build_tree(groups, {str(name): value for name, value in tree.attrs.items()})
