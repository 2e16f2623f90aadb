"""Adam in one call for all parameters, with torch's own optimizer state, which can be kept and put back."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.training.divergence import rng_state, set_rng_state

__all__ = ["FusedAdam", "Snapshot", "is_finite", "make_adam"]


def make_adam(tensors: list[Tensor], lr: float) -> torch.optim.Adam:
    """torch's Adam, in its fused form where the parameters allow it: not on every device, and not if complex."""
    try:
        return torch.optim.Adam(tensors, lr=lr, fused=True)
    except RuntimeError:
        return torch.optim.Adam(tensors, lr=lr)


class _Group(NamedTuple):
    """Tensors of one dtype on one device: indices into the list of gradients, and what Adam changes."""

    indices: list[int]
    params: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    all_steps: Tensor
    """Of which `steps` are the elements, so that one operation counts them all."""


class FusedAdam:
    """The step of a `torch.optim.Adam` that was made fused, on its own state, without its bookkeeping.

    Args:
        optimizer: it has taken a step with every one of `tensors`.
        tensors: parameters, in the order in which gradients will come.

    Raises:
        ValueError: the optimizer is not fused.

    >>> p = torch.ones(3, requires_grad=True)
    >>> p.sum().backward()
    >>> optimizer = make_adam([p], lr=0.1)
    >>> optimizer.step()
    >>> with torch.no_grad():
    ...     FusedAdam(optimizer, [p]).step([torch.ones(3)], lr=0.1)
    >>> p.detach()
    tensor([0.8000, 0.8000, 0.8000])
    """

    def __init__(self, optimizer: torch.optim.Adam, tensors: Sequence[Tensor]) -> None:
        if not optimizer.defaults["fused"]:
            raise ValueError("the parameters' kind or device has no fused Adam")
        self.options = {
            key: optimizer.defaults[key] for key in ("weight_decay", "eps", "amsgrad", "maximize")
        }
        self.options["beta1"], self.options["beta2"] = optimizer.defaults["betas"]
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, tensor in enumerate(tensors):
            kinds.setdefault((tensor.device, tensor.dtype), []).append(index)
        self.groups = [_group(optimizer, tensors, indices) for indices in kinds.values()]

    def step(self, gradients: Sequence[Tensor], lr: float, divisor: Tensor | None = None) -> None:
        """Move the parameters by Adam with the gradients divided by `divisor` `[]`; under `torch.no_grad()`."""
        for group in self.groups:
            group.all_steps.add_(1)
            own, scale = [gradients[i] for i in group.indices], divisor
            if scale is not None and own[0].dtype != torch.float32:  # the only one that grad_scale may have
                own, scale = [gradient / scale for gradient in own], None
            torch._fused_adam_(
                group.params,
                own,
                group.means,
                group.squares,
                [],
                group.steps,
                lr=lr,
                grad_scale=scale if scale is None else scale.to(group.params[0].device),
                **self.options,
            )


def _group(optimizer: torch.optim.Adam, tensors: Sequence[Tensor], indices: list[int]) -> _Group:
    params = [tensors[i] for i in indices]
    states = [optimizer.state[p] for p in params]
    all_steps = torch.stack([state["step"] for state in states])
    for state, num_steps in zip(states, all_steps.unbind(), strict=True):
        state["step"] = num_steps
    means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    return _Group(indices, params, means, squares, steps, all_steps)


def is_finite(optimizer: torch.optim.Adam) -> bool:
    """Whether no gradient was NaN or infinite so far: the running means of the gradients would have stayed so."""
    means = [state["exp_avg"] for state in optimizer.state.values() if state["exp_avg"].numel()]
    return not means or bool(torch.isfinite(torch.nn.utils.get_total_norm(means)))


class Snapshot:
    """The parameters, the state of the optimizer and the random state as they are now, to be put back."""

    def __init__(self, optimizer: torch.optim.Adam, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self.kept = {key: tensor.detach().clone() for key, tensor in self._live().items()}
        self.random_state = rng_state(device)

    def restore(self) -> None:
        """Put everything back."""
        live = self._live()
        with torch.no_grad():
            torch._foreach_copy_([live[key] for key in self.kept], list(self.kept.values()))
        set_rng_state(self.random_state, self.device)

    def _live(self) -> dict[tuple[int, str], Tensor]:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            (id(p), name): tensor
            for p, named in self.optimizer.state.items()
            for name, tensor in named.items()
            if isinstance(tensor, Tensor)
        }
        return {(id(p), ""): p for p in parameters} | state
