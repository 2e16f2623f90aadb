"""The commands under torchrun: the first rank speaks and writes, and signals that come twice are one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyrovae.cli.show import print_error
from pyrovae.cli.signals import SIGNALS, StopSignal, listening

if TYPE_CHECKING:
    from rich.console import Console

    from pyrovae.training.distributed import Ranks

__all__ = ["console_of", "listening_to", "print_failure"]


def console_of(ranks: "Ranks", is_silent: bool) -> "Console":
    """A terminal on which only the first rank writes, and that only unless it is to be silent."""
    from rich.console import Console

    return Console(quiet=is_silent or not ranks.is_first)


def print_failure(error: Exception, ranks: "Ranks") -> None:
    """Print why a rank failed; those that failed because of another have nothing to add to what it says."""
    from rich.console import Console

    from pyrovae.training.distributed import RankFailed

    if ranks.is_first:
        print_error(Console(stderr=True), error)
    elif not isinstance(error, RankFailed):
        print_error(Console(stderr=True), f"rank {ranks.rank}: {error}")


@contextmanager
def listening_to(ranks: "Ranks") -> Iterator[StopSignal]:
    """As `listening`; but with several ranks a second signal does not end the process.

    Ctrl-C reaches all processes of a terminal, and torchrun then sends each of its own another signal.
    """
    with listening() as stop:

        def note(number: int, frame: Any) -> None:
            stop.number = stop.number or number

        if ranks.size > 1:
            for each in SIGNALS:
                signal.signal(each, note)
        yield stop
