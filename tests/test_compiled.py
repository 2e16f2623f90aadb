"""Traced and compiled programs against the functions they were made from; explicit noise against rsample."""

import itertools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import AutoRegressiveNN
from torch import nn
from torch.func import vmap

import pyrovae as pv
from pyrovae.compiled import FallbackWarning, compiled, draw_noise, traced, with_noise
from pyrovae.compiled import program as module
from pyrovae.inference import hmc
from pyrovae.target import Target


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


def two(*shape: int, **options: object) -> list[tuple[torch.Tensor]]:
    return [(torch.randn(*shape, **options),) for _ in range(2)]


def close(found, expected) -> bool:
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(found, expected, strict=True))


# --- tracing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(zoo.SHAPES.keys() - {"factor_and_branch"}))
def test_a_traced_density_gives_value_and_gradient_at_fresh_points(name):
    specimen = zoo.SHAPES[name]()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    torch.manual_seed(0)
    density = hmc.with_gradient(target.log_joint)
    program = traced(density, *((target.sample_guide(3).z,) for _ in range(2)))
    assert (program.route, program.reason) == ("traced", "")
    z = target.sample_guide(3).z
    assert close(program(z), density(z))
    if target.can_score_guide and name != "autoregressive":
        score = traced(target.log_guide, (z,), (target.sample_guide(3).z,))
        assert score.route == "traced"
        z = target.sample_guide(3).z
        assert close([score(z)], [target.log_guide(z)])


def test_the_inverse_of_a_flow_that_reads_its_permutation_runs_untraced():
    specimen = zoo.other_family("autoregressive")
    target = Target(specimen.model, specimen.guide, *specimen.data)
    with pytest.warns(FallbackWarning, match="runs untraced"):
        score = traced(target.log_guide, *two(3, 4, 3, dtype=torch.float64))
    z, log_q = target.sample_guide(3)
    assert close([score(z)], [log_q])


def test_a_branch_on_z_runs_untraced_with_one_notice():
    specimen = zoo.factor_and_branch()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    density = hmc.with_gradient(target.log_joint)
    with pytest.warns(FallbackWarning, match="runs untraced, not traced: .*value in Python") as notices:
        program = traced(density, *((target.sample_guide(3).z,) for _ in range(2)))
    assert len(notices) == 1
    assert program.route == "untraced"
    z = target.sample_guide(3).z
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(program(z), density(z))


def _steps(weight: nn.Parameter, counter: "itertools.count[int]") -> dict[str, object]:
    return {
        "a branch on z": lambda z: z if bool(z.sum() > 0) else -z,
        "numpy": lambda z: z * float(z.numpy().max()),
        "the number in a parameter": lambda z: z * weight.item(),
        "a branch on a parameter": lambda z: z if weight > 0 else -z,
        "a function of a parameter": lambda z: z * (2 * weight).detach().numpy().item(),
        "something outside": lambda z: z * next(counter),
    }


@pytest.mark.parametrize("case", _steps(nn.Parameter(torch.ones(())), itertools.count()))
def test_what_would_be_frozen_runs_untraced(case):
    weight = nn.Parameter(torch.tensor(2.0))
    function = _steps(weight, itertools.count())[case]
    with pytest.warns(FallbackWarning, match="runs untraced"):
        program = traced(function, *two(4, 3))
    assert program.route == "untraced"
    assert program.reason
    if case != "something outside":
        weight.data.neg_()
        z = torch.randn(4, 3)
        assert torch.equal(program(z), function(z).detach())


def test_a_branch_that_the_tracer_froze_is_found_at_the_other_examples(monkeypatch):
    """Planted: a tracer that shows values. The comparison alone must refuse, and only because its points differ."""
    from torch.fx.experimental.proxy_tensor import make_fx

    monkeypatch.setattr(module, "_trace", lambda run, example: make_fx(run)(*example))
    function = lambda z: z if z.numpy().sum() > 0 else -z  # noqa: E731
    up, down = (torch.ones(3),), (-torch.ones(3),)
    with pytest.warns(FallbackWarning, match="not close"):
        assert traced(function, up, down).route == "untraced"
    assert traced(function, up, up).route == "traced"


def test_a_value_that_is_off_by_a_thousandth_is_found(monkeypatch):
    """Planted: a compiler whose results are 1.001 times the right ones; the trace is replayed instead."""
    monkeypatch.setattr(
        module, "_compile", lambda graph, example: lambda *a: [1.001 * out for out in graph(*a)]
    )
    with pytest.warns(FallbackWarning, match="runs traced, not compiled"):
        program = compiled(torch.sin, *two(4))
    assert program.route == "traced"
    assert torch.equal(program(torch.ones(4)), torch.ones(4).sin())


def test_the_function_runs_at_the_start_and_never_again():
    calls = []

    def function(z):
        calls.append(type(z).__name__)
        return z.sin()

    program = traced(function, *two(3))
    seen = len(calls)
    assert calls.count("FakeTensor") == 1
    for _ in range(10):
        program(torch.randn(3))
    assert len(calls) == seen


def test_parameters_and_buffers_are_seen_as_they_change():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    scale = torch.tensor(1.0)
    function = lambda z: net(z) * scale  # noqa: E731
    program = traced(function, *two(5, 3))
    z = torch.randn(5, 3)
    _check_changes(program, function, net, scale, z)


def _check_changes(program, function, net, scale, z):
    def same() -> bool:
        return torch.allclose(program(z), function(z), rtol=1e-5, atol=1e-6)

    before = program(z)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(z).square().sum().backward()
    optimizer.step()
    assert same()
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    assert same()
    scale.fill_(3.0)
    assert same()
    assert not torch.allclose(program(z), before)
    net.weight = nn.Parameter(torch.zeros(2, 3))
    assert not same(), "documented: a tensor put in another's place is not seen"


def test_random_operations_stay_random_and_follow_the_seed():
    function = lambda z: z + torch.randn(3)  # noqa: E731
    program = traced(function, *two(3))
    z = torch.zeros(3)
    torch.manual_seed(1)
    first, second = program(z), program(z)
    torch.manual_seed(1)
    assert torch.equal(first, function(z))
    assert not torch.equal(first, second)


def test_trees_of_tensors_go_in_and_out():
    function = lambda a, noise: {"sum": a + noise["z"], "both": (a, [noise["z"].int()])}  # noqa: E731
    examples = [(torch.randn(2), {"z": torch.randn(2)}) for _ in range(2)]
    out = traced(function, *examples)(torch.ones(2), {"z": torch.ones(2)})
    assert out["sum"].tolist() == [2.0, 2.0]
    assert out["both"][1][0].dtype == torch.int32


def test_nothing_outside_is_touched():
    state, threads, grad = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    pyro.clear_param_store()
    specimen = zoo.convolutional()
    target = Target(specimen.model, specimen.guide, *specimen.data)
    examples = two(2, 6, 2, dtype=torch.float64)
    torch.set_rng_state(state)
    program = traced(hmc.with_gradient(target.log_joint), *examples)
    z = torch.zeros(2, 6, 2, dtype=torch.float64, requires_grad=True)
    value, _ = program(z)
    assert not value.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: traced(torch.sin, (torch.ones(2),)), ValueError, "two examples"),
        (lambda: traced(torch.sin, (torch.ones(2),), (torch.ones(3),)), ValueError, "same shapes"),
        (lambda: traced(torch.sin, (1.0,), (2.0,)), TypeError, "tensors, not float"),
        (lambda: traced(lambda z: 1.0, *two(2)), TypeError, "tensors, not float"),
        (lambda: traced(lambda z: z @ torch.ones(7), *two(2)), RuntimeError, "size"),
        (lambda: traced(torch.sin, *two(2))(torch.ones(3)), ValueError, r"made for .*\(2,\).*another"),
        (lambda: traced(torch.sin, *two(2))(torch.ones(2).double()), ValueError, "float64"),
        (lambda: traced(torch.sin, *two(2))(torch.ones(2), torch.ones(2)), ValueError, "another"),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- compiling ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_density_of_a_vae():
    vae = pv.build_vae(20, 3, hidden=(16,), seed=0)
    target = Target(vae.model, vae.guide, torch.randn(7, 20), prepare=False)
    density = hmc.with_gradient(target.log_joint)
    program = compiled(density, *two(4, 7, 3))
    assert (program.route, program.reason) == ("compiled", "")
    z = torch.randn(4, 7, 3)
    for position in (z, z.transpose(0, 1).contiguous().transpose(0, 1)):
        value, gradient = program(position)
        expected = density(position)
        assert torch.allclose(value, expected[0], rtol=1e-5)
        assert torch.allclose(gradient, expected[1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.5)
    assert torch.allclose(program(z)[0], density(z)[0], rtol=1e-5)
    assert program(torch.full_like(z, torch.nan))[0].isnan().all()


@pytest.mark.slow
def test_a_compiled_program_sees_parameters_and_buffers_change():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    scale = torch.tensor(1.0)
    function = lambda z: net(z) * scale  # noqa: E731
    program = compiled(function, *two(5, 3))
    assert program.route == "compiled"
    _check_changes(program, function, net, scale, torch.randn(5, 3))


@pytest.mark.slow
def test_a_compiled_program_draws_what_the_function_draws():
    function = lambda z: z + torch.randn(3)  # noqa: E731
    program = compiled(function, *two(3))
    assert program.route == "compiled"
    torch.manual_seed(1)
    first = program(torch.zeros(3))
    torch.manual_seed(1)
    assert torch.equal(first, function(torch.zeros(3)))


@pytest.mark.gpu
def test_a_cuda_program_keeps_its_results_and_sees_parameters():
    net = nn.Linear(3, 2).cuda()
    density = hmc.with_gradient(lambda z: net(z).square().sum(-1))
    program = compiled(density, *two(5, 3, device="cuda"))
    assert (program.route, program.reason) == ("captured", "")
    z, other = torch.randn(2, 5, 3, device="cuda")
    first = program(z)
    program(other)
    assert torch.allclose(first[1], density(z)[1], atol=1e-5)
    with torch.no_grad():
        net.weight.mul_(2)
    assert torch.allclose(program(z)[0], density(z)[0], rtol=1e-4)


# --- noise -------------------------------------------------------------------------------------------------

LOC = torch.linspace(-1, 1, 15).reshape(5, 3)
TRIL = torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [-0.3, 0.2, 0.7]])


LAYERS = [AffineAutoregressive(AutoRegressiveNN(3, [6], permutation=torch.arange(3))) for _ in range(2)]


FAMILIES = {
    "normal": (lambda: dist.Normal(LOC, 2.0).to_event(1), (5, 3)),
    "masked": (lambda: dist.Normal(LOC, 2.0).mask(LOC > 0).to_event(1), (5, 3)),
    "full": (lambda: dist.MultivariateNormal(LOC, scale_tril=TRIL), (5, 3)),
    "low-rank": (lambda: dist.LowRankMultivariateNormal(LOC, torch.ones(5, 3, 2), torch.ones(3)), (5, 5)),
    "flow": (lambda: dist.TransformedDistribution(dist.Normal(LOC, 1.0).to_event(1), LAYERS), (5, 3)),
    "laplace": (lambda: dist.Laplace(LOC, 2.0).to_event(1), (5, 3)),
    "gumbel": (lambda: dist.Gumbel(LOC, 2.0).to_event(1), (5, 3)),
    "cauchy": (lambda: dist.Cauchy(LOC, 2.0).to_event(1), (5, 3)),
    "uniform": (lambda: dist.Uniform(LOC, LOC + 2).to_event(1), (5, 3)),
    "exponential": (lambda: dist.Exponential(LOC.exp()).to_event(1), (5, 3)),
    "log-normal": (lambda: dist.LogNormal(LOC, 2.0).to_event(1), (5, 3)),
    "weibull": (lambda: dist.Weibull(LOC.exp(), torch.ones(3)).to_event(1), (5, 3)),
    "expanded by the plate": (lambda: dist.Normal(0.0, 1.0), (5,)),
}


def _guide(name):
    def guide():
        with pyro.plate("data", 5):
            first = pyro.sample("first", dist.Normal(torch.zeros(()), 1.0))
            return first, pyro.sample("z", FAMILIES[name][0]())

    return guide


def _same(name: str, factor: float = 1.0) -> bool:
    """Whether a guide run with the noise that it would draw gives what it would draw."""
    guide = _guide(name)
    torch.manual_seed(3)
    expected = guide()
    torch.manual_seed(3)
    noise = draw_noise(guide)
    assert noise["z"].shape == FAMILIES[name][1]
    noise["z"] = noise["z"] * factor
    state = torch.get_rng_state()
    drawn = with_noise(guide, noise)()
    assert torch.equal(torch.get_rng_state(), state)
    return all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_explicit_noise_gives_what_rsample_gives(name):
    assert _same(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_that_is_a_tenth_too_large_is_seen(name):
    """Planted bug: the base noise scaled by 1.1."""
    assert not _same(name, 1.1)


@pytest.mark.parametrize("encoder", ["diagonal", "full", "low-rank", "flow", "laplace"])
def test_every_encoder_takes_noise_and_its_formula(encoder):
    vae = pv.build_vae(6, 2, hidden=(4,), encoder=encoder, seed=0)
    x = torch.randn(5, 6)

    def run(x):
        return pyro.poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"]

    noise = draw_noise(run, x)
    z = with_noise(run, noise)(x)
    assert torch.equal(z, with_noise(run, noise)(x))
    assert z.grad_fn is not None
    if encoder == "diagonal":
        q = vae.encoder(x).base_dist
        assert torch.equal(z, q.loc + noise["z"] * q.scale)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"expanded by the plate"}))
def test_replicates_under_vmap(name):
    guide = _guide(name)
    noise = draw_noise(guide, num_replicates=4)
    together = vmap(lambda noise: with_noise(guide, noise)()[1])(noise)
    for replicate, z in enumerate(together):
        alone = with_noise(guide, {site: eps[replicate] for site, eps in noise.items()})()[1]
        assert torch.allclose(z, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().min() > 0


def test_a_step_with_noise_is_traced():
    """The gradient of a one-draw ELBO in the parameters, the noise an input of the program."""
    vae = pv.build_vae(6, 2, hidden=(4,), seed=0)
    parameters = list(vae.parameters())

    def loss(x):
        trace = pyro.poutine.trace(vae.guide).get_trace(x)
        model = pyro.poutine.trace(pyro.poutine.replay(vae.model, trace=trace)).get_trace(x)
        return (trace.log_prob_sum() - model.log_prob_sum()) / len(x)

    def step(x, noise):
        with torch.enable_grad():
            value = with_noise(loss, noise)(x)
            return value.detach(), torch.autograd.grad(value, parameters)

    def example():
        x = torch.randn(5, 6)
        return x, draw_noise(loss, x)

    program = traced(step, example(), example())
    assert program.route == "traced"
    arguments = example()
    (value, gradients), (expected, others) = program(*arguments), step(*arguments)
    assert torch.allclose(value, expected)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, others, strict=True))


REFUSED = {
    "gamma": (lambda: dist.Gamma(torch.ones(3), 1.0), "'z'.*_standard_gamma"),
    "student": (lambda: dist.StudentT(3.0, torch.ones(3)), "'z'.*_standard_gamma"),
    "bernoulli": (lambda: dist.Bernoulli(torch.tensor(0.5)), "'z'.*Bernoulli has no rsample"),
    "von Mises": (lambda: dist.VonMises(torch.ones(3), 1.0), "'z'.*VonMises has no rsample"),
    "mixture": (
        lambda: dist.MixtureOfDiagNormals(torch.randn(2, 3), torch.ones(2, 3), torch.zeros(2)),
        "'z'.*multinomial",
    ),
    "wishart": (lambda: dist.Wishart(torch.tensor(5.0), torch.eye(3)), "'z'.*_standard_gamma"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_sites_without_base_noise_are_named(name):
    make, message = REFUSED[name]
    guide = lambda: pyro.sample("z", make())  # noqa: E731
    for run in (lambda: draw_noise(guide), with_noise(guide, {"z": torch.zeros(3)})):
        with pytest.raises(NotImplementedError, match=message):
            run()


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({}, "'z' wants"),
        ({"z": torch.zeros(2)}, r"'z' wants.*\[3\].*\[2\]"),
        ({"z": torch.zeros(())}, "'z' wants"),
        ({"z": torch.zeros(3).double()}, "float64"),
        ({"z": torch.zeros(4)}, r"noise of \['z'\] is left over"),
        ({"z": torch.zeros(3), "w": torch.zeros(1)}, r"noise of \['w'\] is left over"),
    ],
)
def test_noise_that_does_not_fit_is_refused(noise, message):
    guide = lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))  # noqa: E731
    with pytest.raises(ValueError, match=message):
        with_noise(guide, noise)()


def test_a_draw_that_reads_its_tensor_instead_of_the_result_shows():
    class InPlace(dist.Normal):
        def rsample(self, sample_shape=()):
            noise = torch.empty(3)
            noise.normal_()
            return self.loc + noise

    guide = lambda: pyro.sample("z", InPlace(torch.zeros(3), 1.0))  # noqa: E731
    assert with_noise(guide, {"z": torch.zeros(3)})().isnan().all()
