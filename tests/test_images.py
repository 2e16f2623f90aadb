"""Reconstructions: the right pixels on one scale, and lines where the data are no images."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from pyrovae.reporting import plots
from pyrovae.reporting.images import as_images
from pyrovae.results import build_tree, group

DATUM = [3, 5, 8]


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def images_tree(shape: tuple[int, ...] = (25,), *, prior: bool = True) -> xr.DataTree:
    """Three observed data, two of them reconstructed by four draws: the data plus 0.1, 0.2, 0.3, 0.4."""
    x = np.random.default_rng(1).uniform(size=(3, *shape))
    shift = np.array([0.1, 0.2, 0.3, 0.4]).reshape(4, *[1] * (1 + len(shape)))
    groups = {
        "observed_data": group("observed_data", {"x": x}, datum=DATUM),
        "reconstruction": group("reconstruction", {"x": x[None, 1:] + shift}, datum=DATUM[1:]),
        "prior_predictive": group("prior_predictive", {"x": 0.5 * x}),
    }
    return build_tree(groups if prior else {name: groups[name] for name in list(groups)[:2]})


def test_images_show_observed_mean_draws_and_prior_on_one_scale() -> None:
    tree = images_tree()
    figure = plots.plot_reconstructions(tree, num_draws=2)
    x = tree["observed_data"]["x"].values
    low, high = x[1:].min(), x[1:].max()
    rows: dict[str, list[np.ndarray]] = {}
    name = ""
    for ax in figure.axes:
        name = ax.get_ylabel() or name
        rows.setdefault(name, []).extend(np.asarray(image.get_array()) for image in ax.images)
    wanted = {
        "observed": x[1:],
        "mean of 4 draws": x[1:] + 0.25,
        "draw 1": x[1:] + 0.1,
        "draw 2": x[1:] + 0.2,
        "from the prior": 0.5 * x[:2],
    }
    assert list(rows) == list(wanted)
    for key, values in wanted.items():
        scaled = np.clip((values - low) / (high - low), 0, 1).reshape(2, 5, 5)
        np.testing.assert_allclose(np.stack(rows[key]), scaled, atol=1e-12)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["datum 5", "datum 8"]
    assert title(figure).startswith("The mean reconstruction of 2 of 3 data is off by 0.25 (root mean square")


def test_data_that_are_no_images_are_lines() -> None:
    tree = images_tree((7,))
    figure = plots.plot_reconstructions(tree)
    x = tree["observed_data"]["x"].values
    panel = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(panel["observed"], x[1])
    np.testing.assert_allclose(panel["mean of 4 draws"], x[1] + 0.25)
    np.testing.assert_allclose(panel["draws"], x[1] + 0.1)
    (prior,) = figure.axes[2].lines
    np.testing.assert_allclose(prior.get_ydata(), 0.5 * x[0])
    assert not any(ax.images for ax in figure.axes)


def test_the_shape_can_be_told() -> None:
    assert not plots.plot_reconstructions(images_tree(), image_shape=(25,)).axes[0].images
    image = plots.plot_reconstructions(images_tree((24,)), image_shape=(4, 6)).axes[0].images[0]
    assert np.asarray(image.get_array()).shape == (4, 6)
    with pytest.raises(ValueError, match=r"image_shape \(5, 6\) has 30 entries, a datum has 24"):
        plots.plot_reconstructions(images_tree((24,)), image_shape=(5, 6))


@pytest.mark.parametrize(
    ("shape", "image_shape", "wanted"),
    [
        ((64,), None, (8, 8)),
        ((16,), None, None),
        ((60,), None, None),
        ((6, 4), None, (6, 4)),
        ((1, 6, 4), None, (6, 4)),
        ((6, 4, 1), None, (6, 4)),
        ((3, 6, 4), None, (6, 4, 3)),
        ((6, 4, 3), None, (6, 4, 3)),
        ((2, 6, 4), None, None),
        ((72,), (6, 4, 3), (6, 4, 3)),
    ],
)
def test_what_counts_as_an_image(
    shape: tuple[int, ...], image_shape: tuple[int, ...] | None, wanted: tuple[int, ...] | None
) -> None:
    images = as_images(np.zeros((2, *shape)), image_shape)
    assert (None if images is None else images.shape[1:]) == wanted


def test_channels_first_keep_their_pixels() -> None:
    values = np.arange(24.0).reshape(1, 3, 2, 4)
    images = as_images(values)
    assert images is not None
    assert images[0, 1, 2].tolist() == values[0, :, 1, 2].tolist()


def test_other_names_than_x_and_no_prior() -> None:
    tree = images_tree(prior=False)
    renamed = {name: child.to_dataset().rename(x="pixels") for name, child in tree.children.items()}
    renamed["observed_data"]["label"] = ("datum", np.arange(3))
    figure = plots.plot_reconstructions(build_tree(renamed))
    assert "from the prior" not in [ax.get_ylabel() for ax in figure.axes]
    assert figure.axes[0].images
