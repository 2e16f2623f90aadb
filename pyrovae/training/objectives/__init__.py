"""Training objectives by name: Pyro `ELBO`s, for `fit`, for `pyro.infer.SVI` and for comparing their gradients."""

import inspect
from collections.abc import Callable

from pyro.infer import ELBO, Trace_ELBO

from pyrovae.training.objectives.analytic_kl import AnalyticKL
from pyrovae.training.objectives.bounds import CIWAE, IWAE, MIWAE, PIWAE, Renyi
from pyrovae.training.objectives.hmc import HMCGradient
from pyrovae.training.objectives.particles import ParticleObjective, Plan
from pyrovae.training.objectives.path import STL, DReG, WakeSleepDReG
from pyrovae.training.objectives.score import VIMCO, Detached, ScoreFunction, ScoreFunctionLOO, WakeSleep

__all__ = [
    "CIWAE",
    "ELBO_OBJECTIVES",
    "IWAE",
    "KL_WEIGHTED",
    "MIWAE",
    "OBJECTIVES",
    "PIWAE",
    "STL",
    "VIMCO",
    "AnalyticKL",
    "DReG",
    "Detached",
    "HMCGradient",
    "ParticleObjective",
    "Plan",
    "Renyi",
    "ScoreFunction",
    "ScoreFunctionLOO",
    "WakeSleep",
    "WakeSleepDReG",
    "make_objective",
]


def _elbo(num_particles: int = 1) -> ELBO:
    return Trace_ELBO(num_particles=num_particles)


OBJECTIVES: dict[str, Callable[..., ELBO]] = {
    "elbo": _elbo,
    "analytic_kl": AnalyticKL,
    "stl": STL,
    "iwae": IWAE,
    "miwae": MIWAE,
    "ciwae": CIWAE,
    "piwae": PIWAE,
    "dreg": DReG,
    "rws": WakeSleep,
    "rws_dreg": WakeSleepDReG,
    "score_function": ScoreFunction,
    "score_function_loo": ScoreFunctionLOO,
    "vimco": VIMCO,
    "renyi": Renyi,
    "detached": Detached,
    "hmc": HMCGradient,
}
"""What `make_objective` calls with `num_particles`, and with what else each takes."""

ELBO_OBJECTIVES = ("elbo", "analytic_kl", "stl", "score_function", "score_function_loo", "detached", "hmc")
"""Those whose loss is minus the ELBO; that of the others is minus another bound."""

KL_WEIGHTED = ("elbo", "analytic_kl", "stl")
"""Those in which the KL term can be weighted."""


def make_objective(
    name: str, num_particles: int = 1, plate: str = "data", **options: float | int | None
) -> ELBO:
    r"""The objective called `name`, a Pyro `ELBO`.

    | name | loss, minus | gradient of the guide |
    |---|---|---|
    | "elbo" | ELBO | reparameterized where the guide is (Kingma & Welling 2014), else score function |
    | "analytic_kl" | ELBO, its KL term in closed form | reparameterized |
    | "stl" | ELBO | path derivative (Roeder et al. 2017) |
    | "score_function" | ELBO | score function, without reparameterization (Williams 1992) |
    | "score_function_loo" | ELBO | the same with leave-one-out baselines (Kool et al. 2019) |
    | "detached" | ELBO | exactly zero, to show why |
    | "iwae" | IWAE (Burda et al. 2016) | reparameterized |
    | "dreg" | IWAE | doubly reparameterized (Tucker et al. 2019) |
    | "vimco" | IWAE | score function with leave-one-out baselines (Mnih & Rezende 2016) |
    | "rws" | IWAE | of -KL(posterior \|\| guide) (Bornschein & Bengio 2015) |
    | "rws_dreg" | IWAE | the same, doubly reparameterized (Tucker et al. 2019) |
    | "miwae" | mean of `num_outer` IWAEs (Rainforth et al. 2018) | reparameterized |
    | "ciwae" | `beta` ELBO + (1 - `beta`) IWAE (Rainforth et al. 2018) | reparameterized |
    | "piwae" | IWAE | that of "miwae" (Rainforth et al. 2018) |
    | "hmc" | ELBO; the model's gradient at draws of short HMC chains (Hoffman 2017) | reparameterized |
    | "renyi" | Renyi bound of order `alpha` (Li & Turner 2016) | reparameterized |

    Args:
        name: one of those.
        num_particles: draws of z for each datum, all of them: "miwae" and "piwae" divide them among `num_outer` bounds.
        plate: name of the plate over the data.
        **options: `num_outer`, `beta`, `alpha` where the table has them; `num_transitions` of "hmc"; `chunk_size`,
            the particles in one graph, for all but the first two. None stands for an option that was not given.

    Raises:
        ValueError: no objective has that name; an option it does not take, is missing or out of its range.

    >>> make_objective("miwae", num_particles=32, num_outer=4).num_outer
    4
    """
    if name not in OBJECTIVES:
        raise ValueError(
            f"objective must be one of {', '.join(sorted(OBJECTIVES))}, got {name!r}; choose one"
        )
    known = inspect.signature(OBJECTIVES[name]).parameters
    given = {key: value for key, value in options.items() if value is not None}
    takes = [key for key in known if key not in ("num_particles", "plate")]
    for key in given:
        if key not in takes:
            advice = "; the factor of the KL term is kl_weight" if key == "beta" else ""
            raise ValueError(
                f'objective "{name}" takes {", ".join(takes) or "no options"}, got {key}; leave it out{advice}'
            )
    for key in takes:
        if known[key].default is inspect.Parameter.empty and key not in given:
            raise ValueError(f'objective "{name}" wants {key}, got none; pass {key}=...')
    plate_option = {"plate": plate} if "plate" in known else {}
    return OBJECTIVES[name](num_particles=num_particles, **plate_option, **given)
