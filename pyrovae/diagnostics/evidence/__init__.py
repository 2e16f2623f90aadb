"""log p(x) of every datum by many estimators, each with error bar, direction of bias and cost.

`draws` makes log-weights of the guide, `sampled` estimates from them; `points` looks at one point, `posterior` at
reference draws, `annealed` goes from a start to the posterior and back, `closed` has no Monte Carlo error.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pyrovae.diagnostics import options as options_module
from pyrovae.diagnostics.evidence.annealed import (
    Annealing,
    check_annealing,
    from_annealing,
    from_both_ends,
    from_reverse_annealing,
)
from pyrovae.diagnostics.evidence.closed import from_closed_form, from_quadrature
from pyrovae.diagnostics.evidence.draws import check_draws, draw_log_weights, draw_weights
from pyrovae.diagnostics.evidence.points import POINT_ESTIMATORS, from_point
from pyrovae.diagnostics.evidence.posterior import POSTERIOR_ESTIMATORS, from_posterior
from pyrovae.diagnostics.evidence.sampled import ESTIMATORS, estimate, from_draws, streamed_iwae
from pyrovae.results import Evidence
from pyrovae.target import Target

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "POINT_ESTIMATORS",
    "POSTERIOR_ESTIMATORS",
    "Annealing",
    "check_annealing",
    "check_draws",
    "check_methods",
    "check_options",
    "check_target",
    "draw_log_weights",
    "draw_weights",
    "estimate",
    "from_both_ends",
    "log_evidence",
    "needs_reference",
]

METHODS: dict[str, Callable[..., Evidence]] = {
    **{name: partial(from_draws, name) for name in ESTIMATORS},
    "iwae": streamed_iwae,
    **{name: partial(from_point, name) for name in POINT_ESTIMATORS},
    **{name: partial(from_posterior, name) for name in POSTERIOR_ESTIMATORS},
    "ais": from_annealing,
    "ais-reverse": from_reverse_annealing,
    "quadrature": from_quadrature,
    "exact": from_closed_form,
}
"""Every estimator of log p(x), by name."""


def log_evidence(target: Target, method: str = "iwae", *, seed: int = 0, **options: Any) -> Evidence:
    """Estimate log p(x) of every datum.

    From draws of the guide, log w_k = log p(x, z_k) - log q(z_k | x), with the options `num_samples` (1000) and
    `defensive` (0.0), the share of draws that come from the prior instead, which bounds the weights wherever the
    likelihood is bounded (Hesterberg 1995):

    - `"elbo"`: mean_k log w_k. Its expectation is log p(x) - KL(q || posterior): a lower bound, whatever K.
    - `"iwae"`: log mean_k w_k (Burda, Grosse and Salakhutdinov 2016). A lower bound in expectation, increasing in
      K, with bias about -Var(w / p(x)) / 2K; its exponential is unbiased for p(x). Memory does not grow with K.
    - `"jackknife"`, `"jackknife-2"`: IWAE with one or two terms of its bias taken off (Nowozin 2018). Either sign.
    - `"psis"`: IWAE with Pareto-smoothed weights (Vehtari, Simpson, Gelman, Yao and Gabry 2024). Less noise, a bias
      of unknown direction.
    - `"cumulant"`: ELBO + Var(log w) / 2. Either sign; needs no heavy-tailed average.
    - `"cubo"`: 1/2 log mean_k w_k^2 (Dieng et al. 2017). An upper bound in the population, but its estimate is biased
      low and at one draw is the ELBO, so it has no direction; infinite once the tail index of w reaches 1/2.
    - `"largest-weight"`: max_k log w_k. No estimate: it grows with K, usually without limit. Here to show that.

    Standard errors need weights of finite variance (squares of them, for "cubo"), and are marked unreliable where k-hat
    is above min(1 - 1/log10 K, 0.7) (half of that).

    From one point, without Monte Carlo error; how far they are off is not known, either:

    - `"single-shot"`: log w at the guide's mean mu. It is *not* an upper bound, nor a lower one: for a Gaussian
      posterior of precision P and a Gaussian guide of covariance C it is ELBO + (tr(PC) - D) / 2, so it is above the
      ELBO for a guide that is too wide, below it for one too narrow, and the ELBO itself, free of noise, at the best
      mean-field guide. It exceeds log p(x) only if log|C| - log|P^-1| > (mu - m)' P (mu - m).
    - `"single-shot-laplace"`: log p(x, mu) + D/2 log 2 pi - 1/2 log|L| + 1/2 g' L^-1 g, with gradient g and
      curvature L at mu: one decode and its Jacobian. Exact for any Gaussian posterior and any mu.
    - `"laplace"`: the same at the mode, found by damped Gauss-Newton for all data at once (Tierney and Kadane 1986).

    From draws of the posterior, `reference`: a tree of `sample_posterior`, or z `[K, N, D]` that are exact draws, as
    those from which data were simulated. Upper bounds in expectation as far as those draws are exact, and marked
    approximate where they are not; data whose reference has no verdict get no number:

    - `"eubo"`: mean of log w = log p(x) + KL(posterior || q).
    - `"reciprocal"`: -log mean of 1/w (Kingma and Welling 2014, appendix D). Tighter, and finite in variance for
      narrow guides, where IWAE is not.

    By annealing from a Gaussian per datum or the prior to the posterior, with HMC moves (Neal 2001). A pilot finds
    temperatures and step sizes, which are frozen and run again with new noise. Options: `num_temperatures` (100),
    `num_chains` (16), `num_steps` (2, leapfrog steps a temperature), `start` ("laplace", "guide", "prior"), `schedule`
    ("adapted", "sigmoid", "geometric", "linear"), `target_accept_prob` (0.8):

    - `"ais"`: forward. A lower bound in expectation; its exponential is unbiased for p(x).
    - `"ais-reverse"`: backward from `reference`. An upper bound in expectation (Grosse, Ghahramani and Adams 2015).
      The two close in on log p(x) as temperatures grow, whatever the guide is.

    Without Monte Carlo error or bias:

    - `"exact"`: in closed form where log p(x, z) is quadratic in z (a linear-Gaussian decoder, a Gaussian prior).
    - `"quadrature"`: on an adaptive grid for one or two latent dimensions, to `tolerance` (1e-3 nats).

    Args:
        target: the model, guide and data.
        method: a key of `METHODS`.
        seed: same seed, machine and versions, same numbers.
        **options: those of the method.

    Raises:
        ValueError: an unknown method or option, an option out of range, fewer than 2 samples, weights that are NaN or
            infinite, a reference of other data, a posterior that the method cannot treat.

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))
    >>> target = Target(model, guide, torch.zeros(1, 2))
    >>> e = log_evidence(target, "iwae", num_samples=4000)
    >>> e.direction, bool(abs(e.value[0] - (-2.5310)) < 5 * e.std_error[0])  # exact: -log(4 pi)
    ('lower', True)
    >>> round(float(log_evidence(target, "exact").value[0]), 4)
    -2.531
    """
    check_target(target)
    check_methods([method])
    check_options(method, options)
    return METHODS[method](target, seed=seed, **options)


def needs_reference(method: str) -> bool:
    """Whether the estimator starts from draws of the posterior."""
    return "reference" in options_module.options_of(METHODS[method])


def check_target(target: object) -> None:
    """Refuse what is no Target."""
    if not isinstance(target, Target):
        raise TypeError(
            f"log p(x) is estimated for a Target, got {type(target).__name__}: pass Target(model, guide, x)"
        )


def check_methods(methods: Sequence[str], *others: str) -> None:
    """Refuse the name of an estimator that does not exist; `others` are allowed too."""
    if isinstance(methods, str):
        raise ValueError(f"methods is a list of names, got the word {methods!r}: pass [{methods!r}]")
    for method in methods:
        if method not in (known := [*METHODS, *others]):
            raise ValueError(f"unknown method {method!r} for log p(x): choose one of {', '.join(known)}")


def check_options(method: str, given: Mapping[str, Any]) -> None:
    """Refuse an option that the method does not have."""
    options_module.check_options(method, METHODS[method], given)
