"""Physical compaction: removing what no read can see any more, a slice a step.

To forget everything below revision C is to remove, of each key, all versions older than the one that is current at C,
and that one too if it is a tombstone. Revision C itself stays whole until the next compaction, tombstones and all: a
watcher may still start at C.

Work is in proportion to what was written since the last compaction, not to what is kept: a record written in
(last, C] condemns the version before it, and nothing else can have been condemned. The job walks those revisions in the
log, drops the condemned from the log slice by slice, and at its end cuts the histories. Histories are only appended to
meanwhile, so the places it remembers stay right.

A pin (``Store.pin``) stops the job at the pinned revision until it is released.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from kvserver.limits import MVCC_COMPACTION_SLICE_RECORDS as SLICE_RECORDS
from kvserver.mvcc.history import members, without_first
from kvserver.mvcc.records import is_tombstone, key_of
from kvserver.mvcc.revision_log import find_last

if TYPE_CHECKING:
    from kvserver.mvcc.store import Store


class CompactionJob:
    """The physical side of a store's compactions, one after the other."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.done_revision = -1
        self._running: Generator[None, None, None] | None = None

    def abandon(self) -> None:
        """End all work: the store's state is going to be replaced."""
        self._running = None
        self.done_revision = 1 << 62

    def rebind(self, store: Store) -> None:
        """Work on another store from now on, whose state was taken over with this job."""
        self._store = store

    def run(self, revision: int) -> Generator[None, None, None]:
        """Run until everything below ``revision`` is removed; several runs share the work."""
        store = self._store
        while self.done_revision < revision:
            if self._running is None:
                target = store.oldest_pin(store.compact_revision)
                if target <= self.done_revision:
                    yield  # pinned; ask again
                    continue
                self._running = self._remove_below(target)
            try:
                next(self._running)
            except StopIteration:
                self._running = None
            yield

    def _remove_below(self, revision: int) -> Generator[None, None, None]:
        store = self._store
        log = store._log
        # The tail may hold revisions up to the target; closing it makes them replaceable.
        log.seal()
        # key -> twice the place in its history of the last version seen, plus 1 if that is a removed tombstone
        places: dict[bytes, int] = {}
        dead: list[tuple[int, bytes]] = []
        seen = 0
        # The last target's own revision is seen again: its tombstones were left to a later compaction.
        for main, entry in log.items(max(0, self.done_revision), revision + 1):
            if isinstance(entry, tuple):
                for sub, record in enumerate(entry):
                    if record is not None:
                        self._visit(record, main, revision, places, dead, entry[:sub])
                seen += len(entry)
            else:
                self._visit(entry, main, revision, places, dead, ())
                seen += 1
            if seen >= SLICE_RECORDS:
                log.remove(dead)
                dead.clear()
                seen = 0
                yield
        log.remove(dead)
        yield
        for key, place in places.items():
            self._cut(key, (place >> 1) + (place & 1), revision)
            seen += 1
            if seen >= SLICE_RECORDS:
                seen = 0
                yield
        self.done_revision = revision

    def _visit(
        self,
        record: bytes,
        main: int,
        target: int,
        places: dict[bytes, int],
        dead: list[tuple[int, bytes]],
        before: tuple[bytes | None, ...],
    ) -> None:
        """Condemn what ``record`` replaced, and itself if it is an old tombstone.

        Args:
            record: a record at main revision ``main``.
            main: its revision.
            target: the revision compacted at.
            places: see :meth:`_remove_below`.
            dead: gets what is condemned.
            before: the records before it in the same txn.
        """
        store = self._store
        key = key_of(record)
        history = store._history.get(key)
        if history is None:
            return  # it is current and the only version
        revisions = members(history)
        last = places.get(key)
        if last is None:
            last = -2 if revisions[0] == main else 0  # the history begins with this version, or with the one before
        place = (last >> 1) + 1
        if place > 0:
            previous_main = revisions[place - 1]
            previous = find_last(before, key) if previous_main == main else store.log.find(previous_main, key)
            if previous is not None and previous_main < target and not is_tombstone(previous):
                dead.append((previous_main, previous))
                store.size_bytes -= len(previous)
        if is_tombstone(record) and main < target:
            dead.append((main, record))
            store.size_bytes -= len(record)
            places[key] = 2 * place + 1
        else:
            places[key] = 2 * place

    def _cut(self, key: bytes, place: int, target: int) -> None:
        """Cut a history before ``place``: the version that is current at the target, or what follows it."""
        store = self._store
        history = store._history[key]
        while place and members(history)[place - 1] == target:
            place -= 1  # the target's own revision stays whole
        left = without_first(history, place)
        if left is None:
            del store._history[key]
            if key not in store._live:
                store._deleted.remove(key)
        elif left is not history:
            store._history[key] = left
