"""Training objectives by name: objects with Pyro's `loss` and `differentiable_loss`."""

from collections.abc import Callable

from pyro.infer import ELBO, Trace_ELBO

__all__ = ["OBJECTIVES", "make_objective"]

OBJECTIVES: dict[str, Callable[[int], ELBO]] = {
    "elbo": lambda num_particles: Trace_ELBO(num_particles=num_particles),
}


def make_objective(name: str, num_particles: int = 1) -> ELBO:
    """The Pyro objective called `name`.

    "elbo" is the negative ELBO, -E_q[log p(x, z) - log q(z | x)], averaged over `num_particles` draws, with the
    reparameterized gradient where the guide allows it (Kingma & Welling 2014) and the score-function one elsewhere.

    Raises:
        ValueError: no objective has that name.

    >>> make_objective("elbo", num_particles=4).num_particles
    4
    """
    if name not in OBJECTIVES:
        raise ValueError(
            f"objective must be one of {', '.join(sorted(OBJECTIVES))}, got {name!r}; choose one"
        )
    return OBJECTIVES[name](num_particles)
