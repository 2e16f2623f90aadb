"""The warm-up of many chains for many data: coordinates, step sizes and steps a trajectory, one of each per datum."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrovae.inference import hmc, trajectory, warmup
from pyrovae.inference.hmc import HMCState, LogDensityAndGradient
from pyrovae.inference.laplace import Gaussian, unwhiten, whiten, whitened_gradient
from pyrovae.inference.trajectory import Settings
from pyrovae.inference.whitening import compose, force, misfit, rewhiten

__all__ = ["Tuned", "lengthened", "rows", "tune"]

QUARTER_TURN = math.pi / 2  # after which a draw of a standard normal is independent of the one before
SHARES = (0.3, 0.3, 0.4)  # of the warm-up; after each but the last, coordinates may change
FEWEST = 30  # transitions of a warm-up that changes coordinates
WINDOW = 10  # transitions between two looks at the step sizes; each look waits for the device
LEAST_GAIN = 0.5  # of the misfit without a Gaussian; what explains less of the gradients is not rotated about
TYPICAL = 0.75  # quantile of the steps that data need, which a batch makes in the warm-up
SLOW, STUCK = 12.0, 40.0  # draws in which chains forget; trajectories are longer above
ENOUGH = 20  # transitions from which that can be told


class Tuned(NamedTuple):
    """What a warm-up leaves behind, frozen."""

    position: Float[Tensor, "c n d"]
    """Of the chains, in the coordinates of the whitening."""
    whitening: Gaussian
    step_size: Float[Tensor, " n"]
    trajectory_length: Float[Tensor, " n"]
    """Mean integration time: a quarter turn, or two or four of them."""
    rotates: Bool[Tensor, " n"]
    """Where the whitening says more about the gradients than nothing does, so that `hmc.rotations` is to rotate."""
    num_steps: Int[Tensor, " n"]
    """Steps that a trajectory of mean length needs."""
    num_changes: Int[Tensor, " n"]
    """How often the whitening was replaced."""
    num_gradient_evaluations: int
    """Per chain and datum."""


OF_DATA = ("step_size", "trajectory_length", "rotates", "num_steps", "num_changes")


def rows(tuned: Tuned, index: Int[Tensor, " m"]) -> Tuned:
    """What was left behind of the data at `index`."""
    return tuned._replace(
        position=tuned.position[:, index],
        whitening=Gaussian(*(each[index] for each in tuned.whitening)),
        **{name: getattr(tuned, name)[index] for name in OF_DATA},
    )


def tune(
    log_density_and_gradient: LogDensityAndGradient,
    position: Float[Tensor, "c n d"],
    whitening: Gaussian,
    *,
    warmup_steps: int,
    target_accept_prob: float = 0.6,
    max_num_steps: int = 32,
    progress: Callable[[], object] | None = None,
) -> Tuned:
    """Warm C chains up for N densities in z, from `position`, with a Gaussian per datum as their first coordinates.

    Three stages, of 30, 30 and 40 per cent. In each, step sizes adapt to the wanted acceptance by dual averaging.
    After the first two, the Gaussian is replaced where `whitening.rewhiten` finds a clearly better one from the last
    half of the stage; from then on data rotate (`hmc.rotations`) whose Gaussian has less than half the misfit of none.
    The first stage is by the leapfrog, which does not care how far off the centre is. Trajectories take a quarter turn,
    after which whitened coordinates have forgotten where they were; data of which the second stage shows that they have
    not, being curved, go on for two or four of them, see `lengthened`. Fewer than 30 transitions, or one chain, are one
    stage and change neither. A batch makes as many steps as three quarters of its data need; the others have shorter
    trajectories meanwhile.

    Args:
        log_density_and_gradient: of z, [C, N, D] -> [C, N], [C, N, D]; rows independent, results detached. It may be
            shown positions that are not finite, and must return.
        position: where chains start; finite, with finite log density and gradient.
        whitening: its scale needs to be right to a factor of 10 or so.
        warmup_steps: transitions, at least 1; 200 are usual.
        target_accept_prob: harmonic mean over chains of the acceptance rate wanted, strictly between 0 and 1. A datum
            whose single step of a whole trajectory is accepted more often has more.
        max_num_steps: most steps of a transition, at least 1.
        progress: called after every transition.

    Raises:
        ValueError: if an argument is out of range, or a start is not finite.

    Source of the stages: Stan Development Team, Stan Reference Manual, section on automatic parameter tuning.

    >>> _ = torch.manual_seed(0)
    >>> unit = Gaussian(torch.zeros(1, 2), torch.eye(2).expand(1, 2, 2))
    >>> tuned = tune(lambda z: (-8 * z.square().sum(-1), -16 * z), torch.randn(8, 1, 2), unit, warmup_steps=100)
    >>> tuned.whitening.scale_tril.diagonal(dim1=-2, dim2=-1).round(decimals=2), tuned.num_steps
    (tensor([[0.2500, 0.2500]]), tensor([1]))
    """
    _check(position, warmup_steps, target_accept_prob, max_num_steps)
    changes = torch.zeros(position.shape[1], dtype=torch.long, device=position.device)
    length = torch.full_like(position[0, :, 0], QUARTER_TURN)
    stages = _stages(warmup_steps) if len(position) > 1 else [warmup_steps]
    run = partial(
        _stage, target_accept_prob=target_accept_prob, max_num_steps=max_num_steps, progress=progress
    )
    rotates, cost = torch.zeros_like(changes, dtype=torch.bool), 0
    for number, count in enumerate(stages):
        density = whitened_gradient(whitening, log_density_and_gradient)
        state = hmc.init(whiten(whitening, position), density)
        if number == 0:
            _check_start(state)
        stage = run(state, density, rotates, length, count)
        cost += 1 + stage.num_gradient_evaluations
        position = unwhiten(whitening, stage.state.position)
        if number == 1:
            length = lengthened(length, stage.positions)
        if number + 1 < len(stages):
            found, is_new = rewhiten(stage.positions, stage.gradients)
            whitening, changes = compose(whitening, found), changes + is_new
            seen = stage.positions.flatten(0, 1), stage.gradients.flatten(0, 1)
            rotates = misfit(found, *seen) < LEAST_GAIN * force(found, seen[1])
    num_steps = trajectory.num_steps_needed(length, stage.step_size, max_num_steps)
    return Tuned(stage.state.position, whitening, stage.step_size, length, rotates, num_steps, changes, cost)


def lengthened(length: Float[Tensor, " n"], positions: Float[Tensor, "t c n d"]) -> Float[Tensor, " n"]:
    """Double the trajectories of data whose chains mix slowly, twice where they hardly mix.

    With r the largest lag-1 autocorrelation of a coordinate within chains, draws are forgotten after some
    (1 + r) / (1 - r). Above 12 chains creep along a curved posterior like a random walk, of which a trajectory twice as
    long makes four steps at once. Elsewhere a quarter turn is best: a longer one comes back. Chains that stay in
    different modes do not count as slow, since no trajectory would take them across.

    Source of the correction for the bias of r, -(1 + 3 r) / T: Kendall 1954.

    >>> _ = torch.manual_seed(0)
    >>> fast, slow = torch.randn(50, 16, 1, 2), 0.1 * torch.randn(50, 16, 1, 2).cumsum(0)
    >>> lengthened(torch.ones(2), torch.cat([fast, slow], 2))
    tensor([1., 4.])
    """
    if len(positions) < ENOUGH:
        return length
    centred = positions - positions.mean(0)
    product = (centred[1:] * centred[:-1]).sum((0, 1))
    square = centred.square().sum((0, 1)).clamp(min=torch.finfo(product.dtype).tiny)
    share = 1.0 / len(positions)
    slowest = ((product / square + share) / (1.0 - 3.0 * share)).amax(-1).clamp(max=1.0)
    draws = (1.0 + slowest) / (1.0 - slowest)
    return length * torch.where(draws > SLOW, 2.0, 1.0) * torch.where(draws > STUCK, 2.0, 1.0)


class _Stage(NamedTuple):
    state: HMCState
    positions: Float[Tensor, "t c n d"]
    """Of its last half."""
    gradients: Float[Tensor, "t c n d"]
    step_size: Float[Tensor, " n"]
    num_gradient_evaluations: int


def _stage(
    state: HMCState,
    density: LogDensityAndGradient,
    rotates: Bool[Tensor, " n"],
    length: Float[Tensor, " n"],
    count: int,
    *,
    target_accept_prob: float,
    max_num_steps: int,
    progress: Callable[[], object] | None,
) -> _Stage:
    adaptation = warmup.init(warmup.initial_step_size(state.position))
    seen: list[HMCState] = []
    cost, num_steps, num_data = 0, 1, len(length)
    for t, share in enumerate(trajectory.shares(count)):
        size = warmup.step_size(adaptation)
        if t % WINDOW == 0:
            needed = trajectory.num_steps_needed(trajectory.LONGEST * length, size, max_num_steps)
            num_steps = int(needed.double().quantile(TYPICAL, interpolation="higher"))
        most = torch.full_like(length, num_steps, dtype=torch.long)
        move = trajectory.plan(share, Settings(size, length, most, rotates, (num_data,) * num_steps))
        state, info = trajectory.transition(state, density, move, trajectory.draw_noise(state.position))
        adaptation = warmup.update(adaptation, info.acceptance_rate, target_accept_prob)
        cost += num_steps
        if 2 * t >= count:
            seen.append(state)
        if progress is not None:
            progress()
    positions, gradients = (
        torch.stack([getattr(each, name) for each in seen]) for name in ("position", "gradient")
    )
    longest = trajectory.LONGEST * length
    step_size = torch.minimum(warmup.final_step_size(adaptation), longest)
    return _Stage(state, positions, gradients, step_size, cost)


def _stages(warmup_steps: int) -> list[int]:
    if warmup_steps < FEWEST:
        return [warmup_steps]
    first, second, _ = (int(share * warmup_steps) for share in SHARES)
    return [first, second, warmup_steps - first - second]


def _check(
    position: Tensor,
    warmup_steps: int,
    target_accept_prob: float,
    max_num_steps: int,
) -> None:
    for name, count, advice in (
        ("warmup_steps", warmup_steps, "step sizes are found in warm-up; 200 transitions are usual"),
        ("max_num_steps", max_num_steps, "32 is usual"),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, but is {count}: {advice}")
    if not 0.0 < target_accept_prob < 1.0:
        raise ValueError(
            f"target_accept_prob must lie strictly between 0 and 1, but is {target_accept_prob}: 0.6 is usual"
        )
    if position.ndim != 3 or position.numel() == 0:
        raise ValueError(
            f"position must have shape [chains, data, dimensions], none of them 0, but has {tuple(position.shape)}"
        )
    if not bool(position.isfinite().all()):
        raise ValueError(
            f"position must be finite, but is not at {_first(~position.isfinite().all(-1))}: start elsewhere"
        )


def _check_start(state: HMCState) -> None:
    is_bad = ~(state.log_density.isfinite() & state.gradient.isfinite().all(-1))
    if bool(is_bad.any()):
        raise ValueError(
            "log density and gradient must be finite where chains start, but are not at "
            f"{_first(is_bad)}: start those chains elsewhere, or check the model there"
        )


def _first(is_bad: Bool[Tensor, "c n"]) -> str:
    chain, datum = is_bad.nonzero()[0].tolist()
    return f"chain {chain}, datum {datum} (and {int(is_bad.sum()) - 1} more)"
