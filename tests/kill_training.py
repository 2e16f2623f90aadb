"""Train in forked processes that are killed again and again, then to the end: what `test_resume_killed.py` runs.

Usage: kill_training.py FOLDER CASE once: trains in this process, from what is in FOLDER on, and writes FOLDER.digest.
Usage: kill_training.py FOLDER CASE. Prints JSON: the digest of a run that nobody killed, of one that was killed at
random instants, and of one that killed itself before some of its file operations; and how often that was inside a save.
It forks after a first fit, since imports take seconds.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.compiled import FallbackWarning
from pyrovae.models.vae import build_vae
from pyrovae.training import programs
from pyrovae.training.fit import FitResult, fit

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
KILLS = 5


class Annealed(nn.Module):
    """A guide with a buffer that is replaced and a number that shrinks after each epoch, and a part that freezes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(1, 1)
        self.register_buffer("scale", torch.tensor(1.0))
        self.factor, self.epochs = 1.0, 0

    def end_epoch(self, x: Tensor) -> None:
        self.epochs += 1
        self.scale = self.scale * 0.97
        self.factor *= 0.98 if self.epochs < 3 else 1.0
        self.net.bias.requires_grad_(self.epochs < 6)

    def guide(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], self.factor * self.scale))


def model(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


OPTIONS = {"batch_size": 16, "max_epochs": 9, "lr": 1e-2}
CASES = {
    "untraced": {"compile": False, "early_stopping_patience": 3, "lr": 0.3},
    "traced": {"clip_norm": 5.0, "lr_schedule": "cosine", "kl_weight": 0.5, "n_epochs_kl_warmup": 4},
    "annealed": {},
    "compiled": {"compile": True, "batch_size": 25, "max_epochs": 60},
}


def train(case: str, **more) -> tuple[FitResult, list[Tensor]]:
    options = {**OPTIONS, **CASES[case], **more}
    programs.TRACE_FROM = 10**9 if case == "untraced" else 0
    if case == "annealed":
        owner = Annealed()
        result = fit(model, owner.guide, X[:, 0], **options)
        return result, [
            *owner.parameters(),
            *owner.buffers(),
            torch.tensor(owner.factor),
            *result.params.values(),
        ]
    vae = build_vae(5, 2, hidden=(6,), noise="optimal", seed=0)
    result = fit(vae.model, vae.guide, X[:50], val_data=X[50:], **options)
    return result, [*vae.parameters(), *vae.buffers()]


def digest(result: FitResult, tensors: list[Tensor]) -> str:
    """Of every bit that training gives, but for the seconds."""
    history = {name: values.tolist() for name, values in result.history.items() if name != "seconds"}
    facts = [history, result.best_epoch, result.num_steps, result.stopped_early]
    found = hashlib.sha256(json.dumps(facts).encode())
    for tensor in tensors:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()


def child(folder: Path, case: str, kill_at: int | None) -> int:
    """Fork a process that trains; with `kill_at` it kills itself at its file operation of that number."""
    pid = os.fork()
    if pid:
        return pid
    warnings.simplefilter("ignore")
    _hook(kill_at)
    folder.with_suffix(".digest").write_text(digest(*train(case, checkpoint=folder, resume="auto")))
    os._exit(0)


def _hook(kill_at: int | None) -> None:
    count = [0]

    def wrapped(function):
        def run(*args, **kwargs):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if kill_at is None:
                time.sleep(0.001)  # so that a random instant is often inside a save
            return function(*args, **kwargs)

        return run

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (zipfile.ZipFile, "writestr")):
        setattr(owner, name, wrapped(getattr(owner, name)))


def killed(folder: Path, case: str, instants: list[float], operations: list[int]) -> dict:
    """Train in processes of which the first ones are killed: each at its instant, or at its file operation."""
    kills = inside = 0
    for instant, operation in [
        *((t, None) for t in instants),
        *((None, n) for n in operations),
        (None, None),
    ]:
        pid = child(folder, case, operation)
        if instant is not None:
            time.sleep(instant)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            break
        kills += 1
        inside += any(folder.glob(".step-*.tmp"))
    assert os.WIFEXITED(status), status
    assert os.WEXITSTATUS(status) == 0, status
    left = sorted(path.name for path in folder.iterdir())
    return {
        "digest": folder.with_suffix(".digest").read_text(),
        "kills": kills,
        "inside": inside,
        "left": left,
    }


def main(folder: Path, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(case)
    draw, start = random.Random(case), time.perf_counter()
    found = {"whole": killed(folder / "whole", case, [], [])}
    seconds = time.perf_counter() - start
    instants = [seconds * draw.uniform(0.02, 0.5) for _ in range(KILLS)]
    found["random"] = killed(folder / "random", case, instants, [])
    operations = [1 + (37 * k) % 100 for k in range(KILLS)]
    found["files"] = killed(folder / "files", case, [], operations)
    print(json.dumps({**found, "seconds": seconds}))


def once(folder: Path, case: str) -> None:
    warnings.simplefilter("error", FallbackWarning)  # the route is the one that the case is called after
    folder.with_suffix(".digest").write_text(digest(*train(case, checkpoint=folder, resume="auto")))


if __name__ == "__main__":
    (once if sys.argv[3:] == ["once"] else main)(Path(sys.argv[1]), sys.argv[2])
