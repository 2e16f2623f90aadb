"""Which gradient estimator, with how many particles: the best for one part of the parameters, and what rivals it."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from pyrovae.results.gradients import WITHIN, Record
from pyrovae.results.significance import SURE

__all__ = ["Candidate", "Choice", "candidates", "choose", "is_beaten", "objective_of"]

ELBO: Final = "the ELBO"
_OF_ELBO: Final = ("elbo", "analytic_kl", "stl", "score_function", "score_function_loo", "detached")
_OF_IWAE: Final = ("iwae", "dreg", "vimco")
_WAKE: Final = ("rws", "rws_dreg")


class Candidate(NamedTuple):
    """One estimator with a number of particles, for one part: what a second of it gains, and what it loses.

    `gain` is SNR^2 per second, whatever the objective; `loss`, variance times seconds, tells more exactly, but only
    between estimators of one mean. Both errors hold that of the clock.
    """

    method: str
    num_particles: int
    objective: str
    gain: float
    gain_error: float
    loss: float
    loss_error: float
    is_resolved: bool

    def shares_mean_with(self, other: "Candidate") -> bool:
        """Whether both estimate the same gradient: those of bounds change with the number of particles."""
        return self.objective == other.objective and (
            self.objective == ELBO or self.num_particles == other.num_particles
        )


class Choice(NamedTuple):
    """The best candidate, those that cannot be told from it, and the best of those that can."""

    best: Candidate
    rivals: list[Candidate]
    following: Candidate | None

    @property
    def is_clear(self) -> bool:
        """Whether one estimator stands, be it with several numbers of particles."""
        return all(rival.method == self.best.method for rival in self.rivals)


def objective_of(method: str, part: str, count: int) -> str:
    """What an estimator's gradient for a part is the gradient of, in words; every bound with one particle is the ELBO.

    Examples:
        >>> objective_of("dreg", "encoder", 8), objective_of("rws", "encoder", 8), objective_of("rws", "decoder", 8)
        ('IWAE', 'the wake update', 'IWAE')
    """
    if method in _WAKE and part != "decoder":
        return "the wake update"
    if method in _OF_ELBO or count == 1:
        return ELBO
    if method in (*_OF_IWAE, *_WAKE) or (method == "piwae" and part == "decoder"):
        return "IWAE"
    return {"piwae": "MIWAE", "miwae": "MIWAE"}.get(method, method)


def candidates(rows: Sequence[Record], part: str) -> list[Candidate]:
    """What there is to choose from for one part (at one epoch): the rows that have numbers and no bias."""
    return [
        _candidate(row) for row in rows if row["part"] == part and _has_numbers(row) and not row["is_biased"]
    ]


def _has_numbers(row: Record) -> bool:
    return not (math.isnan(row["snr_squared"]) or math.isnan(row["variance_seconds"]))


def _candidate(row: Record) -> Candidate:
    gain, loss = float(row["snr_squared_per_second"]), float(row["variance_seconds"])
    clock = row["seconds_std_error"] / row["seconds"]
    return Candidate(
        row["method"],
        row["count"],
        objective_of(row["method"], row["part"], row["count"]),
        gain=gain,
        gain_error=math.hypot(row["snr_squared_std_error"] / row["seconds"], clock * gain),
        loss=loss,
        loss_error=math.hypot(row["variance_std_error"] * row["seconds"], clock * loss),
        is_resolved=math.isinf(gain) or row["snr_squared"] > WITHIN * row["snr_squared_std_error"],
    )


def is_beaten(candidate: Candidate, by: Candidate) -> bool:
    """Whether another candidate is better by 3 standard errors, those of the two taken as independent."""
    if candidate.shares_mean_with(by):
        return candidate.loss - by.loss > SURE * math.hypot(candidate.loss_error, by.loss_error)
    if math.isinf(by.gain):
        return math.isfinite(candidate.gain)
    return by.gain - candidate.gain > SURE * math.hypot(candidate.gain_error, by.gain_error)


def choose(among: Sequence[Candidate]) -> Choice | None:
    """The best candidate by SNR^2 per second, of those of its own mean the one with the least variance x seconds.

    Only candidates whose SNR is told from 0 can be the best. None if there are none.

    Examples:
        >>> fields = {"objective": ELBO, "gain_error": 0.1, "loss_error": 0.1, "is_resolved": True}
        >>> good, bad = (Candidate(name, 1, gain=g, loss=1 / g, **fields) for name, g in (("stl", 2.0), ("elbo", 0.5)))
        >>> choose([bad, good]).best.method, choose([bad, good]).is_clear
        ('stl', True)
    """
    resolved = [candidate for candidate in among if candidate.is_resolved]
    if not resolved:
        return None
    first = max(resolved, key=lambda candidate: candidate.gain)
    best = min((c for c in resolved if c.shares_mean_with(first)), key=lambda candidate: candidate.loss)
    rivals = [c for c in among if c != best and not is_beaten(c, best)]
    beaten = [c for c in among if c != best and c not in rivals]
    others = [c for c in beaten if c.method != best.method] or beaten
    return Choice(best, rivals, max(others, key=lambda candidate: candidate.gain, default=None))
