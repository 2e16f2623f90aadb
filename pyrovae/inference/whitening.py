"""Better coordinates from what chains have seen: the Gaussian nearest in Fisher divergence, one per datum."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrovae.inference.laplace import Gaussian, unwhiten

__all__ = ["compose", "force", "from_gradients", "misfit", "rewhiten"]

RIDGE = 1e-3  # of a unit of the coordinates that draws come in; directions they never took stay as they are
BETTER = 0.9  # of the misfit; a Gaussian that gains less is not taken


def compose(outer: Gaussian, inner: Gaussian) -> Gaussian:
    """Give the Gaussian with unwhiten(result, u) = unwhiten(outer, unwhiten(inner, u)).

    >>> twice = Gaussian(torch.ones(1, 1), torch.full((1, 1, 1), 2.0))
    >>> compose(twice, twice)
    Gaussian(loc=tensor([[3.]]), scale_tril=tensor([[[4.]]]))
    """
    return Gaussian(unwhiten(outer, inner.loc), outer.scale_tril @ inner.scale_tril)


def from_gradients(position: Float[Tensor, "k n d"], gradient: Float[Tensor, "k n d"]) -> Gaussian:
    """Give the Gaussian whose log density has the gradients nearest to those seen at K positions per datum.

    With covariances X of positions and G of gradients, its covariance A solves A G A = X, the geometric mean of X and
    G^-1, and its mean is that of positions plus A times that of gradients: the minimizer of `misfit`. For a Gaussian
    density it is the exact one from D + 1 positions, however they were come by; draws that mix badly will do. With
    fewer, directions without draws keep scale 1, so positions should be roughly whitened.

    Args:
        position: K >= 2, finite.
        gradient: of the log density there, finite.

    Source: Seyboldt, Carlson and Carpenter 2026.

    >>> position = torch.randn(5, 1, 2)
    >>> found = from_gradients(position, -(position - 1.0) / 4.0)
    >>> found.loc.round(decimals=2), found.scale_tril.round(decimals=2).abs()
    (tensor([[1., 1.]]), tensor([[[2., 0.],
             [0., 2.]]]))
    """
    q, g = position.double(), gradient.double()
    centre, slope = q.mean(0), g.mean(0)
    factor = torch.linalg.cholesky_ex(_covariance(q - centre)).L
    # With X = L L' and L' G L = V w V': A = L V w^-1/2 V' L'.
    spectrum, basis = torch.linalg.eigh(factor.mT @ _covariance(g - slope) @ factor)
    half = factor @ basis * spectrum.clamp(min=torch.finfo(q.dtype).tiny).pow(-0.25).unsqueeze(-2)
    covariance = half @ half.mT
    loc = centre + (covariance @ slope.unsqueeze(-1)).squeeze(-1)
    return Gaussian(loc.to(position), torch.linalg.cholesky_ex(covariance).L.to(position))


def misfit(
    gaussian: Gaussian, position: Float[Tensor, "k n d"], gradient: Float[Tensor, "k n d"]
) -> Float[Tensor, " n"]:
    """Give the mean over draws of |g_u + u|^2 / D in the coordinates u of the Gaussian; 0 if it is the density itself.

    The force that is left when the Gaussian's is taken away, which is what an integrator by `hmc.rotations` errs by.

    >>> unit = Gaussian(torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2))
    >>> misfit(unit, torch.ones(5, 1, 2), -3.0 * torch.ones(5, 1, 2))
    tensor([4.], dtype=torch.float64)
    """
    q, g, factor = position.double(), gradient.double(), gaussian.scale_tril.double()
    centred = (q - gaussian.loc.double()).unsqueeze(-1)
    u = torch.linalg.solve_triangular(factor, centred, upper=False).squeeze(-1)
    return (torch.einsum("nji,knj->kni", factor, g) + u).square().mean(-1).mean(0)


def force(gaussian: Gaussian, gradient: Float[Tensor, "k n d"]) -> Float[Tensor, " n"]:
    """Give the mean over draws of |g_u|^2 / D in the coordinates of the Gaussian; 1 if it is the density itself.

    >>> force(Gaussian(torch.zeros(1, 2), 2.0 * torch.eye(2).expand(1, 2, 2)), torch.ones(5, 1, 2))
    tensor([4.], dtype=torch.float64)
    """
    forces = torch.einsum("nji,knj->kni", gaussian.scale_tril.double(), gradient.double())
    return forces.square().mean(-1).mean(0)


def rewhiten(
    position: Float[Tensor, "t c n d"], gradient: Float[Tensor, "t c n d"]
) -> tuple[Gaussian, Bool[Tensor, " n"]]:
    """Give the Gaussian of `from_gradients` where it is clearly better than the standard normal, which it is elsewhere.

    Clearly better: fitted to every other chain, it has less than 0.9 times the misfit to the rest. The result is
    fitted to all. Rows that are not finite are left out by taking the standard normal for their datum.

    Args:
        position: T draws of C >= 2 chains.
        gradient: of the log density there.

    Returns:
        The Gaussian in the coordinates of `position`, and where it is new.

    >>> position = torch.randn(10, 4, 1, 2)
    >>> found, is_new = rewhiten(position, -position / 9.0)
    >>> found.scale_tril[0].diagonal().round(), is_new
    (tensor([3., 3.]), tensor([True]))
    """
    dim = position.shape[-1]
    is_finite = (position.isfinite() & gradient.isfinite()).all(-1).all(0).all(0)
    seen = is_finite.unsqueeze(-1)
    q, g = torch.where(seen, position, 0.0), torch.where(seen, gradient, 0.0)
    trial = from_gradients(q[:, ::2].flatten(0, 1), g[:, ::2].flatten(0, 1))
    rest = q[:, 1::2].flatten(0, 1), g[:, 1::2].flatten(0, 1)
    identity = torch.eye(dim, dtype=q.dtype, device=q.device).expand_as(trial.scale_tril)
    unit = Gaussian(torch.zeros_like(trial.loc), identity)
    is_better = is_finite & (misfit(trial, *rest) < BETTER * misfit(unit, *rest))
    fitted = from_gradients(q.flatten(0, 1), g.flatten(0, 1))
    is_better &= fitted.loc.isfinite().all(-1) & fitted.scale_tril.isfinite().all(-1).all(-1)
    is_better &= (fitted.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all(-1)
    loc = torch.where(is_better[:, None], fitted.loc, unit.loc)
    return Gaussian(loc, torch.where(is_better[:, None, None], fitted.scale_tril, identity)), is_better


def _covariance(centred: Float[Tensor, "k n d"]) -> Float[Tensor, "n d d"]:
    dim = centred.shape[-1]
    ridge = RIDGE * torch.eye(dim, dtype=centred.dtype, device=centred.device)
    return torch.einsum("kni,knj->nij", centred, centred) / max(len(centred) - 1, 1) + ridge / len(centred)
