"""Draws by Pyro's own HMC and NUTS, one chain of one datum after another: the reference of the reference."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.autoguide import init_to_sample
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyrovae.diagnostics.evidence.draws import MAX_ROWS
from pyrovae.diagnostics.reference.programs import SUFFIX, one_datum, unconstrained
from pyrovae.diagnostics.reference.sampled import Progress, Sampled, diagnose, to_numpy
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["from_pyro_hmc", "from_pyro_nuts"]

MAX_DATA = 100
Values = Mapping[str, Tensor]


class Run(NamedTuple):
    """What both kernels are asked for."""

    num_chains: int
    num_samples: int
    warmup_steps: int
    target_accept_prob: float

    def check(self, target: Target) -> None:
        """Refuse numbers from which no verdict can come."""
        if self.num_chains < 2 or self.num_samples < 4:
            raise ValueError(
                "R-hat compares chains and their halves: it needs num_chains >= 2 and num_samples >= 4, not "
                f"{self.num_chains} and {self.num_samples}"
            )
        if self.warmup_steps < 1 or not 0.0 < self.target_accept_prob < 1.0:
            raise ValueError(
                "need warmup_steps >= 1 and target_accept_prob in (0, 1), not "
                f"{self.warmup_steps} and {self.target_accept_prob}"
            )
        if target.num_data > MAX_DATA:
            raise ValueError(
                f"Pyro moves one chain of one datum at a time, which is meant for at most {MAX_DATA} data, not "
                f"{target.num_data}: pass target.rows(index) with some of them, or use method 'hmc'"
            )


def from_pyro_hmc(
    target: Target,
    *,
    num_chains: int = 4,
    num_samples: int = 500,
    warmup_steps: int = 300,
    trajectory_length: float = 2.0,
    full_mass: bool = False,
    target_accept_prob: float = 0.8,
    max_rhat: float = 1.01,
    min_ess: float = 400.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sampled]:
    """Pyro's HMC on the user's model.

    Pyro takes floor(trajectory_length / step size) steps, in units of the posterior's standard deviations once it has
    adapted. A Gaussian has the period 2 pi in these: at Pyro's default, 2 pi, trajectories can end where they began.
    """
    if not 0.0 < trajectory_length < math.inf:
        raise ValueError(f"trajectory_length must be positive and finite, not {trajectory_length}")
    run = Run(num_chains, num_samples, warmup_steps, target_accept_prob)
    kernel = _kernel(HMC, run, full_mass=full_mass, trajectory_length=trajectory_length)
    for found in _sampled(target, kernel, run, seed, progress):
        yield _judged(found, max_rhat=max_rhat, min_ess=min_ess)


def from_pyro_nuts(
    target: Target,
    *,
    num_chains: int = 4,
    num_samples: int = 500,
    warmup_steps: int = 300,
    max_tree_depth: int = 10,
    full_mass: bool = False,
    target_accept_prob: float = 0.8,
    max_rhat: float = 1.01,
    min_ess: float = 400.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Sampled]:
    """Pyro's No-U-Turn sampler on the user's model."""
    if max_tree_depth < 1:
        raise ValueError(f"max_tree_depth must be at least 1, not {max_tree_depth}")
    run = Run(num_chains, num_samples, warmup_steps, target_accept_prob)
    kernel = _kernel(NUTS, run, full_mass=full_mass, max_tree_depth=max_tree_depth)
    for found in _sampled(target, kernel, run, seed, progress):
        yield _judged(found, max_rhat=max_rhat, min_ess=min_ess)


def _kernel(kind: Any, run: Run, **options: Any) -> Callable[[Any], Any]:
    def make(potential: Any) -> Any:
        return kind(potential_fn=potential, target_accept_prob=run.target_accept_prob, **options)

    return make


def _judged(found: Sampled, *, max_rhat: float, min_ess: float) -> Sampled:
    verdicts = diagnose(found.z, found.stats["diverging"], max_rhat=max_rhat, min_ess=min_ess)
    return found._replace(diagnostics=verdicts, limits={"max_rhat": max_rhat, "min_ess": min_ess})


def _sampled(
    target: Target, kernel: Callable[[Any], Any], run: Run, seed: int, progress: Progress | None
) -> Iterator[Sampled]:
    run.check(target)
    for row in range(target.num_data):
        with _alone(), seeded(block_seed(seed, row)):
            found = _datum(target, row, kernel, run)
        yield found
        if progress is not None:
            progress(row + 1, target.num_data)


@contextmanager
def _alone() -> Iterator[None]:
    """Pyro's parameters and validation as a Target has them, and its logger given back as it was."""
    logger = logging.getLogger("pyro.infer.mcmc")
    handlers, propagate = logger.handlers, logger.propagate
    try:
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _Potential:
    """Minus log p(x, z) of one datum by Pyro's own trace of the model, counting the gradients that are taken."""

    def __init__(self, potential: Callable[[Values], Tensor]) -> None:
        self.potential, self.num_gradients = potential, 0

    def __call__(self, values: Values) -> Tensor:
        # Pyro asks for a gradient by marking the values, and for the density alone by leaving them unmarked.
        self.num_gradients += any(value.requires_grad for value in values.values())
        return self.potential(values)


def _datum(target: Target, row: int, kernel: Callable[[Any], Any], run: Run) -> Sampled:
    """All chains of one datum, each from a draw of the prior."""
    starts, density = _initialized(target, row, run.num_chains)
    chains = []
    for chain in range(run.num_chains):
        potential = _Potential(density)
        start = {name: value[chain].detach().clone() for name, value in starts.items()}
        chains.append(_chain(target, kernel(potential), potential, start, run))
    z = np.stack([chain.z[0] for chain in chains])
    stats = {name: np.stack([chain.stats[name][0] for chain in chains]) for name in chains[0].stats}
    stats["lp"] = _log_joint(target.rows([row]), z)
    return Sampled(z, stats, max(chain.num_gradient_evaluations for chain in chains))


def _initialized(target: Target, row: int, num_chains: int) -> tuple[Values, Callable[[Values], Tensor]]:
    """Draws of the prior with a finite density and gradient, `[C, ...]` a site, and the potential energy."""
    datum = one_datum(target, row)
    try:
        starts, potential, _, _ = initialize_model(
            unconstrained(datum.model, target.sites),
            datum.data,
            num_chains=num_chains,
            init_strategy=init_to_sample,
        )
    except ValueError as error:
        raise ValueError(
            f"no start for the chains of datum {row}: log p(x, z) or its gradient is not finite at 100 draws of the "
            "prior a chain; use method 'hmc', whose chains also start from the guide"
        ) from error
    return starts, potential


def _chain(target: Target, kernel: Any, potential: _Potential, start: Values, run: Run) -> Sampled:
    """One chain of one datum."""
    num_gradients: list[int] = []
    last: dict[str, Any] = {}

    def note(kernel: Any, _values: Values, stage: str, _step: int) -> None:
        num_gradients.append(potential.num_gradients)
        if stage == "Sample":
            last.update(divergences=kernel.diagnostics()["divergences"], step_size=kernel.step_size)

    mcmc = MCMC(
        kernel,
        num_samples=run.num_samples,
        warmup_steps=run.warmup_steps,
        initial_params=start,
        hook_fn=note,
        disable_progbar=True,
    )
    mcmc.run()
    draws = mcmc.get_samples()
    z = torch.cat([draws[name + SUFFIX].reshape(run.num_samples, -1) for name in target.sites], 1)
    diverging = np.isin(np.arange(run.num_samples), last["divergences"])
    stats = {
        "diverging": diverging[None, :, None],
        "step_size": np.full((1, run.num_samples, 1), float(last["step_size"])),
        "n_steps": np.diff(num_gradients)[None, -run.num_samples :, None],
    }
    return Sampled(to_numpy(z)[None, :, None], stats, potential.num_gradients)


def _log_joint(some: Target, z: np.ndarray) -> np.ndarray:
    """log p(x, z) of the Target at z `[C, T, 1, D]`, in blocks of draws."""
    draws = torch.as_tensor(z, device=some.device).flatten(0, 1)
    values = torch.cat([some.log_joint(block) for block in draws.split(MAX_ROWS)])
    return to_numpy(values).reshape(z.shape[:-1])
