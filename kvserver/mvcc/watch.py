"""WatchableStore: a store and those who watch it.

A watcher is *synced* when it has been given everything up to the revision that was last announced, else *unsynced*.
Synced watchers stand in an index by key and range, and :meth:`WatchableStore.flush` announces what was written since
the last flush to them. Unsynced ones catch up from the revision log, a slice a step, in
:meth:`WatchableStore.sync_unsynced`.

::

    watch(from now on) ---> synced ----------------------+
                              ^                          | deliver answered False (slow),
            caught up         |                          |
                              |                          v
    watch(from the past) --> unsynced <--- resume ----- held

The watchers of a slow stream are *held* until it resumes; each keeps only the revision it needs next, no events. When
compaction overtakes that revision, the watcher is cancelled with the compact revision.

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
from bisect import bisect_left
from collections.abc import Callable, Generator
from itertools import islice
from typing import Protocol

from kvserver import errors
from kvserver.limits import WATCH_FLUSH_DELIVERIES_MAX as FLUSH_DELIVERIES_MAX
from kvserver.limits import WATCH_FLUSH_MATCHES_MAX as FLUSH_MATCHES_MAX
from kvserver.limits import WATCH_SYNC_MATCHES as SYNC_MATCHES
from kvserver.limits import WATCH_SYNC_WATCHERS as SYNC_WATCHERS
from kvserver.mvcc.records import decode, event, event_with_previous, is_tombstone, key_of
from kvserver.mvcc.store import Store
from kvserver.mvcc.watchers import Group, WatcherIndex
from kvserver.proto.rpc_pb2 import WatchCreateRequest

INVALID_WATCH_ID = -1
"""The id that stands for no watcher: a refused creation, or progress of a whole stream."""

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
        # The first revision it has not been given; of a synced watcher only if above the last announced one.
        self.needs = needs
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
        self.deliver = sink.deliver
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
        needs = start_revision or watchable.store.revision + 1
        watcher = Watcher(self, watch_id, start, end, needs, variant)
        watcher.progress = progress_notify
        self.watchers[watch_id] = watcher
        if needs > watchable.announced:
            watchable.make_synced(watcher)
        else:
            watchable.make_unsynced(watcher)
            watchable.wake()
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
        if not self._watchable.settled:
            return False
        revision = self._watchable.announced
        for watcher in self.watchers.values():
            if not watcher.synced or watcher.needs > revision + 1:
                return False
        self.sink.progress(INVALID_WATCH_ID, revision)
        return True

    def report_progress(self) -> None:
        """Report the progress of each watcher that asked for it and had no event since the last report."""
        if not self._watchable.settled:
            return
        revision = self._watchable.announced
        for watcher in list(self.watchers.values()):
            if watcher.progress:
                if watcher.idle and watcher.synced and watcher.needs <= revision + 1:
                    self.sink.progress(watcher.watch_id, revision)
                watcher.idle = True

    def resume(self) -> None:
        """Learn that the sink has room again."""
        if self.held:
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
        """Up to here synced watchers have been told, or are being told while ``_announcing``."""
        self._announcing: Generator[None, None, None] | None = None
        self.streams: dict[int, WatchStream] = {}
        self.progress_interval_ticks = progress_interval_ticks
        self.wake: Callable[[], None] = _no_wake
        """Called when there is something for :meth:`sync_unsynced` that no flush or sync brought about."""
        self._synced = WatcherIndex()
        self._unsynced: dict[Watcher, None] = {}
        self._held: dict[Watcher, None] = {}
        self._next_stream = 0
        self._ticks = 0
        self._due: list[tuple[int, int]] = []
        self._cancelled_below = store.compact_revision
        store.before_compaction.append(self._flush_all)

    @property
    def watcher_count(self) -> int:
        """Watchers of all streams."""
        return self._synced.count + len(self._unsynced) + len(self._held)

    @property
    def unsynced_count(self) -> int:
        """Watchers that are behind."""
        return len(self._unsynced) + len(self._held)

    @property
    def has_work(self) -> bool:
        """Whether :meth:`sync_unsynced` has something to do."""
        return bool(self._unsynced) or not self.settled or self._cancelled_below != self.store.compact_revision

    def new_stream(self, sink: WatchSink) -> WatchStream:
        """Open a stream of watchers that deliver to ``sink``."""
        stream = WatchStream(self, sink, self._next_stream)
        self._next_stream += 1
        self.streams[stream.number] = stream
        return stream

    # -- the sets -----------------------------------------------------------------------------------------------------

    def make_synced(self, watcher: Watcher) -> None:
        """Let a watcher follow the announcements."""
        watcher.synced = True
        self._synced.add(watcher)

    def make_unsynced(self, watcher: Watcher) -> None:
        """Let a watcher catch up from the log."""
        if watcher.synced:
            watcher.synced = False
            self._synced.remove(watcher)
        (self._held if watcher.stream.held else self._unsynced)[watcher] = None

    def forget(self, watcher: Watcher) -> None:
        """Drop a watcher."""
        if watcher.synced:
            watcher.synced = False
            self._synced.remove(watcher)
        else:
            self._unsynced.pop(watcher, None)
            self._held.pop(watcher, None)

    def resumed(self, stream: WatchStream) -> None:
        """Take note that a stream has room again; its watchers catch up in the next slices."""
        for watcher in stream.watchers.values():
            if watcher in self._held:
                del self._held[watcher]
                self._unsynced[watcher] = None
        self.wake()

    def adopted(self) -> None:
        """Take note that the store took over the state of a snapshot: everybody catches up from its log."""
        while self._announcing is not None:
            self.flush()
        for stream in self.streams.values():
            for watcher in stream.watchers.values():
                if watcher.synced:
                    watcher.needs = max(watcher.needs, self.announced + 1)
                    self.make_unsynced(watcher)
        self.announced = self.store.revision

    # -- announcing ---------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether the synced watchers have been told everything."""
        return self._announcing is None and self.announced == self.store.revision

    def _flush_all(self) -> None:
        while not self.settled:
            self.flush()

    def flush(self) -> None:
        """Announce what was written since the last flush to the synced watchers, within the limits of one flush."""
        if self._announcing is not None:
            self._announce_more()
            return
        store = self.store
        first, last = self.announced + 1, store.revision
        if first > last:
            return
        index = self._synced
        if not index.count:
            self.announced = last
            return
        touched: dict[Group, None] = {}
        find = index.find
        budget = FLUSH_MATCHES_MAX
        for revision, entry in store.log.items(first, last + 1):
            for record in entry if isinstance(entry, tuple) else (entry,):
                if record is not None:
                    groups = find(key_of(record))
                    budget -= 1 + len(groups)
                    for group in groups:
                        group.records.append((revision, record))
                        touched[group] = None
            if budget <= 0:
                last = revision
                break
        self.announced = last
        if touched:
            work = [(group, group.records) for group in touched]
            for group in touched:
                group.records = []
            self._announcing = self._announce(work)
            self._announce_more()

    def _announce_more(self) -> None:
        if self._announcing is not None and next(self._announcing, _DONE) is _DONE:
            self._announcing = None

    def _announce(self, work: list[tuple[Group, list[tuple[int, bytes]]]]) -> Generator[None, None, None]:
        """Deliver what groups collected, a bounded number of deliveries a step."""
        budget = FLUSH_DELIVERIES_MAX
        for group, records in work:
            for variant, members in list(group.watchers.items()):
                events = self._events(records, variant)
                if not events:
                    continue
                watchers = list(members)
                for start in range(0, len(watchers), FLUSH_DELIVERIES_MAX):
                    part = watchers[start : start + FLUSH_DELIVERIES_MAX]
                    if budget < len(part):
                        yield
                        budget = FLUSH_DELIVERIES_MAX
                    budget -= len(part)
                    self._announce_to(part, records, events, variant)

    def _announce_to(
        self, watchers: list[Watcher], records: list[tuple[int, bytes]], events: list[bytes], variant: int
    ) -> None:
        """Deliver to watchers of one group and variant. Hot: one step a watcher (benchmark ``watch fan-out``)."""
        first = records[0][0]
        last = records[-1][0]
        for watcher in watchers:
            if watcher.needs > first:
                needs = watcher.needs
                late = self._events([item for item in records if item[0] >= needs], variant)
                if not watcher.synced or not late or self._deliver(watcher, last, late):
                    continue
            else:
                stream = watcher.stream
                if not watcher.synced:
                    continue  # it was ended while others were told
                if not stream.held:
                    if stream.deliver(watcher.watch_id, last, events):
                        watcher.idle = False
                        continue
                    stream.held = True
                if not watcher.synced:
                    continue
            watcher.needs = max(watcher.needs, first)
            self.make_unsynced(watcher)

    @staticmethod
    def _deliver(watcher: Watcher, revision: int, events: list[bytes]) -> bool:
        stream = watcher.stream
        if stream.held:
            return False
        if stream.deliver(watcher.watch_id, revision, events):
            watcher.idle = False
            return True
        stream.held = True
        return False

    def _events(self, records: list[tuple[int, bytes]], variant: int) -> list[bytes]:
        """Compose the events of records, for watchers of one variant."""
        if not variant:
            return [event(record) for _, record in records]
        if variant & _NO_PUT:
            records = [item for item in records if is_tombstone(item[1])]
        if variant & _NO_DELETE:
            records = [item for item in records if not is_tombstone(item[1])]
        if not variant & _PREVIOUS:
            return [event(record) for _, record in records]
        return [self._event_with_previous(revision, record) for revision, record in records]

    def _event_with_previous(self, revision: int, record: bytes) -> bytes:
        if not is_tombstone(record) and decode(record).version == 1:
            return event(record)
        if revision - 1 < self.store.compact_revision:
            return event(record)
        previous = self.store.get_at(key_of(record), revision - 1)
        return event(record) if previous is None else event_with_previous(record, previous)

    # -- catching up --------------------------------------------------------------------------------------------------

    def sync_unsynced(self) -> bool:
        """Do one slice of what is left: announcing, cancelling, catching up.

        Returns:
            Whether there is more that can be done now.
        """
        self.flush()
        if self._cancelled_below != self.store.compact_revision:
            self._cancelled_below = self.store.compact_revision
            self._cancel_overtaken(list(self._held))
        chosen = self._choose()
        if chosen:
            self._catch_up(chosen)
        return bool(self._unsynced) or not self.settled

    def _cancel_overtaken(self, watchers: list[Watcher]) -> None:
        """Cancel those of the watchers that need revisions which are compacted."""
        compacted = self.store.compact_revision
        for watcher in watchers:
            if watcher.needs < compacted:
                self.forget(watcher)
                del watcher.stream.watchers[watcher.watch_id]
                watcher.stream.sink.cancelled(watcher.watch_id, compacted, "")

    def _choose(self) -> list[Watcher]:
        """Choose who catches up together: the first in turn, and who is about as far as it."""
        waiting = list(islice(self._unsynced, 2 * SYNC_WATCHERS))
        if not waiting:
            return []
        compacted = self.store.compact_revision
        overtaken = [watcher for watcher in waiting if watcher.needs < compacted]
        if overtaken:
            self._cancel_overtaken(overtaken)
            waiting = [watcher for watcher in waiting if watcher.needs >= compacted]
        chosen: list[Watcher] = []
        for watcher in waiting:
            if watcher.stream.held:
                del self._unsynced[watcher]
                self._held[watcher] = None
            elif not chosen:
                chosen.append(watcher)
                low = watcher.needs
            elif low <= watcher.needs <= low + SYNC_MATCHES and len(chosen) < SYNC_WATCHERS:
                chosen.append(watcher)
        return chosen

    def _catch_up(self, chosen: list[Watcher]) -> None:
        """Read one slice of the log for the chosen, of whom the first needs the oldest revision, and deliver it."""
        index = WatcherIndex()
        for watcher in chosen:
            index.add(watcher)
        touched: dict[Group, None] = {}
        budget = SYNC_MATCHES
        reached = self.announced
        for revision, entry in self.store.log.items(chosen[0].needs, self.announced + 1):
            for record in entry if isinstance(entry, tuple) else (entry,):
                if record is not None:
                    groups = index.find(key_of(record))
                    budget -= 1 + len(groups)
                    for group in groups:
                        group.records.append((revision, record))
                        touched[group] = None
            if budget <= 0:
                reached = revision
                break
        for group in touched:
            for variant, members in group.watchers.items():
                self._deliver_past(group.records, variant, members, reached)
        for watcher in chosen:
            if watcher.stream.watchers.get(watcher.watch_id) is not watcher:
                continue  # its sink ended it meanwhile
            if watcher.stream.held and watcher.needs <= reached:
                del self._unsynced[watcher]
                self._held[watcher] = None
                continue
            watcher.needs = max(watcher.needs, reached + 1)
            del self._unsynced[watcher]
            if watcher.needs > self.announced:
                self.make_synced(watcher)
            else:
                self._unsynced[watcher] = None  # behind the others: all get their turn

    def _deliver_past(
        self, records: list[tuple[int, bytes]], variant: int, members: dict[Watcher, None], reached: int
    ) -> None:
        """Deliver records up to ``reached`` to watchers of one group and variant, each from what it needs on."""
        cache: dict[int, list[bytes]] = {}
        for watcher in members:
            start = bisect_left(records, watcher.needs, key=_revision_of)
            if start == len(records):
                continue
            events = cache.get(start)
            if events is None:
                events = cache[start] = self._events(records[start:] if start else records, variant)
            if not events or self._deliver(watcher, reached, events):
                watcher.needs = reached + 1

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


def _revision_of(item: tuple[int, bytes]) -> int:
    return item[0]


def _no_wake() -> None:
    """Nobody is to be woken."""


_DONE = object()
