"""Train one after another in each process of a group: what `test_distributed.py` runs, under torchrun or alone.

Usage: share_training.py FOLDER. Writes rank-R-of-SIZE.pt: {case: what training gave}, tensors and sentences.
"""

import sys
import warnings
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, distributed, nn

from pyrovae.compiled import FallbackWarning
from pyrovae.models.vae import build_vae
from pyrovae.training import programs, shares
from pyrovae.training.distributed import Ranks, process_group
from pyrovae.training.fit import FitResult, TrainingStopped, fit

X = torch.randn(67, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OPTIONS = {"batch_size": 33, "max_epochs": 3, "lr": 1e-2, "seed": 3}  # batches of 33, 33 and 1


def model(x: Tensor) -> None:
    """A subsampled plate, a latent that all data share, and parameters that start at random."""
    loc = pyro.param("loc", lambda: torch.randn((), dtype=x.dtype))
    scale = pyro.param("scale", torch.ones((), dtype=x.dtype), constraint=dist.constraints.positive)
    shift = pyro.sample("shift", dist.Normal(torch.zeros((), dtype=x.dtype), 3.0))
    with pyro.plate("data", len(X), subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(loc + shift, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x[:, 0])


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", lambda: torch.randn((), dtype=x.dtype))
    pyro.sample("shift", dist.Normal(pyro.param("at", torch.zeros((), dtype=x.dtype)), 0.5))
    with pyro.plate("data", len(X), subsample_size=len(x)):
        pyro.sample("z", dist.Normal(slope * x[:, 0], 0.7))


class Normed(nn.Module):
    """A guide that changes with the rows that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.loc = nn.BatchNorm1d(5), nn.Parameter(torch.zeros(()))

    def guide(self, x: Tensor) -> None:
        pyro.module("normed", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.norm(x)[:, 0] + self.loc, 1.0))


def gamma_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=x.dtype), 1.0))
        pyro.sample("x", dist.Exponential(rate), obs=x[:, 0].abs())


def gamma_guide(x: Tensor) -> None:
    shape = pyro.param("shape", torch.tensor(2.0, dtype=x.dtype), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(shape, 1.0 + x[:, 0].abs()))


def outcome(result: FitResult, tensors: list[Tensor]) -> dict[str, Tensor]:
    found = {f"history {k}": torch.from_numpy(v) for k, v in result.history.items() if k != "seconds"}
    return {**found, "tensors": torch.cat([t.detach().flatten() for t in tensors])}


def of_vae(encoder: str = "diagonal", **options) -> dict[str, Tensor]:
    vae = build_vae(5, 2, hidden=(6,), encoder=encoder, noise="optimal", seed=0).double()
    result = fit(vae.model, vae.guide, X, **{**OPTIONS, "val_data": X[:13], **options})
    return outcome(result, [*vae.parameters(), *vae.buffers()])


def of_functions(**options) -> dict[str, Tensor]:
    result = fit(model, guide, X, **{**OPTIONS, **options})
    return outcome(result, [*result.params.values()])


def of_gammas(**options) -> dict[str, Tensor]:
    result = fit(gamma_model, gamma_guide, X, **{**OPTIONS, "compile": False, **options})
    return outcome(result, [*result.params.values()])


@contextmanager
def planted(owner: object, name: str, value: object):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def with_mean_of_means() -> dict[str, Tensor]:
    """Planted: each rank counts the same, however many rows it has."""
    with planted(shares.Share, "fraction", property(lambda share: 0.5)):
        return of_functions()


def with_own_noise() -> dict[str, Tensor]:
    """Planted: the noise is that of these rows alone."""
    with planted(shares._WholeNoise, "_rows", lambda noise, whole: whole.narrow(noise.axis, 0, noise.size)):
        return of_vae()


def said(run: Callable[[], object]) -> str:
    """What kind of error, and what it says."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused(ranks: Ranks) -> dict[str, str]:
    """What several ranks are refused, or fail together on."""
    first = ranks.is_first

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def by_rows(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x[:, 0].mean())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def sick(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros((), dtype=x.dtype))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc / (x[:, 0] - X[0, 0]).sign().abs(), 1.0))

    quick = {"max_epochs": 1, "batch_size": 67, "compile": False}
    parts = X.tensor_split(ranks.size)[ranks.rank]
    return {
        "data": said(lambda: fit(plain, by_rows, parts, **quick)),
        "options": said(lambda: fit(plain, by_rows, X, **{**quick, "lr": 0.1 if first else 0.2})),
        "arguments": said(lambda: fit(plain, by_rows, X, stop=(lambda: False) if first else None, **quick)),
        "start": said(lambda: fit(plain, by_rows, X, **quick)),
        "plate": said(lambda: fit(plain, by_rows, X, plate="rows", **quick)),
        "rows": said(lambda: fit(plain, Normed().double().guide, X, **quick)),
        "nan": said(lambda: fit(plain, sick, X, **quick)),
        "hmc": said(lambda: fit(plain, sick, X, **quick, objective="hmc")),
    }


def stopped(ranks: Ranks, folder: Path) -> dict[str, object]:
    """A run that only the last rank wants to stop, and one that goes on from it."""
    calls: list[int] = []

    def ask() -> bool:
        calls.append(1)
        return ranks.rank == ranks.size - 1 and len(calls) >= 4

    told: list[int] = []
    vae = build_vae(5, 2, hidden=(6,), noise="optimal", seed=0).double()
    more = {**OPTIONS, "val_data": X[:13], "checkpoint": folder}
    try:
        fit(vae.model, vae.guide, X, stop=ask, **more)
        num_steps = -1
    except TrainingStopped as error:
        num_steps = error.num_steps
    found = of_vae(checkpoint=folder, resume="auto", progress=lambda epoch, *_: told.append(epoch))
    return {**found, "num_steps": num_steps, "epochs told": told}


def main(folder: Path) -> None:
    warnings.simplefilter("error", FallbackWarning)
    with process_group("cpu") as ranks:
        found: dict[str, object] = {}
        group = weakref.ref(distributed.group.WORLD) if ranks.size > 1 else lambda: None
        for route, trace_from in (("traced", 0), ("untraced", 10**9)):
            programs.TRACE_FROM = trace_from
            found[f"vae {route}"] = of_vae(early_stopping_patience=2, clip_norm=1.0)
            found[f"functions {route}"] = of_functions(kl_weight=0.5)
        found["iwae"] = of_vae(objective="iwae", num_particles=4)
        found["dreg in chunks"] = of_vae(objective="dreg", num_particles=4, chunk_size=2, compile=False)
        found["functions"] = of_functions()
        found["mixture"] = of_vae(encoder="mixture", compile=False)
        found["stopped"] = stopped(ranks, folder / f"of-{ranks.size}")
        if ranks.size > 1:
            found["gammas"] = of_gammas()
            found["mean of means"], found["own noise"] = with_mean_of_means(), with_own_noise()
            found["refused"] = refused(ranks)
        torch.save(found, folder / f"rank-{ranks.rank}-of-{ranks.size}.pt")
    if group() is not None:
        raise RuntimeError("the process group outlives its end, and may abort the process")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
