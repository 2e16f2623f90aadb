"""Which part of the work is this process's: --shard, or what torchrun or Slurm say."""

import os
from collections.abc import Mapping

import typer

__all__ = ["find_shard"]


def find_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(i, n), i from 0: of `text`, "i/n"; else of torchrun, of a Slurm array, or of a Slurm step; else (0, 1).

    Raises:
        typer.BadParameter: not of that form, or i is not below n.

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
        first, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("MIN", 0), ("STEP", 1))
        )
        return f"{(int(environment['SLURM_ARRAY_TASK_ID']) - first) // step}/{environment['SLURM_ARRAY_TASK_COUNT']}"
    if "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        return f"{environment['SLURM_PROCID']}/{environment['SLURM_NTASKS']}"
    return "0/1"
