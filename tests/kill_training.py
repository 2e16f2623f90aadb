"""Train in processes that are killed again and again, then to the end: what `test_resume_killed.py` runs.

Usage: kill_training.py FOLDER CASE. Prints JSON: the digest of a run that nobody killed and its steps; then of one that
was killed at random instants and, in one case, of one that killed itself before each kind of file operation, how often
they were killed and how often that was inside a save, and what they left. It forks after a first fit, since imports
take seconds.
Usage: kill_training.py FOLDER CASE once: trains in this process, for the compiler hangs in a forked one. First without
checkpoints, and writes FOLDER/whole.digest, unless that is there; then from what is in FOLDER/killed on, and writes
FOLDER/killed.digest.
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
KILLS = 2
OPERATIONS = [("writestr", 9), ("fsync", 3), ("replace", 2), ("fsync", 4), ("unlink", 2)]
"""Before which a process kills itself: in the first save of all; in the second of a process before the file is flushed,
before it is renamed, and before its folder is flushed; and before an old checkpoint is dropped."""


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


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7))


OPTIONS = {"batch_size": 16, "max_epochs": 9, "lr": 1e-2}
CASES = {
    "untraced": {"compile": False, "early_stopping_patience": 3, "lr": 0.3},
    "traced": {"clip_norm": 5.0, "lr_schedule": "cosine", "kl_weight": 0.5, "n_epochs_kl_warmup": 4},
    "annealed": {},
    "compiled": {"compile": True, "batch_size": 25, "max_epochs": 60, "val_data": X[50:, 0]},
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
    if case == "compiled":
        result = fit(model, guide, X[:50, 0], **options)
        return result, [*result.params.values()]
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


def child(folder: Path, case: str, kill_at: tuple[str, int] | None) -> int:
    """Fork a process that trains; it kills itself before its file operation `kill_at`, of that name and number."""
    pid = os.fork()
    if pid:
        return pid
    warnings.simplefilter("ignore")
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (zipfile.ZipFile, "writestr")):
        number = kill_at[1] if kill_at is not None and kill_at[0] == name else None
        setattr(owner, name, hooked(getattr(owner, name), number))
    folder.with_suffix(".digest").write_text(digest(*train(case, checkpoint=folder, resume="auto")))
    os._exit(0)


def hooked(function, kill_at: int | None):
    """The function, slow, so that a random instant is often inside a save; call number `kill_at` kills the process."""
    calls = []

    def run(*args, **kwargs):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)
        return function(*args, **kwargs)

    return run


def kill_soon(folder: Path, pid: int, delay: float) -> None:
    """Kill a process at `delay` seconds after it has saved."""
    seen, deadline = set(folder.glob("step-*")), time.monotonic() + 60
    while not set(folder.glob("step-*")) - seen and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)


def killed(folder: Path, case: str, delays: list[float], operations: list[tuple[str, int]]) -> dict:
    """Train in processes of which all but the last are killed: some at an instant, some before a file operation."""
    kills = inside = 0
    for delay, operation in [
        *((t, None) for t in delays),
        *((None, each) for each in operations),
        (None, None),
    ]:
        pid = child(folder, case, operation)
        if delay is not None:
            kill_soon(folder, pid, delay)
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
        result, tensors = train(case)
    draw = random.Random(case)
    found = {"whole": digest(result, tensors), "num_steps": result.num_steps}
    found["random"] = killed(folder / "random", case, [draw.uniform(0.0, 0.1) for _ in range(KILLS)], [])
    if case == "untraced":  # the others save by the same operations
        found["files"] = killed(folder / "files", case, [], OPERATIONS)
    print(json.dumps(found))


def once(folder: Path, case: str) -> None:
    warnings.simplefilter("error", FallbackWarning)  # the route is the one that the case is called after
    whole = folder / "whole.digest"
    if not whole.exists():
        whole.write_text(digest(*train(case)))
    again = train(case, checkpoint=folder / "killed", resume="auto")
    (folder / "killed.digest").write_text(digest(*again))


if __name__ == "__main__":
    (once if sys.argv[3:] == ["once"] else main)(Path(sys.argv[1]), sys.argv[2])
