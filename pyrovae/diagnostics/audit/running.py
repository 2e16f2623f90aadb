"""One block of an audit, stage by stage: what fails or finds no time is told, and takes nothing with it."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.diagnostics.audit.plan import Block, Plan
from pyrovae.diagnostics.audit.settings import STAGES
from pyrovae.diagnostics.audit.stages import NEEDED_GROUPS, STAGE_FUNCTIONS, WITH_TRUTH, Groups, Work
from pyrovae.diagnostics.evidence_table import ENDS
from pyrovae.results.merging import join_methods
from pyrovae.target import Target

__all__ = ["Deadline", "Progress", "examine", "of_blocks", "passes", "versions"]

Progress = Callable[[str, int, int], None]
Keep = Callable[[xr.DataTree], None]

_CAME_TO = {"failed": "failed", "skipped": "was skipped", "ok": "left nothing", "": "was not run"}
PACKAGES = ("pyrovae", "torch", "pyro-ppl", "arviz-stats")


class Deadline:
    """The instant after which no stage is begun; None: never.

    >>> Deadline(None).has_passed(), Deadline(0.0).has_passed()
    (False, True)
    """

    def __init__(self, max_seconds: float | None) -> None:
        self.max_seconds = max_seconds
        self._start = time.monotonic()

    def has_passed(self) -> bool:
        """Whether the seconds are spent."""
        return self.max_seconds is not None and time.monotonic() - self._start >= self.max_seconds


def passes(plan: Plan, deadline: Deadline) -> Iterator[tuple[str, ...]]:
    """The stages of one way through all blocks after another.

    All stages at once; but under a deadline, the first stage of every block, then up to the second, so that what is
    cheap is there for all data before anything dear begins.
    """
    stages = plan.settings.stages
    for count in range(1, len(stages)) if deadline.max_seconds is not None else ():
        if deadline.has_passed():
            break
        yield stages[:count]
    yield stages


def examine(
    plan: Plan,
    block: Block,
    stages: tuple[str, ...],
    known: xr.DataTree | None = None,
    *,
    deadline: Deadline,
    tell: Progress,
    keep: Keep | None = None,
) -> xr.DataTree:
    """Run those of `stages` that the block has and that are not done.

    Args:
        plan, block: what to examine.
        stages: names of `STAGES`; the others are left for another call.
        known: what an earlier call gave. Stages that ended well or failed are not run again; skipped ones are.
        deadline: when to begin no other stage.
        tell: called with (stage, done, total).
        keep: called with the tree after each stage.

    Returns:
        A result tree with the attributes `stages` and `stage_seconds`.

    Raises:
        ValueError: what `Target` refuses.
    """
    todo = [name for name in block.stages if name in stages and _status(known, name) in ("", "skipped")]
    if known is not None and not todo:
        return known
    examined, is_kept = _Examined(plan, block, known), False
    for name in todo:
        reason = examined.hindrance(name)
        if not reason and deadline.has_passed():
            reason = f"max_seconds = {deadline.max_seconds:g} were spent before it began"
        if reason:
            examined.skip(name, reason)
        else:
            examined.run(name, tell)
        is_kept = keep is not None and not reason
        if keep is not None and not reason:
            keep(examined.tree())
    tree = examined.tree()
    if keep is not None and not is_kept:
        keep(tree)
    return tree


def of_blocks(progress: Progress | None, blocks: Sequence[Block], index: int) -> Progress:
    """Progress in one of several blocks, told as progress in all that have the stage."""

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            having = [i for i, block in enumerate(blocks) if stage in block.stages]
            progress(stage, having.index(index) * total + done, len(having) * total)

    return tell


def versions() -> dict[str, str]:
    """The versions that decide the numbers."""
    return {package: version(package) for package in PACKAGES}


def _status(tree: xr.DataTree | None, stage: str) -> str:
    stages = json.loads(tree.attrs["stages"]) if tree is not None else {}
    return str(stages.get(stage, {}).get("status", ""))


class _Examined:
    """A block under examination: its groups, with data counted from 0, and what became of each stage."""

    def __init__(self, plan: Plan, block: Block, known: xr.DataTree | None) -> None:
        self.plan, self.block = plan, block
        self.target: Target = plan.target(block)
        self.stages: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.groups: Groups = {}
        if known is not None:
            self.stages = json.loads(known.attrs["stages"])
            self.seconds = json.loads(known.attrs["stage_seconds"])
            self.groups = {
                name: _moved(node.to_dataset(), -block.first) for name, node in known.children.items()
            }
        elif block.number > 0:
            self.groups = {"observed_data": _observed(self.target)}

    def hindrance(self, name: str) -> str:
        """Why a stage cannot be run, or ""."""
        missing = {
            stage: self.stages.get(stage, {}).get("status", "")
            for group, stage in NEEDED_GROUPS.get(name, {}).items()
            if group not in self.groups
        }
        return "; ".join(
            f"it needs the stage {stage}, which {_CAME_TO[status]}" for stage, status in missing.items()
        )

    def skip(self, name: str, reason: str) -> None:
        self._end(name, "skipped", reason)

    def run(self, name: str, tell: Progress) -> None:
        """Run a stage; what it measured before it failed stays."""
        start = time.perf_counter()
        tell(name, 0, 1)
        work = Work(
            self.target,
            self.plan.settings,
            self.groups,
            self.plan.seed(self.block, STAGES.index(name)),
            self.block.first,
            lambda done, total: tell(name, done, total),
        )
        try:
            for made in STAGE_FUNCTIONS[name](work):
                self._put(made)
        except (
            Exception
        ) as error:  # whatever a user's model or a device raises is this stage's, not the audit's
            self._end(name, "failed", " ".join(f"{type(error).__name__}: {error}".split()))
        else:
            self._end(name, "ok", "")
        self.seconds[name] = time.perf_counter() - start
        tell(name, 1, 1)

    def tree(self) -> xr.DataTree:
        """What was measured so far, with data counted as in all data."""
        groups = {name: _moved(made, self.block.first) for name, made in self.groups.items()}
        return results.build_tree(groups, self._attributes())

    def _end(self, name: str, status: str, reason: str) -> None:
        self.stages[name] = {"status": status, "reason": reason}
        if name == "reference" and status != "ok":
            count = self.target.num_data
            words = {
                "verdict": np.full(count, "no verdict"),
                "reason": np.full(count, f"{name} {status}: {reason}"),
            }
            self._put({"diagnostics": results.group("diagnostics", words)})

    def _put(self, made: Mapping[str, xr.Dataset]) -> None:
        """Add groups; of one that is there already, other variables or methods stay."""
        for name, group in made.items():
            old = self.groups.get(name)
            if old is None:
                self.groups[name] = group
            elif name == "evidence":
                order = [*self.plan.settings.methods, *ENDS]
                self.groups[name] = join_methods(
                    old.drop_vars(["bias", "bias_std_error"], errors="ignore"), group, order
                )
            else:
                self.groups[name] = old.assign(group.data_vars).assign_attrs(group.attrs)
        if "sandwich" in self.groups:
            for name, renewed in WITH_TRUTH.items():
                if name in self.groups:
                    self.groups[name] = renewed(self.groups[name], self.groups["sandwich"])

    def _attributes(self) -> dict[str, Any]:
        target, settings = self.target, self.plan.settings
        return {
            "seed": settings.seed,
            "num_samples": settings.num_samples,
            "num_data": target.num_data if self.block.number > 0 else 0,
            "latent_dim": target.dim,
            "dtype": str(target.dtype).removeprefix("torch."),
            "device": str(target.device),
            "machine": platform.machine(),
            "versions": versions(),
            "seconds": sum(self.seconds.values()),
            "settings": settings.as_dict(),
            "stages": self.stages,
            "stage_seconds": self.seconds,
        }


def _observed(target: Target) -> xr.Dataset:
    data = (x.cpu().numpy() for x in target.data)
    return results.group("observed_data", dict(zip(target.argument_names(), data, strict=True)))


def _moved(made: xr.Dataset, by: int) -> xr.Dataset:
    """The data of a group counted from another start."""
    return made.assign_coords(datum=made["datum"].values + by) if "datum" in made.coords else made
