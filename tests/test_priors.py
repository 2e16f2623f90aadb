import pytest
import torch
from torch import nn

from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.networks import mlp
from pyrovae.models.priors import Gaussian, GaussianMixture, StandardNormal, VampPrior


def test_shapes() -> None:
    prior = StandardNormal(3)()
    assert (prior.batch_shape, prior.event_shape) == ((), (3,))
    assert prior.sample((5, 2)).shape == (5, 2, 3)
    assert prior.log_prob(torch.zeros(5, 2, 3)).shape == (5, 2)


def test_density_is_the_standard_normal_and_integrates_to_one() -> None:
    prior = StandardNormal(1).double()()
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    density = prior.log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-10)
    assert torch.trapezoid(density * grid[:, 0] ** 2, grid[:, 0]).item() == pytest.approx(1, abs=1e-10)


def test_buffers_follow_the_dtype_and_there_is_no_parameter() -> None:
    module = StandardNormal(2).double()
    assert module().sample().dtype == torch.float64
    assert list(module.parameters()) == []
    assert set(module.state_dict()) == {"loc", "scale"}


@pytest.mark.parametrize("dim", [0, -2])
def test_what_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim must be an integer of at least 1, got {dim}"):
        StandardNormal(dim)


TRIL = torch.tensor([[1.0, 0, 0], [0.5, 2.0, 0], [0.1, -1.0, 0.3]])


@pytest.mark.parametrize("learned", [False, True])
def test_gaussian_is_the_gaussian_that_was_asked_for(learned: bool) -> None:
    prior = Gaussian(torch.tensor([1.0, 2, 3]), TRIL, learned=learned)()
    assert (prior.batch_shape, prior.event_shape) == ((), (3,))
    torch.testing.assert_close(prior.mean, torch.tensor([1.0, 2, 3]))
    torch.testing.assert_close(prior.covariance_matrix, TRIL @ TRIL.mT)


def test_a_learned_gaussian_stays_positive_definite_wherever_its_parameters_go() -> None:
    module = Gaussian(torch.zeros(3), torch.eye(3), learned=True)
    assert set(dict(module.named_parameters())) == {"loc", "lower", "log_diagonal"}
    module().log_prob(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(3 * torch.randn(p.shape))
    assert (torch.linalg.eigvalsh(module().covariance_matrix.double()) > 0).all()
    assert list(Gaussian(torch.zeros(3), torch.eye(3)).parameters()) == []
    assert Gaussian(torch.zeros(1), torch.eye(1), learned=True)().event_shape == (1,)


@pytest.mark.parametrize(
    ("loc", "tril", "message"),
    [
        (torch.zeros(2), TRIL, r"wants loc \[D\] and scale_tril \[D, D\], got shapes \[2\] and \[3, 3\]"),
        (torch.zeros(0), torch.zeros(0, 0), "wants loc"),
        (torch.zeros(3), TRIL.mT, "must be finite and lower triangular with a positive diagonal"),
        (torch.zeros(3), -TRIL, "positive diagonal"),
        (torch.full((3,), torch.nan), TRIL, "loc finite"),
    ],
)
def test_what_gaussian_refuses(loc: torch.Tensor, tril: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gaussian(loc, tril)


@pytest.mark.parametrize(("dim", "components"), [(1, 1), (1, 8), (2, 1), (2, 10), (8, 50)])
def test_a_mixture_starts_spread_out_like_a_standard_normal(dim: int, components: int) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        prior = GaussianMixture(dim, components)()
        assert (prior.batch_shape, prior.event_shape) == ((), (dim,))
        assert prior.mean.abs().max() < 0.45
        assert 0.5 < prior.variance.min() <= prior.variance.max() < 1.6
        loc = prior.component_distribution.mean
        assert torch.pdist(loc).min() > 0.01 if components > 1 else (loc == 0).all()


def test_a_mixture_is_all_learned_and_drawn_from_the_callers_random_state() -> None:
    torch.manual_seed(0)
    first = GaussianMixture(2, 3)
    second = GaussianMixture(2, 3)
    torch.manual_seed(0)
    third = GaussianMixture(2, 3)
    assert torch.equal(first.loc, third.loc)
    assert not torch.equal(first.loc, second.loc)
    first().log_prob(torch.randn(50, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in first.parameters())
    with pytest.raises(ValueError, match="components must be an integer of at least 1, got 0"):
        GaussianMixture(2, 0)


def test_a_vamp_prior_shares_its_encoder_without_owning_it() -> None:
    encoder, start = DiagonalGaussian(mlp(4, (5,), 4)), torch.randn(3, 4)
    prior = VampPrior(encoder, start)
    assert prior.encoder is encoder
    assert [name for name, _ in prior.named_parameters()] == list(prior.state_dict()) == ["pseudo_inputs"]
    assert torch.equal(prior.pseudo_inputs, start)
    assert prior.pseudo_inputs.data_ptr() != start.data_ptr()
    prior().log_prob(torch.randn(6, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for m in (prior, encoder) for p in m.parameters())


@pytest.mark.parametrize("bad", [torch.zeros(0, 4), torch.full((2, 4), torch.inf)])
def test_what_vamp_refuses(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be finite and have at least one row"):
        VampPrior(DiagonalGaussian(nn.Linear(4, 4)), bad)
