import pytest
import torch
from chance import chi2_is_plausible, means_agree
from pyro.poutine import replay, trace
from sklearn.datasets import load_digits

from pyrovae.data import LinearGaussian, digits, linear_gaussian

PIXELS = torch.from_numpy(load_digits().data).float()


def test_digits_are_split_without_overlap() -> None:
    parts = digits(seed=3, val_fraction=0.2, test_fraction=0.1)
    assert [len(p) for p in (parts.train, parts.val, parts.test)] == [1258, 359, 180]
    index = torch.cat([parts.train_index, parts.val_index, parts.test_index])
    assert torch.equal(index.sort().values, torch.arange(1797))


@pytest.mark.parametrize("seed", range(5))
def test_digits_are_dequantized_uniformly(seed: int) -> None:
    parts = digits(seed)
    for x, index in (
        (parts.train, parts.train_index),
        (parts.val, parts.val_index),
        (parts.test, parts.test_index),
    ):
        assert x.dtype == torch.float32
        assert ((x >= 0) & (x <= 1)).all()
        noise = 17 * x - PIXELS[index]
        assert ((noise > -1e-5) & (noise < 1 + 1e-5)).all()
    noise = 17 * parts.train - PIXELS[parts.train_index]
    assert means_agree(noise.flatten(), 0.5)
    assert means_agree((noise.flatten() - 0.5) ** 2, 1 / 12)
    assert not means_agree(0.97 * noise.flatten(), 0.5)


def test_digits_as_they_are() -> None:
    parts = digits(dequantize=False, val_fraction=0.0)
    assert torch.equal(16 * parts.train, PIXELS[parts.train_index])
    assert parts.val.shape == (0, 64)


def test_digits_depend_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    a, b, c = digits(seed=1), digits(seed=1), digits(seed=2)
    assert torch.equal(a.train, b.train)
    assert not torch.equal(a.train_index, c.train_index)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_fractions_out_of_range(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="at least 0 and together below 1, got"):
        digits(val_fraction=fractions[0], test_fraction=fractions[1])


DATA = linear_gaussian(20, data_dim=6, latent_dim=3, scale=0.4, seed=1)


def test_log_evidence_is_that_of_the_dense_gaussian() -> None:
    covariance = DATA.weight @ DATA.weight.mT + 0.4**2 * torch.eye(6, dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(DATA.bias, covariance).log_prob(DATA.x)
    assert torch.allclose(DATA.log_evidence(), dense, atol=1e-10)
    assert torch.allclose(DATA.log_evidence(DATA.x[3:5]), dense[3:5], atol=1e-10)


def log_weights(data: LinearGaussian) -> torch.Tensor:
    guide = trace(data.exact_guide).get_trace(data.x)
    model = trace(replay(data.model, trace=guide)).get_trace(data.x)
    guide.compute_log_prob()
    model.compute_log_prob()
    log_q = guide.nodes["z"]["log_prob"]
    return model.nodes["z"]["log_prob"] + model.nodes["x"]["log_prob"] - log_q


def test_every_weight_of_the_exact_guide_is_the_evidence() -> None:
    assert torch.allclose(log_weights(DATA), DATA.log_evidence(), atol=1e-9)


def test_a_guide_that_is_not_the_posterior_is_caught() -> None:
    class Wrong(LinearGaussian):
        def posterior(self, x: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            loc, scale_tril = super().posterior(x)
            return loc, 1.01 * scale_tril

    wrong = Wrong(DATA.x, DATA.weight, DATA.bias, DATA.scale)
    assert (log_weights(wrong) - wrong.log_evidence()).abs().max() > 1e-3


def test_rows_may_be_tiled() -> None:
    tiled = LinearGaussian(DATA.x.repeat(3, 1), DATA.weight, DATA.bias, DATA.scale)
    assert torch.allclose(log_weights(tiled), DATA.log_evidence().repeat(3), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_data_come_from_the_model(seed: int) -> None:
    data = linear_gaussian(5000, data_dim=4, latent_dim=2, seed=seed)
    assert means_agree(data.x, data.bias)
    covariance = data.weight @ data.weight.mT + data.scale**2 * torch.eye(4, dtype=torch.float64)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (data.x - data.bias).mT, upper=False
    )
    assert chi2_is_plausible(white.square().sum(), white.numel())
    assert not chi2_is_plausible((1.05 * white).square().sum(), white.numel())


def test_seed_and_dtype() -> None:
    state = torch.get_rng_state()
    a, b = (linear_gaussian(4, 3, 2, seed=5, dtype=torch.float32) for _ in range(2))
    assert a.x.dtype == a.posterior()[0].dtype == a.log_evidence().dtype == torch.float32
    assert torch.equal(a.x, b.x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 2), "num_data must be at least 1, got 0"),
        ((4, 0, 2), "data_dim must be at least 1, got 0"),
        ((4, 3, 0), "latent_dim must be at least 1, got 0"),
        ((4, 3, 2, 0.0), r"scale must be positive and finite, got 0\.0"),
    ],
)
def test_what_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_gaussian(*arguments)
