import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.models.encoders import FlowGaussian
from pyrovae.models.networks import mlp


def make(dim=4, seed=0, **options):
    torch.manual_seed(seed)
    return FlowGaussian(nn.Linear(5, FlowGaussian.width(dim)), dim, **options)


def scoring_error(encoder, x):
    with torch.no_grad():
        q = encoder(x)
        z = q.rsample()
        return (q.log_prob(z) - encoder(x).log_prob(z.clone())).abs().max()


def test_fresh_values_are_scored_as_the_draws_were():
    encoder = make(dim=8, num_flows=4)
    x = torch.randn(200, 5)
    assert scoring_error(encoder, x) < 1e-4
    assert scoring_error(encoder.double(), x.double()) < 1e-12


def test_the_jacobian_is_triangular_and_its_determinant_is_the_one_reported():
    encoder = make(dim=3, num_flows=1).double()
    q = encoder(torch.randn(5, dtype=torch.float64))
    e = torch.randn(3, dtype=torch.float64)

    def draw(e):
        for transform in q.transforms:
            e = transform(e)
        return e

    jacobian = torch.autograd.functional.jacobian(draw, e)
    assert jacobian.triu(1).abs().max() == 0
    assert jacobian[1, 0] * jacobian[2, 0] * jacobian[2, 1] != 0
    density = q.base_dist.log_prob(e) - torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(q.log_prob(draw(e)), density)


def test_every_second_flow_has_the_reverse_order():
    encoder = make(dim=3, num_flows=3)
    assert [flow.nn.permutation.tolist() for flow in encoder.flows] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_the_flows_are_part_of_the_module():
    encoder = make(dim=3, num_flows=2)
    names = {name.split(".")[0] for name, _ in encoder.named_parameters()}
    assert names == {"net", "flows"}
    assert all(p.dtype == torch.float64 for p in encoder.double().parameters())


def test_log_scales_are_softly_bounded():
    encoder = make(dim=3)
    with torch.no_grad():
        for p in encoder.flows.parameters():
            p.mul_(1e4)
    _, log_scale = encoder.flows[0].nn(torch.randn(50, 3), context=torch.randn(50, 3))
    assert log_scale.abs().max() <= 2
    assert scoring_error(make(dim=3), torch.randn(50, 5)) < 1e-4


def test_a_flow_fits_what_no_gaussian_can():
    """A banana, z_2 ~ N(z_1^2, 1/4): the best Gaussian of any covariance stays 0.56 nats away."""
    banana = dist.Normal(0.0, 1.0)

    def divergence(encoder, x):
        q = encoder(x)
        z = q.rsample()
        log_p = banana.log_prob(z[:, 0]) + dist.Normal(z[:, 0] ** 2, 0.5).log_prob(z[:, 1])
        return (q.log_prob(z) - log_p).mean()

    encoder, x = make(dim=2, hidden=(32,)), torch.zeros(256, 5)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        divergence(encoder, x).backward()
        optimizer.step()
    assert divergence(encoder, torch.zeros(20_000, 5)) < 0.4
    assert scoring_error(encoder, x) < 1e-3


def test_what_is_refused():
    with pytest.raises(ValueError, match="dim must be at least 2, got 1.*use DiagonalGaussian"):
        make(dim=1)
    with pytest.raises(
        ValueError, match=r"hidden must have at least one layer, each at least as wide as z \(4\)"
    ):
        make(hidden=(8, 3))
    with pytest.raises(ValueError, match=r"hidden must have at least one layer.*got \(\)"):
        make(hidden=())
    with pytest.raises(ValueError, match="num_flows must be an integer of at least 1, got 0"):
        make(num_flows=0)
    with pytest.raises(ValueError, match=r"3 \* dim = 12, got 9"):
        FlowGaussian(mlp(5, (), 9), 4)(torch.zeros(2, 5))
