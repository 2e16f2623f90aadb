"""Draws of guide and reference: the right draws, latents, ellipses and refusals."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from pyrovae.reporting import figures, plots
from pyrovae.reporting.draws import _worst_pair
from pyrovae.results import build_tree, group

DATUM = [3, 5, 8]
BLUE, RED, GREY = (figures.COLORS[name].lower() for name in ("blue", "vermillion", "grey"))


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def draws_tree(dim: int = 3, **extra: xr.Dataset) -> xr.DataTree:
    """Guide and posterior agree but in z[0] and z[2]; the last datum has no verdict; the second is the worst."""
    rng = np.random.default_rng(0)
    latent = [f"z[{i}]" for i in range(dim)]
    posterior, guide = rng.normal(size=(4, 300, 3, dim)), rng.normal(size=(1, 900, 3, dim))
    guide[..., 0] += np.array([0.5, 4.0, 1.0])
    guide[..., -1] *= 0.2
    diagnostics = {
        "khat": np.array([0.25, 0.5, 0.75]),
        "rhat": np.array([1.001, 1.002, 1.234]),
        "verdict": np.array(["ok", "ok", "no verdict"]),
    }
    return build_tree(
        {
            "posterior": group("posterior", {"z": posterior}, datum=DATUM, latent=latent),
            "guide": group("guide", {"z": guide}, datum=DATUM, latent=latent),
            "diagnostics": group("diagnostics", diagnostics, datum=DATUM),
            **extra,
        }
    )


def clouds(ax: matplotlib.axes.Axes) -> dict[str, np.ndarray]:
    return {
        to_hex(c.get_facecolor()[0][:3]): c.get_offsets()
        for c in ax.collections
        if isinstance(c, PathCollection)
    }


def test_draws_show_the_two_latents_that_differ_most() -> None:
    tree = draws_tree()
    figure = plots.plot_draws(tree, data=[5])
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z[0]", "z[2]")
    z = {
        name: tree[name]["z"].sel(datum=5).values.reshape(-1, 3)[:, [0, 2]] for name in ("posterior", "guide")
    }
    for color, name in ((BLUE, "posterior"), (RED, "guide")):
        drawn = np.asarray(clouds(ax)[color])
        assert 100 < len(drawn) <= 400
        assert {tuple(row) for row in drawn} <= {tuple(row) for row in z[name]}


def test_the_ellipses_hold_the_share_they_claim() -> None:
    """Of the draws themselves, which are Gaussian: 50 % and 95 %, within five standard errors."""
    tree = draws_tree()
    (ax,) = plots.plot_draws(tree, data=[3]).axes
    ellipses = [p for p in ax.patches if isinstance(p, Ellipse) and to_hex(p.get_edgecolor()) == BLUE]
    names = [ax.get_xlabel(), ax.get_ylabel()]
    z = tree["posterior"]["z"].sel(datum=3, latent=names).values.reshape(-1, 2)
    for ellipse, mass in zip(ellipses, (0.5, 0.95), strict=True):
        inside = ellipse.get_patch_transform().inverted().transform(z)
        share = ((inside**2).sum(-1) <= 1).mean()
        assert abs(share - mass) < 5 * np.sqrt(mass * (1 - mass) / len(z))


def test_a_tilted_ellipse_lies_along_its_draws() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 4000, 1, 2)) @ np.array([[2.0, 2.0], [-0.3, 0.3]])  # long along the diagonal
    groups = {name: group(name, {"z": z}, latent=["a", "b"]) for name in ("posterior", "guide")}
    (ax,) = plots.plot_draws(build_tree(groups)).axes
    for ellipse in ax.patches:
        assert ellipse.angle % 180 == pytest.approx(45, abs=1)
        assert ellipse.width > 5 * ellipse.height


def test_the_worst_pair_sees_a_correlation_that_no_single_latent_shows() -> None:
    rng = np.random.default_rng(0)
    guide, reference = rng.normal(size=(2, 2000, 4))
    reference[:, 3] = 0.95 * reference[:, 1] + np.sqrt(1 - 0.95**2) * reference[:, 3]
    assert _worst_pair(guide, reference) == [1, 3]


def test_a_reference_without_verdict_is_grey_and_called_so() -> None:
    figure = plots.plot_draws(draws_tree())
    shown = {ax.get_title("right").split("\n")[0]: ax for ax in figure.axes}
    assert set(shown) == {"datum 3", "datum 5", "datum 8: no verdict"}
    assert shown["datum 3"].get_title("right").endswith("k-hat 0.25, R-hat 1.001")
    assert set(clouds(shown["datum 3"])) == {BLUE, RED}
    assert set(clouds(shown["datum 8: no verdict"])) == {GREY, RED}
    assert "3 of 3 data, least to largest disagreement; 1 of 3 references without verdict" in title(figure)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "reference without verdict" in labels
    assert "reference without verdict" not in [
        t.get_text() for t in plots.plot_draws(draws_tree(), data=[3]).legends[0].get_texts()
    ]


def test_by_default_data_run_from_least_to_largest_disagreement() -> None:
    titles = [ax.get_title("right").split("\n")[0] for ax in plots.plot_draws(draws_tree()).axes]
    assert titles == ["datum 3", "datum 8: no verdict", "datum 5"]


def test_unmeasured_convergence_is_admitted() -> None:
    tree = draws_tree()
    bare = build_tree({name: tree[name].to_dataset() for name in ("posterior", "guide")})
    assert "whether the reference converged was not measured" in title(plots.plot_draws(bare))


def test_one_latent_is_drawn_as_histograms_of_the_same_bins() -> None:
    (ax,) = plots.plot_draws(draws_tree(dim=1), data=[3]).axes
    assert ax.get_ylabel() == "density"
    posterior, guide = ([round(x, 9) for x in sorted({*p.get_xy()[:, 0]})] for p in ax.patches)
    assert posterior == guide


def test_the_datum_stands_above_its_panel_if_it_is_an_image() -> None:
    x = np.random.default_rng(0).uniform(2, 5, size=(3, 36))
    (ax,) = plots.plot_draws(
        draws_tree(observed_data=group("observed_data", {"x": x}, datum=DATUM)), data=[5]
    ).axes
    (inset,) = ax.child_axes
    lowest, highest = x[1].min(), x[1].max()
    np.testing.assert_allclose(
        inset.images[0].get_array(), (x[1].reshape(6, 6) - lowest) / (highest - lowest)
    )
    flat = draws_tree(observed_data=group("observed_data", {"x": x[:, :30]}, datum=DATUM))
    assert not plots.plot_draws(flat, data=[5]).axes[0].child_axes


@pytest.mark.parametrize("data", [[4], [3, 4], []])
def test_draws_of_unknown_data_are_refused(data: list[int]) -> None:
    with pytest.raises(ValueError, match="name one datum or more of those with draws"):
        plots.plot_draws(draws_tree(), data=data)


@pytest.mark.parametrize("missing", ["posterior", "guide"])
def test_draws_need_both_guide_and_reference(missing: str) -> None:
    tree = draws_tree().drop_nodes(missing)
    with pytest.raises(ValueError, match=f"group '{missing}'"):
        plots.plot_draws(tree)


def test_no_global_state_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    plots.plot_draws(draws_tree())
    assert dict(matplotlib.rcParams) == before
