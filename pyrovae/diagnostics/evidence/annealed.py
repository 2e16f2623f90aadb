"""Annealing between a start that is known and the posterior: a lower bound forward, an upper bound backward."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.diagnostics.evidence.posterior import PosteriorDraws, read_draws, with_refusals
from pyrovae.diagnostics.gaussians import GAUSSIANS, fit_gaussian
from pyrovae.inference import annealing, hmc, laplace, pilot, weights
from pyrovae.inference.annealing import Annealed, Endpoints, Path, Plan
from pyrovae.inference.laplace import Gaussian
from pyrovae.results import Evidence
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["Annealing", "check_annealing", "from_annealing", "from_both_ends", "from_reverse_annealing"]

PRIOR = 1000  # draws of the prior that give its moments
SMALLEST_SHARE = 0.5  # of the chains that must count (effective sample size) for an error bar to be trusted


class Annealing(NamedTuple):
    """How to anneal; the options that "ais", "ais-reverse" and "bidirectional" share."""

    num_temperatures: int = 100
    num_chains: int = 16
    num_steps: int = 2
    start: str = "laplace"
    schedule: str = "adapted"
    target_accept_prob: float = 0.8


class _Block(NamedTuple):
    """Some data, with the path from their start, its frozen plan, and what tuning took."""

    target: Target
    whitening: Gaussian
    path: Path
    draw: Callable[[int], Tensor]
    plan: Plan
    num_gradient_evaluations: int
    """Of the start and the tuning, per datum."""
    seed: int


def from_annealing(
    target: Target,
    *,
    num_temperatures: int = 100,
    num_chains: int = 16,
    num_steps: int = 2,
    start: str = "laplace",
    schedule: str = "adapted",
    target_accept_prob: float = 0.8,
    seed: int = 0,
) -> Evidence:
    """log mean exp of annealed log-weights: a lower bound in expectation, whose exponential is unbiased for p(x)."""
    options = Annealing(num_temperatures, num_chains, num_steps, start, schedule, target_accept_prob)
    began = time.perf_counter()
    blocks = _tuned(target, options, seed)
    return _forward(blocks, options, began)


def from_reverse_annealing(
    target: Target,
    *,
    reference: xr.DataTree | Tensor | None = None,
    num_temperatures: int = 100,
    num_chains: int = 16,
    num_steps: int = 2,
    start: str = "laplace",
    schedule: str = "adapted",
    target_accept_prob: float = 0.8,
    seed: int = 0,
) -> Evidence:
    """-log mean exp of minus the log-weights on the way back from posterior draws: an upper bound in expectation."""
    options = Annealing(num_temperatures, num_chains, num_steps, start, schedule, target_accept_prob)
    draws = read_draws(target, reference)
    began = time.perf_counter()
    blocks = _tuned(target, options, seed)
    return _reverse(blocks, draws, options, began)


def from_both_ends(
    target: Target, reference: xr.DataTree | Tensor | None, options: Annealing, *, seed: int = 0
) -> tuple[Evidence, Evidence]:
    """Both ends of the sandwich under one frozen plan; each is charged for the tuning."""
    draws = read_draws(target, reference)
    began = time.perf_counter()
    blocks = _tuned(target, options, seed)
    tuning = time.perf_counter() - began
    lower = _forward(blocks, options, began)
    return lower, _reverse(blocks, draws, options, time.perf_counter() - tuning)


def _tuned(target: Target, options: Annealing, seed: int) -> list[_Block]:
    check_annealing(options)
    parts = target.split(max(1, MAX_ROWS // options.num_chains))
    return [_tune(some, options, block_seed(seed, i)) for i, some in enumerate(parts)]


def _tune(target: Target, options: Annealing, seed: int) -> _Block:
    found_for = 0
    with seeded(block_seed(seed, 0)):
        if options.start == "prior":
            whitening = laplace.from_draws(target.sample_prior(PRIOR))
            path, draw = _prior_path(target, whitening), _prior_draws(target, whitening)
        else:
            fitted = fit_gaussian(target, options.start)
            whitening, found_for = fitted.gaussian, fitted.num_gradient_evaluations
            density = hmc.with_gradient(target.log_joint)
            path, draw = annealing.gaussian_path(whitening, density), _gaussian_draws(whitening)
        tuned = pilot.tune(
            draw(options.num_chains),
            path,
            num_temperatures=options.num_temperatures,
            num_steps=options.num_steps,
            schedule=options.schedule,
            target_accept_prob=options.target_accept_prob,
        )
    cost = found_for + options.num_chains * tuned.num_gradient_evaluations
    return _Block(target, whitening, path, draw, tuned.plan, cost, seed)


def _forward(blocks: list[_Block], options: Annealing, began: float) -> Evidence:
    found = []
    for block in blocks:
        # New noise: a plan must not know the run that it weighs.
        with seeded(block_seed(block.seed, 1)):
            position = block.draw(options.num_chains)
            found.append(annealing.forward(position, block.path, block.plan))
    log_w = torch.cat([each.log_weight for each in found], 1)
    seconds = time.perf_counter() - began
    return _evidence("ais", log_w, options.num_temperatures, _cost(blocks, found), seconds)


def _reverse(blocks: list[_Block], draws: PosteriorDraws, options: Annealing, began: float) -> Evidence:
    ends = _spread_out(draws.z, options.num_chains)
    found, first = [], 0
    for block in blocks:
        z = ends[:, first : first + block.target.num_data]
        first += block.target.num_data
        with seeded(block_seed(block.seed, 2)):
            position = laplace.whiten(block.whitening, z)
            found.append(annealing.reverse(position, block.path, block.plan))
    log_w = -torch.cat([each.log_weight for each in found], 1)
    cost = _cost(blocks, found) + draws.num_gradient_evaluations
    seconds = time.perf_counter() - began
    made = _evidence("ais-reverse", log_w, options.num_temperatures, cost, seconds)
    return with_refusals(made, draws)


def _evidence(method: str, log_w: Tensor, num_temperatures: int, cost: int, seconds: float) -> Evidence:
    num_chains = len(log_w)
    log_mean = weights.iwae(log_w)
    value = log_mean if method == "ais" else -log_mean
    std_error = weights.iwae_std_error(log_w)
    share = weights.effective_sample_size(log_w) / num_chains
    is_reliable = value.isfinite() & std_error.isfinite() & (share >= SMALLEST_SHARE)
    reason = f"error bar unreliable where fewer than half of the {num_chains} chains count"
    if num_chains == 1:
        reason = "no error bar from one chain: ask for more, with as many draws to start from"
    return Evidence(
        method=method,
        value=_numpy(value),
        std_error=_numpy(std_error),
        direction="lower" if method == "ais" else "upper",
        is_unbiased_density=method == "ais",
        is_reliable=_numpy(is_reliable),
        is_approximate=np.zeros(len(value), bool),
        reason="" if bool(is_reliable.all()) else reason,
        num_gradient_evaluations=cost,
        seconds=seconds,
        budget=num_temperatures,
    )


def _cost(blocks: list[_Block], found: list[Annealed]) -> int:
    """Gradients per datum, over all chains, start and tuning included."""
    return max(
        len(each.log_weight) * each.num_gradient_evaluations + block.num_gradient_evaluations
        for block, each in zip(blocks, found, strict=True)
    )


def _spread_out(z: Float[Tensor, "c t n d"], num_chains: int) -> Float[Tensor, "k n d"]:
    """At most `num_chains` draws, as far apart within the chains as can be."""
    flat = z.transpose(0, 1).flatten(0, 1)  # draw by draw, so that neighbours come from different chains
    count = min(num_chains, len(flat))
    return flat[torch.linspace(0, len(flat) - 1, count, device=z.device).round().long()]


def _gaussian_draws(whitening: Gaussian) -> Callable[[int], Tensor]:
    loc = whitening.loc
    return lambda num_chains: torch.randn(num_chains, *loc.shape, dtype=loc.dtype, device=loc.device)


def _prior_draws(target: Target, whitening: Gaussian) -> Callable[[int], Tensor]:
    return lambda num_chains: laplace.whiten(whitening, target.sample_prior(num_chains))


def _prior_path(target: Target, whitening: Gaussian) -> Path:
    """From the prior to the posterior, in coordinates in which the prior is about of unit width."""
    log_det = whitening.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def evaluate(u: Float[Tensor, "c n d"]) -> Endpoints:
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            terms = target.log_terms(laplace.unwhiten(whitening, leaf))
            (prior,) = torch.autograd.grad(terms.log_prior.sum(), leaf, retain_graph=True)
            (likelihood,) = torch.autograd.grad(terms.log_likelihood.sum(), leaf)
        start = terms.log_prior.detach() + log_det
        return Endpoints(start, prior, start + terms.log_likelihood.detach(), prior + likelihood)

    return evaluate


def check_annealing(options: Annealing) -> None:
    """Refuse what no run can be made with."""
    for name in ("num_temperatures", "num_chains", "num_steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, but is {getattr(options, name)}")
    if options.start not in (known := [*GAUSSIANS, "prior"]):
        raise ValueError(f"unknown start {options.start!r} of annealing: choose one of {', '.join(known)}")


def _numpy(value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy()
    return array if array.dtype == bool else array.astype(np.float64)
