import pyro.distributions as dist
import pytest
import torch
from chance import means_agree
from torch import nn

from pyrovae.models import mixture_encoder
from pyrovae.models.encoders import GaussianMixtureEncoder
from pyrovae.models.mixture_encoder import ReparameterizedMixture

F64 = torch.float64


def parameters(dim, components=3, spread=1.0, dtype=F64):
    """Logits, locs and log scales of one mixture, each with a leading axis of one row."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, components, generator=generator, dtype=dtype)
    locs = spread * torch.randn(1, components, dim, generator=generator, dtype=dtype)
    return [logits, locs, 0.3 * torch.randn(1, components, dim, generator=generator, dtype=dtype)]


def mixture(logits, locs, log_scales):
    return ReparameterizedMixture(
        dist.Categorical(logits=logits), dist.Normal(locs, log_scales.exp()).to_event(1)
    )


def value(z):
    """A function with a known mean under a mixture: sum of z_i^2 and of the products of neighbours."""
    return z.square().sum(-1) + (z[..., 1:] * z[..., :-1]).sum(-1)


def mean_value(logits, locs, log_scales):
    weights = logits.softmax(-1)
    each = (locs.square() + (2 * log_scales).exp()).sum(-1) + (locs[..., 1:] * locs[..., :-1]).sum(-1)
    return (weights * each).sum()


def gradients_agree(draw, dim, seed=0):
    """Row-wise gradients in logits, locs and log scales against the exact ones, in any dimension."""
    exact = [p.requires_grad_() for p in parameters(dim)]
    expected = torch.autograd.grad(mean_value(*exact), exact)
    tiled = [p.detach().repeat(50_000, *[1] * (p.dim() - 1)).requires_grad_() for p in exact]
    torch.manual_seed(seed)
    found = torch.autograd.grad(value(draw(*tiled)).sum(), tiled)
    return all(means_agree(f, e[0]) for f, e in zip(found, expected, strict=True))


def by_component(logits, locs, log_scales):
    """Planted: the gradient of the chosen component alone, which misses that of the weights."""
    z = mixture(logits.detach(), locs.detach(), log_scales.detach()).component_distribution.sample()
    which = dist.Categorical(logits=logits).sample()[:, None, None].expand(-1, 1, z.shape[-1])
    chosen = [p.gather(-2, which).squeeze(-2) for p in (locs, log_scales)]
    return chosen[0] + chosen[1].exp() * torch.randn_like(chosen[0]) + 0 * logits.sum()


def without_chain(logits, locs, log_scales):
    """Planted: the earlier coordinates are held fixed in the weights of the later ones."""
    original = mixture_encoder._standardized
    mixture_encoder._standardized = lambda v, loc, scale: original(v.detach(), loc, scale)
    try:
        return mixture(logits, locs, log_scales).rsample()
    finally:
        mixture_encoder._standardized = original


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_gradient_in_any_dimension(dim):
    assert gradients_agree(lambda *p: mixture(*p).rsample(), dim)


@pytest.mark.parametrize("planted", [by_component, without_chain])
def test_the_assertion_sees_a_wrong_gradient(planted):
    assert not gradients_agree(planted, 5)


def test_one_component_is_a_normal():
    p = [q.requires_grad_() for q in parameters(4, components=1)]
    torch.manual_seed(0)
    z = mixture(*p).rsample()
    gradients = torch.autograd.grad(z.sum(), p)
    noise = (z.detach() - p[1][:, 0]) / p[2][:, 0].exp()
    assert torch.allclose(gradients[0], torch.zeros(1, 1, dtype=F64))
    assert torch.allclose(gradients[1], torch.ones(1, 1, 4, dtype=F64))
    assert torch.allclose(gradients[2][:, 0], noise * p[2][:, 0].exp())


@pytest.mark.parametrize(
    ("dim", "spread"), [(2, 0.0), (1, 1.0), (100, 1.0), (30, 10.0), (2, 1e3), (2, 1e18)], ids=str
)
def test_the_gradient_stays_finite_in_float32(dim, spread):
    """Where `MixtureOfDiagNormals` gives NaN: components that coincide, and many coordinates."""
    p = [
        q.repeat(1000, *[1] * (q.dim() - 1)).requires_grad_()
        for q in parameters(dim, 3, spread, torch.float32)
    ]
    z = mixture(*p).rsample()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(z.sum(), p))


def test_the_mean_and_the_expanded_mixture():
    p = parameters(2)
    q = mixture(*p)
    assert torch.allclose(q.mean, (p[0].softmax(-1).unsqueeze(-1) * p[1]).sum(-2))
    wide = q.expand((6, 1))
    assert isinstance(wide, ReparameterizedMixture)
    assert wide.rsample((3,)).shape == (3, 6, 1, 2)


def test_a_draw_is_that_of_torch():
    q = mixture(*parameters(2)).expand((50,))
    torch.manual_seed(0)
    wanted = torch.distributions.MixtureSameFamily.sample(q)
    torch.manual_seed(0)
    assert torch.allclose(q.sample(), wanted)


def test_no_gradient_is_made_where_none_is_wanted():
    p = [q.requires_grad_() for q in parameters(2)]
    with torch.no_grad():
        assert not mixture(*p).rsample().requires_grad
    assert mixture(*p).rsample().requires_grad


def test_the_order_of_the_outputs():
    q = GaussianMixtureEncoder(nn.Identity(), 2)(torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0, 0.5, -0.5]]))
    normal = q.component_distribution.base_dist
    assert normal.loc.tolist() == [[[1, 2], [3, 4]]]
    assert q.mixture_distribution.logits.diff().item() == -1
    with pytest.raises(ValueError, match="components must be an integer of at least 1, got 0"):
        GaussianMixtureEncoder(nn.Identity(), 0)
