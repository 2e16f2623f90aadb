"""What a result tree may hold: one table of groups, variables and dims, and the check against it.

A result is one `xarray.DataTree` in ArviZ's conventions. A group or a variable that is missing was not
measured. Draws in unconstrained coordinates are `z`; `latent` coordinates are named `site[i]`; `datum`
coordinates are the positions in the data that the user passed. Log densities and evidence are in nats.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

__all__ = [
    "DIRECTIONS",
    "NAMED_DIMS",
    "SANDWICH_VERDICTS",
    "SCHEMA",
    "SOURCES",
    "VERDICTS",
    "check",
    "check_attrs",
    "check_group",
    "dims_of",
]

_DRAWS: Final = "chain draw datum latent"
_STATS: Final = ["lp", "acceptance_rate", "step_size", "n_steps", "diverging", "energy", "energy_error"]
_ESTIMATES: Final = ["value", "std_error", "is_reliable", "is_approximate", "khat", "bias", "bias_std_error"]
_COSTS: Final = ["budget", "num_density_evaluations", "num_gradient_evaluations", "seconds"]
_ABOUT: Final = ["estimator", "direction", "is_unbiased_density", "reason"]
_ENDS: Final = ["lower", "lower_std_error", "upper", "upper_std_error", "gap", "gap_std_error"]
_TRUTH: Final = ["is_approximate", "verdict", "truth", "truth_std_error", "source"]
_DIAGNOSTICS: Final = ["khat", "ess_bulk", "ess_tail", "rhat", "num_divergent", "verdict", "reason"]
_ERRORS: Final = ["mean_error", "mean_error_std_error", "sd_ratio", "sd_ratio_std_error"]
_DIRECTIONS: Final = ["narrowest_direction", "widest_direction"]
_DISTANCES: Final = ["wasserstein2", "sliced_wasserstein2", "correlation_error"]
_WIDTHS: Final = ["narrowest_sd_ratio", "widest_sd_ratio"]
_KLS: Final = [
    "guide_log_weight",
    "posterior_log_weight",
    "kl_guide_posterior",
    "kl_posterior_guide",
    "jeffreys",
]
_GAUSSIAN_KLS: Final = ["gaussian_kl_guide_posterior", "gaussian_kl_posterior_guide"]
_COMPARED: Final = [*_DISTANCES, *_WIDTHS, *_KLS, *_GAUSSIAN_KLS]
_PER_DATUM: Final = ["khat", *_COMPARED, *(f"{name}_std_error" for name in _COMPARED)]
_GAPS: Final = ["simulated_gap", "simulated_upper", "simulated_lower"]
_TESTS: Final = ["", "_std_error", "_z", "_p_value"]
_MOMENTS: Final = [f"pit_{name}{end}" for name in ("mean", "spread") for end in _TESTS]
_SHIFTS: Final = ["shift_mean", "shift_mean_std_error", "shift_sd_ratio", "shift_sd_ratio_std_error"]
_BANDS: Final = ["ecdf_lower", "ecdf_upper", "tarp_ecdf", "likelihood_ecdf"]

SCHEMA: Final[Mapping[str, Mapping[str, str]]] = {
    "posterior": {"z": _DRAWS},
    "guide": {"z": _DRAWS},
    "prior": {"z": _DRAWS},
    "posterior_constrained": {"*": "chain draw datum ..."},
    "guide_constrained": {"*": "chain draw datum ..."},
    "sample_stats": dict.fromkeys([*_STATS, "*"], "chain draw datum"),
    "log_weights": {"*": "draw datum"},
    "evidence": dict.fromkeys(_ESTIMATES, "method datum") | dict.fromkeys([*_ABOUT, *_COSTS], "method"),
    "sandwich": dict.fromkeys([*_ENDS, *_TRUTH], "datum"),
    "diagnostics": dict.fromkeys(_DIAGNOSTICS, "datum") | {"*": "datum ..."},
    "comparison": dict.fromkeys([*_ERRORS, *_DIRECTIONS], "datum latent")
    | dict.fromkeys([*_PER_DATUM, *(f"{name}_noise" for name in _DISTANCES)], "datum")
    | {"*": "..."},
    "decomposition": {"*": "..."},
    "gaps": {"*": "..."},
    "calibration": {"pit": "simulation latent", "ecdf": "level latent"}
    | dict.fromkeys(["likelihood_pit", "tarp_pit", *_GAPS], "simulation")
    | dict.fromkeys([*_MOMENTS, *_SHIFTS], "latent")
    | dict.fromkeys(_BANDS, "level")
    | {"*": "..."},
    "gradients": {"*": "..."},
    "history": {"*": "epoch"},
    "observed_data": {"*": "datum ..."},
    "reconstruction": dict.fromkeys(["log_likelihood", "log_likelihood_std_error"], "count datum")
    | {"spread": "datum", "*": "draw datum ..."},
    "prior_predictive": {"*": "draw ..."},
}
"""{group: {variable: dims}}. `*` is any other variable, `...` any further dims."""

DIRECTIONS: Final = ("lower", "upper", "none", "exact")
"""How the expectation of an estimate of log p(x) lies to log p(x)."""

VERDICTS: Final = ("ok", "no verdict")
"""What `diagnostics.verdict` may say of the reference posterior of a datum."""

SANDWICH_VERDICTS: Final = ("closed", "did not close", "no verdict")
"""What `sandwich.verdict` may say of the two ends around log p(x) of a datum."""

SOURCES: Final = ("exact", "quadrature", "ais and ais-reverse", "")
"""Where `sandwich.truth` may come from, the best first; "" where the truth of a datum is not known."""

NAMED_DIMS: Final = ("latent", "method", "part")
"""Dims whose coordinates are words."""

_WORDS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("evidence", "direction"): DIRECTIONS,
    ("sandwich", "verdict"): SANDWICH_VERDICTS,
    ("sandwich", "source"): SOURCES,
    ("diagnostics", "verdict"): VERDICTS,
}
_DIMS: Final = {dim for table in SCHEMA.values() for dims in table.values() for dim in dims.split()} - {"..."}
_SOME_DATA: Final = ("decomposition", "gaps", "calibration", "gradients", "reconstruction")
_SAME_DRAWS: Final = (("posterior", "posterior_constrained", "sample_stats"), ("guide", "guide_constrained"))
_SAME_SHAPE: Final = ("observed_data", "reconstruction", "prior_predictive")


def check(tree: xr.DataTree) -> None:
    """Refuse a tree that does not follow `SCHEMA`, or whose groups differ in their data, latents or draws.

    The groups `decomposition, gaps, calibration, gradients, reconstruction` may be about some of the data, and the
    decomposition about more: its aggregate terms want the whole set.

    Raises:
        ValueError: With the group and variable, what was wanted and what was got.

    Examples:
        >>> check(xr.DataTree.from_dict({"history": xr.Dataset({"elbo": ("step", [1.0])})}))
        Traceback (most recent call last):
        ValueError: history.elbo must have dims (epoch), got (step)
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            f"a result tree is an xarray.DataTree, got {type(tree).__name__}: pass what audit gave, or evidence_table "
            "for an estimate of log p(x)"
        )
    if tree.data_vars:
        raise ValueError(f"the root of a result tree holds groups only, got variables {list(tree.data_vars)}")
    check_attrs("the root", tree.attrs)
    groups = {name: child.to_dataset() for name, child in tree.children.items()}
    for name, made in groups.items():
        check_group(name, made)
        if tree[name].children:
            raise ValueError(f"group {name!r} must not hold groups, got {list(tree[name].children)}")
    _check_agreement(groups)


def check_group(name: str, made: xr.Dataset) -> None:
    """Refuse one group whose variables, dims, dtypes, words, coordinates or attributes do not fit.

    Raises:
        ValueError: As `check`.
    """
    if not made.data_vars and name in SCHEMA:
        raise ValueError(f"group {name!r} is empty; leave out what was not measured")
    for variable, array in made.data_vars.items():
        _check_dims(name, str(variable), array.dims)
        if array.dtype.kind not in "fiubU":
            raise ValueError(
                f"{name}.{variable} must hold numbers, booleans or strings, got dtype {array.dtype}"
            )
        words = _WORDS.get((name, str(variable)), ())
        if words and (others := set(array.values.tolist()) - set(words)):
            raise ValueError(f"{name}.{variable} must be one of {words}, got {sorted(map(str, others))}")
    _check_coordinates(name, made)
    check_attrs(f"group {name!r}", made.attrs)


def dims_of(name: str, variable: str) -> tuple[str, ...]:
    """The dims that the schema gives to a variable; "..." at the end allows any further ones.

    Raises:
        ValueError: If the group is unknown, has no such variable, or the variable is named like a dimension.

    Examples:
        >>> dims_of("guide", "z")
        ('chain', 'draw', 'datum', 'latent')
    """
    if name not in SCHEMA:
        raise ValueError(f"unknown group {name!r}; a result tree has {', '.join(SCHEMA)}")
    if variable in _DIMS:
        raise ValueError(
            f"{name}.{variable} bears the name of a dimension; rename it (a latent site, in the model)"
        )
    table = SCHEMA[name]
    if variable not in table and "*" not in table:
        raise ValueError(f"group {name!r} has the variables {', '.join(table)}, got {variable!r}")
    return tuple(table.get(variable, table.get("*", "")).split())


def check_attrs(where: str, attrs: Mapping[Any, Any]) -> None:
    """Refuse attributes that are not strings or numbers: netCDF and zarr would not give them back.

    Raises:
        ValueError: With the attribute's name and type.
    """
    for name, value in attrs.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float | np.integer | np.floating):
            raise ValueError(
                f"attribute {name!r} of {where} must be a string or a number, got {type(value).__name__}"
            )


def _check_dims(name: str, variable: str, got: tuple[Any, ...]) -> None:
    wanted = dims_of(name, variable)
    is_open = wanted[-1] == "..."
    fixed = wanted[:-1] if is_open else wanted
    if got[: len(fixed)] != fixed or (len(got) > len(fixed) and not is_open):
        raise ValueError(
            f"{name}.{variable} must have dims ({', '.join(wanted)}), got ({', '.join(map(str, got))})"
        )


def _check_coordinates(name: str, made: xr.Dataset) -> None:
    """Data are numbered, latents and methods have names, each once."""
    for dim in sorted({"datum", *NAMED_DIMS} & set(map(str, made.sizes))):
        if dim not in made.coords:
            raise ValueError(f"group {name!r} lacks the coordinates of {dim!r}")
        values = made[dim].values
        kinds, wanted = ("U", "names") if dim in NAMED_DIMS else ("iu", "integers")
        if values.dtype.kind not in kinds or len(np.unique(values)) < len(values):
            raise ValueError(
                f"the {dim!r} coordinates of group {name!r} must be {wanted}, each once, got {values}"
            )


def _check_agreement(groups: Mapping[str, xr.Dataset]) -> None:
    """Groups that speak of the same data, latents, draws or data dims must have the same coordinates."""
    for dim, members in _families(groups):
        first, *others = [name for name in members if dim in groups[name].sizes] or [""]
        for name in others:
            wanted, got = groups[first][dim].values, groups[name][dim].values
            is_part = dim == "datum" and name in _SOME_DATA and np.isin(got, wanted).all()
            is_more = dim == "datum" and name == "decomposition" and np.isin(wanted, got).all()
            if not (is_part or is_more or np.array_equal(got, wanted)):
                raise ValueError(
                    f"groups {first!r} and {name!r} disagree on {dim!r}: sizes {len(wanted)} and {len(got)}, "
                    f"coordinates {wanted[:8]} and {got[:8]}"
                )


def _families(groups: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, Iterable[str]]]:
    """Each dim, and groups that must agree on it; the first one is what the others are held against."""
    present = [name for name in SCHEMA if name in groups]
    whole = [name for name in present if name not in _SOME_DATA and "datum" in groups[name].sizes]
    yield "datum", whole
    for name in set(present) & set(_SOME_DATA):
        yield "datum", [*whole[:1], name]
    yield "latent", present
    for members in _SAME_DRAWS:
        for dim in ("chain", "draw"):
            yield dim, [name for name in members if name in groups]
    shaped = [name for name in _SAME_SHAPE if name in groups]
    for dim in sorted({str(dim) for name in shaped for dim in groups[name].sizes} - _DIMS):
        yield dim, shaped
