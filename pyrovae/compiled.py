"""Run a Pyro computation as one tensor program: traced once, compiled, with its noise as an explicit input."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

__all__ = ["FallbackWarning", "Program", "compiled", "draw_noise", "traced", "with_noise"]

Function = Callable[..., Any]
Run = Callable[..., list[Tensor]]
Take = Callable[[str, Tensor, Function], Tensor]


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
    _run: Run = field(repr=False)
    _inputs: tuple[Any, ...] = field(repr=False)
    _outputs: TreeSpec = field(repr=False)

    def __call__(self, *args: Any) -> Any:
        leaves, form = _flatten(args)
        if form != self._inputs:
            raise ValueError(f"the program was made for {self._inputs[1:]}, not {form[1:]}: make another one")
        with torch.no_grad():
            return tree_unflatten(self._run(*leaves), self._outputs)


def traced(function: Function, *examples: tuple[Any, ...]) -> Program:
    """Trace a function into plain tensor operations, replayed without Pyro, its handlers or autograd.

    The function runs once on tensors without values, and its operations are recorded, with those of
    `torch.autograd.grad` inside it. Then the trace must agree with the function on all examples, to epsilon^(2/3)
    of the largest value, given the same random numbers. A function that reads values in Python (a branch on z,
    `.item()` of a parameter), or disagrees, runs untraced: `route`, `reason` and one FallbackWarning say so.

    Args:
        function: of tensors, or tuples and dicts of tensors, to tensors likewise; without side effects.
        *examples: tuples of arguments, at least two, of the same shapes. The first is traced with; the others must
            hold other values, so that a dependence on values shows.

    Raises:
        ValueError: fewer than two examples, or examples of different shapes.
        TypeError: an argument or a result that is no tensor. The function's own errors on the examples pass.

    >>> slope = torch.func.grad(lambda z: z.square().sum())
    >>> program = traced(slope, (torch.randn(2),), (torch.randn(2),))
    >>> program.route, program(torch.ones(2))
    ('traced', tensor([2., 2.]))
    """
    return _build(function, examples, {"traced": _trace})


def compiled(function: Function, *examples: tuple[Any, ...]) -> Program:
    """Trace a function as `traced` does, then compile it with Inductor, and on CUDA capture it as a CUDA graph.

    Arguments and errors are those of `traced`. Compiling takes seconds: worth it for thousands of calls. Without a
    compiler, or if its program disagrees, the trace is replayed, with one FallbackWarning. On CUDA, captured tensors
    must also stay at their addresses: `p.data = ...` is not seen.
    """
    stages: dict[str, Function] = {"traced": _trace, "compiled": _compile}
    if any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves(examples)):
        stages["captured"] = _capture
    return _build(function, examples, stages)


def with_noise(program: Function, noise: Mapping[str, Tensor]) -> Function:
    """A Pyro program whose latent sites take their base noise from `noise` instead of drawing it.

    A site runs its own `rsample`, in which only the random numbers are replaced: Normal gives loc + scale eps, with
    gradients as ever. So does any distribution that is a function of normal, uniform, exponential or Cauchy numbers:
    Gaussians with full or low-rank covariance, Laplace, Gumbel, Uniform, flows over such. Sites that have a value
    (observed, replayed) take none. Works under `vmap` over the noise and in `traced`, with Pyro's validation off.

    Args:
        program: a Pyro model or guide, or anything that runs some.
        noise: {site: noise}, as `draw_noise` gives it.

    Raises:
        NotImplementedError: when run, at a site that is no function of such numbers (Gamma, discrete, mixture).
        ValueError: when run, if a site's noise is missing, of another shape or dtype, or left over.

    >>> import pyro, pyro.distributions as dist
    >>> guide = lambda x: pyro.sample("z", dist.Normal(x, 2.0).to_event(1))
    >>> with_noise(guide, {"z": torch.tensor([1.0, -1.0])})(torch.tensor([10.0, 20.0]))
    tensor([12., 18.])
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        rest = dict(noise)

        def take(site: str, wanted: Tensor, _: Function) -> Tensor:
            given = rest.pop(site, torch.empty(0))
            if given.dim() and wanted.dim() and given.shape[-1] > wanted.shape[-1]:
                given, rest[site] = given.tensor_split([wanted.shape[-1]], -1)
            gets, wants = ((list(eps.shape), eps.dtype) for eps in (given, wanted))
            if gets != wants:
                raise ValueError(f"site {site!r} wants noise of {wants}, not {gets}: see draw_noise")
            return given

        with _Noise(take):
            result = program(*args, **kwargs)
        if rest:
            raise ValueError(f"noise of {sorted(rest)} is left over: give what draw_noise gives, no more")
        return result

    return run


def draw_noise(program: Function, *args: Any, num_replicates: int | None = None) -> dict[str, Tensor]:
    """Run a Pyro program and give the base noise of its latent sites, {site: noise}, for `with_noise`.

    With the same seed it is the noise that the program would draw by itself. A site that draws twice has both along
    the last axis: LowRankMultivariateNormal of rank R has R columns, then D. Raises as `with_noise` does.

    Args:
        program: as in `with_noise`; called with `*args`.
        num_replicates: if given, the noise has one more axis on the left, of this size; independent along it.

    >>> import pyro, pyro.distributions as dist
    >>> guide = lambda x: pyro.sample("z", dist.Normal(x, 2.0).to_event(1))
    >>> noise = draw_noise(guide, torch.zeros(5, 3), num_replicates=7)
    >>> torch.func.vmap(lambda noise: with_noise(guide, noise)(torch.zeros(5, 3)))(noise).shape
    torch.Size([7, 5, 3])
    """
    lead = () if num_replicates is None else (num_replicates,)
    noise: dict[str, Tensor] = {}

    def take(site: str, wanted: Tensor, fill: Function) -> Tensor:
        drawn = fill(wanted.new_empty(lead + wanted.shape))
        if site in noise and not (wanted.dim() and noise[site].shape[:-1] == drawn.shape[:-1]):
            raise _no_noise(site, "it draws several tensors that do not go side by side")
        noise[site] = torch.cat([noise[site], drawn], -1) if site in noise else drawn
        return drawn[0] if lead else drawn

    with _Noise(take), torch.no_grad():
        program(*args)
    return noise


def _build(function: Function, examples: tuple[Any, ...], stages: Mapping[str, Function]) -> Program:
    if len(examples) < 2:
        raise ValueError("give two examples or more, (args), (other args): to trace with, and to compare at")
    flat, forms = zip(*map(_flatten, examples), strict=True)
    if any(form != forms[0] for form in forms):
        raise ValueError(f"the examples must have the same shapes, not {[form[1:] for form in forms]}")

    def run(*leaves: Tensor) -> list[Tensor]:
        return _flatten(function(*tree_unflatten(leaves, forms[0][0])))[0]

    best, route, reason = run, "untraced", ""
    with torch.no_grad():
        expected, (outputs, *_) = zip(*(_flatten(_seeded(function, each)) for each in examples), strict=True)
        for name, stage in stages.items():
            try:
                faster = stage(best, flat[0])
                for leaves, wanted in zip(flat, expected, strict=True):
                    _compare(_seeded(faster, leaves), wanted)
            except Exception as error:  # of any kind: the slower way is right
                reason = f"not {name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                warnings.warn(f"a program runs {route}, {reason}", FallbackWarning, stacklevel=3)
                break
            best, route = faster, name
    return Program(route, reason, best, forms[0], outputs[0])


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
        return _inductor.compile(own, [*example], options={"fallback_random": True})


def _capture(run: Run, example: list[Tensor]) -> Run:
    captured: Any = torch.cuda.make_graphed_callables(run, tuple(leaf.clone() for leaf in example))
    return lambda *leaves: [result.clone() for result in captured(*leaves)]  # the next call overwrites them


LAWS = {name: getattr(Tensor, name) for name in ("normal_", "uniform_", "exponential_", "cauchy_")}
LAWS |= {"randn": Tensor.normal_, "rand": Tensor.uniform_}
"""Torch's sources of noise whose law no gradient passes through, and what fills a tensor with it."""


class _Noise(Messenger):
    """Draw latent sites by their own rsample, where `take(site, wanted, fill)` gives the random numbers."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.take = take

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None or site_is_subsample(msg):
            return
        if not msg["fn"].has_rsample:
            raise _no_noise(msg["name"], f"{type(msg['fn']).__name__} has no rsample")
        with _Source(msg["name"], self.take):
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


class _Source(TorchFunctionMode):
    def __init__(self, site: str, take: Take) -> None:
        super().__init__()
        self.site, self.take = site, take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ("rand", "randn"):
            return self.take(self.site, torch.empty(*args, **kwargs), LAWS[name])
        if name in LAWS:
            # Noise is the value that is returned; who would read the tensor itself shall notice.
            wanted = args[0].fill_(torch.nan)
            return self.take(self.site, wanted, lambda noise: LAWS[name](noise, *args[1:], **kwargs))
        if _is_random(name):
            raise _no_noise(self.site, f"it draws by torch's {name}")
        return func(*args, **kwargs)


def _is_random(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    keys = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else []
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, key).tags for key in keys)


def _no_noise(site: str, why: str) -> NotImplementedError:
    advice = "use a distribution that is a function of normal, uniform, exponential or Cauchy numbers"
    return NotImplementedError(f"site {site!r} takes no explicit noise, for {why}: {advice}")
