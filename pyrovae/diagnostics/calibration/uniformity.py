"""Whether numbers are uniform on [0, 1]: tests of two moments, and the band in which their ECDF should stay."""

import math

import numpy as np
from jaxtyping import Float

__all__ = ["ecdf", "ecdf_band", "moment_tests"]

NUM_SIMULATED = 10_000  # ECDFs of uniform numbers from which the band is found


def moment_tests(u: Float[np.ndarray, " s *d"]) -> dict[str, np.ndarray]:
    """Test location and scale of S numbers that should be uniform, for every column.

    `mean` = mean u, 1/2 if uniform, with standard error sqrt(1 / 12 S); `spread` = mean (u - 1/2)^2, 1/12 if uniform,
    with standard error sqrt(1 / 180 S): above that values crowd at the ends, below it in the middle. `_z` is the
    distance in standard errors, `_p_value` two-sided by the normal distribution, times the number of columns
    (Bonferroni).

    >>> tests = moment_tests(np.array([0.1, 0.3, 0.5, 0.7, 0.9]))
    >>> float(tests["mean"]), round(float(tests["spread"]), 2)
    (0.5, 0.08)
    """
    found = {}
    moments = {"mean": (u, 1 / 2, 1 / 12), "spread": ((u - 0.5) ** 2, 1 / 12, 1 / 180)}
    columns = int(np.prod(u.shape[1:]))
    for name, (values, expected, variance) in moments.items():
        mean, error = values.mean(0), math.sqrt(variance / len(u))
        z = (mean - expected) / error
        p_value = np.vectorize(lambda each: math.erfc(abs(each) / math.sqrt(2)))(z)
        found[name] = np.asarray(mean)
        found[f"{name}_std_error"] = np.full(np.shape(mean), error)
        found[f"{name}_z"] = np.asarray(z)
        found[f"{name}_p_value"] = np.minimum(p_value * columns, 1.0)
    return found


def ecdf(u: Float[np.ndarray, " s *d"], levels: Float[np.ndarray, " l"]) -> Float[np.ndarray, " l *d"]:
    """The share of numbers at or below each level, for every column.

    >>> ecdf(np.array([0.1, 0.2, 0.6]), np.array([0.5]))
    array([0.66666667])
    """
    return np.stack([(u <= level).mean(0) for level in levels])


def ecdf_band(
    num_numbers: int, levels: Float[np.ndarray, " l"], prob: float = 0.95, *, seed: int = 0
) -> tuple[Float[np.ndarray, " l"], Float[np.ndarray, " l"]]:
    """The band in which the ECDF of uniform numbers stays, at all levels at once, with probability `prob`.

    At every level the count below it is binomial; the band is that of the equal-tailed binomial intervals whose joint
    coverage is `prob`, found from simulated ECDFs.

    Args:
        num_numbers: S.
        levels: increasing, in (0, 1).
        prob: in (0, 1).
        seed: of the simulated ECDFs.

    Returns:
        The lower and the upper end, at each level.

    Source: Säilynoja, Bürkner and Vehtari 2022.

    >>> lower, upper = ecdf_band(1000, np.array([0.25, 0.5, 0.75]))
    >>> bool((lower < [0.23, 0.47, 0.73]).all() and (upper > [0.27, 0.53, 0.77]).all())
    True
    """
    bins = np.diff(np.concatenate([[0.0], levels, [1.0]]))
    drawn = np.random.default_rng(seed).multinomial(num_numbers, bins, NUM_SIMULATED).cumsum(1)[:, :-1]
    below = [_binomial_cdf(num_numbers, float(level)) for level in levels]
    tails = np.ones(NUM_SIMULATED)
    for cdf, counts in zip(below, drawn.T, strict=True):
        above = 1 - np.where(counts > 0, cdf[counts - 1], 0.0)
        tails = np.minimum(tails, np.minimum(cdf[counts], above))
    tail = float(np.quantile(tails, 1 - prob))
    lower = [np.searchsorted(cdf, tail) for cdf in below]
    upper = [np.searchsorted(cdf, 1 - tail) for cdf in below]
    return np.array(lower) / num_numbers, np.array(upper) / num_numbers


def _binomial_cdf(count: int, prob: float) -> np.ndarray:
    """P(X <= k) for k = 0 ... count."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(count + 1)
    choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    return np.minimum(np.cumsum(np.exp(choose + k * math.log(prob) + (count - k) * math.log1p(-prob))), 1.0)
