"""The figure of the ELBO's terms: its bars are the terms."""

import numpy as np
import pytest
import xarray as xr

from pyrovae.reporting.plots import plot_decomposition
from pyrovae.results import build_tree, group
from pyrovae.results.summary import summary
from pyrovae.results.verdicts import verdict_sentences

TERMS = {
    "elbo": np.array([1.0, 3.0]),
    "reconstruction": np.array([6.0, 8.0]),
    "kl_prior": np.array([5.0, 5.0]),
    "kl_per_latent": (("latent",), np.array([0.1, 4.9])),
    "is_active": (("latent",), np.array([False, True])),
}
AGGREGATE = {
    "mean_kl_prior": ((), np.array(5.0)),
    "mutual_information": ((), np.array(3.0)),
    "marginal_kl": ((), np.array(2.0)),
    "log_num_data": ((), np.array(4.0)),
}
EVIDENCE = {"log_evidence": np.array([2.0, 4.0]), "kl_posterior": np.array([1.0, 1.0])}


def make(variables) -> xr.DataTree:
    named = {
        name: value if isinstance(value, tuple) else (("datum",), value) for name, value in variables.items()
    }
    return build_tree({"decomposition": group("decomposition", named, latent=["z[0]", "z[1]"])})


def heights(tree: xr.DataTree) -> dict[str, float]:
    ax = plot_decomposition(tree).axes[0]
    labels = [label.get_text().replace("\n", " ") for label in ax.get_xticklabels()]
    return {label: bar.get_height() for label, bar in zip(labels, ax.patches, strict=True)}


def test_the_steps_are_the_terms():
    found = heights(make({**TERMS, **AGGREGATE, **EVIDENCE}))
    assert found["mutual information"] == pytest.approx(-3.0)
    assert found["KL of q(z) to the prior"] == pytest.approx(-2.0)
    assert found["KL to the posterior"] == pytest.approx(1.0)
    assert found["reconstruction"] - found["ELBO"] == pytest.approx(5.0)
    assert list(found)[-1] == "log p(x)"


def test_without_aggregate_and_evidence_there_is_one_step():
    found = heights(make(TERMS))
    assert list(found) == ["reconstruction", "KL to the prior", "ELBO"]
    assert found["KL to the prior"] == pytest.approx(-5.0)


def test_latents_are_sorted_and_inactive_ones_hollow():
    ax = plot_decomposition(make(TERMS)).axes[1]
    assert [bar.get_height() for bar in ax.patches] == [4.9, 0.1]
    assert ax.patches[1].get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_a_guide_that_is_the_prior_has_steps_that_meet():
    """The KL to the prior is 0, or noise, which no ratio can be taken of."""
    none = {**TERMS, "kl_prior": np.zeros(2), "elbo": TERMS["reconstruction"]}
    for whole, error in ((0.0, 0.0), (1e-6, 1e-3), (-1e-6, 1e-3)):
        aggregate = {
            **AGGREGATE,
            "mutual_information": ((), np.array(0.02)),
            "marginal_kl": ((), np.array(-0.02)),
        }
        aggregate |= {
            "mean_kl_prior": ((), np.array(whole)),
            "mean_kl_prior_std_error": ((), np.array(error)),
        }
        found = heights(make({**none, **aggregate}))
        assert found["mutual information"] == pytest.approx(-0.02)
        assert found["KL of q(z) to the prior"] == pytest.approx(0.02)


def test_the_title_tells_the_side_and_the_error_of_what_the_elbo_loses():
    def title(**changes):
        return plot_decomposition(with_errors(**changes)).get_suptitle().replace("\n", " ")

    assert title().startswith(
        "The ELBO is 2.00 nats per datum, at least 1.000 ± 0.071 below log p(x), over 2 data"
    )
    assert "for the 1 data where that is known" in title(kl_posterior=np.array([1.0, np.nan]))
    assert "no further below log p(x) than chance would have it" in title(kl_posterior=np.array([0.1, -0.1]))
    assert "log p(x)" not in title(kl_posterior=np.full(2, np.nan))


def test_rows_and_sentences():
    tree = make({**TERMS, **AGGREGATE, **EVIDENCE})
    table = summary(tree)
    assert table.loc["decomposition: mutual_information", "value"] == 3.0
    assert table.loc["decomposition: elbo", "value"] == 2.0
    said = " ".join(verdict_sentences(tree))
    assert (
        "The ELBO of 2.0 ± 1.0 nats is a reconstruction of 7.0 ± 1.0 minus a KL to the prior of 5.0000 ± 0.0000, on "
        "average over 2 data." in said
    )
    assert "3.0000 of at most 4.00 nats" in said
    assert "1 of 2 latent units are active" in said


def with_errors(**changes) -> xr.DataTree:
    """Terms with error bars of 0.1 nats and a KL to the posterior that a lower bound of log p(x) gives."""
    errors = {f"{name}_std_error": np.full(2, 0.1) for name in ("elbo", "kl_posterior")}
    aggregate = {f"{name}_std_error": ((), np.array(0.2)) for name in ("mutual_information", "marginal_kl")}
    tree = make({**TERMS, **AGGREGATE, **EVIDENCE, **errors, **aggregate, **changes})
    terms = tree["decomposition"].to_dataset()
    terms["kl_posterior"].attrs["direction"] = "lower"
    return build_tree({"decomposition": terms.assign_attrs(log_evidence_by="iwae")})


def test_every_number_has_its_error_bar_and_its_side():
    said = " ".join(verdict_sentences(with_errors()))
    assert "The codes hold 3.00 ± 0.20 of at most 4.00 nats about which of these data they came from" in said
    assert (
        "The KL to the posterior is at least 1.000 ± 0.071 nats: what the ELBO loses of log p(x) (log p(x) by IWAE - "
        "ELBO over 2 data)." in said
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"kl_posterior_std_error": np.array([0.1, np.nan])},
            "by IWAE - ELBO over 2 data; the error bar cannot be trusted for 1).",
        ),
        (
            {"kl_posterior_std_error": np.full(2, np.nan)},
            "No verdict on the KL to the posterior: log p(x) by IWAE has no error bar that can be trusted.",
        ),
        (
            {"kl_posterior": np.full(2, np.nan), "kl_posterior_std_error": np.full(2, np.nan)},
            "No verdict on the KL to the posterior: log p(x) is not known.",
        ),
        (
            {"kl_posterior": np.array([-0.01, 0.02])},
            "No KL to the posterior was found: 0.005 ± 0.071 nats (log p(x) by IWAE - ELBO over 2 data).",
        ),
        (
            {"kl_posterior": np.array([1.0, np.nan])},
            "The KL to the posterior is at least 1.00 ± 0.10 nats: what the ELBO loses of log p(x) (log p(x) by IWAE - "
            "ELBO over 1 datum).",
        ),
    ],
)
def test_the_kl_to_the_posterior_is_told_as_far_as_it_is_known(changes, sentence):
    assert sentence in " ".join(verdict_sentences(with_errors(**changes)))


def test_the_middle_of_a_sandwich_is_an_error_that_more_data_do_not_shrink():
    terms = with_errors()["decomposition"].to_dataset().assign_attrs(log_evidence_by="truth")
    source = np.full(2, "ais and ais-reverse")
    ends = group("sandwich", {"gap": np.full(2, 1.0), "source": source, "truth": np.zeros(2)})
    table = summary(build_tree({"decomposition": terms, "sandwich": ends}))
    assert table.loc["decomposition: kl_posterior", "std_error"] == pytest.approx(np.hypot(0.5, 0.1 / 2**0.5))
    assert table.loc["decomposition: elbo", "std_error"] == pytest.approx(1.0)


def test_a_guide_that_leaves_the_support_has_no_nonsense_terms():
    infinite = {"elbo": np.array([-np.inf, 3.0]), "reconstruction": np.array([-np.inf, 8.0])}
    said = " ".join(verdict_sentences(with_errors(**infinite, kl_posterior=np.array([np.inf, 1.0]))))
    assert "The ELBO is -inf for 1 of 2 data: draws of the guide fall where p(x | z) is 0." in said
    assert "on average over 1 datum." in said
    nothing = {name: np.full(2, -np.inf) for name in infinite} | {"kl_posterior": np.full(2, np.inf)}
    said = " ".join(verdict_sentences(with_errors(**nothing)))
    assert "The ELBO of" not in said
    assert "KL to the posterior" not in said


def test_one_datum_has_a_figure_without_active_units():
    made_of_one = {
        name: value[:1] if name in ("elbo", "reconstruction", "kl_prior") else value
        for name, value in TERMS.items()
    }
    del made_of_one["is_active"]
    figure = plot_decomposition(make(made_of_one))
    assert "over 1 datum" in figure.get_suptitle()
    assert "active" not in figure.get_suptitle()


def test_a_missing_group_is_named():
    with pytest.raises(ValueError, match=r"decomposition.*pyrovae\.decompose"):
        plot_decomposition(xr.DataTree())
