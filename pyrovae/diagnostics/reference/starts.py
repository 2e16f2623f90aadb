"""Where chains start: the first Gaussian of every datum, draws from three sources, and the density they will see."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae import compiled
from pyrovae.diagnostics.gaussians import Fitted
from pyrovae.inference import hmc, laplace
from pyrovae.inference.hmc import LogDensityAndGradient
from pyrovae.seeding import seeded
from pyrovae.target import Target

__all__ = ["COMPILE", "chain_starts", "density", "start_of_chains"]

WIDENING = 2.0  # of the guide's standard deviations
SOURCES = 3
TRACE_FROM, COMPILE_FROM = 500, 5000  # gradients; tracing takes as long as some 400, compiling as some 5000
COMPILE: tuple[bool | str, ...] = (True, False, "auto")


def start_of_chains(num_chains: int, copies: int) -> list[int]:
    """The start of each chain: `copies` chains share one, and what is left over has starts of its own.

    >>> start_of_chains(8, 3)
    [0, 0, 0, 1, 1, 1, 2, 3]
    """
    shared = num_chains // copies
    return [c // copies for c in range(shared * copies)] + [shared + c for c in range(num_chains % copies)]


def chain_starts(target: Target, first: Fitted, num_chains: int, copies: int = 1) -> Float[Tensor, "c n d"]:
    """Starts in turn from the guide's Gaussian, twice as wide; from the first whitening; from the prior.

    Those with a density of zero or without a gradient, in the far tails of a prior, move to the centre.
    """
    starts = start_of_chains(num_chains, copies)
    count = max(starts) + 1
    like = first.gaussian.loc
    noise = torch.randn(count, *like.shape, dtype=like.dtype, device=like.device)
    wide = laplace.unwhiten(laplace.widen(first.guide, WIDENING), noise)
    near = laplace.unwhiten(first.gaussian, noise)
    source = (torch.arange(count, device=like.device) % SOURCES)[:, None, None]
    z = torch.where(source == 0, wide, torch.where(source == 1, near, target.sample_prior(count)))
    value, gradient = hmc.with_gradient(target.log_joint)(z)
    is_good = value.isfinite() & gradient.isfinite().all(-1)
    return torch.where(is_good[..., None], z, first.gaussian.loc)[torch.tensor(starts, device=like.device)]


def density(
    target: Target, num_chains: int, compile: bool | str, num_gradients: int
) -> LogDensityAndGradient:
    """log p(x, z) and its gradient in z, traced or compiled where `num_gradients` calls are expected to pay for it."""
    plain = hmc.with_gradient(target.log_joint)
    if compile is False or num_gradients < TRACE_FROM:
        return plain
    with seeded(0):
        examples = [(draw(num_chains),) for draw in (lambda k: target.sample_guide(k).z, target.sample_prior)]
    build = compiled.compiled if compile is True or num_gradients >= COMPILE_FROM else compiled.traced
    return build(plain, *examples)
