"""Calibration on simulated data: an exact guide passes, each wrong one is caught by the statistic that is about it."""

import chance
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from guides import gaussian_target, mean_field, prior_target
from scipy import stats

from pyrovae.diagnostics.calibration import calibrate
from pyrovae.diagnostics.calibration.shift import shift
from pyrovae.diagnostics.calibration.uniformity import ecdf_band, moment_tests
from pyrovae.target import Target

SEED = 0
MANY = 20_000
KINDS = ("pit", "likelihood_pit", "tarp_pit")


def calibrated(change=lambda tril: tril, *, num_simulations=MANY, **options):
    target, _ = gaussian_target(change, **options)
    return calibrate(target, num_simulations=num_simulations, seed=SEED)["calibration"].to_dataset()


def caught(found) -> set[str]:
    """The tests that an exact guide would pass but for one time in a million."""
    names = [f"{kind}_{moment}" for kind in KINDS for moment in ("mean", "spread")]
    return {name for name in names if (found[f"{name}_p_value"] < chance.FALSE_ALARM).any()}


@pytest.mark.parametrize("num_draws", [1, 15])
def test_an_exact_guide_passes(num_draws):
    target, _ = gaussian_target()
    found = calibrate(target, num_simulations=MANY, num_draws=num_draws, seed=SEED)[
        "calibration"
    ].to_dataset()
    assert not caught(found)
    for kind in KINDS:
        for u in found[kind].values.reshape(MANY, -1).T:
            assert stats.kstest(u, "uniform").pvalue > chance.FALSE_ALARM
    assert np.abs(found["simulated_gap"]).max() < 1e-9


@pytest.mark.parametrize(
    ("change", "shift", "seen", "sign"),
    [
        (lambda tril: 0.9 * tril, 0.0, "pit_spread", 1),
        (lambda tril: 1.1 * tril, 0.0, "pit_spread", -1),
        (lambda tril: tril, 0.05, "pit_mean", -1),
        (mean_field, 0.0, "likelihood_pit_mean", 1),
    ],
    ids=["narrow", "wide", "biased", "blind to correlations"],
)
def test_a_wrong_guide_is_caught_by_the_right_statistic(change, shift, seen, sign):
    found = calibrated(change, shift=shift)
    assert seen in caught(found)
    assert (np.sign(found[f"{seen}_z"]) == sign).all()
    if seen == "pit_spread":
        assert "pit_mean" not in caught(found)
        coverage = float(found["tarp_ecdf"].sel(level=0.9, method="nearest"))
        assert (0.9 - coverage) * sign > 0.01
    if change is mean_field:
        assert not {"pit_mean", "pit_spread"} & caught(found)


def test_only_the_likelihood_sees_a_guide_that_ignores_the_data():
    """The prior passes every test on z alone: without log p(x | z) this guide would be called right."""
    found = calibrate(prior_target(), num_simulations=MANY, seed=SEED)["calibration"].to_dataset()
    assert caught(found) == {"likelihood_pit_mean", "likelihood_pit_spread"}
    assert float(found["likelihood_pit_mean"]) > 0.9


def test_a_narrow_guide_of_scale_095_is_found_with_10_000_simulations():
    """The power at a level of 1e-3 is above .9 (exact PIT: 6.3 standard errors; ranks among 15 draws: 5.3)."""
    found = calibrated(lambda tril: 0.95 * tril, num_simulations=10_000)
    assert (found["pit_spread_p_value"] < 1e-3).any()
    assert float(found["pit_spread_z"].mean()) == pytest.approx(5.3, abs=4)
    ks = max(stats.kstest(u, "uniform").statistic * 100 for u in found["pit"].values.T)
    assert ks < float(found["pit_spread_z"].max())


def test_blocks_seeds_and_progress(monkeypatch):
    target, _ = gaussian_target(lambda tril: 0.8 * tril)
    told = []

    def pit(seed, **options):
        return calibrate(target, num_simulations=70, seed=seed, **options)["calibration"]["pit"].values

    whole = pit(1)
    assert np.array_equal(whole, pit(1, progress=lambda *at: told.append(at)))
    assert told == [(70, 70)]
    assert not np.array_equal(whole, pit(2))
    monkeypatch.setattr("pyrovae.diagnostics.calibration.simulations.MAX_ROWS", 16 * 30)
    assert len(np.unique(pit(1, progress=lambda *at: told.append(at)))) == 70 * 3
    assert told[1:] == [(30, 70), (60, 70), (70, 70)]


def test_moment_tests_are_exact():
    rng = np.random.default_rng(SEED)
    found = moment_tests(rng.uniform(size=(200, 4000)))
    for name in ("mean", "spread"):
        assert chance.means_agree(torch.tensor(found[f"{name}_z"])[:, None], 0.0)
        assert chance.chi2_is_plausible(torch.tensor((found[f"{name}_z"] ** 2).sum()), 4000)
    wide = moment_tests(0.5 + 1.02 * (rng.uniform(size=(200, 4000)) - 0.5))
    assert not chance.means_agree(torch.tensor(wide["spread_z"])[:, None], 0.0)


@pytest.mark.parametrize("num_numbers", [37, 1000])
def test_the_band_holds_uniform_ecdfs_as_often_as_it_says(num_numbers):
    """Planted: the pointwise band, which is left by most of them."""
    levels = np.linspace(0.02, 0.98, 49)
    rng = np.random.default_rng(SEED)
    curves = (rng.uniform(size=(4000, num_numbers, 1)) <= levels).mean(1) if num_numbers < 100 else None
    if curves is None:
        counts = rng.multinomial(num_numbers, np.diff([0.0, *levels, 1.0]), 4000).cumsum(1)[:, :-1]
        curves = counts / num_numbers

    def share(lower, upper) -> float:
        return float(((curves >= lower - 1e-12) & (curves <= upper + 1e-12)).all(1).mean())

    simultaneous = share(*ecdf_band(num_numbers, levels, 0.9, seed=SEED))
    slack = chance.z_score_limit() * (0.9 * 0.1 / 4000 + 0.9 * 0.1 / 10_000) ** 0.5
    # Counts are whole numbers, so the band covers a little more than it must.
    assert 0.9 - slack < simultaneous < 0.95 + slack
    half = stats.norm.isf(0.05) * np.sqrt(levels * (1 - levels) / num_numbers)
    assert share(levels - half, levels + half) < 0.8


def conditional(num_data: int, reverse: bool = False) -> Target:
    """z ~ N(c, 1), x | z ~ N(z, 1) with a covariate c of each datum; optionally a guide with the wrong sign of c."""
    c = torch.linspace(-3, 3, num_data, dtype=torch.float64)

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - c if reverse else x + c) / 2, 0.5**0.5))

    return Target(model, guide, c + 1.4 * torch.randn(num_data, dtype=torch.float64), c)


def test_arguments_that_are_not_simulated_come_from_all_data(monkeypatch):
    """Blocks are shorter than the data, so a block that began at the first datum again would never meet the last."""
    monkeypatch.setattr("pyrovae.diagnostics.calibration.simulations.MAX_ROWS", 16 * 40)
    seen = []
    original = Target.with_data

    def spy(self, *data):
        seen.append(data[1])
        return original(self, *data)

    monkeypatch.setattr(Target, "with_data", spy)
    target = conditional(200)
    found = calibrate(target, num_simulations=2000, seed=SEED)["calibration"].to_dataset()
    assert torch.equal(torch.cat(seen), target.data[1].repeat(10))
    assert not caught(found)
    wrong = calibrate(conditional(200, reverse=True), num_simulations=2000, seed=SEED)["calibration"]
    assert caught(wrong.to_dataset())


def test_a_code_that_is_infinite_has_no_shift_and_the_others_keep_theirs():
    simulated, real = (np.random.default_rng(0).normal(size=(size, 3)) for size in (500, 40))
    simulated[3, 2] = real[5, 2] = -np.inf
    found, plain = shift(simulated, real), shift(simulated[:, [0, 1, 1]], real[:, [0, 1, 1]])
    assert np.isnan([found["shift_log_likelihood"], found["shift_log_likelihood_std_error"]]).all()
    assert np.allclose(found["shift_mean"], plain["shift_mean"])
    assert np.isfinite(found["shift_auc"])


def test_real_data_like_the_models_own_are_found_alike_and_others_not():
    found = calibrated(num_data=400, num_simulations=4000)
    limit = chance.z_score_limit(8)
    assert abs(found["shift_auc"] - 0.5) < limit * found["shift_auc_std_error"]
    for name, expected in (("shift_mean", 0.0), ("shift_sd_ratio", 1.0), ("shift_log_likelihood", 0.0)):
        assert (np.abs(found[name] - expected) < limit * found[f"{name}_std_error"]).all()
    target, specimen = gaussian_target(num_data=400)
    away = target.with_data(2 * specimen.data[0])
    found = calibrate(away, num_simulations=4000, seed=SEED)["calibration"].to_dataset()
    assert float(found["shift_p_value"]) < chance.FALSE_ALARM
    assert (found["shift_sd_ratio"] > 1 + limit * found["shift_sd_ratio_std_error"]).all()
    few = calibrate(target.rows(range(19)), num_simulations=20)["calibration"]
    assert np.isnan(few["shift_auc"])


@pytest.mark.parametrize("name", ["gamma_poisson", "planar"])
def test_other_latents_and_guides(name):
    specimen = zoo.SHAPES[name]()
    found = calibrate(
        Target(specimen.model, specimen.guide, *specimen.data), num_simulations=4000, seed=SEED
    )["calibration"].to_dataset()
    if name == "planar":
        assert "simulated_gap" not in found
        assert caught(found)
    else:
        assert np.abs(found["simulated_gap"]).max() < 1e-9
        assert not caught(found)


def test_what_is_refused():
    target, _ = gaussian_target()
    with pytest.raises(ValueError, match="at least 20 and num_draws at least 1, but they are 19 and 15"):
        calibrate(target, num_simulations=19)
    with pytest.raises(ValueError, match="they are 20 and 0"):
        calibrate(target, num_simulations=20, num_draws=0)
    unclear = zoo.factor_and_branch()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=2 * x)

    with pytest.raises(ValueError, match="pass simulate="):
        calibrate(Target(model, unclear.guide, *unclear.data), num_simulations=20)
