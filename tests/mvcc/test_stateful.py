"""The store and its watchers against the dumb twin, under every order of operations hypothesis can think of."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvserver import errors
from kvserver.lease import Lessor
from kvserver.mvcc import (
    RangeOptions,
    RangeResult,
    Store,
    WatchableStore,
    WatchStream,
    compaction,
    hashing,
    ordered,
    revision_log,
    snapshot,
)
from kvserver.mvcc import store as store_module
from kvserver.mvcc import watch as watch_module
from kvserver.mvcc.ranges import run
from kvserver.mvcc.records import decode
from kvserver.proto.kv_pb2 import Event, KeyValue
from tests.mvcc.sinks import Sink
from tests.mvcc.twin import Twin, holds

LEASES = (7, 8)
keys = st.sampled_from([b"a", b"aa", b"b", b"c", b"d"])
ends = st.sampled_from([b"", b"", b"\0", b"b", b"c", b"e"])
values = st.sampled_from([b"", b"x", b"y" * 200])
leases = st.sampled_from((0, 0, *LEASES))
writes = st.one_of(
    st.tuples(st.just("put"), keys, values, leases),
    st.tuples(st.just("delete"), keys, ends, st.just(0)),
)
backs = st.integers(0, 12)


@pytest.fixture(autouse=True, scope="module")
def _small_slices() -> Iterator[None]:
    """Make every slice, chunk and bucket so small that a handful of keys takes many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "SLICE_RECORDS", 2)
        patch.setattr(hashing, "SLICE_RECORDS", 2)
        patch.setattr(revision_log, "CHUNK_ENTRIES", 4)
        patch.setattr(store_module, "CHUNK_ENTRIES", 4)
        patch.setattr(store_module, "SLICE_KEYS", 2)
        patch.setattr(ordered, "LOAD", 2)
        patch.setattr(snapshot, "BLOCK_BYTES", 100)
        patch.setattr(watch_module, "FLUSH_DELIVERIES_MAX", 2)
        patch.setattr(watch_module, "FLUSH_MATCHES_MAX", 3)
        patch.setattr(watch_module, "SYNC_MATCHES", 3)
        patch.setattr(watch_module, "SYNC_WATCHERS", 2)
        yield


@dataclass
class Watch:
    """What a watcher asked for, and where."""

    stream: WatchStream
    sink: Sink
    watch_id: int
    key: bytes
    end: bytes
    first: int
    prev_kv: bool
    filters: tuple[int, ...]


def lessor() -> Lessor:
    made = Lessor()
    for lease in LEASES:
        made.grant(lease, 60)
    return made


class StoreMachine(RuleBasedStateMachine):
    """Two replicas and the twin; replica B compacts at other times and is restored from A's snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin()
        self.a = Store(lessor())
        self.b = Store(lessor())
        self.watchable = WatchableStore(self.a)
        self.sinks: list[tuple[WatchStream, Sink]] = []
        self.watches: list[Watch] = []
        self.jobs: list[Generator[None, None, None]] = []
        self.jobs_b: list[Generator[None, None, None]] = []
        self.pinned: list[tuple[Generator[None, None, RangeResult], list[KeyValue]]] = []
        for _ in range(2):
            sink = Sink()
            self.sinks.append((self.watchable.new_stream(sink), sink))

    # -- writes -------------------------------------------------------------------------------------------------------

    @rule(changes=st.lists(writes, min_size=1, max_size=4))
    def write(self, changes: list[tuple[str, bytes, bytes, int]]) -> None:
        self.twin.begin()
        for replica in (self.a, self.b):
            replica.begin()
        put: set[bytes] = set()
        for kind, key, argument, lease in changes:
            if kind == "put" and key in put:
                continue  # a txn puts a key at most once
            if kind == "put":
                put.add(key)
                self.twin.put(key, argument, lease)
                self.a.put(key, argument, lease)
                self.b.put(key, argument, lease)
            else:
                gone = self.twin.delete(key, argument)
                assert [decode(record) for record in self.a.delete_range(key, argument)] == gone
                self.b.delete_range(key, argument)
        self.twin.end()
        assert self.a.end() == self.b.end() == self.twin.revision

    @rule(key=keys, value=values, lease=leases)
    def put(self, key: bytes, value: bytes, lease: int) -> None:
        before = self.twin.at(key, self.twin.revision)
        self.twin.begin()
        self.twin.put(key, value, lease)
        self.twin.end()
        replaced = self.a.put(key, value, lease)
        self.b.put(key, value, lease)
        assert (None if replaced is None else decode(replaced)) == before

    # -- reads --------------------------------------------------------------------------------------------------------

    @rule(key=keys, end=ends, back=backs, limit=st.integers(0, 3))
    def read(self, key: bytes, end: bytes, back: int, limit: int) -> None:
        revision = max(1, self.twin.revision - back)
        options = RangeOptions(revision=revision, limit=limit)
        if revision < self.twin.compacted:
            try:
                self.a.range(key, end, options)
            except errors.CompactedError:
                return
            raise AssertionError("read below the compact revision")
        expected = self.twin.range(key, end, revision)
        result = self.a.range(key, end, options)
        assert [decode(record) for record in result.kvs] == (expected[:limit] if limit else expected)
        assert result.count == len(expected)
        assert result.more == (0 < limit < len(expected))

    @rule(back=backs)
    def begin_pinned_read(self, back: int) -> None:
        revision = self.twin.revision - back
        if revision < max(1, self.twin.compacted):
            return
        expected = self.twin.range(b"\0", b"\0", revision)
        if len(self.a._order) <= 2:
            return  # one slice is all, there is nothing to pin
        reader = self.a.range_slices(b"\0", b"\0", RangeOptions(revision=revision))
        next(reader)
        self.pinned.append((reader, expected))

    @precondition(lambda self: self.pinned)
    @rule()
    def end_pinned_read(self) -> None:
        reader, expected = self.pinned.pop(0)
        assert [decode(record) for record in run(reader).kvs] == expected

    # -- compaction ---------------------------------------------------------------------------------------------------

    @rule(back=backs)
    def compact(self, back: int) -> None:
        revision = self.twin.revision - back
        if revision <= self.twin.compacted or revision < 1:
            return
        self.twin.compacted = revision
        self.jobs.append(self.a.compact(revision))
        self.jobs_b.append(self.b.compact(revision))

    @precondition(lambda self: self.jobs)
    @rule(steps=st.integers(1, 6))
    def remove(self, steps: int) -> None:
        step(self.jobs, steps)

    @precondition(lambda self: self.jobs_b)
    @rule(steps=st.integers(1, 6))
    def remove_b(self, steps: int) -> None:
        step(self.jobs_b, steps)

    # -- hashes and snapshots -----------------------------------------------------------------------------------------

    @rule(back=backs)
    def replicas_hash_alike(self, back: int) -> None:
        revision = self.twin.revision - back
        if revision > max(self.twin.compacted, 0):
            assert self.a.hash_kv(revision) == self.b.hash_kv(revision)

    @rule(changes=st.lists(st.tuples(keys, values), max_size=3))
    def restore(self, changes: list[tuple[bytes, bytes]]) -> None:
        taken = self.a.snapshot()
        revision = self.twin.revision
        before = self.a.hash_kv()
        for key, value in changes:
            self.put(key, value, 0)
        made = lessor()
        self.b = Store.restore(list(taken), made)
        made.restore(made.snapshot(), self.b.leased_keys())
        assert self.b.hash_kv() == before
        assert self.b.revision == revision
        resumed = self.b.resume_compaction()
        self.jobs_b = [] if resumed is None else [resumed]
        for key, value in changes:
            self.b.put(key, value, 0)

    # -- watching -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.watches) < 8)
    @rule(
        which=st.integers(0, 1),
        key=keys,
        end=ends,
        back=st.integers(-3, 12),
        prev_kv=st.booleans(),
        filters=st.sampled_from([(), (), (0,), (1,)]),
    )
    def watch(self, which: int, key: bytes, end: bytes, back: int, prev_kv: bool, filters: tuple[int, ...]) -> None:
        if end not in (b"", b"\0") and end <= key:
            return
        stream, sink = self.sinks[which]
        start = 0 if back == 12 else max(1, self.twin.revision - back)
        watch_id, first = stream.watch(key, end, start, prev_kv=prev_kv, filters=filters)
        assert first == (start or self.twin.revision + 1)
        self.watches.append(Watch(stream, sink, watch_id, key, end, first, prev_kv, filters))

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        watch = data.draw(st.sampled_from(self.watches))
        self.watches.remove(watch)
        gone = watch.watch_id in [watch_id for watch_id, _, _ in watch.sink.cancellations]
        assert watch.stream.cancel(watch.watch_id) is not gone

    @rule(which=st.integers(0, 1), full=st.booleans())
    def fill(self, which: int, full: bool) -> None:
        stream, sink = self.sinks[which]
        sink.full = full
        if not full:
            stream.resume()

    @rule()
    def flush(self) -> None:
        self.watchable.flush()

    @rule()
    def sync(self) -> None:
        self.watchable.sync_unsynced()

    @rule(which=st.integers(0, 1))
    def progress(self, which: int) -> None:
        stream, sink = self.sinks[which]
        if stream.request_progress():
            revision = sink.reports[-1][1]
            assert sink.reports[-1][0] == -1
            for watch in self.watches:
                if watch.stream is stream and watch.watch_id in stream.watchers:
                    self.complete(watch, revision)

    # -- what must always hold ----------------------------------------------------------------------------------------

    def expected(self, watch: Watch, last: int) -> list[Event]:
        wanted = self.twin.events(watch.key, watch.end, watch.first, last, watch.prev_kv)
        return [event for event in wanted if event.type not in watch.filters]

    def complete(self, watch: Watch, revision: int) -> None:
        """Check that a watcher got exactly what it should have up to a revision, and nothing after."""
        got = [event for event in watch.sink.events(watch.watch_id) if event.kv.mod_revision <= revision]
        wanted = self.expected(watch, revision)
        assert len(got) == len(wanted)
        for have, want in zip(got, wanted, strict=True):
            if want.HasField("prev_kv") and not have.HasField("prev_kv"):
                want.ClearField("prev_kv")  # compacted before it was delivered
                assert want.kv.mod_revision - 1 < self.twin.compacted
            assert have == want

    @invariant()
    def watchers_got_a_prefix(self) -> None:
        for watch in self.watches:
            deliveries = watch.sink.deliveries.get(watch.watch_id, [])
            last = 0
            for revision, events in deliveries:
                assert events[0].kv.mod_revision > last, "a revision was split"
                last = revision
            self.complete(watch, last)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.a) == len(self.a._live) == len(self.a._order)
        assert list(self.a._order) == sorted(self.a._live)
        assert list(self.a._deleted) == sorted(set(self.a._history) - set(self.a._live))

    def teardown(self) -> None:
        """Let everything come to rest: everybody has everything, and nothing is kept that need not be."""
        for reader, _ in self.pinned:
            reader.close()
        for jobs in (self.jobs, self.jobs_b):
            for job in jobs:
                for _ in job:
                    pass
        for stream, sink in self.sinks:
            sink.full = False
            stream.resume()
        while self.watchable.sync_unsynced():
            pass
        for watch in self.watches:
            cancelled = [item for item in watch.sink.cancellations if item[0] == watch.watch_id]
            if cancelled:
                assert cancelled[0][1] > watch.first
            else:
                self.complete(watch, self.twin.revision)
        if self.twin.revision > max(self.twin.compacted, 0):
            assert self.a.hash_kv() == self.b.hash_kv()
        if self.twin.compacted >= self.twin.revision:
            kept = [record for _, entry in self.a.log.items(0, 1 << 40) for record in members(entry)]
            # The compact revision itself is kept whole: a txn may have put a key and deleted it.
            live = [record for record in kept if record in self.a._live.values()]
            assert sorted(live) == sorted(self.a._live.values())
            assert all(decode(record).mod_revision == self.twin.compacted for record in kept if record not in live)
        for store in (self.a, self.b):
            attached = {key: lease for lease in LEASES for key in store.leases.time_to_live(lease, 0, True).keys}
            wanted = {kv.key: kv.lease for kv in self.twin.range(b"\0", b"\0", self.twin.revision) if kv.lease}
            assert attached == wanted
        self.sizes()

    def sizes(self) -> None:
        for store in (self.a, self.b):
            kept = [record for _, entry in store.log.items(0, 1 << 40) for record in members(entry)]
            assert store.size_bytes == sum(map(len, kept))


def members(entry: object) -> list[bytes]:
    return [record for record in entry if record is not None] if isinstance(entry, tuple) else [entry]  # type: ignore


def step(jobs: list[Generator[None, None, None]], steps: int) -> None:
    for _ in range(steps):
        try:
            next(jobs[0])
        except StopIteration:
            jobs.pop(0)
            return


StoreMachine.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestStore = StoreMachine.TestCase


def test_the_twin_knows_ranges() -> None:
    assert holds(b"a", b"", b"a")
    assert not holds(b"a", b"", b"aa")
    assert holds(b"a", b"\0", b"zz")
    assert not holds(b"a", b"b", b"b")
