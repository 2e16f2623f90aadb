"""SIGINT and SIGTERM as a question that a long run asks itself after each step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["StopSignal", "listening"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Whether a signal came: `number`, 0 for none."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        """Whether one came."""
        return self.number != 0


@contextmanager
def listening() -> Iterator[StopSignal]:
    """Within the block, the first signal is only noted, and a second one ends the process at once.

    >>> with listening() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> stop(), stop.number == signal.SIGTERM
    (True, True)
    """
    stop = StopSignal()

    def note(number: int, frame: Any) -> None:
        stop.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        with suppress(ValueError):  # only the main thread can listen
            for each in SIGNALS:
                signal.signal(each, note)
        yield stop
    finally:
        with suppress(ValueError):
            for each, handler in before.items():
                signal.signal(each, handler)
