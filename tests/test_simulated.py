"""The simulated gap against its closed form, with a planted bug, and what it refuses."""

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo

import pyrovae as pv
from pyrovae.diagnostics.simulated import simulated_gap, simulated_parts
from pyrovae.target import Target


def is_right(gap: np.ndarray, expected: float) -> bool:
    return chance.means_agree(torch.as_tensor(gap)[:, None], expected)


def jeffreys(scale: float, shift: float, precision: np.ndarray) -> float:
    """KL both ways of N(m, S) and N(m + shift, scale^2 S): D/2 (r + 1/r) - D + (1 + 1/r) d' P d / 2."""
    r, dim = scale**2, len(precision)
    distance = shift**2 * precision.sum()
    return 0.5 * dim * (r + 1 / r - 2) + 0.5 * (1 + 1 / r) * distance


@pytest.mark.parametrize(
    ("guide_scale", "shift"), [(1.0, 0.0), (0.7, 0.0), (1.4, 0.0), (1.0, 0.3), (0.8, -0.2)]
)
def test_it_is_the_jeffreys_divergence_of_a_gaussian_guide(guide_scale, shift):
    specimen = zoo.linear_gaussian(guide_scale=guide_scale, shift=shift)
    gap = simulated_gap(specimen.model, specimen.guide, *specimen.data, num_simulations=20_000)["calibration"]
    precision = torch.linalg.inv(specimen.posterior_cov[0]).numpy()
    expected = jeffreys(guide_scale, shift, precision)
    if expected == 0:
        assert np.abs(gap["simulated_gap"]).max() < 1e-9
    else:
        assert is_right(gap["simulated_gap"].values, expected)
        # Planted: both draws from the guide, which sees no gap at all.
        lower = gap["simulated_lower"].values
        assert not is_right(lower - np.roll(lower, 1), expected)


def test_its_ends_bound_the_entropy_of_the_model():
    """E[log p(x)] of N(b, W W' + s^2 I) is -1/2 log |2 pi e S|."""
    specimen = zoo.linear_gaussian(guide_scale=1.3)
    gaps = simulated_gap(specimen.model, specimen.guide, *specimen.data, num_simulations=20_000)[
        "calibration"
    ]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    covariance = weight @ weight.mT + 0.25 * torch.eye(6)
    entropy = float(dist.MultivariateNormal(torch.zeros(6).double(), covariance).entropy())
    upper, lower = gaps["simulated_upper"].values, gaps["simulated_lower"].values
    assert lower.mean() < -entropy < upper.mean()
    assert (gaps["simulated_upper"].attrs["direction"], gaps["simulated_lower"].attrs["direction"]) == (
        "upper",
        "lower",
    )


@pytest.mark.parametrize("name", ["gamma_poisson", "dirichlet_multinomial"])
def test_positive_and_simplex_latents(name):
    specimen = zoo.EXACT[name]()
    simulate, data = None, specimen.data
    if name == "dirichlet_multinomial":
        data = (data[0][data[0].sum(1) > 0],)

        def simulate(z, x):
            return torch.stack(
                [dist.Multinomial(int(n), p).sample() for n, p in zip(x.sum(-1), z["p"], strict=True)]
            )

    tree = simulated_gap(specimen.model, specimen.guide, *data, simulate=simulate, num_simulations=300)
    assert np.abs(tree["calibration"]["simulated_gap"]).max() < 1e-9


def test_the_summary_gives_the_mean_and_its_error():
    specimen = zoo.linear_gaussian(guide_scale=0.8)
    tree = simulated_gap(specimen.model, specimen.guide, *specimen.data, num_simulations=500)
    row = pv.summary(tree).loc["calibration: simulated_gap"]
    gap = tree["calibration"]["simulated_gap"].values
    assert (row["value"], row["direction"], row["num_data"]) == (gap.mean(), "exact", 500)
    assert row["std_error"] == pytest.approx(gap.std(ddof=1) / 500**0.5)


def test_blocks_and_seeds(monkeypatch):
    from pyrovae.diagnostics import simulated

    specimen = zoo.linear_gaussian(guide_scale=0.8)

    def gap(seed):
        tree = simulated_gap(specimen.model, specimen.guide, *specimen.data, num_simulations=70, seed=seed)
        return tree["calibration"]["simulated_gap"].values

    assert np.array_equal(gap(1), gap(1))
    assert not np.array_equal(gap(1), gap(2))
    monkeypatch.setattr(simulated, "MAX_ROWS", 32)
    assert len(np.unique(gap(1))) == 70


def test_arguments_that_are_not_simulated_come_from_all_data():
    """Blocks shorter than the data go on where the last one ended."""
    specimen = zoo.linear_gaussian(num_data=50)
    target = Target(specimen.model, specimen.guide, *specimen.data)
    parts = list(simulated_parts(target, 120, 40))
    assert [part.num_data for part in parts] == [40, 40, 40]
    x = specimen.data[0]
    assert torch.equal(torch.cat([part.data[0] for part in parts]), torch.cat([x, x, x])[:120])


def test_what_is_refused():
    specimen = zoo.linear_gaussian()
    with pytest.raises(ValueError, match="num_simulations must be at least 2.*is 1"):
        simulated_gap(specimen.model, specimen.guide, *specimen.data, num_simulations=1)
    planar = zoo.other_family("planar")
    with pytest.raises(NotImplementedError, match="score a given z"):
        simulated_gap(planar.model, planar.guide, *planar.data, num_simulations=10)


def test_a_scaled_argument_needs_a_simulator():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5**0.5))

    data = torch.randn(4)
    with pytest.raises(ValueError, match="simulate="):
        simulated_gap(model, guide, data, num_simulations=10)

    def simulate(z, x):
        return (z["z"] + torch.randn_like(z["z"])) / 2

    gaps = simulated_gap(model, guide, data, simulate=simulate, num_simulations=100)["calibration"]
    assert np.abs(gaps["simulated_gap"]).max() < 1e-4
    assert Target(model, guide, data, simulate=simulate).simulate(3).data[0].shape == (3,)
