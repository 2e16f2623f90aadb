"""Reference posteriors: what the guide is compared with, for every datum, with a right to refuse."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.inference import chains, hmc, laplace
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["METHODS", "latent_names", "sample_posterior"]

MAX_ROWS = 1 << 14  # chains times data that move at once
PILOT = 500  # draws of the guide that give its moments
WIDENING = 2.0  # of the standard deviations from which half of the chains start

Progress = Callable[[int, int], None]


def sample_posterior(
    target: Target,
    method: str = "hmc",
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
) -> xr.DataTree:
    """Draw from p(z | x) of every datum, and say for which data the draws may be trusted.

    N data x C chains are N*C independent chains in one batch, each with its own acceptance; step sizes are adapted
    per datum and frozen after the warm-up. Chains run in u, z = loc + scale_tril u, with a Gaussian per datum from
    Laplace's approximation (damped Gauss-Newton from the guide's mean) or from the guide's moments. Half of the
    chains start from that Gaussian with twice its standard deviations, half from the prior, so that a mode which
    the guide misses shows as R-hat; one that holds a share m of the prior stays unseen with probability (1 - m)^(C/2).

    A datum gets the verdict "ok" if its largest R-hat (rank-normalized, split; Vehtari, Gelman, Simpson, Carpenter
    and Bürkner 2021) is below `max_rhat`, its smallest bulk and tail effective sample sizes are at least `min_ess`,
    and no draw diverged; otherwise "no verdict", with the reason.

    Args:
        target: the model, guide and data.
        method: a key of `METHODS`: "hmc".
        num_chains: C, at least 2; R-hat compares them.
        num_samples: draws kept per chain, at least 4.
        warmup_steps: transitions per chain before, at least 1, not kept.
        whiten: "laplace" (rows where it fails take the guide's moments) or "guide".
        target_accept_prob: in (0, 1).
        max_rhat, min_ess: what the verdict asks for.
        seed: same seed, data, machine and versions, same draws.
        progress: called with (transitions done, transitions in all).

    Returns:
        DataTree with `posterior`, `sample_stats` and `diagnostics`.

    Raises:
        ValueError: an unknown method or whitening, or a number out of its range.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))
    >>> tree = sample_posterior(Target(model, guide, torch.zeros(3, 2)), num_samples=100, warmup_steps=50)
    >>> tree["posterior"]["z"].sizes["draw"], tree["diagnostics"]["verdict"].values.tolist()
    (100, ['ok', 'ok', 'ok'])
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r} for posterior draws: choose one of {', '.join(METHODS)}")
    if num_chains < 2 or num_samples < 4:
        raise ValueError(
            f"R-hat compares chains and their halves: it needs num_chains >= 2 and num_samples >= 4, not {num_chains} "
            f"and {num_samples}"
        )
    start = time.perf_counter()
    settings: dict[str, Any] = {
        "method": method,
        "num_chains": num_chains,
        "num_samples": num_samples,
        "warmup_steps": warmup_steps,
        "whiten": whiten,
        "target_accept_prob": target_accept_prob,
        "seed": seed,
    }
    sampled = METHODS[method](target, settings, progress)
    gradients = sampled.pop("num_gradient_evaluations")
    limits = {"max_rhat": max_rhat, "min_ess": min_ess}
    cost = {"num_gradient_evaluations": gradients, "seconds": time.perf_counter() - start}
    z, stats = sampled.pop("z"), sampled
    posterior = results.group("posterior", {"z": z}, {**settings, **cost}, latent=latent_names(target))
    diagnostics = _diagnose(z, stats["diverging"], limits)
    return results.build_tree(
        {
            "posterior": posterior,
            "sample_stats": results.sample_stats_group(**stats),
            "diagnostics": results.group("diagnostics", diagnostics, limits),
        }
    )


def latent_names(target: Target) -> list[str]:
    """The names of the D unconstrained coordinates, site[i]."""
    return results.latent_names(
        {site: len(range(*at.indices(target.dim))) for site, at in target.sites.items()}
    )


def _hmc(target: Target, settings: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    parts = target.split(max(1, MAX_ROWS // settings["num_chains"]))
    blocks = []
    for block, some in enumerate(parts):
        with seeded(block_seed(settings["seed"], block)):
            blocks.append(_hmc_block(some, settings, _shifted(progress, block, len(parts))))
    joined = {
        name: np.concatenate([block[name] for block in blocks], -2 if name == "z" else -1)
        for name in blocks[0]
        if name != "num_gradient_evaluations"
    }
    return {**joined, "num_gradient_evaluations": max(b["num_gradient_evaluations"] for b in blocks)}


def _shifted(progress: Progress | None, block: int, num_blocks: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(block * total + done, num_blocks * total)


def _hmc_block(target: Target, settings: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    gaussian = _whitening(target, settings["whiten"])
    density = hmc.with_gradient(laplace.whitened_density(gaussian, target.log_joint))
    drawn = chains.sample_chains(
        density,
        _finite(density, laplace.whiten(gaussian, _starts(target, gaussian, settings["num_chains"]))),
        num_samples=settings["num_samples"],
        warmup_steps=settings["warmup_steps"],
        target_accept_prob=settings["target_accept_prob"],
        progress=progress,
    )
    z = laplace.unwhiten(gaussian, drawn.position)
    return {
        "z": _numpy(z),
        "lp": _numpy(drawn.log_density),
        "acceptance_rate": _numpy(drawn.acceptance_rate),
        "step_size": _numpy(drawn.step_size.expand(drawn.log_density.shape)),
        "n_steps": _numpy(drawn.num_steps[:, None].expand(drawn.log_density.shape)),
        "diverging": _numpy(drawn.diverging),
        "energy": _numpy(drawn.energy),
        "energy_error": _numpy(drawn.energy_error),
        "num_gradient_evaluations": drawn.num_gradient_evaluations,
    }


def _whitening(target: Target, name: str) -> Gaussian:
    if name not in WHITENINGS:
        raise ValueError(f"unknown whitening {name!r}: choose one of {', '.join(WHITENINGS)}")
    return WHITENINGS[name](target)


def _guide_gaussian(target: Target) -> Gaussian:
    return laplace.from_draws(target.sample_guide(PILOT).z)


def _laplace_gaussian(target: Target) -> Gaussian:
    """Laplace's Gaussian, and the guide's moments for data at which it is not usable."""
    fallback = _guide_gaussian(target)
    fitted = laplace.fit_laplace(
        hmc.with_gradient(lambda z: target.log_joint(z[None])[0]), target.curvature, fallback.loc
    )
    usable = fitted.is_usable
    return Gaussian(
        torch.where(usable[:, None], fitted.gaussian.loc, fallback.loc),
        torch.where(usable[:, None, None], fitted.gaussian.scale_tril, fallback.scale_tril),
    )


def _starts(target: Target, gaussian: Gaussian, num_chains: int) -> Tensor:
    """Half of the chains from the widened Gaussian, half from the prior: `[C, N, D]`."""
    num_wide = (num_chains + 1) // 2
    noise = torch.randn(num_wide, *gaussian.loc.shape, dtype=gaussian.loc.dtype, device=gaussian.loc.device)
    wide = laplace.unwhiten(laplace.widen(gaussian, WIDENING), noise)
    return torch.cat([wide, target.sample_prior(num_chains - num_wide)])


def _finite(density: hmc.LogDensityAndGradient, start: Tensor) -> Tensor:
    """Starts with a density of zero or without a gradient, in the far tails of a prior, move to the centre."""
    value, gradient = density(start)
    is_good = value.isfinite() & gradient.isfinite().all(-1)
    return torch.where(is_good[..., None], start, torch.zeros_like(start))


def _diagnose(z: np.ndarray, diverging: np.ndarray, limits: Mapping[str, float]) -> dict[str, np.ndarray]:
    """R-hat, effective sample sizes and the verdict of every datum; `z` is `[C, T, N, D]`."""
    from arviz_stats.base.array import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = array_stats.rhat(z, **axes).max(-1)
        bulk = array_stats.ess(z, method="bulk", **axes).min(-1)
        tail = array_stats.ess(z, method="tail", prob=(0.05, 0.95), **axes).min(-1)
    divergent = diverging.sum((0, 1))
    reasons = [_reason(*values, limits) for values in zip(rhat, bulk, tail, divergent.tolist(), strict=True)]
    return {
        "rhat": rhat,
        "ess_bulk": bulk,
        "ess_tail": tail,
        "num_divergent": divergent,
        "verdict": np.array(["no verdict" if reason else "ok" for reason in reasons]),
        "reason": np.array(reasons),
    }


def _reason(rhat: float, bulk: float, tail: float, divergent: int, limits: Mapping[str, float]) -> str:
    """Why a datum gets no verdict; "" if it gets one. Written so that NaN refuses."""
    found = []
    if not rhat < limits["max_rhat"]:
        found.append(f"R-hat not below {limits['max_rhat']:g}")
    if not min(bulk, tail) >= limits["min_ess"]:
        found.append(f"ESS below {limits['min_ess']:g}")
    if divergent:
        found.append("divergences")
    return " and ".join(found)


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


METHODS = {"hmc": _hmc}
"""Every sampler of posteriors by name."""

WHITENINGS = {"laplace": _laplace_gaussian, "guide": _guide_gaussian}
"""The Gaussians in whose coordinates chains run."""
