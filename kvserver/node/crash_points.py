"""Named places where a test can end the process, to prove what survives.

Armed by ``name`` or ``name:n`` (the n-th time it is reached), by a test that builds the server; nothing that a running
installation reads can arm one. Not armed, a point costs a comparison.
"""

from __future__ import annotations

import os
import signal

NAMES = (
    "before_save",
    "after_save",
    "after_save_before_apply",
    "after_answers",
    "after_snapshot_before_marker",
)


class CrashPoints:
    """The crash points of one node; at most one is armed."""

    def __init__(self, armed: str = "") -> None:
        name, _, count = armed.partition(":")
        if name and name not in NAMES:
            raise ValueError(f"no crash point {name!r}; there are {', '.join(NAMES)}")
        self._name = name
        self._left = int(count or 1)

    def reach(self, name: str) -> None:
        """Pass a point; the process is killed when it is the armed one."""
        if name == self._name:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
