"""What all objectives of several particles share: chunks of particles, and a surrogate whose gradient is theirs."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pyro.infer import ELBO
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pyrovae.training.objectives.densities import Call, Graph, PathFactor, Rows, row_densities
from pyrovae.training.objectives.handlers import DataPlate

__all__ = ["CHUNK_SIZE", "ParticleObjective", "Plan", "check_count", "tiled"]

CHUNK_SIZE = 64
"""Particles in one graph, unless the caller says otherwise."""

Program = Callable[..., Any]


class Plan(NamedTuple):
    """What an objective makes of the log-weights: its value, and the constants of its surrogate.

    The surrogate of a datum is sum_k model_k log p(x, z_k) + guide_k log q(z_k | x), which is ascended; the gradient
    that it sends into the draws z_k is multiplied by path_k.
    """

    bound: Float[Tensor, " n"]
    model: Float[Tensor, "k n"]
    guide: Float[Tensor, "k n"]
    path: Float[Tensor, "k n"] | None = None


class ParticleObjective(ELBO):
    """Minus a bound of log p(x) from K draws of the guide for each datum, summed over the data.

    The loss is -(N / B) sum_n bound_n over the B data of a batch, N of which the plate stands for: the scale of a
    subsampled plate multiplies each datum's bound and never enters a weight.

    Particles are computed side by side, as copies of the batch along the data plate, `chunk_size` at a time. Where
    there are more, each chunk's graph is dropped after the forward pass and made again, from the same noise, in the
    backward pass: one forward pass more, and memory for `chunk_size` particles. The backward pass must then run in
    the parameter store of the forward pass. `differentiable_loss` and its gradient never wait for the device; `loss`
    and `loss_and_grads` do once, since they give a number.

    Every tensor argument of model and guide has one row for each datum; what is shared goes in by closure.

    Args:
        num_particles: K, the draws of z for each datum, at least 1.
        plate: name of the plate over the data.
        chunk_size: particles in one graph, at least 1.

    Raises:
        ValueError: a count out of its range; in use, a site outside the plate, a scaled site, latent sites that differ
            between model and guide, a plate that does not follow the data.
        NotImplementedError: in use, a guide that the objective does not apply to.
    """

    graph: ClassVar[Graph] = "total"
    least_particles: ClassVar[int] = 1
    takes_scale: ClassVar[bool] = False

    def __init__(self, num_particles: int = 1, plate: str = "data", chunk_size: int = CHUNK_SIZE) -> None:
        check_count("num_particles", num_particles, self.least_particles, type(self).__name__)
        check_count("chunk_size", chunk_size, 1, type(self).__name__)
        super().__init__(num_particles=num_particles)
        self.plate, self.chunk_size = plate, chunk_size

    @abstractmethod
    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        """The bound of each datum and the surrogate's constants, from log w_k = log p(x, z_k) - log q(z_k | x)."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, summed over the data."""
        with torch.no_grad():
            return self._estimate(model, guide, args, kwargs)[0].item()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The same as a tensor, whose gradient is the estimator's."""
        value, surrogate = self._estimate(model, guide, args, kwargs)
        return value + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number; its gradient is added to the parameters' `grad`."""
        value, surrogate = self._estimate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return value.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("objectives of particles sum densities as they come and keep no traces")

    def _estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The loss without, and the surrogate with its graph."""
        sizes = [
            min(self.chunk_size, self.num_particles - k)
            for k in range(0, self.num_particles, self.chunk_size)
        ]
        paths = [PathFactor() for _ in sizes]
        again = _recomputed if len(sizes) > 1 and torch.is_grad_enabled() else _as_it_is
        chunks = [
            again(partial(self._rows, model, guide, size, path))(*args, **kwargs)
            for size, path in zip(sizes, paths, strict=True)
        ]
        log_p, log_q = (
            torch.cat([rows.reshape(size, -1) for rows, size in zip(each, sizes, strict=True)])
            for each in ([chunk.log_p for chunk in chunks], [chunk.log_q for chunk in chunks])
        )
        plan = self.plan((log_p - log_q).detach())
        if plan.path is not None:
            for path, factor in zip(paths, plan.path.split(sizes), strict=True):
                path.factor = factor.flatten()
        num_data = log_p.shape[1]
        scale = (chunks[0].full_size or num_data) / num_data
        surrogate = (plan.model * log_p + plan.guide * log_q).sum()
        return -scale * plan.bound.sum(), -scale * surrogate

    def _rows(
        self, model: Program, guide: Program, size: int, path: PathFactor, *args: Any, **kwargs: Any
    ) -> Rows:
        """The densities of `size` particles."""
        call = tiled(self.plate, size, args, kwargs)._replace(takes_scale=self.takes_scale)
        return row_densities(model, guide, call, self.graph, path)


def check_count(name: str, value: object, least: int, owner: str) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} of {owner} must be an integer of at least {least}, got {value!r}; pass such a number"
        )


def tiled(name: str, copies: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments with each tensor repeated `copies` times along its rows, and a plate that lets them in."""
    if copies == 1:
        return Call(DataPlate(name, 0, 1, torch.device("cpu")), args, kwargs)
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    sizes = {len(each) if each.dim() else 0 for each in tensors}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "particles are computed side by side, so every tensor that model and guide are called with must have one "
            f"row for each datum, got {len(tensors)} tensors of {sorted(sizes)} rows; pass what is shared by closure, "
            "or chunk_size=1"
        )
    plate = DataPlate(name, copies * sizes.pop(), copies, tensors[0].device)
    tiled = {key: _repeated(value, copies) for key, value in kwargs.items()}
    return Call(plate, tuple(_repeated(value, copies) for value in args), tiled)


def _repeated(value: Any, copies: int) -> Any:
    return value.repeat(copies, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value


class _Recomputed:
    """A function whose graph is made again in the backward pass, under the same handlers and from the same noise."""

    def __init__(self, function: Callable[..., Rows]) -> None:
        self.function = function
        self.stack, self.noise = list(_PYRO_STACK), _rng_states()
        self.is_first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Rows:
        if self.is_first:
            self.is_first = False
            return self.function(*args, **kwargs)
        outside, now = list(_PYRO_STACK), _rng_states()
        try:
            _PYRO_STACK[:] = self.stack
            _set_rng_states(self.noise)
            return self.function(*args, **kwargs)
        finally:
            _PYRO_STACK[:] = outside
            _set_rng_states(now)


def _recomputed(function: Callable[..., Rows]) -> Callable[..., Rows]:
    return partial(_checkpointed, _Recomputed(function))


def _checkpointed(function: Callable[..., Rows], *args: Any, **kwargs: Any) -> Any:
    # To stop early would be to raise in the midst of the user's program.
    with set_checkpoint_early_stop(False):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _as_it_is(function: Callable[..., Rows]) -> Callable[..., Rows]:
    return function


def _rng_states() -> tuple[Tensor, list[Tensor]]:
    # Of every device: a program may well draw on another one than its arguments'.
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_rng_states(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
