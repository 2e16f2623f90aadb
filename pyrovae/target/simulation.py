"""Which observed site belongs to which argument of the model, and new data in those arguments' shapes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyrovae.target.handlers import is_observed

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = ["fill_arguments", "match_arguments"]


def match_arguments(target: "Target") -> dict[int, str]:
    """{argument: observed site}: the observed site whose value equals the argument.

    Raises:
        ValueError: if a site's value equals no argument, or if several could be meant.
    """
    few = target.rows(range(min(target.num_data, 16)))
    tracer = TraceMessenger()
    few._run(few.model, 1, tracer)
    places: dict[int, str] = {}
    for name, site in tracer.trace.nodes.items():
        if site["type"] != "sample" or not is_observed(site) or site_is_factor(site):
            continue
        equal = [i for i, x in enumerate(few.data) if _same_values(x, site["value"])]
        if len(equal) != 1 or equal[0] in places:
            raise ValueError(
                f"cannot tell which argument of the model is drawn at the observed site {name!r}: its value equals "
                f"{len(equal)} of the {len(few.data)} arguments"
                + (", one already taken by another site" if equal and equal[0] in places else "")
                + "; pass simulate=, a callable (values, *data) -> data, to Target"
            )
        places[equal[0]] = name
    return places


def fill_arguments(
    data: tuple[Tensor, ...], drawn: Mapping[str, Tensor], places: Mapping[int, str]
) -> tuple[Tensor, ...]:
    """The arguments with the drawn sites in their places, in the arguments' own shapes and dtypes."""
    return tuple(
        drawn[places[i]].reshape(x.shape).to(x.dtype) if i in places else x for i, x in enumerate(data)
    )


def _same_values(x: Tensor, value: object) -> bool:
    if value is x:
        return True
    if not isinstance(value, Tensor) or value.numel() != x.numel():
        return False
    return bool((value.reshape(-1).to(torch.float64) == x.reshape(-1).to(torch.float64)).all())
