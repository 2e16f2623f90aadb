"""Several processes that train one model: their group under torchrun, sums over them, and agreement among them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from pyrovae.training.divergence import TrainingDiverged

if dist.is_available():
    # Its functions keep the group that is up when they are defined, which an optimizer's step brings about at the
    # latest; and a group that outlives its end aborts the process now and then.
    import_module("torch.distributed.nn")

__all__ = ["NoDeviceError", "RankFailed", "Ranks", "has_begun", "joined", "note_begun", "process_group"]

TIMEOUT = timedelta(minutes=10)
"""For which a rank waits for the others: longer than a program takes to compile."""


class RankFailed(RuntimeError):  # noqa: N818, as TrainingDiverged
    """Another rank failed, so that this one cannot go on; the message is that rank's."""


class NoDeviceError(ValueError):
    """There are fewer GPUs than ranks on this machine."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default it is alone, and no method waits for anything.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        group: of all of them, for tensors on the CPU; None: the default one.

    >>> Ranks().total(2.0), Ranks().any(False)
    (2.0, False)
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def place(self) -> tuple[int, int]:
        """(rank, size)."""
        return self.rank, self.size

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of tensors over all ranks, the same bits on each: one collective a dtype and device."""
        if self.size == 1:
            return [*tensors]
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, tensor in enumerate(tensors):
            kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
        summed = [*tensors]
        for indices in kinds.values():
            bucket = torch.cat([tensors[i].reshape(-1) for i in indices])
            dist.all_reduce(bucket)
            for i, part in zip(indices, bucket.split([tensors[i].numel() for i in indices]), strict=True):
                summed[i] = part.view(tensors[i].shape)
        return summed

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """The sums of numbers over all ranks."""
        if self.size == 1:
            return [*numbers]
        found = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(found, group=self.group)
        return found.tolist()

    def total(self, number: float) -> float:
        """The sum of a number over all ranks."""
        return self.totals([number])[0]

    def any(self, answer: bool) -> bool:
        """Whether some rank says yes."""
        return self.largest(float(answer)) > 0.0

    def largest(self, number: float) -> float:
        """The largest of a number over all ranks."""
        if self.size == 1:
            return number
        found = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return found.item()

    def from_first(self, value: Any) -> Any:
        """What the first rank has."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def check_same(self, what: str, facts: Mapping[str, Any]) -> None:
        """Compare {name: value} with what the first rank has.

        Raises:
            ValueError: on a rank where they differ.
            RankFailed: on the others.
        """
        first = self.from_first(dict(facts))
        with self.together():
            for name in {**first, **facts}:
                there, here = first.get(name, "absent"), facts.get(name, "absent")
                if there != here:
                    raise ValueError(
                        f"every rank must have the same {what}, but {name} is {there!r} on rank 0 and {here!r} on rank "
                        f"{self.rank}"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails on all ranks where it fails on one, so that none waits for another that is gone.

        Raises:
            TrainingDiverged: as it did on another rank.
            RankFailed: another rank failed otherwise.
        """
        try:
            yield
        except Exception as error:
            self._tell(error)
            raise
        self._tell(None)

    def _tell(self, error: Exception | None) -> None:
        if not self.any(error is not None):
            return
        own = None if error is None else (str(error), _place_of(error))
        said: list[Any] = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(said, own, group=self.group)
        if error is not None:
            return
        rank, (message, place) = next((rank, each) for rank, each in enumerate(said) if each is not None)
        if place is None:
            raise RankFailed(f"rank {rank} failed: {message}")
        raise TrainingDiverged(f"on rank {rank}: {message}", *place)


def _place_of(error: Exception) -> tuple[Any, ...] | None:
    return (error.epoch, error.batch, error.site) if isinstance(error, TrainingDiverged) else None


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of the process group that is up; alone where there is none."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield Ranks()
        return
    place = dist.get_rank(), dist.get_world_size()
    if "cpu:" in dist.get_backend_config():
        yield Ranks(*place)  # without a reference to the group, which must not outlive its end
        return
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    try:
        yield Ranks(*place, group)
    finally:
        dist.destroy_process_group(group)


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Within the block, the process group that torchrun describes by environment variables; none without torchrun.

    Gloo on the CPU, NCCL on GPUs, of which each rank takes the one of its number on its machine. The keys of the
    rendezvous bear the number of the restart: those of the processes before would be stale.

    Args:
        device: "cpu", or "cuda".

    Raises:
        NoDeviceError: there are fewer GPUs than ranks on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device.startswith("cuda"):
        if torch.cuda.device_count() <= local:
            raise NoDeviceError(
                f"each rank wants a GPU of its own, but this machine has {torch.cuda.device_count()} for rank {local} "
                "of it (from 0); lower --nproc-per-node, or pass --device cpu"
            )
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=_store(rank, size), rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        with joined() as ranks:
            yield ranks
            ranks.any(False)  # a barrier: who leaves early takes the rendezvous along
    finally:
        dist.destroy_process_group()


def _store(rank: int, size: int) -> Any:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    store = _tcp_store(size, is_host=rank == 0 and not _has_agent_store())
    return PrefixStore(f"attempt{_num_restarts()}", store)


def _tcp_store(size: int | None, is_host: bool) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, size, is_master=is_host, timeout=TIMEOUT)


def _has_agent_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _num_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def note_begun(folder: str | os.PathLike[str]) -> None:
    """Let `has_begun` say so in the processes that torchrun starts in the place of these, if they fail.

    It is noted in the store of torchrun's agent, which lives as long as that launch: nothing of it is left to another.
    """
    if _has_agent_store():
        _tcp_store(None, is_host=False).set(_begun(folder), "")


def has_begun(folder: str | os.PathLike[str]) -> bool:
    """Whether torchrun started this process in the place of one that failed after it began a run in a folder."""
    if not _has_agent_store() or _num_restarts() == 0:
        return False
    return bool(_tcp_store(None, is_host=False).check([_begun(folder)]))


def _begun(folder: str | os.PathLike[str]) -> str:
    return f"pyrovae has begun {Path(folder).resolve()}"
