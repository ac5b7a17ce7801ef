"""Decides when history is forgotten by itself: ``--auto-compaction-mode`` and ``--auto-compaction-retention``.

Pure: the leader's engine asks at each tick, with the time and the revision, and proposes what is answered.

- *periodic*: keeps the history of the last ``period``. The revision is noted ten times a period (every six minutes when
  the period is an hour or longer); once notes reach back a whole period, history below the oldest of them goes.
- *revision*: keeps the last n revisions; looks every five minutes.
"""

from __future__ import annotations

from collections import deque

REVISION_INTERVAL_SECONDS = 300.0
NOTES_A_PERIOD = 10
HOUR_SECONDS = 3600.0


class AutoCompactor:
    """Keeps the notes of one leadership; a new leader begins anew.

    Args:
        period_seconds: history to keep in periodic mode; 0 when that mode is off.
        revisions: revisions to keep in revision mode; 0 when that mode is off.
    """

    def __init__(self, period_seconds: float = 0.0, revisions: int = 0) -> None:
        self._period = period_seconds
        self._revisions = revisions
        self._interval = (
            min(period_seconds, HOUR_SECONDS) / NOTES_A_PERIOD if period_seconds else REVISION_INTERVAL_SECONDS
        )
        self._next: float | None = None
        self._notes: deque[tuple[float, int]] = deque()
        self._compacted = 0

    @property
    def enabled(self) -> bool:
        """Whether there is anything to do."""
        return self._period > 0 or self._revisions > 0

    def reset(self) -> None:
        """Forget the notes: leadership begins."""
        self._next = None
        self._notes.clear()

    def due(self, now: float, revision: int) -> int:
        """Answer the revision to compact to, or 0.

        Args:
            now: monotonic seconds.
            revision: the store's current revision.
        """
        if not self.enabled:
            return 0
        if self._next is None:
            self._next = now + self._interval
            self._notes.append((now, revision))
            return 0
        if now < self._next:
            return 0
        self._next = now + self._interval
        if self._revisions:
            target = revision - self._revisions
        else:
            self._notes.append((now, revision))
            target = 0
            while self._notes[0][0] <= now - self._period:
                target = self._notes.popleft()[1]
        if target <= self._compacted or target <= 1:
            return 0
        self._compacted = target
        return target
