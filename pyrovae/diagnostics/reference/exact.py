"""Independent draws of a posterior that is Gaussian."""

from collections.abc import Iterator

import numpy as np
import torch

from pyrovae.diagnostics.gaussians import gaussian_posterior
from pyrovae.diagnostics.reference.sampled import Progress, Sampled, diagnose, to_numpy
from pyrovae.inference import laplace
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["from_closed_form"]

MAX_ROWS = 1 << 14  # draws times data whose density is evaluated at once


def from_closed_form(
    target: Target,
    *,
    num_chains: int = 4,
    num_samples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sampled]:
    """Draws where log p(x, z) is quadratic in z, a linear-Gaussian decoder with a Gaussian prior; always "ok".

    Raises:
        ValueError: for any other posterior; fewer than 1 chain or 4 draws.
    """
    if num_chains < 1 or num_samples < 4:
        raise ValueError(f"need num_chains >= 1 and num_samples >= 4, not {num_chains} and {num_samples}")
    shape = (num_chains, num_samples)
    blocks = target.split(max(1, MAX_ROWS // (num_chains * num_samples)))
    for block, some in enumerate(blocks):
        posterior = gaussian_posterior(some, seed=seed).gaussian
        with seeded(block_seed(seed, block)):
            noise = torch.randn(
                num_chains * num_samples, *posterior.loc.shape, dtype=some.dtype, device=some.device
            )
        z = laplace.unwhiten(posterior, noise)
        lp = to_numpy(some.log_joint(z).unflatten(0, shape))
        stats = {"lp": lp, "diverging": np.zeros(lp.shape, bool)}
        draws = to_numpy(z.unflatten(0, shape))
        # Independent draws of the posterior have nothing to prove.
        diagnostics = diagnose(draws, stats["diverging"], max_rhat=np.inf, min_ess=0.0)
        certain = {"verdict": np.full(some.num_data, "ok"), "reason": np.full(some.num_data, "")}
        yield Sampled(draws, stats, 0, {**diagnostics, **certain})
        if progress is not None:
            progress(block + 1, len(blocks))
