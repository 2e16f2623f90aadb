"""The best diagonal and full Gaussian for each datum, and their ELBOs and the guide's on fresh draws in common."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrovae.diagnostics import gaussians
from pyrovae.diagnostics.evidence import draw_log_weights
from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.diagnostics.gaps.guide import Guide
from pyrovae.inference import gaussian_fit, laplace
from pyrovae.inference.gaussian_fit import GaussianFit
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["Bounds", "Estimate", "Settings", "measure_bounds"]

SHARE = 50.0  # the tolerance over what a fit may still promise at its end


class Settings(NamedTuple):
    """How to fit and how to measure."""

    num_samples: int
    num_fitting_samples: int
    tolerance: float
    max_steps: int


class Estimate(NamedTuple):
    """Means over draws and their standard errors, per datum, in float64."""

    value: Float[Tensor, " n"]
    std_error: Float[Tensor, " n"]


class Bounds(NamedTuple):
    """What was found for every datum; differences are paired draw by draw."""

    elbo: Mapping[str, Estimate]
    """Of "guide", "diagonal" and "full"."""
    above_guide: Mapping[str, Estimate]
    """ELBO of the best "diagonal" and "full" Gaussian minus the guide's."""
    above_diagonal: Estimate
    """ELBO of the best full Gaussian minus that of the best diagonal one."""
    shortfall: Mapping[str, Estimate]
    """How far the ELBO of what was found lies below the best, "diagonal" and "full": half of what the draws it was
    fitted to claim too much."""
    has_converged: Bool[Tensor, " n"]
    """Both fits."""
    hadamard: Float[Tensor, " n"]
    """The approximation gap of the diagonal family by the curvature at the mode."""
    num_gradient_evaluations: Float[Tensor, " n"]
    """Of Laplace's mode and both fits, per datum."""


def measure_bounds(target: Target, guide: Guide, settings: Settings, *, seed: int) -> Bounds:
    """Fit both Gaussians to every datum of a block, then measure their ELBOs and the guide's on other draws.

    With q_F the best full Gaussian, the ELBO of any Gaussian q is E_q[log p(x, z) - log q_F(z)] - KL(q || q_F). The
    second term is in closed form, and the first varies only as far as the posterior is not Gaussian.

    Raises:
        ValueError: as `standard_noise`; or log p(x, z) is not finite at draws of a Gaussian.
    """
    with seeded(block_seed(seed, 0)):
        rough = gaussians.fit_gaussian(target, "laplace")
    fits, cost = _fit(target, guide, rough.gaussian, rough.guide, settings, block_seed(seed, 1))
    members = {name: fit.gaussian for name, fit in fits.items()}
    if guide.gaussian is not None:
        members = {"guide": guide.gaussian, **members}
    log_w = _fresh(target, members, settings.num_samples, block_seed(seed, 2))
    if "guide" not in log_w:
        own = draw_log_weights(target, settings.num_samples, seed=block_seed(seed, 3))
        log_w = {"guide": own.double(), **log_w}
    elbo = {name: _mean(values) for name, values in log_w.items()}
    curvature = target.curvature(rough.gaussian.loc[None])[0]
    return Bounds(
        elbo,
        {name: _mean(log_w[name] - log_w["guide"]) for name in fits},
        _mean(log_w["full"] - log_w["diagonal"]),
        {name: _shortfall(fit, log_w[name], settings) for name, fit in fits.items()},
        fits["diagonal"].has_converged & fits["full"].has_converged,
        gaussian_fit.hadamard_gap(curvature),
        cost + rough.num_gradient_evaluations,
    )


def _fit(
    target: Target, guide: Guide, rough: Gaussian, moments: Gaussian, settings: Settings, seed: int
) -> tuple[dict[str, GaussianFit], Float[Tensor, " n"]]:
    """The best Gaussians, the full one from the diagonal one if that is the best start, and their gradients."""
    with seeded(seed):
        noise = gaussian_fit.standard_noise(
            settings.num_fitting_samples, target.dim, dtype=target.dtype, device=target.device
        )
    fits: dict[str, GaussianFit] = {}
    starts = [rough, guide.gaussian or moments]
    for name, family in (("diagonal", gaussian_fit.DIAGONAL), ("full", gaussian_fit.FULL)):
        fits[name] = gaussian_fit.fit_gaussian(
            lambda rows: target.rows(rows).log_joint,
            family,
            rough,
            starts,
            noise,
            tolerance=settings.tolerance / SHARE,
            max_steps=settings.max_steps,
        )
        starts = [*starts, fits[name].gaussian]
    counts = [fit.num_gradient_evaluations.double() for fit in fits.values()]
    return fits, torch.stack(counts).sum(0)


def _fresh(
    target: Target, members: Mapping[str, Gaussian], num_samples: int, seed: int
) -> dict[str, Float[Tensor, "k n"]]:
    """For each Gaussian, draws whose mean is its ELBO, from one common noise."""
    full = members["full"]
    kl = {name: gaussian_fit.gaussian_kl(gaussian, full) for name, gaussian in members.items()}
    blocks: dict[str, list[Tensor]] = {name: [] for name in members}
    per_block = max(1, MAX_ROWS // target.num_data)
    for block, first in enumerate(range(0, num_samples, per_block)):
        shape = min(per_block, num_samples - first), target.num_data, target.dim
        with seeded(block_seed(seed, block)):
            noise = torch.randn(shape, dtype=target.dtype, device=target.device)
        for name, gaussian in members.items():
            z = laplace.unwhiten(gaussian, noise)
            blocks[name].append((target.log_joint(z) - laplace.log_prob(full, z)).double() - kl[name])
    drawn = {name: torch.cat(parts) for name, parts in blocks.items()}
    _check_finite(drawn)
    return drawn


def _check_finite(drawn: Mapping[str, Tensor]) -> None:
    for name, values in drawn.items():
        is_bad = ~values.isfinite().all(0)
        if bool(is_bad.any()):
            raise ValueError(
                f"log p(x, z) is not finite at draws of the {name} Gaussian of datum {int(is_bad.nonzero()[0])}: check "
                "the model far from its posterior there, and the scale of the data"
            )


def _mean(values: Float[Tensor, "k n"]) -> Estimate:
    return Estimate(values.mean(0), values.std(0) / len(values) ** 0.5)


def _shortfall(fit: GaussianFit, values: Float[Tensor, "k n"], settings: Settings) -> Estimate:
    """Half of the optimism: on its own draws a maximum is as far above the true one as elsewhere below it."""
    spread = values.std(0) * (1 / len(values) + 1 / settings.num_fitting_samples) ** 0.5
    return Estimate((fit.elbo.double() - values.mean(0)) / 2, spread / 2)
