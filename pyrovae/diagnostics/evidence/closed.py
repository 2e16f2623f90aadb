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


def from_quadrature(target: Target, *, tolerance: float = 1e-3, seed: int = 0) -> Evidence:
    """log of the integral of p(x, z) over z on an adaptive grid, for one or two latent dimensions.

    `std_error` is the change at the last halving of the grid, which bounds the error of a smooth density; it is not
    Monte Carlo. The grid begins with the range of draws from guide and prior: a mode outside of both, or far narrower
    than the spacing of the first grid in that range, is not found.

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
    value, error, converged = (
        torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
        for name in ("log_integral", "error", "is_converged")
    )
    return Evidence(
        method="quadrature",
        value=value,
        std_error=error,
        direction="exact",
        is_unbiased_density=True,
        is_reliable=converged & np.isfinite(value) & np.isfinite(error),
        is_approximate=np.zeros(len(value), bool),
        reason=""
        if converged.all()
        else f"the error of the grid stays above {tolerance:g} nats for some data",
        num_density_evaluations=max(part.num_evaluations for part in parts),
        seconds=time.perf_counter() - start,
    )


def _in_double(target: Target, z: Tensor) -> Tensor:
    """log p(x, z) for a grid that is finer than a target in single precision can tell its points apart."""
    return target.log_joint(z.to(target.dtype)).double()
