"""Decoders: modules whose forward turns z into the Pyro distribution of x."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.collapsed import CollapsedLikelihood, split_last
from pyrovae.models.linear import (
    GaussianPosterior,
    LinearGaussian,
    gaussian_moments,
    linear_log_evidence,
    linear_posterior,
)
from pyrovae.models.networks import check_width, halves, row_outputs
from pyrovae.models.noise import NOISES, FixedNoise, HeteroscedasticNoise, ScaleFloorWarning, SharedNoise

__all__ = [
    "NOISES",
    "BernoulliDecoder",
    "FixedNoise",
    "GaussianDecoder",
    "LinearGaussianDecoder",
    "ScaleFloorWarning",
    "SharedNoise",
    "StudentTDecoder",
]


class GaussianDecoder(nn.Module):
    """A Gaussian likelihood around a network's output, p(x | z) = N(x | f(z), diag(sigma^2)).

    `noise` says what sigma is:

    - "fixed": `scale`, not trained.
    - "shared": one learned sigma, as in Rybkin et al. (2021).
    - "per-dimension": one learned sigma for each data dimension; the decoder needs `event_shape`.
    - "heteroscedastic": sigma^2 = scale^2 exp(log_variance) + min_scale^2, where the network gives
      (loc, log_variance): a pair of tensors `[n, *event]`, or one tensor with axis 1 twice as long, loc first.
    - "optimal": one sigma, not trained by gradient but set after each epoch to its optimum,
      sigma^2 = E_q |x - f(z)|^2 / X (Rybkin et al. 2021).

    On data of lower dimension than X (constant pixels, integers) the best sigma is 0 and the likelihood infinite
    (Dai & Wipf 2019): hence the floor `min_scale`, and a `ScaleFloorWarning` where it holds.

    Args:
        net: maps `[n, D]` to `[n, *event]`, any event shape, or to a mapping of that alone, as decoders of pythae do;
            it always sees just one leading axis, whatever the batch shape of z, so a convolutional network serves
            as well as a linear one. It must treat the rows one by one (no batch normalization in training mode).
        noise: a key of `NOISES`.
        scale: sigma, or the value at which a sigma that is not fixed starts; in the units of x, above 0.
        min_scale: floor of a sigma that is not fixed, above 0 and below `scale`; without effect on a fixed one.
        event_shape: shape of one datum, for "per-dimension".

    Raises:
        ValueError: unknown noise, a scale that is not positive and finite or not above its floor, or
            "per-dimension" without `event_shape`.

    >>> decoder = GaussianDecoder(nn.Linear(2, 5), noise="fixed", scale=0.1)
    >>> p = decoder(torch.zeros(7, 3, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([7, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        noise: str = "shared",
        scale: float = 1.0,
        min_scale: float = 1e-3,
        event_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(sorted(NOISES))}, got {noise!r}; choose one")
        self.net = net
        self.noise = NOISES[noise](scale, min_scale, event_shape)

    def forward(self, z: Float[Tensor, "*b d"]) -> Distribution:
        """The distribution of x given z: batch shape `[*b]`, event shape that of one row of the net."""
        loc, log_variance = self._outputs(z)
        scale = self.noise() if log_variance is None else self.noise(log_variance)
        event = loc.shape[z.dim() - 1 :]
        if scale.dim() and tuple(scale.shape[-len(event) :]) != tuple(event):
            raise ValueError(
                f"the decoder was built for data of shape {list(scale.shape)}, and its net returns "
                f"{list(event)}; pass event_shape={tuple(event)}"
            )
        likelihood: Distribution = self._family(loc, scale).to_event(len(event))
        return likelihood

    def _family(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.Normal(loc, scale)

    def _outputs(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        flat = row_outputs(self.net, z)
        if isinstance(self.noise, HeteroscedasticNoise):
            flat = halves(flat)
        elif len(flat) != 1:
            raise TypeError(
                f"the decoder's net must return one tensor, got {len(flat)}; for a net that returns "
                "(loc, log_variance) use noise='heteroscedastic'"
            )
        loc, *rest = (out.reshape(z.shape[:-1] + out.shape[1:]) for out in flat)
        return loc, rest[0] if rest else None

    def prepare_likelihood(self, x: Tensor, near: Tensor | None = None) -> CollapsedLikelihood | None:
        """log p(x | z) of these rows as a function of z `[K, N, D]`, whose cost per draw does not grow with X.

        With `near` `[N, D]` it is meant for z near there, see `CollapsedLikelihood`. None unless the net ends in a
        linear layer that gives rows `[n, X]`, and the noise does not depend on z.
        """
        split = split_last(self.net)
        is_row = split is not None and x.dim() == 2 and x.shape[1] == split[1].out_features
        if not is_row or isinstance(self.noise, HeteroscedasticNoise):
            return None
        return CollapsedLikelihood(self.net, self.noise, x, near)

    def update_noise(self, draws: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Show the noise the network's output at `draws`, blocks of (x `[n, *event]`, z `[n, D]` from the guide).

        "optimal" noise sets sigma by them; the others look at one block or at none.
        """
        update = getattr(self.noise, "update", None)
        if callable(update):
            with torch.no_grad():
                update((x, *self._outputs(z)) for x, z in draws)

    def end_epoch(self, *data: Any) -> None:
        """Called by `fit` after each epoch: lets the noise look at itself."""
        self.noise.end_epoch(*data)


class LinearGaussianDecoder(GaussianDecoder):
    """A linear map with Gaussian noise, p(x | z) = N(x | W z + b, diag(sigma^2)).

    With a standard normal prior and one sigma this is probabilistic PCA (Tipping & Bishop 1999), with one sigma a
    dimension factor analysis: log p(x) and p(z | x) are exact, so that every estimate can be held against them.

    Args:
        data_dim: width X of one datum, at least 1.
        latent_dim: width D of z, at least 1.
        noise: "fixed", "shared", "per-dimension" or "optimal", see `GaussianDecoder`.
        scale: sigma, or where it starts.
        min_scale: floor of a sigma that is not fixed.

    Raises:
        ValueError: a width below 1, a scale out of range, or "heteroscedastic" noise.

    >>> decoder = LinearGaussianDecoder(5, 2, noise="fixed", scale=1.0)
    >>> _ = nn.init.zeros_(decoder.net.weight), nn.init.zeros_(decoder.net.bias)
    >>> [round(value, 3) for value in decoder.log_evidence(torch.zeros(2, 5)).tolist()]  # -5/2 log(2 pi)
    [-4.595, -4.595]
    >>> decoder.posterior(torch.zeros(2, 5)).scale_tril.diagonal().tolist()
    [1.0, 1.0]
    """

    net: nn.Linear

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        noise: str = "shared",
        scale: float = 1.0,
        min_scale: float = 1e-3,
    ) -> None:
        check_width("data_dim", data_dim)
        check_width("latent_dim", latent_dim)
        super().__init__(nn.Linear(latent_dim, data_dim), noise, scale, min_scale, (data_dim,))
        if noise == "heteroscedastic":
            raise ValueError(
                "a linear decoder has no noise that depends on z, for then its posterior is not Gaussian; use "
                "noise='per-dimension', or GaussianDecoder with a linear net"
            )

    def log_evidence(self, x: Float[Tensor, "n x"], prior: Distribution | None = None) -> Float[Tensor, " n"]:
        """log p(x) of each row: log N(x | W m + b, W S W' + diag(sigma^2)) for the prior N(m, S).

        Args:
            x: data `[N, X]`.
            prior: a Gaussian on one z, such as a prior module returns; None: the standard normal.

        Raises:
            TypeError: a prior that is not Gaussian.
        """
        return linear_log_evidence(self._linear(prior), x)

    def posterior(self, x: Float[Tensor, "n x"], prior: Distribution | None = None) -> GaussianPosterior:
        """p(z | x) of each row: `loc` `[N, D]` and `scale_tril` `[D, D]`; otherwise as `log_evidence`."""
        return linear_posterior(self._linear(prior), x)

    def _linear(self, prior: Distribution | None) -> LinearGaussian:
        weight, bias = self.net.weight, self.net.bias
        if prior is None:
            prior = dist.Normal(weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1])).to_event(
                1
            )
        return LinearGaussian(weight, bias, self.noise().expand(len(bias)), *gaussian_moments(prior))


class StudentTDecoder(GaussianDecoder):
    """A Student-t likelihood, p(x | z) = prod_i t_df((x_i - f_i(z)) / sigma_i) / sigma_i: robust to outliers.

    sigma is the scale, not the standard deviation, which is sigma sqrt(df / (df - 2)) and infinite for df <= 2;
    the mean f(z) exists for df > 1. "optimal" noise has no closed form here and is refused.

    Args:
        net: as for `GaussianDecoder`.
        df: degrees of freedom, positive and finite; small ones have heavy tails, large ones approach the Gaussian.
        noise: "fixed", "shared", "per-dimension" or "heteroscedastic", see `GaussianDecoder`.
        scale: sigma, or where it starts.
        min_scale: floor of a sigma that is not fixed.
        event_shape: shape of one datum, for "per-dimension".

    Raises:
        ValueError: as `GaussianDecoder`; `df` out of range; "optimal" noise.

    >>> p = StudentTDecoder(nn.Linear(2, 5), df=4.0)(torch.zeros(7, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([7]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        df: float = 5.0,
        noise: str = "shared",
        scale: float = 1.0,
        min_scale: float = 1e-3,
        event_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(net, noise, scale, min_scale, event_shape)
        if not (df > 0 and math.isfinite(df)):
            raise ValueError(
                f"df must be positive and finite, got {df!r}; use GaussianDecoder for its limit at infinity"
            )
        if noise == "optimal":
            raise ValueError(
                "noise='optimal' is the closed form of the Gaussian likelihood, which the Student-t has not; "
                "use noise='shared'"
            )
        self.df = float(df)

    def prepare_likelihood(self, x: Tensor, near: Tensor | None = None) -> None:
        """None: the density wants every residual of its own."""

    def _family(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.StudentT(self.df, loc, scale)


class BernoulliDecoder(nn.Module):
    """A Bernoulli likelihood, p(x | z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i), p = sigmoid(net(z)).

    Data must be 0 or 1. On intermediate values this expression is no density: it does not integrate to 1, and a
    VAE trained by it has no log p(x) (Loaiza-Ganem & Cunningham 2019). A VAE with this decoder refuses them.

    Args:
        net: maps `[n, D]` to logits `[n, *event]`, any event shape, one leading axis, row by row.

    >>> p = BernoulliDecoder(nn.Linear(2, 5))(torch.zeros(7, 3, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([7, 3]), torch.Size([5]))
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Float[Tensor, "*b d"]) -> Distribution:
        """The distribution of x given z: batch shape `[*b]`, event shape that of one row of the net."""
        flat = row_outputs(self.net, z)
        if len(flat) != 1:
            raise TypeError(f"the decoder's net must return one tensor of logits, got {len(flat)} tensors")
        logits = flat[0].reshape(z.shape[:-1] + flat[0].shape[1:])
        return dist.Bernoulli(logits=logits).to_event(flat[0].dim() - 1)

    def check_data(self, x: Tensor) -> None:
        """Raise ValueError, naming the row, unless every entry of x `[n, *event]` is 0 or 1."""
        binary = (x == 0) | (x == 1)
        try:
            if bool(binary.all()):
                return
        except RuntimeError:  # values cannot be looked at inside a traced or vectorized program
            return
        row = int((~binary).reshape(len(x), -1).any(1).nonzero()[0])
        bad = x[row][~binary[row]].reshape(-1)[0].item()
        raise ValueError(
            f"a Bernoulli decoder wants data of 0 and 1, got {bad:g} in row {row}; binarize the data, "
            "(x > 0.5).float() or torch.bernoulli(x) for intensities in [0, 1], or use a Gaussian decoder"
        )
