"""Result trees: what is built has the dims of the schema, and what does not fit is refused with a clear sentence."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from jaxtyping import TypeCheckError
from trees import DATUM, LATENT, C, D, N, T, all_groups, evidence, full_tree

from pyrovae import results
from pyrovae.results import build_tree, check, evidence_group, group, schema

# building


def test_dims_and_coordinates_come_from_the_schema() -> None:
    groups = all_groups()
    assert groups["posterior"]["z"].dims == ("chain", "draw", "datum", "latent")
    assert groups["posterior_constrained"]["w"].dims == ("chain", "draw", "datum", "w_dim_0")
    assert groups["reconstruction"]["x"].dims == ("draw", "datum", "x_dim_0")
    assert groups["posterior"]["latent"].values.tolist() == LATENT
    assert groups["guide"]["draw"].values.tolist() == list(range(T))
    assert groups["gradients"]["variance"].dims == ("estimator", "k")
    assert group("history", {"elbo": np.zeros(3)})["epoch"].values.tolist() == [1, 2, 3]


def test_sample_stats_are_broadcast_to_every_draw() -> None:
    made = results.sample_stats_group(
        np.zeros((C, T, N)), step_size=np.array([0.1, 0.2, 0.3]), n_steps=np.arange(T)[:, None]
    )
    assert (made["step_size"].values == [0.1, 0.2, 0.3]).all()
    assert (made["n_steps"].values[1, :, 2] == np.arange(T)).all()


def test_evidence_becomes_one_row_a_method() -> None:
    made = evidence_group([evidence(), evidence("elbo", value=np.arange(3.0))], datum=DATUM)
    assert made["method"].values.tolist() == ["iwae", "elbo"]
    assert made["value"].sel({"method": "elbo", "datum": 9}).item() == 2.0
    assert np.isnan(made["khat"].values).all()
    assert made["is_unbiased_density"].dtype == bool


def test_methods_at_several_budgets_have_their_own_labels() -> None:
    table = [evidence(budget=10), evidence("elbo", budget=10), evidence(budget=100)]
    made = evidence_group(table)
    assert made["method"].values.tolist() == ["iwae-10", "elbo", "iwae-100"]
    assert made["estimator"].values.tolist() == ["iwae", "elbo", "iwae"]
    assert made["budget"].values.tolist() == [10, 10, 100]
    with pytest.raises(ValueError, match=r"its own budget.*\['iwae-10', 'iwae-10'\]"):
        evidence_group([evidence(budget=10), evidence(budget=10)])


def test_attributes_are_flattened() -> None:
    assert full_tree().attrs == {
        "seed": 0,
        "dtype": "float32",
        "settings": '{"lr": 0.1, "on": true}',
        "empty": "",
    }
    flat = build_tree({}, {"flag": np.bool_(True), "rate": np.float32(0.5), "none": None}).attrs
    assert flat == {"flag": 1, "rate": 0.5, "none": "null"}
    assert type(flat["flag"]) is int


def test_groups_stand_in_the_order_of_the_schema() -> None:
    order = list(full_tree().children)
    assert order == [name for name in results.SCHEMA if name in order]


# refusing


@pytest.mark.parametrize(
    ("name", "variables", "coords", "message"),
    [
        ("postirior", {"z": np.zeros((C, T, N, D))}, {"latent": LATENT}, "unknown group 'postirior'"),
        (
            "posterior",
            {"z": np.zeros((T, N, D))},
            {"latent": LATENT},
            r"posterior.z must have dims \(chain, draw",
        ),
        ("posterior", {"y": np.zeros((C, T, N, D))}, {"latent": LATENT}, "has the variables z, got 'y'"),
        ("posterior", {"z": np.zeros((C, T, N, D))}, {}, "needs the names along 'latent'"),
        ("posterior", {"z": np.zeros((C, T, N, D))}, {"latent": ["a", "a"]}, "must be names, each once"),
        (
            "posterior",
            {"z": np.zeros((C, T, N, D))},
            {"latent": LATENT, "datum": [1, 1, 2]},
            "integers, each once",
        ),
        (
            "posterior",
            {"z": np.zeros((C, T, N, D))},
            {"latent": LATENT, "datum": [0.5, 1, 2]},
            "must be integers",
        ),
        ("posterior", {"z": np.zeros((C, T, N, D))}, {"latent": ["a"]}, "size 2 along 'latent'"),
        ("history", {"elbo": np.zeros(3)}, {"datum": [1, 2, 3]}, "got coordinates for"),
        ("history", {"epoch": np.zeros(3)}, {}, "bears the name of a dimension"),
        ("history", {"elbo": np.zeros(3), "val_elbo": np.zeros(4)}, {}, "do not fit together"),
        ("history", {"elbo": np.array([object()])}, {}, "must hold numbers, booleans or strings"),
        ("history", {}, {}, "is empty"),
        ("posterior_constrained", {"chain": np.zeros((C, T, N))}, {}, "rename it"),
        ("observed_data", {"x": np.float64(1.0)}, {}, r"must have dims \(datum, ...\)"),
        (
            "guide",
            {"z": (("draw", "chain", "datum", "latent"), np.zeros((1, 1, 1, 1)))},
            {"latent": ["a"]},
            "guide.z",
        ),
        ("sandwich", {"verdict": np.array(["ok"])}, {}, r"'did not close', 'no verdict'\), got \['ok'\]"),
        ("sandwich", {"source": np.array(["a guess"])}, {}, r"sandwich.source must be one of \('exact', "),
        ("sandwich", {"truth": np.zeros((2, 3))}, {}, r"sandwich.truth must have dims \(datum\)"),
        (
            "diagnostics",
            {"verdict": np.array(["pass"])},
            {},
            r"must be one of \('ok', 'no verdict'\), got \['pass'\]",
        ),
    ],
)
def test_a_group_that_does_not_fit_is_refused(
    name: str, variables: dict[str, object], coords: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        group(name, variables, **coords)


@pytest.mark.parametrize(
    ("name", "other", "dim"),
    [
        ("guide", group("guide", {"z": np.zeros((1, T, 2, D))}, datum=DATUM[:2], latent=LATENT), "datum"),
        ("guide", group("guide", {"z": np.zeros((1, T, N, D))}, datum=[1, 2, 3], latent=LATENT), "datum"),
        ("guide", group("guide", {"z": np.zeros((1, T, N, D))}, datum=DATUM, latent=["a", "b"]), "latent"),
        (
            "posterior_constrained",
            group("posterior_constrained", {"w": np.zeros((C, 4, N))}, datum=DATUM),
            "draw",
        ),
        ("sample_stats", results.sample_stats_group(np.zeros((3, T, N)), datum=DATUM), "chain"),
        ("reconstruction", group("reconstruction", {"x": np.zeros((5, 2, 4))}, datum=[4, 5]), "datum"),
        ("reconstruction", group("reconstruction", {"x": np.zeros((5, 2, 3))}, datum=DATUM[:2]), "x_dim_0"),
    ],
)
def test_groups_that_disagree_are_refused(name: str, other: xr.Dataset, dim: str) -> None:
    with pytest.raises(ValueError, match=f"disagree on '{dim}'"):
        build_tree(all_groups() | {name: other})


def test_the_draws_of_different_things_may_differ_in_number() -> None:
    """Guide and posterior, log-weights, and data that were reconstructed in part: all of this is no disagreement."""
    check(full_tree())


def test_a_tree_with_strangers_is_refused() -> None:
    tree = full_tree()
    tree["guide"]["inner"] = xr.DataTree(xr.Dataset({"a": 1}))
    with pytest.raises(ValueError, match="must not hold groups"):
        check(tree)
    with pytest.raises(ValueError, match="the root of a result tree holds groups only"):
        check(xr.DataTree(xr.Dataset({"a": 1})))
    with pytest.raises(ValueError, match="unknown group 'other'"):
        build_tree({"other": xr.Dataset({"a": 1})})
    tree = xr.DataTree()
    tree.attrs["a"] = {}
    with pytest.raises(ValueError, match="attribute 'a' of the root must be a string or a number, got dict"):
        check(tree)
    with pytest.raises(ValueError, match="lacks the coordinates of 'datum'"):
        check(
            xr.DataTree.from_dict(
                {"log_weights": xr.Dataset({"guide": (("draw", "datum"), np.zeros((2, 2)))})}
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "up"}, "direction of iwae must be one of"),
        ({"budget": -1}, "budget of iwae must be 0 or more, got -1"),
        ({"value": np.array([1.0, np.nan, 2.0])}, "gives nan with std_error 0.1 for datum 1"),
        ({"std_error": np.array([0.1, 0.1, -1.0])}, "with std_error -1.0 for datum 2"),
        ({"std_error": np.array([np.inf, 0.1, 0.1])}, "or is_reliable False there"),
    ],
)
def test_evidence_that_is_no_evidence_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evidence(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"std_error": np.zeros(2)},
        {"khat": np.zeros(4)},
        {"is_reliable": np.ones(N)},
        {"value": np.zeros((N, 1))},
    ],
)
def test_evidence_of_wrong_shape_or_dtype_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeCheckError)):
        evidence(**changes)


def test_the_shape_error_reads_well_without_the_type_checker() -> None:
    """The tests check types as they import; a user's process does not, and must get the sentence."""
    code = (
        "import numpy as np; from pyrovae.results import Evidence; t = np.ones(2, bool)\n"
        "Evidence(method='iwae', value=np.zeros(2), std_error=np.zeros(3), direction='lower', "
        "is_unbiased_density=True, is_reliable=t, is_approximate=t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "iwae: std_error must be an array of floating with one entry a datum" in done.stderr


def test_an_unreliable_value_may_be_missing() -> None:
    made = evidence(value=np.array([1.0, np.nan, 2.0]), is_reliable=np.array([True, False, True]))
    assert made.num_data == N


def test_evidence_of_different_data_is_refused() -> None:
    yes = np.ones(2, bool)
    short = evidence("elbo", value=np.zeros(2), std_error=np.zeros(2), is_reliable=yes, is_approximate=~yes)
    with pytest.raises(ValueError, match=r"\{'iwae': 3, 'elbo': 2\}"):
        evidence_group([evidence(), short])
    with pytest.raises(ValueError, match="its own method name"):
        evidence_group([evidence(), evidence()])
    with pytest.raises(ValueError, match="one Evidence or more"):
        evidence_group([])


# the house


@pytest.mark.parametrize(
    "module", ["results", "results.sandwich", "results.summary", "results.verdicts", "reporting.plots"]
)
def test_importing_results_does_not_import_torch(module: str) -> None:
    code = f"import sys, pyrovae.{module}; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_variable_of_the_schema_bears_the_name_of_a_dimension() -> None:
    dims = {dim for table in schema.SCHEMA.values() for pattern in table.values() for dim in pattern.split()}
    assert not dims & {variable for table in schema.SCHEMA.values() for variable in table}
