"""Calibration on simulated data in rows and sentences: where the guide is wrong, and whether that carries over."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Bool

from pyrovae.results.rows import NATS, Row, average, count_data, listed, measured, number, some, with_error
from pyrovae.results.significance import SURE

__all__ = ["calibration_clause", "calibration_rows", "calibration_sentences", "wrong_latents"]

_P_VALUE: Final = 0.01  # over all latents, below which an error of the guide is called one
_GAPS: Final = ("simulated_gap", "simulated_upper", "simulated_lower")
_FAULTS: Final = ("over-confident", "under-confident", "biased")
_REGION: Final = 0.9  # the credible region whose coverage is told


def calibration_rows(tree: xr.DataTree) -> Iterator[Row]:
    """The simulated gap and its ends; wrong latents, the rank of log p(x | z), coverage, and the shift of real codes.

    `num_data` counts simulations, but for the shift, where it counts data.
    """
    made = measured(tree, "calibration")
    if made is None:
        return
    for name in [name for name in _GAPS if name in made]:
        value, error, count = average(made[name].values, np.zeros(made.sizes["simulation"]))
        direction = str(made[name].attrs.get("direction", "none"))
        refused = made.sizes["simulation"] - count
        yield Row(name, f"calibration: {name}", value, error, NATS, direction, count, refused)
    if "pit" not in made:
        return
    total = made.sizes["simulation"]
    for fault, wrong in wrong_latents(made).items():
        quantity = f"calibration: latents where the guide is {fault}"
        yield Row(fault, quantity, float(wrong.sum()), math.nan, "latents", "none", total, 0)
    rank = made["likelihood_pit_mean"].item(), made["likelihood_pit_mean_std_error"].item()
    yield Row("rank", "calibration: rank of the true log p(x | z)", *rank, "share", "none", total, 0)
    yield _coverage(made)
    auc, error = (made[name].item() for name in ("shift_auc", "shift_auc_std_error"))
    count = int(made.attrs["num_data"])
    told, refused = (count, 0) if math.isfinite(auc) else (0, count)
    quantity = "calibration: AUC of real against simulated codes"
    yield Row("shift", quantity, auc, error, "probability", "none", told, refused)


def wrong_latents(made: xr.Dataset) -> dict[str, Bool[np.ndarray, " d"]]:
    """Which latents are over-confident, under-confident and biased, by p-values below 0.01 over all latents.

    A bias, too, leaves more of the truth outside the guide's intervals than these claim, so a clear one makes a latent
    over-confident.
    """
    spread = made["pit_spread_p_value"].values < _P_VALUE
    is_above = made["pit_spread"].values > 1 / 12
    biased = made["pit_mean_p_value"].values < _P_VALUE
    return dict(zip(_FAULTS, (spread & is_above, spread & ~is_above, biased), strict=True))


def calibration_sentences(tree: xr.DataTree) -> Iterator[str]:
    """What the guide does on data that the model itself draws, and whether real data are like these."""
    rows = {row.subject: row for row in calibration_rows(tree)}
    if not rows:
        return
    made = tree["calibration"].to_dataset()
    if "pit" in made:
        yield _say_latents(made)
        yield from _say_likelihood(made)
        yield f"{_say_coverage(rows['coverage'])}."
    if "simulated_gap" in rows:
        where = "There" if "pit" in made else "On data that the model itself draws"
        apart = f"guide and posterior are {number(rows['simulated_gap'])} nats per datum apart"
        yield f"{where}, {apart}, the sum of the KL both ways."
    if "pit" in made:
        yield _say_shift(made, rows["shift"])


def _coverage(made: xr.Dataset) -> Row:
    found = float(made["tarp_ecdf"].sel({"level": _REGION}, method="nearest"))
    total = made.sizes["simulation"]
    quantity = f"calibration: coverage of the guide's {_REGION:.0%} regions"
    error = math.sqrt(found * (1 - found) / total)
    return Row("coverage", quantity, found, error, "share", "none", total, 0)


def _say_latents(made: xr.Dataset) -> str:
    over = f"On data that the model itself draws ({made.sizes['simulation']} simulations)"
    told = _faults(made)
    if not told:
        return f"{over} no error of the guide was found in the latents, each taken alone."
    return f"{over} the guide is {'; '.join(told)}."


def _faults(made: xr.Dataset) -> list[str]:
    """Each fault with the number of latents that have it, and the one that has most of it."""
    total = made.sizes["latent"]
    sizes = {"over-confident": "pit_spread_z", "under-confident": "pit_spread_z", "biased": "pit_mean_z"}
    told = []
    for fault, which in wrong_latents(made).items():
        if which.any():
            worst = int(np.argmax(np.where(which, abs(made[sizes[fault]].values), -1)))
            name = f", most in {made['latent'].values[worst]}" if total > 1 and which.sum() > 1 else ""
            single = f" ({made['latent'].values[worst]})" if total > 1 and which.sum() == 1 else name
            told.append(f"{fault} in {int(which.sum())} of {some(total, 'latent')}{single}")
    return told


def calibration_clause(tree: xr.DataTree) -> str:
    """What was found on simulated data, in short; "" where that was not measured.

    Examples:
        >>> calibration_clause(xr.DataTree())
        ''
    """
    made = measured(tree, "calibration", "pit")
    if made is None:
        return ""
    total = made.sizes["latent"]
    wrong = {fault: int(which.sum()) for fault, which in wrong_latents(made).items() if which.any()}
    told = [f"{fault} in {count} of {some(total, 'latent')}" for fault, count in wrong.items()]
    gap = {row.subject: row for row in calibration_rows(tree)}.get("simulated_gap")
    if gap is not None and gap.value > SURE * gap.std_error:
        told.append(f"{number(gap)} nats per datum from the posterior (the sum of the KL both ways)")
    over = "on data that the model itself draws"
    return f"{over} the guide is {listed(told)}" if told else f"{over} no error of the guide was found"


def _say_likelihood(made: xr.Dataset) -> Iterator[str]:
    """The one test that sees a guide which ignores the data."""
    tests = [float(made[f"likelihood_pit_{name}_p_value"]) for name in ("mean", "spread")]
    mean, error = (100 * float(made[f"likelihood_pit_mean{end}"]) for end in ("", "_std_error"))
    if 2 * min(tests) >= _P_VALUE:
        return
    if 2 * tests[0] >= _P_VALUE:
        yield "The ranks of the true log p(x | z) among the guide's draws are not uniform there."
        return
    side = "worse" if mean > 50 else "better"
    yield (
        f"The guide's draws explain such data {side} than the codes that made them: the true log p(x | z) lies above "
        f"{with_error(mean, error)} % of draws, where the posterior's would give 50 %."
    )


def _say_coverage(row: Row) -> str:
    share = with_error(100 * row.value, 100 * row.std_error)
    return f"The guide's {_REGION:.0%} credible regions hold the truth in {share} % of simulations"


def _say_shift(made: xr.Dataset, row: Row) -> str:
    if row.num_data == 0:
        few = f"{count_data(row.num_refused)} {'is' if row.num_refused == 1 else 'are'} too few"
        return f"Whether this carries over is not known: {few} to compare with simulated ones."
    apart = f"a classifier tells codes of real and simulated data apart with an AUC of {number(row)}"
    if float(made["shift_p_value"]) >= _P_VALUE:
        return (
            f"No difference between real and simulated codes was found ({apart}, where 0.5 is chance), so this carries "
            f"over as far as {count_data(row.num_data)} can show."
        )
    shift = made["shift_mean"].values
    worst = int(np.argmax(np.abs(shift)))
    fit, error = (float(made[f"shift_log_likelihood{end}"]) for end in ("", "_std_error"))
    told = f"{with_error(fit, error)} sds" if math.isfinite(fit) else "is not finite"
    return (
        f"Real codes differ from simulated ones ({apart}; the mean of {made['latent'].values[worst]} lies "
        f"{shift[worst]:+.2f} sds off, that of log p(x | z) {told}), so this may not carry over to real data."
    )
