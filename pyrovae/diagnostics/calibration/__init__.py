"""Simulation-based calibration of an amortized guide: is it the posterior, on data that the model itself draws?

`simulations` ranks the truth among the guide's draws, `uniformity` tests the ranks, `shift` says how far from
simulated data the real ones are.
"""

import time

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.diagnostics.calibration.shift import MIN_DATA, shift
from pyrovae.diagnostics.calibration.simulations import Progress, codes_of, simulate_blocks
from pyrovae.diagnostics.calibration.uniformity import ecdf, ecdf_band, moment_tests
from pyrovae.diagnostics.reference import latent_names
from pyrovae.diagnostics.simulated import gap_group
from pyrovae.seeding import block_seed
from pyrovae.target import Target

__all__ = ["calibrate"]

LEVELS = np.round(np.linspace(0.01, 0.99, 99), 2)
BAND = 0.95  # the coverage of the bands, over all levels and latents at once


def calibrate(
    target: Target,
    *,
    num_simulations: int = 10_000,
    num_draws: int = 15,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Test whether the guide is the posterior, on pairs (z, x) drawn from the model; no MCMC.

    Each simulated z is an exact draw of p(z | x). If the guide is the posterior, it is one draw more among the K of
    the guide for that x, and its rank is uniform; so are, then, its probability integral transforms u = (rank + V) /
    (K + 1), V uniform:

    - `pit`, for every latent. Mean u off 1/2: the guide is biased. Mean (u - 1/2)^2 above 1/12: it is over-confident;
      below: under-confident.
    - `likelihood_pit`, of log p(x | z). It sees a guide that ignores the data, which no test on z alone can: the prior
      passes those.
    - `tarp_pit`, of the distance to a draw of the prior, in the prior's standard deviations: joint over latents. Its
      ECDF at a level is the coverage of the guide's credible region of that level.

    Each is tested by two moments (`_mean`, `_spread`, with `_std_error`, `_z` and two-sided `_p_value`, that of `pit`
    times the number of latents), and has an ECDF at `level`, which the band from `ecdf_lower` to `ecdf_upper` holds
    with probability 0.95, over all levels and latents, if the guide is the posterior.

    Where the guide can score, `simulated_gap` and its ends, as of `simulated_gap`: the divergence in nats.

    All of this is about data like the model's own. `shift_*` says how far these are from the target's data: a
    classifier's `shift_auc` on the guide's means of z and of log p(x | z), and the shifts of each.

    Args:
        target: the model, guide and data; the model must be one that can be simulated, see `Target.simulate`.
        num_simulations: S, at least 20.
        num_draws: K, draws of the guide for each, at least 1; the error bars do not see it, the power does.
        seed: same seed, machine and versions, same numbers.
        progress: called with (done, total) simulations.

    Returns:
        DataTree with `calibration`.

    Raises:
        ValueError: too few simulations or draws, or a model that cannot be simulated, with what to do.

    Source: Talts et al. 2018 (ranks); Modrák et al. 2023 (log p(x | z)); Lemos et al. 2023 (TARP); Säilynoja, Bürkner
        and Vehtari 2022 (the band); Domke 2021 (the gap).

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))  # 1/sqrt(2) of the posterior's sd
    >>> found = calibrate(Target(model, guide, torch.randn(50, 2)), num_simulations=2000)["calibration"]
    >>> bool((found["pit_spread"] > 1 / 12).all() and (found["pit_spread_p_value"] < 1e-6).all())
    True
    """
    if num_simulations < MIN_DATA or num_draws < 1:
        raise ValueError(
            f"num_simulations must be at least {MIN_DATA} and num_draws at least 1, but they are {num_simulations} and "
            f"{num_draws}: raise them"
        )
    start = time.perf_counter()
    drawn = simulate_blocks(target, num_simulations, num_draws, seed, progress)
    codes = drawn.pop("codes")
    shifts = shift(codes, codes_of(target, num_draws, seed), seed=block_seed(seed, 3))
    lower, upper = ecdf_band(num_simulations, LEVELS, 1 - (1 - BAND) / target.dim, seed=block_seed(seed, 4))
    variables = {**drawn, **_tests(drawn), **shifts, "ecdf_lower": lower, "ecdf_upper": upper}
    attrs = {
        "num_simulations": num_simulations,
        "num_draws": num_draws,
        "num_data": target.num_data,
        "band": BAND,
        "seed": seed,
        "seconds": time.perf_counter() - start,
    }
    made = gap_group(variables, attrs, latent=latent_names(target), level=LEVELS)
    return results.build_tree({"calibration": made})


def _tests(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The moments and the ECDF of every kind of PIT."""
    found: dict[str, np.ndarray] = {}
    for name, curve in (("pit", "ecdf"), ("likelihood_pit", "likelihood_ecdf"), ("tarp_pit", "tarp_ecdf")):
        found |= {f"{name}_{test}": value for test, value in moment_tests(drawn[name]).items()}
        found[curve] = ecdf(drawn[name], LEVELS)
    return found
