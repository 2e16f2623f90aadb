"""The module that a Pyro program belongs to: its parameters have names there."""

from functools import partial
from typing import Any

from torch import nn

__all__ = ["owner"]


def owner(program: Any) -> nn.Module | None:
    """The module that a program is, or is a method of, through `functools.partial` and wrappers; else None.

    >>> net = nn.Linear(1, 1)
    >>> owner(partial(net.forward, 1)) is net, owner(print)
    (True, None)
    """
    while not isinstance(program, nn.Module):
        if isinstance(program, partial):
            program = program.func
        elif hasattr(program, "__self__"):
            program = program.__self__
        elif hasattr(program, "__wrapped__"):
            program = program.__wrapped__
        else:
            return None
    return program
