"""The laboratory's programs, parts, clock and determinism."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_models import F64, FEW, Linear, Unreparameterized, expectation, measured, row, within
from zoo import convolutional, other_family

from pyrovae import gradient_statistics
from pyrovae.compiled import FallbackWarning
from pyrovae.diagnostics.gradients import estimators as estimators_file
from pyrovae.diagnostics.gradients import replicates, timing
from pyrovae.diagnostics.gradients.parameters import cut_parts, read_problem
from pyrovae.diagnostics.gradients.reference import find_reference
from pyrovae.models.vae import build_vae


def problem_of(lab):
    return read_problem(lab.model, lab.guide, (lab.x,), "data", {})


@pytest.mark.parametrize("guide_is", ["posterior", "another"])
def test_fishers_identity_and_the_guides_gradient(guide_is):
    """The reference against autograd of the exact log p(x), and of the exact E_posterior[log q(z | x)]."""
    lab = Linear()
    if guide_is == "posterior":
        lab.be_the_posterior()
    with pyro.get_param_store().scope():
        problem = problem_of(lab)
        found = find_reference(problem, "exact", cut_parts(problem.parameters, False), {}, 0).moments
    noise = (2 * lab.log_noise).exp()
    cov = torch.linalg.inv(
        torch.eye(2, dtype=F64) + lab.decoder.weight.mT @ lab.decoder.weight / noise
    ).detach()
    mean = ((lab.x - lab.decoder.bias) @ lab.decoder.weight @ cov / noise).detach()
    variance = (2 * lab.log_sd).exp()
    scored = -0.5 * (((mean - lab.encoder(lab.x)).square() + cov.diagonal()) / variance + variance.log()).sum(
        1
    )
    exact = {p.name: torch.autograd.grad(
        scored.mean() if p.kind == "encoder" else lab.log_evidence(lab.x).mean(), p.leaf, retain_graph=True
    )[0] for p in problem.parameters}  # fmt: skip
    wanted = torch.cat([exact[p.name].flatten() for p in problem.parameters])
    chains = found.center + found.deviation
    error = (chains.std(0) / len(chains) ** 0.5).numpy()
    for mine, theirs, each in zip(found.mean.tolist(), wanted.tolist(), error.tolist(), strict=True):
        assert within(mine, theirs, each + 1e-12)


@pytest.mark.slow
def test_wake_sleep_approaches_its_objective_with_the_particles():
    lab = Linear()
    options = {"num_particles": (2, 64), "num_replicates": 400, "reference": "auto"}
    tree = measured(lab, "rws", "vimco", **options)
    few, many = (row(tree, "rws", count) for count in (2, 64))
    assert few["own_bias"] > 2 * many["own_bias"]
    without = measured(lab, "rws")
    assert np.isnan(row(without, "rws", 2)["own_bias"])
    assert np.isfinite(row(without, "rws", 2, "decoder")["own_bias_squared"])
    assert np.isnan(row(tree, "rws", 2)["evidence_bias_squared"])  # of the decoder only


def test_the_tree():
    lab = Linear()
    counts = (1, 3)
    tree = measured(lab, "elbo", "vimco", "miwae", num_particles=counts, options={"miwae": {"num_outer": 3}},
                    per_parameter=True, keep_mean=True)  # fmt: skip
    group = tree["gradients"].to_dataset()
    tensors = ["encoder.weight", "encoder.bias", "log_sd", "decoder.weight", "decoder.bias", "log_noise"]
    assert set(group["part"].values) == {"encoder", "decoder", *tensors}
    assert group["count"].values.tolist() == [1, 3]
    assert json.loads(group.attrs["num_parameters"])["encoder.weight"] == 8
    assert group["reason"].values.tolist() == [["", ""], ["vimco wants at least 2 particles", ""],
                                              ["miwae wants a multiple of num_outer=3 particles", ""]]  # fmt: skip
    assert np.isnan(group["variance"].values[1:, 0]).all()
    assert np.isfinite(group["variance"].values[:, 1]).all()
    whole, pieces = group["variance"].sel(part="encoder"), group["variance"].sel(part=tensors[:3]).sum("part")
    np.testing.assert_allclose(whole.values[:, 1], pieces.values[:, 1], rtol=1e-10)
    np.testing.assert_allclose(group["spectrum"].sum("eigenvalue").values[0], group["variance"].values[0])
    assert (group["coordinate_part"].values == "encoder").sum() == 12
    np.testing.assert_allclose(group["variance_seconds"], group["variance"] * group["seconds"])
    wanted = group["count"] / group["snr_squared"].where(group["snr_squared"] > 0, 0.0)
    np.testing.assert_allclose(group["particles_for_snr_1"].values[0], wanted.values.transpose(1, 0, 2)[0])
    assert group["num_density_evaluations"].values[0].tolist() == [1, 3]
    assert group.attrs["route"] == "vmap"
    assert group.attrs["reference"] == "none"


@pytest.mark.slow
def test_the_trace_of_a_sketch_is_the_variance_on_average():
    made = expectation(lambda z: z**2, 0.3, 0.5, size=3000)
    tree = gradient_statistics(*made, **(FEW | {"estimators": ("stl",), "num_replicates": 400}))
    spectrum = tree["gradients"]["spectrum"].values.squeeze()
    assert spectrum.shape == (256,)
    assert (np.diff(spectrum) <= 0).all()
    # independent coordinates of equal variance: each sum has a twelfth of them, give or take its share of noise
    assert spectrum.sum() == pytest.approx(row(tree, "stl", 2)["variance"], rel=0.05)


def test_estimators_take_turns_at_the_clock(monkeypatch):
    """A machine that is four times slower for some rounds: the medians agree within their errors, and are not of it."""
    lab = Linear()
    rows = [estimators_file.Estimator(name, 1) for name in ("elbo", "stl", "dreg")]
    calls = iter(range(1000))

    def seconds(problem, objective):
        done, turn = divmod(next(calls), len(rows))
        return (4.0 if done in (0, 3, 4, 5) else 1.0) * (1.0 + 0.01 * done) * (2.0 if turn == 2 else 1.0)

    monkeypatch.setattr(timing, "_seconds", seconds)
    monkeypatch.setattr(timing, "ENOUGH_SECONDS", 100.0)
    with pyro.get_param_store().scope():
        costs = list(timing.time_backward(problem_of(lab), rows).values())
    assert next(calls) == 3 * (timing.MOST_ROUNDS + 1)
    assert costs[0] == costs[1] == pytest.approx((1.1, 0.0), abs=0.04)
    assert costs[2].seconds == 2 * costs[0].seconds
    assert costs[0].std_error > 0


def values_of(tree, method):
    group = tree["gradients"].to_dataset().sel({"method": method})
    return {
        name: group[name].values
        for name in group.data_vars
        if "seconds" not in str(name) and name != "reason"
    }


def test_the_same_seed_gives_the_same_numbers_whoever_else_is_asked():
    lab = Linear()
    one = values_of(measured(lab, "elbo", "stl"), "stl")
    two = values_of(measured(lab, "stl", num_particles=(2,)), "stl")
    other = values_of(measured(lab, "stl", seed=1), "stl")
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])
    assert (one["variance"] != other["variance"]).all()


def test_nothing_is_left_behind():
    lab = Linear()
    lab.log_sd.grad = torch.ones(2, dtype=F64)
    before = torch.get_rng_state()
    measured(lab, "elbo")
    assert torch.equal(torch.get_rng_state(), before)
    assert lab.log_sd.grad.eq(1).all()
    assert lab.encoder.weight.grad is None
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("mode", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_other_routes_give_the_same_numbers(mode, monkeypatch):
    lab = Linear()
    plain = values_of(measured(lab, "dreg", compile=False), "dreg")
    monkeypatch.setattr(replicates, "TRACE_CALLS", 0)
    tree = measured(lab, "dreg", compile="auto" if mode == "traced" else True)
    assert tree["gradients"].attrs["route"] == f"vmap+{mode}"
    for name, values in values_of(tree, "dreg").items():
        np.testing.assert_allclose(values, plain[name], rtol=1e-6, atol=1e-8)


def test_blocks_of_any_size_give_the_same_moments(monkeypatch):
    lab = Linear()
    plain = values_of(measured(lab, "stl", num_replicates=90), "stl")
    monkeypatch.setattr(replicates, "MAX_ROWS", 36)  # three replicates, of groups of four and five
    for name, values in values_of(measured(lab, "stl", num_replicates=90), "stl").items():
        np.testing.assert_allclose(values, plain[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["elbo", pytest.param("analytic_kl", marks=pytest.mark.slow)])
def test_a_wrong_program_is_seen_and_replaced_by_the_loop(name, monkeypatch):
    """Planted: a loss whose guide term is missing."""
    lab = Linear()
    assert measured(lab, name)["gradients"].attrs["route"] == "vmap"
    wrong = lambda model, guide, *args: -estimators_file._traces(model, guide, args)[1].log_prob_sum()  # noqa: E731
    monkeypatch.setattr(replicates, "single_draw_loss", lambda name: wrong)
    with pytest.warns(FallbackWarning, match="drawn in a loop, one by one.*AssertionError"):
        assert measured(lab, name)["gradients"].attrs["route"] == "loop"


def test_a_guide_without_reparameterization_runs_in_a_loop():
    """One notice for all; the score function is what "elbo" is then, and unbiased."""
    mu, sd = 0.7, 0.8
    made = expectation(lambda z: z**2, mu, sd, kind=Unreparameterized)
    with pytest.warns(FallbackWarning, match="elbo-1, score_function_loo-4") as caught:
        tree = gradient_statistics(
            *made, estimators=("elbo", "score_function_loo", "vimco"), num_particles=(1, 4),
            num_replicates=100, reference="none",
        )  # fmt: skip
    assert len(caught) == 1
    assert tree["gradients"].attrs["route"] == "loop"
    found = row(tree, "elbo", 1)
    assert within(found["variance"], mu**4 / sd**2 + 14 * mu**2 + 15 * sd**2, found["variance_std_error"])
    for name, count in (("elbo", 4), ("score_function_loo", 4), ("vimco", 4)):
        found = row(tree, name, count)
        assert within(found["own_bias_squared"], 0.0, found["own_bias_squared_std_error"])
    with pytest.raises(NotImplementedError, match="wants draws with a gradient"):
        gradient_statistics(*made, **FEW, estimators=("dreg",))


def shared_pair():
    shared = torch.tensor(0.7, dtype=F64, requires_grad=True)
    own = torch.tensor(0.2, dtype=F64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(shared * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shared * x, own.exp()))

    return model, guide, torch.linspace(-1, 1, 5, dtype=F64)


def test_parameters_of_both_are_a_part_of_their_own():
    tree = gradient_statistics(*shared_pair(), **(FEW | {"reference": "auto"}), estimators=("elbo", "rws"))
    assert set(tree["gradients"]["part"].values) == {"encoder", "shared"}
    elbo, wake = (row(tree, name, 2, "shared") for name in ("elbo", "rws"))
    assert within(elbo["own_bias_squared"], 0.0, elbo["own_bias_squared_std_error"])
    assert np.isnan(wake["own_bias_squared"])
    assert np.isfinite(wake["variance"])


@pytest.mark.slow
def test_a_subsampled_plate_changes_nothing_per_datum():
    lab = Linear()

    def scaled(program):
        def run(x):
            plate = pyro.plate
            pyro.plate = lambda name, size: plate(name, 1000, subsample_size=size)
            try:
                program(x)
            finally:
                pyro.plate = plate

        return run

    plain = values_of(measured(lab, "iwae", num_particles=(1, 2)), "iwae")
    options = FEW | {"num_particles": (1, 2)}
    tree = gradient_statistics(scaled(lab.model), scaled(lab.guide), lab.x, estimators=("iwae",), **options)
    for name, values in values_of(tree, "iwae").items():
        np.testing.assert_allclose(values, plain[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "kind", ["convolutional", *(pytest.param(each, marks=pytest.mark.slow) for each in ("low-rank", "flow"))]
)
def test_other_guides_run_side_by_side(kind):
    if kind == "flow":
        vae = build_vae(5, 2, hidden=(6,), encoder="flow", seed=0)
        model, guide, data = vae.model, vae.guide, (torch.randn(4, 5),)
    else:
        model, guide, data, *_ = convolutional() if kind == "convolutional" else other_family(kind)
    tree = gradient_statistics(model, guide, *data, **FEW, estimators=("elbo",))
    assert tree["gradients"].attrs["route"] == "vmap"
    assert row(tree, "elbo", 2)["variance"] > 0


@pytest.mark.slow
def test_a_guide_that_cannot_be_vectorized_runs_in_a_loop():
    """This flow converts its weights at every call, and has a density at its own draws alone."""
    made = other_family("planar")
    with pytest.warns(FallbackWarning, match="iwae-2"):
        tree = gradient_statistics(made.model, made.guide, *made.data, **FEW, estimators=("iwae",))
    assert tree["gradients"].attrs["route"] == "loop"
    assert row(tree, "iwae", 2)["variance"] > 0
