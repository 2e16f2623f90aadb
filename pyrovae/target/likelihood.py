"""Terms of log p(x, z) that the owner of a model prepares for given data: taken where they are the model's own."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.target.draws import Terms

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = ["Prepared", "PreparedTermsWarning", "prepared_terms"]

ALLOWED = 1e-2  # nats, of an error in float32
ALLOWED_DOUBLE = 1e-6
ROUNDING = 16.0  # units of rounding of log p(x | z), allowed where they are more
NUM_PROBES = 4  # draws each of the guide, of the guide widened and of the prior
WIDENING = 2.0

PreparedTerms = Callable[[Tensor], tuple[Tensor, Tensor]]
Prepare = Callable[..., PreparedTerms | None]


class PreparedTermsWarning(UserWarning):
    """The terms that the owner of a model prepares are not those of the model, which is run itself."""


class Prepared:
    """The terms of some data as the owner of the model prepares them, at their first use."""

    def __init__(self, prepare: Prepare, data: Sequence[Tensor], near: Tensor | None = None) -> None:
        self.prepare, self.data, self.near = prepare, data, near
        self._terms: list[PreparedTerms | None] = []

    def __call__(self, z: Float[Tensor, "k n d"]) -> Terms | None:
        """log p(z) and log p(x | z); None where the owner prepares nothing for such data."""
        if not self._terms:
            options = {} if self.near is None else {"near": self.near}
            self._terms.append(self.prepare(*self.data, **options))
        terms = self._terms[0]
        if terms is None:
            return None
        with pyro.validation_enabled(False):
            return Terms(*terms(z))

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a Target prepares anew: what is prepared refers to the owner, not to the owner's copy."""
        return {**self.__dict__, "_terms": []}

    def with_data(self, data: Sequence[Tensor], rows: Any = None) -> "Prepared":
        """The same for other data; for some `rows` of these, near the same z."""
        near = None if self.near is None or rows is None else self.near[rows]
        return Prepared(self.prepare, data, near)

    def expanded(self, z: Float[Tensor, "k n d"]) -> "Prepared":
        """The same for z near these draws, where its owner knows a faster way that is as right at all of them."""
        if "near" not in inspect.signature(self.prepare).parameters:
            return self
        near = Prepared(self.prepare, self.data, z.mean(0))
        with torch.no_grad():
            wanted, found = self(z), near(z)
        if wanted is None or found is None:
            return self
        excess = [_excess(mine, theirs) for mine, theirs in zip(found, wanted, strict=True)]
        return self if any(bool(each.any()) for each in excess) else near


def prepared_terms(target: "Target") -> Prepared | None:
    """What the owner of the model offers for the target's data, if it agrees with the model.

    The owner is the object that the model is a bound method of; it offers by a method

        prepare_terms(*data) -> (z [K, N, D] -> (log p(z) [K, N], log p(x | z) [K, N])), or None,

    both with respect to Lebesgue measure on the unconstrained z, differentiable in z, row by row, and right for the
    parameters as they are at each call. At a few draws of the guide, of the guide widened and of the prior each term
    must be the model's to 0.01 nat (1e-6 in float64), or to 16 units of rounding where log p(x | z) is so large that
    its own rounding is that; else the answer is None, with a PreparedTermsWarning.

    A method that takes `near=` too may offer a faster way for z near there `[N, D]`; samplers take it where it is found
    to be as right.
    """
    owner = getattr(target.model, "__self__", None)
    prepare: Any = getattr(owner, "prepare_terms", None)
    if not callable(prepare):
        return None
    few = target.rows(range(min(target.num_data, 16)))
    z = _probes(few)
    wanted, found = few.log_terms(z), Prepared(prepare, few.data)(z)
    if found is None:
        return None
    excess = [_excess(mine, theirs) for mine, theirs in zip(found, wanted, strict=True)]
    if any(bool(each.any()) for each in excess):
        name, error = max(
            zip(("log p(z)", "log p(x | z)"), excess, strict=True), key=lambda e: float(e[1].max())
        )
        warnings.warn(
            f"{type(owner).__name__}.prepare_terms departs from the model's own {name} by {float(error.max()):.3g} "
            "nats at draws of the guide or the prior, so the model itself is run for every density, which is slower: "
            "correct it, or pass prepare=False to Target",
            PreparedTermsWarning,
            stacklevel=3,
        )
        return None
    return Prepared(prepare, target.data)


def _probes(few: "Target") -> Float[Tensor, "k n d"]:
    near = few.sample_guide(NUM_PROBES).z
    mean = near.mean(0)
    return torch.cat([near, mean + WIDENING * (near - mean), few.sample_prior(NUM_PROBES)])


def _excess(found: Float[Tensor, "k n"], wanted: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """The error where it is more than is allowed, else 0."""
    error = torch.where(found == wanted, 0.0, (found - wanted).abs()).nan_to_num(torch.inf, torch.inf)
    # far from the best of the draws the terms of a density are larger than their sum
    size = wanted.abs() + (wanted.amax(0) - wanted)
    least = ALLOWED_DOUBLE if wanted.dtype == torch.float64 else ALLOWED
    allowed = (ROUNDING * torch.finfo(wanted.dtype).eps * size).nan_to_num(0.0, 0.0).clamp(min=least)
    return torch.where(error > allowed, error, 0.0)
