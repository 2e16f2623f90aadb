import json
import math

import numpy as np
import pytest
import torch
from chance import chi2_is_plausible, means_agree

from pyrovae.data import Affine, DataError, Dequantize, Pipeline
from pyrovae.data.moments import Moments


def integers(rows: int = 20_000, columns: int = 5, largest: int = 255) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, largest + 1, (rows, columns), generator=generator).float()
    x[0], x[1] = 0, largest
    return x


def is_uniform(u: torch.Tensor) -> bool:
    """Whether the columns of u look like independent draws, uniform on [0, 1): counts in 16 bins, and row means."""
    counts = torch.stack([torch.histc(column, 16, 0, 1) for column in u.mT])
    expected = len(u) / 16
    statistic = ((counts - expected) ** 2 / expected).sum(1)
    spread = 12 * u.shape[1] * (u.mean(1) - 0.5) ** 2  # mean 1 when columns are independent
    inside = bool(((u > 0) & (u < 1)).all())
    return inside and chi2_is_plausible(statistic, 15) and means_agree(u, 0.5) and means_agree(spread, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_is_uniform_and_independent(seed: int) -> None:
    x = integers()
    step = Dequantize.fit(x, torch.float32, seed)
    u = step.forward(x) - x
    assert is_uniform(u)
    assert not is_uniform(0.97 * u)
    assert not is_uniform(u.sqrt())
    assert not is_uniform(u[:, :1].expand(-1, 5))  # planted: one noise shared by the columns
    assert not is_uniform(u[:1].expand(len(u), -1).contiguous())  # planted: one noise shared by the rows


def survives(step: Dequantize, scale: Affine, x: torch.Tensor) -> bool:
    pipeline = Pipeline(x.shape[1], (step, scale))
    return torch.equal(pipeline.inverse(pipeline.forward(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [1, 16, 255, 4095, 32_767])
def test_integers_come_back_exactly(largest: int, dtype: torch.dtype) -> None:
    x = integers(largest=largest, rows=100_000).to(dtype)
    x[:, 4] = largest  # the worst case for rounding, a constant column
    x[:, 3] *= -1
    step = Dequantize.fit(x, dtype, seed=3)
    noisy = step.forward(x)
    scales = (Affine.unit(x, 1.0), Affine.standardize(noisy), Affine((0.1,), (largest / 7 + 0.1,)))
    assert all(survives(step, scale, x) for scale in scales)
    assert (noisy != x).all()


def test_noise_without_room_for_rounding_is_caught() -> None:
    x = torch.full((100_000, 5), 255.0)
    step = Dequantize.fit(x, torch.float32, seed=3)
    scale = Affine.standardize(step.forward(x))
    assert step.bits == 11
    assert survives(step, scale, x)
    assert not survives(Dequantize(3, bits=24), scale, x)


def test_noise_depends_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    x = integers(10)
    a, b, c = (Dequantize(seed, bits=11).forward(x) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a - x, (Dequantize(1, bits=11).forward(x.double()) - x).float())
    assert torch.equal(torch.get_rng_state(), state)


def test_dequantization_refuses() -> None:
    x = torch.zeros(5000, 3)
    x[4999, 2] = 0.5
    with pytest.raises(DataError, match=r"wants integers, got 0\.5 in row 4999, column 2"):
        Dequantize(0, bits=11).forward(x)
    with pytest.raises(DataError, match=r"float32 has no room for noise between integers as large as 32768"):
        Dequantize.fit(torch.tensor([[-32768, 0]]), torch.float32, seed=0)
    assert Dequantize.fit(torch.tensor([[-32768, 0]]), torch.float64, seed=0).bits == 24
    for seed, bits in ((-1, 11), (0, 3), (0, 25)):
        with pytest.raises(DataError, match="wants a seed of 0 or more and 4 to 24 bits"):
            Dequantize(seed, bits)


def test_standardize_gives_mean_0_and_deviation_1() -> None:
    x = torch.randn(9000, 4, generator=torch.Generator().manual_seed(0)) * 3 + torch.tensor(
        [0.0, 1.0, 100.0, -7.0]
    )
    affine = Affine.standardize(x)
    expected = x.double()
    assert torch.allclose(torch.tensor(affine.loc).double(), expected.mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(affine.scale).double(), expected.std(0, correction=0), rtol=1e-6)
    y = affine.forward(x.double())
    assert y.mean(0).abs().max() < 1e-12
    assert (y.std(0, correction=0) - 1).abs().max() < 1e-12


def moments_of(x: np.ndarray, size: int) -> Moments:
    moments = Moments()
    for start in range(0, len(x), size):
        moments.update(x[start : start + size])
    return moments


@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
def test_moments_are_those_of_all_rows_however_they_are_cut(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.data.moments.PIECE", 600)
    x = np.random.default_rng(0).standard_normal((5000, 3)) * [1.0, 1e-3, 1e150] + [0.0, 1e6, 1e150]
    moments = moments_of(x, size)
    assert moments.count == 5000
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.squares / 5000, x.var(0), rtol=1e-6)
    assert np.array_equal([moments.first, moments.lower, moments.upper], [x[0], x.min(0), x.max(0)])
    naive = (x[:, 1] ** 2).sum() / 5000 - x[:, 1].mean() ** 2  # planted: squares that cancel
    assert abs(naive / x[:, 1].var() - 1) > 1e-3
    moments.update(x[:0])
    assert moments.count == 5000


def test_numbers_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(DataError, match="fit it on finite data"):
        Affine.standardize(torch.tensor([[1e200], [-1e200]], dtype=torch.float64))


def test_unit_reaches_0_and_1() -> None:
    x = torch.tensor([[2.0, -1.0], [4.0, 3.0], [3.0, 0.0]])
    assert torch.equal(Affine.unit(x).forward(x), torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]]))
    assert Affine.unit(x, 1.0) == Affine((2.0, -1.0), (3.0, 5.0))


@pytest.mark.parametrize("fit", [Affine.unit, Affine.standardize])
def test_constant_columns_are_shifted_only(fit) -> None:
    """0.1 added up has a mean that is not 0.1, so a column must be compared with itself."""
    x = torch.stack([torch.arange(1000) * 1.0, torch.full((1000,), 0.1), torch.full((1000,), 1e30)], 1)
    affine = fit(x)
    assert affine.constant == (1, 2)
    assert affine.scale[1:] == (1.0, 1.0)
    y = affine.forward(x)
    assert (y[:, 1:] == 0).all()
    assert torch.equal(affine.inverse(y)[:, 1:], x[:, 1:])


PIPELINES = {
    "identity": Pipeline(3),
    "shared": Pipeline(3, (Affine((-1.0,), (255.0,)),)),
    "columns": Pipeline(3, (Affine((0.0, 1.0, -5.0), (0.1, 3.0, 70.0), (1,)),)),
    "noise": Pipeline(3, (Dequantize(5, bits=11),)),
    "all": Pipeline(
        3, (Dequantize(5, bits=11), Affine((0.0, 1.0, -5.0), (0.1, 3.0, 70.0)), Affine((1.0,), (0.5,)))
    ),
}


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return PIPELINES[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_undoes_forward(pipeline: Pipeline, dtype: torch.dtype) -> None:
    x = integers(1000, 3).to(dtype)
    y = pipeline.forward(x)
    assert y.dtype == dtype
    assert torch.allclose(pipeline.inverse(y), x, rtol=0, atol=256 * 4 * torch.finfo(dtype).eps)
    draws = y.expand(2, 1000, 3)
    assert torch.equal(pipeline.inverse(draws)[1], pipeline.inverse(y))


def log_abs_det_by_autograd(pipeline: Pipeline, x: torch.Tensor) -> float:
    jacobian = torch.autograd.functional.jacobian(lambda row: pipeline.forward(row[None])[0], x)
    return float(torch.linalg.slogdet(jacobian).logabsdet)


def test_log_abs_det_is_that_of_the_jacobian(pipeline: Pipeline) -> None:
    for x in integers(3, 3).double():
        assert pipeline.log_abs_det == pytest.approx(log_abs_det_by_autograd(pipeline, x), abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_probabilities_of_integers_sum_to_1(sign: int) -> None:
    """P(x) = integral of p(x + u) du, p from a normal density of the scaled data; a lost or turned Jacobian shows."""
    scale = Pipeline(1, (Affine((4.0,), (2.5,)),))
    u = (torch.arange(200).double() + 0.5) / 200
    x = torch.arange(-40, 40).double()
    y = scale.forward((x[:, None] + u).reshape(-1, 1))
    log_p = torch.distributions.Normal(0.3, 1.2).log_prob(y).sum(1) + sign * scale.log_abs_det
    total = float(log_p.exp().reshape(80, 200).mean(1).sum())
    assert (abs(total - 1) < 1e-6) == (sign == 1)


def test_the_mean_log_density_of_noisy_data_bounds_that_of_integers() -> None:
    scale = Pipeline(1, (Affine((0.0,), (2.5,)),))
    u = (torch.arange(1000).double() + 0.5) / 1000
    log_p = (
        torch.distributions.Normal(0.0, 1.0).log_prob(scale.forward((2 + u)[:, None])).sum(1)
        + scale.log_abs_det
    )
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 2.5)
    exact = (normal.cdf(torch.tensor(3.0)) - normal.cdf(torch.tensor(2.0))).log()
    assert 0 < float(exact - log_p.mean()) < 0.02


def test_config_survives_json_to_the_last_bit(pipeline: Pipeline) -> None:
    config = pipeline.to_config()
    stored = json.loads(json.dumps(config))
    assert stored == config
    again = Pipeline.from_config(stored)
    assert again == pipeline
    x = integers(10, 3)
    assert torch.equal(again.forward(x), pipeline.forward(x))
    assert again.log_abs_det == pipeline.log_abs_det


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"width": 3},
        {"steps": []},
        {"width": 3, "steps": [{"loc": [0.0]}]},
        {"width": 3, "steps": [{"kind": "whiten"}]},
        {"width": 3, "steps": [{"kind": "dequantize", "seed": 1}]},
        {"width": 3, "steps": [{"kind": "dequantize", "seed": 1, "bits": 8, "more": 1}]},
        {"width": 3, "steps": ["affine"]},
    ],
)
def test_other_configs_are_refused(config: dict) -> None:
    with pytest.raises(DataError, match="pass what to_config gave"):
        Pipeline.from_config(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pipeline(0), "a width of at least 1, got 0"),
        (
            lambda: Pipeline(3, (Affine((0.0, 0.0), (1.0, 1.0)),)),
            "step 0 wants 2 columns, the pipeline has 3",
        ),
        (
            lambda: Pipeline(3, (Affine((0.0,), (1.0,)), Dequantize(0, 11))),
            "only the first step can dequantize",
        ),
        (lambda: Affine((0.0,), (0.0,)), "as many finite locs as positive scales"),
        (lambda: Affine((0.0,), (1.0, 1.0)), "as many finite locs as positive scales, got 1 and 2"),
        (lambda: Affine((), ()), "as many finite locs as positive scales, got 0 and 0"),
        (lambda: Affine((math.nan,), (1.0,)), "as many finite locs as positive scales"),
        (lambda: Affine((0.0,), (math.inf,)), "as many finite locs as positive scales"),
        (lambda: PIPELINES["shared"].forward(torch.zeros(5, 4)), r"rows of 3 columns, got shape \(5, 4\)"),
        (
            lambda: PIPELINES["shared"].inverse(torch.zeros(2, 5, 4)),
            r"rows of 3 columns, got shape \(2, 5, 4\)",
        ),
    ],
)
def test_what_is_refused(make, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_integers_are_taken_as_they_are() -> None:
    bytes_ = torch.tensor([[0, 255, 7]], dtype=torch.uint8)
    assert torch.equal(PIPELINES["shared"].forward(bytes_), PIPELINES["shared"].forward(bytes_.float()))


def test_gradients_pass_through_the_scale() -> None:
    y = torch.ones(2, 3, requires_grad=True)
    PIPELINES["columns"].inverse(y).sum().backward()
    assert torch.equal(y.grad, torch.tensor([[0.1, 3.0, 70.0]]).expand(2, 3))
