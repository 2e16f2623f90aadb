"""Which family of Gaussians a guide belongs to, from its distributions, and its mean and covariance at every datum."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.inference import hmc, laplace
from pyrovae.inference.laplace import Gaussian
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target
from pyrovae.target.draws import Draws
from pyrovae.target.handlers import is_latent, plate_dim, rows_first

__all__ = ["FAMILIES", "Guide", "read_guide"]

FAMILIES = ("diagonal", "full", "other")
PROBES = 16  # draws of the guide at which its density is compared with a Gaussian's
ROUNDING = 256.0  # units of rounding that such a comparison may show
UNCORRELATED = (
    1e-3  # standard deviations by which a parameter may follow another site's value, as by rounding
)
_LOC_SCALE: Final = {"Normal", "LogNormal"}


class Guide(NamedTuple):
    """The family of a guide in unconstrained coordinates."""

    family: str
    """One of `FAMILIES`."""
    reason: str
    """Why the family is "other"; "" elsewhere."""
    gaussian: Gaussian | None
    """The guide itself at every datum, where it is Gaussian in unconstrained coordinates; low rank included."""


class _Site(NamedTuple):
    """The innermost distribution of a site, and where the data lie in what it draws."""

    fn: Any
    shape: torch.Size
    axis: int

    @property
    def kind(self) -> str:
        return type(self.fn).__name__

    def rows(self, parameter: Tensor) -> Tensor:
        """A parameter of every coordinate, `[rows, size]`."""
        return rows_first(parameter.expand(self.shape), self.axis)


class _Watch(Messenger):
    """Watch a guide being run; afterwards `sites`, {name: its distribution}."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def __enter__(self) -> "_Watch":
        self.sites: dict[str, _Site] = {}
        super().__enter__()
        return self

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["name"] in self.sites:
            return
        fn, axis = msg["fn"], len(msg["fn"].batch_shape) + plate_dim(msg, self.plate)
        while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
            fn = fn.base_dist
        self.sites[msg["name"]] = _Site(fn, msg["fn"].shape(), axis)


def read_guide(target: Target, *, seed: int = 0) -> Guide:
    """The family of the target's guide, by its distributions, and its Gaussian.

    "diagonal": Normal or LogNormal sites that do not depend on each other's values. "full": one MultivariateNormal over
    all coordinates. "other": everything else. A low-rank Gaussian is "other", too: it lies between the two, and neither
    the best diagonal nor the best full Gaussian is the best of its family.
    """
    sites = _watched(target.rows(range(min(2, target.num_data))), 1, seed)[0]
    names = {site.kind for site in sites.values()}
    if [(site.kind, site.fn.event_shape.numel()) for site in sites.values()] == [
        ("MultivariateNormal", target.dim)
    ]:
        family = "full"
    elif names <= _LOC_SCALE:
        family = "diagonal"
    else:
        family = "other"
    read = {"full": _read_full, "diagonal": _read_diagonal}.get(family)
    gaussian = _gaussian(target, read, seed) if read else None
    if gaussian is not None:
        return Guide(family, "", gaussian)
    derived = _gaussian(target, _derived, seed) if target.can_score_guide else None
    if len(sites) > 1 and names <= _LOC_SCALE:
        return Guide("other", "the guide's sites depend on each other's values", derived)
    return Guide("other", f"the guide is a {' and a '.join(sorted(names))}", derived)


def _watched(target: Target, num_samples: int, seed: int) -> tuple[dict[str, _Site], Draws]:
    with _Watch(target.plate) as watch, seeded(seed):
        draws = target.sample_guide(num_samples)
    return watch.sites, draws


def _gaussian(target: Target, find: Callable[[Target, int], Gaussian | None], seed: int) -> Gaussian | None:
    """The guide's mean and covariance at every datum, in blocks; None if any block has none."""
    parts = [
        find(some, block_seed(seed, i))
        for i, some in enumerate(target.split(max(1, MAX_ROWS // (target.dim + 1 + PROBES))))
    ]
    if any(part is None for part in parts):
        return None
    return Gaussian(*(torch.cat(pieces) for pieces in zip(*(p for p in parts if p is not None), strict=True)))


def _read_diagonal(target: Target, seed: int) -> Gaussian | None:
    """Off the sites' own parameters, if these do not follow what other sites drew.

    Derivatives of the density would be no good here: a narrow guide far from 0 has none in single precision.
    """
    sites, draws = _watched(target, PROBES, seed)
    loc, scale = (
        torch.cat([sites[name].rows(getattr(sites[name].fn, field)) for name in target.sites], 1).reshape(
            draws.z.shape
        )
        for field in ("loc", "scale")
    )
    rounding = ROUNDING * torch.finfo(loc.dtype).eps * loc.abs()
    is_alone = (loc - loc[0]).abs() <= UNCORRELATED * scale[0] + rounding
    is_alone &= (scale - scale[0]).abs() <= UNCORRELATED * scale[0]
    gaussian = Gaussian(loc[0], torch.diag_embed(scale[0]))
    return gaussian if bool(is_alone.all() & _agrees(gaussian, *draws).all()) else None


def _read_full(target: Target, seed: int) -> Gaussian | None:
    """Off the parameters of the one site that there is."""
    sites, draws = _watched(target, PROBES, seed)
    (site,) = sites.values()
    shape = (PROBES, target.num_data, target.dim)
    loc = site.rows(site.fn.loc).reshape(shape)[0]
    tril = site.fn.scale_tril.expand(*site.shape, target.dim)
    gaussian = Gaussian(loc, rows_first(tril, site.axis).reshape(*shape, target.dim)[0])
    return gaussian if bool(_agrees(gaussian, *draws).all()) else None


def _derived(target: Target, seed: int) -> Gaussian | None:
    """From gradients of the guide's log density, if that is quadratic for every datum."""
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
