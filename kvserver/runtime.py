"""The seams to time and chance, and what a process of our own sets for itself.

Nothing but this module reads a clock or an entropy source; the node gets both as arguments, so that tests and the
simulation can supply their own.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from typing import Protocol

from kvserver import limits


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


def tune_interpreter() -> None:
    """Set up the interpreter for a process that is nothing but a node; an embedder's settings are its own.

    - The cyclic collector is kept from walking the store: what is loaded is frozen, young garbage is looked at rarely.
      The store's values are bytes, which it does not track, but its containers are, and a full collection over millions
      of them holds the loop for a good part of a second.
    - The log thread gets the interpreter soon after its write is durable, instead of waiting up to five milliseconds
      for the loop to let go of it: with 100 clients that write one request at a time, half as many more are served.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(limits.GC_YOUNG_OBJECTS, 20, 1000)
    sys.setswitchinterval(limits.THREAD_SWITCH_SECONDS)
