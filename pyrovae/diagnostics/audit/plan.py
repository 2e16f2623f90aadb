"""What is audited, cut into blocks: each block of data has its own seed and its own result."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from pyrovae.diagnostics.audit.settings import MODEL_STAGES, Settings
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target
from pyrovae.target.checks import check_data

__all__ = ["Block", "Plan", "Rows"]

NUM_PROBED = 2  # data and draws by which a model and guide are known again


@runtime_checkable
class Rows(Protocol):
    """Data that are read a slice at a time: a tensor, or anything with a length whose slices are tensors."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Block(NamedTuple):
    """Some data of an audit, from `first` to before `last`; block 0 is about the model, and lent the first data."""

    number: int
    first: int
    last: int
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A model, its guide, their data and the settings of an audit; never touches more than a block of the data.

    Args:
        make_target: `Target` with model, guide and its options, that lacks the data.
        data: each with as many rows.
        settings: what to do.

    Raises:
        ValueError: no data, or of different lengths.

    >>> Plan(Target, (torch.zeros(5, 2),), Settings(stages=("weights",), block_size=3)).blocks[-1]
    Block(number=2, first=3, last=5, stages=('weights',))
    """

    make_target: Callable[..., Target]
    data: tuple[Rows, ...]
    settings: Settings

    def __post_init__(self) -> None:
        sizes = [len(x) for x in self.data]
        if not sizes or min(sizes) == 0 or len(set(sizes)) > 1:
            raise ValueError(
                f"an audit needs data, each argument with the same number of rows, but the arguments have {sizes} "
                "rows: pass the arguments of model and guide after them, audit(model, guide, x), of a VAE "
                "audit(vae.model, vae.guide, x), and what all data share by closure"
            )

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.data[0])

    @property
    def blocks(self) -> list[Block]:
        """The model's block, if a stage is about it, then the blocks of data, if a stage is about them."""
        size, stages = self.settings.block_size, self.settings.stages
        own = tuple(name for name in stages if name in MODEL_STAGES)
        others = tuple(name for name in stages if name not in MODEL_STAGES)
        found = [Block(0, 0, min(size, self.num_data), own)] if own else []
        starts = range(0, self.num_data, size) if others else ()
        return found + [
            Block(1 + i, first, min(first + size, self.num_data), others) for i, first in enumerate(starts)
        ]

    def check_data(self, blocks: Sequence[Block]) -> None:
        """Refuse data that are not finite tensors, before any work on the others.

        Raises:
            ValueError, TypeError: as `Target`, with the block where positions are counted from.
        """
        for block in blocks:
            with _counted_from(block):
                check_data(self.rows(block))

    def rows(self, block: Block) -> tuple[Any, ...]:
        """The data of a block."""
        return tuple(x[block.first : block.last] for x in self.data)

    def target(self, block: Block) -> Target:
        """The target of a block.

        Raises:
            ValueError: what `Target` refuses; positions in it are counted from `block.first`, which it then says.
        """
        with _counted_from(block):
            return self.make_target(*self.rows(block))

    def seed(self, block: Block, stage: int) -> int:
        """The seed of one stage in one block."""
        return block_seed(self.settings.seed, block.number, stage)

    def rows_sha256(self, block: Block) -> str:
        """Fingerprint of the data of a block: type, shape and bytes."""
        digest = hashlib.sha256()
        for x in self.rows(block):
            array = x.detach().cpu().contiguous()
            digest.update(f"{array.dtype} {list(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def probe(self) -> list[float]:
        """Fingerprint of model and guide, to be compared by closeness: log densities of draws for the first data."""
        target = self.target(Block(0, 0, min(NUM_PROBED, self.num_data), ()))
        with seeded(0):
            z, log_q = target.sample_guide(NUM_PROBED)
        values = torch.stack([log_q, target.log_joint(z)]).double().cpu().numpy()
        return [float(value) for value in np.ravel(values)]


@contextmanager
def _counted_from(block: Block) -> Iterator[None]:
    """What is refused in a later block says which data it is about."""
    try:
        yield
    except ValueError as error:
        if block.first == 0:
            raise
        raise ValueError(
            f"in the data {block.first} to {block.last - 1}, there counted from 0: {error}"
        ) from error
