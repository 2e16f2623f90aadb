"""Explicit noise: Pyro programs whose latent sites take their random numbers from tensors that the caller gives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["draw_noise", "with_noise"]

Function = Callable[..., Any]
Take = Callable[[str, Tensor, Function], Tensor]


def with_noise(program: Function, noise: Mapping[str, Tensor]) -> Function:
    """A Pyro program whose latent sites take their base noise from `noise` instead of drawing it.

    A site runs its own `rsample`, in which only the random numbers are replaced: Normal gives loc + scale eps, with
    gradients as ever. So does any distribution that is a function of normal, uniform, exponential or Cauchy numbers:
    Gaussians with full or low-rank covariance, Laplace, Gumbel, Uniform, flows over such. Sites that have a value
    (observed, replayed) take none. Works under `vmap` over the noise and in `traced`, with Pyro's validation off.

    Args:
        program: a Pyro model or guide, or anything that runs some.
        noise: {site: noise}, as `draw_noise` gives it.

    Raises:
        NotImplementedError: when run, at a site that is no function of such numbers (Gamma, discrete, mixture).
        ValueError: when run, if a site's noise is missing, of another shape or dtype, or left over.

    >>> import pyro, pyro.distributions as dist
    >>> guide = lambda x: pyro.sample("z", dist.Normal(x, 2.0).to_event(1))
    >>> with_noise(guide, {"z": torch.tensor([1.0, -1.0])})(torch.tensor([10.0, 20.0]))
    tensor([12., 18.])
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        rest = dict(noise)

        def take(site: str, wanted: Tensor, _: Function) -> Tensor:
            given = rest.pop(site, torch.empty(0))
            if given.dim() and wanted.dim() and given.shape[-1] > wanted.shape[-1]:
                given, rest[site] = given.tensor_split([wanted.shape[-1]], -1)
            gets, wants = ((list(eps.shape), eps.dtype) for eps in (given, wanted))
            if gets != wants:
                raise ValueError(f"site {site!r} wants noise of {wants}, not {gets}: see draw_noise")
            return given

        with _Noise(take):
            result = program(*args, **kwargs)
        if rest:
            raise ValueError(f"noise of {sorted(rest)} is left over: give what draw_noise gives, no more")
        return result

    return run


def draw_noise(program: Function, *args: Any, num_replicates: int | None = None) -> dict[str, Tensor]:
    """Run a Pyro program and give the base noise of its latent sites, {site: noise}, for `with_noise`.

    With the same seed it is the noise that the program would draw by itself. A site that draws twice has both along
    the last axis: LowRankMultivariateNormal of rank R has R columns, then D. Raises as `with_noise` does.

    Args:
        program: as in `with_noise`; called with `*args`.
        num_replicates: if given, the noise has one more axis on the left, of this size; independent along it.

    >>> import pyro, pyro.distributions as dist
    >>> guide = lambda x: pyro.sample("z", dist.Normal(x, 2.0).to_event(1))
    >>> noise = draw_noise(guide, torch.zeros(5, 3), num_replicates=7)
    >>> torch.func.vmap(lambda noise: with_noise(guide, noise)(torch.zeros(5, 3)))(noise).shape
    torch.Size([7, 5, 3])
    """
    lead = () if num_replicates is None else (num_replicates,)
    noise: dict[str, Tensor] = {}

    def take(site: str, wanted: Tensor, fill: Function) -> Tensor:
        drawn = fill(wanted.new_empty(lead + wanted.shape))
        if site in noise and not (wanted.dim() and noise[site].shape[:-1] == drawn.shape[:-1]):
            raise _no_noise(site, "it draws several tensors that do not go side by side")
        noise[site] = torch.cat([noise[site], drawn], -1) if site in noise else drawn
        return drawn[0] if lead else drawn

    with _Noise(take), torch.no_grad():
        program(*args)
    return noise


LAWS = {name: getattr(Tensor, name) for name in ("normal_", "uniform_", "exponential_", "cauchy_")}
LAWS |= {"randn": Tensor.normal_, "rand": Tensor.uniform_}
"""Torch's sources of noise whose law no gradient passes through, and what fills a tensor with it."""


class _Noise(Messenger):
    """Draw latent sites by their own rsample, where `take(site, wanted, fill)` gives the random numbers."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.take = take

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None or site_is_subsample(msg):
            return
        if not msg["fn"].has_rsample:
            raise _no_noise(msg["name"], f"{type(msg['fn']).__name__} has no rsample")
        with _Source(msg["name"], self.take):
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


class _Source(TorchFunctionMode):
    def __init__(self, site: str, take: Take) -> None:
        super().__init__()
        self.site, self.take = site, take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ("rand", "randn"):
            return self.take(self.site, torch.empty(*args, **kwargs), LAWS[name])
        if name in LAWS:
            # Noise is the value that is returned; who would read the tensor itself shall notice.
            wanted = args[0].fill_(torch.nan)
            return self.take(self.site, wanted, lambda noise: LAWS[name](noise, *args[1:], **kwargs))
        if _is_random(name):
            raise _no_noise(self.site, f"it draws by torch's {name}")
        return func(*args, **kwargs)


def _is_random(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    keys = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else []
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, key).tags for key in keys)


def _no_noise(site: str, why: str) -> NotImplementedError:
    advice = "use a distribution that is a function of normal, uniform, exponential or Cauchy numbers"
    return NotImplementedError(f"site {site!r} takes no explicit noise, for {why}: {advice}")
