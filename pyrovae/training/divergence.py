"""Training that diverged: which site of the guide or the model was first to be NaN or infinite."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["TrainingDiverged", "first_bad_site", "rng_state", "set_rng_state"]


class TrainingDiverged(FloatingPointError):  # noqa: N818, as FloatingPointError itself
    """A loss or a gradient became NaN or infinite.

    Attributes:
        epoch, batch: where, both from 0.
        site: the first site or parameter that is not finite, None where none could be found.
    """

    def __init__(self, message: str, epoch: int = -1, batch: int = -1, site: str | None = None) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.batch = batch
        self.site = site


def rng_state(device: torch.device) -> tuple[Tensor, ...]:
    """The random state of the CPU and of `device`."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def set_rng_state(state: tuple[Tensor, ...], device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def first_bad_site(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Tensor, ...],
    num_particles: int,
    is_bad: Callable[[Any, Any], bool],
) -> tuple[str, str] | None:
    """The first site, guide before model, for which `is_bad(trace, site)`: its name and "guide" or "model".

    The computation is repeated without Pyro's validation, so that it gets past the first NaN. The caller puts the
    random state back to where it was before the loss.
    """
    try:
        with pyro.validation_enabled(False):
            for _ in range(num_particles):
                for owner, trace in _traces(model, guide, data):
                    for name, site in trace.nodes.items():
                        if site["type"] in ("param", "sample") and is_bad(trace, site):
                            return name, owner
    except Exception:  # the model may well fail on NaN; the error that is already under way says more
        return None
    return None


def _traces(
    model: Callable[..., Any], guide: Callable[..., Any], data: tuple[Tensor, ...]
) -> Iterator[tuple[str, Any]]:
    guide_trace = poutine.trace(guide).get_trace(*data)
    yield "guide", guide_trace
    yield "model", poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*data)


def value_is_bad(trace: Any, site: Any) -> bool:
    """Whether the value of a site is not finite, or its distribution has a NaN parameter."""
    value = site["value"]
    if isinstance(value, Tensor) and not torch.isfinite(value).all():
        return True
    return site["type"] == "sample" and any(bool(torch.isnan(t).any()) for t in _parameters(site["fn"]))


def density_is_bad(trace: Any, site: Any) -> bool:
    """Whether a site's value, parameters or log probability is not finite."""
    if value_is_bad(trace, site):
        return True
    if site["type"] != "sample":
        return False
    trace.compute_log_prob(lambda name, _: name == site["name"])
    return not bool(torch.isfinite(site["log_prob_sum"]))


def _parameters(fn: Any) -> Iterator[Tensor]:
    for value in vars(fn).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Distribution):
            yield from _parameters(value)
