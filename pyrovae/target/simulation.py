"""Draws of (z, data) from a model: which observed site belongs to which argument, and data in the arguments' shapes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyrovae.failures import explaining
from pyrovae.seeding import seeded
from pyrovae.target.draws import Simulation
from pyrovae.target.handlers import Score, Simulate, is_observed

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = ["draw_data", "fill_arguments", "match_arguments", "name_arguments"]


def draw_data(target: "Target", num_samples: int) -> Simulation:
    """As `Target.simulate`."""
    base = target.rows([i % target.num_data for i in range(num_samples)])
    handler = Simulate() if target._simulate is None else Score({}, target.plate)
    with torch.no_grad(), explaining(target.data, "model"):
        base._run(target.model, 1, handler)
        z, _ = base._unconstrain(handler.values, 1)
        if isinstance(handler, Simulate):
            with seeded(0):
                places = match_arguments(target)
            data = fill_arguments(base.data, handler.drawn, places)
        else:
            drawn = target._simulate(handler.values, *base.data)  # type: ignore[misc]
            data = drawn if isinstance(drawn, tuple) else (drawn,)
    return Simulation(z[0], data)


def match_arguments(target: "Target") -> dict[int, str]:
    """{argument: observed site}: the observed site whose value equals the argument.

    Raises:
        ValueError: if a site's value equals no argument, or if several could be meant.
    """
    places: dict[int, str] = {}
    for name, equal in _equal_arguments(target).items():
        if len(equal) != 1 or equal[0] in places:
            raise ValueError(
                f"cannot tell which argument of the model is drawn at the observed site {name!r}: its value equals "
                f"{len(equal)} of the {len(target.data)} arguments"
                + (", one already taken by another site" if equal and equal[0] in places else "")
                + "; pass simulate=, a callable (values, *data) -> data, to Target"
            )
        places[equal[0]] = name
    return places


def name_arguments(target: "Target") -> list[str]:
    """A name for each argument: that of the one observed site with its values, else "argument_i"."""
    equal = _equal_arguments(target)
    names = [f"argument_{i}" for i in range(len(target.data))]
    for i in range(len(names)):
        sites = [name for name, arguments in equal.items() if arguments == [i]]
        if len(sites) == 1:
            names[i] = sites[0]
    return names


def _equal_arguments(target: "Target") -> dict[str, list[int]]:
    """The arguments whose values an observed site has, for every observed site that is no factor."""
    few = target.rows(range(min(target.num_data, 16)))
    tracer = TraceMessenger()
    few._run(few.model, 1, tracer)
    return {
        name: [i for i, x in enumerate(few.data) if _same_values(x, site["value"])]
        for name, site in tracer.trace.nodes.items()
        if site["type"] == "sample" and is_observed(site) and not site_is_factor(site)
    }


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
