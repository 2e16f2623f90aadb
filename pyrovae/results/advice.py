"""What to change, each piece of advice with the numbers that it rests on; none from data that were refused."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Float

from pyrovae.results.gradient_choice import candidates, choose
from pyrovae.results.gradient_sentences import told_of
from pyrovae.results.gradients import gradient_records
from pyrovae.results.headline import best_gap, gap_parts, guide_faults
from pyrovae.results.inference_gaps import inference_gap_rows
from pyrovae.results.rows import average, measured, number, with_error
from pyrovae.results.schema import check
from pyrovae.results.summary import comparison_row, khat_row, with_verdict

__all__ = ["advice"]

_SURE: Final = 3.0  # standard errors from which a difference is called one
_SURE_P: Final = 0.0027  # the two-sided p-value of 3 standard errors
_WORTH: Final = 0.1  # nats per datum below which nothing is advised
_ACTIVE: Final = 0.01  # variance over data of the guide's mean (Burda et al. 2016)
_ROOM: Final = 1.0  # nats that the mutual information must stay below log N
_RICHER: Final = {
    "diagonal": "a full-covariance or flow encoder",
    "full": "a flow or mixture encoder",
}
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
    return compared or weighed or gap_parts(tree) is not None or bool(_BASES & set(tree.children))


def _on_gaps(tree: xr.DataTree) -> Iterator[str]:
    """The larger of approximation and amortization gap names the cure."""
    parts = gap_parts(tree)
    if parts is None:
        return
    approximation, amortization, difference = parts
    large = [row.value - _WORTH > _SURE * row.std_error for row in (approximation, amortization)]
    told = f"approximation gap {number(approximation)} nats, amortization gap {number(amortization)}"
    richer, refine = _richer(tree), "a larger encoder, longer training, or refining q for each datum"
    if large[0] and difference.value > _SURE * difference.std_error:
        yield f"Use {richer}: the family of the guide loses more than amortization does ({told})."
    elif large[1] and -difference.value > _SURE * difference.std_error:
        yield f"Use {refine}: amortization loses more than the family of the guide does ({told})."
    elif any(large):
        yield f"Family and amortization cannot be told apart as causes ({told}): try {richer}, then {refine}."


def _richer(tree: xr.DataTree) -> str:
    """A family that holds more than the guide's, with what a full covariance would regain, where that was measured."""
    family = str(tree["gaps"].attrs.get("family", ""))
    richer = _RICHER.get(family, "a richer family of guides")
    gain = next((row for row in inference_gap_rows(tree) if row.subject == "full_over_diagonal"), None)
    if family != "diagonal" or gain is None or math.isnan(gain.std_error):
        return richer
    return f"{richer} (the best full covariance gains {number(gain)} nats)"


def _on_correlations(tree: xr.DataTree) -> Iterator[str]:
    """A posterior whose correlations the guide does not have, where the gaps themselves were not measured."""
    names = ("posterior", "guide")
    ratio = comparison_row(tree, "sd_ratio")
    if gap_parts(tree) or ratio is None or any(measured(tree, name, "z") is None for name in names):
        return
    ok = with_verdict(tree, tree["posterior"].sizes["datum"])
    if ok.sum() < 2 or ratio.value > 1 - _SURE * ratio.std_error:
        return
    z = {name: tree[name].to_dataset()["z"].values[:, :, ok].astype(float) for name in names}
    loss = {name: _correlation_loss(draws.reshape(-1, *draws.shape[2:])) for name, draws in z.items()}
    value, error, _ = average(loss["posterior"] - loss["guide"], np.zeros(int(ok.sum())))
    bias = z["posterior"].shape[-1] ** 2 / (4 * _fewest_draws(tree, ok))
    if value - bias - _WORTH > _SURE * error:
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
    """A gap that most data can be trusted on, the cause of which was not looked for."""
    row = best_gap(tree)
    if (
        row is None
        or "gaps" in tree.children
        or row.direction == "upper"
        or 2 * row.num_refused >= row.num_data
    ):
        return
    if row.value - _WORTH > _SURE * row.std_error:
        yield (
            f"Find out where the ELBO loses {number(row)} nats per datum before the guide is changed: `pyrovae gaps` "
            "tells its family from amortization."
        )


def _on_weights(tree: xr.DataTree) -> Iterator[str]:
    row = khat_row(tree)
    if row is None or row.num_data == 0 or not row.value > _SURE * row.std_error:
        return
    count = round(row.value * row.num_data)
    has_truth = measured(tree, "sandwich", "gap", "verdict") is not None
    cure = (
        "read log p(x) from annealing both ways, which was measured"
        if has_truth
        else "measure log p(x) by annealing both ways (method 'bidirectional')"
    )
    yield f"Do not trust IWAE and PSIS for {count} of {row.num_data} data, where k-hat is above {row.subject}: {cure}."


def _on_collapse(tree: xr.DataTree) -> Iterator[str]:
    """Units whose variance over data is surely below that of an active one."""
    terms = measured(tree, "decomposition", "mean_variance")
    if terms is None or terms.sizes.get("datum", 0) < 2:
        return
    variance, num_data = terms["mean_variance"].values, terms.sizes["datum"]
    # The standard error of a variance of N normal values is sqrt(2 / (N - 1)) of it.
    idle = variance * (1 + _SURE * math.sqrt(2 / (num_data - 1))) < _ACTIVE
    if not idle.any():
        return
    smaller = f", or a latent space of {int((~idle).sum())}" if not idle.all() else ""
    start = (
        "The guide ignores the data"
        if idle.all()
        else f"{int(idle.sum())} of {idle.size} latent units are unused"
    )
    yield (
        f"{start} (their guide means vary by less than {_ACTIVE} over {num_data} data): warm the KL term up{smaller}."
    )


def _on_prior(tree: xr.DataTree) -> Iterator[str]:
    """An aggregate posterior far from the prior, unless the data are too few to tell."""
    names = ("marginal_kl", "mutual_information", "log_num_data")
    terms = measured(tree, "decomposition", *names, "marginal_kl_std_error", "mutual_information_std_error")
    if terms is None:
        return
    value, error = float(terms["marginal_kl"]), float(terms["marginal_kl_std_error"])
    # Where the codes of all data are apart, q(z) is a comb of N teeth, far from any smooth prior.
    room = float(terms["log_num_data"] - terms["mutual_information"])
    is_told = room - _ROOM > _SURE * float(terms["mutual_information_std_error"])
    if is_told and value - _WORTH > _SURE * error:
        yield (
            f"Use a mixture, flow or Vamp prior: the aggregate q(z) is {with_error(value, error)} nats from the prior, "
            "which is what a prior that matched it would add to the ELBO of these data."
        )


def _on_calibration(tree: xr.DataTree) -> Iterator[str]:
    """Errors on simulated data, where none was found on the data at hand, or these were not looked at."""
    made = measured(tree, "calibration", "pit_spread_p_value", "pit_mean_p_value")
    faults = guide_faults(tree)
    if made is None or faults:
        return
    p_values = np.fmin(made["pit_spread_p_value"].values, made["pit_mean_p_value"].values)
    wrong = int((p_values < _SURE_P).sum())
    if not wrong:
        return
    told = f"on data that the model draws, its ranks are wrong in {wrong} of {p_values.size} latents"
    width = comparison_row(tree, "sd_ratio")
    if width is None or width.num_data == 0:
        yield f"Compare the guide with a reference posterior on real data (`pyrovae audit`): {told}."
    else:
        yield (
            f"Train the encoder on simulated data too (wake-sleep) before it is used on such data: {told}, although no "
            f"error was found on {width.num_data} data at hand."
        )


def _on_gradients(tree: xr.DataTree) -> Iterator[str]:
    """A clear best estimator for the encoder, where one in use may have an SNR that is surely below 1."""
    if measured(tree, "gradients", "variance", "snr_squared", "reason") is None:
        return
    rows = gradient_records(tree)
    own = [row for row in rows if row["epoch"] == rows[-1]["epoch"] and row["part"] == "encoder"]
    choice = choose(candidates(own, "encoder"))
    low = [row for row in own if 1 - row["snr_squared"] > _SURE * row["snr_squared_std_error"]]
    low = [row for row in low if choice and row["method"] != choice.best.method]
    if choice is None or not choice.is_clear or not low:
        return
    worst = min(low, key=lambda row: row["snr_squared"])
    yield (
        f"Take {told_of(choice.best.method, [choice.best.num_particles])} for the encoder's gradient, the best in "
        f"SNR^2 per second: the SNR of {told_of(worst['method'], [worst['count']])} is only {worst['snr']:.2g}."
    )
