"""The local view of a lease: until when its holder may believe in it. Pure; time arrives as an argument.

The deadline is the *sending* time of the last acknowledged renewal plus the TTL: the server's own count began no
earlier, so the holder stops believing before the server can give the lease away. ::

    CONNECTED --(nothing acknowledged for ttl/2)--> SUSPENDED --(acknowledged)--> CONNECTED
        either --(deadline passed, or the server says the lease is gone)--> LOST, which is final

The one object shared between the thread that renews and the one that asks; a lock guards the transitions.
"""

from __future__ import annotations

import threading
import time
from enum import Enum


class SessionState(Enum):
    """What the holder of a session may believe."""

    CONNECTED = "connected"
    """The lease lives, and a recent renewal was acknowledged."""

    SUSPENDED = "suspended"
    """A renewal is overdue; the lease lives until its deadline at least, perhaps it is renewed in time."""

    LOST = "lost"
    """The lease is gone, or may be; final."""


class LeaseClock:
    """Deadline and state of one lease.

    Args:
        ttl: Seconds the lease lives from a renewal on.
        sent_at: When the request that made it was sent, in seconds of :func:`now`.
    """

    __slots__ = ("_lock", "_reason", "acknowledged_at", "ttl")

    def __init__(self, ttl: float, sent_at: float) -> None:
        self.ttl = ttl
        self.acknowledged_at = sent_at
        self._reason: str | None = None
        self._lock = threading.Lock()

    @property
    def reason(self) -> str | None:
        """Why it is lost, None while it is not known to be."""
        return self._reason

    @property
    def deadline(self) -> float:
        """The moment from which on the lease may be gone."""
        return self.acknowledged_at + self.ttl

    @property
    def suspends_at(self) -> float:
        """The moment at which a renewal is overdue."""
        return self.acknowledged_at + self.ttl / 2

    def acknowledge(self, sent_at: float, ttl: float, now: float) -> SessionState:
        """Take note of a renewal the server acknowledged.

        Args:
            sent_at: When it was sent.
            ttl: The TTL the server answered.
            now: The present.
        """
        with self._lock:
            if self._state(now) is not SessionState.LOST and sent_at >= self.acknowledged_at:
                self.acknowledged_at = sent_at
                self.ttl = ttl
            return self._state(now)

    def lose(self, reason: str) -> bool:
        """Make it LOST; answer whether it was not before."""
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
            return True

    def state(self, now: float) -> SessionState:
        """Answer the state at ``now``, which must not go back; LOST sticks."""
        with self._lock:
            return self._state(now)

    def _state(self, now: float) -> SessionState:
        if self._reason is None and now >= self.deadline:
            self._reason = f"no renewal was acknowledged for {now - self.acknowledged_at:.1f} s (ttl {self.ttl:g} s)"
        if self._reason is not None:
            return SessionState.LOST
        return SessionState.CONNECTED if now < self.suspends_at else SessionState.SUSPENDED


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


now = _boottime if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
"""Seconds that never go back and that count while the machine sleeps, as the server's do."""
