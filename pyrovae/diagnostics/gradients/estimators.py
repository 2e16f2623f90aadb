"""Which estimator of a gradient is meant, whether it can run with so many particles, and its loss as a tensor."""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.diagnostics.gradients.parameters import Problem
from pyrovae.training.objectives import OBJECTIVES, make_objective

__all__ = ["Estimator", "applies", "check_estimators", "single_draw_loss", "why_not"]

Loss = Callable[..., Tensor]


class Estimator(NamedTuple):
    """An objective by name, its particles and its options; `role` keeps the noise of references apart."""

    name: str
    num_particles: int
    options: tuple[tuple[str, Any], ...] = ()
    role: str = ""

    def make(self, plate: str, **chunk: int) -> ELBO:
        """The objective; `chunk_size` for those that take it."""
        takes = inspect.signature(OBJECTIVES[self.name]).parameters
        given = {key: value for key, value in chunk.items() if key in takes}
        return make_objective(self.name, self.num_particles, plate, **{**given, **dict(self.options)})

    @property
    def key(self) -> tuple[int, int]:
        """Two numbers that tell its noise from that of every other estimator."""
        words = f"{self.role} {self.name} {sorted(self.options)}"
        return zlib.crc32(words.encode()), self.num_particles


def check_estimators(
    names: Sequence[str], num_particles: Sequence[int], options: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise ValueError for names, counts or options that can never be; as `make_objective` does."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"estimators must be one or more names, each once, got {list(names)}")
    if odd := [name for name in options if name not in names]:
        raise ValueError(f"options are given for {odd[0]!r}, which is not among {', '.join(names)}")
    counts = list(num_particles)
    if not counts or len(set(counts)) < len(counts) or not all(_is_count(k) for k in counts):
        raise ValueError(f"num_particles must be integers of at least 1, each once, got {counts}")
    for name in names:
        own = dict(options.get(name, {}))
        least = getattr(OBJECTIVES.get(name), "least_particles", 1)
        outer = own.get("num_outer", 1)
        make_objective(name, least * (outer if _is_count(outer) else 1), **own)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def why_not(estimator: Estimator) -> str:
    """Why the estimator has no meaning with its number of particles; "" if it has."""
    least = getattr(OBJECTIVES[estimator.name], "least_particles", 1)
    if estimator.num_particles < least:
        return f"{estimator.name} wants at least {least} particles"
    outer = dict(estimator.options).get("num_outer", 1)
    if estimator.num_particles % outer:
        return f"{estimator.name} wants a multiple of num_outer={outer} particles"
    return ""


def applies(problem: Problem, estimator: Estimator) -> bool:
    """Whether the estimator can treat this guide."""
    objective: Any = estimator.make(problem.plate)
    try:
        objective.differentiable_loss(problem.model, problem.guide, *problem.data)
    except NotImplementedError:
        return False
    return True


def single_draw_loss(name: str) -> Loss | None:
    """Minus the ELBO of one draw as a tensor, without the reads of Pyro's own, for the two that are Pyro's."""
    return {"elbo": _elbo_loss, "analytic_kl": _analytic_kl_loss}.get(name)


def _elbo_loss(model: Any, guide: Any, *args: Any) -> Tensor:
    guide_trace, model_trace = _traces(model, guide, args)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


def _analytic_kl_loss(model: Any, guide: Any, *args: Any) -> Tensor:
    guide_trace, model_trace = _traces(model, guide, args)
    loss: Any = -model_trace.log_prob_sum(lambda _, site: site["is_observed"])
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        divergence = kl_divergence(site["fn"], model_trace.nodes[name]["fn"])
        loss = loss + scale_and_mask(divergence, scale=site["scale"], mask=site["mask"]).sum()
    return loss


def _traces(model: Any, guide: Any, args: Any) -> Any:
    guide_trace = poutine.trace(guide).get_trace(*args)
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
