"""`pyrovae gaps RUN`: what the ELBO of a run loses to the guide's family and to amortization."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import Common, with_common
from pyrovae.cli.measure import NumData, Part, Run, bad_inputs, bad_options, open_part
from pyrovae.cli.show import progress, stage_bar, with_error

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = ["gaps"]

Family = Annotated[str | None, typer.Option(help="diagonal or full; by default the guide's own.")]
NumSamples = Annotated[int, typer.Option(min=2, help="Fresh draws for each ELBO.")]
FittingSamples = Annotated[int, typer.Option(min=4, help="Draws that Gaussians are fitted to; even.")]
Temperatures = Annotated[int, typer.Option(min=1, help="Temperatures of annealing for log p(x).")]
Tolerance = Annotated[float, typer.Option(min=0.0, help="Nats by which an optimum may be missed.")]


@with_common()
def gaps(
    common: Common,
    run: Run,
    family: Family = None,
    num_data: NumData = 64,
    num_samples: NumSamples = 1000,
    num_fitting_samples: FittingSamples = 512,
    num_temperatures: Temperatures = 100,
    tolerance: Tolerance = 0.05,
    part: Part = "test",
) -> None:
    """Split log p(x) - ELBO of a run: what its family of guides loses, and what one network for all data loses."""
    import pyrovae as pv
    from pyrovae.diagnostics.gaps import inference_gaps
    from pyrovae.reporting.figures import save_figure
    from pyrovae.reporting.gaps import plot_gaps
    from pyrovae.results.inference_gaps import inference_gap_sentences, trusted

    options: dict[str, Any] = {"num_samples": num_samples, "num_fitting_samples": num_fitting_samples}
    options |= {"family": family, "num_temperatures": num_temperatures, "tolerance": tolerance}
    with bad_inputs(common.errors):
        vae, x, _ = open_part(run, part, num_data, common.device, common.dtype)

    def measure() -> "xr.DataTree":
        target = pv.Target(vae.model, vae.guide, x)
        with progress(common.console) as bars, bad_options():
            return inference_gaps(target, **options, seed=common.seed, progress=stage_bar(bars, "gaps"))

    settings = {**options, "num_data": num_data, "part": part}
    tree = common.measured(run, "gaps", settings, measure)
    folder = common.folder(run)
    save_figure(plot_gaps(tree), folder / "gaps.png")
    show = partial(_print, tree=tree, title=f"Gaps of {len(x)} data ({part}), nats per datum")
    common.tell(tree, ("gaps.nc", "gaps.png"), folder, show)
    if not trusted(tree["gaps"].to_dataset()).any():
        raise common.without_verdict(inference_gap_sentences(tree))


def _print(console: "Console", tree: "xr.DataTree", title: str) -> None:
    """The gaps as a table, and the sentences."""
    from rich import box
    from rich.table import Table

    from pyrovae.results.inference_gaps import inference_gap_rows, inference_gap_sentences

    table = Table(title=title, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("quantity", overflow="fold")
    for name in ("nats", "direction", "data", "doubt"):
        table.add_column(name, no_wrap=True, justify="left" if name == "direction" else "right")
    for row in inference_gap_rows(tree):
        counts = str(row.num_data), str(row.num_refused)
        table.add_row(row.quantity, with_error(row.value, row.std_error), row.direction, *counts)
    console.print(table)
    for sentence in inference_gap_sentences(tree):
        console.print(f"- {sentence}", markup=False, highlight=False)
