"""The VAE that the settings of a training describe."""

from typing import TYPE_CHECKING, Any

from pyrovae.cli.settings import Settings

if TYPE_CHECKING:
    from pyrovae.data import Split
    from pyrovae.models.vae import VAE

__all__ = ["build"]

SEEN = 1000
"""Rows of mapped data that are looked at before training."""


def build(settings: Settings, split: "Split") -> "VAE":
    """The VAE that the settings describe, for these data; images of a convolutional network are channels first.

    Raises:
        ValueError: parts that do not go together, or a decoder that does not allow these data. Of mapped data some
            rows are looked at.
    """
    import torch

    from pyrovae.models.vae import build_vae

    same = (
        "prior",
        "decoder",
        "encoder",
        "noise",
        "network",
        "hidden",
        "channels",
        "activation",
        "min_scale",
    )
    counts = ("components", "encoder_components", "rank", "pseudo_inputs", "df", "seed")
    options: dict[str, Any] = {name: getattr(settings, name) for name in (*same, *counts)}
    options |= {"scale": settings.noise_scale, "data": split.train}
    if settings.network == "conv" and len(split.event_shape) in (2, 3):
        options["image_shape"] = (1, *split.event_shape)[-3:]
    vae = build_vae(split.train.shape[1], settings.latent_dim, **options).to(getattr(torch, settings.dtype))
    _check_decoder(vae.decoder, split, settings)
    return vae


def _check_decoder(decoder: Any, split: "Split", settings: Settings) -> None:
    """Refuse data that the decoder does not allow, as they are after scaling."""
    from pyrovae.data import Rows

    if not callable(check_data := getattr(decoder, "check_data", None)):
        return
    try:
        for part in (split.train, split.val):
            check_data(part[:SEEN] if isinstance(part, Rows) else part)
    except ValueError as error:
        raise ValueError(
            f"{error}. The data are as --scaling {settings.scaling} leaves them"
            + (", with noise of --dequantize" if settings.dequantize else "")
        ) from error
