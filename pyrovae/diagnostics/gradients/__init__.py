"""The gradient laboratory: bias, variance, signal-to-noise ratio and cost of every estimator of a gradient."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.diagnostics.gradients.bench import NUM_GROUPS, Bench
from pyrovae.diagnostics.gradients.estimators import Estimator, check_estimators, why_not
from pyrovae.diagnostics.gradients.own import own_gradient
from pyrovae.diagnostics.gradients.parameters import FixedPlate, cut_parts, read_problem
from pyrovae.diagnostics.gradients.reference import Reference, check_reference, find_reference
from pyrovae.diagnostics.gradients.table import Table
from pyrovae.diagnostics.gradients.timing import time_backward
from pyrovae.seeding import block_seed, seeded
from pyrovae.target.checks import check_data

__all__ = ["gradient_statistics"]

LEAST_REPLICATES = 4 * NUM_GROUPS

Progress = Callable[[str, int, int], None]


def gradient_statistics(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    estimators: Sequence[str] = ("elbo", "stl", "iwae", "dreg"),
    num_particles: Sequence[int] = (1, 8, 64),
    num_replicates: int = 1000,
    reference: str | xr.DataTree = "auto",
    plate: str = "data",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    per_parameter: bool = False,
    keep_mean: bool = False,
    params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    compile: bool | str = "auto",
) -> xr.DataTree:
    r"""Measure the gradients that estimators give on fixed data: bias, variance, signal-to-noise ratio and cost.

    One estimate g is the gradient of an objective (ascended) per datum, (1/N) d/dtheta sum_n bound_n, from one set of
    draws of z; the data are fixed, so its variance is that of the draws. Parts: "encoder", the parameters that only
    the guide uses; "decoder", those that only the model uses, learned priors too; "shared", those of both, where there
    are any. With m = E g and V = trace Cov g of one part, over R replicates with mean gbar:

    | variable (method, count, part) | what it estimates |
    |---|---|
    | `mean_norm` | \|m\|, the root of \|gbar\|^2 - V/R, clipped at 0 |
    | `variance` | V |
    | `snr_squared`, `snr` | \|m\|^2 / V, from (\|gbar\|^2 - V/R) / V, which may be negative; its root, clipped at 0 |
    | `directional_snr` | u'm / sd(u'g) in the second half of the replicates, u the direction of the first half's mean |
    | `own_bias_squared`, `own_bias` | \|m - r\|^2 / \|r\|^2, r the gradient of the estimator's own objective |
    | `evidence_bias_squared`, `evidence_bias` | the same with r = grad log p(x); the decoder only |
    | `cosine_own`, `cosine_evidence` | E[g'r / \|g\|] / \|r\|, the mean cosine of one estimate to r |
    | `variance_seconds` | V times `seconds` |
    | `particles_for_snr_1` | K / `snr_squared`: particles, if independent estimates were averaged; else infinite |
    | `spectrum` | eigenvalues, descending, of the covariance of a fixed random sketch of g, at most 256 |

    `directional_snr` is signed, and zero on average where there is no signal; the halves are not exchanged as well,
    since the sums that are kept would have to be drawn again along the other direction. All are free of the bias of a
    finite R: the plain \|gbar\|/sd never falls below sqrt(2 / (pi R)), not even for pure noise, and the noise of gbar
    and of r is taken off the squared biases, which may come out negative for it. Each has `..._std_error`, by the
    jackknife over 20 groups of replicates, and over those of r; it has about 19 degrees of freedom, and knows nothing
    of what no group has seen (weights with heavy tails). Ratios to an r that is lost in its own noise are NaN.
    `seconds`, one for each method and count, is the median over rounds, in which all take turns, of the time of one
    loss and `backward()` as a trainer runs it: of the process (all its threads), which other work on the machine
    touches less, on a GPU of the wall; with `seconds_std_error`. `num_density_evaluations` is K, and `reason` says why
    a row is NaN.

    r of the own objective comes from independent noise: of "elbo" for all with that bound; of "dreg" where it applies,
    else "iwae", for those with IWAE's bound; of "miwae", "ciwae", "renyi" themselves; for "piwae" of "miwae" in the
    encoder and of IWAE's bound in the decoder. Wake-sleep has IWAE's in the decoder; in the encoder r is the gradient
    of E_posterior[log q(z | x)] over draws of the posterior, from which both estimators differ by O(1/K). A guide
    without reparameterization has "score_function_loo" and "vimco" in the place of "elbo" and "dreg".

    grad log p(x) is, by Fisher's identity, the mean of grad log p(x, z) over draws of the posterior; chains are
    independent, and their spread is its error. Data without a verdict stay in the mean, since an estimator's gradient
    is of all data; `num_refused` counts them, and beyond a tenth of the data there is no evidence reference, with
    `reference_reason`.

    Replicates run side by side (`torch.func.vmap` over explicit noise), then traced or compiled where there are so many
    that it pays; each is checked against a plain backward pass from the same noise. What cannot is drawn in a loop,
    with one FallbackWarning. Memory does not grow with R. `route` tells how it went.

    Args:
        model, guide, *data, plate, params: as for `Target`; any guide that the estimators allow. Nothing is trained,
            and the parameters' `grad` is left alone.
        estimators: names of objectives, see `make_objective`.
        num_particles: values of K. Where an estimator has no meaning with K particles, its row is NaN.
        num_replicates: R, at least 80.
        reference: "auto" ("exact" for a linear-Gaussian target, else "hmc", or none where `Target` refuses the guide),
            "none", another method of `sample_posterior`, or a tree that it gave for these data.
        options: {estimator: {option: value}}, such as `{"miwae": {"num_outer": 4}}`.
        per_parameter: whether each parameter tensor is a part of its own, too, by its name.
        keep_mean: whether to keep the mean gradient itself, `mean` (method, count, coordinate), and `coordinate_part`.
        seed: same seed, machine and versions, same numbers, whatever other estimators are asked for.
        progress: called with (what, done, total).
        compile: "auto", or True or False: whether to compile the replicates, which takes tens of seconds each.

    Returns:
        DataTree with `gradients`; gradients are in nats per datum and unit of the parameter, times in seconds.

    Raises:
        ValueError: unknown names, options or numbers out of range; empty or non-finite data; no parameters;
            function-style parameters without a value; a reference that was asked for by name and cannot be had.
        NotImplementedError: an estimator that does not apply to this guide, as its objective says.

    Source: Rainforth et al. 2018 (signal-to-noise ratios); Tucker et al. 2019 (DReG); Roeder et al. 2017 (STL).

    >>> import torch, pyro, pyro.distributions as dist
    >>> slope = torch.tensor(0.3, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))
    >>> tree = gradient_statistics(model, guide, torch.ones(5), estimators=("elbo", "stl"), num_particles=(1,))
    >>> rows = tree["gradients"].sel(part="encoder", count=1)
    >>> elbo, stl = rows["mean_norm"].values  # exact: (1 - 2 slope) mean(x^2)
    >>> round(float(stl), 1)
    0.4
    >>> elbo, stl = rows["variance"].values
    >>> bool(stl < elbo)
    True
    """
    rows = _rows(estimators, num_particles, options or {})
    check_data(data)
    check_reference(reference)
    _check_numbers(num_replicates, compile)
    start = time.perf_counter()
    data = tuple(x.detach() for x in data)
    with pyro.get_param_store().scope(), FixedPlate(plate), seeded(seed):
        problem = read_problem(model, guide, data, plate, params or {})
        parts = cut_parts(problem.parameters, per_parameter)
        truth = find_reference(problem, reference, parts, params or {}, block_seed(seed, 1))
        bench = Bench(problem, parts, num_replicates, compile, seed)
        table = Table(list(estimators), list(num_particles), parts)
        _run(bench, table, rows, truth, progress or (lambda name, done, total: None))
    bench.warn()
    attrs = {
        "num_data": problem.num_data,
        "num_replicates": num_replicates,
        "reference": truth.name,
        "reference_reason": truth.reason,
        "num_refused": truth.num_refused,
        "seed": seed,
        "route": ", ".join(sorted(set(bench.routes.values()))),
        "seconds": time.perf_counter() - start,
    }
    return results.build_tree({"gradients": table.group(attrs, keep_mean)}, {"seed": seed})


def _run(
    bench: Bench, table: Table, rows: Mapping[tuple[int, int], Estimator], truth: Reference, tell: Progress
) -> None:
    """Fill the table, number of particles after number of particles, since references are shared within one."""
    most = max(table.counts)
    tell("times", 0, len(rows))
    # First of all: what does not apply says so here.
    costs = time_backward(bench.problem, [each for each in rows.values() if not why_not(each)])
    for done, (at, estimator) in enumerate(sorted(rows.items(), key=lambda row: row[0][::-1])):
        tell(f"{estimator.name}, {estimator.num_particles} particles", done, len(rows))
        if reason := why_not(estimator):
            table.refuse(at, reason)
            continue
        moments = bench.measure(estimator)
        own = own_gradient(bench.problem, estimator, most, truth, bench.measure)
        table.fill(at, moments, own, truth, costs[estimator])
        bench.forget(estimator.num_particles, most)
    tell("", len(rows), len(rows))


def _rows(
    estimators: Sequence[str], num_particles: Sequence[int], options: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[int, int], Estimator]:
    """What is to be measured, by its place in the table."""
    check_estimators(estimators, num_particles, options)
    return {
        (i, j): Estimator(name, count, tuple(sorted(options.get(name, {}).items())))
        for i, name in enumerate(estimators)
        for j, count in enumerate(num_particles)
    }


def _check_numbers(num_replicates: Any, compile: Any) -> None:
    if isinstance(num_replicates, bool) or not isinstance(num_replicates, int):
        raise ValueError(f"num_replicates must be an integer, got {num_replicates!r}")
    if num_replicates < LEAST_REPLICATES:
        raise ValueError(
            f"num_replicates must be at least {LEAST_REPLICATES}, {NUM_GROUPS} groups of 4 or more that give the error "
            f"bars, got {num_replicates}"
        )
    if compile not in ("auto", True, False):
        raise ValueError(f"compile must be 'auto', True or False, got {compile!r}")
