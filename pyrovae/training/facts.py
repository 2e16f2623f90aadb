"""What a checkpoint must agree with, to go on from it: options, data, the model's build, versions."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from pyrovae.models.vae import VAE
from pyrovae.training.archive import CheckpointError
from pyrovae.training.batches import Data
from pyrovae.training.config import FitConfig
from pyrovae.training.distributed import Ranks
from pyrovae.training.fingerprints import fingerprints
from pyrovae.training.run import Run

__all__ = [
    "attributes",
    "check_run",
    "model_facts",
    "put_attributes",
    "run_facts",
    "strangers",
    "version_facts",
]

Key = tuple[int, str, str]
WORDS = {"config": "configuration", "data": "data set", "val_data": "validation data set", "model": "model"}


def run_facts(config: FitConfig, data: Sequence[Data], val: Sequence[Data] | None) -> dict[str, Any]:
    """Options and fingerprints of the data, as JSON gives them back."""
    facts = {
        "config": asdict(config),
        "data": _fingerprints(data),
        "val_data": None if val is None else _fingerprints(val),
    }
    return json.loads(json.dumps(facts))


def _fingerprints(data: Sequence[Data]) -> dict[str, str]:
    return fingerprints({f"data[{index}]": x for index, x in enumerate(data)})


def model_facts(run: Run) -> dict[str, Any]:
    """What tells models apart whose tensors have the same names and shapes: classes of layers, recipes of VAEs."""
    facts = {f"layer {index} {path}": type(part).__qualname__ for (index, path), part in parts(run).items()}
    for index, module in enumerate(run.modules):
        if isinstance(module, VAE) and module.config is not None:
            facts |= {f"{name} of {index}": value for name, value in module.config.items()}
    return json.loads(json.dumps(facts))


def parts(run: Run) -> dict[tuple[int, str], nn.Module]:
    """All modules, also those inside others."""
    return {
        (index, path): part
        for index, module in enumerate(run.modules)
        for path, part in module.named_modules()
    }


def version_facts(device: torch.device, ranks: Ranks) -> dict[str, str]:
    """What the last bit may hang on, besides the code of the model."""
    return {
        **{name: version(name) for name in ("pyrovae", "torch", "pyro-ppl")},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
        "ranks": str(ranks.size),
    }


def check_run(path: Any, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what was saved with what is.

    Raises:
        CheckpointError: they differ; it says where first.
    """
    for fact, value in now.items():
        if saved[fact] != value:
            raise CheckpointError(
                f"{path} is of another {WORDS[fact]}: {_difference(saved[fact] or {}, value or {})}; pass what "
                "that run was given, or another folder"
            )


def _difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    for key in {**now, **saved}:
        there, here = saved.get(key, "absent"), now.get(key, "absent")
        if there != here:
            return f"{key} is {there!r} there and {here!r} here"
    return "their order differs"


def attributes(run: Run) -> dict[Key, Any]:
    """Numbers, modes and words that modules hold in Python, and which parameters are to be trained."""
    found: dict[Key, Any] = {
        (index, path, name): value
        for (index, path), part in parts(run).items()
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str)
    }
    return found | {(*key, "requires_grad"): p.requires_grad for key, p in _parameters(run)}


def _parameters(run: Run) -> Iterator[tuple[tuple[int, str], nn.Parameter]]:
    for index, module in enumerate(run.modules):
        for path, parameter in module.named_parameters():
            yield (index, path), parameter


def strangers(run: Run, keys: Iterable[Key]) -> list[Key]:
    """Those of keys of `attributes` that belong to no module and no parameter of the run."""
    modules, parameters = parts(run), dict(_parameters(run))
    return [
        key
        for key in keys
        if key[:2] not in modules and not (key[2] == "requires_grad" and key[:2] in parameters)
    ]


def put_attributes(run: Run, values: Mapping[Key, Any]) -> None:
    """Put back some of what `attributes` found, of which none is a stranger; what is no such number stays as it is."""
    modules, parameters = parts(run), dict(_parameters(run))
    for (index, path, name), value in values.items():
        if name == "requires_grad" and (index, path) in parameters:
            parameters[index, path].requires_grad_(bool(value))
        elif isinstance(getattr(modules[index, path], name, 0), bool | int | float | str):
            vars(modules[index, path])[name] = value
