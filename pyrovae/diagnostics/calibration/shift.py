"""How far the data at hand are from those that the model draws, as the guide sees both."""

import math

import numpy as np
from jaxtyping import Float

from pyrovae.diagnostics.two_sample import classifier_test

__all__ = ["MIN_DATA", "shift"]

MIN_DATA = 20  # of either kind; fewer say nothing about a distribution
MAX_POINTS = 10_000  # of each kind that the classifier sees


def shift(
    simulated: Float[np.ndarray, "s d1"], real: Float[np.ndarray, "n d1"], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Compare codes of the data with codes of simulated data: the guide's means of z, and of log p(x | z) last.

    - `shift_mean` `[D]`: difference of the means over data, in sds of the simulated codes; `shift_sd_ratio` `[D]`: sd
      over data, of real codes over simulated ones;
    - `shift_log_likelihood`: as `shift_mean`, for the mean of log p(x | z): real data that the model reproduces worse
      than its own are below 0;
    - `shift_auc`: area under the ROC curve of a classifier that sees all of these: 1/2 if it cannot tell real from
      simulated, 1 if it always can; with `shift_p_value`, one-sided. NaN with fewer than 20 data.

    A code that is infinite for some data, such as log p(x | z) of a guide that leaves the support, has no shift (NaN),
    and the classifier does not see it.
    """
    is_code = np.isfinite(simulated).all(0) & np.isfinite(real).all(0)
    simulated, real = (np.where(is_code, codes, np.nan) for codes in (simulated, real))
    location, scale = simulated.mean(0), simulated.std(0, ddof=1)
    scale = np.where(scale > 0, scale, 1.0)
    first, second = ((codes - location) / scale for codes in (simulated, real))
    mean, ratio = second.mean(0), _sd(second) / np.where(_sd(first) > 0, _sd(first), np.nan)
    mean_error = np.hypot(*(_sd(codes) / math.sqrt(len(codes)) for codes in (first, second)))
    ratio_error = ratio * np.sqrt(_log_sd_variance(first) + _log_sd_variance(second))
    is_enough = min(len(first), len(second)) >= MIN_DATA and bool(is_code.any())
    test = classifier_test(
        *(codes[: MAX_POINTS if is_enough else 0, is_code] for codes in (first, second)),
        *(np.arange(min(len(codes), MAX_POINTS) if is_enough else 0) for codes in (first, second)),
        seed=seed,
    )
    named = {
        "shift_mean": mean[:-1],
        "shift_mean_std_error": mean_error[:-1],
        "shift_sd_ratio": ratio[:-1],
        "shift_sd_ratio_std_error": ratio_error[:-1],
        "shift_log_likelihood": mean[-1],
        "shift_log_likelihood_std_error": mean_error[-1],
        "shift_auc": test.auc,
        "shift_auc_std_error": test.std_error,
        "shift_p_value": test.p_value,
    }
    return {name: np.asarray(value) for name, value in named.items()}


def _sd(codes: np.ndarray) -> np.ndarray:
    return codes.std(0, ddof=1) if len(codes) > 1 else np.full(codes.shape[1], math.nan)


def _log_sd_variance(codes: np.ndarray) -> np.ndarray:
    """The variance of the logarithm of a standard deviation, by the delta method: (kurtosis - 1) / 4 n."""
    centred = codes - codes.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2
    return np.asarray(np.maximum(kurtosis - 1, 0) / (4 * len(codes)))
