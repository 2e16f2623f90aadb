"""`pyrovae merge RUN`: the blocks that shards of `pyrovae audit` left, as one result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae.cli.common import AsJson, Common, Quiet
from pyrovae.cli.runs import write_text
from pyrovae.cli.show import BAD_INPUT, FAILED, print_error, print_summary

if TYPE_CHECKING:
    import xarray as xr

    from pyrovae.results.record import Gate

__all__ = ["FailOn", "blocks_folder", "finish", "gates_of", "merge"]

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

GATE_FAILED = 1
SMALL = 1 << 31  # bytes of blocks up to which the result is one netCDF file, which is made in memory


def merge(run: Folder, fail_on: FailOn = "", as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Put the blocks of an audit together: audit.nc (audit.zarr if they are more than 2 GiB) and audit.json."""
    finish(run, Common(as_json=as_json, quiet=quiet), gates_of(fail_on))


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


def finish(folder: Path, common: Common, gates: "Sequence[Gate]") -> None:
    """Merge, write, show, and exit as the gates and the verdicts say.

    Raises:
        typer.Exit: blocks are missing, damaged or of another audit; a gate failed; or no datum has a verdict.
    """
    from pyrovae.results.blocks import BlockError
    from pyrovae.results.record import audit_record, has_verdict

    try:
        tree, name = _merged(folder)
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
        _print_stages(common, record["stages"])
        common.console.print(f"Written to {folder}: {name}, audit.json.", markup=False, highlight=False)
    code = _gated(common, gates, record["rows"])
    if code or not has_verdict(tree):
        raise typer.Exit(code or FAILED)


def _merged(folder: Path) -> "tuple[xr.DataTree, str]":
    """The merged result, read back, and the name of its file; what an earlier merge left under the other is removed."""
    from pyrovae.results import read, read_lazily
    from pyrovae.results.blocks import merge_blocks

    blocks = blocks_folder(folder)
    size = sum(path.stat().st_size for path in blocks.glob("block-*.nc"))
    if size > SMALL:
        merge_blocks(blocks, folder / "audit.zarr")
        (folder / "audit.nc").unlink(missing_ok=True)
        return read_lazily(folder / "audit.zarr"), "audit.zarr"
    merge_blocks(blocks, folder / "audit.nc")
    return read(folder / "audit.nc"), "audit.nc"


def _print_stages(common: Common, stages: dict[str, dict[str, str]]) -> None:
    """The stages that gave nothing, or not all."""
    for name, stage in stages.items():
        if stage["status"] != "ok":
            told = f"- No verdict of the stage {name}, {stage['status']}: {stage['reason']}."
            common.console.print(told, markup=False, highlight=False)


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
