"""The bench: runs an estimator on a problem, once for all who ask, and remembers how it ran."""

import warnings

from pyrovae.compiled import FallbackWarning
from pyrovae.diagnostics.gradients.estimators import Estimator
from pyrovae.diagnostics.gradients.moments import Moments, measure_moments
from pyrovae.diagnostics.gradients.parameters import Part, Problem
from pyrovae.diagnostics.gradients.replicates import make_replicates
from pyrovae.diagnostics.gradients.sums import make_reducer
from pyrovae.seeding import block_seed

__all__ = ["NUM_GROUPS", "Bench"]

NUM_GROUPS = 20
"""Groups of replicates, each of which the jackknife leaves out in turn."""


class Bench:
    """Measures moments; those of references are kept, since estimators share them."""

    def __init__(
        self, problem: Problem, parts: list[Part], num_replicates: int, compile: bool | str, seed: int
    ) -> None:
        self.problem, self.parts = problem, parts
        self.sizes = [
            num_replicates // NUM_GROUPS + (b < num_replicates % NUM_GROUPS) for b in range(NUM_GROUPS)
        ]
        self.compile, self.seed = compile, seed
        self.reducer = make_reducer(parts, [leaf.numel() for leaf in problem.leaves], problem.leaves[0])
        self.kept: dict[Estimator, Moments] = {}
        self.routes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def measure(self, estimator: Estimator) -> Moments:
        """The moments of the estimator's gradients; its noise depends on the seed and on itself alone."""
        if estimator in self.kept:
            return self.kept[estimator]
        replicates = make_replicates(self.problem, estimator, self.reducer, self.sizes, self.compile)
        self.routes[f"{estimator.name}-{estimator.num_particles}"] = replicates.route
        if replicates.reason:
            self.reasons[f"{estimator.name}-{estimator.num_particles}"] = replicates.reason
        seed = block_seed(self.seed, *estimator.key)
        moments = measure_moments(replicates, self.reducer, self.sizes, seed)
        if estimator.role:
            self.kept[estimator] = moments
        return moments

    def forget(self, num_particles: int, most_particles: int) -> None:
        """Drop references of that many particles, unless they are those that all share."""
        self.kept = {
            key: value
            for key, value in self.kept.items()
            if key.num_particles != num_particles or num_particles >= most_particles
        }

    def warn(self) -> None:
        """Say once what ran in a loop, and why."""
        if self.reasons:
            name, reason = next(iter(self.reasons.items()))
            warnings.warn(
                f"the gradients of {', '.join(self.reasons)} were drawn in a loop, one by one, which is about ten "
                f"times slower: {name}: {reason}",
                FallbackWarning,
                stacklevel=4,
            )
