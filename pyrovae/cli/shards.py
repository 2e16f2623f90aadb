"""Which part of the work is this process's: --shard, or what torchrun or Slurm say."""

import os
from collections.abc import Mapping

import typer

__all__ = ["find_shard"]


def find_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(i, n), i from 0: of `text`, "i/n"; else of torchrun, of a Slurm array, or of a Slurm step; else (0, 1).

    Raises:
        typer.BadParameter: not of that form, or i is not below n; or a Slurm array with gaps.

    >>> find_shard("2/8"), find_shard(None, {"RANK": "1", "WORLD_SIZE": "4"})
    ((2, 8), (1, 4))
    >>> find_shard(None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"})
    (2, 3)
    """
    told = text if text is not None else _from_environment(environment)
    index, _, count = told.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise typer.BadParameter(f"a shard is i/n with i from 0 to n - 1, such as 0/4, got {told!r}")
    return int(index), int(count)


def _from_environment(environment: Mapping[str, str]) -> str:
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return f"{environment['RANK']}/{environment['WORLD_SIZE']}"
    if "SLURM_ARRAY_TASK_ID" in environment and "SLURM_ARRAY_TASK_COUNT" in environment:
        return _of_array(environment)
    # A batch script has the SLURM_PROCID and SLURM_NTASKS of its job, but is one process: tasks are of srun's steps.
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        return f"{environment['SLURM_PROCID']}/{environment['SLURM_STEP_NUM_TASKS']}"
    return "0/1"


def _of_array(environment: Mapping[str, str]) -> str:
    """The place of a task among those from MIN to MAX, every STEP-th."""
    task, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT"))
    first, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", 0), ("STEP", 1))
    )
    last = int(environment.get("SLURM_ARRAY_TASK_MAX", first + (count - 1) * step))
    if task not in range(first, last + 1, step) or len(range(first, last + 1, step)) != count:
        raise typer.BadParameter(
            f"the {count} tasks of this Slurm array, from {first} to {last}, have gaps, so that task {task} cannot "
            f"tell which shard is its own: pass --shard i/{count}, with another i from 0 to {count - 1} in each"
        )
    return f"{(task - first) // step}/{count}"
