"""log p(x) without Monte Carlo error: in closed form for a Gaussian posterior, on a grid in one or two dimensions."""

import time
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.diagnostics.gaussians import PROBES, gaussian_posterior
from pyrovae.inference import quadrature
from pyrovae.results import Evidence
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["from_closed_form", "from_quadrature"]

BOX = 1000  # draws of guide and prior each, whose range is where quadrature begins


def from_closed_form(target: Target, *, seed: int = 0) -> Evidence:
    """log p(x) where log p(x, z) is quadratic in z: a linear-Gaussian decoder with a Gaussian prior.

    Raises:
        ValueError: as `gaussian_posterior`, for a density that is not quadratic.
    """
    start = time.perf_counter()
    parts = [
        gaussian_posterior(some, seed=block_seed(seed, i)).log_evidence
        for i, some in enumerate(target.split(max(1, MAX_ROWS // PROBES)))
    ]
    value = torch.cat(parts).double().cpu().numpy()
    return Evidence(
        method="exact",
        value=value,
        std_error=np.zeros(len(value)),
        direction="exact",
        is_unbiased_density=True,
        is_reliable=np.isfinite(value),
        is_approximate=np.zeros(len(value), bool),
        num_density_evaluations=PROBES,
        num_gradient_evaluations=1 + target.dim,
        seconds=time.perf_counter() - start,
    )


def from_quadrature(
    target: Target, *, tolerance: float = 1e-3, max_error: float | None = None, seed: int = 0
) -> Evidence:
    """log of the integral of p(x, z) over z on an adaptive grid, for one or two latent dimensions.

    `std_error` is the change at the last halving of the grid, which bounds the error of a smooth density; it is not
    Monte Carlo. The grid begins with the range of draws from guide and prior: a mode outside of both, or far narrower
    than the spacing of the first grid in that range, is not found. Data whose density is NaN at points that matter have
    no value; `reason` names the point. The grid is made finer down to an error of `tolerance`, or up to its largest
    size; up to `max_error`, by default the same, the value is called reliable all the same.

    Raises:
        ValueError: more than two latent dimensions.
    """
    start = time.perf_counter()
    parts = []
    for i, some in enumerate(target.split(max(1, MAX_ROWS // BOX))):
        with seeded(block_seed(seed, i)):
            z = torch.cat([some.sample_guide(BOX).z, some.sample_prior(BOX)]).double()
        density = partial(_in_double, some)
        parts.append(quadrature.integrate(density, z.amin(0), z.amax(0), tolerance=tolerance))
    value, error, converged, bad_point = (
        torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
        for name in ("log_integral", "error", "is_converged", "bad_point")
    )
    limit = tolerance if max_error is None else max(tolerance, max_error)
    good = converged | (error <= limit)
    return Evidence(
        method="quadrature",
        value=value,
        std_error=error,
        direction="exact",
        is_unbiased_density=True,
        is_reliable=good & np.isfinite(value) & np.isfinite(error),
        is_approximate=np.zeros(len(value), bool),
        reason=_reason(target, bad_point, good, limit),
        num_density_evaluations=max(part.num_evaluations for part in parts),
        seconds=time.perf_counter() - start,
    )


def _reason(target: Target, bad_point: np.ndarray, converged: np.ndarray, tolerance: float) -> str:
    """Which data have no value that is good, and why: a density that is no number, or a grid that is too coarse."""
    is_bad = ~np.isnan(bad_point).any(1)
    told, count = [], len(converged)
    if is_bad.any():
        first = int(np.flatnonzero(is_bad)[0])
        place = _place(target, bad_point[first])
        told.append(
            f"the density of {is_bad.sum()} of {count} data is NaN or infinite where it matters, for datum {first} at "
            f"or beside {place} (unconstrained): bound what overflows there in the model, or use float64"
        )
    if (coarse := ~converged & ~is_bad).any():
        told.append(
            f"the error of the finest grid is above {tolerance:g} nats for {coarse.sum()} of {count} data"
        )
    return "; ".join(told)


def _place(target: Target, z: np.ndarray) -> str:
    """z by site: `s = 4.99, a = [1.02, 3]`."""
    numbers = {site: ", ".join(f"{u:.3g}" for u in z[columns]) for site, columns in target.sites.items()}
    return ", ".join(f"{site} = {f'[{found}]' if ',' in found else found}" for site, found in numbers.items())


def _in_double(target: Target, z: Tensor) -> Tensor:
    """log p(x, z) for a grid that is finer than a target in single precision can tell its points apart."""
    return target.log_joint(z.to(target.dtype)).double()
