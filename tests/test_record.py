"""The numbers of an audit for programs: infinite ones are measured, and the gap is the one that the page tells."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from report_trees import report_groups
from trees import groups_of, widely_compared_tree

from pyrovae.results import build_tree, group
from pyrovae.results.headline import best_gap
from pyrovae.results.record import NAMES, audit_record, keyed_rows, parse_gates
from pyrovae.results.summary import summary


def with_khat(*khat: float) -> xr.DataTree:
    return build_tree(
        {"diagnostics": group("diagnostics", {"khat": np.array(khat)}, {"khat_threshold": 0.7})}
    )


@pytest.mark.parametrize(
    ("khat", "fails"),
    [
        ((-math.inf, -math.inf), False),  # the guide is the posterior: all weights are equal
        ((0.2, math.inf), True),  # a tail that cannot be fitted
        ((-math.inf, 0.9), True),
        ((0.2, math.nan), False),
        ((math.nan, math.nan), None),
    ],
)
def test_a_gate_sees_infinite_numbers_and_only_nan_was_not_measured(khat, fails):
    (gate,) = parse_gates("khat>0.7")
    assert gate.fails(keyed_rows(with_khat(*khat))) is fails
    assert gate.fails({}) is None


@pytest.mark.parametrize(
    ("khat", "word"), [(math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, None)]
)
def test_the_record_is_json_that_tells_infinity_from_nothing(khat, word):
    value = json.loads(json.dumps(audit_record(with_khat(khat)), allow_nan=False))["rows"]["khat"]["value"]
    assert value == word
    assert value is None or float(value) == khat


@pytest.mark.parametrize(
    "names", [("evidence", "sandwich", "gaps"), ("evidence", "sandwich"), ("evidence",), ("gaps",)]
)
def test_the_gap_is_that_of_the_headline(names):
    groups = report_groups()
    tree = build_tree({name: groups[name] for name in names})
    best = best_gap(tree)
    row = keyed_rows(tree)["gap"]
    assert (row["value"], row["std_error"], row["quantity"]) == (best.value, best.std_error, best.quantity)


def test_every_row_of_the_summary_is_kept_under_its_own_name():
    groups = report_groups()
    tree = build_tree(groups | {"comparison": groups["comparison"]})
    rows, table = keyed_rows(tree), summary(tree)
    assert len(rows) == len(table) + 2  # the largest k-hat, and the best gap beside its own name
    assert {"khat", "gap", "inference_gap", "gap.sandwich"} <= set(rows)
    assert {row["quantity"] for row in rows.values()} == {*table.index, "largest k-hat"}
    assert set(NAMES) & set(rows) >= {"sd_ratio", "converged", "approximation_gap"}
    assert "gap" not in keyed_rows(build_tree(groups_of(widely_compared_tree(["ok"] * 3))))
