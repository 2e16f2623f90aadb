"""Statistical assertions with one stated false-alarm rate, 1e-6 an assertion, Bonferroni over coordinates."""

import math

import numpy as np
import torch
from scipy import stats

FALSE_ALARM = 1e-6


def z_score_limit(num_tests: int = 1) -> float:
    """Largest |z| that chance explains, two-sided, over `num_tests` coordinates."""
    return float(stats.norm.isf(FALSE_ALARM / (2 * num_tests)))


def means_agree(draws: torch.Tensor, expected: torch.Tensor | float) -> bool:
    """Whether the means over axis 0 of independent draws equal `expected`, by a z-test on every coordinate."""
    error = draws.double().mean(0) - expected
    std_error = draws.double().std(0) / math.sqrt(len(draws))
    return bool((error.abs() <= z_score_limit(error.numel()) * std_error).all())


def chi2_is_plausible(statistic: torch.Tensor, degrees: float) -> bool:
    """Whether every entry of `statistic` is a plausible chi-square value with that many degrees of freedom."""
    values = np.atleast_1d(statistic.double().cpu().numpy())
    tail = FALSE_ALARM / (2 * values.size)
    return bool(((values >= stats.chi2.ppf(tail, degrees)) & (values <= stats.chi2.isf(tail, degrees))).all())
