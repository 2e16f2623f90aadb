"""What an audit is to do, checked before any work: stages, methods, options of each, and the size of a block."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pyrovae.diagnostics import evidence
from pyrovae.diagnostics.calibration import calibrate
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.diagnostics.options import check_options, options_of
from pyrovae.diagnostics.reference import METHODS

__all__ = ["MODEL_STAGES", "STAGES", "Settings", "stage_options"]

MODEL_STAGES: Final = ("calibration",)
"""Stages that are about the model and the guide, not about the data."""
STAGES: Final = (
    *MODEL_STAGES,
    "predictions",
    "weights",
    "terms",
    "reference",
    "comparison",
    "sandwich",
    "gaps",
)
"""All stages in the order of the work, the cheaper first."""
NEEDS: Final = {"terms": ("weights",), "comparison": ("weights", "reference"), "sandwich": ("reference",)}

Options = Mapping[str, Any]


def _none() -> Options:
    return {}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an audit, as for `audit`; a stage brings those that it needs.

    Raises:
        ValueError: an unknown stage, method or option, no stage, too few draws, or a block of no data.

    >>> Settings(stages=("comparison",)).stages
    ('weights', 'reference', 'comparison')
    """

    stages: tuple[str, ...] = STAGES
    methods: tuple[str, ...] = ("elbo", "iwae", "psis")
    num_samples: int = 1000
    reference: Options = field(default_factory=_none)
    sandwich: Options = field(default_factory=_none)
    calibration: Options = field(default_factory=_none)
    gaps: Options = field(default_factory=_none)
    block_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.stages or ("",):
            if name not in STAGES:
                raise ValueError(f"unknown stage {name!r} of an audit: choose of {', '.join(STAGES)}")
        wanted = {*self.stages, *(need for name in self.stages for need in NEEDS.get(name, ()))}
        object.__setattr__(self, "stages", tuple(name for name in STAGES if name in wanted))
        evidence.check_methods(self.methods)
        evidence.check_draws(self.num_samples)
        if self.block_size < 1:
            raise ValueError(
                f"block_size is the number of data in a block, at least 1, but is {self.block_size}"
            )
        self._check_options()

    def _check_options(self) -> None:
        method = self.reference.get("method", "hmc")
        if method not in METHODS:
            raise ValueError(
                f"unknown method {method!r} for posterior draws: choose one of {', '.join(METHODS)}"
            )
        own = {name: value for name, value in self.reference.items() if name not in ("method", "seed")}
        check_options(method, METHODS[method], own)
        known = stage_options(method)
        for stage in ("sandwich", "calibration", "gaps"):
            _check_known(stage, getattr(self, stage), known[stage])

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            name: dict(value) if isinstance(value, Mapping) else value for name, value in asdict(self).items()
        }


def stage_options(method: str = "hmc") -> dict[str, set[str]]:
    """The options of every stage that has some, with posterior draws by that method.

    >>> "num_chains" in stage_options()["reference"]
    True
    """
    return {
        "reference": {"method", *options_of(METHODS[method])},
        "sandwich": {"num_temperatures", "tolerance", *options_of(evidence.METHODS["ais"])} - {"reference"},
        "calibration": _keywords(calibrate),
        "gaps": _keywords(inference_gaps),
    }


def _keywords(function: Any) -> set[str]:
    taken = ("target", "seed", "progress", "evidence")
    return {name for name in inspect.signature(function).parameters if name not in taken}


def _check_known(stage: str, given: Options, known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(
                f"the stage {stage!r} has no option {name!r}: its options are {', '.join(sorted(known))}"
            )
