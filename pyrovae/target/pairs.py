"""log q(z | x) of every z under every datum: the guide is run once per datum where its sites allow it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyrovae.target.checks import is_close
from pyrovae.target.handlers import Message, is_latent, plate_dim

if TYPE_CHECKING:
    from pyrovae.target.layout import Layout
    from pyrovae.target.target import Target

__all__ = ["pair_scorer"]


def pair_scorer(target: "Target") -> Callable[[Tensor], Tensor]:
    """A callable `[S, D] -> [S, N]`.

    Where the supports are real and no site of the guide depends on another's value, the guide's distributions are kept
    from one run and score any z by broadcasting; that is checked against `Target.log_guide`. Elsewhere the data are
    tiled, and the guide runs anew for every z.
    """
    if target._layout.is_real:
        score = _kept(target)
        if _agrees(target, score):
            return score
    return lambda z: target.log_guide(z[:, None].expand(-1, target.num_data, -1))


def _kept(target: "Target") -> Callable[[Tensor], Tensor]:
    tracer = TraceMessenger()
    with torch.no_grad():
        target._run(target.guide, 1, tracer)
    sites = [site for site in tracer.trace.nodes.values() if site["type"] == "sample" and is_latent(site)]

    def score(z: Tensor) -> Tensor:
        total = z.new_zeros(len(z), target.num_data)
        with torch.no_grad():
            for site in sites:
                total = total + _score_site(site, z, target._layout, target.plate)
        return total

    return score


def _score_site(site: Message, z: Tensor, layout: "Layout", plate: str) -> Tensor:
    name, fn = site["name"], site["fn"]
    value = z[:, layout.columns[name]].reshape(-1, *layout.shapes[name]).unsqueeze(1 + layout.axes[name])
    log_prob = scale_and_mask(fn.log_prob(value.expand(-1, *fn.shape())), mask=site["mask"])
    return log_prob.movedim(plate_dim(site, plate), 1).flatten(2).sum(-1) if log_prob.dim() > 2 else log_prob


def _agrees(target: "Target", score: Callable[[Tensor], Tensor]) -> bool:
    """Whether the kept distributions score two draws of two data as the guide itself does."""
    z = target.rows([0, target.num_data - 1]).sample_guide(1).z[0]
    few = target.rows([0, target.num_data - 1])
    try:
        kept = score(z)[:, [0, target.num_data - 1]]
    except (RuntimeError, ValueError):
        return False
    return kept.shape == (2, 2) and is_close(kept, few.log_guide(z[:, None].expand(-1, 2, -1)))
