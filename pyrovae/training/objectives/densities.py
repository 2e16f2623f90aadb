"""Log densities of a Pyro model and guide for each particle and datum, with the gradient that an objective wants."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.training.objectives.handlers import DataPlate, RowDensities, sum_rows

__all__ = [
    "Call",
    "Graph",
    "PathFactor",
    "Program",
    "Rows",
    "Values",
    "check_sites",
    "row_densities",
    "value_and_slopes",
]

Graph = Literal["total", "path", "score"]
Program = Callable[..., Any]
Values = Mapping[str, Tensor]


class Rows(NamedTuple):
    """Log densities `[rows]`, particle by particle, and the number of data that the plate stands for, if it says so."""

    log_p: Float[Tensor, " rows"]
    log_q: Float[Tensor, " rows"]
    full_size: int | None


class PathFactor:
    """A factor `[rows]`, set before the backward pass, of the gradient that the densities send into the draws."""

    def __init__(self) -> None:
        self.factor: Tensor | None = None

    def watch(self, value: Tensor, axis: int) -> Tensor:
        """A new tensor of the same values; `axis`, counted from the left, is that of the rows."""
        # A new tensor also hides z from the caches of flows, which know the inverse only of the very tensor they made.
        seen = value.view_as(value)
        if seen.requires_grad:
            seen.register_hook(partial(self._scaled, [-1] + [1] * (value.dim() - axis - 1)))
        return seen

    def _scaled(self, shape: list[int], gradient: Tensor) -> Tensor | None:
        return None if self.factor is None else gradient * self.factor.reshape(shape)


class Call(NamedTuple):
    """A model or guide to be called: its data plate, its arguments, and whether its sites may be scaled."""

    plate: DataPlate
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    takes_scale: bool = False

    def score(self, program: Program, role: str, values: Values | None = None, **needs: Any) -> RowDensities:
        """Run the program, with its latents at `values` or drawn, and sum its densities."""
        densities = RowDensities(self.plate, role, values, takes_scale=self.takes_scale, **needs)
        with self.plate, densities:
            program(*self.args, **self.kwargs)
        return densities


def row_densities(model: Program, guide: Program, call: Call, graph: Graph, path: PathFactor) -> Rows:
    """Draw once for each row from the guide, and score both programs.

    What autograd sees depends on `graph`. "total": everything, z = z(phi) in log p and log q; "path": log q with its
    parameters held fixed, so that phi enters through the draws alone; "score": draws that are constants, so that
    phi enters through log q alone. `path` scales the gradient into the draws: in "total" that of log p, in "path"
    that of log p and log q.
    """
    q = call.score(guide, "guide", **_NEEDS[graph])
    z, log_q = dict(q.values), q.log_prob
    if graph != "score":
        z = {name: path.watch(value, q.axes[name]) for name, value in z.items()}
    if graph == "path" and z and torch.is_grad_enabled():
        log_q = _along_draws(log_q, z, q.axes, partial(call.score, guide, "guide"))
    for_model = {name: value for name, value in z.items() if name not in q.auxiliary}
    p = call.score(model, "model", for_model)
    check_sites(p.values, for_model)
    return _joined(p.log_prob, log_q, call.plate)


def _constant(value: Tensor) -> Tensor:
    # A copy, since a flow's cache would supply the inverse of the very tensor it made, without its gradient.
    return value.detach().clone()


_REPARAMETERIZED = {"wanted": "draws with a gradient (rsample)"}
_NEEDS: dict[str, Any] = {"total": _REPARAMETERIZED, "path": _REPARAMETERIZED, "score": {"change": _constant}}


def _along_draws(
    log_q: Tensor, z: Values, axes: Mapping[str, int], score: Callable[[Values], RowDensities]
) -> Tensor:
    """`log_q` as a function of the draws alone: its value, and its slope in `z`, whatever parameters it has."""
    points = {name: value.detach() for name, value in z.items()}
    _, slopes = value_and_slopes(lambda points: score(points).log_prob, points)
    moving = log_q.detach()
    for name, slope in slopes.items():
        moving = moving + sum_rows(slope * (z[name] - z[name].detach()), axes[name])
    return moving


def value_and_slopes(density: Callable[[Values], Tensor], points: Values) -> tuple[Tensor, dict[str, Tensor]]:
    """The density of each row at `points`, which are constants, and its gradient in its own points; both detached.

    Points on which it does not depend have no slope.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:  # under vmap or torch.func.grad

        def total(points: Values) -> tuple[Tensor, Tensor]:
            value = density(points)
            return value.sum(), value

        slopes, value = torch.func.grad(total, has_aux=True)(dict(points))
        return value.detach(), {name: slope.detach() for name, slope in slopes.items()}
    # This small graph is used at once: it must not be made again together with that of the chunk.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        variables = {name: value.detach().requires_grad_() for name, value in points.items()}
        value = density(variables)
        if not value.requires_grad:
            return value, {}
        slopes = torch.autograd.grad(value.sum(), list(variables.values()), allow_unused=True)
    named = zip(variables, slopes, strict=True)
    return value.detach(), {name: slope for name, slope in named if slope is not None}


def _same(saved: Tensor) -> Tensor:
    return saved


def _joined(log_p: Any, log_q: Any, plate: DataPlate) -> Rows:
    if not isinstance(log_p, Tensor):
        raise ValueError(
            f"the model has no observed and no latent site inside the plate {plate.name!r}; put its "
            "pyro.sample statements into it, or name the right plate"
        )
    if not isinstance(log_q, Tensor):
        log_q = torch.zeros_like(log_p)
    return Rows(log_p, log_q, plate.full_size)


def check_sites(in_model: Mapping[str, Tensor], in_guide: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both have drawn the same latent sites."""
    if in_model.keys() != in_guide.keys():
        odd = sorted(in_model.keys() ^ in_guide.keys())
        raise ValueError(
            f"model and guide must draw the same latent sites, but {odd[0]!r} is only in the "
            f"{'model' if odd[0] in in_model else 'guide'}; add it to the other, or mark what only the guide needs "
            'with infer={"is_auxiliary": True}'
        )
