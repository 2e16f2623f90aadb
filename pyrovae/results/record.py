"""The numbers of an audit for programs: each row under a short name, the sentences, and gates on the rows."""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from pyrovae.results.headline import best_gap
from pyrovae.results.inference_gaps import inference_gap_rows
from pyrovae.results.rows import Row, measured
from pyrovae.results.sandwich import sandwich_rows
from pyrovae.results.schema import SCHEMA
from pyrovae.results.storage import content_hash
from pyrovae.results.summary import comparison_row, evidence_rows, gap_rows, khat_row, summary, worst_row
from pyrovae.results.verdicts import verdict_sentences

__all__ = ["NAMES", "Gate", "audit_record", "has_verdict", "keyed_rows", "parse_gates"]

FORMAT, VERSION = "pyrovae-audit", 1

NAMES: Final[Mapping[str, str]] = {
    "khat": "the largest k-hat",
    "khat_share": "the share of data with k-hat above its threshold",
    "rhat": "the largest R-hat",
    "ess_bulk": "the smallest bulk ESS",
    "ess_tail": "the smallest tail ESS",
    "converged": "the number of data with a converged reference",
    "closed": "the number of data where the sandwich closed",
    "sandwich_gap": "nats between the ends of the sandwich",
    "log_evidence": "log p(x), where it is known",
    "gap": "log p(x) - ELBO by the best that was measured",
    "mean_error": "the guide's error of the mean, in posterior sds",
    "sd_ratio": "the guide's sd over the posterior's",
    "wasserstein2": "the guide's distance to the posterior",
    "simulated_gap": "sum of the KL of guide and posterior both ways, on simulated data",
    "inference_gap": "nats lost in all, where its parts are known",
    "approximation_gap": "nats lost to the guide's family",
    "amortization_gap": "nats lost to amortization",
}
"""Names of rows that gates are mostly about; others are GROUP.VARIABLE or QUANTITY.METHOD, as in the record."""
_FAMILIES: Final = ("log_evidence.", "gap.", *(f"{name}." for name in SCHEMA))
_OF_SANDWICH: Final = {"closed": "closed", "gap": "sandwich_gap", "truth": "log_evidence"}
_CONVERGED: Final = "data with a converged reference"
_COMPARED: Final = ("mean_error", "sd_ratio", "wasserstein2")
_WORST: Final = ("rhat", "ess_bulk", "ess_tail")
_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_GATE: Final = re.compile(r"\s*([A-Za-z][\w.-]*?)\s*(<=|>=|<|>)\s*(\S+)\s*")


class Gate(NamedTuple):
    """A condition on one row under which an audit fails.

    >>> rows = {"rhat": {"value": 1.02}, "khat": {"value": -math.inf}}
    >>> Gate("rhat", ">", 1.01).fails(rows), Gate("khat", ">", 0.7).fails(rows), Gate("gap", ">", 1.0).fails(rows)
    (True, False, None)
    """

    name: str
    operator: str
    limit: float

    def fails(self, rows: Mapping[str, Mapping[str, Any]]) -> bool | None:
        """Whether the condition holds; None if the row was not measured; an infinite value was."""
        value = rows.get(self.name, {}).get("value", math.nan)
        return None if math.isnan(value) else bool(_OPERATORS[self.operator](value, self.limit))

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.limit:g}"


def parse_gates(text: str) -> list[Gate]:
    """Gates with commas between.

    Raises:
        ValueError: what is no gate, or a name that no row can have.

    >>> parse_gates("khat>0.7, converged<10")
    [Gate(name='khat', operator='>', limit=0.7), Gate(name='converged', operator='<', limit=10.0)]
    """
    return [_gate(part) for part in text.split(",") if part.strip()]


def _gate(text: str) -> Gate:
    match = _GATE.fullmatch(text)
    try:
        limit = float(match[3]) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or math.isnan(limit):
        raise ValueError(
            f"a gate is NAME, one of {' '.join(_OPERATORS)}, and a number, such as khat>0.7, got {text!r}"
        )
    if match[1] not in NAMES and not match[1].startswith(_FAMILIES):
        raise ValueError(
            f"unknown row {match[1]!r} of an audit: choose one of {', '.join(NAMES)}, or a name with a dot as in "
            "audit.json"
        )
    return Gate(match[1], match[2], limit)


def audit_record(tree: xr.DataTree) -> dict[str, Any]:
    """What `audit.json` holds: plain values, null for what was not measured, "Infinity" or "-Infinity" for those.

    The largest k-hat is -Infinity where all weights are equal, as those of the posterior itself are, and Infinity where
    a tail cannot be fitted; `float` of Python and `Number` of JavaScript read both words.

    Returns:
        `format`, `version`; `rows`, {name: the row of `summary`}, with the largest k-hat beside them; `sentences`;
        `stages` and `settings` as the tree has them; `num_data`, `seed`, `seconds`, `versions`, `device`; and
        `content_hash` of the tree.
    """
    attrs = tree.attrs
    nested = {
        name: json.loads(attrs.get(name, "{}"))
        for name in ("stages", "settings", "versions", "stage_seconds")
    }
    plain = {
        name: attrs.get(name) for name in ("num_data", "latent_dim", "seed", "dtype", "device", "seconds")
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "rows": {
            name: {key: _plain(value) for key, value in row.items()} for name, row in keyed_rows(tree).items()
        },
        "sentences": verdict_sentences(tree),
        **nested,
        **plain,
        "content_hash": content_hash(tree),
    }


def keyed_rows(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """The rows of `summary` under short names that do not change with their wording.

    >>> diagnostics = xr.Dataset({"khat": ("datum", [0.2, 0.9])}, {"datum": [0, 1]}, {"khat_threshold": 0.7})
    >>> rows = keyed_rows(xr.DataTree.from_dict({"diagnostics": diagnostics}))
    >>> rows["khat_share"]["value"], rows["khat"]["value"]
    (0.5, 0.9)
    """
    names = _names(tree)
    rows: dict[str, dict[str, Any]] = {}
    for quantity, row in summary(tree).iterrows():
        name = names.get(str(quantity), _slug(str(quantity)))
        rows.setdefault(name, {"quantity": str(quantity), **{str(key): value for key, value in row.items()}})
    single = {"gap": best_gap(tree), "khat": _largest_khat(tree)}
    return rows | {
        name: {key: value for key, value in row._asdict().items() if key != "subject"}
        for name, row in single.items()
        if row is not None
    }


def _largest_khat(tree: xr.DataTree) -> Row | None:
    diagnostics = measured(tree, "diagnostics", "khat")
    if diagnostics is None:
        return None
    khat = diagnostics["khat"].values
    known = khat[~np.isnan(khat)]
    value = float(known.max()) if known.size else math.nan
    return Row("khat", "largest k-hat", value, math.nan, "shape", "none", known.size, khat.size - known.size)


def has_verdict(tree: xr.DataTree) -> bool:
    """Whether any datum has one: from the reference, if that was begun, else from any stage."""
    stages = json.loads(tree.attrs.get("stages", "{}"))
    diagnostics = measured(tree, "diagnostics", "verdict")
    if stages.get("reference", {}).get("status") in ("ok", "failed") and diagnostics is not None:
        return bool((diagnostics["verdict"] == "ok").any())
    return any(stage["status"] == "ok" for stage in stages.values())


def _names(tree: xr.DataTree) -> dict[str, str]:
    """{quantity: name} of the rows that are not called by a group and a variable of it."""
    names = {row.quantity: f"log_evidence.{row.subject}" for row in evidence_rows(tree)}
    names |= {row.quantity: _OF_SANDWICH[row.subject] for row in sandwich_rows(tree)}
    names |= {row.quantity: f"gap.{_slug(row.subject)}" for row in gap_rows(tree)}
    names |= {
        row.quantity: row.subject if row.subject in NAMES else f"gaps.{row.subject}"
        for row in inference_gap_rows(tree)
    }
    single = {"khat_share": khat_row(tree), **{name: worst_row(tree, name) for name in _WORST}}
    single |= {name: comparison_row(tree, name) for name in _COMPARED}
    return names | {row.quantity: name for name, row in single.items() if row} | {_CONVERGED: "converged"}


def _slug(quantity: str) -> str:
    """A name made of a quantity: "group: elbo" is "group.elbo", but the best known go without their group."""
    group, _, variable = quantity.rpartition(": ")
    words = re.sub(r"[^A-Za-z0-9]+", "_", variable).strip("_")
    return words if words in NAMES or not group else f"{group}.{words}"


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
