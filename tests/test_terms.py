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


def test_rows_and_sentences():
    tree = make({**TERMS, **AGGREGATE, **EVIDENCE})
    table = summary(tree)
    assert table.loc["decomposition: mutual_information", "value"] == 3.0
    assert table.loc["decomposition: elbo", "value"] == 2.0
    said = " ".join(verdict_sentences(tree))
    assert "The ELBO of 2.00 nats is a reconstruction of 7.00 minus a KL to the prior of 5.00" in said
    assert "3.00 of at most 4.00 nats" in said
    assert "1 of 2 latent units are active" in said


def test_a_missing_group_is_named():
    with pytest.raises(ValueError, match=r"decomposition.*pyrovae\.decompose"):
        plot_decomposition(xr.DataTree())
