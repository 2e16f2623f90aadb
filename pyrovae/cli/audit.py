"""`pyrovae audit RUN`: the whole examination, in stages and blocks that processes share and kills do not spoil."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import Common, with_common
from pyrovae.cli.factories import call_factory
from pyrovae.cli.measure import NumData, bad_inputs, bad_options, open_rows
from pyrovae.cli.merge import STAGE_OPTIONS, FailOn, blocks_folder, blocks_kept, finish, gates_of
from pyrovae.cli.shards import find_shard
from pyrovae.cli.show import BAD_INPUT, print_error, progress, stage_bars

if TYPE_CHECKING:
    from pyrovae.diagnostics.audit import Plan

__all__ = ["audit"]

Run = Annotated[Path | None, typer.Argument(help="Folder that `pyrovae train` wrote; or else --model.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="package.module:factory; factory() returns (model, guide, data), or (model, guide, data, options) with a "
        "dict of options of Target: plate, params, simulate, prepare. Wants --out."
    ),
]
Part = Annotated[str | None, typer.Option(help="Of a run: train, val or test; test by default.")]
Stages = Annotated[
    str | None,
    typer.Option(
        help="With commas between: calibration, predictions, weights, terms, reference, comparison, sandwich, gaps; "
        "what one needs is run too. All by default."
    ),
]
MaxSeconds = Annotated[
    float | None, typer.Option(min=0.0, help="Begin no stage after that; the same command goes on later.")
]
BlockSize = Annotated[int, typer.Option(min=1, help="Data of a block, which has its own seed and file.")]
NumSamples = Annotated[int, typer.Option(min=2, help="Draws of the guide for each datum.")]
NumChains = Annotated[int | None, typer.Option(min=2, help="HMC chains for each datum; 16 by default.")]
PosteriorSamples = Annotated[
    int | None, typer.Option(min=4, help="HMC draws kept of each chain; 500 by default.")
]
WarmupSteps = Annotated[int | None, typer.Option(min=1, help="HMC transitions before those; 200 by default.")]
MinEss = Annotated[
    float | None, typer.Option(min=1, help="ESS from which a reference counts; 400 by default.")
]
TargetAcceptProb = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=0.999,
        help="Of HMC; more makes shorter steps, where draws diverge; 0.6 by default.",
    ),
]
NumTemperatures = Annotated[int | None, typer.Option(min=1, help="Of the sandwich; 100 by default.")]
NumSimulations = Annotated[int | None, typer.Option(min=20, help="Of calibration; 10,000 by default.")]
Shard = Annotated[
    str | None,
    typer.Option(help="i/n, i from 0: every n-th block only; by default as torchrun or Slurm say, else all."),
]


@with_common(resume="auto")
def audit(
    common: Common,
    run: Run = None,
    model: Model = None,
    part: Part = None,
    num_data: NumData = None,
    stages: Stages = None,
    max_seconds: MaxSeconds = None,
    block_size: BlockSize = 256,
    num_samples: NumSamples = 1000,
    num_chains: NumChains = None,
    posterior_samples: PosteriorSamples = None,
    warmup_steps: WarmupSteps = None,
    min_ess: MinEss = None,
    target_accept_prob: TargetAcceptProb = None,
    num_temperatures: NumTemperatures = None,
    num_simulations: NumSimulations = None,
    shard: Shard = None,
    fail_on: FailOn = "",
) -> None:
    """Audit a trained guide: calibration, weights, posteriors by HMC, bounds of log p(x), gaps; resumable, in shards.

    Blocks are kept in the folder audit of the run, or of --out. A whole audit is merged into audit.nc (audit.zarr if
    it is large) and audit.json; shards are merged by `pyrovae merge`.

    Exit codes: 0 done, 1 a gate of --fail-on failed, 2 wrong options, 3 no verdict, 4 the run, the data or the blocks
    cannot be used.
    """
    mine, gates = find_shard(shard), gates_of(fail_on)
    if mine[1] > 1 and (gates or common.as_json):
        raise typer.BadParameter(
            "--fail-on and --json want the whole audit: pass them to `pyrovae merge`, not to a shard"
        )
    settings: dict[str, Any] = {
        "block_size": block_size,
        "num_samples": num_samples,
        "seed": common.seed,
        "stages": stages and tuple(name.strip() for name in stages.split(",")),
        **_of_stages(
            num_chains=num_chains,
            posterior_samples=posterior_samples,
            warmup_steps=warmup_steps,
            min_ess=min_ess,
            target_accept_prob=target_accept_prob,
            num_temperatures=num_temperatures,
            num_simulations=num_simulations,
        ),
    }
    source = partial(_of_run, part or "test") if model is None else partial(_of_factory, model, part)
    plan, about, folder = source(common, run, num_data, settings)
    with blocks_kept(common.errors, folder):
        _measure(common, plan, folder, shard=mine, source=about, max_seconds=max_seconds)
        if mine[1] == 1:
            finish(folder, common, gates)
    if mine[1] > 1:
        told = f"Shard {mine[0]} of {mine[1]} is done; when all are: pyrovae merge {folder}"
        common.console.print(told, markup=False, highlight=False)


def _of_stages(**options: Any) -> dict[str, dict[str, Any]]:
    """The options that were given, by stage."""
    found: dict[str, dict[str, Any]] = {}
    for option, (stage, name) in STAGE_OPTIONS.items():
        if options[option] is not None:
            found.setdefault(stage, {})[name] = options[option]
    return found


def _of_run(
    part: str, common: Common, run: Path | None, num_data: int | None, settings: dict[str, Any]
) -> "tuple[Plan, dict[str, Any], Path]":
    """The plan for a run, what its blocks say of their source, and the folder for them."""
    from pyrovae.results.gathering import model_sha256

    if run is None:
        raise typer.BadParameter(
            "say what to audit: a run's folder, or --model package.module:factory with --out"
        )
    with bad_inputs(common.errors):
        vae, x, _ = open_rows(run, part, num_data, common.device, common.dtype)
    plan = _plan(vae.model, vae.guide, (x,), settings)
    source = {"part": part, "dtype": str(x.dtype).removeprefix("torch."), "device": x.device.type}
    source["model"] = model_sha256(run)
    return plan, source, common.folder(run)


def _of_factory(
    model: str,
    part: str | None,
    common: Common,
    run: Path | None,
    num_data: int | None,
    settings: dict[str, Any],
) -> "tuple[Plan, dict[str, Any], Path]":
    """As `_of_run`, for --model."""
    if run is not None:
        raise typer.BadParameter("a run's folder and --model exclude each other: pass one of them")
    if common.out is None:
        raise typer.BadParameter("--model wants --out, a folder for the results")
    if part or common.dtype or common.device != "auto":
        raise typer.BadParameter(
            "--part, --device and --dtype are for a run: the factory of --model decides on those"
        )
    made = call_factory(model)
    data = tuple(x[:num_data] for x in made.data) if num_data else made.data
    plan = _plan(made.model, made.guide, data, settings, **made.options)
    return plan, {"model": model}, common.folder(common.out)


def _plan(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Any, ...],
    settings: dict[str, Any],
    **options: Any,
) -> "Plan":
    import pyrovae as pv
    from pyrovae.diagnostics.audit import plan_audit

    with bad_options():
        return plan_audit(partial(pv.Target, model, guide, **options), *data, **settings)


def _measure(common: Common, plan: "Plan", folder: Path, **options: Any) -> None:
    """Make the blocks, or end with the exit code of a bad input."""
    from pyrovae.diagnostics.audit.shards import audit_shard

    def notice(message: str) -> None:
        common.errors.print(message, style="yellow", markup=False, highlight=False)

    try:
        with progress(common.console) as bars:
            audit_shard(
                plan,
                blocks_folder(folder),
                resume=common.resume,
                progress=stage_bars(bars),
                notice=notice,
                **options,
            )
    except (ValueError, TypeError) as error:
        print_error(common.errors, error)
        raise typer.Exit(BAD_INPUT) from error
