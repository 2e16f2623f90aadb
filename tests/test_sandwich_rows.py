"""Rows and sentences on the truth about log p(x): once where it is known, and by whom where it is not."""

import numpy as np
import pytest
import xarray as xr
from trees import ends, estimate, evidence_tree, sandwich_tree

from pyrovae.results.summary import summary
from pyrovae.results.verdicts import verdict_sentences

NAN = float("nan")


def test_rows_of_the_sandwich() -> None:
    table = summary(sandwich_tree(*ends([0.06, 0.08, 1.06, NAN])))
    closed = table.loc["data where the sandwich closed"]
    assert (closed["value"], closed["num_data"], closed["num_refused"]) == (2.0, 4, 2)
    gap = table.loc["gap between the ends of the sandwich"]
    assert (gap["value"], gap["num_data"], gap["num_refused"]) == (pytest.approx(0.4), 3, 1)
    truth = table.loc["log p(x), sandwich"]
    assert (truth["value"], truth["num_data"], truth["num_refused"]) == (pytest.approx(-2.965), 2, 2)
    assert truth["direction"] == "none"


def gaps(tree: xr.DataTree) -> list[str]:
    start = "KL(guide || posterior) by "
    return [name.removeprefix(start) for name in summary(tree).index if name.startswith(start)]


ELBO = estimate("elbo", [-5.0, -6.0], budget=100)


def test_the_kl_is_told_once_where_the_truth_is_known_and_by_the_ends_where_it_is_not() -> None:
    others = [estimate(m, [-4.0, -4.0]) for m in ("iwae", "cubo", "largest-weight")]
    assert gaps(sandwich_tree(ELBO, *others, *ends([0.0, 0.05]))) == ["sandwich - ELBO"]
    assert gaps(sandwich_tree(ELBO, *others, *ends([0.0, 5.0]))) == [
        "sandwich - ELBO",
        "AIS - ELBO",
        "reverse AIS - ELBO",
    ]
    assert gaps(sandwich_tree(ELBO, *others, *ends([5.0, 5.0]))) == [
        "IWAE - ELBO",
        "AIS - ELBO",
        "reverse AIS - ELBO",
    ]
    row = summary(sandwich_tree(ELBO, *ends([0.0, 5.0]))).loc["KL(guide || posterior) by sandwich - ELBO"]
    assert (row["value"], row["num_data"], row["num_refused"]) == (pytest.approx(2.0), 1, 1)


def test_without_truth_the_kl_is_told_by_the_largest_budgets() -> None:
    table = [estimate(m, [-4.0, -4.0], budget=b) for m in ("iwae", "psis") for b in (1000, 10)]
    assert gaps(evidence_tree(ELBO, *table)) == ["IWAE, 1000 draws - ELBO", "PSIS, 1000 draws - ELBO"]
    said = verdict_sentences(evidence_tree(ELBO, *table))
    assert [s.split(" puts")[0] for s in said[:3]] == ["ELBO", "IWAE with 1000 draws", "PSIS with 1000 draws"]
    assert len(said) == 5


def test_sentences_on_a_sandwich_that_closed_for_some() -> None:
    said = verdict_sentences(sandwich_tree(ELBO, *ends([0.06, 1.06], is_approximate=np.ones(2, bool))))
    assert said[0] == (
        "The sandwich closes for 1 of 2 data: its ends are 0.56 ± 0.50 nats apart on average over 2 (tolerance 0.1); "
        "1 did not close; the upper end is approximate for 2."
    )
    assert said[1] == "log p(x) is -2.970 ± 0.043 nats per datum on average over 1 of 2 data (sandwich)."
    assert "The ELBO lies about 2.030 ± 0.044 nats per datum below log p(x)" in said[-3]
    assert said[-3].endswith("(sandwich - ELBO over 1 datum; there is none for 1).")


def test_sentences_on_a_sandwich_that_closed_for_none() -> None:
    said = verdict_sentences(sandwich_tree(*ends([2.0, 2.2])))
    assert said[0] == (
        "The sandwich closes for none of 2 data: its ends are 2.10 ± 0.10 nats apart on average over 2 "
        "(tolerance 0.1); 2 did not close."
    )
    assert said[1].startswith("AIS puts log p(x) at")
    refused = verdict_sentences(sandwich_tree(*ends([NAN])))
    assert refused[0] == "The sandwich closes for none of 1 datum (tolerance 0.1); 1 datum has no verdict."


def test_sentences_name_the_cheapest_that_is_near_and_the_furthest() -> None:
    exact = estimate("exact", [-3.0, -3.0], std_error=np.zeros(2), direction="exact")
    table = [
        estimate("elbo", [-9.0, -9.0], num_density_evaluations=1),
        estimate("iwae", [-4.0, -4.1], budget=10, num_density_evaluations=10),
        estimate("iwae", [-3.02, -3.02], budget=100, num_density_evaluations=100),
        estimate("laplace", [-3.01, -3.01], num_gradient_evaluations=200),
        estimate("eubo", [-1.0, -1.0], direction="upper"),
        estimate("largest-weight", [9.0, 9.0], is_reliable=np.zeros(2, bool)),
    ]
    said = verdict_sentences(sandwich_tree(*table, exact))
    assert said == [
        "log p(x) is -3.0000 ± 0.0000 nats per datum on average over 2 of 2 data (exact value).",
        "The cheapest estimator within 0.1 nats of log p(x) on average is IWAE with 100 draws, with a bias of "
        "-0.0200 ± 0.0071 nats (0.02 in the root mean square over 2 data) at 100 evaluations of the model per datum.",
        "The furthest off at its largest budget is EUBO, with a bias of 2.0000 ± 0.0071 nats (2 in the root mean "
        "square over 2 data).",
        "The ELBO lies 6.0000 ± 0.0071 nats per datum below log p(x) (exact value - ELBO over 2 data).",
    ]
    assert not [
        s for s in said if "largest" in s.split("its largest")[0]
    ]  # no error bar of it can be trusted
    far = verdict_sentences(sandwich_tree(*table[:2], exact))
    assert far[1].startswith(
        "No estimator is sure to be within 0.1 nats of log p(x) on average; the nearest is IWAE"
    )


def test_one_datum_with_an_exact_value_has_no_error_bar() -> None:
    said = verdict_sentences(
        sandwich_tree(estimate("exact", [-3.0], std_error=np.zeros(1), direction="exact"))
    )
    assert said == ["log p(x) is -3.0000 nats per datum on average over 1 of 1 datum (exact value)."]
