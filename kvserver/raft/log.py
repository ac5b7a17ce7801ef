"""The log of one member in memory: entries after the compaction point, and how far each of its marks has come.

All entries that may still be needed are in one list; what is on disk is told by marks, all of them indexes::

      offset < first ................ last                the entries in memory; `offset` is the last index dropped
      applied <= handed_committed <= min(commit, stable)  applied / handed out to be applied
      stable <= handed_stable <= last                     durable here / handed out to be written
      commit <= last                                      known to be committed

`commit`, `applied` never go back. `stable` and `handed_stable` go back when a new leader overwrites entries: a write
that was under way then no longer counts beyond the overwritten index, although it is reported durable (see
:meth:`RaftLog.persisted`).

Sizes are kept without work per entry: `bytes_total` counts the bytes of all entries ever appended, and marks remember
its value at the end of each batch. The difference of two marks is an upper bound of the bytes between them (overwritten
entries stay counted); only when the bound exceeds a limit are entries looked at one by one.

No role, no message and no quorum may live here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from kvserver.raft._invariant import InvariantError, check
from kvserver.raft.messages import Entry, EntryType, InitialState, Snapshot

ENTRY_OVERHEAD_BYTES = 16
"""Counted for an entry besides its data, when messages are bounded: about what a message takes for it."""


class RaftLog:
    """See the module's text. ``entries`` and ``bytes_total`` are written by the leader's hot path directly."""

    __slots__ = (
        "_mark_bytes",
        "_mark_index",
        "applied",
        "bytes_total",
        "commit",
        "conf_change_index",
        "entries",
        "handed_committed",
        "handed_stable",
        "offset",
        "offset_term",
        "snapshot",
        "stable",
    )

    def __init__(self, initial: InitialState) -> None:
        snapshot = initial.snapshot
        self.entries: list[Entry] = list(initial.entries)
        self.offset = snapshot.index
        self.offset_term = snapshot.term
        expected = snapshot.index
        term = snapshot.term
        for entry in self.entries:
            expected += 1
            check(entry.index == expected, "the initial entries do not follow the snapshot without a gap")
            check(entry.term >= term, "the terms of the initial entries go back")
            term = entry.term
        self.commit = max(initial.hard_state.commit, snapshot.index)
        check(self.commit <= expected, "the initial commit index is beyond the last entry: entries are missing")
        self.applied = snapshot.index
        self.handed_committed = snapshot.index
        self.stable = expected
        self.handed_stable = expected
        self.snapshot: Snapshot | None = None
        """A received snapshot that is not durable yet."""
        self.bytes_total = sum([len(entry.data) for entry in self.entries])
        self._mark_index = [snapshot.index]
        self._mark_bytes = [0]
        self.conf_change_index = max((e.index for e in self.entries if e.type == EntryType.CONF_CHANGE), default=0)
        """At or above the last membership change in the log; 0 if there can be none."""
        self.mark()

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def first(self) -> int:
        """Index of the first entry in memory, were there one."""
        return self.offset + 1

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.offset + len(self.entries)

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self.entries[-1].term if self.entries else self.offset_term

    def term(self, index: int) -> int:
        """Answer the term of an entry; 0 if the index is compacted away or beyond the end."""
        position = index - self.offset
        if 0 < position <= len(self.entries):
            return self.entries[position - 1].term
        return self.offset_term if position == 0 else 0

    def matches(self, index: int, term: int) -> bool:
        """Tell whether the entry at ``index`` is there and of ``term`` (the log matching test, paper 5.3)."""
        return self.offset <= index <= self.last and self.term(index) == term

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Tell whether a log that ends at (index, term) is at least as complete as this one (paper 5.4.1)."""
        last_term = self.last_term
        return term > last_term or (term == last_term and index >= self.last)

    def slice(self, start: int, stop: int) -> list[Entry]:
        """Answer the entries of [start, stop)."""
        check(self.offset < start <= stop <= self.last + 1, "the slice is not within the log")
        return self.entries[start - self.offset - 1 : stop - self.offset - 1]

    def slice_bounded(self, start: int, stop: int, bytes_max: int, overhead: int = 0) -> tuple[list[Entry], int]:
        """Answer entries from ``start`` on, before ``stop``, within ``bytes_max``, but at least one; and their bytes.

        The bytes may be overstated, never understated.
        """
        entries = self.slice(start, stop)
        size = self.bytes_bound(start - 1, stop - 1) + overhead * len(entries)
        if size <= bytes_max:
            return entries, size
        size = 0
        for position, entry in enumerate(entries):
            grown = size + len(entry.data) + overhead
            if grown > bytes_max and position:
                return entries[:position], size
            size = grown
        return entries, size

    def bytes_bound(self, after: int, upto: int) -> int:
        """Answer an upper bound of the data bytes of the entries in (after, upto]."""
        at = bisect_left(self._mark_index, upto)
        above = self._mark_bytes[at] if at < len(self._mark_index) else self.bytes_total
        return above - self.bytes_until(after)

    def bytes_until(self, index: int) -> int:
        """Answer ``bytes_total`` as it was at the last mark at or below ``index``."""
        at = bisect_right(self._mark_index, index) - 1
        return self._mark_bytes[at] if at >= 0 else 0

    def conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """Answer the largest (index', term') with index' <= index and term' <= term (or unknown: 0).

        Both sides of a refused append use it to skip whole terms (end of paper 5.3).
        """
        while index > self.offset:
            own = self.term(index)
            if own <= term:
                return index, own
            index -= 1
        return index, self.term(index)

    # -- appending ------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow the last one."""
        check(entries[0].index == self.last + 1, "appended entries do not follow the last one")
        self.entries.extend(entries)
        size = 0
        for entry in entries:
            size += len(entry.data)
            if entry.type:
                self.conf_change_index = entry.index
        self.bytes_total += size
        self.mark()

    def mark(self) -> None:
        """Remember ``bytes_total`` at the end of a batch."""
        last = self.offset + len(self.entries)
        if last > self._mark_index[-1]:
            self._mark_index.append(last)
            self._mark_bytes.append(self.bytes_total)

    def maybe_append(self, index: int, term: int, entries: list[Entry]) -> int | None:
        """Append what a leader sent after (index, term); drop own entries that contradict it (paper 5.3).

        Returns:
            The index of the last entry sent, or None if the log has no entry (index, term).
        """
        if not self.matches(index, term):
            return None
        last_new = index + len(entries)
        own_last = self.last
        if entries:
            check(entries[0].index == index + 1 and entries[-1].index == last_new, "an append's entries have gaps")
            if index == own_last:
                self.append(entries)
                return last_new
        for position, entry in enumerate(entries):
            if entry.index > own_last:
                self.append(entries[position:])
                break
            if self.term(entry.index) != entry.term:
                self.truncate(entry.index)
                self.append(entries[position:])
                break
        return last_new

    def truncate(self, index: int) -> None:
        """Drop the entries from ``index`` on; a write of them that is under way no longer counts."""
        if index <= self.commit:
            raise InvariantError(f"entry {index} is committed (commit index {self.commit}), a leader overwrites it")
        del self.entries[index - self.offset - 1 :]
        self.stable = min(self.stable, index - 1)
        self.handed_stable = min(self.handed_stable, index - 1)
        keep = max(bisect_left(self._mark_index, index), 1)
        del self._mark_index[keep:]
        del self._mark_bytes[keep:]
        self.mark()

    # -- marks ----------------------------------------------------------------------------------------------------

    def commit_to(self, index: int) -> bool:
        """Move the commit index forward; a lower one is ignored. Tell whether it moved."""
        if index <= self.commit:
            return False
        if index > self.last:
            raise InvariantError(
                f"commit index {index} is beyond the last entry {self.last}: was this member's log damaged or lost?"
            )
        self.commit = index
        return True

    def take_unstable(self) -> list[Entry]:
        """Answer the entries to write next; they count as handed out."""
        entries = self.entries[self.handed_stable - self.offset :]
        self.handed_stable = self.offset + len(self.entries)
        return entries

    def persisted(self) -> None:
        """Note that what was handed out to be written is durable, as far as it was not overwritten since."""
        self.stable = self.handed_stable

    def committed_limit(self) -> int:
        """Answer the index up to which entries could be handed out to be applied."""
        if self.snapshot is not None or self.applied < self.offset:
            return self.handed_committed
        return min(self.commit, self.stable)

    def take_committed(self, limit: int, entries_max: int, bytes_max: int) -> list[Entry]:
        """Answer the entries to apply next, up to index ``limit``; they count as handed out."""
        start = self.handed_committed + 1
        stop = min(limit, start + entries_max - 1) + 1
        if start >= stop:
            return []
        entries, _ = self.slice_bounded(start, stop, bytes_max)
        self.handed_committed = entries[-1].index
        return entries

    def applied_to(self, index: int) -> None:
        """Note that the state includes all entries up to ``index``."""
        if not self.applied <= index <= self.handed_committed:
            raise InvariantError(
                f"applied index {index} is not within [{self.applied}, {self.handed_committed}], what was handed out"
            )
        self.applied = index

    def compact(self, index: int) -> None:
        """Drop the entries up to ``index``; nothing if they are dropped already."""
        if index <= self.offset:
            return
        check(index <= self.applied, "entries that are not applied cannot be dropped")
        self.offset_term = self.term(index)
        del self.entries[: index - self.offset]
        self.offset = index
        drop = bisect_right(self._mark_index, index) - 1
        if drop > 0:
            del self._mark_index[:drop]
            del self._mark_bytes[:drop]

    def restore(self, snapshot: Snapshot) -> None:
        """Replace everything by a snapshot that is to be written and loaded."""
        check(snapshot.index > self.commit, "a snapshot would undo committed entries")
        self.entries.clear()
        self.offset = self.commit = self.handed_committed = self.stable = self.handed_stable = snapshot.index
        self.offset_term = snapshot.term
        self.snapshot = snapshot
        self.conf_change_index = 0
        self._mark_index[:] = [snapshot.index]
        self._mark_bytes[:] = [self.bytes_total]
