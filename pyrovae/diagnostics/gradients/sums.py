"""What a block of gradients leaves behind: sums over replicates, for every part, from which moments are made."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.diagnostics.gradients.parameters import Part
from pyrovae.seeding import seeded

__all__ = ["SKETCH_SIZE", "Reducer", "Sums", "make_reducer"]

SKETCH_SIZE = 256
"""Dimensions of the random sketch whose covariance gives the spectrum."""


class Sums(NamedTuple):
    """Weighted sums over the replicates of a block; deviations d = g - center.

    Levels are partitions of the coordinates: by kind, and by parameter if asked for. Parts are those of all levels.
    """

    deviation: Float[Tensor, " p"]
    unit: Float[Tensor, "levels p"]
    """Of g / |g|, part by part."""
    square: Float[Tensor, " parts"]
    """Of |d|^2."""
    along: Float[Tensor, " parts"]
    """Of the projection of d on the given direction, and of its square."""
    along_square: Float[Tensor, " parts"]
    sketch: Float[Tensor, "parts s"]
    outer: Float[Tensor, "parts s s"]


class Reducer(NamedTuple):
    """Sums over replicates for given parts; the sketch's signs are fixed."""

    parts: list[Part]
    columns: list[slice]
    """Of each parameter, in order."""
    signs: Float[Tensor, " p"]

    def __call__(
        self,
        gradients: Sequence[Tensor],
        weight: Float[Tensor, " r"],
        center: Float[Tensor, " p"],
        direction: Float[Tensor, " p"],
    ) -> Sums:
        """Sums of the gradients `[r, *shape]` of each parameter, in order, weighted by 0 or 1."""
        rows = [each.reshape(len(weight), -1) for each in gradients]
        members = [self._members(part) for part in self.parts]
        unit = _units(rows, members, weight)
        pieces = []
        for g, c in zip(rows, self.columns, strict=True):
            d = g - center[c]
            own = weight @ d, _squared_norm(d), d @ direction[c]
            pieces.append((*own, _sketched(d.mul_(self.signs[c]), c.start)))
        deviation, square, along, sketch = zip(*pieces, strict=True)
        along_parts = _added(along, members)
        sketches = _folded(_added(sketch, members), self.parts) * weight[:, None]
        return Sums(
            deviation=torch.cat(deviation),
            unit=unit,
            square=_added(square, members) @ weight,
            along=along_parts @ weight,
            along_square=along_parts.square() @ weight,
            sketch=sketches.sum(1),
            outer=sketches.mT @ sketches,
        )

    def _members(self, part: Part) -> list[int]:
        """The parameters that make up a part."""
        start, stop = part.columns.start, part.columns.stop
        return [i for i, c in enumerate(self.columns) if start <= c.start and c.stop <= stop]


def make_reducer(parts: list[Part], sizes: Sequence[int], like: Tensor) -> Reducer:
    """A reducer for parameters of these sizes, of the dtype and device of `like`; its signs are always the same."""
    stops = list(accumulate(sizes))
    columns = [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    with seeded(0):
        signs = torch.randint(2, (stops[-1],)) * 2 - 1
    return Reducer(parts, columns, signs.to(like))


def _units(
    rows: Sequence[Tensor], members: Sequence[Sequence[int]], weight: Tensor
) -> Float[Tensor, "levels p"]:
    norms = _added([_squared_norm(g) for g in rows], members).sqrt()
    scales = torch.where(norms > 0, weight / norms, 0.0)
    pieces = [scales[part] @ rows[i] for part, own in enumerate(members) for i in own]
    return torch.cat(pieces).reshape(-1, sum(g.shape[1] for g in rows))


def _added(each: Sequence[Tensor], members: Sequence[Sequence[int]]) -> Tensor:
    """What parameters have, summed over those of each part."""
    return torch.stack([torch.stack([each[i] for i in own]).sum(0) for own in members])


def _squared_norm(rows: Float[Tensor, "r p"]) -> Float[Tensor, " r"]:
    return torch.linalg.vector_norm(rows, dim=1).square()


def _sketched(signed: Float[Tensor, "r p"], start: int) -> Float[Tensor, "r w"]:
    """A count sketch (Charikar, Chen and Farach-Colton 2002): coordinate start + j adds to sum (start + j) mod 257.

    257 is a prime, so that neither the rows nor the columns of a weight fall together.
    """
    width, size = SKETCH_SIZE + 1, signed.shape[1]
    whole = size // width * width
    sums = torch.nn.functional.pad(signed[:, whole:], (0, width - size + whole))
    if whole:
        sums = sums + signed[:, :whole].unflatten(1, (-1, width)).sum(1)
    return sums.roll(start % width, 1)


def _folded(sums: Float[Tensor, "parts r w"], parts: Sequence[Part]) -> Float[Tensor, "parts r s"]:
    """Each part counts from its own first coordinate, so that a small one is kept whole; 257 sums become 256."""
    width = sums.shape[-1]
    own = [each.roll(-part.columns.start % width, 1) for each, part in zip(sums, parts, strict=True)]
    sums = torch.stack(own)
    return torch.cat([sums[..., :1] + sums[..., -1:], sums[..., 1:-1]], -1)
