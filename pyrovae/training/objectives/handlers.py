"""Pyro messengers of the objectives: a data plate that may be tiled, and densities summed row by row."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

__all__ = ["DataPlate", "RowDensities", "is_latent", "sum_rows"]

Message = Any  # Pyro's Message is a generic TypedDict whose keys change from handler to handler


class DataPlate(Messenger):
    """Let the data plate of guide and model have the rows of tiled data, `copies` times those of the batch.

    Afterwards `full_size` is the number of data that a subsampled plate stands for, None for a plate of just its rows.
    """

    def __init__(self, name: str, num_rows: int, copies: int, device: torch.device) -> None:
        super().__init__()
        self.name, self.num_rows, self.copies, self.device = name, num_rows, copies, device
        self.full_size: int | None = None
        self.indices: Any = None
        self.is_known = False

    def _pyro_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg) or msg["name"] != self.name:
            return
        fn, given = msg["fn"], msg["value"]
        full_size = None if given is None and fn.subsample_size is None else int(fn.size)
        if self.is_known and full_size != self.full_size:
            raise ValueError(
                f"the plate {self.name!r} stands for {self.full_size or 'just its'} data at first and for "
                f"{full_size or 'just its'} data later; give it the same size in model and guide"
            )
        self.full_size, self.is_known = full_size, True
        if self.copies > 1:
            self._check_follows(fn, given)
        if given is None and self.copies > 1:
            msg["value"] = torch.arange(self.num_rows, device=self.device)
        elif given is None:
            msg["value"] = self.indices  # None at first: then Pyro draws them
        # For whoever watches from outside, to whom the tiled plate has too many rows.
        own_size = fn.size if self.copies == 1 else self.num_rows // self.copies
        msg["infer"]["num_data"] = int(own_size) if full_size is None else full_size

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) and msg["name"] == self.name:
            self.indices = msg["value"]

    def _check_follows(self, fn: Any, given: Any) -> None:
        """The plate must have the tiled rows; a fixed size of all the data, without a subsample, is fine."""
        own: tuple[int, ...] = (self.num_rows,)
        if given is not None:
            size = len(given)
        elif fn.subsample_size is not None:
            size = fn.subsample_size
        else:
            size, own = fn.size, (self.num_rows, self.num_rows // self.copies)
        if size not in own:
            raise ValueError(
                f"particles are computed side by side, as {self.copies} copies of the batch, {self.num_rows} rows, but "
                f"the plate {self.name!r} has {size}; write pyro.plate({self.name!r}, len(x)), or with a subsample "
                "subsample_size=len(x) or indices that are an argument of the model; or pass chunk_size=1"
            )


class RowDensities(Messenger):
    """Run a program with the latent `values` that are given, drawing all where none are, and sum its densities.

    Afterwards `values` {site: value}, `axes` {site: axis of the rows, from the left}, `auxiliary` the names of sites
    that only a guide has, and `log_prob` `[rows]`, 0.0 where there was no site.

    Args:
        plate: the data plate.
        role: "model" or "guide"; of a guide, sites and factors are scored, of a model observed sites too.
        values: {site: value}; None: draw them.
        change: applied to each draw before it is scored and handed on.
        wanted: what a site lacks whose draws have no gradient; None: it need not have one.
        takes_scale: whether a scale of the sites beyond the plate's own is honoured; otherwise it is refused.
    """

    def __init__(
        self,
        plate: DataPlate,
        role: str,
        values: Mapping[str, Tensor] | None = None,
        *,
        change: Callable[[Tensor], Tensor] | None = None,
        wanted: str | None = None,
        takes_scale: bool = False,
    ) -> None:
        super().__init__()
        self.plate, self.role, self.given = plate, role, values
        self.change, self.wanted, self.takes_scale = change, wanted, takes_scale

    def __enter__(self) -> "RowDensities":
        self.values: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self.auxiliary: set[str] = set()
        self.log_prob: Any = 0.0
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Message) -> None:
        if not is_latent(msg):
            return
        if self.given is not None:
            # A site that was not drawn before is drawn here and refused when model and guide are compared.
            msg["value"] = self.given.get(msg["name"])
        elif self.wanted is not None and not msg["fn"].has_rsample:
            raise NotImplementedError(
                f"this objective wants {self.wanted} at every site of the guide, but {type(msg['fn']).__name__} at "
                f'site {msg["name"]!r} has none; use "score_function_loo", "vimco" or "rws", or a reparameterized '
                "distribution"
            )

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) or (msg["infer"] and msg["infer"].get("_deterministic")):
            return
        if self.role == "guide" and msg["is_observed"] and not site_is_factor(msg):
            return
        frame = _frame(msg, self.plate.name)
        if is_latent(msg):
            if self.given is None and self.change is not None:
                msg["value"] = self.change(msg["value"])
            self.values[msg["name"]] = msg["value"]
            self.axes[msg["name"]] = len(msg["fn"].batch_shape) + frame.dim
            if msg["infer"] and msg["infer"].get("is_auxiliary"):
                self.auxiliary.add(msg["name"])
        value = scale_and_mask(self._score(msg), scale=self._scale(msg, frame), mask=msg["mask"])
        _check_shape(msg, value)
        self.log_prob = self.log_prob + sum_rows(value, frame.dim)

    def _score(self, msg: Message) -> Tensor:
        try:
            return msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        except (KeyError, NotImplementedError) as error:
            raise NotImplementedError(
                f"this objective wants the density of {type(msg['fn']).__name__} at site {msg['name']!r} of the "
                f'{self.role} at a given value, which it lacks ({error}); use "elbo" or "iwae", or a distribution '
                "whose inverse is known"
            ) from error

    def _scale(self, msg: Message, frame: Any) -> Any:
        """The scale of a site without the plate's own, which belongs outside of the bound."""
        scale = msg["scale"] * frame.size / frame.full_size
        if isinstance(scale, float) and math.isclose(scale, 1.0, rel_tol=1e-6):
            return 1.0
        if self.takes_scale:
            return scale
        raise ValueError(
            f"site {msg['name']!r} of the {self.role} is scaled, by poutine.scale or a subsampled plate other than "
            f"{self.plate.name!r}, and importance weights of scaled densities mean nothing; remove the scale, or use "
            'objective "elbo"'
        )


def is_latent(msg: Message) -> bool:
    """Whether the site is a sample that is neither observed nor a plate's own subsample."""
    return not site_is_subsample(msg) and not msg["is_observed"]


def sum_rows(value: Tensor, axis: int) -> Tensor:
    """Sum over every axis but that of the rows: `[rows]`.

    >>> sum_rows(torch.ones(2, 3, 4), 1)
    tensor([8., 8., 8.])
    """
    return value.movedim(axis, 0).reshape(value.shape[axis], -1).sum(-1)


def _frame(msg: Message, plate: str) -> Any:
    for frame in msg["cond_indep_stack"]:
        if frame.name == plate and frame.dim is not None:
            return frame
    raise ValueError(
        f"this objective weights each datum by itself, but site {msg['name']!r} lies outside the plate {plate!r}; put "
        f'it inside `with pyro.plate({plate!r}, len(x))`, name the right plate, or use objective "elbo" for what all '
        "data share"
    )


def _check_shape(msg: Message, value: Tensor) -> None:
    """Every axis of a site's density must be a plate's: others would be summed in silence."""
    dims = {frame.dim for frame in msg["cond_indep_stack"]}
    odd = [
        axis - value.dim()
        for axis, size in enumerate(value.shape)
        if size > 1 and axis - value.dim() not in dims
    ]
    if odd:
        raise ValueError(
            f"the density of site {msg['name']!r} has shape {list(value.shape)}, of which dim {odd[0]} is no plate's; "
            "declare it with .to_event(...) or put it into a pyro.plate"
        )
