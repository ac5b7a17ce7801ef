"""Physical compaction: removing what no read can see any more, a slice a step.

To forget everything below revision C is to remove, of each key, all versions older than the one that is current at C,
and that one too if it is a tombstone older than C. (A tombstone at exactly C stays until the next compaction: a watcher
may still start at C.)

Work is in proportion to what was written since the last compaction, not to what is kept: a record written in
(last, C] condemns the version before it, and nothing else can have been condemned. The job walks those revisions in the
log, drops the condemned from the log slice by slice, and at its end cuts the histories. Histories are only appended to
meanwhile, so the places it remembers stay right.

A pin (``Store.pin``) stops the job at the pinned revision until it is released.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from kvserver.mvcc.records import Tombstone, key_of, mod_revision
from kvserver.mvcc.revision_log import Entry

if TYPE_CHECKING:
    from kvserver.mvcc.store import Store

SLICE_RECORDS = 4000
"""Records that one slice looks at: about 10 ms."""


class CompactionJob:
    """The physical side of a store's compactions, one after the other."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.done_revision = -1
        self._running: Iterator[None] | None = None

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
        places: dict[bytes, int] = {}
        dead: list[tuple[int, bytes]] = []
        seen = 0
        for main, entry in log.items(max(0, self.done_revision), revision + 1):
            if main == self.done_revision:
                # Only tombstones are left to do of the last target's own revision.
                for record in _members(entry):
                    if type(record) is Tombstone:
                        self._visit(record, main, revision, places, dead)
            else:
                for record in _members(entry):
                    self._visit(record, main, revision, places, dead)
            seen += len(entry) if isinstance(entry, tuple) else 1
            if seen >= SLICE_RECORDS:
                log.remove(dead)
                dead.clear()
                seen = 0
                yield
        log.remove(dead)
        yield
        for key, place in places.items():
            self._cut(key, place, revision)
            seen += 1
            if seen >= SLICE_RECORDS:
                seen = 0
                yield
        self.done_revision = revision

    def _visit(
        self, record: bytes, main: int, target: int, places: dict[bytes, int], dead: list[tuple[int, bytes]]
    ) -> None:
        """Condemn what ``record`` replaced, and itself if it is an old tombstone."""
        store = self._store
        key = key_of(record)
        history = store._history.get(key)
        if history is None:
            places[key] = 0
            return
        versions = history if isinstance(history, list) else [history]
        place = places.get(key)
        if place is None:
            place = 0 if versions[0] is record else 1
        else:
            place += 1
        places[key] = place
        if place > 0:
            previous = versions[place - 1]
            if type(previous) is not Tombstone:
                dead.append((mod_revision(previous), previous))
                store.size_bytes -= len(previous)
        if type(record) is Tombstone and main < target:
            dead.append((main, record))
            store.size_bytes -= len(record)

    def _cut(self, key: bytes, place: int, target: int) -> None:
        """Cut a history before ``place``, the version that is current at the target."""
        store = self._store
        history = store._history.get(key)
        if history is None:
            return
        versions = history if isinstance(history, list) else [history]
        if place < len(versions):
            current = versions[place]
            if type(current) is Tombstone and mod_revision(current) < target:
                place += 1
        if place == 0:
            return
        if place >= len(versions):
            del store._history[key]
            if key not in store._live:
                store._deleted.remove(key)
        elif place == len(versions) - 1:
            store._history[key] = versions[place]
        elif isinstance(history, list):
            del history[:place]


def _members(entry: Entry) -> Iterator[bytes]:
    if isinstance(entry, tuple):
        for member in entry:
            if member is not None:
                yield member
    else:
        yield entry
