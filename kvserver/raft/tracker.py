"""What a leader knows about each member: how far its log matches, what is under way to it, and how to send.

A member's progress is in one of three states::

    PROBE      where its log matches is not known: one append at a time, the next after an answer or a heartbeat's
    REPLICATE  it is known: appends are sent ahead of the answers, up to a window
    SNAPSHOT   it needs entries that are dropped: nothing is sent until the snapshot is reported done

``match < next`` always; ``match`` never goes back while its member stays in the configuration.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from kvserver.raft._invariant import check


class ProgressState(IntEnum):
    """See the module's text."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    """One member, as its leader sees it.

    Attributes:
        match: its log is known to equal the leader's up to here, durably.
        next: the index of the next entry to send.
        state: how to send.
        pending_snapshot: in SNAPSHOT, the index of the one sent.
        sent_commit: the highest commit index sent along since it last probed.
        recent_active: heard of since the last check of the quorum.
        is_doubtful: in REPLICATE, it answered a heartbeat and lacks entries: what was sent may be lost.
        probe_sent: in PROBE, an append is under way.
        is_learner: does not vote.
    """

    __slots__ = (
        "_inflight_bytes",
        "_inflights",
        "is_doubtful",
        "is_learner",
        "match",
        "next",
        "pending_snapshot",
        "probe_sent",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(self, match: int, next: int, *, is_learner: bool) -> None:
        self.match = match
        self.next = next
        self.is_learner = is_learner
        self.state = ProgressState.PROBE
        self.pending_snapshot = 0
        self.sent_commit = 0
        self.recent_active = False
        self.probe_sent = False
        self.is_doubtful = False
        self._inflights: deque[tuple[int, int]] = deque()
        self._inflight_bytes = 0

    @property
    def inflight_count(self) -> int:
        """Appends under way."""
        return len(self._inflights)

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.pending_snapshot = 0
        self.probe_sent = False
        self.is_doubtful = False
        self._inflights.clear()
        self._inflight_bytes = 0

    def become_probe(self) -> None:
        """Look for the matching point again; after a snapshot, behind it."""
        pending = self.pending_snapshot if self.state is ProgressState.SNAPSHOT else 0
        self._reset(ProgressState.PROBE)
        self.next = max(self.match, pending) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        """Send ahead from the matching point."""
        self._reset(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """Wait for a snapshot of ``index`` to arrive."""
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def is_paused(self, messages_max: int, bytes_max: int) -> bool:
        """Tell whether nothing may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return len(self._inflights) >= messages_max or self._inflight_bytes >= bytes_max
        return self.probe_sent or self.state is ProgressState.SNAPSHOT

    def sent(self, last_index: int, count: int, size: int) -> None:
        """Note that an append with ``count`` entries up to ``last_index`` is under way."""
        self.is_doubtful = False
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next = last_index + 1
                self._inflights.append((last_index, size))
                self._inflight_bytes += size
        else:
            check(self.state is ProgressState.PROBE, "an append is sent to a member that waits for a snapshot")
            self.probe_sent = True

    def free_to(self, index: int) -> None:
        """Note that appends up to ``index`` were answered."""
        inflights = self._inflights
        while inflights and inflights[0][0] <= index:
            self._inflight_bytes -= inflights.popleft()[1]

    def free_first(self) -> None:
        """Give the oldest append up for lost, so that one can be sent."""
        if self._inflights:
            self._inflight_bytes -= self._inflights.popleft()[1]

    def maybe_update(self, index: int) -> bool:
        """Take an acknowledgement of ``index``; tell whether it was new."""
        if self.next <= index:
            self.next = index + 1
        if index <= self.match:
            return False
        self.match = index
        self.probe_sent = False
        return True

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """Take a refusal of an append after ``rejected``; tell whether it was not stale.

        Args:
            rejected: the index before the refused append's entries.
            hint: where the logs might match at best.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            return True
        if self.state is ProgressState.SNAPSHOT or self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.probe_sent = False
        return True


@dataclass(frozen=True, slots=True)
class ProgressStatus:
    """A copy of a member's progress, for whoever asks."""

    match: int
    next: int
    state: ProgressState
    is_learner: bool
    recent_active: bool
    pending_snapshot: int
    inflight_count: int
