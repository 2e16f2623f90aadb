"""Terms that a model's owner prepares: taken by Target where they are the model's own, and only there."""

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.models.vae import VAE, build_vae
from pyrovae.target import Target
from pyrovae.target.likelihood import PreparedTermsWarning

N, D = 5, 2
Terms = tuple[torch.Tensor, torch.Tensor]


class Owner:
    """z ~ N(0, I), x | z ~ N(z, 1), with terms in closed form, bent by `bend`; counts the runs of its model."""

    def __init__(self, bend: Callable[[torch.Tensor, Terms], Terms] = lambda z, terms: terms) -> None:
        self.bend, self.runs, self.prepared = bend, 0, 0

    def model(self, x):
        self.runs += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def prepare_terms(self, x):
        self.prepared += 1
        unit = dist.Normal(x.new_zeros(D), 1.0).to_event(1)
        return lambda z: self.bend(z, (unit.log_prob(z), unit.log_prob(x - z)))


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


def data(dtype: torch.dtype = torch.float32, num_data: int = N) -> torch.Tensor:
    return torch.randn(num_data, D, generator=torch.Generator().manual_seed(0)).to(dtype)


def draws(dtype: torch.dtype = torch.float32, num_data: int = N) -> torch.Tensor:
    return torch.randn(3, num_data, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def add(prior: float, likelihood: float):
    return lambda z, terms: (terms[0] + prior, terms[1] + likelihood)


def test_an_honest_owner_is_asked_instead_of_the_model():
    owner, x, z = Owner(), data(), draws()
    target = Target(owner.model, guide, x)
    owner.runs = 0
    terms = target.log_terms(z)
    assert owner.runs == 0
    for mine, theirs in zip(terms, Target(owner.model, guide, x, prepare=False).log_terms(z), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    owner.runs = 0
    target.expected_data(z)
    target.curvature(z)
    target.sample_prior(2)
    assert owner.runs > 2


def test_prepare_false_runs_the_model_whatever_its_owner_says():
    owner = Owner(add(0.0, 5.0))
    target = Target(owner.model, guide, data(), prepare=False)
    assert owner.prepared == 0
    owner.runs = 0
    target.log_joint(draws())
    assert owner.runs == 1


def test_terms_are_prepared_once_for_some_data_and_only_where_they_are_used():
    owner = Owner()
    target = Target(owner.model, guide, data())
    owner.prepared = 0
    parts = target.split(2)
    target.guide_mean()
    assert owner.prepared == 0
    for part in parts:
        part.log_joint(draws()[:, : part.num_data])
        part.log_joint(draws()[:, : part.num_data])
    assert owner.prepared == len(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_split_and_other_data(dtype):
    x, z = data(dtype), draws(dtype)
    fast, slow = (Target(Owner().model, guide, x, prepare=prepare) for prepare in (True, False))
    whole = fast.log_joint(z)
    index = torch.tensor([3, 0, 0])
    assert torch.allclose(fast.rows(index).log_joint(z[:, index]), whole[:, index])
    blocks = [part.log_joint(some) for part, some in zip(fast.split(2), z.split(2, 1), strict=True)]
    assert torch.allclose(torch.cat(blocks, 1), whole)
    other = torch.randn(N, D).to(dtype)
    assert torch.allclose(fast.with_data(other).log_joint(z), slow.with_data(other).log_joint(z), atol=1e-5)
    assert torch.equal(fast.log_joint(z), whole)


def far_only(z, terms):
    return terms[0], torch.where(z.norm(dim=-1) > 2.5, terms[1] + 0.1, terms[1])


def one_datum(z, terms):
    return terms[0], terms[1] + 0.1 * torch.nn.functional.one_hot(torch.tensor(2), z.shape[1])


WRONG = {
    "likelihood by 0.1 nat": (add(0.0, 0.1), r"log p\(x \| z\) by 0\.1 nats"),
    "likelihood by 0.02 nat": (add(0.0, 0.02), r"log p\(x \| z\) by 0\.02 nats"),
    "prior by 0.1 nat": (add(0.1, 0.0), r"log p\(z\) by 0\.1 nats"),
    "mistakes that cancel": (add(0.1, -0.1), "by 0.1 nats"),
    "for one datum": (one_datum, "by 0.1 nats"),
    "NaN": (add(0.0, float("nan")), "by inf nats"),
    "far from the guide": (far_only, "by 0.1 nats"),
    "wrong way round": (lambda z, terms: terms[::-1], "nats at draws of the guide or the prior"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_an_owner_that_is_wrong_is_left_out_with_one_warning(mistake):
    bend, message = WRONG[mistake]
    with pytest.warns(PreparedTermsWarning, match=f"Owner.prepare_terms departs.*{message}") as caught:
        target = Target(Owner(bend).model, guide, data())
    assert len(caught) == 1
    z = draws()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = Target(Owner().model, guide, data(), prepare=False)
        assert torch.equal(target.log_joint(z), right.log_joint(z))
        for part in target.split(2):
            part.log_joint(z[:, : part.num_data])


def test_double_precision_is_held_to_more():
    Target(Owner(add(0.0, 1e-3)).model, guide, data())
    with pytest.warns(PreparedTermsWarning, match="by 0.001 nats"):
        Target(Owner(add(0.0, 1e-3)).model, guide, data(torch.float64))


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_rounding_of_large_values_is_no_mistake(size):
    """Data `size` from all draws: log p(x | z) is as large as its square, and so is its rounding in float32."""
    x = data() + size
    rounding = (
        float(Target(Owner().model, guide, x, prepare=False).log_terms(draws()).log_likelihood.abs().max())
        * 1e-7
    )
    bend = add(0.0, max(0.005, rounding))
    assert Target(Owner(bend).model, guide, x)._prepared is not None
    with pytest.warns(PreparedTermsWarning):
        Target(Owner(add(0.0, max(0.1, 100 * rounding))).model, guide, x)


def test_an_owner_may_have_nothing_to_offer():
    class Silent(Owner):
        def prepare_terms(self, x):
            return None

    class Choosy(Owner):
        def prepare_terms(self, x):
            return None if len(x) == 3 else super().prepare_terms(x)

    z = draws()
    expected = Target(Owner().model, guide, data(), prepare=False).log_joint(z)
    assert torch.equal(Target(Silent().model, guide, data()).log_joint(z), expected)
    owner = Choosy()
    target = Target(owner.model, guide, data())
    owner.runs = 0
    assert torch.allclose(target.rows(range(3)).log_joint(z[:, :3]), expected[:, :3], atol=1e-5)
    assert owner.runs == 1


def test_a_shape_that_is_wrong_is_refused_here_too():
    target = Target(Owner().model, guide, data())
    with pytest.raises(ValueError, match=r"shape \[K, N, D\] = \[K, 5, 2\], not \[3, 4, 2\]"):
        target.log_joint(draws()[:, :4])


def test_everything_is_detached_unless_z_asks_for_a_gradient():
    weight = torch.ones((), requires_grad=True)
    target = Target(Owner(lambda z, terms: (terms[0] * weight, terms[1])).model, guide, data())
    assert not target.log_joint(draws()).requires_grad
    z = draws().requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_joint(z).sum(), z)
    assert torch.allclose(gradient, (target.data[0] - 2 * z).detach(), atol=1e-5)


class Rate:
    """r ~ Gamma(3, 2), x | r ~ Poisson(r): the owner speaks of z = log r, with the Jacobian in log p(z)."""

    def __init__(self, jacobian: float = 1.0) -> None:
        self.jacobian = jacobian

    def model(self, x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(3.0), x.new_tensor(2.0)))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(3.0 + x, x.new_tensor(3.0)))

    def prepare_terms(self, x):
        prior = dist.Gamma(x.new_tensor(3.0), x.new_tensor(2.0))

        def terms(z):
            rate = z[..., 0].exp()
            return prior.log_prob(rate) + self.jacobian * z[..., 0], dist.Poisson(rate).log_prob(x)

        return terms


def test_a_positive_latent():
    x, owner = torch.arange(4.0, dtype=torch.float64), Rate()
    fast, slow = (Target(owner.model, owner.guide, x, prepare=prepare) for prepare in (True, False))
    z = torch.randn(3, 4, 1, dtype=torch.float64)
    for mine, theirs in zip(fast.log_terms(z), slow.log_terms(z), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)
    with pytest.warns(PreparedTermsWarning, match=r"log p\(z\)"):
        Target(Rate(0.0).model, owner.guide, x)


def test_a_vae_whose_model_was_overridden_is_left_out():
    class Wider(VAE):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(D), 2.0).to_event(1))
                pyro.sample("x", self.decoder(z), obs=x)

    base = build_vae(4, D, hidden=(3,), seed=0)
    vae = Wider(base.prior, base.decoder, base.encoder)
    with pytest.warns(PreparedTermsWarning, match="Wider.prepare_terms"):
        Target(vae.model, vae.guide, torch.randn(N, 4))


class OwnerNear(Owner):
    """The same, with terms for z near a given one that are off by `error` nats."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def prepare_terms(self, x, near=None):
        terms = super().prepare_terms(x)
        return terms if near is None else lambda z: add(0.0, self.error)(z, terms(z))


@pytest.mark.parametrize(("error", "is_taken"), [(0.001, True), (0.02, False)])
def test_a_faster_way_near_some_draws_is_taken_where_it_is_as_right(error, is_taken):
    owner, z = OwnerNear(error), draws()
    target = Target(owner.model, guide, data())
    off = target.near(z).log_joint(z) - target.log_joint(z)
    assert (off.abs().max() > error / 2) == is_taken


def test_without_a_faster_way_the_terms_stay_as_they_are():
    owner, z = Owner(), draws()
    target = Target(owner.model, guide, data())
    torch.testing.assert_close(target.near(z).log_joint(z), target.log_joint(z), rtol=0.0, atol=0.0)
    plain = Target(owner.model, guide, data(), prepare=False)
    torch.testing.assert_close(plain.near(z).log_joint(z), plain.log_joint(z), rtol=0.0, atol=0.0)
