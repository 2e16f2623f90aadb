"""The variational autoencoder: a prior, a decoder and an encoder as one Pyro model and guide."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyrovae.models.build import DECODERS, ENCODERS, NETWORKS, PRIORS, REFUSED, Recipe, make_parts
from pyrovae.models.collapsed import Frozen
from pyrovae.models.priors import VampPrior
from pyrovae.models.widths import check_widths
from pyrovae.seeding import seeded

__all__ = ["DECODERS", "ENCODERS", "NETWORKS", "PRIORS", "REFUSED", "VAE", "build_vae"]

MAX_ROWS = 4096  # of a block of draws in end_epoch
MAX_NUMBERS = 1 << 22  # numbers of data in such a block


class VAE(PyroModule):
    """A variational autoencoder, p(x, z) = p(z) p(x | z) with the guide q(z | x).

    `vae.model` and `vae.guide` are ordinary Pyro callables: they run under `pyro.infer.SVI`, `Predictive` and
    `MCMC` as well as under this package. Both open the plate "data" over the rows of x; the latent site is
    "z", the observed one "x". Rows are independent, so any number of them may be passed, also repeated.

    Where the decoder is Gaussian with noise that does not depend on z, and its net is an `nn.Sequential` (or `mlp`)
    that ends in `nn.Linear`, a `Target` of this model decodes no z: by `prepare_terms` the cost of log p(x, z) per
    draw does not grow with the size of x, see `pyrovae.models.collapsed`.

    Args:
        prior: a module; `prior()` is the distribution of one z.
        decoder: a module; `decoder(z)` is the distribution of x, with batch shape that of z's rows.
        encoder: a module; `encoder(x)` is the distribution of z.

    Attributes:
        config: the arguments of `build_vae` that rebuild this VAE, JSON-able; None for one made by hand.

    Raises:
        ValueError: a `VampPrior` with an encoder that is not this one; parts of which one does not take, or give, what
            another draws.

    >>> import torch
    >>> from pyrovae.models.decoders import GaussianDecoder
    >>> from pyrovae.models.encoders import DiagonalGaussian
    >>> from pyrovae.models.networks import mlp
    >>> from pyrovae.models.priors import StandardNormal
    >>> vae = VAE(StandardNormal(2), GaussianDecoder(mlp(2, (), 5)), DiagonalGaussian(mlp(5, (), 4)))
    >>> trace = pyro.poutine.trace(vae.guide).get_trace(torch.zeros(3, 5))
    >>> trace.nodes["z"]["value"].shape
    torch.Size([3, 2])
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        if isinstance(prior, VampPrior) and prior.encoder is not encoder:
            raise ValueError(
                "a VampPrior is the mixture of its own VAE's posteriors, and this one has another encoder, which "
                "would not be trained; pass the same encoder to VampPrior and to VAE"
            )
        check_widths(prior, decoder, encoder)
        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.config: dict[str, Any] | None = None

    @pyro_method
    def model(self, x: Tensor) -> None:
        """The generative model: z ~ prior, x ~ decoder(z), for each row of x `[n, *event]`.

        Raises:
            TypeError: x is not a floating-point tensor of the VAE's dtype.
            ValueError: the rows of x do not have the shape that the decoder returns, or values that its
                likelihood does not allow.
        """
        self._check_model_data(x)
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

    def prepare_terms(
        self, x: Tensor, near: Tensor | None = None
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """z `[K, N, D]` -> (log p(z), log p(x | z)), each `[K, N]`, of these rows, prepared once: see `Target`.

        None unless the decoder has `prepare_likelihood` and prepares these rows. Differentiable in z, and in z alone.
        With `near` `[N, D]` they are meant for z near there.
        """
        self._check_model_data(x)
        prepare = getattr(self.decoder, "prepare_likelihood", None)
        likelihood = prepare(x, near) if callable(prepare) else None
        if likelihood is None:
            return None
        parts = (self.prior, self.encoder) if isinstance(self.prior, VampPrior) else (self.prior,)
        prior = Frozen(parts, lambda z: self.prior().log_prob(z))
        return lambda z: (prior.frozen(z.flatten(0, 1)).unflatten(0, z.shape[:2]), likelihood(z))

    def end_epoch(self, *data: Any) -> None:
        """Called by `fit` after each epoch: shows draws to the decoder's noise, then calls the parts that want it."""
        update = getattr(self.decoder, "update_noise", None)
        if callable(update) and data:
            update(self._draws(data[0]))
        for part in (self.prior, self.decoder, self.encoder):
            hook = getattr(part, "end_epoch", None)
            if callable(hook):
                hook(*data)

    def _draws(self, x: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of (x, z), one draw z of the guide for each datum."""
        rows = max(1, min(MAX_ROWS, MAX_NUMBERS // max(1, x[:1].numel())))
        for block in x.split(rows):
            with torch.no_grad():
                z = self.encoder(block).sample()
            yield block, z

    def _check_model_data(self, x: Tensor) -> None:
        self._check(x)
        check_data = getattr(self.decoder, "check_data", None)
        if callable(check_data):
            check_data(x)

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


def build_vae(
    data_dim: int,
    latent_dim: int,
    *,
    hidden: Sequence[int] = (256,),
    prior: str = "standard",
    decoder: str = "gaussian",
    encoder: str = "diagonal",
    noise: str | None = None,
    network: str = "mlp",
    activation: str = "relu",
    scale: float = 1.0,
    min_scale: float = 1e-3,
    components: int = 10,
    encoder_components: int = 3,
    rank: int = 1,
    pseudo_inputs: int = 50,
    df: float = 5.0,
    image_shape: Sequence[int] | None = None,
    channels: Sequence[int] = (32, 64),
    data: Any = None,
    seed: int | None = None,
) -> VAE:
    """A VAE for rows of numbers, from the names of its parts.

    Args:
        data_dim: width X of one datum, at least 1.
        latent_dim: width D of z, at least 1.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse. `()` gives the linear
            VAE, whose optimum is probabilistic PCA (Lucas et al. 2019).
        prior: "standard", "gaussian" (learned, full covariance), "mixture" (of `components` Gaussians), "vamp" (of
            the posteriors at `pseudo_inputs` learned inputs), "flow" (autoregressive) or "spline".
        decoder: "gaussian", "linear" (exact evidence and posterior), "bernoulli" (data of 0 and 1) or "student-t".
        encoder: "diagonal", "full" or "low-rank" (of `rank`) Gaussian, "flow" (inverse autoregressive), "mixture"
            (of `encoder_components` Gaussians) or "laplace".
        noise: "fixed", "shared", "per-dimension", "heteroscedastic" or "optimal", see `GaussianDecoder`; None:
            "shared", or nothing for the Bernoulli decoder, which has none.
        network: "mlp", "residual" or "conv". The last takes rows too, and sees them as images of `image_shape`.
        activation: see `mlp`.
        scale: the decoder's sigma, or where one that is not fixed starts.
        min_scale: the floor of a sigma that is not fixed.
        components: components of the "mixture" prior.
        encoder_components: components of the "mixture" encoder.
        rank: rank of the "low-rank" encoder.
        pseudo_inputs: number of the "vamp" prior's pseudo-inputs.
        df: degrees of freedom of the "student-t" decoder.
        image_shape: (channels, height, width) for "conv"; None: one channel, square.
        channels: channels of the "conv" encoder's convolutions; the decoder has them in reverse.
        data: training data `[n, data_dim]`, of which the "vamp" prior's pseudo-inputs start as different rows;
            without them they start as draws of a standard normal. Not part of `config`.
        seed: of the initial weights; None draws them from the caller's random state.

    Returns:
        A VAE with `config` set, so that `save` and `load` can rebuild it, without the data.

    Raises:
        ValueError: a number out of range, an unknown name, two parts that cannot work together, or data of another
            shape.

    >>> vae = build_vae(64, 8, hidden=(32,), seed=0)
    >>> vae.config["hidden"], sum(p.numel() for p in vae.parameters())
    ([32], 5009)
    """
    recipe = Recipe(
        data_dim=data_dim,
        latent_dim=latent_dim,
        hidden=hidden,
        prior=prior,
        decoder=decoder,
        encoder=encoder,
        noise=noise or (None if decoder == "bernoulli" else "shared"),
        network=network,
        activation=activation,
        scale=scale,
        min_scale=min_scale,
        components=components,
        encoder_components=encoder_components,
        rank=rank,
        pseudo_inputs=pseudo_inputs,
        df=df,
        image_shape=image_shape,
        channels=channels,
    )
    with nullcontext() if seed is None else seeded(seed):
        vae = VAE(*make_parts(recipe, data))
    vae.config = {**recipe.config(), "seed": seed}
    return vae
