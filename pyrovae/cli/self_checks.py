"""What `pyrovae doctor` checks: answers of this installation, on this machine, against exact ones."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pyrovae.data import LinearGaussian
    from pyrovae.target import Target

__all__ = ["Check", "self_checks"]

LIMIT = 5.5  # standard errors; chance passes it once in 3e7
NUM_DATA, DATA_DIM, LATENT_DIM = 6, 12, 3


@dataclass(frozen=True)
class Check:
    """One comparison with an exact answer: it is passed if `error` is at most `limit`, both in `unit`."""

    name: str
    error: float
    limit: float
    unit: str
    seconds: float
    note: str = ""

    @property
    def is_passed(self) -> bool:
        """NaN is not."""
        return self.error <= self.limit

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        error = None if math.isnan(self.error) else self.error
        return {**asdict(self), "error": error, "passed": self.is_passed}


def self_checks(device: str, dtype: str) -> Iterator[Check]:
    """Run every check in turn, on linear-Gaussian data, whose posterior and log p(x) are known.

    An exception of a check is a failure of it, told in its note; the others go on.
    """
    for name, check in CHECKS.items():
        start = time.perf_counter()
        try:
            error, limit, unit, note = check(device, dtype)
        except Exception as problem:  # whatever breaks is what a doctor is asked for
            error, limit, unit = math.nan, 0.0, ""
            note = f"{type(problem).__name__}: {problem}"
        yield Check(name, error, limit, unit, time.perf_counter() - start, note)


Found = tuple[float, float, str, str]


def _problem(device: str, dtype: str) -> "LinearGaussian":
    """A linear-Gaussian data set on the device."""
    from dataclasses import replace

    from pyrovae.data import linear_gaussian

    made = linear_gaussian(NUM_DATA, DATA_DIM, LATENT_DIM)
    tensors = {name: getattr(made, name).to(device, _kind(dtype)) for name in ("x", "weight", "bias")}
    return replace(made, **tensors)


def _kind(dtype: str) -> "torch.dtype":
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    return kind


def _target(problem: "LinearGaussian", widen: float = 1.0) -> "Target":
    """The target whose guide is the posterior, with its standard deviations `widen` times as large."""
    import pyro
    import pyro.distributions as dist

    import pyrovae as pv

    def guide(x: Any) -> None:
        loc, scale_tril = problem.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=widen * scale_tril))

    return pv.Target(problem.model, guide, problem.x)


def _weights(device: str, dtype: str) -> Found:
    """With the posterior as guide every weight is p(x)."""
    import torch

    problem = _problem(device, dtype)
    target = _target(problem)
    z, log_q = target.sample_guide(64)
    error = (target.log_joint(z) - log_q - problem.log_evidence()).abs().max()
    return float(error), 1e4 * torch.finfo(_kind(dtype)).eps, "nats", "every draw, 64 a datum"


def _importance(device: str, dtype: str) -> Found:
    """E[w] = p(x) under another guide."""
    problem = _problem(device, dtype)
    from pyrovae.diagnostics.evidence import draw_weights

    _, log_w = draw_weights(_target(problem, widen=1.2), 2000, seed=0)
    ratio = (log_w - problem.log_evidence()).double().exp()
    z = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
    return float(z.abs().max()), LIMIT, "standard errors", "mean of w / p(x), 2,000 draws a datum"


def _laplace(device: str, dtype: str) -> Found:
    """Laplace's approximation is exact for a Gaussian posterior."""
    import numpy as np
    import torch

    import pyrovae as pv

    problem = _problem(device, dtype)
    value = pv.log_evidence(_target(problem, widen=1.2), "laplace").value
    error = np.abs(value - problem.log_evidence().double().cpu().numpy()).max()
    return float(error), 1e5 * torch.finfo(_kind(dtype)).eps, "nats", "log p(x)"


def _hmc(device: str, dtype: str) -> Found:
    """Means of HMC draws are those of the posterior; every datum converges."""
    import numpy as np
    from arviz_stats.base.array import array_stats

    import pyrovae as pv

    problem = _problem(device, dtype)
    reference = pv.sample_posterior(_target(problem), num_chains=8, num_samples=300, warmup_steps=100)
    draws = reference["posterior"].to_dataset()["z"].values.astype(np.float64)
    loc = problem.posterior()[0].double().cpu().numpy()
    mcse = array_stats.mcse(draws, method="mean", chain_axis=0, draw_axis=1)
    z = np.abs(draws.mean((0, 1)) - loc) / mcse
    verdicts = reference["diagnostics"].to_dataset()["verdict"].values
    ok = int(np.sum(verdicts == "ok"))
    worst = float(z.max()) if ok == NUM_DATA else math.nan
    return worst, LIMIT, "standard errors", f"posterior means; {ok} of {NUM_DATA} data converged"


def _annealing(device: str, dtype: str) -> Found:
    """The two ends of annealing lie on either side of log p(x)."""
    import numpy as np

    import pyrovae as pv

    problem = _problem(device, dtype)
    options = {"bidirectional": {"start": "guide"}}
    table = pv.evidence_table(_target(problem, 1.2), ["bidirectional"], num_temperatures=20, options=options)
    ends, exact = table["sandwich"].to_dataset(), problem.log_evidence().double().cpu().numpy()
    below = (ends["lower"].values - exact) / ends["lower_std_error"].values
    above = (exact - ends["upper"].values) / ends["upper_std_error"].values
    gap = float(ends["gap"].mean())
    return float(np.maximum(below, above).max()), LIMIT, "standard errors", f"ends {gap:.2g} nats apart"


def _training(device: str, dtype: str) -> Found:
    """A linear VAE reaches probabilistic PCA, whose log-likelihood no model of its kind exceeds."""
    import torch

    import pyrovae as pv

    x = pv.data.linear_gaussian(400, 6, 2).x.to(device, _kind(dtype))
    vae = pv.build_vae(6, 2, hidden=(), decoder="linear", encoder="full", scale=1.0).to(device, _kind(dtype))
    for lr in (0.03, 0.003):
        pv.fit(vae.model, vae.guide, x, lr=lr, batch_size=100, max_epochs=150, objective="analytic_kl")
    centred = x - x.mean(0)
    values = torch.linalg.eigvalsh((centred.mT @ centred / len(x)).double()).flip(0)
    noise = values[2:].mean()
    log_det = values[:2].log().sum() + 4 * noise.log()
    best = -0.5 * (6 * math.log(2 * math.pi) + float(log_det) + 6)
    elbo = pv.log_evidence(pv.Target(vae.model, vae.guide, x), "elbo", num_samples=200).value.mean()
    return best - float(elbo), 0.05, "nats per datum", f"below pPCA's {best:.3f}"


def _compiled(device: str, dtype: str) -> Found:
    """A compiled density is the density, where there is a compiler."""
    import torch

    from pyrovae.compiled import compiled

    problem = _problem(device, dtype)
    target = _target(problem)
    z, other = (target.sample_guide(4).z for _ in range(2))
    program = compiled(target.log_joint, (z,), (other,))
    found, wanted = program(z), target.log_joint(z)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    note = f"runs {program.route}" + (f": {program.reason}" if program.reason else "")
    return error, 100 * torch.finfo(_kind(dtype)).eps, "of the largest", note


def _storage(device: str, dtype: str) -> Found:
    """Results and checkpoints come back to the last bit."""
    import torch

    import pyrovae as pv
    from pyrovae.results import content_hash

    vae = pv.build_vae(DATA_DIM, LATENT_DIM, hidden=(8,)).to(device, _kind(dtype))
    tree = pv.evidence_table(_target(_problem(device, dtype)), ["elbo"], num_samples=10)
    with TemporaryDirectory() as folder:
        for name in ("tree.nc", "tree.zarr"):
            pv.write(tree, Path(folder) / name)
        hashes = {content_hash(pv.read(Path(folder) / name)) for name in ("tree.nc", "tree.zarr")}
        pv.save(vae, Path(folder) / "vae")
        again = pv.load(Path(folder) / "vae").state_dict()
    different = sum(not torch.equal(t.cpu(), again[name].cpu()) for name, t in vae.state_dict().items())
    different += len(hashes - {content_hash(tree)})
    return float(different), 0.0, "different", "netCDF, zarr and a checkpoint, written and read"


CHECKS: dict[str, Callable[[str, str], Found]] = {
    "importance weights": _weights,
    "importance sampling": _importance,
    "Laplace": _laplace,
    "HMC": _hmc,
    "annealing both ways": _annealing,
    "training": _training,
    "compiled program": _compiled,
    "files": _storage,
}
