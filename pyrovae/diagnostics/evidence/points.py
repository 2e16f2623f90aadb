"""Estimators of log p(x) that look at one point per datum: free of Monte Carlo error, with an unknown bias."""

import time

import numpy as np
import torch
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.inference import hmc, laplace
from pyrovae.inference.expansion import laplace_evidence
from pyrovae.results import Evidence
from pyrovae.target import Target

__all__ = ["POINT_ESTIMATORS", "from_point"]


def from_point(method: str, target: Target, *, seed: int = 0) -> Evidence:
    """One estimator of `POINT_ESTIMATORS`; nothing is drawn, whatever the seed. A curvature counts as D gradients."""
    start = time.perf_counter()
    parts = [POINT_ESTIMATORS[method](some) for some in target.split(MAX_ROWS)]
    values, densities, gradients = zip(*parts, strict=True)
    value = np.concatenate([v.double().cpu().numpy() for v in values])
    return Evidence(
        method=method,
        value=value,
        std_error=np.zeros(len(value)),
        direction="none",
        is_unbiased_density=False,
        is_reliable=np.isfinite(value),
        is_approximate=np.zeros(len(value), bool),
        reason="one point: no Monte Carlo error, and a bias that is not known",
        num_density_evaluations=max(densities),
        num_gradient_evaluations=max(gradients),
        seconds=time.perf_counter() - start,
    )


def _single_shot(target: Target) -> tuple[Tensor, int, int]:
    mean = target.guide_mean()[None]
    return (target.log_joint(mean) - target.log_guide(mean))[0], 1, 0


def _single_shot_laplace(target: Target) -> tuple[Tensor, int, int]:
    mean = target.guide_mean()
    value, gradient = _density(target)(mean)
    return laplace_evidence(value, gradient, target.curvature(mean[None])[0]), 0, 1 + target.dim


def _laplace(target: Target) -> tuple[Tensor, int, int]:
    fit = laplace.fit_laplace(_density(target), target.curvature, target.guide_mean())
    value, gradient = _density(target)(fit.gaussian.loc)
    evidence = laplace_evidence(value, gradient, target.curvature(fit.gaussian.loc[None])[0])
    return torch.where(fit.is_usable, evidence, torch.nan), 0, (fit.num_steps + 2) * (1 + target.dim)


def _density(target: Target) -> hmc.LogDensityAndGradient:
    return hmc.with_gradient(lambda z: target.log_joint(z[None])[0])


POINT_ESTIMATORS = {
    "single-shot": _single_shot,
    "single-shot-laplace": _single_shot_laplace,
    "laplace": _laplace,
}
"""Every estimator of log p(x) from one point per datum, by name."""
