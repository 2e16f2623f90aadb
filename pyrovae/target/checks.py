"""What a Target refuses, a sentence each with the cure: data, sites, and densities that are not per datum."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.target.handlers import is_deterministic, is_latent

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = [
    "check_data",
    "check_densities",
    "check_guide_sites",
    "check_model_sites",
    "check_same_sites",
    "check_shape",
    "is_close",
]


def check_data(data: Sequence[Any]) -> None:
    """Tensors with one and the same number of rows, at least one, all of them finite."""
    if not data:
        raise ValueError(
            "Target needs data: pass the arguments of model and guide after them, Target(model, guide, x); of a VAE, "
            "vae.model and vae.guide"
        )
    for i, x in enumerate(data):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"data argument {i} must be a tensor whose axis 0 indexes the data, not {type(x).__name__}: pass "
                "inputs that all data share by closure or functools.partial"
            )
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(f"data argument {i} is empty (shape {list(x.shape)}): pass at least one datum")
        if len(x) != len(data[0]):
            raise ValueError(
                f"data argument {i} has {len(x)} rows and argument 0 has {len(data[0])}: axis 0 of each must index "
                "the same data; pass inputs that all data share by closure or functools.partial"
            )
        finite = torch.isfinite(x).reshape(len(x), -1).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ValueError(
                f"data argument {i} has NaN or infinite values, first in row {row}: drop such rows, or fill them "
                "and pass a mask as another argument"
            )


def check_model_sites(trace: Trace, plate: str) -> None:
    """Every latent and observed site of the model lies in the data plate; latents are continuous."""
    _check_plate(trace, plate, "model")
    latents = [site for site in _sample_sites(trace) if is_latent(site)]
    if not latents:
        raise ValueError("the model has no latent site: there is no posterior to speak of")
    if len(latents) == sum(1 for _ in _sample_sites(trace)):
        raise ValueError(
            "the model has no observed site: give the data to one by obs=; or were model and guide swapped? The model "
            "comes first"
        )
    for site in _sample_sites(trace):
        name = site["name"]
        if is_latent(site):
            if not _in_plate(site, plate):
                raise ValueError(
                    f"latent site {name!r} of the model lies outside the plate {plate!r}: its posterior is shared by "
                    "all data; condition on it (pyro.condition) or move it into the plate"
                )
            _check_continuous(site)
        elif not _in_plate(site, plate):
            raise ValueError(
                f"observed site {name!r} of the model lies outside the plate {plate!r}, so its density belongs to no "
                "datum: move it into the plate"
            )


def check_guide_sites(trace: Trace, plate: str, num_data: int) -> None:
    """Every latent of the guide lies in the data plate and has a density; no parameter belongs to one datum."""
    for name, site in trace.nodes.items():
        if site["type"] == "param" and _is_per_datum(site, plate, num_data):
            raise ValueError(
                f"pyro.param {name!r} has one row per datum, so the guide is not amortized: compute the latents from "
                "the data, row by row"
            )
    for site in _sample_sites(trace):
        name = site["name"]
        if is_latent(site) and site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r} of the guide is auxiliary, so the density of the latents is not known: draw the "
                "latents themselves, from a distribution with log_prob (a TransformedDistribution for a flow)"
            )
        if is_latent(site) and _is_delta(site["fn"]):
            raise ValueError(
                f"site {name!r} of the guide is a Delta, which has no density: use a distribution with a spread, "
                "such as Normal(...).to_event(1)"
            )
    _check_plate(trace, plate, "guide")
    for site in _sample_sites(trace):
        if not _in_plate(site, plate):
            raise ValueError(
                f"site {site['name']!r} of the guide lies outside the plate {plate!r}: move it into the plate"
            )


def check_same_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Model and guide have the same latent sites, of the same shapes."""
    model = {site["name"]: site["fn"] for site in _sample_sites(model_trace) if is_latent(site)}
    guide = {site["name"]: site["fn"] for site in _sample_sites(guide_trace) if is_latent(site)}
    if model.keys() != guide.keys():
        raise ValueError(
            "model and guide must have the same latent sites; only in the model: "
            f"{sorted(model.keys() - guide) or 'none'}, only in the guide: {sorted(guide.keys() - model) or 'none'}"
        )
    for name in model:
        shapes = [list(fn.shape()) for fn in (model[name], guide[name])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"latent site {name!r} must have one shape in model and guide, but for the first data it is "
                f"{shapes[0]} in the model and {shapes[1]} in the guide: give both as many coordinates"
            )


def _sample_sites(trace: Trace) -> Iterator[Any]:
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site):
            yield site


def _in_plate(site: Any, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def _check_plate(trace: Trace, plate: str, role: str) -> None:
    frames = [frame for site in _sample_sites(trace) for frame in site["cond_indep_stack"]]
    if any(frame.name == plate and frame.dim is None for frame in frames):
        raise ValueError(
            f"the {role} goes through the plate {plate!r} one datum at a time: use it as a context, "
            f"`with pyro.plate({plate!r}, len(x)):`"
        )
    if all(frame.name != plate for frame in frames):
        found = sorted({repr(frame.name) for frame in frames})
        raise ValueError(
            f"the {role} has no plate named {plate!r} (found: {', '.join(found) or 'none'}): put its sites inside "
            f"`with pyro.plate({plate!r}, len(x)):`, or name the plate of the data with plate="
        )


def _check_continuous(site: Any) -> None:
    try:
        is_discrete = site["fn"].support.is_discrete
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"the distribution of latent site {site['name']!r}, {type(site['fn']).__name__}, does not say its "
            "support, so it cannot be mapped to unconstrained coordinates: use one that does"
        ) from error
    if is_discrete:
        raise ValueError(
            f"latent site {site['name']!r} is discrete: sum it out in the model (a mixture distribution), or condition "
            "on it"
        )


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _is_per_datum(site: Any, plate: str, num_data: int) -> bool:
    """Whether a pyro.param inside the plate declares a batch dimension of the size of the data."""
    event_dim = site["kwargs"].get("event_dim")
    dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == plate and frame.dim is not None]
    if event_dim is None or not dims:
        return False
    shape = site["value"].shape
    axis = dims[0] - event_dim
    return len(shape) >= -axis and shape[axis] == num_data > 1


def check_shape(target: "Target", z: Tensor) -> None:
    """z has the rows and coordinates of the target."""
    if z.dim() != 3 or z.shape[1:] != (target.num_data, target.dim):
        raise ValueError(
            f"z must have the shape [K, N, D] = [K, {target.num_data}, {target.dim}], not {list(z.shape)}"
        )


def check_densities(target: "Target") -> bool:
    """The densities are per datum, the same at every call, and the guide scores its own draws; can it score?"""
    few = target.rows(range(min(target.num_data, 16)))
    try:
        z, log_q = few.sample_guide(2)
        log_p = few.log_joint(z)
    except RuntimeError as error:
        raise ValueError(
            "model and guide run on the data but not on the data repeated: their sizes are fixed to these data, or "
            f"their latents are not computed row by row ({error}); compute everything from the arguments, row by row"
        ) from error
    _check_not_nan(log_p, "log p(x, z)")
    _check_not_nan(log_q, "log q(z | x)")
    _check_repeatable(few.log_joint(z), log_p, "model")
    _check_independent(few, "model", lambda t, z: t.log_joint(z))
    return _check_score(few, z, log_q)


def _check_score(few: "Target", z: Tensor, log_q: Tensor) -> bool:
    try:
        scored = few.log_guide(z.clone())
    except (NotImplementedError, KeyError):
        return False
    _check_repeatable(few.log_guide(z), scored, "guide")
    _check_independent(few, "guide", lambda t, z: t.log_guide(z))
    if not is_close(scored, log_q):
        error = float((scored - log_q).abs().max())
        raise ValueError(
            f"the guide scores its own draws with an error of {error:.3g} nats: its log_prob is not the density of "
            "what it samples, or a transform loses precision (try float64)"
        )
    return True


def _check_not_nan(value: Tensor, what: str) -> None:
    bad = torch.isnan(value).any(0)
    if bool(bad.any()):
        raise ValueError(
            f"{what} is NaN for datum {int(bad.nonzero()[0])} at a draw of the guide: check the parameters and the "
            "scale of the data"
        )


def _check_repeatable(again: Tensor, first: Tensor, role: str) -> None:
    if not is_close(again, first):
        raise ValueError(
            f"the density of the {role} changes between two calls at the same z: it draws noise inside (dropout in "
            "train mode?); call .eval() on its modules"
        )


def _check_independent(few: "Target", role: str, density: Callable[["Target", Tensor], Tensor]) -> None:
    """Change the first half of a batch and see whether the densities of the second half move."""
    n = few.num_data
    before, after = few.rows([*range(n), *range(n)]), few.rows([0] * n + [*range(n)])
    z_before = before.sample_guide(1).z
    z_after = torch.cat([before.sample_guide(1).z[:, :n], z_before[:, n:]], 1)
    if not is_close(density(after, z_after)[:, n:], density(before, z_before)[:, n:]):
        raise ValueError(
            f"data influence each other in the {role}: the density of one datum moves when another is replaced "
            "(BatchNorm in train mode?); call .eval() on its modules"
        )


def is_close(a: Tensor, b: Tensor) -> bool:
    """Equal to 1e-3 nats in float32, 1e-9 in float64, and 1e-4 (1e-10) relative; infinities equal themselves."""
    coarse = a.dtype != torch.float64
    return torch.allclose(a, b, atol=1e-3 if coarse else 1e-9, rtol=1e-4 if coarse else 1e-10)
