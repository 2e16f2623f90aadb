"""The pilot: the metric of a Gaussian to the last digits, acceptance as wanted, and a sandwich that closes."""

import math

import pytest
import torch
from test_annealing import DOUBLE, PROBLEMS, is_unbiased, right

from pyrovae.inference import hmc, pilot
from pyrovae.inference.annealing import Endpoints, forward, gaussian_path, reverse
from pyrovae.inference.laplace import Gaussian, log_prob
from pyrovae.inference.pilot import tune
from pyrovae.inference.schedules import linear

DIM = 10


def precisions(num_data: int, lowest: float = 0.02, highest: float = 50.0) -> torch.Tensor:
    """Correlated, with eigenvalues between those, in directions of its own for every datum."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(num_data, DIM, DIM, generator=generator, dtype=DOUBLE)
    basis = torch.linalg.qr(noise)[0]
    eigenvalues = torch.linspace(math.log(lowest), math.log(highest), DIM, dtype=DOUBLE).exp()
    return basis @ eigenvalues.diag() @ basis.mT


def correlated(num_data: int, **eigenvalues: float):
    """The path from N(0, I) to Gaussians of those precisions, log Z = 0; with their scales."""
    precision = precisions(num_data, **eigenvalues)
    scale_tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    end = Gaussian(torch.full((num_data, DIM), 0.5, dtype=DOUBLE), scale_tril)
    start = Gaussian(
        torch.zeros(num_data, DIM, dtype=DOUBLE), torch.eye(DIM, dtype=DOUBLE).expand(num_data, -1, -1)
    )
    return gaussian_path(start, hmc.with_gradient(lambda z: log_prob(end, z))), end


def draws(num_chains: int, num_data: int, dim: int = DIM, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.randn(num_chains, num_data, dim, dtype=dtype)


def rebuilt(metric) -> torch.Tensor:
    return metric.basis @ metric.precision.diag_embed() @ metric.basis.mT


@pytest.mark.parametrize("num_chains", [2, 16])
def test_the_metric_of_a_gaussian_is_its_precision(num_chains):
    torch.manual_seed(0)
    path, _ = correlated(3)
    plan, _ = tune(draws(num_chains, 3), path, num_temperatures=20)
    torch.testing.assert_close(rebuilt(plan.metric), precisions(3), rtol=0.0, atol=0.01)
    identity = torch.eye(DIM, dtype=DOUBLE).expand(3, -1, -1)
    torch.testing.assert_close(plan.metric.basis.mT @ plan.metric.basis, identity)


def test_an_end_that_is_wider_than_allowed_is_bounded():
    torch.manual_seed(0)
    start = Gaussian(torch.zeros(2, 3, dtype=DOUBLE), torch.eye(3, dtype=DOUBLE).expand(2, 3, 3))
    path = gaussian_path(start, lambda z: (0.5 * z.square().sum(-1), z))  # grows outwards: no density at all
    plan, _ = tune(draws(8, 2, 3), path, num_temperatures=5)
    torch.testing.assert_close(plan.metric.precision, torch.full((2, 3), pilot.LEAST_PRECISION, dtype=DOUBLE))
    assert all(field.isfinite().all() for field in (plan.betas, plan.step_size))


@pytest.mark.parametrize("target", [0.8, 0.9])
def test_every_datum_meets_its_acceptance_rate(target):
    torch.manual_seed(0)
    path, _ = correlated(6)
    plan, _ = tune(draws(16, 6), path, num_temperatures=100, target_accept_prob=target)
    found = forward(draws(100, 6), path, plan)
    rates = found.acceptance_rate
    assert ((rates.mean(0) - target).abs() < 0.1).all()
    for quarter in rates.chunk(4):  # at every temperature, not in the mean alone
        assert ((quarter.mean(0) - target).abs() < 0.15).all()


def test_a_metric_makes_steps_as_long_as_in_a_round_density():
    torch.manual_seed(0)
    path, _ = correlated(4)
    plan, _ = tune(draws(16, 4), path, num_temperatures=60)
    round_path, _ = correlated(4)
    assert plan.step_size.mean() > 0.7 * 1.6 * DIM**-0.25
    without = forward(draws(16, 4), round_path, plan._replace(metric=None))
    assert without.acceptance_rate[-20:].mean() < 0.2


def gap(path, end, plan, num_chains: int = 16) -> float:
    """Upper minus lower bound, averaged over data."""
    num_data = plan.betas.shape[1]
    noise = draws(num_chains, num_data)
    posterior = end.loc + torch.einsum("nij,cnj->cni", end.scale_tril, noise)
    below = forward(draws(num_chains, num_data), path, plan).log_weight.logsumexp(0)
    above = -(-reverse(posterior, path, plan).log_weight).logsumexp(0) + 2 * math.log(num_chains)
    return (above - below).mean().item()


def test_the_sandwich_closes_with_the_metric_and_not_without():
    """More than 38 nats of KL each way; 16 chains, 9,000 gradients a datum with the pilot."""
    torch.manual_seed(0)
    path, end = correlated(16)
    plan, cost = tune(draws(16, 16), path, num_temperatures=120)
    runs = 2 * (1 + 2 * 119)
    assert 16 * (cost + runs) < 10_000
    assert -0.3 < gap(path, end, plan) < 0.5
    steps = plan.step_size * torch.linspace(1.0, 0.2, 119, dtype=DOUBLE)[:, None]
    assert gap(path, end, plan._replace(metric=None, step_size=steps)) > 1.5


@pytest.mark.parametrize("schedule", ["linear", "sigmoid", "geometric", "adapted"])
def test_every_schedule_makes_an_unbiased_plan(schedule):
    torch.manual_seed(0)
    problem = PROBLEMS["gaussian"]
    plan, _ = tune(problem.start(16), problem.path, num_temperatures=6, schedule=schedule)
    assert is_unbiased(right, problem, plan)


def test_an_adapted_plan_has_increments_of_equal_variance():
    torch.manual_seed(0)
    path, _ = correlated(8, lowest=1.0, highest=200.0)
    spread = {}
    for schedule in ("adapted", "linear"):
        plan, _ = tune(draws(16, 8), path, num_temperatures=40, schedule=schedule)
        found = forward(draws(100, 8), path, plan)
        deviation = plan.betas.diff(dim=0) * found.ratio_variance.sqrt()
        spread[schedule] = (deviation / deviation.mean(0)).log().std(0).mean()
    assert spread["adapted"] < 0.5
    assert spread["linear"] > 1.0


def test_gradients_are_counted():
    calls = [0]
    path, _ = correlated(2)

    def counted(u):
        calls[0] += 1
        return path(u)

    for num_temperatures, expected in ((2, 2 * (1 + 3 * 4)), (50, 2 * (1 + 3 * 20)), (400, 2 * (1 + 3 * 50))):
        calls[0] = 0
        plan, cost = tune(draws(2, 2), counted, num_temperatures=num_temperatures, num_steps=3)
        assert cost == calls[0] == expected
        assert plan.num_steps == (3,) * (num_temperatures - 1)


@pytest.mark.parametrize("num_temperatures", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(num_temperatures, dtype):
    start = Gaussian(torch.zeros(3, 4, dtype=dtype), torch.eye(4, dtype=dtype).expand(3, 4, 4))
    path = gaussian_path(start, lambda z: (-z.square().sum(-1), -2 * z))
    plan, _ = tune(draws(4, 3, 4, dtype), path, num_temperatures=num_temperatures)
    assert plan.betas.dtype == torch.float64
    assert plan.step_size.dtype == plan.metric.basis.dtype == plan.metric.precision.dtype == dtype
    assert plan.step_size.shape == (num_temperatures - 1, 3)
    found = forward(draws(5, 3, 4, dtype), path, plan)
    assert found.log_weight.dtype == torch.float64
    assert found.position.dtype == dtype


def test_other_data_change_nothing():
    path, _ = correlated(4)
    torch.manual_seed(0)
    start, plans = draws(8, 4), []
    for factor in (1.0, 2.0):
        position = torch.cat([start[:, :1], factor * start[:, 1:]], 1)
        torch.manual_seed(1)
        plans.append(tune(position, path, num_temperatures=20).plan)
    assert torch.equal(plans[0].betas[:, 0], plans[1].betas[:, 0])
    assert torch.equal(plans[0].step_size[:, 0], plans[1].step_size[:, 0])
    assert not torch.equal(plans[0].step_size[:, 1:], plans[1].step_size[:, 1:])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_datum_without_density_leaves_a_usable_plan(share):
    """Datum 1 has no density for some of its chains, or for all."""
    clean, _ = correlated(3)

    def path(u) -> Endpoints:
        ends = clean(u)
        is_bad = (torch.arange(3) == 1) & ((u[..., 0] > 0) | (share == 1.0))
        gradient = torch.where(is_bad.unsqueeze(-1), math.nan, ends.end_gradient)
        return ends._replace(end=torch.where(is_bad, -math.inf, ends.end), end_gradient=gradient)

    torch.manual_seed(0)
    start, plans = draws(16, 3), []
    for each in (clean, path):
        torch.manual_seed(1)
        plans.append(tune(start, each, num_temperatures=30).plan)
    for before, after in zip(plans[0][:2], plans[1][:2], strict=True):
        assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
        assert after.isfinite().all()
    assert (plans[1].step_size > 0).all()
    assert rebuilt(plans[1].metric).isfinite().all()
    if share == 1.0:
        torch.testing.assert_close(plans[1].betas[:, 1], linear(30))


OUT_OF_RANGE = (
    ({"num_temperatures": 0}, "num_temperatures must be at least 1, but is 0"),
    ({"schedule": "cubic"}, "schedule must be one of adapted, linear, sigmoid, geometric, but is 'cubic'"),
    ({"num_steps": 0}, "num_steps must be at least 1, but is 0"),
    ({"target_accept_prob": 1.0}, "target_accept_prob must lie strictly between 0 and 1, but is 1.0"),
    ({"target_accept_prob": math.nan}, "target_accept_prob must lie strictly between 0 and 1"),
    ({"num_pilot_temperatures": 3}, "num_pilot_temperatures must be at least 4, but is 3"),
    ({"num_chains": 1}, "at least 2 chains, but has 1"),
)


@pytest.mark.parametrize(("options", "message"), OUT_OF_RANGE)
def test_arguments_out_of_range(options, message):
    options = {"num_temperatures": 5, **options}
    path, _ = correlated(2)
    with pytest.raises(ValueError, match=message):
        tune(draws(options.pop("num_chains", 4), 2), path, **options)
