"""Expected negative Hessian of log p(x, z) in z: J' F J of the observed sites, plus the prior's."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, autograd
from torch.autograd import forward_ad

from pyrovae.target.handlers import Message, PlaceLatents, log_prob, plate_dim, rows_first

__all__ = ["expected_curvature"]

Run = Callable[
    [Tensor, int], PlaceLatents
]  # (z [rows, D], copies of the data) -> what the model's run collected


def expected_curvature(run: Run, z: Tensor, num_copies: int, plate: str) -> Tensor:
    """Expected negative Hessian at `z` `[rows, D]`, row by row: `[rows, D, D]`.

    Lambda = sum over observed sites of J' F J - Hessian of log p(z), with J the Jacobian of the site's parameters
    in z and F their Fisher information (Normal, Bernoulli, Poisson). Sites of other families add their exact
    negative Hessian. J takes one forward-mode pass over D copies of the rows.
    """
    hessian = _negative_hessian(lambda u: _not_fisher_terms(run(u, num_copies), plate), z)
    return hessian + _gauss_newton(run, z, num_copies, plate)


def _not_fisher_terms(placed: PlaceLatents, plate: str) -> Tensor:
    terms = placed.log_prior
    for msg in placed.observed:
        if _fisher(msg) is None:
            terms = terms + log_prob(msg, plate)
    return terms


def _negative_hessian(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Minus the Hessian of a row-wise function `[rows, D] -> [rows]`: D backward passes over one gradient."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (gradient,) = autograd.grad(function(z).sum(), z, create_graph=True)
        columns = [_column(gradient[:, i], z) for i in range(z.shape[1])]
    hessian = torch.stack(columns, 1)
    return -(hessian + hessian.mT) / 2


def _column(gradient: Tensor, z: Tensor) -> Tensor:
    if not gradient.requires_grad:
        return torch.zeros_like(z)
    (column,) = autograd.grad(gradient.sum(), z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if column is None else column.detach()


def _gauss_newton(run: Run, z: Tensor, num_copies: int, plate: str) -> Tensor:
    rows, dim = z.shape
    tangents = torch.eye(dim, dtype=z.dtype, device=z.device).repeat_interleave(rows, 0)
    total = z.new_zeros(rows, dim, dim)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(z.detach().repeat(dim, 1), tangents)
        for msg in run(dual, dim * num_copies).observed:
            for parameter, information in _fisher(msg) or ():
                jacobian = _weighted_jacobian(parameter, information, msg, plate)
                if jacobian is not None:
                    jacobian = jacobian.reshape(dim, rows, -1)
                    total = total + torch.einsum("irx,jrx->rij", jacobian, jacobian)
    return total


def _weighted_jacobian(parameter: Tensor, information: Tensor, msg: Message, plate: str) -> Tensor | None:
    """Rows of F^1/2 J for one parameter of one site, masked; None if it does not depend on z."""
    primal, tangent = forward_ad.unpack_dual(parameter)
    if tangent is None:
        return None
    weight = forward_ad.unpack_dual(information).primal.sqrt()
    fn = msg["fn"]
    for mask in _masks(msg):
        shaped = torch.as_tensor(mask, device=weight.device).expand(fn.batch_shape)
        weight = weight * shaped.reshape(*fn.batch_shape, *[1] * (primal.dim() - len(fn.batch_shape)))
    axis = len(fn.batch_shape) + plate_dim(msg, plate)
    return rows_first(tangent * weight, axis)


def _masks(msg: Message) -> Iterator[Any]:
    if msg["mask"] is not None:
        yield msg["mask"]
    fn = msg["fn"]
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            yield fn._mask
        fn = fn.base_dist


def _fisher(msg: Message) -> list[tuple[Tensor, Tensor]] | None:
    """Parameters of a site and their Fisher information, diagonal; None for families without a closed form."""
    fn = msg["fn"]
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    if type(fn) is dist.Normal:
        return [(fn.loc, fn.scale**-2), (fn.scale, 2 * fn.scale**-2)]
    if type(fn) is dist.Bernoulli:
        probs = torch.sigmoid(fn.logits)
        return [(fn.logits, probs * (1 - probs))]
    if type(fn) is dist.Poisson:
        return [(fn.rate, 1 / fn.rate)]
    return None
