"""Importance sampling by Pyro's own utilities, one datum after another, behind the same gate as ours."""

from collections.abc import Callable, Iterator, Mapping

import pyro
import torch
from pyro import poutine
from pyro.infer import Importance
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS, check_weights
from pyrovae.diagnostics.reference.importance import Budget, Weighted, resampled
from pyrovae.diagnostics.reference.programs import OneDatum, one_datum
from pyrovae.diagnostics.reference.sampled import Progress, Sampled
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["TRACES", "from_pyro_importance"]

MAX_DATA = 1000
MAX_TRACES = 1000  # traces that are held at once
AGREEMENT = 0.02  # nats; two routes to one density in float32 come closer, a wrong one does not
Shapes = Mapping[str, tuple[int, ...]]
Draws = tuple[dict[str, Tensor], Tensor]


def from_pyro_importance(
    target: Target,
    *,
    num_chains: int = 4,
    num_samples: int = 1000,
    num_draws: int = 10_000,
    traces: str = "vectorized",
    min_ess: float = 400.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sampled]:
    """As `from_importance`, with the weights that Pyro gives for model and guide of one datum at a time.

    Raises:
        ValueError: as `from_importance`; more than 1,000 data; or weights that differ from those of the Target.
    """
    budget = Budget(num_chains, num_samples, num_draws, min_ess)
    budget.check()
    if traces not in TRACES:
        raise ValueError(f"unknown traces {traces!r}: choose one of {', '.join(TRACES)}")
    if target.num_data > MAX_DATA:
        raise ValueError(
            f"Pyro weighs one datum at a time, which is meant for at most {MAX_DATA} data, not {target.num_data}: "
            "pass target.rows(index) with some of them, or use method 'importance'"
        )
    for row in range(target.num_data):
        drawn = _weighted(target, row, num_draws, traces, block_seed(seed, row, 0))
        check_weights(drawn.log_w, row)
        _check_agreement(target.rows([row]), drawn, row, traces)
        yield resampled(drawn, budget, seed=block_seed(seed, row, 1))
        if progress is not None:
            progress(row + 1, target.num_data)


def _weighted(target: Target, row: int, num_draws: int, traces: str, seed: int) -> Weighted:
    """Draws of one datum with Pyro's log-weights; log|dv/du| is in both densities and cancels."""
    some, datum = target.rows([row]), one_datum(target, row)
    origin = torch.zeros(1, 1, some.dim, dtype=some.dtype, device=some.device)
    shapes = {name: tuple(value.shape[2:]) for name, value in some.constrain(origin).items()}
    blocks = []
    with (
        torch.no_grad(),
        seeded(seed),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
    ):
        run, size = TRACES[traces]
        for first in range(0, num_draws, size):
            values, log_w = run(datum, min(size, num_draws - first), shapes)
            z = some.unconstrain(values)
            blocks.append(Weighted(z, some.log_joint(z), log_w[:, None]))
    return Weighted(*(torch.cat(pieces) for pieces in zip(*blocks, strict=True)))


def _vectorized(datum: OneDatum, num_draws: int, shapes: Shapes) -> Draws:
    """All draws in one trace, along a plate on the left of all others."""
    nesting = max(_nesting(program, datum.data) for program in (datum.model, datum.guide))
    try:
        log_w, trace, _ = vectorized_importance_weights(
            datum.model, datum.guide, *datum.data, num_samples=num_draws, max_plate_nesting=nesting
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "model or guide does not run with a dimension of draws on the left of its plates, as Pyro's "
            "vectorized_importance_weights asks (a convolution, a reshape): pass traces='one by one'"
        ) from error
    values = {name: trace.nodes[name]["value"] for name in shapes}
    return _stacked([values], num_draws, shapes), log_w.reshape(num_draws)


def _one_by_one(datum: OneDatum, num_draws: int, shapes: Shapes) -> Draws:
    """A trace for each draw."""
    run = Importance(datum.model, datum.guide, num_samples=num_draws).run(*datum.data)
    values = [{name: trace.nodes[name]["value"] for name in shapes} for trace in run.exec_traces]
    return _stacked(values, num_draws, shapes), torch.stack(list(run.log_weights))


def _nesting(program: Callable[..., object], data: tuple[Tensor, ...]) -> int:
    """How many dimensions from the right the plates of a program take."""
    sites = poutine.trace(program).get_trace(*data).nodes.values()
    frames = [frame for site in sites if site["type"] == "sample" for frame in site["cond_indep_stack"]]
    return max(-frame.dim for frame in frames if frame.dim is not None)


def _stacked(values: list[dict[str, Tensor]], num_draws: int, shapes: Shapes) -> dict[str, Tensor]:
    """{site: [K, 1, *event]}: with one datum, plates of size 1 are all that Pyro's shapes have beside it."""
    return {
        name: torch.stack([each[name] for each in values]).reshape(num_draws, 1, *shape)
        for name, shape in shapes.items()
    }


TRACES: Mapping[str, tuple[Callable[[OneDatum, int, Shapes], Draws], int]] = {
    "vectorized": (_vectorized, MAX_ROWS),
    "one by one": (_one_by_one, MAX_TRACES),
}
"""Pyro's ways to weigh draws, by name, and how many draws each may hold at once."""


def _check_agreement(some: Target, drawn: Weighted, row: int, traces: str) -> None:
    """Pyro's weights are those of the Target, where the guide can be scored."""
    if not some.can_score_guide:
        return
    blocks = drawn.z.split(MAX_ROWS)
    ours = drawn.lp - torch.cat([some.log_guide(z) for z in blocks])
    if not torch.allclose(drawn.log_w, ours, atol=AGREEMENT, rtol=1e-4):
        error = float((drawn.log_w - ours).abs().nan_to_num().max())
        cure = (
            "; traces='one by one' needs no plate on the left of the model's"
            if traces == "vectorized"
            else ""
        )
        raise ValueError(
            f"Pyro's log-weights of datum {row} differ from log p(x, z) - log q(z | x) of the Target by {error:.3g} "
            f"nats, so one of them is not of this model and guide{cure}"
        )
