"""Contracts of every part and of every combination of parts that `build_vae` makes."""

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from chance import means_agree
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.networks import mlp
from pyrovae.models.noise import NOISES
from pyrovae.models.priors import VampPrior
from pyrovae.models.vae import DECODERS, ENCODERS, PRIORS, REFUSED, VAE, build_vae
from pyrovae.target import Target
from pyrovae.training.checkpoint import load, save
from pyrovae.training.fit import fit

OPTIONS = {"hidden": (5,), "activation": "tanh", "components": 3, "encoder_components": 2, "pseudo_inputs": 3}
LIKELIHOODS = [
    (decoder, noise)
    for decoder in DECODERS
    for noise in ([None] if decoder == "bernoulli" else NOISES)
    if (("decoder", decoder), ("noise", noise)) not in REFUSED
]
NO_GRADIENT = {  # parts of combinations that a gradient does not reach, and why
    ("linear", "laplace"): "encoder.init.",  # one Gauss-Newton step from anywhere gives the posterior itself
}


def rows(decoder: str, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return (x > 0).float() if decoder == "bernoulli" else x


def build(prior: str = "standard", decoder: str = "gaussian", noise: str | None = None, **options) -> VAE:
    names = {"prior": prior, "decoder": decoder, "noise": noise}
    return build_vae(4, 2, **OPTIONS | {"data": rows(decoder), "seed": 0} | names | options)


def is_refused(prior: str, decoder: str, noise: str | None, encoder: str) -> bool:
    names = {"prior": prior, "decoder": decoder, "noise": noise, "encoder": encoder}
    return any(all(names[what] == name for what, name in pair) for pair in REFUSED)


def combinations() -> Iterator[tuple[str, str, str | None, str]]:
    for prior, (decoder, noise), encoder in itertools.product(PRIORS, LIKELIHOODS, ENCODERS):
        if not is_refused(prior, decoder, noise, encoder):
            yield prior, decoder, noise, encoder


# Each part alone: what its distribution is, at parameters away from where they start.

PARTS = [("prior", name) for name in PRIORS] + [("encoder", name) for name in ENCODERS]


def moved(vae: VAE, size: float = 0.1, seed: int = 1) -> VAE:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))
    return vae


def distribution(vae: VAE, part: str) -> Distribution:
    """The part's distribution of one z."""
    with torch.no_grad():
        return vae.prior() if part == "prior" else vae.encoder(rows("gaussian", 1).double()[0:1])


def plane(half_width: float = 10.0, count: int = 501) -> tuple[Tensor, float]:
    axis = torch.linspace(-half_width, half_width, count, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def density(p: Distribution, z: Tensor) -> Tensor:
    with torch.no_grad():
        return p.log_prob(z[:, None] if p.batch_shape else z).reshape(len(z)).exp()


def waves(z: Tensor) -> Tensor:
    """Bounded functions of z `[n, 2]` that see location, spread and dependence."""
    phases = z @ torch.tensor([[1.0, 0.0, 0.7, 0.7], [0.0, 1.0, 0.7, -0.7]], dtype=z.dtype)
    return torch.cat([phases.cos(), phases.sin()], 1)


@pytest.mark.parametrize(("part", "name"), PARTS)
def test_density_integrates_to_one_and_draws_follow_it(part: str, name: str) -> None:
    size = 0.04 if name in ("flow", "spline") else 0.2  # they have many parameters, which add up
    p = distribution(moved(build(**{part: name}), size).double(), part)
    grid, cell = plane()
    mass = density(p, grid) * cell
    assert mass.sum().item() == pytest.approx(1, abs=2e-3)
    expected = (waves(grid) * mass[:, None]).sum(0)
    for seed in range(3):
        torch.manual_seed(seed)
        draws = p.sample((20_000,)).reshape(-1, 2)
        assert means_agree(waves(draws), expected)
        assert not means_agree(
            waves(1.1 * draws), expected
        )  # planted: draws of another width than the density


@pytest.mark.parametrize(("part", "name"), PARTS)
def test_shapes_of_the_latent_parts(part: str, name: str) -> None:
    vae = build(**{part: name})
    if part == "prior":
        p, batch = vae.prior(), ()
    else:
        p, batch = vae.encoder(rows("gaussian", 5)), (5,)
    assert (tuple(p.batch_shape), tuple(p.event_shape)) == (batch, (2,))
    z = p.sample((3,))
    assert z.shape == (3, *batch, 2)
    assert p.log_prob(z).shape == p.log_prob(torch.zeros(3, *batch, 2)).shape == (3, *batch)


@pytest.mark.parametrize(("decoder", "noise"), LIKELIHOODS)
def test_likelihoods_are_normalized_and_draws_follow_them(decoder: str, noise: str | None) -> None:
    vae = moved(build_vae(2, 2, **OPTIONS, decoder=decoder, noise=noise, scale=0.8, seed=0)).double()
    with torch.no_grad():
        p = vae.decoder(torch.tensor([[0.5, -0.3]], dtype=torch.float64))
    assert (tuple(p.batch_shape), tuple(p.event_shape)) == ((1,), (2,))
    if decoder == "bernoulli":
        grid, cell = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 2), 1.0
    else:
        grid, cell = plane(40.0, 1601)
    mass = density(p, grid) * cell
    assert mass.sum().item() == pytest.approx(1, abs=2e-3)
    torch.manual_seed(0)
    draws = p.sample((20_000,)).reshape(-1, 2)
    expected = (waves(grid) * mass[:, None]).sum(0) / mass.sum()  # a Student-t has some mass beyond the grid
    assert means_agree(waves(draws), expected)
    assert not means_agree(waves(1.1 * draws), expected)


@pytest.mark.parametrize(("part", "name"), [*PARTS, *[("decoder", name) for name in DECODERS]])
def test_double_and_state(part: str, name: str) -> None:
    vae, other = moved(build(**{part: name})).double(), build(**{part: name}, seed=3).double()
    x = rows(name).double()
    other.load_state_dict(vae.state_dict())
    for one in (vae, other):
        torch.manual_seed(0)
        one.loss = Trace_ELBO().loss(one.model, one.guide, x)
        assert one.prior().sample().dtype == one.encoder(x).sample().dtype == torch.float64
        assert one.decoder(torch.zeros(3, 2).double()).sample().dtype == torch.float64
    assert vae.loss == other.loss


# All combinations.


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("decoder", "noise"), LIKELIHOODS)
def test_exactly_the_pairs_of_the_table_are_refused(prior: str, decoder: str, noise: str | None) -> None:
    for encoder in ENCODERS:
        if is_refused(prior, decoder, noise, encoder):
            with pytest.raises(ValueError, match="do not go together: .*; choose another"):
                build(prior, decoder, noise, encoder=encoder)
        else:
            build(prior, decoder, noise, encoder=encoder)


@pytest.mark.parametrize("pair", REFUSED, ids=str)
def test_every_pair_of_the_table_is_refused(pair: tuple[tuple[str, str], tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        build(**dict(pair))


def test_a_vamp_prior_by_hand_refuses_an_encoder_that_does_not_broadcast() -> None:
    class Elementwise(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value.reshape(self.batch_shape))

    class Encoder(nn.Linear):
        def forward(self, x: Tensor) -> Distribution:
            return Elementwise(super().forward(x), 1.0).to_event(1)

    with pytest.raises(ValueError, match="wants an encoder that scores any z at all pseudo-inputs at once"):
        VampPrior(Encoder(4, 2), torch.randn(3, 4))


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "laplace"])
def test_the_vamp_prior_is_the_mean_of_the_posteriors_at_the_pseudo_inputs(encoder: str) -> None:
    vae, z = moved(build("vamp", encoder=encoder)).double(), torch.randn(5, 2).double()
    with torch.no_grad():
        one_by_one = [vae.encoder(u).log_prob(z[:, None])[:, 0] for u in vae.prior.pseudo_inputs.split(1)]
        mean = torch.stack(one_by_one).exp().mean(0)
        torch.testing.assert_close(vae.prior().log_prob(z).exp(), mean, rtol=1e-6, atol=1e-12)


def test_a_vamp_prior_of_another_encoder_is_refused() -> None:
    encoder, other = DiagonalGaussian(mlp(4, (), 4)), DiagonalGaussian(mlp(4, (), 4))
    decoder = GaussianDecoder(mlp(2, (), 4))
    prior = VampPrior(encoder, torch.randn(3, 4))
    VAE(prior, decoder, encoder)
    with pytest.raises(ValueError, match="this one has another encoder, which would not be trained"):
        VAE(prior, decoder, other)


def one_step(vae: VAE, x: Tensor) -> list[str]:
    """Take one gradient step; the names of the parameters that got no gradient."""
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    torch.optim.Adam(vae.parameters(), lr=1e-3).step()
    return [n for n, p in vae.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]


def same(a: VAE, b: VAE) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def loss(vae: VAE, x: Tensor) -> float:
    torch.manual_seed(0)
    with pyro.get_param_store().scope(), torch.no_grad():
        return Trace_ELBO().loss(vae.model, vae.guide, x)


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("decoder", "noise"), LIKELIHOODS)
def test_every_combination_trains_saves_and_makes_a_target(
    prior: str, decoder: str, noise: str | None, tmp_path: Path
) -> None:
    x = rows(decoder)
    for encoder in ENCODERS:
        if is_refused(prior, decoder, noise, encoder):
            continue
        vae = build(prior, decoder, noise, encoder=encoder)
        exempt = NO_GRADIENT.get((decoder, encoder), "nothing")
        assert [name for name in one_step(vae, x) if not name.startswith(exempt)] == []
        vae.end_epoch(x)
        assert json.loads(json.dumps(vae.config)) == vae.config
        save(vae, tmp_path / "vae")
        for again in (load(tmp_path / "vae"), copy.deepcopy(vae)):
            assert same(vae, again)
            assert again.config == vae.config
            assert loss(again, x) == loss(vae, x)
        target = Target(vae.model, vae.guide, x)
        draws = target.sample_guide(2)
        assert target.can_score_guide
        assert torch.isfinite(target.log_joint(draws.z) - draws.log_q).all()
        assert torch.isfinite(target.curvature(draws.z)).all()
        assert target.simulate(3).data[0].shape == (3, 4)


def pair_cover() -> list[tuple[str, str, str | None, str]]:
    """Combinations, chosen greedily, in which every pair of parts that can work occurs."""
    pairs = {c: {(c[0], c[3]), (c[0], c[1:3]), (c[3], c[1:3])} for c in combinations()}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(pairs, key=lambda c: len(pairs[c] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("combination", pair_cover(), ids=lambda c: "-".join(map(str, c)))
def test_fits_of_a_cover_of_all_pairs_improve_the_elbo(combination: tuple[str, str, str | None, str]) -> None:
    prior, decoder, noise, encoder = combination
    x = rows(decoder, 64) + (0.0 if decoder == "bernoulli" else 2.0)
    vae = build(prior, decoder, noise, encoder=encoder)
    result = fit(vae.model, vae.guide, x, batch_size=32, max_epochs=12, lr=2e-2, num_particles=2)
    assert result.history["elbo"][-3:].mean() > result.history["elbo"][:2].mean()
