"""The loss of a batch and its gradients as a function of tensors, which can be traced and compiled."""

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyrovae.training.kl_weight import LatentScale
from pyrovae.training.run import Run, Watch, autocast
from pyrovae.training.tensor_losses import tensor_objective

__all__ = ["BatchGradients", "same_gradients"]

ROUNDING = 32
"""Roundings of the loss by which a gradient may be off: it may be a small difference of terms as large as the loss."""
BF16_TOLERANCE = 0.05
"""Of the largest gradient: a compiler keeps in float32 what autocast rounds to the 8 bits of bf16 and back."""


class BatchGradients:
    """(loss, divisor, gradients) of a batch: minus the objective, what clipping divides by, one gradient a parameter.

    Loss and gradients are those of this rank's share. The divisor, max(1, norm / clip_norm), is missing without
    clipping, and where the gradients have still to be summed over ranks. An observation outside the support of its
    distribution gives a loss of NaN where Pyro's validation would raise. The only side effect is on the random state,
    unless the model or the guide has others.

    Args:
        run: it has taken a step.
        batch: this rank's share of a batch, of which the run says how large it is. With it are found: the parameters
            that have a gradient, `tensors`, and the number of data that the plate stands for, `plate_size`.
        weighted: whether the weight of the KL term is an input of its own.
    """

    def __init__(self, run: Run, batch: tuple[Tensor, ...], weighted: bool) -> None:
        self.run, self.weighted = run, weighted
        self.tensors = [tensor for _, tensor in run.tensors.values() if tensor.requires_grad]
        self.objective = tensor_objective(run.objective)
        with Watch(run.plate) as watch, _Validated() as validated:
            gradients = self._gradients(run.objective, self.inputs(batch))[1]
        self.plate_size, self.validated = run.share.plate_size(watch.plate_size), validated.sites
        self.tensors = [t for t, g in zip(self.tensors, gradients, strict=True) if g is not None]

    def inputs(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs for a batch, with the weight of the KL term as it is now."""
        rows = tuple(x.contiguous() for x in batch)
        if not self.weighted:
            return rows
        # Of no axis, so that it takes on the precision of what it multiplies.
        return (*rows, torch.full((), self.run.kl_weight, dtype=torch.float64, device=rows[0].device))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        return self._results(self.objective, inputs)

    def by_pyro(self, *inputs: Tensor) -> list[Tensor]:
        """The same by the objective itself, which may read numbers in Python."""
        return self._results(self.run.objective, inputs)

    def _results(self, objective: ELBO, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        with pyro.validation_enabled(False), _Support(self.validated) as support:
            loss, gradients = self._gradients(objective, inputs)
        loss = loss if support.is_kept is None else torch.where(support.is_kept, loss, torch.nan)
        divisor = self.divisor(gradients) if self.run.ranks.size == 1 else None
        return [loss, *([] if divisor is None else [divisor]), *gradients]

    def divisor(self, gradients: Iterable[Tensor]) -> Tensor | None:
        """What clipping divides the gradients by, as torch.nn.utils.clip_grad_norm_ has it; None without clipping."""
        if self.run.clip_norm is None:
            return None
        norm = torch.nn.utils.get_total_norm(gradients)
        return ((norm + 1e-6) / self.run.clip_norm).clamp_min(1.0)

    def _gradients(self, objective: ELBO, inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        batch, weight = (inputs[:-1], inputs[-1]) if self.weighted else (inputs, self.run.kl_weight)
        with (
            torch.enable_grad(),
            self.run.shared as shared,
            LatentScale(weight),
            autocast(self.run, batch[0].device),
        ):
            loss = objective.differentiable_loss(self.run.model, self.run.guide, *batch)
            loss = shared.weighted(loss)
        return loss.detach(), torch.autograd.grad(loss, self.tensors, allow_unused=True)


class _Validated(Messenger):
    """Notes the observed sites whose values Pyro validates, but for those that may have any value."""

    def __enter__(self) -> "_Validated":
        self.sites: set[str] = set()
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or site_is_subsample(msg):
            return
        fn = msg["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        support = _support(msg["fn"])
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if fn._validate_args and support is not None and support is not constraints.real:
            self.sites.add(msg["name"])


class _Support(Messenger):
    """Sees whether all observations at some sites are inside their supports: `is_kept` `[]`, None for no site."""

    def __init__(self, sites: set[str]) -> None:
        super().__init__()
        self.sites = sites
        self.is_kept: Tensor | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            inside = _support(msg["fn"]).check(msg["value"]).all()
            self.is_kept = inside if self.is_kept is None else self.is_kept & inside


def _support(fn: Any) -> Any:
    try:
        return fn.support
    except NotImplementedError:
        return None


def same_gradients(found: list[Tensor], wanted: list[Tensor], is_bf16: bool = False) -> None:
    """Raise AssertionError if (loss, gradients) differ by more than rounding.

    >>> same_gradients([torch.tensor(1000.0), torch.ones(3)], [torch.tensor(1000.0), 1.00001 * torch.ones(3)])
    """
    loss = wanted[0].double().abs().nan_to_num(0.0, 0.0)
    for mine, theirs in zip(found, wanted, strict=True):
        eps = torch.finfo(theirs.dtype).eps
        largest = float(theirs.detach().abs().nan_to_num(0.0, 0.0).max()) if theirs.numel() else 0.0
        rtol = BF16_TOLERANCE if is_bf16 else eps ** (2 / 3)
        atol = rtol * largest + ROUNDING * eps * float(loss)
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)
