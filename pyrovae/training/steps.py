"""One gradient step on a Pyro objective, with the checks that it trains what it seems to train."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.failures import UNEQUAL, explained, unequal_sites
from pyrovae.training.adam import make_adam
from pyrovae.training.divergence import (
    TrainingDiverged,
    density_is_bad,
    first_bad_site,
    rng_state,
    set_rng_state,
    value_is_bad,
)
from pyrovae.training.fingerprints import fingerprints
from pyrovae.training.kl_weight import LatentScale
from pyrovae.training.run import Run, Watch, autocast

__all__ = ["evaluate", "step"]

# Adam's first step has the size of lr for every gradient well above its eps of 1e-8; smaller ones may not move.
LEAST_GRADIENT = 1e-6


class _Place(NamedTuple):
    """Where in the run a loss is computed, and the random state just before it."""

    epoch: int
    batch: int
    part: str
    random_state: tuple[Tensor, ...]


def step(run: Run, batch: tuple[Tensor, ...], epoch: int, index: int) -> float:
    """Take one Adam step on a batch, of which `batch` is the run's share; returns the batch's ELBO before, per datum.

    Raises:
        RuntimeError: no parameter reached the objective, or one with a gradient is not trained.
        TrainingDiverged: the loss or its gradient is not finite; nothing has moved.
    """
    place = _Place(epoch, index, "batch", rng_state(batch[0].device))
    with run.ranks.together():
        elbo, leaves, optimizer = _differentiate(run, batch, place)
    elbo = _sum_over_ranks(run, elbo)
    before = [leaf.detach().clone() for leaf in leaves]
    _check_gradients(run, place)
    if run.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_([tensor for _, tensor in run.tensors.values()], run.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = run.rate
    optimizer.step()
    for leaf, old in zip(leaves, before, strict=True):
        _check_moved(run, leaf, old)
    run.num_steps += 1
    return elbo


def evaluate(run: Run, block: tuple[Tensor, ...], epoch: int, index: int) -> float:
    """The ELBO of a block of validation data, likewise; raises TrainingDiverged where it is not finite."""
    place = _Place(epoch, index, "validation block", rng_state(block[0].device))
    with run.ranks.together(), torch.no_grad():
        _, elbo, _ = _compute(run, run.objective.loss, block, place)
    return run.ranks.total(elbo)


def _differentiate(
    run: Run, batch: tuple[Tensor, ...], place: _Place
) -> tuple[float, list[Tensor], torch.optim.Adam]:
    """The gradients of these rows, left with the parameters, their part of the ELBO, and the tensors that are new."""
    own = _named_parameters(run) if run.num_steps == 0 else {}
    with autocast(run, batch[0].device):
        loss, elbo, tensors = _compute(run, run.objective.differentiable_loss, batch, place)
    _check_not_replaced(own, _named_parameters(run) if own else {})
    new = [entry for key, entry in tensors.items() if key not in run.tensors]
    leaves = list(_leaves(loss)) if new or not run.tensors else []
    optimizer = _register(run, new, leaves)
    _backward(run, optimizer, loss, leaves)
    return elbo, leaves, optimizer


def _sum_over_ranks(run: Run, elbo: float) -> float:
    """The ELBO of the batch, after its gradients took the place of those of these rows."""
    if run.ranks.size == 1:
        return elbo
    run.ranks.check_same("parameters", {"their number": len(run.tensors)})
    if run.num_steps == 0:
        run.ranks.check_same("parameters at the start", fingerprints(dict(run.tensors.values())))
    tensors = [tensor for _, tensor in run.tensors.values() if tensor.requires_grad]
    elbo, *has = run.ranks.totals([elbo, *(float(t.grad is not None) for t in tensors)])
    grads = run.ranks.sum([torch.zeros_like(t) if t.grad is None else t.grad for t in tensors])
    for tensor, grad, count in zip(tensors, grads, has, strict=True):
        tensor.grad = grad if count else None
    return elbo


def _compute(
    run: Run, compute: Callable[..., Any], batch: tuple[Tensor, ...], place: _Place
) -> tuple[Any, float, dict[int, tuple[str, Tensor]]]:
    """The loss, its part of the ELBO of the whole batch in nats per datum, and the parameters that it used."""
    try:
        with _strict(run), run.shared as shared, Watch(run.plate) as watch, LatentScale(run.kl_weight):
            loss = compute(run.model, run.guide, *batch)
        loss = shared.weighted(loss)
    except (ValueError, RuntimeError, IndexError, Warning) as error:
        if isinstance(error, Warning) and (unequal := unequal_sites(error)) is not None:
            raise unequal from error
        # A value outside the support of its distribution is the user's error, not divergence.
        is_bad = density_is_bad if isinstance(error, Warning) else value_is_bad
        site = _bad_site(run, batch, place, is_bad)
        if site is None:
            if (told := explained(error, batch)) is not None:
                raise told from error
            raise
        what = f"the loss cannot be computed, site {site[0]!r} of the {site[1]} is not finite"
        raise _diverged(run, place, what, site[0]) from error
    value = float(loss.item() if isinstance(loss, Tensor) else loss)
    if not math.isfinite(value):
        name, owner = _bad_site(run, batch, place, density_is_bad) or (None, "")
        blame = (
            f"site {name!r} of the {owner} is the first that is not finite"
            if name
            else "each site alone is finite"
        )
        raise _diverged(run, place, f"the loss is {value}, {blame}", name)
    return loss, -value / run.share.plate_size(watch.plate_size), watch.tensors


@contextmanager
def _strict(run: Run) -> Iterator[None]:
    """On the first run, refuse a latent site that model or guide lacks, which Pyro warns of."""
    if run.num_steps:
        yield
        return
    with warnings.catch_warnings():
        for start in UNEQUAL:
            warnings.filterwarnings("error", start)
        yield


def _bad_site(
    run: Run, batch: tuple[Tensor, ...], place: _Place, is_bad: Callable[[Any, Any], bool]
) -> tuple[str, str] | None:
    set_rng_state(place.random_state, batch[0].device)
    with run.shared:
        return first_bad_site(run.model, run.guide, batch, run.num_particles, is_bad)


def _diverged(run: Run, place: _Place, what: str, site: str | None) -> TrainingDiverged:
    return TrainingDiverged(
        f"training diverged at epoch {place.epoch}, {place.part} {place.batch} (both from 0): {what}. Lower lr "
        f"(now {run.lr}), rescale the data, or bound the model's scales from below. The parameters are as they "
        "were before that step",
        place.epoch,
        place.batch,
        site,
    )


def _leaves(loss: Any) -> Iterator[Tensor]:
    """The tensors that the gradient of `loss` would reach, found in its graph."""
    pending: list[Any] = [getattr(loss, "grad_fn", None)]
    seen = {None, *pending}
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for child, _ in getattr(node, "next_functions", ()):
            if child not in seen:
                seen.add(child)
                pending.append(child)


def _named_parameters(run: Run) -> dict[tuple[int, str], int]:
    return {
        (index, name): id(p)
        for index, module in enumerate(run.modules)
        for name, p in module.named_parameters()
    }


def _check_not_replaced(before: dict[tuple[int, str], int], after: dict[tuple[int, str], int]) -> None:
    for key, identity in before.items():
        if after.get(key, identity) != identity:
            raise RuntimeError(
                f"each parameter must have a name of its own, but {key[1]!r} of one module was replaced by the one "
                "of that name of another; give the modules names, PyroModule(name=...), or put both into one"
            )


def _register(run: Run, new: list[tuple[str, Tensor]], leaves: list[Tensor]) -> torch.optim.Adam:
    run.tensors.update({id(tensor): (name, tensor) for name, tensor in new})
    if not run.tensors or (new and not leaves):
        raise RuntimeError(
            "fit wants parameters to train, but none reached the objective; decorate the methods of a PyroModule "
            "that are model or guide with @pyro_method, call pyro.module for a torch module, or use pyro.param"
        )
    if run.optimizer is None:
        run.optimizer = make_adam([tensor for _, tensor in new], run.lr)
    elif new:
        run.optimizer.add_param_group({"params": [tensor for _, tensor in new]})
    return run.optimizer


def _backward(run: Run, optimizer: torch.optim.Adam, loss: Any, leaves: list[Tensor]) -> None:
    optimizer.zero_grad()
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    for leaf in leaves:
        _check_registered(run, leaf)


def _check_gradients(run: Run, place: _Place) -> None:
    gradients = [(name, t.grad) for name, t in run.tensors.values() if t.grad is not None and t.numel()]
    if torch.isfinite(torch.nn.utils.get_total_norm([g for _, g in gradients])):
        return
    for name, gradient in gradients:  # large ones alone, of which the squares overflow, are fine
        if not torch.isfinite(gradient).all():
            raise _diverged(run, place, f"the loss is finite but the gradient of {name!r} is not", name)


def _check_registered(run: Run, leaf: Tensor) -> None:
    if id(leaf) in run.tensors or leaf.grad is None or not leaf.grad.any():
        return
    raise RuntimeError(
        f"every parameter with a gradient must be known to Pyro, but {_name(run, leaf)} is not and would never move; "
        "decorate the PyroModule's method with @pyro_method, register a torch module with pyro.module, give two "
        "root PyroModules different names, make the parameter contiguous, or, where it is meant to stay as it is, "
        "call requires_grad_(False) on it"
    )


def _check_moved(run: Run, leaf: Tensor, old: Tensor) -> None:
    if leaf.grad is None or leaf.grad.abs().max() <= LEAST_GRADIENT or not torch.equal(leaf.detach(), old):
        return
    raise RuntimeError(
        f"every parameter with a gradient must move, but {_name(run, leaf)} did not in its first step with "
        f"lr={run.lr}: that step is lost in its precision; rescale the parameter, raise lr, or use float64"
    )


def _name(run: Run, leaf: Tensor) -> str:
    named = {id(p): name for module in run.modules for name, p in module.named_parameters()}
    named |= {key: name for key, (name, _) in run.tensors.items()}
    return repr(named[id(leaf)]) if id(leaf) in named else f"a tensor of shape {list(leaf.shape)}"
