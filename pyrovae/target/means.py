"""The mean of the guide, from its distributions where they have one, else from draws."""

from typing import TYPE_CHECKING

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.target.handlers import Message, is_latent

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = ["guide_mean"]


class _PlaceMeans(Messenger):
    """Run a guide with every latent at the mean of its distribution; afterwards `values`, {site: mean}."""

    def __enter__(self) -> "_PlaceMeans":
        self.values: dict[str, Tensor] = {}
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        if is_latent(msg):
            msg["value"] = self.values[msg["name"]] = msg["fn"].mean


def guide_mean(target: "Target", num_samples: int) -> Tensor:
    """The guide's mean `[N, D]`: exact for one real latent site with a mean, that of draws elsewhere."""
    if target._layout.is_real and len(target.sites) == 1:
        handler = _PlaceMeans()
        try:
            target._run(target.guide, 1, handler)
            return target._layout.join(handler.values)
        except (NotImplementedError, AttributeError):
            pass  # a flow has no mean
    return target.sample_guide(num_samples).z.mean(0)
