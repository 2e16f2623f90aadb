"""What a report tells besides figures: tables of numbers, refused data, what was not measured, settings and costs."""

import json
import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.results.rows import largest_budgets, measured, methods_of, with_error
from pyrovae.results.sandwich import evidence_summary
from pyrovae.results.summary import evidence_rows, summary

__all__ = [
    "Missing",
    "Refusal",
    "command_lines",
    "evidence_table",
    "headline_table",
    "not_measured",
    "notes",
    "refusals",
    "settings",
]

_MEASURED_BY: Final = {
    "history": ("the course of training", "pyrovae train, or audit(..., history=...)"),
    "evidence": ("log p(x), and how far the ELBO is below it", "pyrovae audit RUN or pyrovae evidence RUN"),
    "sandwich": (
        "log p(x) between a lower and an upper end",
        "pyrovae evidence RUN with method bidirectional",
    ),
    "comparison": ("the guide against a reference posterior", "pyrovae audit RUN"),
    "gaps": ("approximation and amortization gap", "pyrovae audit RUN or pyrovae gaps RUN"),
    "calibration": ("calibration on data simulated from the model", "pyrovae audit RUN"),
    "decomposition": ("the terms of the ELBO, and q(z) against the prior", "pyrovae decompose RUN"),
    "gradients": ("bias, variance and cost of gradient estimators", "pyrovae gradients RUN"),
    "reconstruction": ("reconstructions", "pyrovae audit RUN or pyrovae reconstruct RUN"),
}
_REFUSING: Final = {"diagnostics": "reference posterior", "sandwich": "sandwich of log p(x)", "gaps": "gaps"}
_COMMANDS: Final = {"decomposition": "decompose", "reconstruction": "reconstruct"}
_GOOD: Final = ("ok", "closed")
_TOLD_ELSEWHERE: Final = ("stages", "notes", "command")


class Missing(NamedTuple):
    """What was not measured, why, where that is known, and what would measure it."""

    what: str
    reason: str
    command: str


class Refusal(NamedTuple):
    """Data that a measurement gives no verdict on, by their reason."""

    measurement: str
    verdict: str
    reason: str
    data: str
    num_data: int


def headline_table(tree: xr.DataTree) -> list[dict[str, str]]:
    """The rows of `summary` as text; of estimators of log p(x) with their largest budget only."""
    evidence = measured(tree, "evidence")
    largest = [] if evidence is None else [method.label for method in largest_budgets(methods_of(evidence))]
    left_out = {row.quantity for row in evidence_rows(tree) if row.subject not in largest}
    return [
        {"quantity": str(quantity), "value": _number(row["value"], row["std_error"])}
        | {"unit": row["unit"], "direction": row["direction"]}
        | {"data": str(row["num_data"]), "doubt": str(row["num_refused"])}
        for quantity, row in summary(tree).to_dict("index").items()
        if quantity not in left_out
    ]


def _number(value: float, error: float) -> str:
    """A number with its error bar, a whole number as it is, and a dash for none."""
    if math.isnan(value):
        return "–"
    if math.isnan(error):
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
    return with_error(value, error) if math.isfinite(value) and math.isfinite(error) else f"{value} ± {error}"


def evidence_table(tree: xr.DataTree) -> list[dict[str, str]]:
    """The rows of `evidence_summary` as text; none where no evidence was measured."""
    if measured(tree, "evidence", "value", "std_error", "is_reliable", "direction") is None:
        return []
    return [_evidence_row(str(label), row) for label, row in evidence_summary(tree).to_dict("index").items()]


def _evidence_row(label: str, row: dict[Any, Any]) -> dict[str, str]:
    about = " (approximate)" if row["num_approximate"] else ""
    costs = [f"{row[f'num_{kind}_evaluations']:,}" for kind in ("density", "gradient")]
    return {
        "method": label,
        "value": _number(row["value"], row["std_error"]),
        "direction": f"{row['direction']}{about}",
        "bias": _number(row["bias"], row["bias_std_error"]),
        "densities": costs[0],
        "gradients": costs[1],
        "seconds": f"{row['seconds']:.2g}",
        "doubt": f"{row['num_refused']} of {row['num_data']}",
    }


def refusals(tree: xr.DataTree) -> list[Refusal]:
    """The data that were refused, by measurement, verdict and reason, most frequent first."""
    found = []
    for name, words in _REFUSING.items():
        made = measured(tree, name, "verdict")
        if made is None:
            continue
        reason = made["reason"].values if "reason" in made else np.full(made.sizes["datum"], "")
        table = pd.DataFrame(
            {"verdict": made["verdict"].values, "reason": reason, "datum": made["datum"].values}
        )
        table = table[~table["verdict"].isin(_GOOD)]
        rows = [
            Refusal(words, str(key[0]), str(key[1]), _data(part["datum"].tolist()), len(part))
            for key, part in table.groupby(["verdict", "reason"], sort=True)
        ]
        found += sorted(rows, key=lambda row: -row.num_data)
    return found


def _data(data: list[int]) -> str:
    """Coordinates as runs: 0-3, 7."""
    runs: list[list[int]] = []
    for datum in sorted(data):
        if runs and datum == runs[-1][1] + 1:
            runs[-1][1] = datum
        else:
            runs.append([datum, datum])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs)


def not_measured(tree: xr.DataTree) -> list[Missing]:
    """The groups that a report could show and the tree lacks; and the stages of an audit that did not end well."""
    stages = _stages(tree)
    reasons = {name: _reason(found) for name, found in stages.items() if found.get("status") != "ok"}
    missing = [
        Missing(what, reasons.get(name, ""), command)
        for name, (what, command) in _MEASURED_BY.items()
        if name not in tree.children
    ]
    told = set(_MEASURED_BY) - set(tree.children)
    return missing + [Missing(name, reason, "") for name, reason in reasons.items() if name not in told]


def _stages(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """What an audit says of its stages; {} where it says nothing that can be read."""
    found = _nested(tree.attrs.get("stages"))
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _reason(stage: dict[str, Any]) -> str:
    return ": ".join(filter(None, (str(stage.get("status", "")), str(stage.get("reason", "")))))


def _nested(value: Any) -> Any:
    """An attribute that is JSON as what it stands for, else itself."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def settings(tree: xr.DataTree) -> list[tuple[str, str]]:
    """The attributes of the tree and, as group.name, of its groups; nested ones as name.key."""
    told = list(_flat({k: v for k, v in tree.attrs.items() if not str(k).startswith(_TOLD_ELSEWHERE)}))
    return told + [pair for name, node in tree.children.items() for pair in _flat(node.attrs, f"{name}.")]


def _flat(attrs: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in attrs.items():
        nested = _nested(value)
        if isinstance(nested, dict):
            yield from _flat(nested, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{nested:.6g}" if isinstance(nested, float) else str(nested)


def command_lines(tree: xr.DataTree) -> list[str]:
    """The commands that measured the tree, from its attributes `command...`; none where it was made by no command.

    Examples:
        >>> tree = xr.DataTree()
        >>> tree.attrs["command"] = '{"command": "audit", "seed": 0, "num_data": 64, "dtype": null, "model": "ab"}'
        >>> command_lines(tree)
        ['pyrovae audit RUN --seed 0 --num-data 64']
    """
    told = [_nested(value) for name, value in tree.attrs.items() if str(name).startswith("command")]
    return [_command_line(about) for about in told if isinstance(about, dict) and "command" in about]


def _command_line(about: dict[str, Any]) -> str:
    given = {k: v for k, v in about.items() if k not in ("command", "model") and v is not None and v != ""}
    options = [f"--{name.replace('_', '-')} {_option(value)}" for name, value in given.items()]
    name = _COMMANDS.get(about["command"], about["command"])
    return " ".join([f"pyrovae {name} RUN", *options])


def _option(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def notes(tree: xr.DataTree) -> list[str]:
    """What whoever put the tree together says of it: the attribute `notes`, JSON."""
    found = _nested(tree.attrs.get("notes"))
    return [str(note) for note in found] if isinstance(found, list) else []
