"""`Target`: the per-datum densities of a Pyro model and amortized guide, for many draws of z at once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.failures import explaining
from pyrovae.seeding import seeded
from pyrovae.target.checks import check_data, check_densities, check_shape
from pyrovae.target.curvature import expected_curvature
from pyrovae.target.draws import Draws, Simulation, Terms
from pyrovae.target.handlers import DataPlate, PlaceLatents, ReadLatents, Score
from pyrovae.target.layout import Layout, read_layout
from pyrovae.target.likelihood import Prepared, prepared_terms
from pyrovae.target.means import expected_data, guide_mean
from pyrovae.target.pairs import pair_scorer
from pyrovae.target.simulation import draw_data, name_arguments

__all__ = ["Target"]

Program = Callable[..., Any]


class Target:
    """Per-datum log densities, draws, curvature and simulations of a Pyro model and an amortized guide.

    Amortized inference is N independent problems, one per datum. A Target tiles the data K times along the data
    plate, so that the model sees an ordinary batch of K*N rows, and sums every site's log density over all
    dimensions but the plate's. All densities are with respect to Lebesgue measure on the *unconstrained* z
    (`torch.distributions.biject_to` of the model's supports, in the order of the model); log|dv/du| is in
    `log_prior` and in `log_guide` alike. Scales (subsampling, KL warm-up) are ignored, masks honoured.

    Args:
        model: a Pyro model; takes `*data`.
        guide: an amortized Pyro guide: it computes every latent site of the model from the data, row by row.
        *data: tensors; axis 0 of each indexes the data. Inputs shared by all data go in by closure.
        plate: name of the data plate in model and guide.
        params: values of `pyro.param`s that belong to no module, `{name: constrained value}`, as
            `fit(...).params` gives them.
        simulate: `(z: {site: [K, *event]}, *data) -> data` for `Target.simulate`, where the default cannot tell
            which observed site belongs to which argument.
        prepare: whether `log_terms` and `log_joint` take the terms that the model's owner prepares for these data (by
            `prepare_terms`, see `prepared_terms`; `VAE` does for Gaussian decoders) where they are found to be the
            model's: several times faster, with gradients in z, none in parameters. A VAE's follow its parameters, but
            give NaN after a change under `.data`, which torch does not count. False: always run the model.

    Raises:
        ValueError: if the model and guide are not a model and an amortized guide of N independent data; the
            sentence says what was found and what to do.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> target = Target(model, guide, torch.randn(5, 2))
        >>> draws = target.sample_guide(3)
        >>> log_w = target.log_joint(draws.z) - draws.log_q  # this guide is the posterior: log w = log p(x)
        >>> log_w.shape, bool((log_w.std(0) < 1e-5).all())
        (torch.Size([3, 5]), True)
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        *data: Tensor,
        plate: str = "data",
        params: Mapping[str, Tensor] | None = None,
        simulate: Callable[..., Any] | None = None,
        prepare: bool = True,
    ) -> None:
        check_data(data)
        self.model, self.guide, self.plate = model, guide, plate
        self.data = data
        self._params = {name: value.detach() for name, value in (params or {}).items()}
        self._simulate = simulate
        self.can_score_guide = True
        self._prepared: Prepared | None = None
        with seeded(0):
            self._layout: Layout = read_layout(self)
            self.can_score_guide = check_densities(self)
            self._prepared = prepared_terms(self) if prepare else None

    @property
    def num_data(self) -> int:
        """N, the number of data."""
        return len(self.data[0])

    @property
    def dim(self) -> int:
        """D, the number of unconstrained coordinates per datum."""
        return self._layout.dim

    @property
    def sites(self) -> dict[str, slice]:
        """Which of the D coordinates belong to which latent site, in the order of the model."""
        return dict(self._layout.columns)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of z, which is the guide's."""
        return self._layout.dtype

    @property
    def device(self) -> torch.device:
        """The device of z, which is the guide's."""
        return self._layout.device

    def sample_guide(self, num_samples: int) -> Draws:
        """Draw `num_samples` z for every datum: `z [K, N, D]` and `log_q [K, N]`, detached."""
        with torch.no_grad():
            scored = self._run_score(self.guide, {}, num_samples)
            z, log_det = self._unconstrain(scored.values, num_samples)
            return Draws(z, (scored.log_q + log_det).reshape(num_samples, self.num_data))

    def sample_prior(self, num_samples: int) -> Float[Tensor, "k n d"]:
        """Draw `num_samples` z from the prior for every datum, detached."""
        with torch.no_grad(), explaining(self.data, "model"):
            drawn = self._run_score(self.model, {}, num_samples)
            return self._unconstrain(drawn.values, num_samples)[0]

    def log_terms(self, z: Float[Tensor, "k n d"]) -> Terms:
        """log p(z) and log p(x | z) at `z`; differentiable in z if z requires a gradient."""
        check_shape(self, z)
        with torch.set_grad_enabled(z.requires_grad and torch.is_grad_enabled()):
            if self._prepared is not None and (terms := self._prepared(z)) is not None:
                return terms
            placed = self._place(z)
            shape = z.shape[:2]
            return Terms(placed.log_prior.reshape(shape), placed.log_likelihood.reshape(shape))

    def log_joint(self, z: Float[Tensor, "k n d"]) -> Float[Tensor, "k n"]:
        """log p(x, z) at `z`; differentiable in z if z requires a gradient."""
        terms = self.log_terms(z)
        return terms.log_prior + terms.log_likelihood

    def log_guide(self, z: Float[Tensor, "k n d"]) -> Float[Tensor, "k n"]:
        """log q(z | x) at any `z`.

        Raises:
            NotImplementedError: if the guide can draw with density but not score (`can_score_guide` is False).
        """
        if not self.can_score_guide:
            raise NotImplementedError(
                "this guide can draw z with its density but not score a given z (a flow without an inverse): use "
                "only what needs sample_guide, or a guide whose log_prob works at any value"
            )
        with torch.set_grad_enabled(z.requires_grad and torch.is_grad_enabled()):
            return self._log_guide(z)

    def guide_mean(self, num_samples: int = 1000) -> Float[Tensor, "n d"]:
        """The guide's mean in unconstrained coordinates, detached: exact where its distribution has one and every
        latent is real, else that of `num_samples` draws."""
        with torch.no_grad(), seeded(0):
            return guide_mean(self, num_samples)

    def pair_scorer(self) -> Callable[[Tensor], Tensor]:
        """A callable from z `[S, D]` to log q(z | x) of every z under every datum, `[S, N]`, detached."""
        with seeded(0):
            return pair_scorer(self)

    def constrain(self, z: Float[Tensor, "k n d"]) -> dict[str, Tensor]:
        """The values of the latent sites at `z`: `{site: [K, N, *event]}`."""
        with torch.no_grad():
            values, _ = self._constrain(z)
            axes = self._layout.axes
            return {
                name: (moved := value.movedim(axes[name], 0)).reshape(*z.shape[:2], *moved.shape[1:])
                for name, value in values.items()
            }

    def unconstrain(self, values: Mapping[str, Tensor]) -> Float[Tensor, "k n d"]:
        """The inverse of `constrain`: z at `{site: [K, N, *event]}`, detached."""
        with torch.no_grad():
            rows = {name: v.flatten(0, 1).movedim(0, self._layout.axes[name]) for name, v in values.items()}
            return self._unconstrain(rows, len(next(iter(values.values()))))[0]

    def expected_data(self, z: Float[Tensor, "k n d"]) -> dict[str, Tensor]:
        """The mean of p(x | z) at each `z`, for every observed site: `{site: [K, N, *event]}`.

        A site whose value is an argument of the model has that argument's shape, `[K, N, *argument.shape[1:]]`.
        """
        with torch.no_grad():
            return expected_data(self, z)

    def curvature(self, z: Float[Tensor, "k n d"]) -> Float[Tensor, "k n d d"]:
        """Expected negative Hessian of log p(x, z) in z.

        Lambda(z) = sum over observed sites of J' F J + the prior's negative Hessian, with J the Jacobian of the
        site's parameters in z and F their Fisher information (Normal, Bernoulli, Poisson); other sites add their
        exact negative Hessian. For a Gaussian decoder this is Gauss-Newton, I + J'J / sigma^2 under a standard
        normal prior: always positive definite. With a log-convex prior or exact Hessians it need not be.
        """
        num_samples, num_data, dim = z.shape
        rows = z.detach().reshape(-1, dim)
        matrix = expected_curvature(self._run_place, rows, num_samples, self.plate)
        return matrix.reshape(num_samples, num_data, dim, dim)

    def simulate(self, num_samples: int) -> Simulation:
        """Draw (z, data) from the model; draw i takes the arguments that are not observed from datum i modulo N.

        Raises:
            ValueError: if an observed site cannot be told to belong to one argument; pass `simulate=` then.
        """
        return draw_data(self, num_samples)

    def argument_names(self) -> list[str]:
        """A name for each argument of the model: that of the observed site with its values, else "argument_i"."""
        with torch.no_grad(), seeded(0):
            return name_arguments(self)

    def rows(self, index: Sequence[int] | range | Tensor) -> "Target":
        """The same target for the data at `index`, in that order."""
        index = torch.as_tensor(index if isinstance(index, Tensor) else list(index))
        return self._replace(*(x[index.to(x.device)] for x in self.data), rows=index)

    def split(self, size: int) -> list["Target"]:
        """The same target in blocks of at most `size` data, in order."""
        return [
            self._replace(*(x[first : first + size] for x in self.data), rows=slice(first, first + size))
            for first in range(0, self.num_data, size)
        ]

    def with_data(self, *data: Tensor) -> "Target":
        """The same model and guide for other data, of the same form."""
        check_data(data)
        return self._replace(*data)

    def near(self, z: Float[Tensor, "k n d"]) -> "Target":
        """The same target for z near these draws, whose terms may then be cheaper."""
        other = self._replace(*self.data)
        other._prepared = self._prepared and self._prepared.expanded(z)
        return other

    def __repr__(self) -> str:
        sites = ", ".join(f"{name}: {at.stop - at.start}" for name, at in self.sites.items())
        return f"Target({self.num_data} data, {self.dim} latent coordinates ({sites}), {self.dtype}, {self.device})"

    def _replace(self, *data: Tensor, rows: Any = None) -> "Target":
        other = copy.copy(self)
        other.data, other._prepared = data, self._prepared and self._prepared.with_data(data, rows)
        return other

    def _place(self, z: Tensor) -> PlaceLatents:
        check_shape(self, z)
        return self._run_place(z.reshape(-1, self.dim), len(z))

    def _run_place(self, rows: Tensor, num_copies: int) -> PlaceLatents:
        handler = PlaceLatents(rows, self.plate)
        self._run(self.model, num_copies, handler)
        return handler

    def _run_score(self, program: Program, values: Mapping[str, Tensor], num_copies: int) -> Score:
        handler = Score(values, self.plate)
        self._run(program, num_copies, handler)
        return handler

    def _log_guide(self, z: Tensor) -> Tensor:
        values, log_det = self._constrain(z)
        scored = self._run_score(self.guide, values, len(z))
        return (scored.log_q + log_det).reshape(z.shape[:2])

    def _constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Any]:
        if self._layout.is_real:
            return self._layout.split(z.reshape(-1, self.dim)), 0.0
        placed = self._place(z)
        return placed.values, placed.log_det

    def _unconstrain(self, values: Mapping[str, Tensor], num_copies: int) -> tuple[Tensor, Any]:
        if self._layout.is_real:
            coordinates, log_det = self._layout.join(values), 0.0
        else:
            handler = ReadLatents(values, self.plate)
            self._run(self.model, num_copies, handler)
            coordinates, log_det = torch.cat(list(handler.coordinates.values()), 1), handler.log_det
        return coordinates.reshape(num_copies, self.num_data, self.dim), log_det

    def _run(self, program: Program, num_copies: int, *handlers: Messenger) -> None:
        data = [x.repeat(num_copies, *[1] * (x.dim() - 1)) for x in self.data]
        plate = DataPlate(self.plate, len(data[0]), self._params, data[0].device)
        with ExitStack() as stack:
            for context in (pyro.get_param_store().scope(), pyro.validation_enabled(False), plate, *handlers):
                stack.enter_context(context)
            program(*data)
