"""The variational autoencoder: a prior, a decoder and an encoder as one Pyro model and guide."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyrovae.models.decoders import GaussianDecoder
from pyrovae.models.encoders import DiagonalGaussian
from pyrovae.models.networks import check_hidden, check_width, mlp
from pyrovae.models.priors import StandardNormal
from pyrovae.seeding import seeded

__all__ = ["ENCODERS", "PRIORS", "VAE", "build_vae"]


class VAE(PyroModule):
    """A variational autoencoder, p(x, z) = p(z) p(x | z) with the guide q(z | x).

    `vae.model` and `vae.guide` are ordinary Pyro callables: they run under `pyro.infer.SVI`, `Predictive` and
    `MCMC` as well as under this package. Both open the plate "data" over the rows of x; the latent site is
    "z", the observed one "x". Rows are independent, so any number of them may be passed, also repeated.

    Args:
        prior: a module; `prior()` is the distribution of one z.
        decoder: a module; `decoder(z)` is the distribution of x, with batch shape that of z's rows.
        encoder: a module; `encoder(x)` is the distribution of z.

    Attributes:
        config: the arguments of `build_vae` that rebuild this VAE, JSON-able; None for one made by hand.

    >>> import torch
    >>> vae = VAE(StandardNormal(2), GaussianDecoder(mlp(2, (), 5)), DiagonalGaussian(mlp(5, (), 4)))
    >>> trace = pyro.poutine.trace(vae.guide).get_trace(torch.zeros(3, 5))
    >>> trace.nodes["z"]["value"].shape
    torch.Size([3, 2])
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.config: dict[str, Any] | None = None

    @pyro_method
    def model(self, x: Tensor) -> None:
        """The generative model: z ~ prior, x ~ decoder(z), for each row of x `[n, *event]`.

        Raises:
            TypeError: x is not a floating-point tensor of the VAE's dtype.
            ValueError: the rows of x do not have the shape that the decoder returns.
        """
        self._check(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            likelihood = self.decoder(z)
            _check_shape(x, tuple(likelihood.event_shape))
            pyro.sample("x", likelihood, obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """The amortized posterior: z ~ encoder(x), for each row of x `[n, *event]`. Raises as `model`."""
        self._check(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))

    def end_epoch(self, *data: Tensor) -> None:
        """Called by `fit` after each epoch: passes the call to the parts that want it."""
        for part in (self.prior, self.decoder, self.encoder):
            hook = getattr(part, "end_epoch", None)
            if callable(hook):
                hook(*data)

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f"the VAE wants floating-point data, got {x.dtype}; convert with x.float(), and for a "
                "Gaussian decoder dequantize too: x + torch.rand(x.shape), then rescale"
            )
        parameter = next((p for p in self.parameters() if p.is_floating_point()), x)
        if parameter.dtype != x.dtype:
            raise TypeError(
                f"the VAE is {parameter.dtype} and the data are {x.dtype}; convert the data with "
                f"x.to({parameter.dtype}), or the VAE with vae.to({x.dtype})"
            )
        if self.config is not None:
            _check_shape(x, (self.config["data_dim"],))


def _check_shape(x: Tensor, event_shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != event_shape:
        want = ", ".join(["n", *map(str, event_shape)])
        raise ValueError(
            f"the VAE was built for data of shape [{want}], got {list(x.shape)}; reshape the data, one row a "
            "datum, or build the VAE for that width"
        )


PRIORS: dict[str, Callable[[int], nn.Module]] = {"standard": StandardNormal}
ENCODERS: dict[str, Callable[[int, Sequence[int], int, str], nn.Module]] = {
    "diagonal": lambda x_dim, hidden, z_dim, activation: DiagonalGaussian(
        mlp(x_dim, hidden, 2 * z_dim, activation)
    ),
}


def build_vae(
    data_dim: int,
    latent_dim: int,
    *,
    hidden: Sequence[int] = (256,),
    prior: str = "standard",
    encoder: str = "diagonal",
    noise: str = "shared",
    activation: str = "relu",
    scale: float = 1.0,
    min_scale: float = 1e-3,
    seed: int | None = None,
) -> VAE:
    """A VAE for vectors, from names: fully connected networks and a Gaussian decoder.

    Args:
        data_dim: width X of one datum, at least 1.
        latent_dim: width D of z, at least 1.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse. `()` gives the linear
            VAE, whose optimum is probabilistic PCA (Lucas et al. 2019).
        prior: a key of `PRIORS`: "standard".
        encoder: a key of `ENCODERS`: "diagonal".
        noise: "fixed" or "shared", see `GaussianDecoder`.
        activation: see `mlp`.
        scale: the decoder's sigma, or where a learned one starts.
        min_scale: the floor of a learned sigma.
        seed: of the initial weights; None draws them from the caller's random state.

    Returns:
        A VAE with `config` set, so that `save` and `load` can rebuild it.

    Raises:
        ValueError: a dimension or width below 1, an unknown name, or a scale out of range.

    >>> vae = build_vae(64, 8, hidden=(32,), seed=0)
    >>> vae.config["hidden"], sum(p.numel() for p in vae.parameters())
    ([32], 5009)
    """
    check_width("data_dim", data_dim)
    check_width("latent_dim", latent_dim)
    check_hidden(hidden)
    make_prior = _named("prior", prior, PRIORS)
    make_encoder = _named("encoder", encoder, ENCODERS)
    with nullcontext() if seed is None else seeded(seed):
        net = mlp(latent_dim, tuple(reversed(hidden)), data_dim, activation)
        decoder = GaussianDecoder(net, noise, scale, min_scale)
        vae = VAE(make_prior(latent_dim), decoder, make_encoder(data_dim, hidden, latent_dim, activation))
    vae.config = {
        "data_dim": data_dim,
        "latent_dim": latent_dim,
        "hidden": list(hidden),
        "prior": prior,
        "encoder": encoder,
        "noise": noise,
        "activation": activation,
        "scale": scale,
        "min_scale": min_scale,
        "seed": seed,
    }
    return vae


def _named(what: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(sorted(known))}, got {name!r}; choose one")
    return known[name]
