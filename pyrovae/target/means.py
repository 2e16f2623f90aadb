"""Means: of the guide, from its distributions where they have one, else from draws; and of the data at given z."""

from typing import TYPE_CHECKING

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyrovae.target.handlers import Message, is_latent, rows_of_mean

if TYPE_CHECKING:
    from pyrovae.target.target import Target

__all__ = ["expected_data", "guide_mean"]


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


def expected_data(target: "Target", z: Tensor) -> dict[str, Tensor]:
    """As `Target.expected_data`."""
    observed = target._place(z).observed
    means = {msg["name"]: rows_of_mean(msg, target.plate) for msg in observed if not site_is_factor(msg)}
    shapes = {name: x.shape[1:] for name, x in zip(target.argument_names(), target.data, strict=True)}
    return {
        name: mean.reshape(*z.shape[:2], *shapes.get(name, mean.shape[1:])) for name, mean in means.items()
    }
