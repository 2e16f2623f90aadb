"""Where the latent sites of a model lie in z; refuses what is not a model and an amortized guide of N data."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyrovae.failures import explaining
from pyrovae.target.checks import check_guide_sites, check_model_sites, check_same_sites
from pyrovae.target.handlers import ReadLatents, bijection, is_latent, is_real, plate_dim, rows_first

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = ["Layout", "read_layout"]


class Layout(NamedTuple):
    """The D unconstrained coordinates: their columns, and for each site the axis of its rows and its other axes."""

    columns: dict[str, slice]
    axes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    is_real: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def dim(self) -> int:
        """D."""
        return max(columns.stop for columns in self.columns.values())

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """{site: value} of `rows` `[rows, D]`, where every support is the real line."""
        return {
            name: rows[:, columns].reshape(-1, *self.shapes[name]).movedim(0, self.axes[name])
            for name, columns in self.columns.items()
        }

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([rows_first(values[name], self.axes[name]) for name in self.columns], 1)


def read_layout(target: "Target") -> Layout:
    """Run guide and model on a few of the data, check every site, and read where each latent lies.

    Raises:
        ValueError: for whatever a Target must refuse; the sentence says what was found and what to do.
    """
    if isinstance(target.guide, AutoGuide):
        raise ValueError(
            f"{type(target.guide).__name__} is not amortized: it holds parameters for exactly these data; write a "
            "guide that computes each latent from the data, such as an encoder network"
        )
    few = target.rows(range(min(target.num_data, 16)))
    guide_trace = _trace_few(few, target, few.guide, "guide")
    model_trace = _trace_few(few, target, few.model, "model", ReplayMessenger(guide_trace))
    check_model_sites(model_trace, target.plate)
    check_guide_sites(guide_trace, target.plate, few.num_data)
    _check_parameters(model_trace, few, "model")
    _check_parameters(guide_trace, few, "guide")
    check_same_sites(model_trace, guide_trace)
    return _layout(few, model_trace, guide_trace)


def _trace_few(few: "Target", target: "Target", program: Any, role: str, *handlers: Any) -> Trace:
    """The trace of a program on a few data; a program that runs on all the data but not on some is refused."""
    tracer = TraceMessenger()
    try:
        with torch.no_grad(), explaining(few.data, role):
            few._run(program, 1, tracer, *handlers)
    except Exception as error:
        if few.num_data < target.num_data and _runs(target, program):
            raise ValueError(_NOT_ROW_BY_ROW.format(role, target.num_data, few.num_data)) from error
        raise
    return tracer.trace


_NOT_ROW_BY_ROW = (
    "the {0} runs on all {1} data but not on {2} of them: its sizes are fixed to these data (a pyro.param or a plate "
    "with one row per datum); compute everything from the arguments, row by row"
)


def _runs(target: "Target", program: Any) -> bool:
    try:
        with torch.no_grad():
            target._run(program, 1)
    except Exception:
        return False
    return True


def _check_parameters(trace: Trace, few: "Target", role: str) -> None:
    unknown = [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "param" and name not in few._params and not _of_module(site["value"])
    ]
    if unknown:
        raise ValueError(
            f"the {role} reads pyro.param {', '.join(map(repr, unknown))}, for which Target has no value: pass "
            "params=, for instance fit(...).params or {name: value} of pyro.get_param_store().items()"
        )


def _of_module(value: Tensor) -> bool:
    """Whether a parameter lives in a module (which holds its value) and not in Pyro's global store alone."""
    unconstrained = getattr(value, "unconstrained", lambda: value)()
    return isinstance(unconstrained, nn.Parameter)


def _layout(few: "Target", model_trace: Trace, guide_trace: Trace) -> Layout:
    values = {name: site["value"] for name, site in guide_trace.nodes.items() if site["type"] == "sample"}
    reader = ReadLatents(values, few.plate)
    with torch.no_grad():
        few._run(few.model, 1, reader)
    columns, axes, shapes, start = {}, {}, {}, 0
    for name, u in reader.coordinates.items():
        site = model_trace.nodes[name]
        axes[name] = len(site["fn"].batch_shape) + plate_dim(site, few.plate)
        shape = list(bijection(site["fn"]).inverse_shape(site["fn"].shape()))
        del shape[axes[name]]
        shapes[name], columns[name] = tuple(shape), slice(start, start + u.shape[1])
        start += u.shape[1]
    real = all(is_real(site["fn"].support) for site in model_trace.nodes.values() if _is_latent_node(site))
    return Layout(columns, axes, shapes, real, u.dtype, u.device)


def _is_latent_node(site: Any) -> bool:
    return site["type"] == "sample" and is_latent(site)
