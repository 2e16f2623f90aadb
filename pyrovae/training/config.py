"""The options of a training run, checked."""

import math
from dataclasses import dataclass

from pyro.infer import ELBO

from pyrovae.training.learning_rate import SCHEDULES
from pyrovae.training.objectives import ELBO_OBJECTIVES, KL_WEIGHTED, make_objective

__all__ = ["FitConfig"]


@dataclass(frozen=True)
class FitConfig:
    """The options of `fit`.

    Args:
        objective: what to minimize, a name from `pyrovae.training.objectives.make_objective`: "elbo", "analytic_kl",
            "iwae", "dreg" and others.
        num_particles: draws of z for each datum and step, at least 1; some objectives want 2.
        num_outer: of "miwae" and "piwae", the number of bounds that are averaged; it divides `num_particles`.
        beta: of "ciwae", the weight of the ELBO in it, from 0 to 1.
        alpha: of "renyi", the order of the bound, not 1.
        num_transitions: of "hmc", the transitions of each chain, at least 1; None: 4.
        chunk_size: particles in one graph, at least 1, for objectives other than "elbo" and "analytic_kl"; None: 64.
        lr: Adam's learning rate, above 0.
        lr_schedule: "constant", or "cosine", from lr down to 0 over `max_epochs`.
        clip_norm: the largest norm of all gradients together, above 0, to which a larger one is scaled; None: any.
        precision: "full", or "bf16": products in bfloat16 by torch.autocast, parameters and Adam as they are. The ELBO
            is then known to two or three digits, that of validation as ever. Faster where the processor has such
            products, which `benchmarks/training_step.py` measures.
        compile: "auto": run the step as a tensor program, traced or compiled, where the planned steps are enough to
            pay for that; True: compile, which takes seconds; False: run it through Pyro. From a command line, "true"
            and "false".
        batch_size: data in a step, on all ranks together, at least 1; the last batch of an epoch may be smaller.
        max_epochs: passes over the data, at least 1.
        kl_weight: factor of KL(q || prior) in the objective, above 0; 1 is the ELBO. Only "elbo", "analytic_kl" and
            "stl" have such a term to weight or to warm up.
        n_epochs_kl_warmup: epochs over which that factor rises to `kl_weight`, 0 for none.
        early_stopping_patience: stop after that many epochs without a better `val_elbo` or `val_bound`; None: never.
        seed: of the noise, the shuffling and the start values of function-style parameters, at least 0.

    Raises:
        ValueError: an option out of its range.
    """

    objective: str = "elbo"
    num_particles: int = 1
    num_outer: int | None = None
    beta: float | None = None
    alpha: float | None = None
    num_transitions: int | None = None
    chunk_size: int | None = None
    lr: float = 1e-3
    lr_schedule: str = "constant"
    clip_norm: float | None = None
    precision: str = "full"
    compile: str | bool = "auto"
    batch_size: int = 64
    max_epochs: int = 100
    kl_weight: float = 1.0
    n_epochs_kl_warmup: int = 0
    early_stopping_patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count("num_particles", self.num_particles, 1)
        _check_count("batch_size", self.batch_size, 1)
        _check_count("max_epochs", self.max_epochs, 1)
        _check_count("seed", self.seed, 0)
        if self.early_stopping_patience is not None:
            _check_count("early_stopping_patience", self.early_stopping_patience, 1)
        _check_count("n_epochs_kl_warmup", self.n_epochs_kl_warmup, 0)
        _check_positive("lr", self.lr, "1e-3 is a common start")
        _check_choice("lr_schedule", self.lr_schedule, SCHEDULES)
        _check_choice("precision", self.precision, ("full", "bf16"))
        _check_choice("compile", self.compile, ("auto", True, False, "true", "false"))
        if self.clip_norm is not None:
            _check_positive("clip_norm", self.clip_norm, "None is for no clipping")
        _check_positive("kl_weight", self.kl_weight, "1 is the ELBO")
        self.make_objective("data")
        if self.objective not in KL_WEIGHTED and self.is_weighted:
            raise ValueError(
                f"kl_weight and n_epochs_kl_warmup want an objective with a KL term, {', '.join(KL_WEIGHTED)}, got "
                f'"{self.objective}"; leave them at 1 and 0'
            )

    def make_objective(self, plate: str) -> ELBO:
        """The objective with its options, over the plate of that name."""
        return make_objective(
            self.objective,
            self.num_particles,
            plate,
            num_outer=self.num_outer,
            beta=self.beta,
            alpha=self.alpha,
            num_transitions=self.num_transitions,
            chunk_size=self.chunk_size,
        )

    @property
    def is_weighted(self) -> bool:
        """Whether the KL term has another weight than 1 at some epoch."""
        return self.kl_weight != 1 or self.n_epochs_kl_warmup > 1

    @property
    def metric(self) -> str:
        """What the history calls minus the loss: "elbo", or "bound" where the objective is another."""
        return "elbo" if self.objective in ELBO_OBJECTIVES else "bound"


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}; pass such a number")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}; choose one")


def _check_positive(name: str, value: object, advice: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}; {advice}")
