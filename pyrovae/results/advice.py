"""What to change, each piece of advice with the numbers that it rests on; none from data that were refused."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Float

from pyrovae.results.calibration import wrong_latents
from pyrovae.results.gradient_choice import candidates, choose
from pyrovae.results.gradient_sentences import told_of
from pyrovae.results.gradients import gradient_records
from pyrovae.results.guide_faults import guide_faults
from pyrovae.results.headline import best_gap, is_of_few
from pyrovae.results.inference_gaps import full_gain, gap_cause, gap_parts, inference_gap_rows
from pyrovae.results.prior import prior_row
from pyrovae.results.rows import Row, average, count_data, data_have, measured, number, some, with_error
from pyrovae.results.sandwich import truth_name
from pyrovae.results.schema import check
from pyrovae.results.significance import SURE, WORTH, is_worth
from pyrovae.results.summary import comparison_row, khat_row, with_verdict

__all__ = ["advice"]

_FEWEST: Final = 8  # data, with fewer of which the means of an active unit may be as close by chance
_REFINE: Final = "a larger encoder, longer training, or refining q for each datum"
_BASES: Final = {"calibration", "decomposition", "gradients"}
_NOTHING: Final = "No change is indicated by these numbers."


def advice(tree: xr.DataTree) -> list[str]:
    """What to change in guide, prior, training or estimators, most telling first.

    A rule speaks only where its number is beyond its bound by 3 standard errors, and about nats only from 0.1 per
    datum on. Data that have no verdict are left out. Where no rule speaks, one sentence says so, or says
    that nothing was measured that a rule could rest on.

    Raises:
        ValueError: If the tree does not pass `check`.

    Examples:
        >>> advice(xr.DataTree())
        ['No advice: nothing was measured that it could rest on.']
    """
    check(tree)
    on_guide = (_on_gaps, _on_correlations, _on_unknown_cause, _on_weights)
    rules = (*on_guide, _on_collapse, _on_prior, _on_calibration, _on_gradients)
    said = [sentence for rule in rules for sentence in rule(tree)]
    if said:
        return said
    return [_NOTHING] if _has_basis(tree) else ["No advice: nothing was measured that it could rest on."]


def _has_basis(tree: xr.DataTree) -> bool:
    """Whether any number was measured, of data that were not refused, that a rule looks at."""
    width, khat = comparison_row(tree, "sd_ratio"), khat_row(tree)
    compared = width is not None and width.num_data > 0
    weighed = khat is not None and khat.num_data > 0
    lost = gap_parts(tree) is not None or _known_gap(tree) is not None
    return compared or weighed or lost or bool(_BASES & set(tree.children))


def _known_gap(tree: xr.DataTree) -> Row | None:
    """log p(x) - ELBO, if it is no mere upper bound and not doubtful for half of the data or more."""
    row = best_gap(tree)
    is_known = row is not None and row.direction != "upper" and not math.isnan(row.std_error)
    return row if row is not None and is_known and not is_of_few(tree, row) else None


def _on_gaps(tree: xr.DataTree) -> Iterator[str]:
    """The larger of approximation and amortization gap names the cure."""
    parts = gap_parts(tree)
    cause = "" if parts is None else gap_cause(parts)
    if parts is None or not cause:
        return
    told = (
        f"approximation gap {number(parts.approximation)} nats, amortization gap {number(parts.amortization)}"
    )
    richer = _richer(tree)
    yield {
        "family": f"Use {richer}: the family of the guide loses more than amortization does ({told}).",
        "amortization": f"Use {_REFINE}: amortization loses more than the family of the guide does ({told}).",
        "either": f"Family and amortization cannot be told apart as causes ({told}): try {richer}, then {_REFINE}.",
    }[cause]


def _richer(tree: xr.DataTree) -> str:
    """A family that holds more than the guide's; a full covariance only where it was measured to gain."""
    gain = full_gain(tree)
    if gain is None:
        return "a flow or mixture encoder"
    return f"a full-covariance or flow encoder (the best full covariance gains {number(gain)} nats)"


def _on_correlations(tree: xr.DataTree) -> Iterator[str]:
    """A posterior whose correlations the guide does not have, where the gaps themselves were not measured."""
    names = ("posterior", "guide")
    ratio = comparison_row(tree, "sd_ratio")
    if gap_parts(tree) or ratio is None or any(measured(tree, name, "z") is None for name in names):
        return
    ok = with_verdict(tree, tree["posterior"].sizes["datum"])
    if ok.sum() < 2 or ratio.value > 1 - SURE * ratio.std_error:
        return
    z = {name: tree[name].to_dataset()["z"].values[:, :, ok].astype(float) for name in names}
    loss = {name: _correlation_loss(draws.reshape(-1, *draws.shape[2:])) for name, draws in z.items()}
    value, error, _ = average(loss["posterior"] - loss["guide"], np.zeros(int(ok.sum())))
    bias = z["posterior"].shape[-1] ** 2 / (4 * _fewest_draws(tree, ok))
    if value - bias - WORTH > SURE * error:
        yield (
            f"Use a full-covariance or flow encoder: the guide is too narrow ({number(ratio)}) and lacks correlations "
            f"of the posterior that are worth {with_error(value, error)} nats per datum to a Gaussian."
        )


def _correlation_loss(z: Float[np.ndarray, "s n d"]) -> Float[np.ndarray, " n"]:
    """Half of -log |correlation matrix|: the multi-information of the Gaussian with the draws' moments, nats."""
    centred = z - z.mean(0)
    covariance = np.einsum("sni,snj->nij", centred, centred) / (len(z) - 1)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    return 0.5 * (np.log(variance).sum(1) - np.linalg.slogdet(covariance)[1])


def _fewest_draws(tree: xr.DataTree, ok: np.ndarray) -> float:
    """The smallest number of independent draws behind a datum's covariance: noise alone correlates few draws."""
    diagnostics = measured(tree, "diagnostics", "ess_bulk")
    drawn = float(tree["guide"].sizes["draw"])
    if diagnostics is None:
        return drawn
    return min(drawn, float(np.nanmin(diagnostics["ess_bulk"].values[ok])))


def _on_unknown_cause(tree: xr.DataTree) -> Iterator[str]:
    """A gap that most data can be trusted on, or an error of the guide, the cause of which is not known."""
    if gap_parts(tree) is not None or any(_on_correlations(tree)):
        return
    row, faults = _known_gap(tree), guide_faults(tree)
    if row is not None and is_worth(row):
        yield _on_other_family(tree, row) or _find_out(tree, f"the ELBO loses {number(row)} nats per datum")
    elif row is None and faults and "gaps" not in tree.children:
        yield f"Find out what it costs that the guide is {faults[0]}: `pyrovae gaps` tells, and why."


def _on_other_family(tree: xr.DataTree, gap: Row) -> str:
    """What the best full Gaussian says of a guide of another family; "" where the gaps were not measured."""
    below = {row.subject: row for row in inference_gap_rows(tree)}.get("guide_below_full")
    if below is None or math.isnan(below.std_error):
        return ""
    if is_worth(below):
        return (
            f"Use a full-covariance encoder, {_REFINE}: a full Gaussian fitted to each datum alone gains "
            f"{number(below)} nats per datum on this guide."
        )
    return (
        f"Use a richer encoder, {_REFINE}: the ELBO loses {number(gap)} nats per datum, and a full Gaussian fitted to "
        "each datum alone would not surely win them; whether the family or amortization loses them is not known."
    )


def _find_out(tree: xr.DataTree, lost: str) -> str:
    start = f"Find out where {lost} before the guide is changed:"
    if "gaps" in tree.children:
        return f"{start} its parts have no verdict until log p(x) is known, by more temperatures or a longer reference."
    return f"{start} `pyrovae gaps` tells its family from amortization."


def _on_weights(tree: xr.DataTree) -> Iterator[str]:
    row = khat_row(tree)
    if row is None or row.num_data == 0 or not row.value > SURE * row.std_error:
        return
    over = count_data(round(row.value * row.num_data), row.num_data)
    yield f"Do not trust IWAE and PSIS for {over}, where k-hat is above {row.subject}: {_instead(tree)}."


def _instead(tree: xr.DataTree) -> str:
    """Where log p(x) is to be read from, as far as it is known."""
    sandwich = measured(tree, "sandwich", "truth", "source")
    if sandwich is None:
        return "measure log p(x) by annealing both ways (method 'bidirectional')"
    known, total = int(np.isfinite(sandwich["truth"].values).sum()), sandwich.sizes["datum"]
    more = "more temperatures or a longer reference"
    if known == 0:
        return f"annealing both ways did not tell log p(x) of any of these data either; give it {more}"
    left = f" but for {count_data(total - known, total)} (give these {more})" if known < total else ""
    return f"read log p(x) by the {truth_name(sandwich)}, which tells it{left}"


def _on_collapse(tree: xr.DataTree) -> Iterator[str]:
    """Units that are not active, by the rule of `decompose`."""
    terms = measured(tree, "decomposition", "is_active")
    if terms is None or terms.sizes.get("datum", 0) < _FEWEST:
        return
    active = terms["is_active"].values.astype(bool)
    if active.all():
        return
    hardly = f"(their means hardly vary over {count_data(terms.sizes['datum'])}, on the scale of the prior)"
    if not active.any():
        yield f"The guide ignores the data {hardly}: warm the KL term up."
        return
    idle, left = int((~active).sum()), int(active.sum())
    yield (
        f"{idle} of {some(active.size, 'latent unit')} {'is' if idle == 1 else 'are'} unused {hardly}: warm the KL "
        f"term up, or use a latent space of {left}."
    )


def _on_prior(tree: xr.DataTree) -> Iterator[str]:
    """An aggregate posterior far from the prior, unless the data are too few to tell."""
    row = prior_row(tree)
    if row is not None and is_worth(row):
        yield (
            f"Use a mixture, flow or Vamp prior: the aggregate q(z) is {number(row)} nats from the prior, which is "
            "what a prior that matched it would add to the ELBO of these data."
        )


def _on_calibration(tree: xr.DataTree) -> Iterator[str]:
    """Errors on simulated data, where none was found on most of the data at hand, or these were not looked at."""
    made = measured(tree, "calibration", "pit_spread", "pit_spread_p_value", "pit_mean_p_value")
    width, faults = comparison_row(tree, "sd_ratio"), guide_faults(tree)
    if made is None:
        return
    wrong = np.any(list(wrong_latents(made).values()), 0)
    if not wrong.any():
        return
    count = f"{int(wrong.sum())} of {some(wrong.size, 'latent')}"
    told = f"on data that the model draws, its ranks are wrong in {count}"
    if width is None:
        yield f"Compare the guide with a reference posterior on real data (`pyrovae audit`): {told}."
    elif is_of_few(tree, width):
        refused = f"{data_have(width.num_refused)} no verdict, and {told}"
        yield f"Draw a longer reference (more chains, warm-up and draws) before the guide is relied on: {refused}."
    elif not faults and not _has_known_cost(tree):
        yield (
            f"Train the encoder on simulated data too (wake-sleep) before it is used on such data: {told}, although no "
            f"error was found on {count_data(width.num_data)} at hand."
        )


def _has_known_cost(tree: xr.DataTree) -> bool:
    """Whether the ELBO is surely below log p(x) on the data at hand, by enough to be worth a change."""
    row = _known_gap(tree)
    return row is not None and is_worth(row)


def _on_gradients(tree: xr.DataTree) -> Iterator[str]:
    """A clear best estimator for the encoder, where one in use may have an SNR that is surely below 1."""
    if measured(tree, "gradients", "variance", "snr_squared", "reason") is None:
        return
    rows = gradient_records(tree)
    own = [row for row in rows if row["epoch"] == rows[-1]["epoch"] and row["part"] == "encoder"]
    choice = choose(candidates(own, "encoder"))
    low = [row for row in own if 1 - row["snr_squared"] > SURE * row["snr_squared_std_error"]]
    low = [row for row in low if choice and row["method"] != choice.best.method]
    if choice is None or not choice.is_clear or not low:
        return
    worst = min(low, key=lambda row: row["snr_squared"])
    yield (
        f"Take {told_of(choice.best.method, [choice.best.num_particles])} for the encoder's gradient, the best in "
        f"SNR^2 per second: the SNR of {told_of(worst['method'], [worst['count']])} is only {worst['snr']:.2g}."
    )
