"""Objectives of several particles on models and guides of every shape: values, scales, chunks, and what is refused."""

import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn
from zoo import EXACT, SHAPES, convolutional, linear_gaussian, other_family

from pyrovae.training.kl_weight import LatentScale
from pyrovae.training.objectives import IWAE, OBJECTIVES, STL, make_objective, particles
from pyrovae.training.steps import _leaves

F64 = torch.float64
OPTIONS = {
    "miwae": {"num_outer": 2},
    "piwae": {"num_outer": 2},
    "ciwae": {"beta": 0.3},
    "renyi": {"alpha": 0.5},
}
NAMES = [name for name in OBJECTIVES if name not in ("elbo", "analytic_kl")]


def make(name, num_particles=4, **options):
    return make_objective(name, num_particles, **OPTIONS.get(name, {}), **options)


def seeded(function, *args):
    torch.manual_seed(0)
    return function(*args)


@pytest.mark.parametrize("specimen", EXACT)
@pytest.mark.parametrize("name", NAMES)
def test_with_the_posterior_as_guide_every_bound_is_log_p(name, specimen):
    model, guide, data, log_evidence, *_ = EXACT[specimen]()
    scale = 1000 / 4 if "subsampled" in specimen else 1
    for options in ({}, {"chunk_size": 3}):
        loss = make(name, **options).loss(model, guide, *data)
        assert loss == pytest.approx(-scale * log_evidence.sum().item(), rel=1e-9)


@pytest.mark.parametrize("specimen", [name for name in SHAPES if name != "tanh decoder"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_elbo_of_several_particles_is_that_of_tiled_data(specimen, num_particles):
    model, guide, data, *_ = SHAPES[specimen]()
    tiled = [x.repeat(num_particles, *[1] * (x.dim() - 1)) for x in data]
    wanted = seeded(Trace_ELBO().loss, model, guide, *tiled)
    if "subsampled" not in specimen:  # there Pyro's scale divides by the rows already
        wanted /= num_particles
    elbo = ("ciwae", {"beta": 1.0}) if specimen == "planar" else ("score_function", {})
    found = seeded(make_objective(elbo[0], num_particles, **elbo[1]).loss, model, guide, *data)
    assert found == pytest.approx(wanted, rel=1e-9)


def gradient(objective, specimen, guide=None, seed=0):
    """The gradient in all leaves of the loss, and the leaves."""
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(specimen.model, guide or specimen.guide, *specimen.data)
    found = list(_leaves(loss))
    return dict(zip(map(id, found), torch.autograd.grad(loss, found), strict=True)), found


PARAMETRIC = {"convolutional": convolutional} | {
    kind: lambda kind=kind: other_family(kind) for kind in ("low-rank", "autoregressive", "planar")
}


def hierarchical():
    """Two latents, the second of which depends on the first, in model and guide; two axes for the second."""
    torch.manual_seed(0)
    first, second = nn.Linear(2, 2).double(), nn.Linear(3, 6).double()
    loading = torch.randn(3, 2, dtype=F64).requires_grad_()

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            top = pyro.sample("top", dist.Normal(x.new_zeros(1), 1.0))
            with pyro.plate("local", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(top, 1.0))
                mean = (z.unsqueeze(-1) * loading).sum(-2, keepdim=True)
            pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x.unsqueeze(-2))

    def guide(x):
        pyro.module("first", first)
        pyro.module("second", second)
        with pyro.plate("data", len(x), dim=-2):
            loc, log_scale = first(x).unsqueeze(-1).unbind(-2)
            top = pyro.sample("top", dist.Normal(loc, log_scale.exp()))
            with pyro.plate("local", 3, dim=-1):
                loc, log_scale = second(torch.cat([x, top], -1)).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return other_family("low-rank")._replace(model=model, guide=guide, data=(torch.randn(5, 2, dtype=F64),))


@pytest.mark.parametrize("specimen", {**PARAMETRIC, "hierarchical": hierarchical})
def test_the_reparameterized_gradient_is_that_of_pyro(specimen):
    made = {**PARAMETRIC, "hierarchical": hierarchical}[specimen]()
    mine, theirs = gradient(IWAE(), made)[0], gradient(Trace_ELBO(), made)[0]
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value)


def score(specimen):
    """The gradient of log q at draws of the same noise, held fixed."""
    torch.manual_seed(0)
    trace = pyro.poutine.trace(specimen.guide).get_trace(*specimen.data)
    values = {name: site["value"].detach().clone() for name, site in trace.iter_stochastic_nodes()}
    fixed = pyro.poutine.trace(pyro.poutine.condition(specimen.guide, values)).get_trace(*specimen.data)
    return fixed.log_prob_sum()


def path_is_total_less_score(objective, specimen) -> bool:
    """Whether the gradient of `objective` is the total one without the score of the guide."""
    total, found = gradient(IWAE(), specimen)
    path = gradient(objective, specimen)[0]
    by_score = torch.autograd.grad(score(specimen), found, allow_unused=True)
    # The total derivative of the loss contains that of +log q in its parameters.
    return all(
        torch.allclose(path.get(id(leaf), zero), total[id(leaf)] - (zero if s is None else s), atol=1e-8)
        for leaf, s, zero in zip(found, by_score, map(torch.zeros_like, found), strict=True)
    )


@pytest.mark.parametrize("specimen", ["convolutional", "low-rank", "autoregressive", "hierarchical"])
@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_the_path_derivative_is_the_total_one_without_the_score(name, specimen):
    made = {**PARAMETRIC, "hierarchical": hierarchical}[specimen]()
    assert path_is_total_less_score(make(name, 1), made)


class DetachesOnlyTheFirst(STL):
    """Planted: the total derivative."""

    graph = "total"


def test_the_assertion_sees_the_score():
    assert not path_is_total_less_score(DetachesOnlyTheFirst(), convolutional())


def test_parameters_shared_by_model_and_guide_keep_the_models_part():
    """Sticking the landing with one parameter in both: d log p directly, and the path through the draws."""
    shared = torch.tensor(0.7, dtype=F64, requires_grad=True)
    x = torch.linspace(-1, 1, 5, dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(shared * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shared * x, shared.exp()))

    torch.manual_seed(0)
    STL().differentiable_loss(model, guide, x).backward()
    torch.manual_seed(0)
    z = dist.Normal(shared * x, shared.exp()).rsample()
    fixed = dist.Normal(shared.detach() * x, shared.detach().exp()).log_prob(z)
    by_hand = (
        dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) + dist.Normal(shared * z, 1.0).log_prob(x) - fixed
    )
    torch.testing.assert_close(shared.grad, torch.autograd.grad(-by_hand.sum(), shared)[0])


def wide(full_size=None):
    """A guide that is not the posterior, over a plate of the rows or of `full_size` data."""
    exact = linear_gaussian(num_data=4)

    def plate(x):
        keywords = {} if full_size is None else {"subsample_size": len(x)}
        return pyro.plate("data", full_size or len(x), **keywords)

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 6]).to_event(1), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(x[:, :3] / 6, 0.8).to_event(1))

    return exact._replace(model=model, guide=guide)


def scale_stays_outside(objective, full_size=1000) -> bool:
    """Whether a plate of 1000 data, of which 4 are seen, just multiplies the loss by 250."""
    plain, scaled = (
        seeded(objective.loss, each.model, each.guide, *each.data) for each in (wide(), wide(full_size))
    )
    return scaled == pytest.approx(plain * full_size / 4, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("full_size", [1000, 16])  # 16 is the number of rows of the tiled data, too
def test_the_scale_of_a_subsampled_plate_stays_outside_of_the_bound(name, full_size):
    assert scale_stays_outside(make(name), full_size)


def test_pyros_renyi_bound_fails_that():
    assert not scale_stays_outside(RenyiELBO(alpha=0.0, num_particles=4))


def test_a_plate_that_subsamples_by_itself_works_one_particle_at_a_time():
    x = torch.arange(20.0, dtype=F64)

    def model(x):
        with pyro.plate("data", 20, subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))

    torch.manual_seed(0)
    values = torch.tensor([IWAE(1).loss(model, guide, x) for _ in range(4)])
    possible = 4 * dist.Normal(torch.zeros(20, dtype=F64), 2**0.5).log_prob(x)
    assert len(values.unique()) == 4
    assert (values >= -possible.sort()[0][:5].sum()).logical_not().any()
    with pytest.raises(
        ValueError, match=r"3 copies of the batch, 60 rows, but the plate 'data' has 5; write"
    ):
        IWAE(3).loss(model, guide, x)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_give_the_gradient_of_their_particles(name, monkeypatch):
    """The recomputed graphs against graphs that are kept, from the same noise."""
    specimen, objective = convolutional(), make(name, 8, chunk_size=3)
    again, leaves = gradient(objective, specimen)
    after = torch.rand(3)
    monkeypatch.setattr(particles, "_recomputed", lambda function: function)
    kept = gradient(objective, specimen)[0]
    assert torch.equal(after, torch.rand(3))  # what is drawn next does not depend on it
    for leaf in leaves:
        torch.testing.assert_close(again[id(leaf)], kept[id(leaf)])


def test_chunks_recompute_under_the_handlers_of_the_forward_pass(monkeypatch):
    specimen = convolutional()

    def weighted():
        torch.manual_seed(0)
        with LatentScale(0.3):
            loss = STL(4, chunk_size=2).differentiable_loss(specimen.model, specimen.guide, *specimen.data)
        return torch.autograd.grad(loss, list(_leaves(loss)))  # the handler is gone

    again = weighted()
    monkeypatch.setattr(particles, "_recomputed", lambda function: function)
    for mine, kept in zip(again, weighted(), strict=True):
        torch.testing.assert_close(mine, kept)


def most_alive(name) -> int:
    """Of 40 particles, 4 at a time: the largest number of chunks whose activations live at the same time."""
    alive, most = set(), 0
    weight = torch.randn(3, 50, dtype=F64).requires_grad_()

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            nonlocal most
            out = h.tanh()
            ctx.save_for_backward(out)
            alive.add(out.data_ptr())
            weakref.finalize(out.untyped_storage(), alive.discard, out.data_ptr())
            most = max(most, len(alive))
            return out

        @staticmethod
        def backward(ctx, grad):
            return grad * (1 - ctx.saved_tensors[0] ** 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(Watched.apply(z @ weight).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight[:, 0], weight[:, 1].exp()).to_event(1))

    make_objective(name, 40, chunk_size=4).differentiable_loss(
        model, guide, torch.zeros(5, dtype=F64)
    ).backward()
    assert weight.grad.isfinite().all()
    return most


@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco"])
def test_memory_is_that_of_a_chunk(name, monkeypatch):
    assert most_alive(name) <= 2
    monkeypatch.setattr(particles, "_recomputed", lambda function: function)
    assert most_alive(name) == 10
