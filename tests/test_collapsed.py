"""The collapsed likelihood against the decoder's own: values, gradients, rounding, cost, and parameters that change."""

import copy
import gc
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae import compiled
from pyrovae.diagnostics.evidence import log_evidence
from pyrovae.diagnostics.reference import sample_posterior
from pyrovae.inference import hmc, laplace
from pyrovae.models import collapsed
from pyrovae.models.decoders import BernoulliDecoder, GaussianDecoder, LinearGaussianDecoder, StudentTDecoder
from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.networks import mlp
from pyrovae.models.priors import StandardNormal
from pyrovae.models.vae import PRIORS, VAE, build_vae
from pyrovae.target import Target

F64 = torch.float64
X, D, N, K = 7, 2, 4, 3

NETS = {
    "mlp": lambda: mlp(D, (5,), X),
    "residual": lambda: mlp(D, (5, 5), X, "tanh", residual=True),
    "one layer": lambda: nn.Linear(D, X),
    "wider than the data": lambda: mlp(D, (9,), X),
    "as wide as the data": lambda: mlp(D, (X,), X),
    "no bias": lambda: nn.Sequential(nn.Linear(D, 5), nn.ELU(), nn.LayerNorm(5), nn.Linear(5, X, bias=False)),
}


def prior_and_data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(K, N, D, dtype=F64), torch.randn(N, X, dtype=F64)


def own(decoder: nn.Module, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return decoder(z).log_prob(x)


def slope(function, z: torch.Tensor) -> torch.Tensor:
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


# --- values and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["fixed", "shared", "per-dimension", "optimal"])
@pytest.mark.parametrize("net", NETS)
def test_values_and_gradients_are_those_of_the_decoder(net, noise):
    z, x = prior_and_data()
    decoder = GaussianDecoder(NETS[net](), noise, 0.3, event_shape=(X,)).double()
    if noise == "per-dimension":
        nn.init.normal_(decoder.noise.log_scale)
    likelihood = decoder.prepare_likelihood(x)
    assert torch.allclose(likelihood(z), own(decoder, z, x), rtol=0, atol=1e-9)
    assert torch.allclose(slope(likelihood, z), slope(lambda z: own(decoder, z, x), z), rtol=0, atol=1e-9)


@pytest.mark.parametrize("prior", PRIORS)
def test_both_terms_under_every_prior(prior):
    vae = build_vae(X, D, hidden=(5,), prior=prior, pseudo_inputs=3, activation="tanh", seed=0).double()
    z, x = prior_and_data()
    fast, slow = (Target(vae.model, vae.guide, x, prepare=prepare) for prepare in (True, False))
    for mine, theirs in zip(fast.log_terms(z), slow.log_terms(z), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)
    assert torch.allclose(slope(fast.log_joint, z), slope(slow.log_joint, z), rtol=0, atol=1e-8)


def test_a_weight_that_cannot_see_all_of_its_input():
    """Dead hidden units and repeated columns: W'W is singular, and W = Q R still holds."""
    z, x = prior_and_data()
    decoder = GaussianDecoder(mlp(D, (5,), X), "fixed", 0.1).double()
    with torch.no_grad():
        decoder.net[-1].weight[:, 0] = 0.0
        decoder.net[-1].weight[:, 1] = decoder.net[-1].weight[:, 2]
    assert torch.allclose(decoder.prepare_likelihood(x)(z), own(decoder, z, x), rtol=0, atol=1e-9)


def test_hessians_pass_through():
    z, x = prior_and_data()
    decoder = GaussianDecoder(mlp(D, (5,), X, "tanh"), "fixed", 0.5).double()
    likelihood = decoder.prepare_likelihood(x[:1])
    found = torch.autograd.functional.hessian(lambda u: likelihood(u[None, None])[0, 0], z[0, 0])
    wanted = torch.autograd.functional.hessian(lambda u: own(decoder, u, x[0]), z[0, 0])
    assert torch.allclose(found, wanted)


# --- rounding ----------------------------------------------------------------------------------------------


def posterior_errors(scale: float, likelihoods) -> list[float]:
    """Largest errors over draws of the posterior (Laplace's, in float64) of (decoder, x, mode) -> log p(x | z)."""
    torch.manual_seed(0)
    decoder = GaussianDecoder(mlp(D, (400,), 784), "fixed", scale)
    z = torch.randn(N, D)
    x = decoder(z).sample()
    exact = copy.deepcopy(decoder).double()

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        return own(exact, z, x.double()) - 0.5 * z.square().sum(-1)

    information = torch.stack(
        [torch.autograd.functional.jacobian(lambda u: exact(u).mean, u) for u in z.double()]
    )
    precision = torch.eye(D, dtype=F64) + information.mT @ information / scale**2
    fitted = laplace.fit_laplace(
        hmc.with_gradient(log_joint), lambda z: precision.expand(*z.shape[:-2], N, D, D), z.double()
    )
    noise = torch.randn(100, N, D, dtype=F64)
    draws, mode = laplace.unwhiten(fitted.gaussian, noise).float(), fitted.gaussian.loc.float()
    with torch.no_grad():
        wanted = own(exact, draws.double(), x.double())
        return [float((each(decoder, x, mode)(draws) - wanted).abs().max()) for each in likelihoods]


def multiplied_out(decoder, x, _):
    """Planted mutant: |y|^2 - 2 y'Wh + h'W'Wh in float32, whose terms cancel."""
    *layers, last = decoder.net
    scale = decoder.noise()
    weight, y = last.weight / scale, (x - last.bias) / scale
    square, gram, constant = (
        y.square().sum(-1),
        weight.mT @ weight,
        x.shape[1] * (scale * math.sqrt(2 * math.pi)).log(),
    )

    def likelihood(z):
        h = nn.Sequential(*layers)(z)
        return -0.5 * (square - 2 * (h * (y @ weight)).sum(-1) + (h @ gram * h).sum(-1)) - constant

    return likelihood


@pytest.mark.parametrize("scale", [0.1, 0.01, 0.001])
def test_float32_stays_within_a_hundredth_of_a_nat_over_posterior_draws(scale):
    found, expanded, generic, mutant = posterior_errors(
        scale,
        [
            lambda decoder, x, _: decoder.prepare_likelihood(x),
            lambda decoder, x, mode: decoder.prepare_likelihood(x, mode),
            lambda decoder, x, _: lambda z: own(decoder, z, x),
            multiplied_out,
        ],
    )
    assert found < 0.01
    assert expanded < 0.01
    assert found < 3 * generic
    assert scale > 0.01 or mutant > 0.01


# --- expanded about a z ------------------------------------------------------------------------------------


def trained(noise: float = 0.1) -> tuple[torch.Tensor, Target]:
    """Draws near the posterior, and the target that they are of."""
    torch.manual_seed(0)
    vae = build_vae(X, D, hidden=(32,), noise="fixed", scale=noise, seed=0)
    truth = torch.randn(N, D)
    target = Target(vae.model, vae.guide, vae.decoder(truth).sample())
    return truth + noise * torch.randn(3, N, D), target


def test_near_draws_the_gradient_takes_one_product_instead_of_two():
    draws, target = trained()
    products = []
    for some in (target, target.near(draws)):
        with Sizes() as sizes:
            hmc.with_gradient(some.log_joint)(draws)
        products.append(sum(name.startswith(("aten.mm", "aten.addmm")) for name, _ in sizes.seen))
    assert products[1] < products[0]
    for mine, theirs in zip(*map(value_and_gradient_at(draws), (target, target.near(draws))), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def value_and_gradient_at(z: torch.Tensor):
    return lambda target: hmc.with_gradient(target.log_joint)(z)


def test_some_rows_are_expanded_about_their_own_draws():
    draws, target = trained()
    whole, few = target.near(draws), target.near(draws).rows([3, 1])
    torch.testing.assert_close(few.log_joint(draws[:, [3, 1]]), whole.log_joint(draws)[:, [3, 1]])
    torch.testing.assert_close(few.split(1)[1].log_joint(draws[:, [1]]), whole.log_joint(draws)[:, [1]])


def test_samplers_expand_about_where_chains_stand(monkeypatch):
    centres, expand = [], collapsed.expand
    monkeypatch.setattr(collapsed, "expand", lambda *args: centres.append(args[2]) or expand(*args))
    _, target = trained()
    tree = sample_posterior(target, num_chains=8, num_samples=20, warmup_steps=60)
    decoder = target.model.__self__.decoder
    mean = torch.from_numpy(tree["posterior"]["z"].values).mean((0, 1))
    assert centres
    torch.testing.assert_close(centres[-1], nn.Sequential(*decoder.net[:-1])(mean), rtol=0.0, atol=0.5)


def test_second_derivatives_pass_through_an_expansion():
    draws, target = trained()
    z = draws[0, :1]
    for some in (target.rows([0]), target.near(draws).rows([0])):
        found = torch.autograd.functional.hessian(lambda u, some=some: some.log_joint(u[None])[0, 0], z)
        wanted = torch.autograd.functional.hessian(
            lambda u: Target(target.model, target.guide, *target.rows([0]).data, prepare=False).log_joint(
                u[None]
            )[0, 0],
            z,
        )
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)


# --- cost --------------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The sizes of all axes of all tensors that any operation takes or gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        self.seen += [(str(func), size) for t in leaves if isinstance(t, torch.Tensor) for size in t.shape]
        return result


def sizes(data_dim: int, prepare: bool = True, is_traced: bool = False) -> list[tuple[str, int]]:
    torch.manual_seed(0)
    vae = build_vae(data_dim, D, hidden=(16,), noise="per-dimension", seed=0)
    target = Target(vae.model, vae.guide, torch.randn(N, data_dim), prepare=prepare)
    density = hmc.with_gradient(target.log_joint)
    if is_traced:
        density = compiled.traced(density, (torch.zeros(K, N, D),), (torch.ones(K, N, D),))
        assert density.route == "traced"
    density(torch.zeros(K, N, D))
    with Sizes() as sizes:
        density(torch.randn(K, N, D))
    return sizes.seen


@pytest.mark.parametrize("is_traced", [False, True])
def test_no_operation_sees_the_size_of_the_data(is_traced):
    few, many = sizes(100, is_traced=is_traced), sizes(10_000, is_traced=is_traced)
    assert few == many
    assert len(few) > 20
    assert max(size for _, size in many) < 100
    assert 10_000 in {size for _, size in sizes(10_000, prepare=False)}


def test_the_last_layer_is_factored_once_for_all_data_and_forgotten_with_it(monkeypatch):
    calls = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *args: calls.append(1) or qr(*args))
    vae = build_vae(X, D, hidden=(5,), seed=0)
    target = Target(vae.model, vae.guide, torch.randn(N, X))
    z = torch.randn(K, N, D)
    for part, some in zip(target.split(2), z.split(2, 1), strict=True):
        part.log_joint(some)
    target.rows([1, 0]).log_joint(z[:, :2])
    target.with_data(torch.randn(N, X)).log_joint(z)
    assert len(calls) == 1
    last = vae.decoder.net[-1]
    assert last in collapsed._ROOTS
    size = len(collapsed._ROOTS)
    del vae, target, part, last
    gc.collect()
    assert len(collapsed._ROOTS) < size


# --- parameters that change --------------------------------------------------------------------------------


def replace_last(vae):
    vae.decoder.net[-1] = nn.Linear(5, X).double()


def replace_weight(vae):
    vae.decoder.net[-1].weight = nn.Parameter(torch.randn(X, 5, dtype=F64))


def replace_hidden(vae):
    vae.decoder.net[1] = nn.Softplus()


def other_storage(vae):
    vae.decoder.net[-1].weight.data = torch.randn(X, 5, dtype=F64)


def train(vae):
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.1)
    vae.decoder(torch.randn(9, D, dtype=F64)).log_prob(torch.zeros(9, X, dtype=F64)).sum().backward()
    optimizer.step()


def load(vae):
    vae.load_state_dict(build_vae(X, D, hidden=(5,), noise="per-dimension", seed=1).double().state_dict())


def in_place(path):
    def change(vae):
        with torch.no_grad():
            vae.get_parameter(path).mul_(1.5).add_(0.1)

    return change


CHANGES = {
    **{
        path: in_place(path)
        for path in ("decoder.net.0.weight", "decoder.net.2.weight", "decoder.net.2.bias")
    },
    "noise": in_place("decoder.noise.log_scale"),
    "one number": lambda vae: vae.decoder.net[-1].weight.detach()[3, 1].add_(1.0),
    "replaced last layer": replace_last,
    "replaced weight": replace_weight,
    "replaced hidden layer": replace_hidden,
    "other storage": other_storage,
    "a step of training": train,
    "load_state_dict": load,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_seen(change):
    torch.manual_seed(0)
    vae = build_vae(X, D, hidden=(5,), noise="per-dimension", seed=0).double()
    z, x = prior_and_data()
    target, generic = (Target(vae.model, vae.guide, x, prepare=prepare) for prepare in (True, False))
    before = target.log_joint(z)
    CHANGES[change](vae)
    after = target.log_joint(z)
    assert torch.allclose(after, generic.log_joint(z), rtol=0, atol=1e-9)
    assert (after - before).abs().max() > 1e-3


def test_closed_form_noise_and_data_that_change_are_seen():
    z, x = prior_and_data()
    decoder = GaussianDecoder(mlp(D, (5,), X), "optimal").double()
    likelihood = decoder.prepare_likelihood(x)
    likelihood(z)
    decoder.update_noise([(x, z[0])])
    assert torch.allclose(likelihood(z), own(decoder, z, x))
    x.add_(1.0)
    assert torch.allclose(likelihood(z), own(decoder, z, x))


@pytest.mark.parametrize("path", ["net.2.weight", "net.2.bias", "noise.log_scale"])
def test_a_change_that_torch_does_not_count_gives_nan_and_no_wrong_number(path):
    z, x = prior_and_data()
    decoder = GaussianDecoder(mlp(D, (5,), X)).double()
    likelihood = decoder.prepare_likelihood(x)
    assert likelihood(z).isfinite().all()
    decoder.get_parameter(path).data.add_(0.1)
    assert likelihood(z).isnan().all()
    assert torch.allclose(decoder.prepare_likelihood(x)(z), own(decoder, z, x))


def test_a_net_that_stops_ending_in_a_linear_layer_is_refused():
    z, x = prior_and_data()
    decoder = GaussianDecoder(mlp(D, (5,), X)).double()
    likelihood = decoder.prepare_likelihood(x)
    decoder.net.append(nn.Tanh())
    with pytest.raises(ValueError, match="had a linear last layer and has none now: make a new Target"):
        likelihood(z)


def test_the_copy_of_a_target_follows_its_own_copy_of_the_model():
    vae = build_vae(X, D, hidden=(5,), seed=0).double()
    z, x = prior_and_data()
    target = Target(vae.model, vae.guide, x)
    before = target.log_joint(z)
    other = copy.deepcopy(target)
    in_place("decoder.net.2.weight")(other.model.__self__)
    assert (other.log_joint(z) - before).abs().max() > 1e-3
    assert torch.equal(target.log_joint(z), before)


# --- gradients in parameters, modes, tracing ---------------------------------------------------------------


@pytest.mark.parametrize("prior", ["gaussian", "vamp"])
def test_no_parameter_takes_a_gradient_and_all_stay_parameters(prior):
    vae = build_vae(X, D, hidden=(5,), prior=prior, pseudo_inputs=3, seed=0).double()
    z, x = prior_and_data()
    before = dict(vae.named_parameters())
    value = Target(vae.model, vae.guide, x).log_joint(z.requires_grad_())
    value.sum().backward()
    assert z.grad.any()
    after = dict(vae.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is p and p.grad is None and p.requires_grad for name, p in before.items())


def test_a_layer_that_is_used_twice_stays_as_it_is():
    z, x = prior_and_data()
    layer = nn.Linear(D, D)
    decoder = GaussianDecoder(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(D, X))).double()
    weight = layer.weight
    found = decoder.prepare_likelihood(x)(z.requires_grad_())
    assert torch.allclose(found, own(decoder, z, x))
    assert layer.weight is weight
    assert isinstance(weight, nn.Parameter)


def test_what_is_prepared_in_inference_mode_serves_gradients():
    z, x = prior_and_data()
    decoder = GaussianDecoder(mlp(D, (5,), X)).double()
    likelihood = decoder.prepare_likelihood(x)
    with torch.inference_mode():
        likelihood(z)
    assert torch.allclose(slope(likelihood, z), slope(lambda z: own(decoder, z, x), z))


def value_and_gradient(target: Target):
    return hmc.with_gradient(target.log_joint)


@pytest.mark.parametrize("route", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_it_can_be_traced_and_sees_what_training_does(route):
    vae = build_vae(X, D, hidden=(5,), prior="gaussian", seed=0).double()
    z, x = prior_and_data()
    target = Target(vae.model, vae.guide, x)
    make = getattr(compiled, route)
    program = make(value_and_gradient(target), (z,), (z + 1,))
    assert program.route == route
    for mine, theirs in zip(program(2 * z), value_and_gradient(target)(2 * z), strict=True):
        assert torch.allclose(mine, theirs)
    with torch.no_grad():
        vae.decoder.net[0].weight.add_(0.1)
        vae.prior.loc.add_(0.1)
    for mine, theirs in zip(program(z), value_and_gradient(target)(z), strict=True):
        assert torch.allclose(mine, theirs)
    with torch.no_grad():
        vae.decoder.net[-1].weight.add_(0.1)
    assert program(z)[0].isnan().all()
    again = make(value_and_gradient(target), (z,), (z + 1,))
    assert torch.allclose(again(z)[0], Target(vae.model, vae.guide, x, prepare=False).log_joint(z))


# --- what is left to the decoder ---------------------------------------------------------------------------


class Positive(nn.Sequential):
    def forward(self, z):
        return super().forward(z).exp()


def test_a_decoder_that_cannot_says_so():
    x = torch.randn(N, 6)
    last = nn.Linear(5, 6)
    hidden = [nn.Linear(D, 5), nn.Tanh()]
    cannot = {
        "heteroscedastic": GaussianDecoder(mlp(D, (5,), 12), "heteroscedastic"),
        "as wide as x": GaussianDecoder(mlp(D, (5,), 6), "heteroscedastic"),
        "student-t": StudentTDecoder(mlp(D, (5,), 6)),
        "another end": GaussianDecoder(nn.Sequential(nn.Linear(D, 6), nn.Sigmoid())),
        "a subclass": GaussianDecoder(Positive(*hidden, last)),
        "parametrized": GaussianDecoder(nn.Sequential(*hidden, spectral_norm(nn.Linear(5, 6)))),
        "empty": GaussianDecoder(nn.Sequential()),
        "other data": GaussianDecoder(mlp(D, (5,), 7)),
    }
    assert {name: decoder.prepare_likelihood(x) for name, decoder in cannot.items()} == dict.fromkeys(cannot)
    assert GaussianDecoder(mlp(D, (5,), 6)).prepare_likelihood(x.reshape(N, 2, 3)) is None
    assert not hasattr(BernoulliDecoder(mlp(D, (5,), 6)), "prepare_likelihood")
    assert LinearGaussianDecoder(6, D).prepare_likelihood(x) is not None


@pytest.mark.parametrize(
    "options",
    [{"noise": "heteroscedastic"}, {"network": "conv", "channels": (2,)}, {"decoder": "student-t"}],
    ids=str,
)
def test_such_a_vae_runs_as_ever(options):
    vae = build_vae(16, D, hidden=(5,), seed=0, **options).double()
    x, z = torch.randn(N, 16, dtype=F64), torch.randn(K, N, D, dtype=F64)
    assert vae.prepare_terms(x) is None
    target = Target(vae.model, vae.guide, x)
    assert torch.equal(target.log_joint(z), Target(vae.model, vae.guide, x, prepare=False).log_joint(z))


def test_data_are_checked_at_the_door():
    vae = build_vae(X, D, seed=0)
    with pytest.raises(TypeError, match=r"torch\.float32 and the data are torch\.float64"):
        vae.prepare_terms(torch.zeros(3, X, dtype=F64))
    with pytest.raises(ValueError, match=r"data of shape \[n, 7\], got \[3, 4\]"):
        vae.prepare_terms(torch.zeros(3, 4))


def test_a_decoder_of_ones_own_that_computes_something_else_is_found_out():
    class Clipped(GaussianDecoder):
        def forward(self, z):
            return super().forward(z.clamp(-0.5, 0.5))

    vae = VAE(StandardNormal(D), Clipped(mlp(D, (5,), X)), DiagonalGaussian(mlp(X, (5,), 2 * D)))
    with pytest.warns(UserWarning, match=r"VAE.prepare_terms departs from the model's own log p\(x \| z\)"):
        Target(vae.model, vae.guide, torch.randn(N, X))


# --- through the measurements ------------------------------------------------------------------------------


def test_evidence_and_hmc_are_the_same_with_and_without():
    vae = build_vae(X, D, hidden=(5,), activation="tanh", noise="fixed", scale=0.5, seed=0).double()
    _, x = prior_and_data()
    fast, slow = (Target(vae.model, vae.guide, x, prepare=prepare) for prepare in (True, False))
    for method in ("elbo", "iwae"):
        mine, theirs = (log_evidence(t, method, num_samples=50, seed=0).value for t in (fast, slow))
        assert torch.allclose(torch.as_tensor(mine), torch.as_tensor(theirs), rtol=0, atol=1e-9)
    settings = {"num_chains": 2, "num_samples": 20, "warmup_steps": 20, "seed": 0}
    mine, theirs = (sample_posterior(t, method="hmc", **settings)["posterior"]["z"] for t in (fast, slow))
    for moment in ("mean", "std"):
        found, wanted = (getattr(z, moment)(("chain", "draw")).values for z in (mine, theirs))
        assert abs(found - wanted).max() < 1e-6
