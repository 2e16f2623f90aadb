"""The learning rate of each step: constant, or falling along a cosine."""

import math

__all__ = ["SCHEDULES", "rate_at"]

SCHEDULES = ("constant", "cosine")


def rate_at(step: int, num_steps: int, lr: float, schedule: str) -> float:
    """The learning rate of a step, counted from 0, of `num_steps`.

    "cosine" is lr / 2 (1 + cos(pi step / num_steps)), which starts at lr and would be 0 after the last step
    (Loshchilov & Hutter 2017, without restarts). Where training stops early, it stops above 0.

    >>> [round(rate_at(step, 4, 0.1, "cosine"), 4) for step in range(4)]
    [0.1, 0.0854, 0.05, 0.0146]
    """
    if schedule == "constant":
        return lr
    return 0.5 * lr * (1.0 + math.cos(math.pi * step / num_steps))
