"""Temperatures of an annealed run: three fixed shapes, and the one that suits what a pilot saw."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["adapted", "geometric", "interpolate", "linear", "sigmoid", "smoothed"]

SLOWEST = 0.1  # a schedule nowhere rushes on more than about 1 / SLOWEST times faster than the linear one


def linear(num_temperatures: int) -> Float[Tensor, " t_plus_1"]:
    """Give beta = t / T for t = 0, ..., T, in float64.

    With perfect moves the gap between `reverse` and `forward` is then exactly the Jeffreys divergence of the two
    ends over T.

    Raises:
        ValueError: if `num_temperatures` is below 1.

    >>> linear(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    if num_temperatures < 1:
        raise ValueError(
            f"num_temperatures must be at least 1, but is {num_temperatures}: 1 is importance sampling"
        )
    return torch.linspace(0.0, 1.0, num_temperatures + 1, dtype=torch.float64)


def sigmoid(num_temperatures: int, sharpness: float = 4.0) -> Float[Tensor, " t_plus_1"]:
    """Give sigmoid(sharpness (2 t / T - 1)), shifted and scaled to run from 0 to 1: slow at both ends.

    Raises:
        ValueError: if `num_temperatures` is below 1, or `sharpness` not above 0.

    Source: Wu, Burda, Salakhutdinov and Grosse 2017.

    >>> sigmoid(4).round(decimals=3)
    tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    if not sharpness > 0.0:
        raise ValueError(f"sharpness must be above 0, but is {sharpness}: 4 is usual")
    raw = torch.sigmoid(sharpness * (2.0 * linear(num_temperatures) - 1.0))
    betas = (raw - raw[0]) / (raw[-1] - raw[0])
    betas[-1] = 1.0
    return betas


def geometric(num_temperatures: int, first: float = 1e-3) -> Float[Tensor, " t_plus_1"]:
    """Give 0, and then T temperatures from `first` to 1 with a common ratio: for starts far wider than the end.

    Raises:
        ValueError: if `num_temperatures` is below 1, or `first` not strictly between 0 and 1.

    >>> geometric(3, first=0.25)
    tensor([0.0000, 0.2500, 0.5000, 1.0000], dtype=torch.float64)
    """
    if not 0.0 < first < 1.0:
        raise ValueError(f"first must lie strictly between 0 and 1, but is {first}: 1e-3 is usual")
    if num_temperatures < 2:
        return linear(num_temperatures)
    powers = first ** (1.0 - linear(num_temperatures - 1))
    return torch.cat([powers.new_zeros(1), powers])


def adapted(
    betas: Float[Tensor, "s n"], variances: Float[Tensor, "s n"], num_temperatures: int
) -> Float[Tensor, "t_plus_1 n"]:
    """Give every datum temperatures at equal steps of its thermodynamic length, int_0^beta Var^1/2 dbeta.

    Var is that of end - start under the density at beta, so (beta' - beta)^2 Var, the variance of an increment, is
    the same everywhere: for perfect moves and many temperatures that is the schedule of least gap, length^2 / T.
    Standard deviations are smoothed over three neighbours, weights 1/4, 1/2, 1/4, and raised to a tenth of their
    mean over beta, so that a stretch that looked quiet by chance gets temperatures too.

    Args:
        betas: where variances were seen; from 0 to 1 in every column, strictly increasing.
        variances: at least 0; what is not finite counts as 0. If all are 0 the schedule is linear.
        num_temperatures: T, at least 1.

    Raises:
        ValueError: if `num_temperatures` is below 1.

    Source: Gelman and Meng 1998, section 4.3.

    >>> betas = linear(50)[:, None]
    >>> adapted(betas, (1 + betas) ** -2, 2).round(decimals=2).squeeze()  # the length is log(1 + beta)
    tensor([0.0000, 0.4100, 1.0000], dtype=torch.float64)
    """
    speed = smoothed(variances.double().nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0).sqrt())
    length = _covered(betas, speed)[-1]
    speed = torch.where(length > 0.0, speed.maximum(SLOWEST * length), 1.0)
    covered = _covered(betas, speed)
    levels = linear(num_temperatures).to(betas.device).unsqueeze(-1) * covered[-1]
    found = interpolate(levels, covered, betas)
    found[0], found[-1] = 0.0, 1.0
    return found


def _covered(betas: Float[Tensor, "s n"], speed: Float[Tensor, "s n"]) -> Float[Tensor, "s n"]:
    steps = 0.5 * (speed[1:] + speed[:-1]) * betas.diff(dim=0)
    return torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])


def smoothed(values: Float[Tensor, "s n"]) -> Float[Tensor, "s n"]:
    """Average every row with its neighbours, weights 1/4, 1/2, 1/4; the ends count as neighbours of themselves.

    >>> smoothed(torch.tensor([[0.0], [4.0], [0.0]])).squeeze()
    tensor([1., 2., 1.])
    """
    padded = torch.cat([values[:1], values, values[-1:]])
    return 0.25 * padded[:-2] + 0.5 * values + 0.25 * padded[2:]


def interpolate(
    at: Float[Tensor, "t n"], knots: Float[Tensor, "s n"], values: Float[Tensor, "s n"]
) -> Float[Tensor, "t n"]:
    """Draw lines between (knots, values) in every column, and read them at `at`; constant beyond the ends.

    Args:
        at: any order.
        knots: at least two, strictly increasing down every column.
        values: one a knot.

    >>> interpolate(torch.tensor([[0.5], [9.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]]))
    tensor([[3.],
            [4.]])
    """
    right = torch.searchsorted(knots.T.contiguous(), at.T.contiguous()).T.clamp(1, len(knots) - 1)
    low, high = knots.gather(0, right - 1), knots.gather(0, right)
    share = ((at - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(values.gather(0, right - 1), values.gather(0, right), share)
