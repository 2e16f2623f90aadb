"""`pyrovae evidence RUN`, `pyrovae decompose RUN` and `pyrovae reconstruct RUN`: measurements of a trained run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyrovae.cli.runs import PARTS, RunError, open_run
from pyrovae.cli.show import (
    BAD_INPUT,
    FAILED,
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

    from pyrovae.data import Pipeline
    from pyrovae.models.vae import VAE
    from pyrovae.target import Target

__all__ = [
    "Device",
    "NumData",
    "Part",
    "Run",
    "Seed",
    "bad_inputs",
    "bad_options",
    "decompose",
    "evidence",
    "numbers",
    "open_part",
    "reconstruct",
]

Run = Annotated[Path, typer.Argument(help="Folder that `pyrovae train` wrote.")]
Part = Annotated[str, typer.Option(help="Which part of the data: train, val or test.")]
NumData = Annotated[int | None, typer.Option(min=2, help="Data to measure; all of the part by default.")]
NumSamples = Annotated[int, typer.Option(min=2, help="Draws of the guide for each datum.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draws.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


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


def evidence(
    run: Run,
    methods: Methods = METHODS,
    num_data: NumData = 64,
    num_samples: Draws = "10,100,1000",
    num_temperatures: Temperatures = "10,100",
    start: Start = "laplace",
    tolerance: Tolerance = 0.1,
    part: Part = "test",
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Estimate log p(x) of some data of a run by many methods: value, direction, bias and cost in one table."""
    from rich.console import Console

    import pyrovae as pv
    from pyrovae.reporting.plots import plot_evidence, plot_evidence_cost, save_figure

    console = Console()
    names = [name.strip() for name in methods.split(",")]
    annealed = "bidirectional" in names
    draws, temperatures = numbers(num_samples), numbers(num_temperatures)
    with bad_inputs(console):
        target, _ = _target(run, part, num_data, device)
    with progress(console) as bars, bad_options():
        tree = pv.evidence_table(
            target,
            names,
            num_samples=draws,
            num_temperatures=temperatures,
            tolerance=tolerance,
            options={"bidirectional": {"start": start}} if annealed else None,
            seed=seed,
            progress=stage_bar(bars, "evidence"),
        )
    pv.write(tree, run / "evidence.nc")
    is_measured = "sandwich" in tree.children
    has_truth = is_measured and bool(tree["sandwich"]["truth"].notnull().any())
    save_figure(plot_evidence_cost(tree) if has_truth else plot_evidence(tree), run / "evidence.png")
    print_evidence(console, tree, f"log p(x) of {target.num_data} data ({part})")
    console.print(f"Written to {run}: evidence.nc, evidence.png.", highlight=False)
    if is_measured and not has_truth:
        raise typer.Exit(FAILED)


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


def decompose(
    run: Run,
    part: Part = "test",
    num_data: NumData = None,
    num_samples: NumSamples = 500,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Take the ELBO of a run apart: both forms per datum, and the aggregate posterior against the prior."""
    from rich.console import Console

    import pyrovae as pv
    from pyrovae.reporting.plots import plot_decomposition, save_figure

    console = Console()
    with bad_inputs(console):
        target, _ = _target(run, part, num_data, device)
    evidence = pv.log_evidence(target, "iwae", num_samples=num_samples, seed=seed + 1)
    tree = pv.decompose(target, evidence, num_samples=num_samples, seed=seed)
    pv.write(tree, run / "decomposition.nc")
    save_figure(plot_decomposition(tree), run / "decomposition.png")
    print_summary(console, tree, f"The ELBO taken apart, {target.num_data} data ({part})")
    console.print(f"Written to {run}: decomposition.nc, decomposition.png.")


def reconstruct(
    run: Run,
    part: Part = "test",
    num_data: NumData = 64,
    num_samples: NumSamples = 10_000,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Reconstruct data of a run, in raw units, and show how many draws of z are enough."""
    from rich.console import Console

    import pyrovae as pv
    from pyrovae.reporting.plots import plot_draw_counts, plot_reconstructions, save_figure

    console = Console()
    with bad_inputs(console):
        target, pipeline = _target(run, part, num_data, device)
    tree = _in_raw_units(pv.reconstruct(target, num_samples, seed=seed), pipeline)
    pv.write(tree, run / "reconstruction.nc")
    figure = plot_draw_counts(tree)
    save_figure(figure, run / "draw_counts.png")
    save_figure(plot_reconstructions(tree), run / "reconstructions.png")
    console.print(f"{figure.get_suptitle()}.".replace("\n", " "), highlight=False)
    console.print(f"Written to {run}: reconstruction.nc, draw_counts.png, reconstructions.png.")


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


def _target(run: Path, part: str, num_data: int | None, device: str) -> "tuple[Target, Pipeline]":
    """The target of a run's model and some of its data, and the way back to raw units."""
    import pyrovae as pv

    vae, x, pipeline = open_part(run, part, num_data, device)
    return pv.Target(vae.model, vae.guide, x), pipeline


def open_part(run: Path, part: str, num_data: int | None, device: str) -> "tuple[VAE, Tensor, Pipeline]":
    """A run's model and some of its data, on the device, and the way back to raw units."""
    if part not in PARTS:
        raise typer.BadParameter(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    place = choose_device(device)
    vae, split, _ = open_run(run)
    x = getattr(split, part)[:num_data]
    if len(x) < 2:
        raise RunError(
            f"the part {part!r} of {run} has {len(x)} data, too few to measure: choose another part"
        )
    return vae.to(place).eval(), x.to(place), split.pipeline


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
