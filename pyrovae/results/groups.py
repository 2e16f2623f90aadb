"""One group of a result tree from plain arrays, and the tree of them; `Evidence`, what estimators return."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from pyrovae.results.schema import DIRECTIONS, NAMED_DIMS, SCHEMA, check, check_group, dims_of

__all__ = [
    "Evidence",
    "build_tree",
    "evidence_group",
    "evidence_labels",
    "group",
    "latent_names",
    "sample_stats_group",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """One estimator's log p(x) of every datum, with its error bar, its bias and its cost.

    `direction` speaks of the *expectation of the estimate of log p(x)*: "lower" where it is at most
    log p(x), "upper" where it is at least that, "exact" where they are equal, "none" where nothing is known.
    `is_unbiased_density` says that the estimate of p(x) itself, exp(value), has expectation p(x).

    Attributes:
        method: The estimator's name, such as "iwae".
        value: [N], nats; finite wherever `is_reliable`.
        std_error: [N], nats, Monte Carlo standard deviation; >= 0, and finite wherever `is_reliable`.
        direction: One of `DIRECTIONS`.
        is_unbiased_density: Whether E[exp(value)] = p(x).
        is_reliable: [N]; False where the error bar is not to be trusted, as for k-hat above its threshold.
        is_approximate: [N]; True where `direction` needs something else to be exact, told by `reason`.
        reason: Why values are approximate or unreliable; "" where there is nothing to say.
        num_density_evaluations: Evaluations of log p(x, z), per datum.
        num_gradient_evaluations: Evaluations of its gradient, per datum.
        seconds: Wall-clock time for all data.
        khat: [N], Pareto shape of the importance weights; None where the method has none.
        budget: Draws or temperatures that it was given, >= 0; 0 where there is nothing to choose.

    Raises:
        ValueError: If shapes differ, `direction` is unknown, a reliable value is not finite, or `budget` is negative.

    Examples:
        >>> yes = np.ones(2, bool)
        >>> e = Evidence(method="iwae", value=np.array([-3.0, -4.0]), std_error=np.array([0.1, 0.1]),
        ...              direction="lower", is_unbiased_density=True, is_reliable=yes, is_approximate=~yes)
        >>> e.direction, e.num_data
        ('lower', 2)
    """

    method: str
    value: Float[np.ndarray, " n"]
    std_error: Float[np.ndarray, " n"]
    direction: str
    is_unbiased_density: bool
    is_reliable: Bool[np.ndarray, " n"]
    is_approximate: Bool[np.ndarray, " n"]
    reason: str = ""
    num_density_evaluations: int = 0
    num_gradient_evaluations: int = 0
    seconds: float = 0.0
    khat: Float[np.ndarray, " n"] | None = None
    budget: int = 0

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.value)

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"direction of {self.method} must be one of {DIRECTIONS}, got {self.direction!r}"
            )
        if self.budget < 0:
            raise ValueError(f"budget of {self.method} must be 0 or more, got {self.budget}")
        for name, kind in _KINDS.items():
            array = getattr(self, name)
            if array is None and name == "khat":
                continue
            is_right = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, kind) and array.ndim == 1
            if not is_right or array.shape != self.value.shape:
                raise ValueError(
                    f"{self.method}: {name} must be an array of {kind.__name__} with one entry a datum, as "
                    f"value has; got {getattr(array, 'dtype', type(array).__name__)} of shape {np.shape(array)}"
                )
        self._check_values()

    def _check_values(self) -> None:
        """A number that is called reliable is a number."""
        finite = np.isfinite(self.value) & np.isfinite(self.std_error)
        wrong = np.flatnonzero((self.is_reliable & ~finite) | (self.std_error < 0))
        if wrong.size:
            raise ValueError(
                f"{self.method!r} gives {self.value[wrong[0]]} with std_error {self.std_error[wrong[0]]} for "
                f"datum {wrong[0]}; need a finite value and std_error >= 0, or is_reliable False there"
            )


_KINDS: Mapping[str, type[np.generic]] = {
    "value": np.floating,
    "std_error": np.floating,
    "is_reliable": np.bool_,
    "is_approximate": np.bool_,
    "khat": np.floating,
}


def group(
    name: str, variables: Mapping[str, Any], attrs: Mapping[str, Any] | None = None, **coords: Any
) -> xr.Dataset:
    """Make one group of a result tree from plain arrays; the dims come from `SCHEMA`.

    Args:
        name: A key of `SCHEMA`.
        variables: {variable: array}. Further dims of an array, where the schema allows them, are named
            `variable_dim_0`, ...; pass (dims, array) to name them yourself.
        attrs: Settings; see `build_tree`.
        **coords: {dim: coordinates}. `latent` and `method` have no default; `epoch` counts from 1, others from 0.

    Raises:
        ValueError: If the group does not fit the schema: the variable, what was wanted and what was got.

    Examples:
        >>> made = group("guide", {"z": np.zeros((1, 5, 3, 2))}, latent=["z[0]", "z[1]"], datum=[7, 8, 9])
        >>> dict(made.sizes)
        {'chain': 1, 'draw': 5, 'datum': 3, 'latent': 2}
        >>> group("observed_data", {"x": np.zeros((3, 64))})["x"].dims
        ('datum', 'x_dim_0')
    """
    entries = {variable: _with_dims(name, variable, values) for variable, values in variables.items()}
    try:
        made = xr.Dataset(entries, attrs=_flat(attrs or {}))
    except ValueError as error:
        raise ValueError(f"the variables of group {name!r} do not fit together: {error}") from error
    sizes = {str(dim): size for dim, size in made.sizes.items()}
    if unused := set(coords) - set(sizes):
        raise ValueError(f"group {name!r} has dims {list(sizes)}, got coordinates for {sorted(unused)}")
    made = made.assign_coords({dim: _coordinates(name, dim, size, coords) for dim, size in sizes.items()})
    check_group(name, made)
    return made


def _with_dims(name: str, variable: str, values: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """The dims of a variable, and its array."""
    dims = dims_of(name, variable)
    if isinstance(values, tuple) and len(values) == 2 and not isinstance(values[0], np.ndarray):
        return tuple(values[0]), np.asarray(values[1])
    array = np.asarray(values)
    if dims[-1] == "...":
        dims = (*dims[:-1], *(f"{variable}_dim_{i}" for i in range(array.ndim - len(dims) + 1)))
    if array.ndim != len(dims):
        wanted = ", ".join(dims_of(name, variable))
        raise ValueError(f"{name}.{variable} must have dims ({wanted}), got shape {array.shape}")
    return dims, array


def _coordinates(name: str, dim: str, size: int, coords: Mapping[str, Any]) -> np.ndarray:
    """The coordinates of one dim: those given, or 0, 1, 2, ...; epochs are counted from 1."""
    if dim not in coords and dim in NAMED_DIMS:
        raise ValueError(f"group {name!r} needs the names along {dim!r}: pass {dim}=[...]")
    values = np.asarray(coords.get(dim, np.arange(size) + (dim == "epoch")))
    if values.shape != (size,):
        raise ValueError(f"group {name!r} has size {size} along {dim!r}, got coordinates {values.shape}")
    return values


def sample_stats_group(
    lp: Float[np.ndarray, "c t n"], attrs: Mapping[str, Any] | None = None, *, datum: Any = None, **stats: Any
) -> xr.Dataset:
    """Make `sample_stats`; every statistic is broadcast to the [C, T, N] of `lp`.

    So `step_size` may be [N] or [C, 1, N], and `n_steps` [T, 1] or [C, T, 1].

    Raises:
        ValueError: If a statistic does not broadcast.

    Examples:
        >>> made = sample_stats_group(np.zeros((4, 10, 3)), step_size=np.ones(3), n_steps=np.ones((10, 1)))
        >>> made["n_steps"].shape
        (4, 10, 3)
    """
    full = {name: np.broadcast_to(np.asarray(values), lp.shape) for name, values in stats.items()}
    return group("sample_stats", {"lp": lp, **full}, attrs, **({} if datum is None else {"datum": datum}))


def evidence_group(
    evidence: Iterable[Evidence], attrs: Mapping[str, Any] | None = None, *, datum: Any = None
) -> xr.Dataset:
    """Make `evidence`, one `method` for each `Evidence`; k-hat is NaN where a method has none.

    The names along `method` are `evidence_labels`; `estimator` and `budget` tell what they are made of.

    Raises:
        ValueError: If there is none, two have one label, or they speak of different numbers of data.
    """
    table = list(evidence)
    methods = evidence_labels(table)
    columns = {f.name: [getattr(e, f.name) for e in table] for f in fields(Evidence) if f.name != "method"}
    columns["estimator"] = [e.method for e in table]
    columns["khat"] = [np.full(e.num_data, np.nan) if e.khat is None else e.khat for e in table]
    coords = {"method": methods} | ({} if datum is None else {"datum": datum})
    return group("evidence", columns, attrs, **coords)


def evidence_labels(evidence: Sequence[Evidence]) -> list[str]:
    """One label for each `Evidence` of the same data: its method, with the budget where a method comes in several.

    Raises:
        ValueError: As `evidence_group`.

    Examples:
        >>> def made(method, budget):
        ...     zero, yes = np.zeros(1), np.ones(1, bool)
        ...     return Evidence(method=method, value=zero, std_error=zero, direction="lower", budget=budget,
        ...                     is_unbiased_density=False, is_reliable=yes, is_approximate=~yes)
        >>> evidence_labels([made("elbo", 100), made("iwae", 10), made("iwae", 100)])
        ['elbo', 'iwae-10', 'iwae-100']
    """
    counts = Counter(e.method for e in evidence)
    labels = [f"{e.method}-{e.budget}" if counts[e.method] > 1 else e.method for e in evidence]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(
            "need one Evidence or more, each with its own method name, or its own budget beside those of the same "
            f"name, got {labels}"
        )
    if len({e.num_data for e in evidence}) > 1:
        sizes = {label: e.num_data for label, e in zip(labels, evidence, strict=True)}
        raise ValueError(f"every Evidence must be of the same data, got these numbers of data: {sizes}")
    return labels


def latent_names(sizes: Mapping[str, int]) -> list[str]:
    """Name the coordinates of z, given the number of unconstrained coordinates of each latent site.

    Examples:
        >>> latent_names({"z": 2, "scale": 1})
        ['z[0]', 'z[1]', 'scale[0]']
    """
    return [f"{site}[{i}]" for site, size in sizes.items() for i in range(size)]


def build_tree(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> xr.DataTree:
    """Put groups together into one checked result tree.

    Args:
        groups: {name: Dataset}, as made by `group`.
        attrs: Versions, seed, settings, ...: strings and numbers stay, booleans become 0 or 1, the rest JSON.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> history = group("history", {"elbo": np.array([-9.0, -8.0])})
        >>> build_tree({"history": history}, {"seed": 0, "hidden": (64, 64)}).attrs
        {'seed': 0, 'hidden': '[64, 64]'}
    """
    for name, made in groups.items():
        check_group(name, made)
    tree = xr.DataTree.from_dict({name: groups[name] for name in SCHEMA if name in groups})
    tree.attrs = _flat(attrs or {})
    check(tree)
    return tree


def _flat(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that netCDF and zarr give back as they were."""
    return {name: _flat_value(value) for name, value in attrs.items()}


def _flat_value(value: Any) -> str | int | float:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bool):
        return int(plain)
    return plain if isinstance(plain, str | int | float) else json.dumps(plain, sort_keys=True)
