"""When a number counts: from how many standard errors it is no chance, and from how many nats it is worth a change."""

from statistics import NormalDist
from typing import Final

from pyrovae.results.rows import Row

__all__ = ["SURE", "WORTH", "is_above_zero", "is_worth", "sure_of"]

_ROUNDING: Final = 1e-6  # nats that single precision may leave of nothing

SURE: Final = 3.0
"""Standard errors from which a difference is called one."""
WORTH: Final = 0.1
"""Nats per datum below which no change is advised."""


def is_above_zero(row: Row) -> bool:
    """Whether these nats are no chance, and more than rounding leaves; not without an error bar.

    Examples:
        >>> gap = Row("gap", "", 1e-4, 1e-5, "nats per datum", "none", 9, 0)
        >>> is_above_zero(gap), is_above_zero(gap._replace(value=1e-8, std_error=0.0))
        (True, False)
    """
    return row.value > SURE * row.std_error and row.value > _ROUNDING


def is_worth(row: Row) -> bool:
    """Whether these nats are surely more than `WORTH`; not without an error bar.

    Examples:
        >>> gap = Row("gap", "", 0.2, 0.01, "nats per datum", "none", 9, 0)
        >>> is_worth(gap), is_worth(gap._replace(std_error=0.05)), is_worth(gap._replace(std_error=float("nan")))
        (True, False, False)
    """
    return row.value - WORTH > SURE * row.std_error


def sure_of(count: int) -> float:
    """Standard errors from which one of `count` differences is called one, no oftener than a single one from `SURE`.

    Examples:
        >>> round(sure_of(1), 2), round(sure_of(100), 2)
        (3.0, 4.2)
    """
    single = 2 * NormalDist().cdf(-SURE)
    return -NormalDist().inv_cdf(single / (2 * max(count, 1)))
