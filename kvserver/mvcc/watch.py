"""WatchableStore: a store and those who watch it.

A watcher is *synced* when it has been given everything up to the revision that was last announced, else *unsynced*.
Synced watchers stand in an index by key and range, and :meth:`WatchableStore.flush` announces what was written since
the last flush to them. Unsynced ones catch up from the revision log, a slice a step, in
:meth:`WatchableStore.sync_unsynced`.

::

    watch(start in the past) ----> unsynced <---- deliver answered False (slow), or beyond a flush's budget
                                     | ^
              caught up in the log   v |
    watch(from now on) ----------> synced

A slow watcher is *held* until its stream resumes; it keeps only the revision it needs next, no events. When compaction
overtakes that revision, the watcher is cancelled with the compact revision.

Guarantees, whatever the path: events of a watcher are in order of revisions, none twice, none missing, a revision is
never split over deliveries, and a progress at revision r means that all events up to r were delivered.

An event is composed once for all watchers of a group, at most once with and once without the previous version. All
watchers that get the same events get the same list object, so that the layer above can encode it once; it must not
change it.

What must not live here: messages of the Watch service (the sink's side), time. The caller says when to flush, to sync
and to tick.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from typing import Protocol

from kvserver import errors
from kvserver.mvcc.records import Tombstone, decode, event, event_with_previous, key_of
from kvserver.mvcc.revision_log import Entry
from kvserver.mvcc.store import Store
from kvserver.mvcc.watchers import Group, WatcherIndex
from kvserver.proto.rpc_pb2 import WatchCreateRequest

INVALID_WATCH_ID = -1
"""The id that stands for no watcher: a refused creation, or progress of a whole stream."""

FLUSH_DELIVERIES_MAX = 8192
"""Deliveries of one flush; watchers beyond catch up from the log, so that a wide fan-out does not hold the loop."""

SYNC_RECORDS = 2000
"""Records that one slice of catching up reads."""

SYNC_WATCHERS = 512
"""Unsynced watchers that catch up together in one slice."""

_PREVIOUS, _NO_PUT, _NO_DELETE = 1, 2, 4


class WatchError(errors.KvError):
    """A watcher was not created; ``message`` is the cancel reason to answer with id -1."""


class EmptyWatchRangeError(WatchError):
    """The end of the range is not behind its start."""

    message = "mvcc: watcher range is empty"


class DuplicateWatchIdError(WatchError):
    """The client chose an id that is in use on the stream."""

    message = "mvcc: duplicate watch ID provided on the WatchStream"


class NegativeStartRevisionError(WatchError):
    """The start revision is negative."""

    message = errors.CompactedError.message


class WatchSink(Protocol):
    """What a stream of watchers delivers to."""

    def deliver(self, watch_id: int, revision: int, events: list[bytes]) -> bool:
        """Take the events of whole revisions.

        Args:
            watch_id: the watcher.
            revision: everything up to it has now been delivered to this watcher.
            events: serialized events, each framed as ``WatchResponse.events``; shared, not to be changed.

        Returns:
            False if there is no room: nothing was taken, and nothing more comes until ``WatchStream.resume``.
        """

    def cancelled(self, watch_id: int, compact_revision: int, reason: str) -> None:
        """Learn that the server cancelled a watcher."""

    def progress(self, watch_id: int, revision: int) -> None:
        """Learn that everything up to ``revision`` was delivered; id -1 stands for every watcher of the stream."""


class Watcher:
    """One watcher. Hot: touched at every delivery (benchmark ``watch fan-out``)."""

    __slots__ = ("end", "idle", "key", "needs", "progress", "stream", "synced", "variant", "watch_id")

    def __init__(
        self, stream: WatchStream, watch_id: int, key: bytes, end: bytes | None, needs: int, variant: int
    ) -> None:
        self.stream = stream
        self.watch_id = watch_id
        self.key = key
        self.end = end
        self.needs = needs  # the first revision it has not been given
        self.variant = variant
        self.synced = False
        self.progress = False  # wants periodic progress
        self.idle = True  # got no event since the last periodic progress


def watch_range(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """Normalise the range of a watch request: empty key means from the first key on.

    Returns:
        (start, end): ``end`` b"" is the single key, None is unbounded.
    """
    return key or b"\0", None if range_end == b"\0" else range_end


class WatchStream:
    """The watchers of one client stream."""

    def __init__(self, watchable: WatchableStore, sink: WatchSink, number: int) -> None:
        self._watchable = watchable
        self.sink = sink
        self.number = number
        self.watchers: dict[int, Watcher] = {}
        self.held = False
        self.ticking = False
        self._next_id = 0

    def watch(
        self,
        key: bytes,
        range_end: bytes = b"",
        start_revision: int = 0,
        *,
        watch_id: int = 0,
        filters: tuple[int, ...] = (),
        prev_kv: bool = False,
        progress_notify: bool = False,
    ) -> tuple[int, int]:
        """Start a watcher.

        Args:
            key: first key; empty is the first key there can be.
            range_end: end of the range; empty for the single key, ``b"\\0"`` for every key >= ``key``.
            start_revision: first revision to deliver; 0 is the next one.
            watch_id: the client's choice; 0 lets the stream choose.
            filters: ``WatchCreateRequest.NOPUT``, ``NODELETE``: events not wanted.
            prev_kv: whether events carry the version they replaced.
            progress_notify: whether idle times are reported.

        Returns:
            (watch_id, first revision that will be delivered).

        Raises:
            NegativeStartRevisionError, EmptyWatchRangeError, DuplicateWatchIdError: to be answered as a refused
                creation with the error's message.
        """
        if start_revision < 0:
            raise NegativeStartRevisionError
        start, end = watch_range(key, range_end)
        if end and end <= start:
            raise EmptyWatchRangeError
        if watch_id == 0:
            while self._next_id in self.watchers:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        elif watch_id in self.watchers:
            raise DuplicateWatchIdError
        variant = _PREVIOUS if prev_kv else 0
        if WatchCreateRequest.NOPUT in filters:
            variant |= _NO_PUT
        if WatchCreateRequest.NODELETE in filters:
            variant |= _NO_DELETE
        watchable = self._watchable
        watchable.flush()
        now = watchable.store.revision
        needs = start_revision or now + 1
        watcher = Watcher(self, watch_id, start, end, needs, variant)
        watcher.progress = progress_notify
        self.watchers[watch_id] = watcher
        if needs > now:
            watchable.make_synced(watcher)
        else:
            watchable.make_unsynced(watcher)
        if progress_notify:
            watchable.start_ticking(self)
        return watch_id, needs

    def cancel(self, watch_id: int) -> bool:
        """End a watcher; False if there is none of this id."""
        watcher = self.watchers.pop(watch_id, None)
        if watcher is None:
            return False
        self._watchable.forget(watcher)
        return True

    def request_progress(self) -> bool:
        """Report the progress of the whole stream, with id -1, if every watcher has been given everything.

        Returns:
            Whether it was reported.
        """
        self._watchable.flush()
        revision = self._watchable.store.revision
        for watcher in self.watchers.values():
            if not watcher.synced or watcher.needs > revision + 1:
                return False
        self.sink.progress(INVALID_WATCH_ID, revision)
        return True

    def report_progress(self) -> None:
        """Report the progress of each watcher that asked for it and had no event since the last report."""
        revision = self._watchable.announced
        for watcher in list(self.watchers.values()):
            if watcher.progress:
                if watcher.idle and watcher.synced and watcher.needs <= revision + 1:
                    self.sink.progress(watcher.watch_id, revision)
                watcher.idle = True

    def resume(self) -> None:
        """Learn that the sink has room again."""
        self.held = False
        self._watchable.resumed(self)

    def close(self) -> None:
        """End all watchers of the stream."""
        for watcher in self.watchers.values():
            self._watchable.forget(watcher)
        self.watchers.clear()
        self._watchable.streams.pop(self.number, None)


class WatchableStore:
    """A store that announces its changes."""

    def __init__(self, store: Store, progress_interval_ticks: int = 6000) -> None:
        """Watch over a store.

        Args:
            store: the store; written to directly, whoever writes calls :meth:`flush` afterwards.
            progress_interval_ticks: ticks between the progress reports of a stream (ten minutes of 100 ms ticks).
        """
        self.store = store
        self.announced = store.revision
        self.streams: dict[int, WatchStream] = {}
        self.progress_interval_ticks = progress_interval_ticks
        self._synced = WatcherIndex()
        self._unsynced: dict[Watcher, None] = {}
        self._next_stream = 0
        self._ticks = 0
        self._due: list[tuple[int, int]] = []
        store.before_compaction.append(self.flush)

    @property
    def watcher_count(self) -> int:
        """Watchers of all streams."""
        return self._synced.count + len(self._unsynced)

    @property
    def unsynced_count(self) -> int:
        """Watchers that are behind."""
        return len(self._unsynced)

    def new_stream(self, sink: WatchSink) -> WatchStream:
        """Open a stream of watchers that deliver to ``sink``."""
        stream = WatchStream(self, sink, self._next_stream)
        self._next_stream += 1
        self.streams[stream.number] = stream
        return stream

    # -- membership of the two sets -----------------------------------------------------------------------------------

    def make_synced(self, watcher: Watcher) -> None:
        """Let a watcher follow the announcements."""
        watcher.synced = True
        self._synced.add(watcher)

    def make_unsynced(self, watcher: Watcher) -> None:
        """Let a watcher catch up from the log."""
        if watcher.synced:
            watcher.synced = False
            self._synced.remove(watcher)
        self._unsynced[watcher] = None

    def forget(self, watcher: Watcher) -> None:
        """Drop a watcher."""
        if watcher.synced:
            watcher.synced = False
            self._synced.remove(watcher)
        else:
            self._unsynced.pop(watcher, None)

    def resumed(self, stream: WatchStream) -> None:
        """Take note that a stream has room again; its watchers catch up in the next slices."""

    def adopted(self) -> None:
        """Take note that the store took over the state of a snapshot: everybody catches up from its log."""
        for stream in self.streams.values():
            for watcher in stream.watchers.values():
                if watcher.synced:
                    watcher.needs = max(watcher.needs, self.announced + 1)
                    self.make_unsynced(watcher)
        self.announced = self.store.revision

    # -- announcing ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Announce what was written since the last flush to the synced watchers."""
        store = self.store
        first, last = self.announced + 1, store.revision
        if first > last:
            return
        self.announced = last
        index = self._synced
        if not index.count:
            return
        touched: dict[Group, None] = {}
        find = index.find
        for revision, entry in store.log.items(first, last + 1):
            if isinstance(entry, tuple):
                for record in entry:
                    if record is not None:
                        for group in find(key_of(record)):
                            group.records.append((revision, record))
                            touched[group] = None
            else:
                for group in find(key_of(entry)):
                    group.records.append((revision, entry))
                    touched[group] = None
        budget = FLUSH_DELIVERIES_MAX
        for group in touched:
            budget = self._announce(group, budget)

    def _announce(self, group: Group, budget: int) -> int:
        """Deliver what a group collected; answers what is left of the budget of deliveries."""
        records = group.records
        group.records = []
        first = records[0][0]
        last = records[-1][0]
        for variant, members in list(group.watchers.items()):
            events = self._events(records, variant)
            for watcher in list(members):
                if watcher.needs > first:
                    if watcher.needs > last:
                        continue
                    needs = watcher.needs
                    late = self._events([item for item in records if item[0] >= needs], variant)
                    taken = not late or self._deliver(watcher, last, late)
                elif not events:
                    taken = True
                elif budget > 0:
                    budget -= 1
                    taken = self._deliver(watcher, last, events)
                else:
                    taken = False
                if taken:
                    watcher.needs = last + 1
                else:
                    watcher.needs = max(watcher.needs, first)
                    self.make_unsynced(watcher)
        return budget

    @staticmethod
    def _deliver(watcher: Watcher, revision: int, events: list[bytes]) -> bool:
        stream = watcher.stream
        if stream.held:
            return False
        if stream.sink.deliver(watcher.watch_id, revision, events):
            watcher.idle = False
            return True
        stream.held = True
        return False

    def _events(self, records: list[tuple[int, bytes]], variant: int) -> list[bytes]:
        """Compose the events of records, for watchers of one variant."""
        if not variant:
            return [event(record) for _, record in records]
        if variant & _NO_PUT:
            records = [item for item in records if type(item[1]) is Tombstone]
        if variant & _NO_DELETE:
            records = [item for item in records if type(item[1]) is not Tombstone]
        if not variant & _PREVIOUS:
            return [event(record) for _, record in records]
        return [self._event_with_previous(revision, record) for revision, record in records]

    def _event_with_previous(self, revision: int, record: bytes) -> bytes:
        if type(record) is not Tombstone and decode(record).version == 1:
            return event(record)
        if revision - 1 < self.store.compact_revision:
            return event(record)
        previous = self.store.get_at(key_of(record), revision - 1)
        return event(record) if previous is None else event_with_previous(record, previous)

    # -- catching up --------------------------------------------------------------------------------------------------

    def sync_unsynced(self) -> bool:
        """Let unsynced watchers catch up by one slice; True if there is more that can be done now."""
        if not self._unsynced:
            return False
        self.flush()
        compacted = self.store.compact_revision
        chosen: list[Watcher] = []
        for watcher in list(self._unsynced):
            if watcher.needs < compacted:
                self._unsynced.pop(watcher)
                watcher.stream.watchers.pop(watcher.watch_id, None)
                watcher.stream.sink.cancelled(watcher.watch_id, compacted, "")
            elif not watcher.stream.held:
                chosen.append(watcher)
        if not chosen:
            return False
        chosen.sort(key=_needs)
        chosen = chosen[:SYNC_WATCHERS]
        self._catch_up(chosen)
        return any(not watcher.stream.held for watcher in self._unsynced)

    def _catch_up(self, chosen: list[Watcher]) -> None:
        """Read one slice of the log for watchers ordered by what they need, and deliver it."""
        store = self.store
        low = chosen[0].needs
        last = self.announced
        index = WatcherIndex()
        for watcher in chosen:
            index.add(watcher)
        touched: dict[Group, None] = {}
        budget = SYNC_RECORDS
        reached = last
        for revision, entry in store.log.items(low, last + 1):
            for record in _records(entry):
                budget -= 1
                for group in index.find(key_of(record)):
                    group.records.append((revision, record))
                    touched[group] = None
            if budget <= 0:
                reached = revision
                break
        cache: dict[tuple[int, int, int], list[bytes]] = {}
        for group in touched:
            records = group.records
            for variant, members in group.watchers.items():
                for watcher in members:
                    needs = watcher.needs
                    if needs > reached:
                        continue
                    mine = records if needs <= records[0][0] else [item for item in records if item[0] >= needs]
                    if not mine:
                        continue
                    identity = (id(group), variant, len(mine))
                    events = cache.get(identity)
                    if events is None:
                        events = cache[identity] = self._events(mine, variant)
                    if events and not self._deliver(watcher, reached, events):
                        chosen.remove(watcher)
        for watcher in chosen:
            if watcher.needs <= reached:
                watcher.needs = reached + 1
            if watcher.needs > last and self._unsynced.pop(watcher, self) is None:
                self.make_synced(watcher)

    # -- progress -----------------------------------------------------------------------------------------------------

    def start_ticking(self, stream: WatchStream) -> None:
        """Schedule the periodic progress of a stream; streams are spread over a tenth of the interval."""
        if not stream.ticking:
            stream.ticking = True
            spread = stream.number % max(1, self.progress_interval_ticks // 10)
            heapq.heappush(self._due, (self._ticks + self.progress_interval_ticks + spread, stream.number))

    def tick(self, ticks: int) -> None:
        """Let time pass: report progress on the streams that are due.

        Args:
            ticks: ticks since the start.
        """
        self._ticks = ticks
        due = self._due
        while due and due[0][0] <= ticks:
            _, number = heapq.heappop(due)
            stream = self.streams.get(number)
            if stream is None:
                continue
            stream.report_progress()
            heapq.heappush(due, (ticks + self.progress_interval_ticks, number))


def _needs(watcher: Watcher) -> int:
    return watcher.needs


def _records(entry: Entry) -> Generator[bytes, None, None]:
    if isinstance(entry, tuple):
        for record in entry:
            if record is not None:
                yield record
    else:
        yield entry
