"""The parameters that a model and a guide use, whose they are, and a way to run both at other values of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrovae.training.objectives.owner import owner

__all__ = ["KINDS", "FixedPlate", "Parameter", "Part", "Problem", "Substitute", "cut_parts", "read_problem"]

KINDS = ("encoder", "decoder", "shared")
"""Parameters that only the guide uses, that only the model uses, and that both use."""

Program = Callable[..., Any]


class Parameter(NamedTuple):
    """A leaf of the graph of log p(x, z) or log q(z | x): what a gradient step would move."""

    name: str
    kind: str
    leaf: Tensor


class Part(NamedTuple):
    """Some of the P coordinates of a gradient, side by side, all of one kind."""

    name: str
    kind: str
    columns: slice


class Problem(NamedTuple):
    """A model, a guide, their data, and their parameters in the order of the coordinates of a gradient."""

    model: Program
    guide: Program
    data: tuple[Tensor, ...]
    plate: str
    full_size: int
    """The number of data that the plate stands for, by which a loss is divided."""
    parameters: tuple[Parameter, ...]
    is_reparameterized: bool

    @property
    def num_data(self) -> int:
        """N, the rows of the data."""
        return len(self.data[0])

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors, in order."""
        return [parameter.leaf for parameter in self.parameters]

    @property
    def num_coordinates(self) -> int:
        """P."""
        return sum(leaf.numel() for leaf in self.leaves)


def read_problem(
    model: Program, guide: Program, data: tuple[Tensor, ...], plate: str, params: Mapping[str, Tensor]
) -> Problem:
    """Run guide and model once in the present parameter store, and find the parameters that they use.

    Args:
        params: {name: constrained value} of function-style parameters, which are put into the store.

    Raises:
        ValueError: a plate of another size than the data; a `pyro.param` without a value; no parameter at all.
    """
    _traces(model, guide, data)  # registers parameters, whose values can then be set
    store = pyro.get_param_store()
    _check_params(params)
    for name in params.keys() & set(store.keys()):
        store[name] = params[name].detach().clone()
    guide_trace, model_trace = _traces(model, guide, data)
    latents = list(_latents(guide_trace))
    in_guide = _leaves([*(site["value"] for site in latents), guide_trace.log_prob_sum()])
    in_model = _leaves([model_trace.log_prob_sum()])
    found = _sorted(in_guide, in_model, _names(model, guide))
    if not found:
        raise ValueError(
            "neither model nor guide uses a tensor that requires a gradient; decorate the methods of a PyroModule with "
            "@pyro_method, call pyro.module for a torch module, or use pyro.param"
        )
    full_size = _full_size(model_trace, plate, len(data[0]))
    return Problem(
        model, guide, data, plate, full_size, found, all(site["fn"].has_rsample for site in latents)
    )


def cut_parts(parameters: Sequence[Parameter], per_parameter: bool) -> list[Part]:
    """One part a kind, in the order of `KINDS`, then one a parameter if asked for."""
    parts: list[Part] = []
    start = 0
    for name, kind, leaf in parameters:
        parts.append(Part(name, kind, slice(start, start + leaf.numel())))
        start += leaf.numel()
    whole = []
    for kind in KINDS:
        own = [part.columns for part in parts if part.kind == kind]
        if own:
            whole.append(Part(kind, kind, slice(own[0].start, own[-1].stop)))
    return whole + (parts if per_parameter else [])


class Substitute(TorchFunctionMode):
    """Let every torch function see `values` in the place of `leaves`, wherever a program keeps them.

    Unlike `torch.func.functional_call` it needs no module: closures, and `pyro.param` with its constraints, will do.
    """

    def __init__(self, leaves: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = {id(leaf): value for leaf, value in zip(leaves, values, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not Tensor.__hash__:
            args = self._value(args)
            kwargs = {name: self._value(each) for name, each in kwargs.items()}
        return func(*args, **kwargs)

    def _value(self, each: Any) -> Any:
        if isinstance(each, Tensor):
            return self.values.get(id(each), each)
        # By hand, since this runs at every operation and torch's trees are slow.
        return type(each)(map(self._value, each)) if type(each) in (list, tuple) else each


class FixedPlate(Messenger):
    """Keep a plate that is declared to be a subsample from drawing indices: the data are given."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] == self.plate and msg["value"] is None:
            fn = msg["fn"]
            msg["value"] = torch.arange(fn.size if fn.subsample_size is None else fn.subsample_size)


def _traces(model: Program, guide: Program, data: tuple[Tensor, ...]) -> tuple[Trace, Trace]:
    """The trace of the guide, and that of the model at its draws, taken as constants."""
    guide_trace = poutine.trace(guide).get_trace(*data)
    values = {site["name"]: site["value"].detach() for site in _latents(guide_trace)}
    model_trace = poutine.trace(poutine.condition(model, values)).get_trace(*data)
    return guide_trace, model_trace


def _latents(trace: Trace) -> Iterator[Any]:
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site):
            yield site


def _check_params(params: Mapping[str, Tensor]) -> None:
    store = pyro.get_param_store()
    for name, value in store.named_parameters():
        if not isinstance(value, nn.Parameter) and name not in params:
            raise ValueError(
                f"model or guide reads pyro.param {name!r}, for which there is no value: pass params=, for instance "
                "fit(...).params or {name: value} of pyro.get_param_store().items()"
            )


def _full_size(trace: Trace, plate: str, num_data: int) -> int:
    for site in trace.nodes.values():
        for frame in site.get("cond_indep_stack", ()):
            if frame.name != plate:
                continue
            if frame.size != num_data:
                raise ValueError(
                    f"the plate {plate!r} has {frame.size} rows but there are {num_data} data: write "
                    f"pyro.plate({plate!r}, len(x)), or with a subsample subsample_size=len(x)"
                )
            return int(frame.full_size or frame.size)
    return num_data


def _leaves(roots: Sequence[Any]) -> dict[int, Tensor]:
    """The tensors that a gradient of the roots would reach, found in their graph; in order of discovery."""
    pending: list[Any] = [getattr(root, "grad_fn", None) for root in roots]
    found = {id(root): root for root in roots if getattr(root, "is_leaf", False) and root.requires_grad}
    seen = {None, *pending}
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        for child, _ in getattr(node, "next_functions", ()):
            if child not in seen:
                seen.add(child)
                pending.append(child)
    return found


def _names(model: Program, guide: Program) -> dict[int, str]:
    """Names by identity: of the modules that own model and guide, else those of the parameter store."""
    store = {id(leaf): name.replace("$$$", ".") for name, leaf in pyro.get_param_store().named_parameters()}
    modules = filter(None, map(owner, (guide, model)))
    owned = {id(leaf): name for module in modules for name, leaf in module.named_parameters()}
    return store | owned


def _sorted(
    in_guide: Mapping[int, Tensor], in_model: Mapping[int, Tensor], names: Mapping[int, str]
) -> tuple[Parameter, ...]:
    """Kind by kind, in the order in which modules and store name them; others after these."""
    order = {key: place for place, key in enumerate(names)}
    found = sorted({**in_guide, **in_model}.items(), key=lambda item: order.get(item[0], len(order)))
    parameters: list[Parameter] = []
    for number, (key, leaf) in enumerate(found):
        if not leaf.numel():
            continue
        kind = KINDS[2] if key in in_guide and key in in_model else KINDS[0 if key in in_guide else 1]
        parameters.append(Parameter(names.get(key, f"parameter[{number}]"), kind, leaf))
    return tuple(sorted(parameters, key=lambda parameter: KINDS.index(parameter.kind)))
