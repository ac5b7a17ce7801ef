"""The seams to time and chance.

Nothing but this module reads a clock or an entropy source; the node gets both as arguments, so that tests and the
simulation can supply their own.
"""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds."""

    def monotonic(self) -> float:
        """Answer seconds since an arbitrary start; never goes back."""
        ...


class Rng(Protocol):
    """A source of random numbers; ``random.Random`` is one."""

    def random(self) -> float:
        """Answer a float in [0, 1)."""
        ...

    def randrange(self, start: int, stop: int) -> int:
        """Answer an int in [start, stop)."""
        ...

    def getrandbits(self, bits: int, /) -> int:
        """Answer a non-negative int of that many random bits."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    monotonic = staticmethod(time.monotonic)


def system_rng() -> Rng:
    """Answer a generator seeded from the operating system."""
    return random.SystemRandom()
