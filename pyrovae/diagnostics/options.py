"""The options of a method that is called by name: what its function takes as keywords."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["check_options", "options_of"]

SHARED = ("seed", "progress")  # every method of a kind has them; they are no options of one


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a method with their defaults.

    >>> options_of(lambda target, *, num_samples=10, seed=0: None)
    {'num_samples': 10}
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in SHARED}


def check_options(method: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse an option that the method does not have.

    Raises:
        ValueError: its name, and those of the options that there are.
    """
    known = options_of(function)
    for name in options:
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"method {method!r} has no option {name!r}: {has}")
