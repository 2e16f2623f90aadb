"""Annealed runs: identities that hold exactly, identities that hold in the mean, and the bugs these must catch."""

import math

import pytest
import torch
from chance import means_agree, z_score_limit
from test_hmc import HostReads, always_accepted

from pyrovae.inference import annealing, hmc
from pyrovae.inference.annealing import Kernel, Metric, Plan, arrive, forward, gaussian_path, move, reverse
from pyrovae.inference.laplace import Gaussian, log_prob, unwhiten
from pyrovae.inference.schedules import linear

DOUBLE = torch.float64
NUM_CHAINS, NUM_DATA = 1000, 20  # the data are alike: 20,000 chains of one problem
ORIGINAL_STEP = hmc.step


class Problem:
    """A path with a known log Z, and draws of its two ends in its own coordinates."""

    def __init__(self, path, log_z, posterior):
        self.path, self.log_z, self.posterior, self.dim = path, log_z, posterior, 2

    def start(self, num_chains=NUM_CHAINS, num_data=NUM_DATA):
        return torch.randn(num_chains, num_data, self.dim, dtype=DOUBLE)


def repeated(loc, scale_tril, num_data):
    return Gaussian(
        torch.tensor(loc, dtype=DOUBLE).expand(num_data, -1),
        torch.tensor(scale_tril, dtype=DOUBLE).expand(num_data, -1, -1),
    )


WIDE = ([0.3, -0.2], [[1.2, 0.0], [0.4, 0.9]])
NARROW = ([1.1, 0.4], [[0.6, 0.0], [-0.4, 0.4]])


def gaussian_pair(num_data=NUM_DATA, ends=(WIDE, NARROW)) -> Problem:
    """Two correlated Gaussians beside each other; weights have variance on the way from wide to narrow."""
    start, end = (repeated(*end, num_data) for end in ends)

    def posterior(num_chains=NUM_CHAINS):
        z = unwhiten(end, torch.randn(num_chains, num_data, 2, dtype=DOUBLE))
        centred = (z - start.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(start.scale_tril, centred, upper=False).squeeze(-1)

    density = hmc.with_gradient(lambda z: log_prob(end, z) - 6.0)
    return Problem(gaussian_path(start, density), -6.0, posterior)


DECODER = torch.tensor([[1.5, -0.5, 0.8], [0.3, 1.2, -1.0]], dtype=DOUBLE)
OBSERVED = torch.tensor([0.9, -0.3, 0.4], dtype=DOUBLE)


def log_likelihood(z):
    error = (OBSERVED - torch.tanh(z @ DECODER)) / 0.4
    return -0.5 * error.square().sum(-1) - 3 * math.log(0.4 * math.sqrt(2 * math.pi))


def tanh_decoder(num_data=NUM_DATA) -> Problem:
    """A posterior with a crescent and a far tail; its start is the prior."""
    prior = repeated([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], num_data)
    axis = torch.linspace(-9.0, 9.0, 1801, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    density = -0.5 * grid.square().sum(-1) - math.log(2 * math.pi) + log_likelihood(grid)
    log_z = (density.logsumexp(0) + 2 * math.log(0.01)).item()

    def posterior(num_chains=NUM_CHAINS):
        """By rejection from the prior."""
        highest, wanted = log_likelihood(grid).max() + 0.05, num_chains * num_data
        z = torch.randn(60 * wanted, 2, dtype=DOUBLE)
        kept = z[torch.rand(len(z), dtype=DOUBLE).log() < log_likelihood(z) - highest]
        return kept[:wanted].reshape(num_chains, num_data, 2)

    log_joint = hmc.with_gradient(lambda z: log_prob(prior, z) + log_likelihood(z))
    return Problem(gaussian_path(prior, log_joint), log_z, posterior)


PROBLEMS = {"gaussian": gaussian_pair(), "tanh": tanh_decoder()}


def make_plan(num_temperatures=4, step_size=0.9, num_data=NUM_DATA, metric=None) -> Plan:
    moves = num_temperatures - 1
    betas = linear(num_temperatures)[:, None].expand(-1, num_data)
    steps = step_size * torch.linspace(0.8, 1.1, moves, dtype=DOUBLE)[:, None].expand(-1, num_data)
    return Plan(betas, steps, (2,) * moves, metric)


# Planted bugs. Each has the arguments and the log-weights of `forward`.


def weight_after_move(position, path, plan):
    point, total = arrive(position, path), 0.0
    for increment, kernel in zip(plan.betas.diff(dim=0), annealing._kernels(plan), strict=False):
        point, _ = move(point, path, kernel)
        total = total + increment * point.log_ratio
    return total + (plan.betas[-1] - plan.betas[-2]) * point.log_ratio


def lagging_temperature(position, path, plan):
    with pytest.MonkeyPatch.context() as patch:
        true = annealing._kernels(plan)
        late = [
            kernel._replace(beta=beta) for kernel, beta in zip(true, plan.betas[:-2].unbind(), strict=True)
        ]
        patch.setattr(annealing, "_kernels", lambda _: late)
        return forward(position, path, plan).log_weight


def no_metropolis_step(position, path, plan):
    def step(*args, **kwargs):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(hmc, "step", ORIGINAL_STEP)
            return always_accepted(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmc, "step", step)
        return forward(position, path, plan).log_weight


def missing_normalizer(position, path, plan):
    def wrong(u):
        return path(u)._replace(start=-0.5 * u.square().sum(-1))

    return forward(position, wrong, plan).log_weight


def stops_short(position, path, plan):
    betas = plan.betas.clone()
    betas[-1] = 0.95
    return annealing._run(position, path, betas.diff(dim=0), annealing._kernels(plan)).log_weight


def adapts_on_the_way(position, path, plan):
    """Every row follows its own acceptance."""
    point = arrive(position, path)
    total, step_size = plan.betas[1] * point.log_ratio, torch.ones_like(point.log_ratio)
    for kernel, increment in zip(annealing._kernels(plan), plan.betas.diff(dim=0)[1:], strict=True):
        point, rate = move(point, path, kernel._replace(step_size=step_size))
        step_size = (step_size * torch.exp(4.0 * (rate - 0.8))).clamp(max=1.5)
        total = total + increment * point.log_ratio
    return total


MUTANTS = (
    weight_after_move,
    lagging_temperature,
    no_metropolis_step,
    missing_normalizer,
    stops_short,
)


def right(position, path, plan):
    return forward(position, path, plan).log_weight


def is_unbiased(run, problem: Problem, plan: Plan) -> bool:
    """E exp(log_weight - log Z) = 1."""
    log_weight = run(problem.start(), problem.path, plan)
    return means_agree((log_weight - problem.log_z).exp().reshape(-1), 1.0)


METRIC = Metric(
    torch.linalg.qr(torch.tensor([[1.0, 0.5], [-0.7, 1.0]], dtype=DOUBLE))[0].expand(NUM_DATA, -1, -1),
    torch.tensor([2.0, 6.0], dtype=DOUBLE).expand(NUM_DATA, -1),
)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    "plan", [make_plan(), make_plan(12, 1.1), make_plan(6, metric=METRIC)], ids=["4", "12", "metric"]
)
def test_the_mean_weight_is_the_evidence(problem, plan):
    torch.manual_seed(0)
    assert is_unbiased(right, PROBLEMS[problem], plan)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mean_weight_catches_planted_bugs(mutant):
    torch.manual_seed(0)
    problem = PROBLEMS["gaussian"]
    assert not is_unbiased(mutant, problem, make_plan(4, 1.1))


def test_adaptation_within_the_weighted_run_is_caught():
    torch.manual_seed(0)
    problem, plan = PROBLEMS["gaussian"], make_plan(32, 1.1)
    assert is_unbiased(right, problem, plan)
    assert not is_unbiased(adapts_on_the_way, problem, plan)


def satisfies_crooks(run, problem: Problem, plan: Plan) -> bool:
    """E_forward s(W - log Z) = E_reverse s(log Z - W) with s the logistic: bounded, so it needs no variance."""
    there = torch.sigmoid(run(problem.start(), problem.path, plan) - problem.log_z)
    back = reverse(problem.posterior(), problem.path, plan).log_weight
    return means_agree((there - torch.sigmoid(problem.log_z - back)).reshape(-1), 0.0)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_crooks(problem):
    torch.manual_seed(0)
    assert satisfies_crooks(right, PROBLEMS[problem], make_plan())
    assert satisfies_crooks(right, PROBLEMS[problem], make_plan(6, metric=METRIC))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_crooks_catches_planted_bugs(mutant):
    torch.manual_seed(0)
    assert not satisfies_crooks(mutant, PROBLEMS["gaussian"], make_plan(4, 1.1))


def moves_in_the_order_of_forward(position, path, plan):
    return annealing._run(position, path, plan.betas.diff(dim=0).flip(0), annealing._kernels(plan))


def reciprocal_is_unbiased(run, problem: Problem, plan: Plan) -> bool:
    """E exp(log Z - W) = 1 from draws of the posterior."""
    log_weight = run(problem.posterior(), problem.path, plan).log_weight
    return means_agree((problem.log_z - log_weight).exp().reshape(-1), 1.0)


def test_the_walk_back():
    """From narrow to wide, where reciprocal weights have variance."""
    torch.manual_seed(0)
    problem, plan = gaussian_pair(ends=(NARROW, WIDE)), make_plan(8, 0.9)
    assert reciprocal_is_unbiased(reverse, problem, plan)
    assert not reciprocal_is_unbiased(moves_in_the_order_of_forward, problem, plan)


def particles_are_independent(run, num_particles: int = 8) -> bool:
    """K Var(mean of K weights) = Var(weight), as products of two particles of one datum have mean 1."""
    problem = gaussian_pair(4000)
    weight = (
        run(problem.start(num_particles, 4000), problem.path, make_plan(4, 0.9, 4000)) - problem.log_z
    ).exp()
    variance_of_mean = num_particles * (weight.mean(0) - 1.0).square()
    return means_agree(variance_of_mean - (weight - 1.0).square().mean(0), 0.0)


def shared_noise(position, path, plan):
    """One momentum and one uniform number for all particles of a datum."""

    def step(*args, **kwargs):
        noise = {name: kwargs.pop(name) for name in ("momentum", "log_uniform")}
        return ORIGINAL_STEP(
            *args, **{name: value[:1].expand_as(value) for name, value in noise.items()}, **kwargs
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmc, "step", step)
        return forward(position, path, plan).log_weight


def shared_start(position, path, plan):
    return forward(position[:1].expand_as(position), path, plan).log_weight


def test_particles_have_noise_of_their_own():
    torch.manual_seed(0)
    assert particles_are_independent(right)


@pytest.mark.parametrize("mutant", [shared_noise, shared_start])
def test_shared_noise_is_caught(mutant):
    torch.manual_seed(0)
    assert not particles_are_independent(mutant)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_truth_lies_between(problem):
    """E forward < log Z < E reverse, each by more than its error."""
    torch.manual_seed(0)
    problem = PROBLEMS[problem]
    below = forward(problem.start(200), problem.path, make_plan()).log_weight - problem.log_z
    above = reverse(problem.posterior(200), problem.path, make_plan()).log_weight - problem.log_z
    for gap in (-below.reshape(-1), above.reshape(-1)):
        assert gap.mean() > z_score_limit() * gap.std() / math.sqrt(len(gap))


def round_problem(num_data=50) -> Problem:
    """From N(0, I) to N((1, 0), I / 4): a quarter turn is a perfect move at every temperature."""
    start = repeated([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], num_data)
    end = repeated([1.0, 0.0], [[0.5, 0.0], [0.0, 0.5]], num_data)
    density = hmc.with_gradient(lambda z: log_prob(end, z))

    def posterior(num_chains):
        return unwhiten(end, torch.randn(num_chains, num_data, 2, dtype=DOUBLE))

    return Problem(gaussian_path(start, density), 0.0, posterior)


def test_the_gap_of_perfect_moves_is_the_jeffreys_divergence_over_t():
    torch.manual_seed(0)
    problem = round_problem()
    jeffreys = 0.5 * (2 * 0.25 + 1 - 2) + 0.5 * (2 * 4 + 4 - 2)
    metric = Metric(torch.eye(2, dtype=DOUBLE).expand(50, -1, -1), torch.full((50, 2), 4.0, dtype=DOUBLE))
    for num_temperatures in (4, 8, 16):
        moves = num_temperatures - 1
        betas = linear(num_temperatures)[:, None].expand(-1, 50)
        plan = Plan(betas, torch.full((moves, 50), math.pi / 16, dtype=DOUBLE), (8,) * moves, metric)
        there = forward(problem.start(200, 50), problem.path, plan).log_weight
        back = reverse(problem.posterior(200), problem.path, plan).log_weight
        assert means_agree(num_temperatures * (back - there).reshape(-1), jeffreys)
        assert not means_agree(num_temperatures * (back - there).reshape(-1), 0.8 * jeffreys)


# What needs no chance.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_temperature_is_importance_sampling_to_the_last_bit(dtype):
    start = Gaussian(torch.randn(5, 3, dtype=dtype), torch.eye(3, dtype=dtype).expand(5, 3, 3) * 0.7)
    path = gaussian_path(start, hmc.with_gradient(lambda z: z.sin().sum(-1) - z.square().sum(-1)))
    plan = Plan(linear(1)[:, None].expand(-1, 5), torch.empty(0, 5, dtype=dtype), ())
    u = torch.randn(4, 5, 3, dtype=dtype)
    ends = path(u)
    for run in (forward, reverse):
        found = run(u, path, plan)
        assert torch.equal(found.log_weight, ends.end.double() - ends.start.double())
        assert torch.equal(found.position, u)
        assert found.num_gradient_evaluations == 1
        assert found.acceptance_rate.shape == (0, 5)
        assert found.position.dtype == found.acceptance_rate.dtype == dtype
    z = unwhiten(start, u)
    direct = z.sin().sum(-1) - z.square().sum(-1) - log_prob(start, z)
    tolerance = 1e-12 if dtype == DOUBLE else 1e-4
    torch.testing.assert_close(found.log_weight, direct.double(), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("run", [forward, reverse])
def test_an_end_equal_to_the_start_has_weights_of_exactly_zero(run):
    def path(u):
        value, gradient = -u.pow(4).sum(-1), -4 * u.pow(3)
        return annealing.Endpoints(value, gradient, value, gradient)

    found = run(torch.randn(6, 3, 2, dtype=DOUBLE), path, make_plan(5, 0.3, 3))
    assert (found.log_weight == 0).all()
    assert (found.ratio_variance == 0).all()
    assert (found.acceptance_rate > 0).all()


@pytest.mark.parametrize("run", [forward, reverse])
def test_gradients_are_counted(run):
    calls = [0]

    def path(u):
        calls[0] += 1
        return PROBLEMS["gaussian"].path(u)

    plan = make_plan(5)._replace(num_steps=(1, 3, 2, 5))
    found = run(PROBLEMS["gaussian"].start(2), path, plan)
    assert found.num_gradient_evaluations == calls[0] == 1 + 11
    assert found.acceptance_rate.shape == (4, NUM_DATA)
    assert found.ratio_variance.shape == (5, NUM_DATA)


@pytest.mark.parametrize("run", [forward, reverse])
@pytest.mark.parametrize("metric", [None, METRIC])
def test_other_data_change_nothing(run, metric):
    """Given the same noise, to the last bit."""
    problem, plan = PROBLEMS["gaussian"], make_plan(6, metric=metric)
    torch.manual_seed(0)
    start = problem.start(8)
    other = start.clone()
    other[:, 1:] *= -3.0
    results = []
    for position in (start, other):
        torch.manual_seed(1)
        results.append(run(position, problem.path, plan))
    assert torch.equal(results[0].log_weight[:, 0], results[1].log_weight[:, 0])
    assert torch.equal(results[0].position[:, 0], results[1].position[:, 0])
    assert not torch.equal(results[0].log_weight[:, 1:], results[1].log_weight[:, 1:])


def poisoned(path, kind: str):
    """Datum 2 has a bad value right of 0."""

    def evaluate(u):
        ends = path(u)
        is_bad = (torch.arange(u.shape[1]) == 2) & (u[..., 0] > 0)
        if kind == "gradient":
            bad = torch.where(is_bad.unsqueeze(-1), math.nan, ends.end_gradient)
            return ends._replace(end_gradient=bad)
        return ends._replace(end=torch.where(is_bad, float(kind), ends.end))

    return evaluate


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf", "gradient"])
def test_a_datum_that_breaks_touches_no_other(kind):
    problem, results = PROBLEMS["gaussian"], []
    torch.manual_seed(0)
    position = problem.start(50)
    position[:25, 2, 0] = position[:25, 2, 0].abs()
    position[25:, 2, 0] = -position[25:, 2, 0].abs()
    for path in (problem.path, poisoned(problem.path, kind)):
        torch.manual_seed(1)
        results.append(forward(position, path, make_plan(6)))
    clean, broken = results
    others = torch.arange(NUM_DATA) != 2
    assert torch.equal(clean.log_weight[:, others], broken.log_weight[:, others])
    assert torch.equal(clean.position[:, others], broken.position[:, others])
    assert broken.position.isfinite().all()
    assert broken.log_weight[25:, 2].isfinite().all()
    if kind == "-inf":
        assert (broken.log_weight[:25, 2] == -math.inf).all()


def test_the_loop_does_not_read_the_device():
    counts = []
    for num_temperatures in (3, 12):
        with HostReads() as reads:
            forward(PROBLEMS["gaussian"].start(2), PROBLEMS["gaussian"].path, make_plan(num_temperatures))
        counts.append(reads.count)
    assert counts[0] == counts[1] <= 1


@pytest.mark.parametrize("metric", [None, METRIC])
def test_a_move_goes_back_where_it_came_from(metric):
    """With the momentum turned, a move that accepts everything ends at its start: forward and reverse share it."""
    problem = PROBLEMS["tanh"]
    kernel = Kernel(
        torch.full((NUM_DATA,), 0.6, dtype=DOUBLE), torch.full((NUM_DATA,), 0.3).double(), 5, metric
    )
    noise = []

    def step(state, density, *, momentum, log_uniform, step_size, num_steps):
        momentum = -noise.pop() if noise else momentum
        end = hmc.leapfrog(state.position, momentum, state.gradient, density, step_size, num_steps)[1]
        noise.append(end)
        certain = torch.full_like(log_uniform, -math.inf)
        sizes = {"step_size": step_size, "num_steps": num_steps}
        return ORIGINAL_STEP(state, density, momentum=momentum, log_uniform=certain, **sizes)

    torch.manual_seed(0)
    start = arrive(problem.start(5), problem.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmc, "step", step)
        there, _ = move(start, problem.path, kernel)
        back, _ = move(there, problem.path, kernel)
    assert (there.position - start.position).abs().max() > 0.1
    torch.testing.assert_close(back.position, start.position, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(tuple(there.endpoints), tuple(problem.path(there.position)))


def test_ends_of_a_gaussian_path():
    """Both densities and both gradients in u, by finite differences and by the change of variables."""
    problem = PROBLEMS["tanh"]
    wide = repeated([0.5, -1.0], [[2.0, 0.0], [0.7, 0.3]], NUM_DATA)
    path = gaussian_path(wide, hmc.with_gradient(log_likelihood))
    u = problem.start(3)
    z = unwhiten(wide, u)
    ends, log_det = path(u), math.log(2.0 * 0.3)
    torch.testing.assert_close(ends.start, log_prob(wide, z) + log_det)
    torch.testing.assert_close(ends.end, log_likelihood(z) + log_det)
    for i, shift in enumerate(1e-6 * torch.eye(2, dtype=DOUBLE)):
        up, down = path(u + shift), path(u - shift)
        for name in ("start", "end"):
            difference = (getattr(up, name) - getattr(down, name)) / 2e-6
            torch.testing.assert_close(
                getattr(ends, f"{name}_gradient")[..., i], difference, rtol=0.0, atol=1e-6
            )


def test_plans_that_do_not_fit():
    problem, plan = PROBLEMS["gaussian"], make_plan()
    short, unordered = plan.betas.clone(), plan.betas.clone()
    short[-1], unordered[1] = 0.99, unordered[2]
    for wrong, message in (
        (plan._replace(betas=short), "rise strictly from exactly 0 to exactly 1"),
        (plan._replace(betas=unordered), "rise strictly"),
        (plan._replace(betas=plan.betas.float()), "must be float64"),
        (plan._replace(betas=plan.betas[:, :1]), "betas must be"),
        (plan._replace(step_size=plan.step_size[1:]), "must have 3 rows for 4 temperatures"),
        (plan._replace(num_steps=(2, 2)), "must have 3 rows for 4 temperatures"),
    ):
        for run in (forward, reverse):
            with pytest.raises(ValueError, match=message):
                run(problem.start(2), problem.path, wrong)
