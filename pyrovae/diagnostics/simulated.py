"""The guide against the true posterior on data that the model itself drew: an audit that needs no reference."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from pyrovae import results
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Draws, Simulation, Target

__all__ = ["gap_group", "gap_terms", "simulated_gap", "simulated_parts"]

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
        DataTree with `calibration`: per `simulation` `simulated_gap` (log w(z) - log w(z')), `simulated_upper`
        (log w(z)) and `simulated_lower` (log w(z')); their means over data are the estimates, and
        `summary` gives them with standard errors.

    Raises:
        ValueError: fewer than 2 simulations, or whatever `Target` and `Target.simulate` refuse.
        NotImplementedError: if the guide cannot score a given z.

    Source: Domke 2021 (SDOS); Cusumano-Towner and Mansinghka 2017 (AIDE), with one draw each.

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))  # sqrt(2) times as wide as the posterior
    >>> gap = simulated_gap(model, guide, torch.zeros(3, 2))["calibration"]["simulated_gap"]
    >>> round(float(gap.mean()), 1)  # exact: D/2 (r + 1/r) - D = 0.5 for the ratio r = 2 of variances
    0.5
    """
    if num_simulations < 2:
        raise ValueError(
            f"num_simulations must be at least 2, so that there is an error bar, but is {num_simulations}"
        )
    start = time.perf_counter()
    target = Target(model, guide, *data, plate=plate, params=params, simulate=simulate)
    pieces = []
    for block, part in enumerate(simulated_parts(target, num_simulations, MAX_ROWS)):
        with seeded(block_seed(seed, block)):
            simulation = part.simulate(part.num_data)
            simulated = part.with_data(*simulation.data)
            draws = simulated.sample_guide(1)
        pieces.append(gap_terms(simulated, simulation, draws))
    terms = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    attrs = {
        "num_simulations": num_simulations,
        "seed": seed,
        "num_density_evaluations": 2,
        "seconds": time.perf_counter() - start,
    }
    return results.build_tree({"calibration": gap_group(terms, attrs)})


def simulated_parts(target: Target, num_simulations: int, size: int) -> Iterator[Target]:
    """The target with one row for each simulation, in parts of at most `size`.

    Arguments that are not simulated come from all data in turn, across the parts.
    """
    for first in range(0, num_simulations, size):
        count = min(size, num_simulations - first)
        yield target.rows([i % target.num_data for i in range(first, first + count)])


def gap_terms(simulated: Target, simulation: Simulation, draws: Draws) -> dict[str, Float[np.ndarray, " s"]]:
    """log w at the z that made each simulated datum, at the first draw of the guide for it, and the difference."""
    truth, draw = simulation.z[None], draws.z[:1]
    upper = simulated.log_joint(truth) - simulated.log_guide(truth)
    lower = simulated.log_joint(draw) - draws.log_q[:1]
    ends = [side[0].double().cpu().numpy() for side in (upper, lower)]
    return {"simulated_gap": ends[0] - ends[1], "simulated_upper": ends[0], "simulated_lower": ends[1]}


def gap_group(variables: Mapping[str, Any], attrs: Mapping[str, Any], **coords: Any) -> xr.Dataset:
    """The group `calibration`; the terms of `gap_terms`, where they are there, with their directions."""
    made = results.group("calibration", variables, attrs, **coords)
    directions = {"simulated_gap": "exact", "simulated_upper": "upper", "simulated_lower": "lower"}
    for name in directions.keys() & set(variables):
        made[name].attrs["direction"] = directions[name]
    return made
