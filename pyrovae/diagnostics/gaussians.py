"""One Gaussian per datum for a target: Laplace's approximation, the guide's moments, the posterior where it is one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.inference import hmc, laplace
from pyrovae.inference.expansion import laplace_evidence
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import seeded
from pyrovae.target import Target

__all__ = ["GAUSSIANS", "Fitted", "GaussianPosterior", "fit_gaussian", "gaussian_posterior"]

PILOT = 500  # draws of the guide that give its moments
PROBES = 32  # points per datum at which a density is compared with its quadratic, half of them from the prior
ROUNDING = 256.0  # units of rounding that such a comparison may show


class GaussianPosterior(NamedTuple):
    """The posterior of every datum, and log p(x), of a target whose log p(x, z) is quadratic in z."""

    gaussian: Gaussian
    log_evidence: Float[Tensor, " n"]


class Fitted(NamedTuple):
    """A Gaussian per datum, and what it took."""

    gaussian: Gaussian
    guide: Gaussian
    """The guide's moments."""
    num_gradient_evaluations: int
    """Per datum; a curvature counts as D."""


def fit_gaussian(target: Target, name: str) -> Fitted:
    """The Gaussian called `name` in `GAUSSIANS`; draws of the guide come from the current random state.

    Raises:
        ValueError: an unknown name.
    """
    if name not in GAUSSIANS:
        raise ValueError(f"unknown Gaussian {name!r} of a datum: choose one of {', '.join(GAUSSIANS)}")
    return GAUSSIANS[name](target, laplace.from_draws(target.sample_guide(PILOT).z))


def gaussian_posterior(target: Target, *, seed: int = 0) -> GaussianPosterior:
    """The posterior where log p(x, z) is quadratic in z: a linear-Gaussian decoder with a Gaussian prior.

    The quadratic is read off at the guide's mean and compared with log p(x, z) at draws of the prior and of the
    posterior, so it holds for any model of that form and no other.

    Raises:
        ValueError: if log p(x, z) is not quadratic in z, naming the datum and what to use instead.
    """
    mean = target.guide_mean()
    value, gradient = hmc.with_gradient(lambda z: target.log_joint(z[None])[0])(mean)
    curvature = target.curvature(mean[None])[0]
    factor, info = torch.linalg.cholesky_ex(curvature.double())
    step = torch.cholesky_solve(gradient.double().unsqueeze(-1), factor).squeeze(-1)
    covariance = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor)).L
    posterior = Gaussian(mean + step.to(mean), covariance.to(mean))
    with seeded(seed):
        noise = torch.randn(PROBES // 2, *mean.shape, dtype=mean.dtype, device=mean.device)
        probes = torch.cat([target.sample_prior(PROBES // 2), laplace.unwhiten(posterior, noise)])
    terms = _quadratic_terms(probes - mean, gradient, curvature)
    error = target.log_joint(probes) - (value + terms.sum(0))
    allowed = ROUNDING * torch.finfo(value.dtype).eps * (1.0 + value.abs() + terms.abs().sum(0))
    _check_quadratic(torch.where(error.abs() <= allowed, 0.0, error.abs()), info)
    return GaussianPosterior(posterior, laplace_evidence(value, gradient, curvature))


def _quadratic_terms(
    step: Float[Tensor, "k n d"], gradient: Float[Tensor, "n d"], curvature: Float[Tensor, "n d d"]
) -> Float[Tensor, "2 k n"]:
    linear = (gradient * step).sum(-1)
    return torch.stack([linear, -0.5 * torch.einsum("kni,nij,knj->kn", step, curvature, step)])


def _check_quadratic(excess: Float[Tensor, "k n"], info: Tensor) -> None:
    worst = torch.where(info == 0, excess.nan_to_num(nan=torch.inf).amax(0), torch.inf)
    if bool((worst > 0).any()):
        datum = int(worst.argmax())
        raise ValueError(
            "a closed form needs log p(x, z) quadratic in z (a linear-Gaussian decoder with a Gaussian prior), but for "
            f"datum {datum} it departs from a quadratic by {float(worst[datum]):.3g} nats: use quadrature for one or "
            "two latent dimensions, annealing for more"
        )


def _guide(target: Target, guide: Gaussian) -> Fitted:
    return Fitted(guide, guide, 0)


def _laplace(target: Target, guide: Gaussian) -> Fitted:
    """Laplace's Gaussian, and the guide's moments for data at which it is not usable."""
    density = hmc.with_gradient(lambda z: target.log_joint(z[None])[0])
    fit = laplace.fit_laplace(density, target.curvature, guide.loc)
    usable = fit.is_usable
    found = Gaussian(
        torch.where(usable[:, None], fit.gaussian.loc, guide.loc),
        torch.where(usable[:, None, None], fit.gaussian.scale_tril, guide.scale_tril),
    )
    return Fitted(found, guide, (fit.num_steps + 1) * (1 + target.dim))


GAUSSIANS = {"laplace": _laplace, "guide": _guide}
"""Every way to a Gaussian per datum, by name."""
