"""What rows of numbers are made of: the row, an average over data with its error, what the methods are called."""

import math
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

__all__ = [
    "NATS",
    "Method",
    "Row",
    "average",
    "count_data",
    "data_have",
    "estimate_row",
    "largest_budgets",
    "listed",
    "measured",
    "methods_of",
    "number",
    "some",
    "with_error",
]

NATS: Final = "nats per datum"
_ACRONYMS: Final = ("elbo", "iwae", "psis", "ais", "snis", "cubo", "eubo", "jvi", "hmc")
_ACRONYMS_OF_GRADIENTS: Final = ("stl", "miwae", "ciwae", "piwae", "vimco", "rws", "kl", "loo")
_NAMES: Final = {"ais-reverse": "reverse AIS", "dreg": "DReG", "rws_dreg": "RWS DReG"}


class Row(NamedTuple):
    """One headline quantity; `subject` is the method or variable that it is about."""

    subject: str
    quantity: str
    value: float
    std_error: float
    unit: str
    direction: str
    num_data: int
    num_refused: int


class Method(NamedTuple):
    """One row of `evidence`: its label there, the estimator behind it, and its draws or temperatures (0: none)."""

    label: str
    estimator: str
    budget: int

    @property
    def name(self) -> str:
        """The estimator as people write it.

        Examples:
            >>> Method("iwae-10", "iwae", 10).name, Method("ais-reverse", "ais-reverse", 0).name
            ('IWAE', 'reverse AIS')
        """
        plain, short = (
            _NAMES.get(self.estimator, self.estimator).replace("_", " "),
            (*_ACRONYMS, *_ACRONYMS_OF_GRADIENTS),
        )
        return re.sub(r"\w+", lambda word: word[0].upper() if word[0] in short else word[0], plain)

    @property
    def budget_words(self) -> str:
        """The budget with its unit, or "".

        Examples:
            >>> Method("ais-10", "ais", 10).budget_words
            '10 temperatures'
        """
        unit = "temperature" if self.estimator.split("-")[0] == "ais" else "draw"
        return f"{self.budget} {unit}{'s' * (self.budget != 1)}" if self.budget else ""

    def described(self, joint: str, *, always: bool = False) -> str:
        """The name and, where the label has it or `always`, the budget.

        Examples:
            >>> Method("iwae-10", "iwae", 10).described(" with "), Method("iwae", "iwae", 10).described(", ")
            ('IWAE with 10 draws', 'IWAE')
        """
        has_budget = self.budget > 0 and (always or self.label != self.estimator)
        return f"{self.name}{joint}{self.budget_words}" if has_budget else self.name


def methods_of(evidence: xr.Dataset) -> list[Method]:
    """The methods of a group `evidence`, in its order; one without `estimator` and `budget` has its labels."""
    labels = [str(label) for label in evidence["method"].values]
    estimators = evidence["estimator"].values if "estimator" in evidence else labels
    budgets = evidence["budget"].values if "budget" in evidence else [0] * len(labels)
    return [Method(m, str(e), int(b)) for m, e, b in zip(labels, estimators, budgets, strict=True)]


def largest_budgets(methods: Sequence[Method]) -> list[Method]:
    """Each estimator once, with its largest budget, in the order of their first budgets.

    Examples:
        >>> [m.label for m in largest_budgets([Method("a-1", "a", 1), Method("b", "b", 0), Method("a-9", "a", 9)])]
        ['a-9', 'b']
    """
    largest: dict[str, Method] = {}
    for method in methods:
        kept = largest.setdefault(method.estimator, method)
        largest[method.estimator] = max(kept, method, key=lambda m: m.budget)
    return list(largest.values())


def measured(tree: xr.DataTree, name: str, *variables: str) -> xr.Dataset | None:
    """A group of the tree if it was measured with these variables, else None."""
    if name not in tree.children or not set(variables) <= set(tree[name].data_vars):
        return None
    return tree[name].to_dataset()


def average(values: Float[np.ndarray, " n"], mc_error: Float[np.ndarray, " n"]) -> tuple[float, float, int]:
    """Mean, standard error and count over the finite values, each with its own Monte Carlo error.

    The spread over data has the Monte Carlo error in it already; it is rough for few data, so the Monte Carlo
    error alone is its floor.
    """
    is_finite = np.isfinite(values)
    kept, count = values[is_finite].astype(float), int(is_finite.sum())
    if count == 0:
        return math.nan, math.nan, 0
    floor = float(np.nansum(mc_error[is_finite].astype(float) ** 2)) / count**2
    spread = float(kept.var(ddof=1)) / count if count > 1 else 0.0
    error = math.sqrt(max(spread, floor))
    return float(kept.mean()), error if error > 0 or count > 1 else math.nan, count


def estimate_row(estimate: xr.Dataset, subject: str, quantity: str) -> Row:
    """The mean of one method's `value`; without error bar where none of the data has one to be trusted."""
    value, error, count = average(estimate["value"].values, estimate["std_error"].values)
    refused = int((~estimate["is_reliable"].values).sum())
    error = math.nan if refused == estimate.sizes["datum"] else error
    direction = str(estimate["direction"].item())
    return Row(subject, quantity, value, error, NATS, direction, count, refused)


def with_error(value: float, error: float) -> str:
    """A value and its error bar, if it has one, both to the second digit of the error; never a zero below zero.

    Examples:
        >>> with_error(0.123456, 0.0123), with_error(-3.0, math.nan), with_error(81234.0, 1234.0)
        ('0.123 ± 0.012', '-3.0000', '81200 ± 1200')
        >>> with_error(-1e-9, 1e-9), with_error(1.0, math.inf)
        ('0.000000 ± 0.000000', '1.0000 ± inf')
    """
    if math.isnan(error):
        return f"{value:z.4f}"
    digits = 1 - math.floor(math.log10(error)) if 0 < error < math.inf else 4
    shown = min(max(digits, 0), 6)
    return f"{round(value, min(digits, 6)):z.{shown}f} ± {round(error, min(digits, 6)):.{shown}f}"


def number(row: Row) -> str:
    """The value of a row and its error bar, as `with_error` writes them."""
    return with_error(row.value, row.std_error)


def count_data(count: int, total: int | None = None) -> str:
    """So many data, or so many of all.

    Examples:
        >>> count_data(1), count_data(2), count_data(1, 40), count_data(1, 1)
        ('1 datum', '2 data', '1 of 40 data', '1 of 1 datum')
    """
    if total is None:
        return f"{count} {'datum' if count == 1 else 'data'}"
    return f"{count} of {count_data(total)}"


def data_have(count: int) -> str:
    """The start of a clause.

    Examples:
        >>> data_have(1), data_have(2)
        ('1 datum has', '2 data have')
    """
    return f"{count_data(count)} {'has' if count == 1 else 'have'}"


def some(count: int, noun: str) -> str:
    """So many of what a regular noun names.

    Examples:
        >>> some(1, "latent"), some(3, "latent")
        ('1 latent', '3 latents')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and" between.

    Examples:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
