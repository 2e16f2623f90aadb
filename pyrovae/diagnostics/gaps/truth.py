"""log p(x) of every datum for the gaps: exact where the model allows it, by quadrature in two dimensions, else between
annealing forward and backward."""

from collections.abc import Callable
from typing import Any

import xarray as xr

from pyrovae.diagnostics.evidence_table import BIDIRECTIONAL, evidence_table
from pyrovae.target import Target

__all__ = ["find_truth"]

Progress = Callable[[str, int, int], None]
MOST_GRID = 2  # dimensions of quadrature


def find_truth(
    target: Target,
    given: xr.DataTree | None,
    *,
    tolerance: float,
    num_temperatures: int,
    seed: int,
    progress: Progress | None,
) -> xr.DataTree:
    """A tree with group `sandwich`: the one that is given, if it is of such data, or a new one.

    A grid is good enough if its error is within `tolerance` nats: that error goes on into those of the gaps. If it is
    not for some of the data, these are between annealing forward and backward, for which all are annealed.

    Raises:
        ValueError: if what is given has no truth, or is of another number of data.
    """
    if given is None:
        return _found(target, tolerance, num_temperatures, seed=seed, progress=progress)
    if "sandwich" not in given.children or "truth" not in given["sandwich"].data_vars:
        raise ValueError(
            "evidence must be a tree with group 'sandwich', which says what log p(x) is: make it with "
            f"evidence_table(target, ['{BIDIRECTIONAL}']), or leave it out"
        )
    if (size := given["sandwich"].sizes["datum"]) != target.num_data:
        raise ValueError(
            f"evidence is of {size} data, but the target has {target.num_data}: pass the evidence of the same data, "
            "target.rows(index) for some of them"
        )
    return given


def _found(target: Target, tolerance: float, num_temperatures: int, **options: Any) -> xr.DataTree:
    try:
        return evidence_table(target, ["exact"], **options)
    except ValueError:  # log p(x, z) is not quadratic in z
        pass
    if target.dim > MOST_GRID:
        return evidence_table(target, [BIDIRECTIONAL], num_temperatures=num_temperatures, **options)
    options["options"] = {"quadrature": {"max_error": tolerance}}
    tree = evidence_table(target, ["quadrature"], **options)
    if bool(tree["sandwich"]["truth"].notnull().all()):
        return tree
    both = ["quadrature", BIDIRECTIONAL]
    return evidence_table(target, both, num_temperatures=num_temperatures, **options)
