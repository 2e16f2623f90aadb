"""`pyrovae merge RUN`: the blocks that shards of `pyrovae audit` left, as one result."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import AsJson, Common, Quiet
from pyrovae.cli.runs import write_text
from pyrovae.cli.show import BAD_INPUT, FAILED, failures, print_error, print_summary

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

    from pyrovae.results.record import Gate

__all__ = ["FailOn", "blocks_folder", "blocks_kept", "finish", "gates_of", "merge"]

FailOn = Annotated[
    str,
    typer.Option(
        help="Conditions, with commas between, each of which fails the audit (exit 1; 3 if it was not measured), such "
        "as khat>0.7,rhat>1.01,sd_ratio<0.5. Names: khat (the largest), khat_share, rhat, ess_bulk, ess_tail, "
        "converged, closed (numbers of data), gap (nats, by the best that was measured), sandwich_gap, log_evidence, "
        "mean_error, sd_ratio, wasserstein2, simulated_gap, inference_gap, approximation_gap, amortization_gap; "
        "others as audit.json has them."
    ),
]
Folder = Annotated[
    Path, typer.Argument(help="The run, or the --out of the shards: what holds the folder audit.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for audit.nc and audit.json; by default RUN.")]

GATE_FAILED = 1
SMALL = 1 << 31  # bytes of blocks up to which the result is one netCDF file, which is made in memory
STAGE_OPTIONS = {
    "num_chains": ("reference", "num_chains"),
    "posterior_samples": ("reference", "num_samples"),
    "warmup_steps": ("reference", "warmup_steps"),
    "min_ess": ("reference", "min_ess"),
    "target_accept_prob": ("reference", "target_accept_prob"),
    "num_temperatures": ("sandwich", "num_temperatures"),
    "num_simulations": ("calibration", "num_simulations"),
}
"""Options of `pyrovae audit` that are one stage's: the stage, and its own name for them."""


def merge(
    run: Folder, fail_on: FailOn = "", out: Out = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Put the blocks of an audit together: audit.nc (audit.zarr if they are more than 2 GiB) and audit.json."""
    common, gates = Common(out=out, as_json=as_json, quiet=quiet), gates_of(fail_on)
    with failures(), blocks_kept(common.errors, run):
        finish(run, common, gates)


def blocks_folder(folder: Path) -> Path:
    """Where the blocks of an audit are."""
    return folder / "audit"


def gates_of(text: str) -> "list[Gate]":
    """The gates of --fail-on.

    Raises:
        typer.BadParameter: one that is none.
    """
    from pyrovae.results.record import parse_gates

    try:
        return parse_gates(text)
    except ValueError as error:
        raise typer.BadParameter(f"--fail-on: {error}") from error


@contextmanager
def blocks_kept(errors: "Console", folder: Path) -> Iterator[None]:
    """What the machine refuses, such as a full disk, ends the command; it says that the blocks are kept."""
    try:
        yield
    except OSError as error:
        print_error(
            errors,
            f"{error}; the blocks that were measured are kept in {blocks_folder(folder)}: once that is mended, the "
            "same command goes on",
        )
        raise typer.Exit(FAILED) from error


def finish(run: Path, common: Common, gates: "Sequence[Gate]") -> None:
    """Merge the blocks of a run, write to --out or the run, show, and exit as the gates and the verdicts say.

    Raises:
        typer.Exit: blocks are missing, damaged or of another audit; a gate failed; or no datum has a verdict.
    """
    from pyrovae.results.blocks import BlockError
    from pyrovae.results.record import audit_record, keyed_rows

    folder = common.out or run
    try:
        tree, name = _merged(run, folder)
    except (BlockError, FileNotFoundError) as error:
        print_error(common.errors, error)
        raise typer.Exit(BAD_INPUT) from error
    record = audit_record(tree)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_text(folder / "audit.json", text)
    if common.as_json:
        typer.echo(text, nl=False)
    else:
        print_summary(common.console, tree, f"Audit of {record['num_data']} data")
        common.console.print(f"Written to {folder}: {name}, audit.json.", markup=False, highlight=False)
    is_without = _print_stages(common, tree, record)
    code = _gated(common, gates, keyed_rows(tree))
    if code or is_without:
        raise typer.Exit(code or FAILED)


def _merged(run: Path, folder: Path) -> "tuple[xr.DataTree, str]":
    """The merged result, read back, and the name of its file; what an earlier merge left under the other is removed."""
    from pyrovae.results import read, read_lazily
    from pyrovae.results.blocks import merge_blocks
    from pyrovae.results.places import remove, settle

    blocks = blocks_folder(run)
    is_large = sum(path.stat().st_size for path in blocks.glob("block-*.nc")) > SMALL
    name, other = ("audit.zarr", "audit.nc") if is_large else ("audit.nc", "audit.zarr")
    if blocks.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
    merge_blocks(blocks, folder / name, partial(_command, run))
    settle(folder / other)
    remove(folder / other)
    return (read_lazily if is_large else read)(folder / name), name


def _command(run: Path, header: Mapping[str, Any]) -> dict[str, str]:
    """How to measure a run again, as a report reads it; nothing for a factory.

    Raises:
        BlockError: the run was trained anew since.
    """
    from pyrovae.results.blocks import BlockError
    from pyrovae.results.gathering import MODEL_FILE, model_sha256

    source, settings = header["source"], header["settings"]
    if "part" not in source:
        return {}
    if (run / MODEL_FILE).is_file() and model_sha256(run) != source["model"]:
        raise BlockError(
            f"the blocks in {blocks_folder(run)} are of another model than the run that is in {run} now: measure anew "
            f"by pyrovae audit {run} --resume none"
        )
    about = {
        "command": "audit",
        "num_data": header["num_data"],
        **{name: source[name] for name in ("model", "part", "dtype")},
        **{name: settings[name] for name in ("stages", "num_samples", "block_size", "seed")},
        **{
            option: settings[stage][name]
            for option, (stage, name) in STAGE_OPTIONS.items()
            if name in settings[stage]
        },
    }
    return {"command": json.dumps(about, sort_keys=True)}


def _print_stages(common: Common, tree: "xr.DataTree", record: Mapping[str, Any]) -> bool:
    """Say which stages gave nothing, or not all; as errors, if no datum has a verdict, which is the answer."""
    from pyrovae.results.record import has_verdict

    is_without = not has_verdict(tree)
    told = [
        f"- No verdict of the stage {name}, {stage['status']}: {stage['reason']}."
        for name, stage in record["stages"].items()
        if stage["status"] != "ok"
    ]
    if is_without and record["stages"].get("reference", {}).get("status") == "ok":
        told.append(
            f"- No verdict of the stage reference: it converged for none of {record['num_data']} data."
        )
    for line in told:
        (common.errors if is_without else common.console).print(line, markup=False, highlight=False)
    return is_without


def _gated(common: Common, gates: "Sequence[Gate]", rows: dict[str, dict[str, Any]]) -> int:
    """Say which gates failed; the exit code that they make."""
    outcomes = {gate: gate.fails(rows) for gate in gates}
    for gate, fails in outcomes.items():
        value = rows.get(gate.name, {}).get("value")
        if fails is None:
            common.errors.print(f"Gate {gate}: no verdict, {gate.name} was not measured.", markup=False)
        elif fails:
            common.errors.print(f"Gate {gate} failed: {gate.name} is {value:.4g}.", markup=False)
    if True in outcomes.values():
        return GATE_FAILED
    return FAILED if None in outcomes.values() else 0
