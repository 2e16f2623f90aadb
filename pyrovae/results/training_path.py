"""log p(x), the ELBO and KL(guide || posterior) along training: does the model get better as the guide gets worse?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Float

from pyrovae.results.groups import Evidence, group
from pyrovae.results.rows import Method, average, measured, with_error
from pyrovae.results.significance import SURE

__all__ = ["PATH_NAMES", "path_group", "path_sentences", "stack_epochs"]

PATH_NAMES: Final = {
    "log_evidence": "log p(x)",
    "elbo": "ELBO",
    "kl_posterior": "KL(guide || posterior)",
}
"""What is measured along training, in nats per datum, as people write it."""
_BOUND: Final = {"lower": ", at least", "upper": ", at most"}


def path_group(
    epochs: Sequence[int], elbo: Sequence[Evidence], log_evidence: Sequence[Evidence]
) -> xr.Dataset:
    """The group `history` of checkpoints along training, all measured on the same data.

    Per epoch, averages over the data of log p(x), of the ELBO, and of their difference KL(guide || posterior), which
    has the direction of log p(x); `_std_error` over data, never below the Monte Carlo error. `_change` is the
    difference to the checkpoint before, whose error is that of the differences datum by datum: what the data have in
    common falls out. `num_unreliable` are the data whose log p(x) has an error bar that is not to be trusted.

    Args:
        epochs: Of the checkpoints, in their order; 0 is before training.
        elbo: Of each checkpoint.
        log_evidence: Of each checkpoint, by one method.

    Raises:
        ValueError: If there are not as many of each, or they are of different data.

    Examples:
        >>> def made(*value):
        ...     yes = np.ones(len(value), bool)
        ...     return Evidence(method="iwae", value=np.array(value), std_error=np.zeros(len(value)), is_reliable=yes,
        ...                     is_approximate=~yes, direction="lower", is_unbiased_density=True)
        >>> path = path_group([0, 5], [made(-9.0, -7.0), made(-5.0, -3.0)], [made(-8.0, -6.0), made(-3.0, -1.0)])
        >>> path["kl_posterior"].values.tolist(), path["kl_posterior_change_std_error"].values.tolist()
        ([1.0, 2.0], [nan, 0.0])
    """
    sizes = {e.num_data for e in (*elbo, *log_evidence)}
    if not len(epochs) == len(elbo) == len(log_evidence) > 0 or len(sizes) != 1:
        raise ValueError(
            f"need an ELBO and a log p(x) of the same data for each of the epochs {list(epochs)}, got {len(elbo)} and "
            f"{len(log_evidence)}, of {sorted(sizes)} data"
        )
    values = {"elbo": _stack(elbo), "log_evidence": _stack(log_evidence)}
    (elbo_value, elbo_error), (value, error) = values["elbo"], values["log_evidence"]
    values["kl_posterior"] = value - elbo_value, np.hypot(error, elbo_error)
    variables: dict[str, np.ndarray] = {}
    for name, pair in values.items():
        variables |= _averages(name, *pair)
    variables["num_unreliable"] = np.array([int((~e.is_reliable).sum()) for e in log_evidence])
    first = log_evidence[0]
    facts = {"num_data": first.num_data, "method": first.method, "direction": first.direction}
    return group("history", variables, facts, epoch=list(epochs))


def stack_epochs(gradients: Sequence[xr.Dataset], epochs: Sequence[int]) -> xr.Dataset:
    """One group `gradients` of several, along `epoch`, their first dimension; of the attributes, those of the last.

    Attributes that are seconds are added up.

    Raises:
        ValueError: If the groups are not of the same methods, numbers of particles and parts.
    """
    first = gradients[0]
    for made in gradients:
        if any(not np.array_equal(made[dim].values, first[dim].values) for dim in first.dims):
            raise ValueError(
                f"every epoch needs the same {list(first.dims)}, got {[dict(g.sizes) for g in gradients]}"
            )
    names = [name for name in first.data_vars if all(name in made for made in gradients)]
    stacked = {
        str(name): (
            ("epoch", *map(str, first[name].dims)),
            np.stack([made[name].values for made in gradients]),
        )
        for name in names
    }
    attrs = dict(gradients[-1].attrs)
    if all("seconds" in made.attrs for made in gradients):
        attrs["seconds"] = float(sum(made.attrs["seconds"] for made in gradients))
    coords = {str(dim): first[dim].values for dim in first.dims}
    return group("gradients", stacked, attrs, epoch=list(epochs), **coords)


def _stack(evidence: Sequence[Evidence]) -> tuple[Float[np.ndarray, "e n"], Float[np.ndarray, "e n"]]:
    value, error = ([getattr(e, name).astype(float) for e in evidence] for name in ("value", "std_error"))
    return np.stack(value), np.stack(error)


def _averages(
    name: str, values: Float[np.ndarray, "e n"], errors: Float[np.ndarray, "e n"]
) -> Mapping[str, np.ndarray]:
    """Means over data, and their changes."""
    means = [average(v, e)[:2] for v, e in zip(values, errors, strict=True)]
    both = np.hypot(errors[1:], errors[:-1])
    changes = [
        (np.nan, np.nan),
        *(average(v, e)[:2] for v, e in zip(np.diff(values, axis=0), both, strict=True)),
    ]
    (mean, error), (change, change_error) = np.array(means).T, np.array(changes).T
    names = (name, f"{name}_std_error", f"{name}_change", f"{name}_change_std_error")
    return dict(zip(names, (mean, error, change, change_error), strict=True))


def path_sentences(tree: xr.DataTree) -> Iterator[str]:
    """Where log p(x) rises while KL(guide || posterior) rises too, or that this happens nowhere.

    A change is called one from 3 standard errors on. None where `history` does not come from `path_group`.
    """
    names = [f"{name}_change{end}" for name in ("log_evidence", "kl_posterior") for end in ("", "_std_error")]
    path = measured(tree, "history", *names)
    if path is None or path.sizes["epoch"] < 2:
        return
    epoch, (gain, worse) = (
        path["epoch"].values,
        (_rises(path, name) for name in ("log_evidence", "kl_posterior")),
    )
    method = str(path.attrs.get("method", ""))
    by = (
        f" (log p(x) by {Method(method, method, 0).name}{_BOUND.get(str(path.attrs.get('direction')), '')})"
        if method
        else ""
    )
    for i in map(int, np.flatnonzero(gain & worse)):
        yield (
            f"From epoch {epoch[i - 1]} to epoch {epoch[i]} log p(x) rises by {_change(path, 'log_evidence', i)} nats "
            f"per datum while KL(guide || posterior) rises by {_change(path, 'kl_posterior', i)}: the model gets "
            f"better and the guide worse{by}."
        )
    if not (gain & worse).any():
        yield f"Between no two checkpoints do log p(x) and KL(guide || posterior) both rise{by}."


def _rises(path: xr.Dataset, name: str) -> np.ndarray:
    """Where a quantity is larger than at the checkpoint before."""
    return path[f"{name}_change"].values > SURE * path[f"{name}_change_std_error"].values


def _change(path: xr.Dataset, name: str, i: int) -> str:
    return with_error(float(path[f"{name}_change"][i]), float(path[f"{name}_change_std_error"][i]))
