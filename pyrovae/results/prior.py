"""What the prior costs: how far the aggregate posterior is from it, unless the data are too few to tell."""

import math
from collections.abc import Iterator
from typing import Final

import xarray as xr

from pyrovae.results.rows import NATS, Row, count_data, measured, number
from pyrovae.results.significance import SURE, is_above_zero

__all__ = ["prior_row", "prior_sentences"]

_ROOM: Final = 1.0  # nats that the mutual information must stay below log N
_NEEDED: Final = (
    *("marginal_kl", "marginal_kl_std_error", "mutual_information", "mutual_information_std_error"),
    "log_num_data",
)


def prior_row(tree: xr.DataTree) -> Row | None:
    """KL(q(z) || p(z)), which a prior equal to the aggregate q(z) of these data would add to their ELBO.

    None where it was not measured. Its value is NaN where the data are too few: where the codes of all N are apart,
    which is where their mutual information is within a nat of log N, q(z) is a comb of N teeth, far from any smooth
    prior.

    Examples:
        >>> prior_row(xr.DataTree()) is None
        True
    """
    terms = measured(tree, "decomposition", *_NEEDED)
    if terms is None:
        return None
    kl, kl_error, information, error, most = (float(terms[name]) for name in _NEEDED)
    is_told = most - information - _ROOM > SURE * error
    count = terms.sizes.get("datum", round(math.exp(most)))
    value = (
        (kl, kl_error, NATS, "none", count, 0) if is_told else (math.nan, math.nan, NATS, "none", 0, count)
    )
    return Row("marginal_kl", "KL of the aggregate q(z) from the prior", *value)


def prior_sentences(tree: xr.DataTree) -> Iterator[str]:
    """One on the cost of the prior, or on why there is no verdict on it.

    Examples:
        >>> list(prior_sentences(xr.DataTree()))
        []
    """
    row = prior_row(tree)
    if row is None:
        return
    if math.isnan(row.value):
        yield (
            f"No verdict on what the prior costs: the codes of {count_data(row.num_refused)} are too few, or too far "
            "apart, to tell the aggregate q(z) from as many points; `pyrovae decompose` on more data may."
        )
    elif is_above_zero(row):
        yield (
            f"The prior costs the ELBO {number(row)} nats per datum: so far is it from the aggregate q(z), which would "
            "cost these data nothing in its place."
        )
    else:
        yield (
            f"No cost of the prior was found: the aggregate q(z) of these data is {number(row)} nats per datum from it."
        )
