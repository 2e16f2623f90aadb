"""The guide against the true posterior on data that the model itself drew: an audit that needs no reference."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["simulated_gap"]

MAX_ROWS = 1 << 14  # simulated data that the model sees at once


def simulated_gap(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    plate: str = "data",
    params: Mapping[str, Tensor] | None = None,
    simulate: Callable[..., Any] | None = None,
    num_simulations: int = 10_000,
    seed: int = 0,
) -> xr.DataTree:
    """Estimate the divergence of guide and posterior, both ways, on data simulated from the model; no MCMC.

    A simulated pair (z, x) ~ p(z) p(x | z) holds an exact draw of p(z | x). With log w(z) = log p(x, z) - log q(z | x)
    and z' from the guide, one draw of each a datum gives, without bias,

    E[log w(z)] - E[log w(z')] = E_x[KL(posterior || guide) + KL(guide || posterior)]  >= 0,

    zero only for a guide that is the posterior; and E[log w(z)] and E[log w(z')] bound the model's negative entropy
    E[log p(x)] from above and below. It speaks of data like the model's own: real data may be far from these, where
    the guide is better or worse.

    Args:
        model, guide, *data, plate, params, simulate: as for `Target`; the data lend their form to the simulated ones,
            and the arguments that are not simulated.
        num_simulations: pairs, at least 2.
        seed: same seed, machine and versions, same numbers.

    Returns:
        DataTree with `gaps`: per simulated datum `simulated_gap` (log w(z) - log w(z')), `simulated_upper`
        (log w(z)) and `simulated_lower` (log w(z')); their means over data are the estimates, and
        `summary` gives them with standard errors.

    Raises:
        ValueError: fewer than 2 simulations, or whatever `Target` and `Target.simulate` refuse.
        NotImplementedError: if the guide cannot score a given z.

    Source: Domke 2021 (SDOS); Cusumano-Towner and Mansinghka 2017 (AIDE), with one draw each.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))  # sqrt(2) times as wide as the posterior
    >>> gap = simulated_gap(model, guide, torch.zeros(3, 2))["gaps"]["simulated_gap"]
    >>> round(float(gap.mean()), 1)  # exact: D/2 (r + 1/r) - D = 0.5 for the ratio r = 2 of variances
    0.5
    """
    if num_simulations < 2:
        raise ValueError(
            f"num_simulations must be at least 2, so that there is an error bar, but is {num_simulations}"
        )
    start = time.perf_counter()
    target = Target(model, guide, *data, plate=plate, params=params, simulate=simulate)
    pieces = [
        _pair_of_weights(target, min(MAX_ROWS, num_simulations - first), block_seed(seed, block))
        for block, first in enumerate(range(0, num_simulations, MAX_ROWS))
    ]
    upper, lower = (torch.cat(side).double().cpu().numpy() for side in zip(*pieces, strict=True))
    terms = {"simulated_gap": upper - lower, "simulated_upper": upper, "simulated_lower": lower}
    attrs = {
        "num_simulations": num_simulations,
        "seed": seed,
        "num_density_evaluations": 2,
        "seconds": time.perf_counter() - start,
    }
    made = results.group("gaps", {name: (("datum",), values) for name, values in terms.items()}, attrs)
    for name, direction in zip(terms, ("exact", "upper", "lower"), strict=True):
        made[name].attrs["direction"] = direction
    return results.build_tree({"gaps": made})


def _pair_of_weights(target: Target, num_simulations: int, seed: int) -> tuple[Tensor, Tensor]:
    """log w at the z that made each simulated datum, and at a draw of the guide for it."""
    with seeded(seed):
        simulation = target.simulate(num_simulations)
        simulated = target.with_data(*simulation.data)
        draw = simulated.sample_guide(1)
    truth = simulation.z[None]
    upper = simulated.log_joint(truth) - simulated.log_guide(truth)
    lower = simulated.log_joint(draw.z) - draw.log_q
    return upper[0], lower[0]
