"""The parts of a VAE by name: one recipe, one table for each kind of part, one table of pairs that cannot work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.models.convolution import conv_decoder, conv_encoder
from pyrovae.models.decoders import BernoulliDecoder, GaussianDecoder, LinearGaussianDecoder, StudentTDecoder
from pyrovae.models.encoders import (
    DiagonalGaussian,
    FlowGaussian,
    FullGaussian,
    GaussianMixtureEncoder,
    LaplaceEncoder,
    LowRankGaussian,
)
from pyrovae.models.networks import ACTIVATIONS, check_hidden, check_width, mlp
from pyrovae.models.noise import NOISES
from pyrovae.models.priors import FlowPrior, Gaussian, GaussianMixture, StandardNormal, VampPrior

__all__ = ["DECODERS", "ENCODERS", "NETWORKS", "PRIORS", "REFUSED", "Recipe", "make_parts"]

FLOW_HIDDEN = 32  # width of a flow prior's networks, or D where that is more


@dataclass(frozen=True)
class Recipe:
    """What `build_vae` was asked for; `config` is the same as JSON."""

    data_dim: int
    latent_dim: int
    hidden: Sequence[int]
    prior: str
    decoder: str
    encoder: str
    noise: str | None
    network: str
    activation: str
    scale: float
    min_scale: float
    components: int
    encoder_components: int
    rank: int
    pseudo_inputs: int
    df: float
    image_shape: Sequence[int] | None
    channels: Sequence[int]

    def __post_init__(self) -> None:
        check_width("data_dim", self.data_dim)
        check_width("latent_dim", self.latent_dim)
        check_hidden(self.hidden)
        for what, known in NAMES.items():
            if what != "noise" or self.noise is not None:
                _check_name(what, getattr(self, what), known)
        _check_pairs(self)

    def config(self) -> dict[str, Any]:
        """The recipe as JSON-able arguments of `build_vae`."""
        return {
            k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
            for k, v in asdict(self).items()
        }


Make = Callable[[Recipe], nn.Module]
MakePrior = Callable[[Recipe, nn.Module, Tensor | None], nn.Module]


def make_parts(recipe: Recipe, data: Any = None) -> tuple[nn.Module, nn.Module, nn.Module]:
    """(prior, decoder, encoder) of a recipe, with weights from the current random state."""
    decoder = DECODERS[recipe.decoder](recipe)
    encoder = ENCODERS[recipe.encoder](recipe)
    prior = PRIORS[recipe.prior](recipe, encoder, data)
    if recipe.encoder == "laplace":
        encoder = LaplaceEncoder(prior, decoder, init=encoder)
    return prior, decoder, encoder


def _pseudo_inputs(recipe: Recipe, data: Any) -> Tensor:
    """Different rows of the data, drawn by chance; without data, draws of a standard normal."""
    check_width("pseudo_inputs", recipe.pseudo_inputs)
    if data is None:
        return torch.randn(recipe.pseudo_inputs, recipe.data_dim)
    if data.dim() != 2 or data.shape[1] != recipe.data_dim or len(data) < recipe.pseudo_inputs:
        raise ValueError(
            f"pseudo_inputs={recipe.pseudo_inputs} of data_dim={recipe.data_dim} want data of as many rows at least, "
            f"got shape {list(data.shape)}; pass the training data, [n, data_dim], or fewer pseudo_inputs"
        )
    rows = torch.randperm(len(data))[: recipe.pseudo_inputs]
    return data[rows.to(data.device)].to("cpu", torch.get_default_dtype())


def _decoder_net(recipe: Recipe, parts: int = 1) -> nn.Module:
    """The decoder's network, from `[n, D]` to `[n, parts * X]`."""
    hidden = tuple(reversed(recipe.hidden))
    if recipe.network != "conv":
        residual = recipe.network == "residual"
        return mlp(recipe.latent_dim, hidden, parts * recipe.data_dim, recipe.activation, residual)
    colours, *size = _image_shape(recipe)
    channels = tuple(reversed(recipe.channels))
    net = conv_decoder(recipe.latent_dim, (parts * colours, *size), channels, hidden, recipe.activation)
    return net.append(nn.Flatten())


def _encoder_net(recipe: Recipe, width: int) -> nn.Module:
    """The encoder's network, from `[n, X]` to `[n, width]`."""
    if recipe.network != "conv":
        residual = recipe.network == "residual"
        return mlp(recipe.data_dim, recipe.hidden, width, recipe.activation, residual)
    shape = _image_shape(recipe)
    net = conv_encoder(width, shape, recipe.channels, recipe.hidden, recipe.activation)
    return net.insert(0, nn.Unflatten(1, shape))


def _image_shape(recipe: Recipe) -> tuple[int, ...]:
    side = round(recipe.data_dim**0.5)
    shape = tuple(recipe.image_shape or (1, side, side))
    check_hidden(shape, "image_shape")
    if len(shape) != 3 or shape[0] * shape[1] * shape[2] != recipe.data_dim:
        raise ValueError(
            f"network='conv' wants image_shape=(channels, height, width) of data_dim={recipe.data_dim} numbers, got "
            f"{recipe.image_shape}; for gray square images leave it out"
        )
    return shape


def _gaussian(recipe: Recipe) -> GaussianDecoder:
    net = _decoder_net(recipe, 2 if recipe.noise == "heteroscedastic" else 1)
    return GaussianDecoder(net, _noise(recipe), recipe.scale, recipe.min_scale, (recipe.data_dim,))


def _linear(recipe: Recipe) -> LinearGaussianDecoder:
    sizes = recipe.data_dim, recipe.latent_dim
    return LinearGaussianDecoder(*sizes, _noise(recipe), recipe.scale, recipe.min_scale)


def _student_t(recipe: Recipe) -> StudentTDecoder:
    net = _decoder_net(recipe, 2 if recipe.noise == "heteroscedastic" else 1)
    scales = recipe.scale, recipe.min_scale
    return StudentTDecoder(net, recipe.df, _noise(recipe), *scales, (recipe.data_dim,))


def _noise(recipe: Recipe) -> str:
    return recipe.noise or "shared"


def _flow_encoder(recipe: Recipe) -> FlowGaussian:
    dim = recipe.latent_dim
    return FlowGaussian(_encoder_net(recipe, FlowGaussian.width(dim)), dim, hidden=(max(dim, 64),))


def _mixture_encoder(recipe: Recipe) -> GaussianMixtureEncoder:
    count = recipe.encoder_components
    return GaussianMixtureEncoder(
        _encoder_net(recipe, GaussianMixtureEncoder.width(recipe.latent_dim, count)), count
    )


def _diagonal(recipe: Recipe) -> DiagonalGaussian:
    return DiagonalGaussian(_encoder_net(recipe, DiagonalGaussian.width(recipe.latent_dim)))


def _full(recipe: Recipe) -> FullGaussian:
    return FullGaussian(_encoder_net(recipe, FullGaussian.width(recipe.latent_dim)))


def _low_rank(recipe: Recipe) -> LowRankGaussian:
    width = LowRankGaussian.width(recipe.latent_dim, recipe.rank)
    return LowRankGaussian(_encoder_net(recipe, width), recipe.rank)


def _flow_prior(kind: str) -> MakePrior:
    return lambda r, *_: FlowPrior(r.latent_dim, kind, hidden=max(r.latent_dim, FLOW_HIDDEN))


PRIORS: dict[str, MakePrior] = {
    "standard": lambda r, *_: StandardNormal(r.latent_dim),
    "gaussian": lambda r, *_: Gaussian(torch.zeros(r.latent_dim), torch.eye(r.latent_dim), learned=True),
    "mixture": lambda r, *_: GaussianMixture(r.latent_dim, r.components),
    "vamp": lambda r, encoder, data: VampPrior(encoder, _pseudo_inputs(r, data)),
    "flow": _flow_prior("autoregressive"),
    "spline": _flow_prior("spline"),
}
DECODERS: dict[str, Make] = {
    "gaussian": _gaussian,
    "linear": _linear,
    "bernoulli": lambda r: BernoulliDecoder(_decoder_net(r)),
    "student-t": _student_t,
}
ENCODERS: dict[str, Make] = {
    "diagonal": _diagonal,
    "full": _full,
    "low-rank": _low_rank,
    "flow": _flow_encoder,
    "mixture": _mixture_encoder,
    "laplace": _diagonal,
}
NETWORKS = ("mlp", "residual", "conv")
NAMES: dict[str, Mapping[str, Any] | tuple[str, ...]] = {
    "prior": PRIORS,
    "decoder": DECODERS,
    "encoder": ENCODERS,
    "noise": NOISES,
    "network": NETWORKS,
    "activation": ACTIVATIONS,
}

LAPLACE = "the Laplace encoder takes Gauss-Newton steps, which want a Gaussian "
REFUSED: dict[tuple[tuple[str, str], tuple[str, str]], str] = {
    (("prior", "vamp"), ("encoder", "laplace")): "the Laplace encoder needs the prior that it would define",
    (("prior", "mixture"), ("encoder", "laplace")): LAPLACE + "prior",
    (("prior", "flow"), ("encoder", "laplace")): LAPLACE + "prior",
    (("prior", "spline"), ("encoder", "laplace")): LAPLACE + "prior",
    (("decoder", "bernoulli"), ("encoder", "laplace")): LAPLACE + "decoder",
    (("decoder", "student-t"), ("encoder", "laplace")): LAPLACE + "decoder",
    (("decoder", "student-t"), ("noise", "optimal")): "the closed form is that of the Gaussian likelihood",
    (("decoder", "linear"), ("noise", "heteroscedastic")): "its posterior would not be Gaussian",
    **{(("decoder", "bernoulli"), ("noise", name)): "a Bernoulli has no noise scale" for name in NOISES},
}
"""Pairs of parts that cannot work together, and why."""


def _check_name(what: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    if name not in known:
        near = get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "choose one"
        raise ValueError(f"{what} must be one of {', '.join(sorted(known))}, got {name!r}; {hint}")


def _check_pairs(recipe: Recipe) -> None:
    for pair, reason in REFUSED.items():
        if all(getattr(recipe, what) == name for what, name in pair):
            (one, first), (two, second) = pair
            raise ValueError(
                f"{one}={first!r} and {two}={second!r} do not go together: {reason}; choose another {one} or {two}"
            )
