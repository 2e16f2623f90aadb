"""Models that are no run: `package.module:factory`, called for a model, a guide, data and options of `Target`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Made", "call_factory"]


class Made(NamedTuple):
    """What a factory gives."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: tuple[Any, ...]
    options: Mapping[str, Any]


def call_factory(name: str) -> Made:
    """Import and call `package.module:factory`; modules in the working directory are found.

    Raises:
        typer.BadParameter: there is no such factory, or it gives something else than a model, a guide, data and, if it
            likes, options of `Target`.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise typer.BadParameter(f"--model wants package.module:factory, got {name!r}")
    with _working_directory_on_path():
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise typer.BadParameter(
                f"--model: cannot import {name!r} from {os.getcwd()}: {error}"
            ) from error
        made = factory() if callable(factory) else factory
    if not (isinstance(made, tuple) and len(made) in (3, 4) and callable(made[0]) and callable(made[1])):
        raise typer.BadParameter(
            f"--model: {name} must be a function without arguments that returns (model, guide, data), or those and "
            f"options of Target, got {type(made).__name__}{f' of {len(made)}' if isinstance(made, tuple) else ''}"
        )
    data = made[2] if isinstance(made[2], tuple) else (made[2],)
    wrong = [type(x).__name__ for x in data if not (hasattr(x, "__len__") and hasattr(x, "__getitem__"))]
    if wrong or not data:
        raise typer.BadParameter(
            f"--model: the data of {name} must be a tensor or a tuple of tensors, got {', '.join(wrong) or '()'}"
        )
    return Made(made[0], made[1], data, _options(name, made[3] if len(made) == 4 else {}))


def _options(name: str, given: Any) -> Mapping[str, Any]:
    """The fourth that a factory gives, checked by the signature of `Target`."""
    from pyrovae.target import Target

    parameters = inspect.signature(Target).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if not isinstance(given, Mapping):
        raise typer.BadParameter(
            f"--model: the fourth that {name} returns must be a dict of options of Target ({', '.join(known)}), got "
            f"{type(given).__name__}"
        )
    if unknown := [str(key) for key in given if key not in known]:
        raise typer.BadParameter(
            f"--model: {name} gives the options {', '.join(unknown)}, but those of Target are {', '.join(known)}"
        )
    return given


@contextmanager
def _working_directory_on_path() -> "Iterator[None]":
    """As `python -m` has it; the command itself would see installed packages only."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
