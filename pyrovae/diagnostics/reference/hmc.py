"""Draws by whitened Hamiltonian Monte Carlo: many chains for every datum in one batch, with a right to refuse."""

from functools import partial

import torch
from torch import Tensor

from pyrovae.diagnostics.gaussians import GAUSSIANS, gaussian
from pyrovae.diagnostics.reference.sampled import Progress, Sampled, diagnose, joined, to_numpy
from pyrovae.inference import chains, hmc, laplace
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["from_hmc"]

MAX_ROWS = 1 << 14  # chains times data that move at once
WIDENING = 2.0  # of the standard deviations from which half of the chains start


def from_hmc(
    target: Target,
    *,
    num_chains: int = 16,
    num_samples: int = 500,
    warmup_steps: int = 200,
    whiten: str = "laplace",
    target_accept_prob: float = 0.8,
    max_rhat: float = 1.01,
    min_ess: float = 400.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sampled:
    """N data x C chains as N*C independent chains in one batch, in the coordinates of a Gaussian per datum."""
    if num_chains < 2 or num_samples < 4:
        raise ValueError(
            f"R-hat compares chains and their halves: it needs num_chains >= 2 and num_samples >= 4, not {num_chains} "
            f"and {num_samples}"
        )
    if whiten not in GAUSSIANS:
        raise ValueError(f"unknown whitening {whiten!r}: choose one of {', '.join(GAUSSIANS)}")
    sample = partial(
        chains.sample_chains,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        target_accept_prob=target_accept_prob,
    )
    blocks = target.split(max(1, MAX_ROWS // num_chains))
    parts = []
    for block, some in enumerate(blocks):
        with seeded(block_seed(seed, block)):
            whitening = gaussian(some, whiten)
            density = hmc.with_gradient(laplace.whitened_density(whitening, some.log_joint))
            start = _finite(density, laplace.whiten(whitening, _starts(some, whitening, num_chains)))
            drawn = sample(density, start, progress=_shifted(progress, block, len(blocks)))
        parts.append(_sampled(drawn, whitening))
    found = joined(parts)
    verdicts = diagnose(found.z, found.stats["diverging"], max_rhat=max_rhat, min_ess=min_ess)
    return found._replace(diagnostics=verdicts, limits={"max_rhat": max_rhat, "min_ess": min_ess})


def _sampled(drawn: chains.Chains, whitening: Gaussian) -> Sampled:
    stats = {
        "lp": drawn.log_density,
        "acceptance_rate": drawn.acceptance_rate,
        "step_size": drawn.step_size.expand(drawn.log_density.shape),
        "n_steps": drawn.num_steps[:, None].expand(drawn.log_density.shape),
        "diverging": drawn.diverging,
        "energy": drawn.energy,
        "energy_error": drawn.energy_error,
    }
    z = to_numpy(laplace.unwhiten(whitening, drawn.position))
    return Sampled(z, {name: to_numpy(each) for name, each in stats.items()}, drawn.num_gradient_evaluations)


def _shifted(progress: Progress | None, block: int, num_blocks: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(block * total + done, num_blocks * total)


def _starts(target: Target, whitening: Gaussian, num_chains: int) -> Tensor:
    """Half of the chains from the widened Gaussian, half from the prior: `[C, N, D]`."""
    num_wide = (num_chains + 1) // 2
    noise = torch.randn(
        num_wide, *whitening.loc.shape, dtype=whitening.loc.dtype, device=whitening.loc.device
    )
    wide = laplace.unwhiten(laplace.widen(whitening, WIDENING), noise)
    return torch.cat([wide, target.sample_prior(num_chains - num_wide)])


def _finite(density: hmc.LogDensityAndGradient, start: Tensor) -> Tensor:
    """Starts with a density of zero or without a gradient, in the far tails of a prior, move to the centre."""
    value, gradient = density(start)
    is_good = value.isfinite() & gradient.isfinite().all(-1)
    return torch.where(is_good[..., None], start, torch.zeros_like(start))
