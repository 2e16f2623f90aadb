"""Pyro's ELBO objectives as tensor operations alone: the same loss and gradient, and no number handed to Python."""

from typing import Any

from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.training.objectives import AnalyticKL

__all__ = ["tensor_objective"]


def tensor_objective(objective: ELBO) -> ELBO:
    """The objective itself, or one of the same loss and gradient whose `differentiable_loss` can be traced.

    >>> tensor_objective(Trace_ELBO(num_particles=3)).num_particles
    3
    """
    makers: dict[type, type[ELBO]] = {Trace_ELBO: _TensorELBO, AnalyticKL: _TensorAnalyticKL}
    make = makers.get(type(objective))
    return objective if make is None else make(num_particles=objective.num_particles)


class _TensorELBO(Trace_ELBO):
    """`Trace_ELBO`, which reads the number of each site and of the loss, without doing so."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            sum(_elbo_loss(*traces) for traces in self._get_traces(model, guide, args, kwargs))
            / self.num_particles
        )


class _TensorAnalyticKL(AnalyticKL):
    """`AnalyticKL` likewise."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            sum(_analytic_loss(*traces) for traces in self._get_traces(model, guide, args, kwargs))
            / self.num_particles
        )


def _elbo_loss(model_trace: Any, guide_trace: Any) -> Any:
    """Minus the ELBO of one particle, with the gradient of the surrogate of `Trace_ELBO`."""
    model = model_trace.log_prob_sum()
    loss, surrogate, log_r = guide_trace.log_prob_sum() - model, -model, None
    for site in _samples(guide_trace):
        _, score, entropy = site["score_parts"]
        if not is_identically_zero(entropy):
            surrogate = surrogate + entropy.sum()
        if not is_identically_zero(score):
            log_r = log_r or _compute_log_r(model_trace, guide_trace)
            surrogate = surrogate - (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
    if not isinstance(loss, Tensor):
        return surrogate
    return loss.detach() + (surrogate - surrogate.detach())


def _analytic_loss(model_trace: Any, guide_trace: Any) -> Any:
    """Minus the ELBO of one particle as `TraceMeanField_ELBO` has it, with every KL divergence in closed form."""
    loss: Any = 0.0
    for site in _samples(model_trace):
        if site["is_observed"]:
            loss = loss - site["log_prob_sum"]
            continue
        guide = guide_trace.nodes[site["name"]]
        divergence = kl_divergence(guide["fn"], site["fn"])
        loss = loss + scale_and_mask(divergence, guide["scale"], guide["mask"]).sum()
    for site in _samples(guide_trace):
        if site["name"] not in model_trace.nodes:  # auxiliary
            loss = loss + site["score_parts"].entropy_term.sum()
    return loss


def _samples(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]
