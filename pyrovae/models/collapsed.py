"""log p(x | z) of a Gaussian decoder whose last layer is linear, at a cost per draw that does not grow with x."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

__all__ = [
    "CollapsedLikelihood",
    "Expansion",
    "Frozen",
    "Projection",
    "Root",
    "collapse",
    "expand",
    "project",
    "split_last",
]


class Root(NamedTuple):
    """A last layer x = W h + b + scale e, turned: W / scale = Q R with r = min(X, H) directions that h can move."""

    basis: Float[Tensor, "x r"]
    """Q, with orthonormal columns."""
    root: Float[Tensor, "r h"]
    """R, upper triangular; R'R = W' diag(scale)^-2 W is all that the likelihood wants of W."""
    bias: Float[Tensor, " x"]
    scale: Float[Tensor, " x"]


class Projection(NamedTuple):
    """What the likelihood wants of each datum: log p(x | z) = constant - |coordinates - R h(z)|^2 / 2."""

    coordinates: Float[Tensor, "n r"]
    constant: Float[Tensor, " n"]


def collapse(weight: Float[Tensor, "x h"], bias: Float[Tensor, " x"], scale: Float[Tensor, " x"]) -> Root:
    """Factor W / scale = Q R in float64, as costly as some 2 H rows of the layer itself.

    >>> collapse(torch.tensor([[3.0], [4.0]]), torch.zeros(2), torch.ones(2)).root.abs().round()
    tensor([[5.]], dtype=torch.float64)
    """
    basis, root = torch.linalg.qr(weight.double() / scale.double()[:, None])
    return Root(basis, root, bias.double(), scale.double())


def project(root: Root, x: Float[Tensor, "n x"]) -> Projection:
    """Split the data into what h can reach and the rest, in float64. With y = (x - b) / scale,

        -2 log p(x | z) = |Q'y - R h|^2 + |y - Q Q'y|^2 + 2 sum(log scale) + X log(2 pi).

    Neither square is larger than |y - Q R h|^2, so float32 rounds no worse than there. Multiplied out,
    |y|^2 - 2 y'Q R h + h'R'R h, the terms cancel: in float32 that errs by 1 nat at scale .01.

    >>> root = collapse(torch.tensor([[3.0], [4.0]]), torch.zeros(2), torch.ones(2))
    >>> project(root, torch.tensor([[3.0, 4.0], [4.0, -3.0]])).coordinates.abs().round()
    tensor([[5.],
            [0.]], dtype=torch.float64)
    """
    y = (x.double() - root.bias) / root.scale
    coordinates = y @ root.basis
    rest = y - coordinates @ root.basis.mT
    normalizer = root.scale.log().sum() + 0.5 * len(root.scale) * math.log(2 * math.pi)
    return Projection(coordinates, -0.5 * rest.square().sum(-1) - normalizer)


def split_last(net: nn.Module) -> tuple[list[nn.Module], nn.Linear] | None:
    """The modules before the last one, and the last one, where it is linear; else None.

    Exactly `nn.Linear`, or `nn.Sequential` with `nn.Linear` at its end: a subclass may compute something else (a
    parametrized layer is one), and `weight_norm` of old makes its weight anew in each forward.

    >>> split_last(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)))[1]
    Linear(in_features=8, out_features=5, bias=True)
    """
    layers = [*net] if type(net) is nn.Sequential else [net]
    if layers and type(layers[-1]) is nn.Linear and isinstance(layers[-1].weight, nn.Parameter):
        return layers[:-1], layers[-1]
    return None


class Frozen(nn.Module):
    """A function that runs `parts`, called with their parameters held constant: no gradient ever reaches these."""

    def __init__(self, parts: Iterable[nn.Module], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """The function itself."""
        return self.function(z)

    def frozen(self, z: Tensor) -> Tensor:
        """The function, differentiable in z alone."""
        constants = {name: parameter.detach() for name, parameter in self.named_parameters()}
        value: Tensor = functional_call(self, constants, (z,), tie_weights=False)
        return value


class CollapsedLikelihood:
    """z `[K, N, D]` -> log p(x | z) `[K, N]` of given rows x; differentiable in z, and in z alone.

    The layers before the last are run as they are. What is prepared of the last layer, the noise and x is prepared
    anew when torch has counted a change of any of them, or another tensor is in its place. Changes behind torch's
    back (`parameter.data.mul_(2)`, or any change after this was traced into a program, which keeps what was prepared)
    give NaN rather than the old value: some numbers of each tensor, which any training step moves, are compared.

    With `near`, a z for each row, it is expanded about there: twice as fast, and as right only near there.
    """

    def __init__(
        self,
        net: nn.Module,
        noise: nn.Module,
        x: Float[Tensor, "n x"],
        near: Float[Tensor, "n d"] | None = None,
    ) -> None:
        self._net, self._noise, self._x, self._near = net, noise, x.detach(), near
        self._prepared: _Prepared | None = None

    def __call__(self, z: Float[Tensor, "k n d"]) -> Float[Tensor, "k n"]:
        """log p(x | z)."""
        now = self._now()
        h = now.features.frozen(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        value = now.value(h) if now.expansion is None else now.expansion.value(h)
        return torch.where(_is_as_seen(now.watched, now.seen), value, torch.nan)

    def _now(self) -> "_Prepared":
        split = split_last(self._net)
        if split is None:
            raise ValueError("the decoder's net had a linear last layer and has none now: make a new Target")
        layers, last = split
        tensors = [self._x, last.weight, *self._noise.parameters(), *self._noise.buffers()]
        if last.bias is not None:
            tensors.append(last.bias)
        marks = [id(layer) for layer in layers], _marks(tensors)
        if self._prepared is None or self._prepared.marks != marks:
            # what is made in inference mode could never be part of a gradient
            with torch.inference_mode(False), torch.no_grad():
                self._prepared = self._prepare(layers, last, tensors, marks)
        return self._prepared

    def _prepare(
        self, layers: list[nn.Module], last: nn.Linear, tensors: list[Tensor], marks: Any
    ) -> "_Prepared":
        root = _root(last, self._noise)
        coordinates, constant = projection = project(root, self._x)
        watched = [_some(tensor, len(root.root)) for tensor in tensors]
        features = Frozen(layers, nn.Sequential(*layers))
        return _Prepared(
            features=features,
            expansion=None if self._near is None else expand(root, projection, features.frozen(self._near)),
            root=root.root.to(last.weight),
            coordinates=coordinates.to(last.weight),
            constant=constant.to(last.weight),
            tensors=tensors,
            marks=marks,
            watched=watched,
            seen=torch.cat(watched),
        )


class _HalfQuadratic(torch.autograd.Function):
    """d' G d / 2 of every row for a symmetric G, whose gradient G d is a by-product: one product instead of two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(delta: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and G d."""
        product = delta @ gram
        return 0.5 * (delta * product).sum(-1), product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        """Keep G d, and what it is made of for derivatives of the gradient."""
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Slope times G d, which is made again where it is to be differentiated."""
        delta, gram, product = ctx.saved_tensors
        return slope.unsqueeze(-1) * (delta @ gram if torch.is_grad_enabled() else product), None


class Expansion(NamedTuple):
    """The likelihood about features g: with d = h - g, log p(x | z) = constant + slope'd - d'R'R d / 2."""

    centre: Float[Tensor, "n h"]
    constant: Float[Tensor, " n"]
    slope: Float[Tensor, "n h"]
    gram: Float[Tensor, "h h"]

    def value(self, h: Float[Tensor, "k n h"]) -> Float[Tensor, "k n"]:
        """log p(x | z) at features h."""
        delta = h - self.centre
        quadratic: Tensor = _HalfQuadratic.apply(delta, self.gram)[0]
        return self.constant + (delta * self.slope).sum(-1) - quadratic


def expand(root: Root, projection: Projection, centre: Float[Tensor, "n h"]) -> Expansion:
    """Multiply the square out about features `centre`: half the work of the square, where terms are small enough.

    Near the centre no term is much larger than log p(x | z) - constant itself, so that float32 serves; far off, terms
    cancel.

    >>> root = collapse(torch.tensor([[3.0], [4.0]]), torch.zeros(2), torch.ones(2))
    >>> seen = project(root, torch.tensor([[3.0, 4.0]]))
    >>> about = expand(root, seen, torch.tensor([[0.5]]))
    >>> (about.value(torch.tensor([[[1.0]]])) - seen.constant).abs() < 1e-5
    tensor([[True]])
    """
    left = projection.coordinates - centre.double() @ root.root.mT
    constant = projection.constant - 0.5 * left.square().sum(-1)
    return Expansion(
        centre, *(each.to(centre) for each in (constant, left @ root.root, root.root.mT @ root.root))
    )


class _Prepared(NamedTuple):
    features: Frozen
    expansion: Expansion | None
    root: Tensor
    coordinates: Tensor
    constant: Tensor
    tensors: list[Tensor]
    """Kept, so that no other tensor can take the place of one of them in memory."""
    marks: Any
    watched: list[Tensor]
    seen: Tensor

    def value(self, h: Float[Tensor, "k n h"]) -> Float[Tensor, "k n"]:
        """log p(x | z) at features h."""
        residual = linear(h, self.root) - self.coordinates
        return self.constant - 0.5 * residual.square().sum(-1)


_ROOTS: WeakKeyDictionary[nn.Linear, tuple[list[Tensor], Root]] = WeakKeyDictionary()
"""The last layers that live, factored once for all data, with copies of what was factored."""


def _root(last: nn.Linear, noise: nn.Module) -> Root:
    bias = last.weight.new_zeros(len(last.weight)) if last.bias is None else last.bias
    values = [last.weight, bias, noise().expand(len(bias))]
    if last not in _ROOTS or not all(map(_is_same, values, _ROOTS[last][0])):
        _ROOTS[last] = [value.clone() for value in values], collapse(*values)
    return _ROOTS[last][1]


def _is_same(value: Tensor, kept: Tensor) -> bool:
    return value.dtype == kept.dtype and value.device == kept.device and torch.equal(value, kept)


def _marks(tensors: list[Tensor]) -> list[tuple[int, int, int]]:
    """Which tensors these are, and in which version: in-place operations count it up (but not under `.data`)."""
    return [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _some(tensor: Tensor, count: int) -> Tensor:
    """Up to `count` numbers of a tensor, sharing its memory: a row and a column has one each, if it has them."""
    view = tensor.detach()
    return (view.diagonal() if view.dim() > 1 else view.reshape(-1))[:count]


def _is_as_seen(watched: list[Tensor], seen: Tensor) -> Bool[Tensor, ""]:
    return (torch.cat(watched) == seen).all()
