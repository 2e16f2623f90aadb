"""The rows of all estimators as one group of a result tree."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.diagnostics.gradients.moments import Moments
from pyrovae.diagnostics.gradients.own import Own
from pyrovae.diagnostics.gradients.parameters import Part
from pyrovae.diagnostics.gradients.reference import Reference
from pyrovae.diagnostics.gradients.statistics import against, directional, signal
from pyrovae.diagnostics.gradients.sums import SKETCH_SIZE
from pyrovae.diagnostics.gradients.timing import Cost

__all__ = ["Table"]

_PLAIN = ("mean_norm", "variance", "snr_squared", "directional_snr", "cosine_own", "cosine_evidence")
_SQUARES = ("own_bias_squared", "evidence_bias_squared")
_DERIVED = ("snr", "own_bias", "evidence_bias", "variance_seconds", "particles_for_snr_1")
_COSTS = ("seconds", "seconds_std_error", "num_density_evaluations")
_BY_PART = [
    *_DERIVED,
    *(name + suffix for name in (*_PLAIN, *_SQUARES) for suffix in ("", "_std_error")),
]


class Table:
    """Arrays (method, count, part), NaN until they are filled."""

    def __init__(self, methods: Sequence[str], counts: Sequence[int], parts: list[Part]) -> None:
        self.methods, self.counts, self.parts = list(methods), list(counts), parts
        shape = (len(methods), len(counts))
        self.values = {name: np.full((*shape, len(parts)), np.nan) for name in _BY_PART}
        self.costs = {name: np.full(shape, np.nan) for name in _COSTS}
        size = min(SKETCH_SIZE, max(part.columns.stop - part.columns.start for part in parts))
        self.spectrum = np.full((*shape, len(parts), size), np.nan)
        self.mean = np.full((*shape, max(part.columns.stop for part in parts)), np.nan)
        self.reason = np.full(shape, "", dtype=object)

    def refuse(self, at: tuple[int, int], reason: str) -> None:
        """Leave a row empty, and say why."""
        self.reason[at] = reason

    def fill(self, at: tuple[int, int], moments: Moments, own: Own, reference: Reference, cost: Cost) -> None:
        """One estimator with one number of particles."""
        self.costs["seconds"][at], self.costs["seconds_std_error"][at] = cost
        self.costs["num_density_evaluations"][at] = self.counts[at[1]]
        self.mean[at] = moments.mean.numpy()
        if not np.isfinite(self.mean[at]).all():
            self.refuse(at, "the gradient is not finite")
            return
        for index, part in enumerate(self.parts):
            row = signal(moments, index) | directional(moments, index)
            truth: Moments | None = getattr(own, part.kind)
            if truth is not None:
                row |= against(moments, index, truth, "own")
            if reference.moments is not None and part.kind == "decoder":
                row |= against(moments, index, reference.moments, "evidence")
            row["variance_seconds"] = row["variance"] * cost.seconds
            row["particles_for_snr_1"] = _particles_wanted(self.counts[at[1]], row["snr_squared"])
            for name, value in row.items():
                self.values[name][(*at, index)] = value
            eigenvalues = moments.eigenvalues(index)
            self.spectrum[(*at, index)][: len(eigenvalues)] = eigenvalues

    def group(self, attrs: Mapping[str, Any], keep_mean: bool) -> xr.Dataset:
        """The group `gradients`."""
        rows, by_part = ("method", "count"), ("method", "count", "part")
        variables: dict[str, Any] = {name: (by_part, values) for name, values in self.values.items()}
        variables |= {name: (rows, values) for name, values in self.costs.items()}
        variables["spectrum"] = ((*by_part, "eigenvalue"), self.spectrum)
        variables["reason"] = (rows, self.reason.astype(str))
        if keep_mean:
            variables["mean"] = ((*rows, "coordinate"), self.mean)
            variables["coordinate_part"] = (("coordinate",), self._coordinate_parts())
        numbers = {part.name: part.columns.stop - part.columns.start for part in self.parts}
        return results.group(
            "gradients",
            variables,
            {**attrs, "num_parameters": json.dumps(numbers)},
            method=self.methods,
            count=self.counts,
            part=[part.name for part in self.parts],
        )

    def _coordinate_parts(self) -> np.ndarray:
        """The name of the kind of each coordinate."""
        names = np.full(self.mean.shape[-1], "", dtype=object)
        for part in self.parts:
            if part.name == part.kind:
                names[part.columns] = part.name
        return names.astype(str)


def _particles_wanted(count: int, snr_squared: float) -> float:
    """So many independent particles, averaged, have a signal-to-noise ratio of one."""
    return count / snr_squared if snr_squared > 0 else np.inf
