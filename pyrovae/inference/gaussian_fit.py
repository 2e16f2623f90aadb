"""The Gaussian with the largest ELBO for every datum, diagonal or full, all data at once on common draws."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrovae.inference import lbfgs
from pyrovae.inference.hmc import LogDensity, LogDensityAndGradient, with_gradient
from pyrovae.inference.laplace import Gaussian, unwhiten, whiten

__all__ = [
    "DIAGONAL",
    "FULL",
    "DensityOf",
    "Family",
    "GaussianFit",
    "fit_gaussian",
    "gaussian_kl",
    "hadamard_gap",
    "standard_noise",
]

DensityOf = Callable[[Int[Tensor, " m"]], LogDensity]
"""From the numbers of some rows to their log density, z `[k, m, d]` to `[k, m]`."""


class GaussianFit(NamedTuple):
    """The best Gaussian that was found for every datum; look at `has_converged` first."""

    gaussian: Gaussian
    elbo: Float[Tensor, " n"]
    """On the draws it was fitted to, hence biased upwards: measure it on others."""
    has_converged: Bool[Tensor, " n"]
    num_gradient_evaluations: Int[Tensor, " n"]


class Family(NamedTuple):
    """Gaussians as points: coordinates in which the ELBO of a Gaussian posterior bends like the identity, the
    posterior being the whitening itself."""

    decode: Callable[[Tensor, Gaussian], Gaussian]
    """Coordinates `[n, p]` and a whitening to a Gaussian; differentiable."""
    encode: Callable[[Gaussian, Gaussian], Tensor]
    """The inverse; a Gaussian outside the family becomes the member with the least KL to it."""


def fit_gaussian(
    density_of: DensityOf,
    family: Family,
    whitening: Gaussian,
    starts: Sequence[Gaussian],
    noise: Float[Tensor, "k d"],
    *,
    tolerance: float = 1e-4,
    max_steps: int = 200,
) -> GaussianFit:
    """Maximize the ELBO over a family of Gaussians N(m, L L'), one for every datum, by L-BFGS on fixed draws.

    ELBO(m, L) = mean_k log p(x, m + L u_k) + log |L| + D/2 log(2 pi e), the same u_k at every step and for all data.
    Where log p(x, z) is quadratic and the u_k have mean 0 and covariance I exactly (`standard_noise`), it is the ELBO
    itself; elsewhere its maximum lies above that of the ELBO, by about as much as the ELBO of what is found lies below.
    A row begins at the best of the `starts`, and ends no lower: from the best diagonal Gaussian, a full one is at least
    as good. The optimum is a local one.

    Args:
        density_of: log p(x, z) of some data, differentiable in z, rows independent.
        family: `DIAGONAL` or `FULL`.
        whitening: a rough Gaussian of each posterior, such as Laplace's.
        starts: at least one; members of the family, or what is taken to its nearest member.
        noise: [K, D] as `standard_noise` draws it.
        tolerance: nats that another step may promise at the end, above 0.
        max_steps: at least 1.

    Raises:
        ValueError: if there is no start, none has a finite ELBO for some datum, or a number is out of range.

    Source: Challis and Barber 2013; Giordano, Ingram and Broderick 2024 for fixed draws.

    >>> precision = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> def density_of(rows):
    ...     return lambda z: -0.5 * ((z @ precision) * z).sum(-1)
    >>> rough = Gaussian(torch.ones(3, 2), torch.eye(2).expand(3, 2, 2))
    >>> found = fit_gaussian(density_of, DIAGONAL, rough, [rough], standard_noise(16, 2), tolerance=1e-6)
    >>> found.gaussian.scale_tril[0].diagonal().square().round(decimals=2)  # 1 / P_ii
    tensor([0.5000, 0.5000])
    """
    if not starts:
        raise ValueError("starts must hold at least one Gaussian to begin with, such as the whitening itself")

    def objective(rows: Tensor) -> LogDensityAndGradient:
        log_density, some = density_of(rows), Gaussian(*(field[rows] for field in whitening))
        return with_gradient(lambda position: _elbo(log_density, family.decode(position, some), noise))

    everything = torch.arange(len(whitening.loc), device=whitening.loc.device)
    start = _best([family.encode(each, whitening) for each in starts], objective(everything))
    found = lbfgs.maximize(objective, start, tolerance=tolerance, max_steps=max_steps)
    gaussian = family.decode(found.position, whitening)
    count = len(noise) * (found.num_evaluations + len(starts))
    return GaussianFit(gaussian, found.value, found.has_converged, count)


def standard_noise(
    num_draws: int, dim: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Float[Tensor, "k d"]:
    """Draw standard normal noise in opposite pairs, with mean 0 and covariance I exactly, not only on average.

    Linear maps of it integrate any quadratic without error.

    Args:
        num_draws: K, even, at least 2 D + 2.

    Raises:
        ValueError: if `num_draws` is not such a number.

    >>> u = standard_noise(8, 2)
    >>> bool(u.mean(0).abs().max() < 1e-6), bool((u.mT @ u / 8 - torch.eye(2)).abs().max() < 1e-6)
    (True, True)
    """
    if num_draws % 2 or num_draws < 2 * dim + 2:
        raise ValueError(
            f"draws in opposite pairs for {dim} dimensions must be even in number and at least {2 * dim + 2}, but "
            f"are {num_draws}"
        )
    half = torch.randn(num_draws // 2, dim, dtype=torch.float64, device=device)
    factor = torch.linalg.cholesky(half.mT @ half / len(half))
    half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
    return torch.cat([half, -half]).to(dtype or torch.get_default_dtype())


def gaussian_kl(q: Gaussian, p: Gaussian) -> Float[Tensor, " n"]:
    """Give KL(q || p) of Gaussians, row by row, in float64.

    KL = 1/2 [|L_p^-1 L_q|^2 + |L_p^-1 (m_p - m_q)|^2 - D] + log |L_p| - log |L_q|.

    >>> unit = Gaussian(torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2))
    >>> gaussian_kl(Gaussian(torch.ones(1, 2), unit.scale_tril), unit)
    tensor([1.], dtype=torch.float64)
    """
    (q_loc, q_tril), (p_loc, p_tril) = ((each.loc.double(), each.scale_tril.double()) for each in (q, p))
    ratio = torch.linalg.solve_triangular(p_tril, q_tril, upper=False)
    shift = torch.linalg.solve_triangular(p_tril, (p_loc - q_loc).unsqueeze(-1), upper=False).squeeze(-1)
    distance = ratio.square().sum((-2, -1)) + shift.square().sum(-1) - q_loc.shape[-1]
    return 0.5 * distance - _log_det(ratio)


def hadamard_gap(precision: Float[Tensor, "n d d"]) -> Float[Tensor, " n"]:
    """Give KL of the best diagonal Gaussian to a Gaussian of that precision P: 1/2 [sum_i log P_ii - log |P|] >= 0.

    NaN where P is not positive definite.

    >>> hadamard_gap(torch.tensor([[[1.0, 0.6], [0.6, 1.0]]]))  # -1/2 log(1 - 0.36)
    tensor([0.2231])
    """
    factor, failed = torch.linalg.cholesky_ex(precision.double())
    diagonal = precision.double().diagonal(dim1=-2, dim2=-1)
    value = 0.5 * diagonal.clamp(min=0.0).log().sum(-1) - _log_det(factor)
    value = value.clamp(min=0.0)  # rounding may leave it just below
    return torch.where(failed == 0, value, torch.nan).to(precision)


def _elbo(log_density: LogDensity, gaussian: Gaussian, noise: Float[Tensor, "k d"]) -> Float[Tensor, " n"]:
    # In float64: steps near the end gain less than the rounding of one log density.
    z = unwhiten(gaussian, noise.unsqueeze(1))
    constant = 0.5 * noise.shape[-1] * (1 + math.log(2 * math.pi))
    return log_density(z).double().mean(0) + _log_det(gaussian.scale_tril).double() + constant


def _best(starts: Sequence[Float[Tensor, "n p"]], evaluate: LogDensityAndGradient) -> Float[Tensor, "n p"]:
    """In every row the start with the largest finite value."""
    values = torch.stack([evaluate(start)[0].nan_to_num(-torch.inf, -torch.inf) for start in starts])
    best = values.amax(0)
    if bool((best == -torch.inf).any()):
        raise ValueError(
            f"no start has a finite ELBO for datum {int((best == -torch.inf).nonzero()[0])}: check the model there, "
            "or give other starts"
        )
    chosen = values.argmax(0)
    return torch.stack(list(starts))[chosen, torch.arange(len(chosen), device=chosen.device)]


def _log_det(scale_tril: Float[Tensor, "n d d"]) -> Float[Tensor, " n"]:
    return scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _marginal_scale(gaussian: Gaussian) -> Float[Tensor, "n d"]:
    """P_ii^-1/2, the scales of the best diagonal Gaussian."""
    identity = torch.eye(gaussian.loc.shape[-1], dtype=gaussian.loc.dtype, device=gaussian.loc.device)
    inverse = torch.linalg.solve_triangular(
        gaussian.scale_tril, identity.expand_as(gaussian.scale_tril), upper=False
    )
    return inverse.square().sum(-2).rsqrt()


# A log scale bends twice as much as a mean: log |L| - (L^2 - 1) / 2 at L = exp(r). Hence r / sqrt(2).


def _decode_diagonal(position: Float[Tensor, "n p"], whitening: Gaussian) -> Gaussian:
    shift, stretch = position.chunk(2, -1)
    scale = _marginal_scale(whitening) * (stretch / math.sqrt(2)).exp()
    return Gaussian(unwhiten(whitening, shift), torch.diag_embed(scale))


def _encode_diagonal(gaussian: Gaussian, whitening: Gaussian) -> Float[Tensor, "n p"]:
    stretch = math.sqrt(2) * (_marginal_scale(gaussian) / _marginal_scale(whitening)).log()
    return torch.cat([whiten(whitening, gaussian.loc), stretch], -1)


def _decode_full(position: Float[Tensor, "n p"], whitening: Gaussian) -> Gaussian:
    dim = whitening.loc.shape[-1]
    shift, stretch, below = position.split([dim, dim, position.shape[-1] - 2 * dim], -1)
    rows, columns = torch.tril_indices(dim, dim, -1, device=position.device)
    lower = torch.diag_embed((stretch / math.sqrt(2)).exp())
    lower = lower.index_put((torch.arange(len(position), device=rows.device)[:, None], rows, columns), below)
    return Gaussian(unwhiten(whitening, shift), whitening.scale_tril @ lower)


def _encode_full(gaussian: Gaussian, whitening: Gaussian) -> Float[Tensor, "n p"]:
    lower = torch.linalg.solve_triangular(whitening.scale_tril, gaussian.scale_tril, upper=False)
    rows, columns = torch.tril_indices(lower.shape[-2], lower.shape[-1], -1, device=lower.device)
    stretch = math.sqrt(2) * lower.diagonal(dim1=-2, dim2=-1).log()
    return torch.cat([whiten(whitening, gaussian.loc), stretch, lower[:, rows, columns]], -1)


DIAGONAL = Family(_decode_diagonal, _encode_diagonal)
"""Diagonal in z, the whitening not being so."""
FULL = Family(_decode_full, _encode_full)
