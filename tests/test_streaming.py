"""Log-weights in blocks give what all of them together give."""

import math

import pytest
import torch

from pyrovae.inference import streaming, weights

F64 = torch.float64
READINGS = ("elbo", "elbo_std_error", "iwae", "iwae_std_error")


def stream(log_w: torch.Tensor, block: int, num_samples: int | None = None) -> streaming.WeightStream:
    state = streaming.begin(num_samples or len(log_w), tuple(log_w.shape[1:]), dtype=log_w.dtype)
    for part in log_w.split(block):
        state = streaming.update(state, part)
    return state


def agrees(state: streaming.WeightStream, log_w: torch.Tensor, rtol: float = 1e-12) -> bool:
    return all(
        torch.allclose(
            getattr(streaming, name)(state),
            getattr(weights, name)(log_w),
            rtol=rtol,
            atol=1e-13,
            equal_nan=True,
        )
        for name in READINGS
    )


def log_weights(kind: str, *shape: int) -> torch.Tensor:
    values = torch.randn(shape, dtype=F64)
    if kind == "heavy":
        return 30 * values
    if kind == "rising":  # every block has a new maximum
        return values + torch.arange(len(values), dtype=F64).reshape(-1, *[1] * (len(shape) - 1))
    if kind == "falling":
        return log_weights("rising", *shape).flip(0)
    if kind == "zeros":
        return torch.where(torch.rand(shape) < 0.5, -math.inf, values)
    return values - {"plain": 0.0, "low": 5e4, "high": -5e4}[kind]


KINDS = ("plain", "heavy", "rising", "falling", "zeros", "low", "high")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_any_blocks_agree_with_all_at_once(kind, block):
    torch.manual_seed(0)
    log_w = log_weights(kind, 300, 2, 3)
    state = stream(log_w, block)
    assert agrees(state, log_w)
    assert torch.equal(streaming.khat(state), weights.psis(log_w).khat)


def test_planted_bugs_are_seen():
    torch.manual_seed(0)
    log_w = log_weights("rising", 300, 3)
    state = stream(log_w, 64)
    assert agrees(state, log_w)
    assert not agrees(state._replace(scale=state.scale + 1e-6), log_w)
    forgets = state.w._replace(squares=state.w.squares * 0.999)  # the term between blocks
    assert not agrees(state._replace(w=forgets), log_w)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 24, 25, 26, 100, 225, 226, 5000])
def test_khat_is_exact_at_any_size(num_samples):
    torch.manual_seed(0)
    for log_w in (torch.randn(num_samples, 4, dtype=F64), 0.7 * torch.empty(num_samples, 4).exponential_()):
        for keep in (1.0, 0.5):  # zeros leave fewer weights for a tail that was planned for more
            some = torch.where(torch.rand(log_w.shape) < keep, log_w, -math.inf)
            assert torch.equal(streaming.khat(stream(some, 10)), weights.psis(some).khat)


def test_khat_before_all_have_come():
    torch.manual_seed(0)
    log_w = torch.randn(700, 3, dtype=F64)
    state = stream(log_w, 100, num_samples=5000)
    assert torch.equal(streaming.khat(state), weights.psis(log_w).khat)
    assert agrees(state, log_w)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_perfect_guide(dtype):
    torch.manual_seed(0)
    noise = 2 * torch.finfo(dtype).eps * 500 * (torch.rand(2000, 3, dtype=dtype) - 0.5)
    for log_w in (torch.full((2000, 3), -500.0, dtype=dtype), -500.0 + noise):
        state = stream(log_w, 100)
        assert (streaming.khat(state) == -math.inf).all()
        assert streaming.iwae(state).dtype == dtype
        assert agrees(state, log_w, rtol=1e-6 if dtype == torch.float32 else 1e-12)
        if dtype == F64:
            assert (streaming.iwae_std_error(state) < 1e-9).all()
            assert (streaming.elbo_std_error(state) < 1e-9).all()
    constant = stream(torch.full((2000,), -500.1, dtype=dtype), 100)
    assert streaming.iwae_std_error(constant) < 1e-9
    assert streaming.elbo_std_error(constant) < 1e-9


def test_hopeless_tails_read_as_before():
    ties = torch.zeros(1000, dtype=F64)
    ties[:5] = 1.0
    torch.manual_seed(0)
    for log_w in (ties, 3000 * torch.randn(1000, dtype=F64), torch.full((100,), -math.inf, dtype=F64)):
        state = stream(log_w, 33)
        assert streaming.khat(state) == weights.psis(log_w).khat == math.inf
        assert agrees(state, log_w)


def test_one_number_far_below_decides_what_rounding_is():
    """Whether a tail is constant is asked in units of the largest magnitude, which may be the smallest weight's."""
    log_w = torch.zeros(1000, dtype=F64)
    log_w[:300] = 1e-13 * torch.arange(300, dtype=F64)
    log_w[-1] = -1e6
    assert streaming.khat(stream(log_w, 100)) == weights.psis(log_w).khat == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_log_weights_are_refused_as_by_psis(bad):
    log_w = torch.zeros(100, 4)
    log_w[3, 2] = bad
    with pytest.raises(ValueError, match="1 of 100 of row 2 are NaN or"):
        streaming.khat(stream(log_w, 30))
    with pytest.raises(ValueError, match="1 of 100 are NaN"):
        streaming.khat(stream(log_w[:, 2], 30))
    readings = [getattr(streaming, name)(stream(log_w, 30)) for name in READINGS]
    assert not any(reading[2].isfinite() for reading in readings)
    assert all(reading[[0, 1, 3]].isfinite().all() for reading in readings)


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        streaming.begin(0)
    with pytest.raises(ValueError, match="10 log-weights were announced, but 12"):
        stream(torch.zeros(12), 6, num_samples=10)
    for name in (*READINGS, "khat"):
        with pytest.raises(ValueError, match="update the stream"):
            getattr(streaming, name)(streaming.begin(10))


def test_one_log_weight():
    one = torch.tensor([1.5], dtype=F64)
    assert agrees(stream(one, 1), one)


def test_memory_grows_with_the_square_root():
    """A hundred thousand log-weights per column, in blocks, never all at once."""
    torch.manual_seed(0)
    state = streaming.begin(100_000, (2,))
    kept = sum(x.numel() for x in (state.scale, state.largest, *state.w, *state.log_w))
    assert kept < 2 * 1000
    parts = []
    for _ in range(20):
        part = 0.7 * torch.empty(5000, 2, dtype=F64).exponential_()
        state = streaming.update(state, part)
        parts.append(part)
    assert agrees(state, torch.cat(parts))
    assert torch.equal(streaming.khat(state), weights.psis(torch.cat(parts)).khat)
