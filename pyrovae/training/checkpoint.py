"""Checkpoints: one verified, pickle-free zip file, written so that it is whole or absent."""

import os
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from pyrovae.models.vae import VAE, build_vae
from pyrovae.seeding import seeded
from pyrovae.training.archive import CheckpointError, read_archive, write_archive

__all__ = ["FORMAT_VERSION", "CheckpointError", "load", "save"]

FORMAT = "pyrovae checkpoint"
FORMAT_VERSION = 1
Module = TypeVar("Module", bound=nn.Module)


def save(vae: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's parameters and buffers, and the `config` that rebuilds it, to one file.

    The file is a zip of `manifest.json` (format, version, config; name, dtype and shape of each tensor) and of the
    tensors' little-endian bytes, each with a checksum; the same state gives the same bytes. It appears at once:
    it is written beside `path`, flushed to the disk, and renamed, so that an interruption leaves the old file or
    none, and nothing half-written.

    Args:
        vae: a VAE, or any module; one without `config` can be loaded only into a module of the same shapes.
        path: file to write or to replace; its folder must exist.

    Raises:
        FileNotFoundError: the folder does not exist.
        TypeError: `vae` is no module.
    """
    if not isinstance(vae, nn.Module):
        raise TypeError(f"save wants a VAE or another torch module, got {type(vae).__name__}")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save wants an existing folder, got {str(path.parent)!r}; create it first")
    config = vae.config if isinstance(vae, VAE) else None
    write_archive(path, {"format": FORMAT, "version": FORMAT_VERSION, "config": config}, vae.state_dict())


@overload
def load(path: str | os.PathLike[str], into: None = None) -> VAE: ...
@overload
def load(path: str | os.PathLike[str], into: Module) -> Module: ...
def load(path: str | os.PathLike[str], into: nn.Module | None = None) -> nn.Module:
    """Read what `save` wrote, to the last bit, checking every byte on the way. Runs no code from the file.

    Without `into`, the VAE is rebuilt by `build_vae` from the file's config and comes back on the CPU with the
    dtypes it was saved with. With `into`, that module's tensors are overwritten in place: they stay on their
    devices and take the file's dtypes. When it raises, `into` is untouched.

    Args:
        path: a file written by `save`.
        into: a module with the same tensors; needed where the saved one was not made by `build_vae`.

    Returns:
        The rebuilt VAE, or `into`.

    Raises:
        CheckpointError: not a checkpoint, truncated or damaged, of a newer format, or of another model.
        FileNotFoundError: there is no such file.

    >>> import tempfile
    >>> vae = build_vae(5, 2, hidden=(3,), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(vae, folder + "/vae.pyrovae")
    ...     same = load(folder + "/vae.pyrovae")
    >>> all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), same.state_dict().values()))
    True
    """
    manifest, tensors = read_archive(Path(path), FORMAT, FORMAT_VERSION, "pyrovae.save")
    if "config" not in manifest:
        raise CheckpointError(
            f"{path} is damaged: its manifest has no config; fall back to another copy", True
        )
    module = _rebuild(path, manifest["config"]) if into is None else into
    target = module.state_dict(keep_vars=True)
    _check_same(path, tensors, target)
    with torch.no_grad():
        for name, value in tensors.items():
            _assign(target[name], value)
    return module


def _assign(target: Tensor, value: Tensor) -> None:
    if target.dtype == value.dtype:
        target.copy_(value)
    else:
        target.grad = None
        target.data = value.to(target.device)


def _rebuild(path: Any, config: dict[str, Any] | None) -> VAE:
    if config is None:
        raise CheckpointError(
            f"{path} holds no recipe, because its VAE was not made by build_vae; build the same VAE again and call "
            "load(path, into=vae)"
        )
    try:
        with seeded(0):
            return build_vae(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a recipe that build_vae does not take: {error}; it may be from another version of pyrovae, "
            "then build the VAE by hand and call load(path, into=vae)"
        ) from error


def _check_same(path: Any, tensors: dict[str, Tensor], target: dict[str, Any]) -> None:
    problems = [f"missing {name!r}" for name in target if name not in tensors]
    problems += [f"unexpected {name!r}" for name in tensors if name not in target]
    problems += [
        f"{name!r} of shape {list(value.shape)} where the model has {list(target[name].shape)}"
        for name, value in tensors.items()
        if name in target and value.shape != target[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} is of another model: {'; '.join(problems)}; build the model it was saved from"
        )
