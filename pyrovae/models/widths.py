"""Whether prior, decoder and encoder of a VAE fit together, seen by running each on one row."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy

from pyrovae.seeding import seeded

__all__ = ["check_widths"]


def check_widths(prior: nn.Module, decoder: nn.Module, encoder: nn.Module) -> None:
    """Draw one z, one x of it, and see whether the encoder gives such a z; changes nothing.

    Parts whose tensors are of several dtypes or devices, or not made yet, are not run: they may become one later.

    Raises:
        ValueError: the decoder does not take z of the prior, the encoder not x of the decoder, or z has another
            shape under the encoder.
    """
    parts = (prior, decoder, encoder)
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers()) if t.is_floating_point()]
    if any(map(is_lazy, tensors)) or len({(t.dtype, t.device) for t in tensors}) != 1:
        return
    with _untouched(parts):
        p = prior()
        z = p.sample((1,))
        x = _run(decoder, z, "decoder", "z", "prior").sample()
        q = _run(encoder, x, "encoder", "x", "decoder")
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"prior and encoder must have the same latent shape, but it is {list(p.event_shape)} in the prior and "
            f"{list(q.event_shape)} in the encoder: give both as many coordinates"
        )


def _run(part: nn.Module, row: Tensor, name: str, what: str, source: str) -> Distribution:
    try:
        distribution: Distribution = part(row)
    except RuntimeError as error:
        shape = ", ".join(["n", *map(str, row.shape[1:])])
        raise ValueError(
            f"the {name} fails on {what} of shape [{shape}], as the {source} draws it: {error}; give both the same "
            "width"
        ) from error
    return distribution


@contextmanager
def _untouched(parts: tuple[nn.Module, ...]) -> Iterator[None]:
    """Within the block nothing is learned, drawn, registered or counted that would be seen after it."""
    modes = {module: module.training for part in parts for module in part.modules()}
    with ExitStack() as stack:
        for context in (
            torch.no_grad(),
            seeded(0),
            pyro.get_param_store().scope(),
            pyro.validation_enabled(False),
        ):
            stack.enter_context(context)
        try:
            for module in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
