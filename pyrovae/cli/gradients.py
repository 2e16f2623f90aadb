"""`pyrovae gradients RUN`: bias, noise and cost of gradient estimators, at the end of training or along it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.checkpoints import kept_epochs
from pyrovae.cli.common import Common, with_common
from pyrovae.cli.gradient_table import print_gradients
from pyrovae.cli.measure import NumData, Part, Run, bad_inputs, bad_options, numbers, open_part
from pyrovae.cli.show import progress, stage_bar

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from rich.progress import Progress
    from torch import Tensor

    from pyrovae.models.vae import VAE
    from pyrovae.results import Evidence

__all__ = ["gradients"]

Estimators = Annotated[str, typer.Option(help="Objectives that `pyrovae train` knows, with commas between.")]
Particles = Annotated[str, typer.Option(help="Draws of z for each datum; several with commas between.")]
Replicates = Annotated[int, typer.Option(min=2, help="Gradients of each kind.")]
Reference = Annotated[str, typer.Option(help="Where the gradient of log p(x) comes from: auto, hmc, ...")]
PerParameter = Annotated[bool, typer.Option(help="Every parameter tensor on its own, too.")]
Checkpoints = Annotated[bool, typer.Option(help="Along training: what `train --keep-epochs` kept.")]
LogEvidence = Annotated[
    str, typer.Option(help="Along training, the method for log p(x): ais, iwae, exact, ...")
]
NumOuter = Annotated[int | None, typer.Option(help="Of miwae and piwae: the bounds that are averaged.")]
Beta = Annotated[float | None, typer.Option(help="Of ciwae: the weight of the ELBO in it.")]
Alpha = Annotated[float | None, typer.Option(help="Of renyi: the order of the bound.")]

TAKES = {"num_outer": ("miwae", "piwae"), "beta": ("ciwae",), "alpha": ("renyi",)}
ELBO_DRAWS = 1000


@with_common()
def gradients(
    common: Common,
    run: Run,
    estimators: Estimators = "elbo,stl,iwae,dreg",
    particles: Particles = "1,8,64",
    replicates: Replicates = 1000,
    num_data: NumData = 64,
    part: Part = "test",
    reference: Reference = "auto",
    per_parameter: PerParameter = False,
    checkpoints: Checkpoints = False,
    log_evidence: LogEvidence = "ais",
    num_outer: NumOuter = None,
    beta: Beta = None,
    alpha: Alpha = None,
) -> None:
    """Measure gradient estimators of a run, encoder and decoder apart, and say which to use with how many draws."""
    import pyrovae as pv
    from pyrovae.results.gradient_sentences import gradient_sentences, has_verdict

    names = [name.strip() for name in estimators.split(",")]
    options: dict[str, Any] = {"estimators": names, "num_particles": numbers(particles), "seed": common.seed}
    options |= {"num_replicates": replicates, "reference": reference, "per_parameter": per_parameter}
    options["options"] = _own_options(names, {"num_outer": num_outer, "beta": beta, "alpha": alpha})
    with bad_inputs(common.errors):
        vae, x, _ = open_part(run, part, num_data, common.device, common.dtype)
        files = kept_epochs(run) if checkpoints else {}
        models = {epoch: pv.load(file).to(x.device, x.dtype).eval() for epoch, file in files.items()}

    def measure() -> "xr.DataTree":
        with progress(common.console) as bars, bad_options():
            if models:
                return _along_training(models, x, bars, log_evidence, options)
            return _measured(vae, x, stage_bar(bars, "gradients"), options)

    settings = {
        **options,
        "part": part,
        "num_data": num_data,
        "epochs": list(models),
        "log_evidence": log_evidence,
    }
    tree = common.measured(run, "gradients", settings, measure)
    folder = common.folder(run)
    drawn = _draw(tree, folder)
    show = partial(print_gradients, tree=tree, title=f"Gradients of {len(x)} data ({part})")
    common.tell(tree, ("gradients.nc", *drawn), folder, show)
    if not has_verdict(tree):
        raise common.without_verdict(text for text in gradient_sentences(tree) if "no verdict" in text)


def _own_options(names: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """{estimator: its options}, of what was given."""
    found: dict[str, dict[str, Any]] = {}
    for option, value in given.items():
        takers = [name for name in TAKES[option] if name in names]
        if value is not None and not takers:
            raise typer.BadParameter(
                f"--{option.replace('_', '-')} is for {' and '.join(TAKES[option])}, got {', '.join(names)}"
            )
        for name in takers if value is not None else ():
            found.setdefault(name, {})[option] = value
    return found or None


def _measured(vae: "VAE", x: "Tensor", tell: Any, options: Mapping[str, Any]) -> "xr.DataTree":
    import pyrovae as pv

    return pv.gradient_statistics(vae.model, vae.guide, x, progress=tell, **options)


def _along_training(
    models: "Mapping[int, VAE]", x: "Tensor", bars: "Progress", method: str, options: Mapping[str, Any]
) -> "xr.DataTree":
    """The gradients of every checkpoint on the same data with the same seed, along `epoch`, and `history`."""
    import pyrovae as pv
    from pyrovae.results import build_tree
    from pyrovae.results.training_path import path_group, stack_epochs

    evidence: list[tuple[Evidence, Evidence]] = []
    trees = []
    for epoch, vae in models.items():
        target = pv.Target(vae.model, vae.guide, x)
        elbo = pv.log_evidence(target, "elbo", num_samples=ELBO_DRAWS, seed=options["seed"])
        evidence.append((elbo, pv.log_evidence(target, method, seed=options["seed"])))
        trees.append(_measured(vae, x, stage_bar(bars, f"epoch {epoch}"), options))
    elbos, values = zip(*evidence, strict=True)
    stacked = stack_epochs([tree["gradients"].to_dataset() for tree in trees], list(models))
    path = path_group(list(models), elbos, values)
    attrs = {str(name): value for name, value in trees[-1].attrs.items()}
    return build_tree({"gradients": stacked, "history": path}, attrs)


def _draw(tree: "xr.DataTree", folder: Path) -> list[str]:
    """Write the figures that the tree allows, and name them."""
    from pyrovae.reporting import plots

    drawers: dict[str, Callable[[xr.DataTree], Figure]] = {
        "gradient_snr.png": plots.plot_gradient_snr,
        "gradient_cost.png": plots.plot_gradient_cost,
    }
    if "history" in tree.children:
        drawers["training_path.png"] = plots.plot_training_path
    drawn = []
    for name, draw in drawers.items():
        try:
            plots.save_figure(draw(tree), folder / name)
        except ValueError:
            continue  # all numbers are NaN: the table says why
        drawn.append(name)
    return drawn
