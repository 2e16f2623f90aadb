"""Sentences on gradient estimators: what to leave out and why, which to use, and whether that changes with training."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import xarray as xr

from pyrovae.results.gradient_choice import Candidate, Choice, candidates, choose, is_beaten
from pyrovae.results.gradients import MAIN_PARTS, WITHIN, Record, gradient_records, snr_slopes
from pyrovae.results.rows import Method, measured, with_error
from pyrovae.results.significance import SURE

__all__ = ["gradient_sentences", "has_verdict", "told_of"]

_MANY: Final = 4  # rivals that are named


def gradient_sentences(tree: xr.DataTree) -> list[str]:
    """Sentences on `gradients`, the recommendations last; none where they were not measured.

    Estimators of one objective have one mean, so the least variance x seconds is the best of them. Estimators of
    several objectives, or of a bound with several numbers of particles, are held against each other by SNR^2 per
    second, which averaging independent estimates does not change. Biased ones are named and left out. Differences
    are called so from 3 standard errors on, those of two estimators taken as independent, those of the times included.
    Where the tree has an `epoch`, they speak of the last one, and one sentence tells whether the best changes.

    Examples:
        >>> gradient_sentences(xr.DataTree())
        []
    """
    if measured(tree, "gradients", "variance", "snr_squared", "reason") is None:
        return []
    rows = gradient_records(tree)
    last = _at(rows, rows[-1]["epoch"])
    said = [*_say_missing(last), *_say_biased(last), *_say_within(last), *_say_falling(tree, last)]
    num_data = tree["gradients"].attrs.get("num_data")
    return [*said, *_say_ranking(rows), *_say_both(last), *_say_best(last, num_data)]


def has_verdict(tree: xr.DataTree) -> bool:
    """Whether there is a best estimator, or several, for any part."""
    rows = gradient_records(tree)
    last = _at(rows, rows[-1]["epoch"])
    return any(choose(candidates(last, part)) for part in _parts(last))


def told_of(method: str, counts: Iterable[int]) -> str:
    """An estimator as people write it, with its numbers of particles.

    Examples:
        >>> told_of("dreg", [8, 64]), told_of("score_function", [1])
        ('DReG with 8 and 64 particles', 'score function with 1 particle')
    """
    return f"{_name(method)} with {_particles(counts)}"


def _at(rows: Sequence[Record], epoch: Any) -> list[Record]:
    return [row for row in rows if row["epoch"] == epoch]


def _parts(rows: Sequence[Record]) -> list[str]:
    """Encoder, decoder and shared parameters, where they are there."""
    return [part for part in MAIN_PARTS if any(row["part"] == part for row in rows)]


def _grouped(rows: Iterable[Record], *names: str) -> dict[Any, list[Record]]:
    found: dict[Any, list[Record]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _say_missing(rows: Sequence[Record]) -> Iterator[str]:
    for (method, reason), told in _grouped(rows, "method", "reason").items():
        if reason:
            counts = {row["count"] for row in told}
            yield f"No numbers on {told_of(method, counts)}: {reason.rstrip('.')}."


def _say_biased(rows: Sequence[Record]) -> Iterator[str]:
    biased = [row for row in rows if row["is_biased"] and row["part"] in MAIN_PARTS]
    for (part, method), told in _grouped(biased, "part", "method").items():
        sizes = _listed([_percent(row, "own_bias") for row in told])
        yield (
            f"{told_of(method, [row['count'] for row in told])} is biased for the {part}, and left out: its mean is "
            f"off by {sizes} of the length of its own objective's gradient."
        )


def _say_within(rows: Sequence[Record]) -> Iterator[str]:
    """Estimators of one objective, by variance x seconds."""
    for part in _parts(rows):
        families: dict[str, dict[int, list[Candidate]]] = {}
        for found in candidates(rows, part):
            families.setdefault(found.objective, {}).setdefault(found.num_particles, []).append(found)
        for objective, by_count in families.items():
            told: dict[str, list[int]] = {}
            for count, group in by_count.items():
                if len(group) > 1:
                    told.setdefault(_least(group), []).append(count)
            if told:
                clauses = [f"{text} with {_particles(counts)}" for text, counts in told.items()]
                yield f"Variance x seconds for the {part}, {objective}: {'; '.join(clauses)}."


def _least(group: Sequence[Candidate]) -> str:
    """What can be said of estimators of one objective with one number of particles."""
    first, *others = sorted(group, key=lambda candidate: candidate.loss)
    near = [_name(c.method) for c in others if not is_beaten(c, first)]
    if near:
        return f"{_listed(sorted([_name(first.method), *near]))} cannot be told apart"
    return f"{_name(first.method)} has {first.loss / others[0].loss:.2g} of {_name(others[0].method)}'s, the next,"


def _say_falling(tree: xr.DataTree, rows: Sequence[Record]) -> Iterator[str]:
    """Where more particles make the encoder's gradient worse: by a fit, or the first and last number of particles."""
    fits = [fit for fit in snr_slopes(tree).reset_index().to_dict("records") if fit["part"] == "encoder"]
    for fit in fits:
        if fit.get("epoch") != fits[-1].get("epoch"):
            continue
        told = _falling_ends(rows, fit["method"]) if math.isnan(fit["slope"]) else ""
        if fit["high"] < 0:
            left = f", {fit['num_left_out']} left out" if fit["num_left_out"] else ""
            told = (
                f"like K^{fit['slope']:.2f} (95 % interval {fit['low']:.2f} to {fit['high']:.2f}; "
                f"{fit['num_points']} points{left})"
            )
        if told:
            name = _name(fit["method"])
            yield f"The encoder's SNR falls with the number of particles for {name}, {told}: more make it worse."


def _falling_ends(rows: Sequence[Record], method: str) -> str:
    """The SNR with the fewest and the most particles, if it is surely lower with the most."""
    own = [r for r in rows if (r["part"], r["method"]) == ("encoder", method) and r["snr_squared"] < math.inf]
    if not own:
        return ""
    few, many = (find(own, key=lambda row: row["count"]) for find in (min, max))
    margin = SURE * math.hypot(few["snr_squared_std_error"], many["snr_squared_std_error"])
    if not few["snr_squared"] - many["snr_squared"] > margin:
        return ""
    return f"from {few['snr']:.2g} with {few['count']:,} to {many['snr']:.2g} with {many['count']:,}"


def _say_ranking(rows: Sequence[Record]) -> Iterator[str]:
    """Whether what is best early is still among the best late, and the other way round."""
    for part in _parts(rows):
        found = {epoch: choose(candidates(_at(rows, epoch), part)) for (epoch,) in _grouped(rows, "epoch")}
        choices = {epoch: choice for epoch, choice in found.items() if choice}
        if len(choices) < 2:
            continue
        names = [_described(choice.best) for choice in choices.values()]
        told = _listed([f"{name} at epoch {epoch}" for epoch, name in zip(choices, names, strict=True)])
        best = f"The best estimator for the {part}"
        if len(set(names)) == 1:
            yield f"{best} is the same at all {len(names)} checkpoints: {names[0]}."
        elif set.intersection(*(_same(choice) for choice in choices.values())):
            yield f"{best} cannot be shown to change along training: {told}, each with rivals."
        else:
            yield f"{best} changes along training: {told}."


def _same(choice: Choice) -> set[tuple[str, int]]:
    """The best and its rivals."""
    return {(found.method, found.num_particles) for found in (choice.best, *choice.rivals)}


def _say_both(rows: Sequence[Record]) -> Iterator[str]:
    """One estimator for encoder and decoder, where their best ones differ."""
    found = [choose(candidates(rows, part)) for part in _parts(rows) if part != "shared"]
    choices = [choice for choice in found if choice]
    if len(choices) < 2 or choices[0].best[:2] == choices[1].best[:2]:
        return
    common = sorted(_same(choices[0]) & _same(choices[1]))
    if common:
        yield f"Among the best for both encoder and decoder: {_listed([told_of(m, [k]) for m, k in common[:_MANY]])}."
    else:
        yield "No estimator is among the best for both encoder and decoder."


def _say_best(rows: Sequence[Record], num_data: int | None) -> Iterator[str]:
    """One sentence or more for each part: what to use and why, no clear winner, or no verdict."""
    for part in _parts(rows):
        own = [row for row in rows if row["part"] == part]
        choice = choose(candidates(own, part))
        if choice is None:
            yield f"{part.capitalize()}: no verdict; {_why_none(own)}."
            continue
        (row,) = [r for r in own if (r["method"], r["count"]) == choice.best[:2]]
        notes = [_to_one(row, num_data), _to_evidence(own, choice)]
        yield " ".join([f"{part.capitalize()}: {_told(choice)}.", *filter(None, notes)])


def _why_none(rows: Sequence[Record]) -> str:
    known = [row for row in rows if not math.isnan(row["snr_squared"])]
    if not known:
        return "no estimator has numbers"
    if all(row["is_biased"] for row in known):
        return "every estimator is biased"
    return "the SNR of no unbiased estimator can be told from 0, more replicates are needed"


def _told(choice: Choice) -> str:
    best, following = choice.best, choice.following
    if not choice.is_clear:
        ranked = sorted(choice.rivals, key=lambda rival: -rival.gain)
        named = [f"{_described(c)} ({_gain(c)})" for c in (best, *ranked[: _MANY - 1])]
        more = [f"{len(ranked) - _MANY + 1} more"] if len(ranked) >= _MANY else []
        return f"no clear winner in SNR^2 per second between {_listed([*named, *more])}"
    if math.isinf(best.gain):
        return f"use {_described(best)}, whose gradient has no variance"
    start = f"use {_described(best)}, an SNR^2 of {_gain(best)} per second"
    if choice.rivals:
        counts = {best.num_particles, *(rival.num_particles for rival in choice.rivals)}
        gain = f"an SNR^2 of {_gain(best)} per second with {best.num_particles:,}"
        start = f"use {_name(best.method)}; {_particles(counts)} cannot be told apart, {gain}"
    if following is None:
        return start
    if following.gain <= 0:
        return f"{start}, more than of {_described(following)}, the next"
    return f"{start}, {best.gain / following.gain:.2g} times that of {_described(following)}, the next"


def _gain(candidate: Candidate) -> str:
    if math.isinf(candidate.gain):
        return "no variance"
    return with_error(candidate.gain, candidate.gain_error)


def _to_one(row: Record, num_data: int | None) -> str:
    """The SNR and, where it is below 1, how many particles make it 1."""
    needed, over = float(row["particles_for_snr_1"]), f" over {num_data} data" if num_data else ""
    told = f"Its SNR{over} is {row['snr']:.2g}"
    if row["snr"] >= 1 or not math.isfinite(needed):
        return f"{told}."
    return f"{told}; {_particles([math.ceil(needed)])}, in independent estimates, would make it 1."


def _to_evidence(rows: Sequence[Record], choice: Choice) -> str:
    """What following a gradient instead of that of log p(x) costs, and what costs least: of all, or of the rivals."""
    known = [row for row in rows if math.isfinite(row["evidence_bias"])]
    kept = _same(choice)
    rivals = [row for row in known if (row["method"], row["count"]) in kept]
    own = [row for row in rivals if (row["method"], row["count"]) == choice.best[:2]]
    if not own:
        return ""
    least = min(known if choice.is_clear else rivals, key=lambda row: row["evidence_bias_squared"])
    nearest = f"{told_of(least['method'], [least['count']])}, by {_percent(least, 'evidence_bias')}"
    if not choice.is_clear:
        return f"Of these, nearest to the gradient of log p(x) is {nearest} of its length."
    size = _percent(own[0], "evidence_bias")
    told = f"Its mean is off from the gradient of log p(x) by {size} of the latter's length"
    margin = WITHIN * math.hypot(*(r["evidence_bias_squared_std_error"] for r in (own[0], least)))
    if own[0]["evidence_bias_squared"] - least["evidence_bias_squared"] <= margin:
        return f"{told}; none measured is sure to be nearer."
    return f"{told}; nearest is {nearest}."


def _percent(row: Record, name: str) -> str:
    """A relative bias in per cent, with its error, or what it is less than."""
    squared, error = float(row[f"{name}_squared"]), float(row[f"{name}_squared_std_error"])
    if squared <= WITHIN * error:
        return f"less than {100 * math.sqrt(max(squared, 0.0) + WITHIN * error):.2g} %"
    root = math.sqrt(squared)
    return f"{with_error(100 * root, max(100 * error / (2 * root), 0.01))} %"


def _described(candidate: Candidate) -> str:
    return told_of(candidate.method, [candidate.num_particles])


def _particles(counts: Iterable[int]) -> str:
    ordered = sorted(counts)
    return f"{_listed([f'{count:,}' for count in ordered])} particle{'s' * (ordered != [1])}"


def _name(method: str) -> str:
    return Method(method, method, 0).name


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
