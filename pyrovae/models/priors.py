"""Priors: modules whose forward returns the Pyro distribution of one datum's z."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.quasirandom import SobolEngine

from pyrovae.models.flows import FlowPrior
from pyrovae.models.networks import check_width

__all__ = ["FlowPrior", "Gaussian", "GaussianMixture", "StandardNormal", "VampPrior"]


class StandardNormal(nn.Module):
    """The standard normal prior, p(z) = N(z | 0, I).

    It has no parameter; its mean and scale are buffers, so `.to(device)` and `.double()` move it too.

    Args:
        dim: number of latent coordinates D, at least 1.

    Raises:
        ValueError: `dim` is not an integer of at least 1.

    >>> prior = StandardNormal(3)()
    >>> prior.batch_shape, prior.event_shape
    (torch.Size([]), torch.Size([3]))
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_width("dim", dim)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self) -> Distribution:
        """The distribution of one z: no batch shape, event shape `[D]`."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class Gaussian(nn.Module):
    """A Gaussian prior with full covariance, p(z) = N(z | loc, L L') with L = scale_tril.

    A learned one keeps the logarithm of L's diagonal, so that L L' stays positive definite. With a decoder whose
    first layer is linear it changes nothing that this layer could not learn; it matters where z has a meaning of
    its own.

    Args:
        loc: mean `[D]`.
        scale_tril: lower triangular `[D, D]` with a positive diagonal.
        learned: whether mean and covariance are trained, from those values, or stay.

    Raises:
        ValueError: shapes that do not agree, values that are not finite, or a `scale_tril` that is not lower
            triangular with a positive diagonal.

    >>> prior = Gaussian(torch.zeros(3), torch.eye(3), learned=True)()
    >>> prior.batch_shape, prior.event_shape
    (torch.Size([]), torch.Size([3]))
    """

    loc: Tensor
    lower: Tensor
    log_diagonal: Tensor

    def __init__(
        self, loc: Float[Tensor, " d"], scale_tril: Float[Tensor, "e e"], learned: bool = False
    ) -> None:
        super().__init__()
        _check_gaussian(loc, scale_tril)
        below = torch.ones_like(scale_tril, dtype=torch.bool).tril(-1)
        tensors = {
            "loc": loc,
            "lower": scale_tril[below],
            "log_diagonal": scale_tril.diagonal().log(),
        }
        for name, value in tensors.items():
            if learned:
                self.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, value.detach().clone())

    def forward(self) -> Distribution:
        """The distribution of one z: no batch shape, event shape `[D]`."""
        dim = len(self.loc)
        row, column = torch.tril_indices(dim, dim, -1, device=self.loc.device)
        scale_tril = torch.diag(self.log_diagonal.exp()).index_put((row, column), self.lower)
        return dist.MultivariateNormal(self.loc, scale_tril=scale_tril)


def _check_gaussian(loc: Tensor, scale_tril: Tensor) -> None:
    if loc.dim() != 1 or not len(loc) or scale_tril.shape != (len(loc), len(loc)):
        raise ValueError(
            "a Gaussian prior wants loc [D] and scale_tril [D, D], got shapes "
            f"{list(loc.shape)} and {list(scale_tril.shape)}; torch.zeros(D) and torch.eye(D) are the standard normal"
        )
    finite = bool(torch.isfinite(loc).all() and torch.isfinite(scale_tril).all())
    if not finite or bool(scale_tril.triu(1).any() or (scale_tril.diagonal() <= 0).any()):
        raise ValueError(
            "scale_tril must be finite and lower triangular with a positive diagonal, and loc finite; pass "
            "torch.linalg.cholesky(covariance)"
        )


class GaussianMixture(nn.Module):
    """A mixture of diagonal Gaussians, p(z) = sum_c w_c N(z | loc_c, diag(scale_c^2)), all of it learned.

    It starts as a blurred standard normal: equal weights, means spread evenly (a scrambled Sobol sequence, drawn
    from the caller's random state), and scales that shrink with the number of components, such that mean and
    variance are about 0 and 1 in every coordinate.

    Args:
        dim: number of latent coordinates D, at least 1.
        components: number of components C, at least 1.

    Raises:
        ValueError: a number that is not an integer of at least 1.

    >>> prior = GaussianMixture(3, components=5)()
    >>> prior.batch_shape, prior.event_shape
    (torch.Size([]), torch.Size([3]))
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        check_width("dim", dim)
        check_width("components", components)
        scale = max(components ** (-1 / dim), 0.3)
        self.loc = nn.Parameter(_spread(components, dim) * (1 - scale**2) ** 0.5)
        self.log_scale = nn.Parameter(torch.full((components, dim), scale).log())
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> Distribution:
        """The distribution of one z: no batch shape, event shape `[D]`."""
        parts = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)


def _spread(count: int, dim: int) -> Tensor:
    """Points `[count, dim]` spread like draws of a standard normal, but more evenly."""
    seed = int(torch.randint(2**31, ()))
    uniform = SobolEngine(dim, scramble=True, seed=seed).draw(count).clamp(1e-4, 1 - 1e-4)
    return 2**0.5 * torch.erfinv(2 * uniform - 1)


class VampPrior(nn.Module):
    """The mixture of a VAE's own posteriors, p(z) = 1/C sum_c q(z | u_c), at learned pseudo-inputs u_c.

    The source is Tomczak & Welling (2018). The encoder is the VAE's own: it is shared, not copied and not
    registered here, so that its parameters are saved and trained once, under the VAE's name for them, by both the
    prior and the guide; move and convert the VAE, not this prior alone. The encoder's distribution at the C
    pseudo-inputs must score any number of z at once, as those of this package do, but `LaplaceEncoder`: it needs
    the prior that it would define.

    Args:
        encoder: the VAE's encoder.
        pseudo_inputs: where the pseudo-inputs start, `[C, *event]`; rows of the training data serve well.

    Raises:
        ValueError: pseudo-inputs that are not finite, or none; an encoder that does not broadcast.

    >>> from pyrovae.models.encoders import DiagonalGaussian
    >>> encoder = DiagonalGaussian(nn.Linear(5, 4))
    >>> prior = VampPrior(encoder, torch.randn(7, 5))
    >>> prior().event_shape, list(prior.state_dict())
    (torch.Size([2]), ['pseudo_inputs'])
    """

    def __init__(self, encoder: nn.Module, pseudo_inputs: Float[Tensor, " c *event"]) -> None:
        super().__init__()
        if not len(pseudo_inputs) or not bool(torch.isfinite(pseudo_inputs).all()):
            raise ValueError(
                f"pseudo_inputs must be finite and have at least one row, got shape {list(pseudo_inputs.shape)}; "
                "pass some rows of the training data"
            )
        self._shared = (encoder,)  # in a tuple: not a submodule
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        self._check_encoder()

    def _check_encoder(self) -> None:
        with torch.no_grad():
            prior = self()
            z = self.pseudo_inputs.new_zeros(len(self.pseudo_inputs) + 1, *prior.event_shape)
            try:
                scored = not prior.batch_shape and prior.log_prob(z).shape == z.shape[:1]
            except (RuntimeError, ValueError, IndexError):
                scored = False
        if not scored:
            raise ValueError(
                f"VampPrior wants an encoder that scores any z at all pseudo-inputs at once, which "
                f"{type(self.encoder).__name__} does not; use one whose log_prob broadcasts, such as DiagonalGaussian"
            )

    @property
    def encoder(self) -> nn.Module:
        """The VAE's encoder, which this prior shares."""
        return self._shared[0]

    def forward(self) -> Distribution:
        """The distribution of one z: no batch shape, event shape `[D]`."""
        weights = dist.Categorical(logits=self.pseudo_inputs.new_zeros(len(self.pseudo_inputs)))
        return dist.MixtureSameFamily(weights, self.encoder(self.pseudo_inputs))
