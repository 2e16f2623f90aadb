"""One Gaussian per datum: Laplace's approximation, moments of draws, and the coordinates in which they are round."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrovae.inference.hmc import LogDensityAndGradient

__all__ = [
    "Curvature",
    "Gaussian",
    "LaplaceFit",
    "fit_laplace",
    "from_draws",
    "log_prob",
    "unwhiten",
    "whiten",
    "whitened_gradient",
    "widen",
]

Curvature = Callable[[Float[Tensor, "k n d"]], Float[Tensor, "k n d d"]]

SMALLEST_SPREAD = 1e-6  # of draws that do not vary, in units of max(1, |mean|)
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-5, 1e8  # in units of the mean curvature
DAMPING_FACTOR = 10.0
ROUNDING = 8.0  # a gain of this many units of rounding in the log density is none
NEAR = 0.5  # nats; a Newton step that promises no more is no longer than one standard deviation


class Gaussian(NamedTuple):
    """N(loc, scale_tril scale_tril'), one per datum."""

    loc: Float[Tensor, "*n d"]
    scale_tril: Float[Tensor, "*n d d"]


class LaplaceFit(NamedTuple):
    """Laplace's approximation for every datum; look at `is_usable` first."""

    gaussian: Gaussian
    """Last position and inverse curvature; a unit scale where the curvature is not positive definite."""
    log_density: Float[Tensor, " n"]
    is_usable: Bool[Tensor, " n"]
    """Within a standard deviation of the mode; at a finite log density, with a positive definite curvature."""
    num_steps: int
    """Steps tried; each cost a gradient and a curvature, and the start cost one of both."""


class _Iterate(NamedTuple):
    position: Float[Tensor, "n d"]
    log_density: Float[Tensor, " n"]
    gradient: Float[Tensor, "n d"]
    curvature: Float[Tensor, "n d d"]
    damping: Float[Tensor, " n"]


def unwhiten(gaussian: Gaussian, u: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Give z = loc + scale_tril u for u [..., *n, d]; standard normal u makes draws of the Gaussian.

    >>> unwhiten(Gaussian(torch.ones(3, 2), 2 * torch.eye(2).expand(3, 2, 2)), torch.ones(5, 3, 2))[0, 0]
    tensor([3., 3.])
    """
    return gaussian.loc + torch.einsum("...ij,...j->...i", gaussian.scale_tril, u)


def whiten(gaussian: Gaussian, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Give u with unwhiten(gaussian, u) = z, for z [..., *n, d].

    >>> whiten(Gaussian(torch.ones(3, 2), 2 * torch.eye(2).expand(3, 2, 2)), torch.full((5, 3, 2), 3.0))[0, 0]
    tensor([1., 1.])
    """
    centred = (z - gaussian.loc).unsqueeze(-1)
    return torch.linalg.solve_triangular(gaussian.scale_tril, centred, upper=False).squeeze(-1)


def whitened_gradient(
    gaussian: Gaussian, log_density_and_gradient: LogDensityAndGradient
) -> LogDensityAndGradient:
    """Make density and gradient of u out of those of z = unwhiten(u): the value is the same, up to the constant
    log |det scale_tril|, and the gradient is scale_tril' times that in z.

    >>> gaussian = Gaussian(torch.ones(3, 2), 2 * torch.eye(2).expand(3, 2, 2))
    >>> whitened_gradient(gaussian, lambda z: (z.sum(-1), torch.ones_like(z)))(torch.ones(3, 2))[1][0]
    tensor([2., 2.])
    """

    def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = log_density_and_gradient(unwhiten(gaussian, u))
        return value, torch.einsum("...ji,...j->...i", gaussian.scale_tril, gradient)

    return evaluate


def log_prob(gaussian: Gaussian, z: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    """Give the log density of the Gaussian at z [..., *n, d], normalized.

    >>> log_prob(Gaussian(torch.zeros(3, 1), torch.ones(3, 1, 1)), torch.zeros(3, 1))[0]
    tensor(-0.9189)
    """
    log_det = gaussian.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return -0.5 * whiten(gaussian, z).square().sum(-1) - log_det - constant


def widen(gaussian: Gaussian, factor: float) -> Gaussian:
    """Multiply all standard deviations by `factor`, above 0.

    Raises:
        ValueError: if `factor` is not above 0.

    >>> widen(Gaussian(torch.zeros(1, 1), torch.ones(1, 1, 1)), 2.0).scale_tril.item()
    2.0
    """
    if not factor > 0.0:
        raise ValueError(f"factor must be above 0, but is {factor}: above 1 widens, below 1 narrows")
    return Gaussian(gaussian.loc, factor * gaussian.scale_tril)


def from_draws(z: Float[Tensor, "k n d"]) -> Gaussian:
    """Give the Gaussian with the moments of K draws per datum, with correlations shrunk towards 0 where K is small.

    The correlation matrix becomes (1 - a) R + a I with the oracle-approximating a, which falls like 1 / K; standard
    deviations are the sample's. Coordinates that do not vary get a spread of 1e-6 max(1, |mean|), so the result
    is always positive definite.

    Args:
        z: K >= 2 draws, finite.

    Raises:
        ValueError: if there are fewer than 2 draws, or one is not finite.

    Source: Chen, Wiesel, Eldar and Hero 2010, equation 23.

    >>> _ = torch.manual_seed(0)
    >>> from_draws(torch.randn(10_000, 1, 2)).scale_tril.round(decimals=1).abs()
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    if len(z) < 2:
        raise ValueError(f"moments need at least 2 draws, but there is {len(z)}: draw more")
    _check_finite(z.isfinite().all(-1).all(0), "z")
    draws = z.double()
    loc = draws.mean(0)
    std = draws.std(0)
    floor = SMALLEST_SPREAD * loc.abs().clamp(min=1.0)
    standardized = (draws - loc) / torch.maximum(std, floor)
    correlation = torch.einsum("kni,knj->nij", standardized, standardized) / (len(z) - 1)
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    scale_tril = torch.linalg.cholesky_ex(_shrink(correlation, len(z))).L
    return Gaussian(loc.to(z), (torch.maximum(std, floor).unsqueeze(-1) * scale_tril).to(z))


def fit_laplace(
    log_density_and_gradient: LogDensityAndGradient,
    curvature: Curvature,
    start: Float[Tensor, "n d"],
    *,
    max_steps: int = 50,
    tolerance: float = 1e-5,
) -> LaplaceFit:
    """Find the mode of every datum's density by damped Newton steps, and the Gaussian with its curvature.

    A step is z + (Lambda + m s I)^-1 gradient, with Lambda the curvature, s its mean absolute diagonal and m the
    damping of the row: 0 at first, so that a Gaussian takes one step; ten times larger after a step that the row
    refused, because its log density would not rise; ten times smaller after one it took. Rows never see each other.
    A row has converged when an undamped step promises no more than `tolerance` nats, or than rounding can show. It has
    stalled when no step however short raises its log density: at a kink, where networks of rectified linear units
    often have their modes. A row is usable, whatever ended its search, if an undamped step promises at most half a
    nat: its mode is then no more than a standard deviation away.

    The mode that is found is a local one, near the start. Where `curvature` is not the Hessian but Gauss-Newton's,
    always positive definite, a row may stop at a saddle without notice.

    Args:
        log_density_and_gradient: [n, d] -> [n], [n, d]; rows independent, results detached.
        curvature: [1, n, d] -> [1, n, d, d], minus the Hessian of the log density, or a stand-in for it.
        start: finite.
        max_steps: at least 1.
        tolerance: nats, above 0; 1e-5 puts the mode within 0.005 posterior standard deviations.

    Raises:
        ValueError: if `max_steps` or `tolerance` is out of range, or `start` is not finite.

    Source: Levenberg 1944; Nocedal and Wright 2006, section 10.3.

    >>> precision = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> density = lambda z: (-0.5 * (z @ precision * z).sum(-1), -z @ precision)
    >>> fit = fit_laplace(density, lambda z: precision.expand(1, 3, 2, 2), torch.ones(3, 2))
    >>> fit.num_steps, fit.is_usable
    (1, tensor([True, True, True]))
    """
    if max_steps < 1 or not tolerance > 0.0:
        raise ValueError(
            f"max_steps must be at least 1, tolerance above 0, but they are {max_steps}, {tolerance}"
        )
    _check_finite(start.isfinite().all(-1), "start")
    position = start.detach()
    value, gradient = log_density_and_gradient(position)
    iterate = _Iterate(position, value, gradient, _symmetric(curvature, position), torch.zeros_like(value))
    is_done = _promises_at_most(iterate, tolerance)
    num_steps = 0
    # One look at the device a step: a step costs a curvature, hundreds of times more than the look.
    while num_steps < max_steps and not bool(is_done.all()):
        iterate = _improve(iterate, is_done, log_density_and_gradient, curvature)
        has_stalled = iterate.damping >= MOST_DAMPING
        is_done = is_done | _promises_at_most(iterate, tolerance) | has_stalled
        num_steps += 1
    gaussian = Gaussian(iterate.position, _scale_tril(iterate.curvature))
    is_usable = _promises_at_most(iterate, max(NEAR, tolerance))
    return LaplaceFit(gaussian, iterate.log_density, is_usable, num_steps)


def _improve(
    iterate: _Iterate,
    is_done: Bool[Tensor, " n"],
    log_density_and_gradient: LogDensityAndGradient,
    curvature: Curvature,
) -> _Iterate:
    """Try one step in every row that is not done."""
    step = _newton_step(_damped(iterate), iterate.gradient)
    proposal = iterate.position + torch.where(step.isfinite(), step, 0.0)
    log_density, gradient = log_density_and_gradient(proposal)
    is_finite = log_density.isfinite() & gradient.isfinite().all(-1)
    took = ~is_done & is_finite & (log_density > iterate.log_density)
    position = torch.where(took.unsqueeze(-1), proposal, iterate.position)
    less = iterate.damping / DAMPING_FACTOR
    more = (iterate.damping * DAMPING_FACTOR).clamp(FIRST_DAMPING, MOST_DAMPING)
    return _Iterate(
        position,
        torch.where(took, log_density, iterate.log_density),
        torch.where(took.unsqueeze(-1), gradient, iterate.gradient),
        _symmetric(curvature, position),
        torch.where(took, torch.where(less < LEAST_DAMPING, 0.0, less), more),
    )


def _promises_at_most(iterate: _Iterate, tolerance: float) -> Bool[Tensor, " n"]:
    """Where an undamped step promises to raise the log density by no more than that, or than rounding can show."""
    promised = 0.5 * (_newton_step(iterate.curvature, iterate.gradient) * iterate.gradient).sum(-1)
    rounding = ROUNDING * torch.finfo(promised.dtype).eps * iterate.log_density.abs()
    return iterate.log_density.isfinite() & (promised <= rounding.clamp(min=tolerance))


def _damped(iterate: _Iterate) -> Float[Tensor, "n d d"]:
    scale = iterate.curvature.diagonal(dim1=-2, dim2=-1).abs().mean(-1)
    identity = torch.eye(iterate.position.shape[-1], dtype=scale.dtype, device=scale.device)
    return iterate.curvature + (iterate.damping * scale)[:, None, None] * identity


def _newton_step(curvature: Float[Tensor, "n d d"], gradient: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Curvature^-1 gradient; NaN in rows whose curvature is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(curvature.double())
    step = torch.cholesky_solve(gradient.double().unsqueeze(-1), factor).squeeze(-1)
    return torch.where((info == 0).unsqueeze(-1), step, torch.nan).to(gradient)


def _scale_tril(curvature: Float[Tensor, "n d d"]) -> Float[Tensor, "n d d"]:
    """L with L L' = curvature^-1, lower triangular; the identity in rows where there is none."""
    # Reversing both axes turns a lower factor of the reversed matrix into an upper one, P = U U'; then L = U'^-1.
    factor, info = torch.linalg.cholesky_ex(curvature.double().flip(-2, -1))
    identity = torch.eye(curvature.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor.flip(-2, -1).mT, identity.expand_as(factor), upper=False)
    is_usable = (info == 0) & inverse.isfinite().all(-1).all(-1)
    return torch.where(is_usable[:, None, None], inverse, identity).to(curvature)


def _symmetric(curvature: Curvature, position: Float[Tensor, "n d"]) -> Float[Tensor, "n d d"]:
    value = curvature(position.unsqueeze(0))[0].detach()
    return 0.5 * (value + value.mT)


def _shrink(correlation: Float[Tensor, "n d d"], num_draws: int) -> Float[Tensor, "n d d"]:
    # With trace d and s the sum of squares: a = ((1 - 2/d) s + d^2) / ((K + 1 - 2/d) (s - d)), at most 1.
    dim = correlation.shape[-1]
    squares = correlation.square().sum((-2, -1))
    numerator = (1 - 2 / dim) * squares + dim**2
    amount = numerator / ((num_draws + 1 - 2 / dim) * (squares - dim))
    amount = torch.nan_to_num(amount, nan=1.0).clamp(0.0, 1.0)[:, None, None]
    identity = torch.eye(dim, dtype=correlation.dtype, device=correlation.device)
    return (1 - amount) * correlation + amount * identity


def _check_finite(rows: Bool[Tensor, " n"], what: str) -> None:
    if not bool(rows.all()):
        bad = (~rows).nonzero()
        raise ValueError(
            f"{what} must be finite, but is not for datum {int(bad[0])} (and {len(bad) - 1} more)"
        )
