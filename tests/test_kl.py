import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from chance import means_agree
from torch.distributions import kl_divergence

from pyrovae.training.kl import gaussian_kl, has_closed_form, register_gaussian_kl

F64 = torch.float64
D = 3


@pytest.fixture(autouse=True)
def registered():
    register_gaussian_kl()


def normal(generator, batch):
    loc = torch.randn(*batch, D, generator=generator, dtype=F64)
    return dist.Normal(loc, 0.5 + torch.rand(*batch, D, generator=generator, dtype=F64)).to_event(1)


def full(generator, batch):
    tril = torch.randn(*batch, D, D, generator=generator, dtype=F64).tril(-1) + torch.eye(D)
    return dist.MultivariateNormal(normal(generator, batch).mean, scale_tril=tril)


def low_rank(generator, batch):
    factor = torch.randn(*batch, D, 2, generator=generator, dtype=F64)
    loc = normal(generator, batch).mean
    return dist.LowRankMultivariateNormal(loc, factor, 0.3 + normal(generator, batch).variance)


GUIDES = {"normal": normal, "full": full, "low rank": low_rank}
PRIORS = {"normal": normal, "full": full}
PAIRS = [(guide, prior) for guide in GUIDES for prior in PRIORS]
MISSING = {("full", "normal"), ("low rank", "normal")}  # in torch and Pyro


def pair(guide, prior, guide_batch=(4,), prior_batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return GUIDES[guide](generator, guide_batch), PRIORS[prior](generator, prior_batch)


def covariance(p):
    return torch.diag_embed(p.variance) if isinstance(p, dist.Independent) else p.covariance_matrix


def formula(p, q):
    """1/2 [tr(S^-1 C) + (m - mu)' S^-1 (m - mu) - D + log |S|/|C|]."""
    precision, difference = torch.linalg.inv(covariance(q)), q.mean - p.mean
    trace = (precision @ covariance(p)).diagonal(dim1=-2, dim2=-1).sum(-1)
    square = torch.einsum("...i,...ij,...j->...", difference, precision, difference)
    return 0.5 * (trace + square - D + torch.logdet(covariance(q)) - torch.logdet(covariance(p)))


def agrees_with_formula(kl, p, q):
    return torch.allclose(kl(p, q), formula(p, q), atol=1e-10, rtol=0)


def agrees_with_draws(kl, p, q, seed=0):
    torch.manual_seed(seed)
    z = p.sample((20000,))
    return means_agree(p.log_prob(z) - q.log_prob(z), kl(p, q))


MUTANTS = {
    "trace term dropped": lambda p, q: kl_divergence(p, q) - 0.5 * (p.variance / q.variance).sum(-1),
    "arguments swapped": lambda p, q: formula(q, p),
    "variance for scale": lambda p, q: (
        kl_divergence(p, q) + 0.5 * (p.variance * (1 / q.variance**2 - 1 / q.variance)).sum(-1)
    ),
    "factor 1/2 of the log determinant lost": lambda p, q: (
        kl_divergence(p, q) + 0.5 * (torch.logdet(covariance(q)) - torch.logdet(covariance(p)))
    ),
}


@pytest.mark.parametrize(("guide", "prior"), PAIRS)
@pytest.mark.parametrize(
    ("guide_batch", "prior_batch"), [((4,), ()), ((), ()), ((4,), (4,)), ((2, 4), (4,)), ((2, 1), (1, 4))]
)
def test_every_pair_is_the_formula(guide, prior, guide_batch, prior_batch):
    p, q = pair(guide, prior, guide_batch, prior_batch)
    assert agrees_with_formula(kl_divergence, p, q)
    shape = torch.broadcast_shapes(guide_batch, prior_batch)
    assert kl_divergence(p, q).shape == shape


@pytest.mark.parametrize(("guide", "prior"), PAIRS)
def test_every_pair_agrees_with_draws(guide, prior):
    assert agrees_with_draws(kl_divergence, *pair(guide, prior))


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize(("guide", "prior"), sorted(MISSING))
def test_the_assertions_see_a_wrong_formula(guide, prior, mutant):
    p, q = pair(guide, prior)
    assert not agrees_with_formula(MUTANTS[mutant], p, q)
    assert not agrees_with_draws(MUTANTS[mutant], p, q)


@pytest.mark.parametrize(("guide", "prior"), PAIRS)
def test_every_pair_agrees_with_the_dense_one_of_torch(guide, prior):
    p, q = pair(guide, prior)
    dense = [dist.MultivariateNormal(f.mean, covariance(f)) for f in (p, q)]
    assert torch.allclose(kl_divergence(p, q), kl_divergence(*dense), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("guide", "prior"), PAIRS)
def test_a_distribution_expanded_by_a_plate(guide, prior):
    p, q = pair(guide, prior)
    assert agrees_with_formula(kl_divergence, p, q.expand([4]))
    assert agrees_with_formula(kl_divergence, p.expand([2, 4]), q.expand([2, 4]))


@pytest.mark.parametrize(("guide", "prior"), PAIRS)
def test_a_mask_on_both_sides(guide, prior):
    p, q = pair(guide, prior)
    mask = torch.tensor([True, False, True, True])
    kl = kl_divergence(p.mask(mask), q.expand([4]).mask(mask))
    assert torch.allclose(kl, formula(p, q) * mask, atol=1e-10, rtol=0)


def test_a_gaussian_against_itself_gives_nothing():
    p, _ = pair("full", "normal")
    diagonal = dist.MultivariateNormal(p.mean, torch.diag_embed(p.variance))
    assert gaussian_kl(diagonal, dist.Normal(p.mean, p.stddev).to_event(1)).abs().max() < 1e-12


def test_the_gradient_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.randn(4, n, generator=generator, dtype=F64).requires_grad_() for n in (D, D * D, D, D)]

    def gradients(kl):
        tril = leaves[1].reshape(4, D, D).tril(-1) + torch.eye(D)
        p = dist.MultivariateNormal(leaves[0], scale_tril=tril)
        q = dist.Normal(leaves[2], leaves[3].exp()).to_event(1)
        return torch.autograd.grad(kl(p, q).sum(), leaves)

    for one, two in zip(gradients(kl_divergence), gradients(formula), strict=True):
        assert torch.allclose(one, two, atol=1e-9)


def test_what_is_refused():
    p, q = pair("full", "normal")
    with pytest.raises(ValueError, match=r"one event shape, got \(3,\) and \(2,\)"):
        gaussian_kl(p, dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for other in (dist.Laplace(q.mean, 1.0).to_event(1), dist.StudentT(3.0).expand([3]).to_event(1)):
        assert not has_closed_form(p, other)
    assert has_closed_form(p, q)


def test_it_is_registered_when_the_objective_is_made_and_not_before():
    code = """
from torch.distributions.kl import _KL_REGISTRY
import pyro, pyro.infer
before = dict(_KL_REGISTRY)
import pyrovae.training.fit, pyrovae.training.kl, pyrovae.models.vae
from pyrovae.training.objectives import make_objective
make_objective("elbo")
assert _KL_REGISTRY == before
make_objective("analytic_kl")
new = dict(_KL_REGISTRY)
make_objective("analytic_kl")
assert _KL_REGISTRY == new
print(sorted((p.__name__, q.__name__) for p, q in set(new) - set(before)))
assert all(new[key] is before[key] for key in before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(
        [("LowRankMultivariateNormal", "Independent"), ("MultivariateNormal", "Independent")]
    )
