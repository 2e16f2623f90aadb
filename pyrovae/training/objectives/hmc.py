"""The decoder's gradient from draws of the posterior: short chains of HMC that start at the guide."""

import math
from typing import Any

import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyrovae.inference.hmc import HMCState, step
from pyrovae.training.objectives.densities import (
    Call,
    PathFactor,
    Program,
    Rows,
    Values,
    check_sites,
    value_and_slopes,
)
from pyrovae.training.objectives.handlers import RowDensities, is_latent, sum_rows
from pyrovae.training.objectives.particles import CHUNK_SIZE, ParticleObjective, Plan, check_count, tiled

__all__ = ["HMCGradient"]

NUM_STEPS = 5
STEP_SIZES = (0.1, 0.5)
"""Of the leapfrog, in standard deviations of the guide, drawn for each row: long ones move, short ones are safe."""
NUM_SCALE_DRAWS = 8
"""Draws of the guide from which its standard deviations are read off: any guide can be drawn from."""


FIXED_SUPPORTS = (
    constraints.real,
    constraints.real_vector,
    constraints.positive,
    constraints.nonnegative,
    constraints.unit_interval,
    constraints.simplex,
)


class HMCGradient(ParticleObjective):
    """The ELBO for the guide, and for the model the gradient of log p(x, z) at z from HMC chains (Hoffman 2017).

    d log p(x) / d theta = E_posterior[d log p(x, z) / d theta] (Fisher's identity), and the ELBO has the guide in the
    posterior's place. Here `num_transitions` transitions of HMC, of 5 leapfrogs each, lead from the guide's draw
    towards the posterior: with many of them the model's gradient is that of log p(x), with none it is the ELBO's. The
    guide's gradient is the ELBO's, with the model held fixed. Momenta are scaled by the guide's standard deviations;
    step sizes are drawn, from a tenth to a half of them, and never adapted, so that each transition leaves the
    posterior invariant. The loss is minus the ELBO: what the model gains in log p(x) beyond it does not show there.

    A step costs 2 + 5 `num_transitions` gradients of the model in z, and one in its parameters. Wants a guide that is
    reparameterized, and latents whose supports are fixed: real, positive, between 0 and 1, or a simplex. Parameters
    that model and guide share get the sum of both gradients.

    Args:
        num_particles, plate, chunk_size: as every `ParticleObjective`; each particle has a chain of its own.
        num_transitions: of each chain, at least 1.

    Raises:
        NotImplementedError: in use, a latent of another support, or a guide without rsample.

    >>> import pyro, pyro.distributions as dist
    >>> loc = torch.tensor(0.0, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2 - 1, 0.7))  # too low by 1, so that the ELBO's gradient is 0
    >>> _ = torch.manual_seed(0)
    >>> HMCGradient(num_transitions=20).differentiable_loss(model, guide, torch.full((1000,), 2.0)).backward()
    >>> abs(loc.grad.item() / -1000 - 1) < 0.1  # that of log p(x) is 1
    True
    """

    def __init__(
        self,
        num_particles: int = 1,
        plate: str = "data",
        chunk_size: int = CHUNK_SIZE,
        num_transitions: int = 4,
    ) -> None:
        super().__init__(num_particles, plate, chunk_size)
        check_count("num_transitions", num_transitions, 1, type(self).__name__)
        self.num_transitions = num_transitions

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        equal = torch.full_like(log_w, 1 / len(log_w))
        return Plan(log_w.mean(0), equal, -equal)

    def _rows(
        self, model: Program, guide: Program, size: int, path: PathFactor, *args: Any, **kwargs: Any
    ) -> Rows:
        call = tiled(self.plate, size, args, kwargs)
        q = call.score(guide, "guide", wanted="draws with a gradient (rsample)")
        space = _Unconstrained(model, call, q)
        position = space.position(q.values)
        start = HMCState(position.detach(), *space.density(position.detach()))
        log_q = q.log_prob + space.log_jacobian(position)
        # The model's density along the guide's draws alone, and along its parameters at the end of the chains alone.
        log_p = start.log_density + (start.gradient * (position - start.position)).sum(-1)
        if torch.is_grad_enabled():
            few = tiled(self.plate, NUM_SCALE_DRAWS, args, kwargs)
            scale = space.spread(few.score(guide, "guide")).repeat(size, 1)
            values = space.values(self._moved(space, start, scale))
            at_end = call.score(model, "model", values).log_prob
            log_p = log_p + at_end - at_end.detach()
        return Rows(log_p, log_q, call.plate.full_size)

    def _moved(
        self, space: "_Unconstrained", start: HMCState, scale: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "rows d"]:
        """Where the chains end, of positions in units of `scale`."""

        def density(w: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = space.density(scale * w)
            return value, scale * gradient

        state = HMCState(start.position / scale, start.log_density, scale * start.gradient)
        low, high = STEP_SIZES
        for _ in range(self.num_transitions):
            momentum = torch.randn_like(scale)
            size, log_uniform = (torch.rand_like(start.log_density) for _ in range(2))
            state, _ = step(
                state,
                density,
                momentum=momentum,
                log_uniform=log_uniform.log(),
                step_size=low + (high - low) * size,
                num_steps=NUM_STEPS,
            )
        return scale * state.position


class _Unconstrained:
    """The latents of each row as one vector in unconstrained coordinates, and the model's density of it."""

    def __init__(self, model: Program, call: Call, q: RowDensities) -> None:
        self.model, self.call, self.axes, self.auxiliary = model, call, q.axes, q.auxiliary
        with torch.no_grad(), _Transforms() as found:
            values = {name: value for name, value in q.values.items() if name not in q.auxiliary}
            self.shapes = call.score(model, "model", values).values
        check_sites(self.shapes, values)
        self.transforms = found.transforms

    def position(self, values: Values) -> Float[Tensor, "rows d"]:
        """The vectors of sites' values, whatever the number of rows."""
        parts = [self.transforms[name].inv(values[name]) for name in self.shapes]
        moved = [part.movedim(self.axes[name], 0) for name, part in zip(self.shapes, parts, strict=True)]
        return torch.cat([part.reshape(len(part), -1) for part in moved], -1)

    def values(self, position: Float[Tensor, "rows d"]) -> dict[str, Tensor]:
        """The sites' values."""
        return {name: self.transforms[name](u) for name, u in self._cut(position).items()}

    def _cut(self, position: Tensor) -> dict[str, Tensor]:
        """The sites' unconstrained values, in the shapes of the program."""
        found, first = {}, 0
        for name, like in self.shapes.items():
            shape = self.transforms[name].inverse_shape(like.shape)
            axis = self.axes[name]
            rest = [*shape[:axis], *shape[axis + 1 :]]
            size = math.prod(rest)
            part = position[:, first : first + size].reshape(len(position), *rest)
            found[name], first = part.movedim(0, axis), first + size
        return found

    def density(self, position: Float[Tensor, "rows d"]) -> tuple[Tensor, Tensor]:
        """The model's log density of each row in these coordinates and its gradient, both detached."""

        def of(points: Values) -> Tensor:
            z = points["position"]
            return self.call.score(self.model, "model", self.values(z)).log_prob + self.log_jacobian(z)

        value, slopes = value_and_slopes(of, {"position": position})
        return value, slopes["position"]

    def log_jacobian(self, position: Float[Tensor, "rows d"]) -> Tensor:
        """log |d values / d position| of each row."""
        total = position.new_zeros(len(position))
        for name, u in self._cut(position).items():
            transform = self.transforms[name]
            jacobian = transform.log_abs_det_jacobian(u, transform(u))
            total = total + sum_rows(jacobian, self.axes[name])
        return total

    def spread(self, few: RowDensities) -> Float[Tensor, "n d"]:
        """The standard deviation of each datum's unconstrained coordinates over some draws of the guide."""
        draws = self.position(few.values).detach()
        return draws.unflatten(0, (NUM_SCALE_DRAWS, -1)).std(0)


class _Transforms(Messenger):
    """Notes for each latent the map from the real numbers to its support, which must not depend on other latents."""

    def __enter__(self) -> "_Transforms":
        self.transforms: dict[str, Any] = {}
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        support = msg["fn"].support
        if isinstance(support, constraints.MixtureSameFamilyConstraint):
            support = support.base_constraint
        inner = support
        while isinstance(inner, constraints.independent):
            inner = inner.base_constraint
        if inner not in FIXED_SUPPORTS:
            raise NotImplementedError(
                f'objective "hmc" wants latents that are real, positive, between 0 and 1 or a simplex, got support '
                f'{support} at site {msg["name"]!r}; transform that latent, or use "elbo" or "iwae"'
            )
        self.transforms[msg["name"]] = biject_to(support)
