"""Pyro messengers that run a model or a guide row by row: place values, collect densities, row sums only."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

__all__ = [
    "DataPlate",
    "PlaceLatents",
    "ReadLatents",
    "Score",
    "Simulate",
    "bijection",
    "is_deterministic",
    "is_latent",
    "is_observed",
    "is_real",
    "log_prob",
    "plate_dim",
    "rows_first",
    "rows_of_mean",
    "sum_rows",
]

Message = Any  # Pyro's Message is a generic TypedDict whose keys change from handler to handler


class DataPlate(Messenger):
    """Give the data plate exactly as many rows as the data, whatever size it declares, and supply parameters."""

    def __init__(self, plate: str, num_rows: int, params: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__()
        self.plate, self.num_rows, self.params, self.device = plate, num_rows, params, device

    def _pyro_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg) or msg["name"] != self.plate:
            return
        indices, subsample_size = msg["value"], msg["fn"].subsample_size
        if indices is not None and len(indices) != self.num_rows:
            raise ValueError(
                f"plate {self.plate!r} was given {len(indices)} subsample indices for {self.num_rows} rows of "
                "data: pass the indices as an argument of the model, so that they follow its data"
            )
        if subsample_size is not None and subsample_size != self.num_rows:
            raise ValueError(
                f"plate {self.plate!r} draws a fixed subsample of {subsample_size} of its data, so the model "
                f"cannot be run on {self.num_rows} rows: pass subsample_size=len(x) or subsample=indices"
            )
        if indices is None:
            msg["value"] = torch.arange(self.num_rows, device=self.device)

    def _pyro_param(self, msg: Message) -> None:
        if msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]


class PlaceLatents(Messenger):
    """Run a model at unconstrained `z` `[rows, D]`; the map to each support runs inside the model.

    Afterwards: `values` {site: constrained value}, `log_det` `[rows]` of the whole map, `observed`, the observed sites
    in order, and `log_prior` `[rows]` (with `log_det` in it) and `log_likelihood` `[rows]`, which are summed when they
    are asked for: the curvature wants the parameters of the sites, not their densities.
    """

    def __init__(self, z: Tensor, plate: str) -> None:
        super().__init__()
        self.z, self.plate = z, plate

    def __enter__(self) -> "PlaceLatents":
        self.column = 0
        self.values: dict[str, Tensor] = {}
        self.latent: list[Message] = []
        self.observed: list[Message] = []
        self.log_det = self.z.new_zeros(len(self.z))
        super().__enter__()
        return self

    @property
    def log_prior(self) -> Tensor:
        """Of all latent sites."""
        return sum((log_prob(msg, self.plate) for msg in self.latent), self.log_det)

    @property
    def log_likelihood(self) -> Tensor:
        """Of all observed sites."""
        return sum((log_prob(msg, self.plate) for msg in self.observed), self.z.new_zeros(len(self.z)))

    def _pyro_sample(self, msg: Message) -> None:
        if not is_latent(msg):
            return
        fn, dim = msg["fn"], plate_dim(msg, self.plate)
        transform = bijection(fn)
        shape = list(transform.inverse_shape(fn.shape()))
        axis = len(fn.batch_shape) + dim
        del shape[axis]
        size = torch.Size(shape).numel()
        u = self.z[:, self.column : self.column + size].reshape(-1, *shape).movedim(0, axis)
        self.column += size
        value = transform(u)
        msg["value"] = self.values[msg["name"]] = value
        if not is_real(fn.support):
            log_det = sum_rows(transform.log_abs_det_jacobian(u, value), axis)
            self.log_det = self.log_det + log_det

    def _pyro_post_sample(self, msg: Message) -> None:
        if is_latent(msg):
            self.latent.append(msg.copy())
        elif is_observed(msg):
            self.observed.append(msg.copy())


class ReadLatents(Messenger):
    """Run a model at given constrained `values` and read off the unconstrained coordinates.

    Afterwards: `coordinates` {site: [rows, size]} in the order of the model, `log_det` `[rows]`.
    """

    def __init__(self, values: Mapping[str, Tensor], plate: str) -> None:
        super().__init__()
        self.given, self.plate = values, plate

    def __enter__(self) -> "ReadLatents":
        self.coordinates: dict[str, Tensor] = {}
        self.log_det: Any = 0.0
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        if is_latent(msg):
            msg["value"] = self.given[msg["name"]]

    def _pyro_post_sample(self, msg: Message) -> None:
        if not is_latent(msg):
            return
        fn, value, axis = msg["fn"], msg["value"], len(msg["fn"].batch_shape) + plate_dim(msg, self.plate)
        if not bool(fn.support.check(value).all()):
            raise ValueError(
                f"the guide drew a value of {msg['name']!r} outside the model's support {fn.support}: give the "
                "guide a distribution with the support of the model's"
            )
        transform = bijection(fn)
        u = transform.inv(value)
        self.coordinates[msg["name"]] = rows_first(u, axis)
        if not is_real(fn.support):
            self.log_det = self.log_det + sum_rows(transform.log_abs_det_jacobian(u, value), axis)


class Score(Messenger):
    """Run a guide (or a prior) with the `values` that are given, drawing the others, and score its latents.

    Afterwards: `values` {site: value}, `log_q` `[rows]` (a guide's factors in it).
    """

    def __init__(self, values: Mapping[str, Tensor], plate: str) -> None:
        super().__init__()
        self.given, self.plate = values, plate

    def __enter__(self) -> "Score":
        self.values: dict[str, Tensor] = {}
        self.log_q: Any = 0.0
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        if is_latent(msg) and msg["name"] in self.given:
            msg["value"] = self.given[msg["name"]]

    def _pyro_post_sample(self, msg: Message) -> None:
        if is_latent(msg):
            self.values[msg["name"]] = msg["value"]
        if is_latent(msg) or site_is_factor(msg):
            self.log_q = self.log_q + log_prob(msg, self.plate)


class Simulate(Messenger):
    """Run a model with all its sites drawn, observed ones too; afterwards `values` and `drawn`, {site: value}."""

    def __enter__(self) -> "Simulate":
        self.values: dict[str, Tensor] = {}
        self.drawn: dict[str, Tensor] = {}
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        if not is_observed(msg):
            return
        if site_is_factor(msg):
            raise ValueError(
                f"the model has a pyro.factor, {msg['name']!r}, which cannot be drawn: pass simulate=, a callable "
                "(values, *data) -> data, to Target"
            )
        msg["value"], msg["done"], msg["is_observed"] = None, False, False
        msg["infer"] = {**msg["infer"], "was_observed": True}

    def _pyro_post_sample(self, msg: Message) -> None:
        if msg["infer"].get("was_observed"):
            self.drawn[msg["name"]] = msg["value"]
        elif is_latent(msg):
            self.values[msg["name"]] = msg["value"]


def is_deterministic(msg: Message) -> bool:
    """Whether the site is a `pyro.deterministic`, which has no density."""
    return bool(msg["infer"] and msg["infer"].get("_deterministic"))


def is_latent(msg: Message) -> bool:
    """Whether the site is a sample that is neither observed nor a plate's own subsample."""
    return not site_is_subsample(msg) and not msg["is_observed"]


def is_observed(msg: Message) -> bool:
    """Whether the site's density is part of the likelihood: observed, or a factor."""
    return not site_is_subsample(msg) and bool(msg["is_observed"]) and not is_deterministic(msg)


def is_real(support: constraints.Constraint) -> bool:
    """Whether every coordinate of the support is the whole real line."""
    while isinstance(
        support, (type(constraints.independent(constraints.real, 0)), constraints.MixtureSameFamilyConstraint)
    ):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def bijection(fn: Any) -> Transform:
    """The map from unconstrained coordinates onto the support of `fn`."""
    support = fn.support
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return biject_to(support)


def plate_dim(msg: Message, plate: str) -> int:
    """The (negative) batch dimension of the data plate at a site."""
    for frame in msg["cond_indep_stack"]:
        if frame.name == plate and frame.dim is not None:
            return int(frame.dim)
    raise ValueError(
        f"site {msg['name']!r} lies outside the plate {plate!r}: put it inside `with pyro.plate({plate!r}, len(x))`"
    )


def rows_first(value: Tensor, axis: int) -> Tensor:
    """Move `axis` to the front and flatten the others: `[rows, size]`."""
    return value.movedim(axis, 0).reshape(value.shape[axis], -1)


def rows_of_mean(msg: Message, plate: str) -> Tensor:
    """The mean of a site's distribution, rows first: `[rows, *local, *event]`."""
    fn = msg["fn"]
    mean: Tensor = fn.mean
    return mean.movedim(len(fn.batch_shape) + plate_dim(msg, plate), 0)


def sum_rows(value: Tensor, axis: int) -> Tensor:
    """Sum over every dimension but `axis`: `[rows]`."""
    return rows_first(value, axis).sum(-1)


def log_prob(msg: Message, plate: str) -> Tensor:
    """Log density of one site for each row, masks honoured and scales ignored: `[rows]`."""
    value = scale_and_mask(msg["fn"].log_prob(msg["value"]), mask=msg["mask"])
    return sum_rows(value, plate_dim(msg, plate))
