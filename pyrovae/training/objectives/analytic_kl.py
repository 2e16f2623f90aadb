"""The ELBO with its KL divergence to the prior in closed form."""

from typing import Any

from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.util import site_is_subsample

from pyrovae.training.kl import has_closed_form, register_gaussian_kl

__all__ = ["AnalyticKL"]


class AnalyticKL(TraceMeanField_ELBO):
    """The negative ELBO with its KL divergence to the prior in closed form, -E_q[log p(x | z)] + KL(q(z | x) || p(z)).

    The expectation of loss and gradient is that of `Trace_ELBO`; the noise of the KL term is gone, that of the
    reconstruction remains. It is not always the quieter one: where the guide is the posterior, every single draw
    of log p(x, z) - log q(z | x) is log p(x), while a reconstruction alone is noisy.

    Pyro's `TraceMeanField_ELBO`, on which it rests, falls back to a draw, silently, where no closed form is known;
    this one refuses, so that what was asked for is what is computed. Closed forms exist for independent Normal,
    MultivariateNormal and LowRankMultivariateNormal guides with independent Normal and MultivariateNormal priors
    (and for what torch and Pyro know besides), not for mixtures, flows or a site of which just one side is masked.
    With several latent sites the guide must depend on them in the order in which the model does, as Pyro
    documents: the KL divergence of a site is taken given the draws of its parents. Every latent must be
    reparameterized.

    Raises:
        NotImplementedError: in use, for a latent site without a closed form.
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        register_gaussian_kl()
        self._known: set[tuple[str, ...]] = set()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and not site_is_subsample(site) and name in model_trace.nodes:
                self._check_closed_form(name, site["fn"], model_trace.nodes[name]["fn"])
        return model_trace, guide_trace

    def _check_closed_form(self, name: str, guide: Any, prior: Any) -> None:
        """Raise unless the pair has a closed form; each pair of kinds is tried just once."""
        key = (*_kinds(guide), "||", *_kinds(prior))
        if key in self._known:
            return
        if not has_closed_form(guide, prior):
            raise NotImplementedError(
                f'objective "analytic_kl" wants a closed form of KL(guide || prior) at site {name!r}, got '
                f'{" of ".join(_kinds(guide))} and {" of ".join(_kinds(prior))}; use objective "elbo", which has the '
                "same expectation"
            )
        self._known.add(key)


def _kinds(fn: Any) -> list[str]:
    """The names of a distribution's classes, from the outside to the inside."""
    kinds = [type(fn).__name__]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
        kinds.append(type(fn).__name__)
    return kinds
