"""Model and guide of one datum as Pyro's own inference needs them: one row, no scales, and z as the latent sites."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.target import Target
from pyrovae.target.handlers import DataPlate, bijection

__all__ = ["SUFFIX", "OneDatum", "one_datum", "unconstrained"]

Program = Callable[..., Any]
SUFFIX = "_unconstrained"
"""Of the name that a latent site has where it is the unconstrained one."""


class OneDatum(NamedTuple):
    """Model and guide as the user wrote them, for one datum."""

    model: Program
    guide: Program
    data: tuple[Tensor, ...]


class _Unscaled(Messenger):
    """The densities of a Target ignore scales (subsampling, KL warm-up); Pyro's inference does not."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


class _Unconstrain(Reparam):
    """Let u = T^-1(v) be the latent site in place of v, with T the map onto the support that v has in this run."""

    def apply(self, msg: Any) -> Any:
        transform, value = bijection(msg["fn"]), msg["value"]
        given = None if value is None else transform.inv(value)
        u = pyro.sample(
            msg["name"] + SUFFIX,
            dist.TransformedDistribution(msg["fn"], [transform.inv]),
            obs=given,
            infer={"is_observed": msg["is_observed"]},
        )
        value = transform(u) if value is None else value
        return {"fn": dist.Delta(value, event_dim=msg["fn"].event_dim), "value": value, "is_observed": True}


def one_datum(target: Target, row: int) -> OneDatum:
    """Model, guide and data of datum `row`; run them inside `pyro.get_param_store().scope()`."""

    def prepared(program: Program) -> Program:
        plate = DataPlate(target.plate, 1, target._params, target.data[0].device)
        # Pyro's kernels refuse a plate that declares more rows than it holds; a Target takes it for its data.
        return poutine.block(_Unscaled()(plate(program)), hide_fn=site_is_subsample)

    data = target.rows([row]).data
    return OneDatum(prepared(target.model), prepared(target.guide), data)


def unconstrained(model: Program, sites: Collection[str]) -> Program:
    """The model with a latent site u, `<name>_unconstrained`, in place of each of its latent `sites`.

    With one datum, u flattened is that site's columns of z. The map runs inside the model, so that a support may
    depend on another latent; Pyro's kernels alone would keep the support of their first run.
    """
    return poutine.reparam(model, config=lambda msg: _Unconstrain() if msg["name"] in sites else None)
