import math

import pytest
import torch
from torch import Tensor

from pyrovae.data import linear_gaussian
from pyrovae.seeding import seeded
from pyrovae.training.batches import check_data, check_val_data, minibatches

X = linear_gaussian(40, data_dim=5, latent_dim=2, dtype=torch.float32).x


def spoil(value: float) -> Tensor:
    x = X.clone()
    x[3, 1] = value
    return x


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((), ValueError, "data must be at least one tensor, got none"),
        (
            (X.numpy(),),
            TypeError,
            r"data\[0\] must be a torch.Tensor, got ndarray; convert it with torch.as_tensor",
        ),
        ((X[:0],), ValueError, r"data\[0\] must have at least one row, got shape \[0, 5\]"),
        ((torch.tensor(1.0),), ValueError, r"data\[0\] must have at least one row, got shape \[\]"),
        ((X, X[:3]), ValueError, r"got 40 rows in data\[0\] and 3 in data\[1\]"),
        ((X, spoil(math.nan)), ValueError, r"data\[1\] must be finite, got NaN or an infinity in row 3"),
        ((spoil(-math.inf),), ValueError, r"data\[0\] must be finite, got NaN or an infinity in row 3"),
    ],
)
def test_data_that_are_refused(data: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_data("data", data)


def test_validation_data_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"val_data\[0\] must be finite.*row 3"):
        check_val_data(spoil(math.nan), (X,))
    with pytest.raises(ValueError, match=r"rows of shapes \[\[5\]\] as the data, got \[\[4\]\]"):
        check_val_data(X[:, :4], (X,))
    with pytest.raises(ValueError, match=r"rows of shapes \[\[5\]\] as the data, got \[\[5\], \[5\]\]"):
        check_val_data((X, X), (X,))


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    with seeded(9):
        state = torch.get_rng_state()
        first, again, later = (list(minibatches((X, X[:, 0]), 16, 3, epoch)) for epoch in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[0][:, 0], a[1]) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0][0], later[0][0])
    assert torch.equal(torch.cat([b[0] for b in later]).sort(0).values, X.sort(0).values)
    assert next(minibatches((X,), 40, 3, 0))[0] is X
