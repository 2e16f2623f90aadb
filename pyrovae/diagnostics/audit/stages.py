"""The stages of an audit: each measures one thing about a target, given what was measured before it.

The cheap stages come first, so what they know of log p(x) is an estimate. When the truth comes, from `sandwich` or
`gaps`, `WITH_TRUTH` puts it in the place of the estimates.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics import comparison as guide_comparison
from pyrovae.diagnostics import decomposition, evidence
from pyrovae.diagnostics.audit.settings import Settings
from pyrovae.diagnostics.calibration import calibrate
from pyrovae.diagnostics.evidence_table import BIDIRECTIONAL, evidence_table
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.diagnostics.reference import latent_names, sample_posterior
from pyrovae.inference.weights import khat_threshold, psis
from pyrovae.results import Evidence
from pyrovae.results.sandwich import with_bias
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = [
    "NEEDED_GROUPS",
    "STAGE_FUNCTIONS",
    "WITH_TRUTH",
    "Groups",
    "Work",
    "calibration",
    "comparison",
    "gaps",
    "predictions",
    "reference",
    "sandwich",
    "terms",
    "weights",
]

NUM_SHOWN = 16  # data whose reconstructions are kept, and draws from the prior predictive
KNOWN_TRUTHS = ("exact", "quadrature")

Groups = dict[str, xr.Dataset]


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


class Work(NamedTuple):
    """What a stage works on.

    >>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))
    >>> work = Work(Target(model, guide, torch.zeros(3, 2)), Settings(num_samples=100))
    >>> [sorted(groups) for groups in weights(work)]
    [['diagnostics', 'evidence', 'guide', 'log_weights']]
    """

    target: Target
    settings: Settings
    known: Mapping[str, xr.Dataset] = {}
    """What earlier stages measured."""
    seed: int = 0
    first: int = 0
    """The position of the target's first datum in all data."""
    tell: Callable[[int, int], None] = _silent
    """Called with (done, total)."""


def calibration(work: Work) -> Iterator[Groups]:
    """Whether the guide is right on data that the model draws: PIT, coverage and simulated gap."""
    yield _groups(calibrate(work.target, seed=work.seed, progress=work.tell, **work.settings.calibration))


def predictions(work: Work) -> Iterator[Groups]:
    """What a person looks at: draws from the prior, and reconstructions of the first of all data."""
    target, names = work.target, latent_names(work.target)
    with seeded(block_seed(work.seed, 0)):
        prior = target.sample_prior(NUM_SHOWN)
    yield {"prior": results.group("prior", {"z": prior.cpu().numpy()[None]}, latent=names)}
    if work.first == 0:
        means = target.rows([0]).expected_data(prior[:, :1])
        yield {
            "prior_predictive": results.group(
                "prior_predictive", {k: v[:, 0] for k, v in _numpy(means).items()}
            )
        }
    count = min(NUM_SHOWN - work.first, target.num_data)
    if count > 0:
        some = target.rows(range(count))
        with seeded(block_seed(work.seed, 1)):
            z, _ = some.sample_guide(NUM_SHOWN)
        yield {"reconstruction": results.group("reconstruction", _numpy(some.expected_data(z)))}


def weights(work: Work) -> Iterator[Groups]:
    """Draws of the guide, their weights with k-hat, and log p(x) by every method that needs no reference."""
    target, settings = work.target, work.settings
    start = time.perf_counter()
    draws, log_w = evidence.draw_weights(target, settings.num_samples, seed=work.seed)
    seconds = time.perf_counter() - start
    shared = [name for name in settings.methods if name in evidence.ESTIMATORS]
    found = [evidence.estimate(name, log_w, seconds=seconds) for name in shared]
    known = [e.khat for e in found if e.method == "iwae" and e.khat is not None]
    khat = known[0] if known else psis(log_w).khat.double().cpu().numpy()
    attrs = {"khat_threshold": khat_threshold(settings.num_samples)}
    groups = {
        "guide": results.group("guide", {"z": draws.z.cpu().numpy()[None]}, latent=latent_names(target)),
        "log_weights": results.group("log_weights", {"guide": log_w.cpu().numpy()}),
        "diagnostics": results.group("diagnostics", {"khat": khat}, attrs),
    }
    yield groups | ({"evidence": _evidence(found, settings)} if found else {})
    for name in settings.methods:
        if name not in evidence.ESTIMATORS and not evidence.needs_reference(name):
            yield {"evidence": _evidence([evidence.log_evidence(target, name, seed=work.seed)], settings)}


def terms(work: Work) -> Iterator[Groups]:
    """The ELBO of every datum taken apart, and the aggregate posterior of these data; the KL to the posterior by an
    estimate of log p(x)."""
    tree = decomposition.decompose(
        work.target,
        _best_evidence(work.known.get("evidence")),
        num_samples=work.settings.num_samples,
        seed=work.seed,
    )
    yield _groups(tree)


def reference(work: Work) -> Iterator[Groups]:
    """Draws of the posterior of every datum, and whether they may be trusted."""
    options = dict(work.settings.reference)
    own = options.pop("seed", None)
    seed = work.seed if own is None else block_seed(own, work.first)
    yield _groups(sample_posterior(work.target, seed=seed, progress=work.tell, **options))


def comparison(work: Work) -> Iterator[Groups]:
    """The guide against the reference, and log p(x) by the methods that start from reference draws."""
    tree = guide_comparison.compare(
        work.target,
        _reference(work),
        evidence=_best_evidence(work.known.get("evidence")),
        num_samples=work.settings.num_samples,
        seed=work.seed,
    )
    yield {"comparison": _groups(tree)["comparison"]}
    for name in work.settings.methods:
        if evidence.needs_reference(name):
            made = evidence.log_evidence(work.target, name, reference=_reference(work), seed=work.seed)
            yield {"evidence": _evidence([made], work.settings)}


def sandwich(work: Work) -> Iterator[Groups]:
    """log p(x) between annealing forward and backward, and where known exactly."""
    given = dict(work.settings.sandwich)
    table = {name: given.pop(name) for name in ("num_temperatures", "tolerance") if name in given}
    known = [name for name in work.settings.methods if name in KNOWN_TRUTHS]
    tree = evidence_table(
        work.target,
        [*known, BIDIRECTIONAL],
        reference=_reference(work),
        options={BIDIRECTIONAL: given} if given else None,
        seed=work.seed,
        progress=lambda method, done, total: work.tell(done, total),
        **table,
    )
    found = _groups(tree)
    yield {name: found[name] for name in ("evidence", "sandwich")}


def gaps(work: Work) -> Iterator[Groups]:
    """How much of the gap below log p(x) is the guide's family, and how much is its amortization."""
    known = {name: work.known[name] for name in ("evidence", "sandwich") if name in work.known}
    has_truth = "sandwich" in known
    tree = inference_gaps(
        work.target,
        evidence=results.build_tree(known) if has_truth else None,
        seed=work.seed,
        progress=lambda step, done, total: work.tell(done, total),
        **work.settings.gaps,
    )
    wanted = ("gaps",) if has_truth else ("gaps", "sandwich", "evidence")
    yield {name: group for name, group in _groups(tree).items() if name in wanted}


STAGE_FUNCTIONS: Final[Mapping[str, Callable[[Work], Iterator[Groups]]]] = {
    function.__name__: function
    for function in (calibration, predictions, weights, terms, reference, comparison, sandwich, gaps)
}
"""Every stage by name; each yields groups as they are made, so that what came before a failure is not lost."""

WITH_TRUTH: Final[Mapping[str, Callable[[xr.Dataset, xr.Dataset], xr.Dataset]]] = {
    "evidence": with_bias,
    "decomposition": decomposition.with_truth,
    "comparison": guide_comparison.with_truth,
}
"""{group: what makes it anew from itself and the group `sandwich`}; the same when it is done twice."""

NEEDED_GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "comparison": {"guide": "weights", "posterior": "reference"},
    "sandwich": {"posterior": "reference"},
}
"""{stage: {group that it starts from: the stage that makes it}}."""


def _groups(tree: xr.DataTree) -> Groups:
    return {name: node.to_dataset() for name, node in tree.children.items()}


def _numpy(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in values.items()}


def _evidence(found: list[Evidence], settings: Settings) -> xr.Dataset:
    return results.evidence_group(found, {"num_samples": settings.num_samples})


def _reference(work: Work) -> xr.DataTree:
    return results.build_tree(
        {name: work.known[name] for name in ("posterior", "diagnostics") if name in work.known}
    )


def _best_evidence(group: xr.Dataset | None) -> Evidence | None:
    """What stands for log p(x) until the truth is known: the known values, else IWAE's, else PSIS's, else none."""
    labels = [] if group is None else group["method"].values.tolist()
    for name in (*KNOWN_TRUTHS, "iwae", "psis"):
        if group is not None and name in labels:
            row = group.sel({"method": name})
            return Evidence(
                method=name,
                direction=str(row["direction"].item()),
                is_unbiased_density=bool(row["is_unbiased_density"]),
                value=row["value"].values,
                std_error=row["std_error"].values,
                is_reliable=row["is_reliable"].values,
                is_approximate=row["is_approximate"].values,
            )
    return None
