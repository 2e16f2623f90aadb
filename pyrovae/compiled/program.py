"""A function of tensors as one tensor program: traced once, then compiled."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

__all__ = ["FallbackWarning", "Program", "compiled", "traced"]

Function = Callable[..., Any]
Run = Callable[..., list[Tensor]]
Compare = Callable[[list[Tensor], list[Tensor]], None]


class FallbackWarning(UserWarning):
    """A function could not be traced or compiled, or then gave other results, and runs a slower way."""


@dataclass(frozen=True)
class Program:
    """A function as `traced` or `compiled` made it, called as the function is with tensors of the same shapes.

    Results carry no gradient: differentiate inside the function. Tensors that the function captured, such as a
    module's parameters, are held by reference: what an optimizer, `load_state_dict` or another in-place change does
    to them is seen. A tensor put in another's place (`module.to(...)`, `module.weight = ...`) is not, nor anything
    else that the function reads in Python (`module.training`, `tensor.tolist()`): make a new program then. A call
    with tensors of another number, shape, dtype or device than those of the examples raises ValueError.
    """

    route: str
    """"captured" in a CUDA graph, "compiled", "traced", or "untraced": the function itself."""
    reason: str
    """Why the route is not the one that was asked for; "" if it is."""
    graph: fx.GraphModule | None = field(repr=False)
    """The operations that were traced, None if the function runs untraced."""
    run: Run = field(repr=False)
    """The program on its tensors one by one, without checks: contiguous ones, under `torch.no_grad()`."""
    _inputs: tuple[Any, ...] = field(repr=False)
    _outputs: TreeSpec = field(repr=False)

    def __call__(self, *args: Any) -> Any:
        leaves, form = _flatten(args)
        if form != self._inputs:
            raise ValueError(f"the program was made for {self._inputs[1:]}, not {form[1:]}: make another one")
        with torch.no_grad():
            return tree_unflatten(self.run(*leaves), self._outputs)

    @property
    def captured(self) -> tuple[Tensor, ...]:
        """The tensors from outside that the trace reads, such as a module's parameters."""
        if self.graph is None:
            return ()
        names = [node.target for node in self.graph.graph.nodes if node.op == "get_attr"]
        return tuple(t for t in (getattr(self.graph, name) for name in names) if isinstance(t, Tensor))


def traced(function: Function, *examples: tuple[Any, ...], compare: Compare | None = None) -> Program:
    """Trace a function into plain tensor operations, replayed without Pyro, its handlers or autograd.

    The function runs once on tensors without values, and its operations are recorded, with those of
    `torch.autograd.grad` inside it. Then the trace must agree with the function on all examples, to epsilon^(2/3)
    of the largest value, given the same random numbers. A function that reads values in Python (a branch on z,
    `.item()` of a parameter), or disagrees, runs untraced: `route`, `reason` and one FallbackWarning say so.

    Args:
        function: of tensors, or tuples and dicts of tensors, to tensors likewise; without side effects.
        *examples: tuples of arguments, at least two, of the same shapes. The first is traced with; the others must
            hold other values, so that a dependence on values shows.
        compare: called with the flat results of the program and of the function, raises where they differ by more
            than rounding; None: as said above.

    Raises:
        ValueError: fewer than two examples, or examples of different shapes.
        TypeError: an argument or a result that is no tensor. The function's own errors on the examples pass.

    >>> slope = torch.func.grad(lambda z: z.square().sum())
    >>> program = traced(slope, (torch.randn(2),), (torch.randn(2),))
    >>> program.route, program(torch.ones(2))
    ('traced', tensor([2., 2.]))
    """
    return _build(function, examples, {"traced": _trace}, compare or _compare)


def compiled(function: Function, *examples: tuple[Any, ...], compare: Compare | None = None) -> Program:
    """Trace a function as `traced` does, then compile it with Inductor, and on CUDA capture it as a CUDA graph.

    Arguments and errors are those of `traced`. Compiling takes seconds: worth it for thousands of calls. Without a
    compiler, or if its program disagrees, the trace is replayed, with one FallbackWarning. On CUDA, captured tensors
    must also stay at their addresses: `p.data = ...` is not seen.
    """
    stages: dict[str, Function] = {"traced": _trace, "compiled": _compile}
    if any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves(examples)):
        stages["captured"] = _capture
    return _build(function, examples, stages, compare or _compare)


def _build(
    function: Function, examples: tuple[Any, ...], stages: Mapping[str, Function], compare: Compare
) -> Program:
    if len(examples) < 2:
        raise ValueError("give two examples or more, (args), (other args): to trace with, and to compare at")
    flat, forms = zip(*map(_flatten, examples), strict=True)
    if any(form != forms[0] for form in forms):
        raise ValueError(f"the examples must have the same shapes, not {[form[1:] for form in forms]}")

    def run(*leaves: Tensor) -> list[Tensor]:
        return _flatten(function(*tree_unflatten(leaves, forms[0][0])))[0]

    best, route, reason, graph = run, "untraced", "", None
    with torch.no_grad():
        expected, (outputs, *_) = zip(*(_flatten(_seeded(function, each)) for each in examples), strict=True)
        for name, stage in stages.items():
            try:
                faster = stage(best, flat[0])
                for leaves, wanted in zip(flat, expected, strict=True):
                    compare(_seeded(faster, leaves), wanted)
            except Exception as error:  # of any kind: the slower way is right
                reason = f"not {name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                warnings.warn(f"a program runs {route}, {reason}", FallbackWarning, stacklevel=3)
                break
            best, route = faster, name
            graph = faster if graph is None else graph
    return Program(route, reason, graph, best, forms[0], outputs[0])


def _flatten(tree: Any) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The tensors of a tree, with the strides that Inductor's programs insist on, and the form of the tree."""
    leaves, spec = tree_flatten(tree)
    if others := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]:
        raise TypeError(f"a program takes and gives tensors, not {others[0]}: close over what is no tensor")
    leaves = [leaf.detach().contiguous() for leaf in leaves]
    return leaves, (spec, *((tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves))


def _seeded(function: Function, args: Any) -> Any:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return function(*args)


def _compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        rtol = torch.finfo(theirs.dtype).eps ** (2 / 3) if theirs.is_floating_point() else 0.0
        atol = rtol * float(theirs.nan_to_num(0.0, 0.0, 0.0).abs().max()) if rtol and theirs.numel() else 0.0
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)


class _RefuseReads(TorchDispatchMode):
    """Refuse to hand a tensor's value to Python, unless the function made the tensor from a number itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags and getattr(args[0], "constant", None) is None:
            raise RuntimeError("the function reads a tensor's value in Python, as a branch or .item() does")
        return func(*args, **(kwargs or {}))


def _trace(run: Run, example: list[Tensor]) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    def refusing(*leaves: Tensor) -> list[Tensor]:
        with _RefuseReads():
            return run(*leaves)

    graph = make_fx(refusing, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _compile(graph: fx.GraphModule, example: list[Tensor]) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates parts of its own that the compiler imports
        from torch import _inductor

        # Inductor rewrites the graph it is given; this one shares only the captured tensors.
        own = fx.GraphModule(graph, copy.deepcopy(graph.graph))
        return _inductor.compile(own, [*example], options={"fallback_random": True, "size_asserts": False})


def _capture(run: Run, example: list[Tensor]) -> Run:
    captured: Any = torch.cuda.make_graphed_callables(run, tuple(leaf.clone() for leaf in example))
    return lambda *leaves: [result.clone() for result in captured(*leaves)]  # the next call overwrites them
