"""Which family of Gaussians a guide belongs to, from its distributions, and its mean and covariance at every datum."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.inference import hmc, laplace
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["FAMILIES", "Guide", "read_guide"]

FAMILIES = ("diagonal", "full", "other")
PROBES = 16  # draws of the guide at which its density is compared with a Gaussian's
ROUNDING = 256.0  # units of rounding that such a comparison may show
UNCORRELATED = 1e-3  # a correlation that rounding may leave where there is none


class Guide(NamedTuple):
    """The family of a guide in unconstrained coordinates."""

    family: str
    """One of `FAMILIES`."""
    reason: str
    """Why the family is "other"; "" elsewhere."""
    gaussian: Gaussian | None
    """The guide itself at every datum, where it is Gaussian in unconstrained coordinates; low rank included."""


class _Kinds(Messenger):
    """Watch a guide being run; afterwards `kinds`, {site: (innermost distribution, its event size)}."""

    def __enter__(self) -> "_Kinds":
        self.kinds: dict[str, tuple[str, int]] = {}
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or msg["name"] in self.kinds:
            return
        fn = msg["fn"]
        while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
            fn = fn.base_dist
        self.kinds[msg["name"]] = (type(fn).__name__, fn.event_shape.numel())


def read_guide(target: Target, *, seed: int = 0) -> Guide:
    """The family of the target's guide, by its distributions, and its Gaussian, read off its log density.

    "diagonal": Normal or LogNormal sites that do not depend on each other's values. "full": one MultivariateNormal over
    all coordinates. "other": everything else. A low-rank Gaussian is "other", too: it lies between the two, and neither
    the best diagonal nor the best full Gaussian is the best of its family.
    """
    with _Kinds() as watch, seeded(seed):
        target.rows(range(min(2, target.num_data))).sample_guide(1)
    gaussian = _gaussian(target, seed) if target.can_score_guide else None
    kinds = list(watch.kinds.values())
    names = {name for name, _ in kinds}
    if gaussian is not None and kinds == [("MultivariateNormal", target.dim)]:
        return Guide("full", "", gaussian)
    if gaussian is not None and names <= {"Normal", "LogNormal"}:
        if _is_diagonal(gaussian):
            return Guide("diagonal", "", gaussian)
        return Guide("other", "the guide's sites depend on each other's values", gaussian)
    return Guide("other", f"the guide is a {' and a '.join(sorted(names))}", gaussian)


def _gaussian(target: Target, seed: int) -> Gaussian | None:
    """The guide's mean and covariance, from gradients of its log density, if that is quadratic for every datum."""
    parts = [
        _gaussian_of_block(some, block_seed(seed, i))
        for i, some in enumerate(target.split(max(1, MAX_ROWS // (target.dim + 1 + PROBES))))
    ]
    if any(part is None for part in parts):
        return None
    return Gaussian(*(torch.cat(pieces) for pieces in zip(*(p for p in parts if p is not None), strict=True)))


def _gaussian_of_block(target: Target, seed: int) -> Gaussian | None:
    with seeded(seed):
        draws = target.sample_guide(PROBES)
    centre, width = draws.z.mean(0), draws.z.std(0).clamp(min=1e-6)
    # The gradient of a quadratic is linear: its values at D + 1 points are all there is to know.
    points = torch.cat([centre[None], centre + torch.diag_embed(width).movedim(1, 0)])
    gradient = hmc.with_gradient(target.log_guide)(points)[1].double()
    columns = (gradient[0] - gradient[1:]).permute(1, 2, 0) / width.double().unsqueeze(-2)
    precision = 0.5 * (columns + columns.mT)
    if not bool(precision.isfinite().all()):
        return None
    factor, failed = torch.linalg.cholesky_ex(precision)
    if bool((failed != 0).any()):
        return None
    mean = centre.double() + torch.cholesky_solve(gradient[0].unsqueeze(-1), factor).squeeze(-1)
    scale_tril, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor))
    gaussian = Gaussian(mean.to(centre), scale_tril.to(centre))
    fits = failed.eq(0).all() & _agrees(gaussian, draws.z, draws.log_q).all()
    return gaussian if bool(fits) else None


def _agrees(gaussian: Gaussian, z: Float[Tensor, "k n d"], log_q: Float[Tensor, "k n"]) -> Bool[Tensor, " n"]:
    """Whether the density is the guide's at draws of it, row by row."""
    size = 1.0 + log_q.abs() + 0.5 * laplace.whiten(gaussian, z).square().sum(-1)
    error = (laplace.log_prob(gaussian, z) - log_q).abs()
    return (error <= ROUNDING * torch.finfo(z.dtype).eps * size).all(0)


def _is_diagonal(gaussian: Gaussian) -> bool:
    rows = gaussian.scale_tril / gaussian.scale_tril.norm(dim=-1, keepdim=True)
    correlation = rows @ rows.mT
    off = correlation - torch.diag_embed(correlation.diagonal(dim1=-2, dim2=-1))
    return bool((off.abs() <= UNCORRELATED).all())
