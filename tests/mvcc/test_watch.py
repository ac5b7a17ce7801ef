"""Watch streams: creation, delivery, slow streams, catching up, compaction, progress."""

from __future__ import annotations

import pytest

from kvserver.mvcc import Store, WatchableStore, WatchStream
from kvserver.mvcc import watch as watch_module
from kvserver.mvcc.ranges import run
from kvserver.mvcc.watch import DuplicateWatchIdError, EmptyWatchRangeError, NegativeStartRevisionError
from kvserver.proto.kv_pb2 import Event
from kvserver.proto.rpc_pb2 import WatchCreateRequest
from tests.mvcc.sinks import Sink


class World:
    """A store, one stream, and what it got."""

    def __init__(self) -> None:
        self.store = Store()
        self.watchable = WatchableStore(self.store, progress_interval_ticks=100)
        self.sink = Sink()
        self.stream: WatchStream = self.watchable.new_stream(self.sink)
        self.woken = 0
        self.watchable.wake = self.wake

    def wake(self) -> None:
        self.woken += 1

    def put(self, *keys: bytes) -> None:
        for key in keys:
            self.store.put(key, b"v%d" % self.store.revision)

    def settle(self) -> None:
        self.watchable.flush()
        while self.watchable.sync_unsynced():
            pass


@pytest.fixture
def world() -> World:
    return World()


# -- creation ---------------------------------------------------------------------------------------------------------


def test_ids_are_chosen_by_the_stream_or_by_the_client(world: World) -> None:
    watch = world.stream.watch
    assert watch(b"k") == (0, 2)
    assert watch(b"k", watch_id=2) == (2, 2)
    assert watch(b"k")[0] == 1
    assert watch(b"k")[0] == 3
    with pytest.raises(DuplicateWatchIdError, match="mvcc: duplicate watch ID provided on the WatchStream"):
        watch(b"k", watch_id=3)
    assert world.stream.cancel(3)
    assert not world.stream.cancel(3)
    assert watch(b"k", watch_id=3)[0] == 3
    other = world.watchable.new_stream(Sink())
    assert other.watch(b"k")[0] == 0
    assert world.watchable.watcher_count == 5


def test_what_is_refused(world: World) -> None:
    with pytest.raises(NegativeStartRevisionError, match="etcdserver: mvcc: required revision has been compacted"):
        world.stream.watch(b"k", start_revision=-1)
    for end in (b"k", b"a"):
        with pytest.raises(EmptyWatchRangeError, match="mvcc: watcher range is empty"):
            world.stream.watch(b"k", end)
    assert world.stream.watchers == {}


def test_the_empty_key_is_the_first_there_can_be(world: World) -> None:
    world.stream.watch(b"")
    world.stream.watch(b"", b"\0")
    world.put(b"\0", b"a")
    world.settle()
    assert world.sink.revisions(0) == [2]
    assert world.sink.revisions(1) == [2, 3]


# -- delivery ---------------------------------------------------------------------------------------------------------


def test_keys_ranges_and_prefixes(world: World) -> None:
    for key, end in ((b"b", b""), (b"b", b"d"), (b"b", b"\0"), (b"b", b"c")):
        world.stream.watch(key, end)
    world.put(b"a", b"b", b"bb", b"c", b"d")
    world.settle()
    assert [world.sink.revisions(watch_id) for watch_id in range(4)] == [[3], [3, 4, 5], [3, 4, 5, 6], [3, 4]]


def test_a_txn_is_one_delivery(world: World) -> None:
    world.stream.watch(b"a", b"z")
    with world.store.txn():
        world.put(b"a", b"b")
        world.store.delete_range(b"a")
        world.put(b"zz")
    world.watchable.flush()
    ((revision, events),) = world.sink.deliveries[0]
    assert revision == 2
    assert [(event.type, event.kv.key) for event in events] == [
        (Event.PUT, b"a"),
        (Event.PUT, b"b"),
        (Event.DELETE, b"a"),
    ]


def test_a_delete_holds_key_and_revision_only(world: World) -> None:
    world.put(b"a")
    world.stream.watch(b"a")
    world.store.delete_range(b"a")
    world.settle()
    (event,) = world.sink.events(0)
    assert event == Event(type=Event.DELETE, kv={"key": b"a", "mod_revision": 3})  # type: ignore[arg-type]


def test_filters(world: World) -> None:
    world.stream.watch(b"a", filters=(WatchCreateRequest.NOPUT,))
    world.stream.watch(b"a", filters=(WatchCreateRequest.NODELETE,))
    world.stream.watch(b"a", filters=(WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE))
    for _ in range(2):
        world.put(b"a")
        world.watchable.flush()
        world.store.delete_range(b"a")
        world.watchable.flush()
    assert world.sink.revisions(0) == [3, 5]
    assert world.sink.revisions(1) == [2, 4]
    assert world.sink.revisions(2) == []


def test_prev_kv_is_absent_on_create_and_when_compacted(world: World) -> None:
    world.put(b"a", b"a")
    world.store.delete_range(b"a")
    world.put(b"a")
    run(world.store.compact(4))
    world.stream.watch(b"a", prev_kv=True)
    world.stream.watch(b"a", start_revision=4, prev_kv=True)
    world.put(b"a")
    world.settle()
    assert [event.prev_kv.mod_revision for event in world.sink.events(0)] == [5]
    assert [(event.kv.mod_revision, event.prev_kv.mod_revision) for event in world.sink.events(1)] == [
        (4, 0),
        (5, 0),
        (6, 5),
    ]


def test_watchers_of_one_group_share_the_list_of_events() -> None:
    taken: list[list[bytes]] = []

    class Keeping(Sink):
        def deliver(self, watch_id: int, revision: int, events: list[bytes]) -> bool:
            taken.append(events)
            return True

    watchable = WatchableStore(Store())
    stream = watchable.new_stream(Keeping())
    for _ in range(3):
        stream.watch(b"a")
    watchable.store.put(b"a", b"")
    watchable.flush()
    assert len(taken) == 3
    assert taken[0] is taken[1] is taken[2]


def test_a_future_start_delivers_nothing_earlier(world: World) -> None:
    world.stream.watch(b"a", start_revision=4)
    world.put(b"a", b"a")
    world.watchable.flush()
    world.put(b"a", b"a")
    world.watchable.flush()
    assert world.sink.revisions(0) == [4, 5]


def test_nothing_before_the_creation_is_delivered_though_it_was_not_announced_yet(world: World) -> None:
    world.stream.watch(b"a")
    world.put(b"a")
    assert world.stream.watch(b"a") == (1, 3)
    world.put(b"a")
    world.settle()
    assert world.sink.revisions(0) == [2, 3]
    assert world.sink.revisions(1) == [3]


def test_a_wide_fan_out_is_announced_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "FLUSH_DELIVERIES_MAX", 10)
    for _ in range(35):
        world.stream.watch(b"a")
    world.put(b"a")
    world.watchable.flush()
    assert len(world.sink.deliveries) == 10
    assert not world.stream.request_progress()
    assert len(world.sink.deliveries) == 20
    world.put(b"a")
    world.stream.cancel(30)
    assert world.stream.watch(b"a", start_revision=2, watch_id=99) == (99, 2)
    world.settle()
    assert all(world.sink.revisions(watch_id) == [2, 3] for watch_id in (*range(30), *range(31, 35), 99))
    assert world.sink.revisions(30) == []
    assert world.stream.request_progress()


# -- catching up ------------------------------------------------------------------------------------------------------


def test_a_start_in_the_past_is_caught_up_without_gap_or_repetition(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "SYNC_MATCHES", 10)
    for number in range(50):
        world.put(b"a" if number % 2 else b"b")
    world.watchable.flush()
    world.stream.watch(b"a", start_revision=5)
    world.stream.watch(b"a", b"z", start_revision=40)
    assert world.woken == 2
    assert world.watchable.unsynced_count == 2
    steps = 0
    while world.watchable.sync_unsynced():
        steps += 1
        world.put(b"a")
    assert steps >= 5
    assert world.watchable.unsynced_count == 0
    world.settle()
    last = world.store.revision
    assert world.sink.revisions(0) == [r for r in range(5, last + 1) if r > 51 or r % 2]
    assert world.sink.revisions(1) == list(range(40, last + 1))


def test_the_compact_revision_itself_may_be_watched_from(world: World) -> None:
    world.put(b"a", b"a")
    world.store.delete_range(b"a")
    run(world.store.compact(4))
    world.stream.watch(b"a", start_revision=4)
    world.settle()
    assert [event.type for event in world.sink.events(0)] == [Event.DELETE]
    assert world.sink.cancellations == []


def test_below_the_compact_revision_a_watcher_is_cancelled(world: World) -> None:
    world.put(b"a", b"a", b"a")
    world.store.compact(4)
    assert world.stream.watch(b"a", start_revision=3) == (0, 3)
    world.settle()
    assert world.sink.cancellations == [(0, 4, "")]
    assert world.sink.deliveries == {}
    assert not world.stream.cancel(0)
    assert world.watchable.watcher_count == 0


# -- slow streams -----------------------------------------------------------------------------------------------------


def test_a_slow_stream_gets_everything_after_it_resumed(world: World) -> None:
    fast = Sink()
    world.watchable.new_stream(fast).watch(b"a")
    world.stream.watch(b"a")
    world.stream.watch(b"b")
    world.sink.full = True
    for _ in range(5):
        world.put(b"a", b"b")
        world.settle()
    assert world.sink.refused == 1, "a full sink is asked once until it resumes"
    assert not world.watchable.sync_unsynced(), "there is nothing to do for a held stream"
    assert fast.revisions(0) == [2, 4, 6, 8, 10]
    world.sink.full = False
    world.stream.resume()
    assert world.woken == 1
    world.settle()
    assert world.sink.revisions(0) == [2, 4, 6, 8, 10]
    assert world.sink.revisions(1) == [3, 5, 7, 9, 11]
    assert world.watchable.unsynced_count == 0
    world.put(b"a")
    world.settle()
    assert world.sink.revisions(0)[-1] == 12


def test_a_slow_stream_that_compaction_overtakes_is_cancelled(world: World) -> None:
    world.stream.watch(b"a")
    world.stream.watch(b"x")
    world.sink.full = True
    world.put(b"a", b"a", b"a")
    world.settle()
    run(world.store.compact(4))
    world.settle()
    assert world.sink.cancellations == [(0, 4, "")]
    assert list(world.stream.watchers) == [1]


def test_compaction_takes_nothing_from_synced_watchers(world: World) -> None:
    world.stream.watch(b"a")
    world.put(b"a", b"a", b"a")
    run(world.store.compact(4))
    assert world.sink.revisions(0) == [2, 3, 4]


# -- progress ---------------------------------------------------------------------------------------------------------


def test_requested_progress_is_one_answer_for_the_stream_if_all_are_synced(world: World) -> None:
    assert world.stream.request_progress()
    assert world.sink.reports == [(-1, 1)]
    world.put(b"a", b"a")
    world.watchable.flush()
    world.stream.watch(b"a")
    world.stream.watch(b"a", start_revision=2)
    assert not world.stream.request_progress()
    world.settle()
    assert world.stream.request_progress()
    assert world.sink.reports == [(-1, 1), (-1, 3)]
    world.stream.watch(b"a", start_revision=9)
    assert not world.stream.request_progress(), "nothing is known of revisions that do not exist yet"


def test_periodic_progress_of_idle_watchers(world: World) -> None:
    world.stream.watch(b"a", progress_notify=True)
    world.stream.watch(b"b")
    world.stream.watch(b"c", progress_notify=True)
    for tick in range(1, 100):
        world.watchable.tick(tick)
    assert world.sink.reports == []
    world.put(b"a")
    world.watchable.flush()
    world.watchable.tick(100)
    assert world.sink.reports == [(2, 2)], "whoever got an event needs no report"
    for tick in range(101, 201):
        world.watchable.tick(tick)
    assert world.sink.reports == [(2, 2), (0, 2), (2, 2)]


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_closed_stream_gets_nothing_more(world: World) -> None:
    world.stream.watch(b"a", progress_notify=True)
    world.stream.watch(b"a", start_revision=1)
    world.stream.close()
    world.put(b"a")
    world.settle()
    world.watchable.tick(1000)
    assert world.sink.deliveries == {}
    assert world.sink.reports == []
    assert world.watchable.watcher_count == 0
    assert world.watchable.streams == {}


def test_watchers_outlive_the_adoption_of_a_snapshot(world: World) -> None:
    other = Store()
    for _ in range(10):
        other.put(b"a", b"")
    world.stream.watch(b"a")
    world.put(b"a")
    world.watchable.flush()
    run(other.compact(3))
    world.store.adopt(Store.restore(other.snapshot()))
    world.watchable.adopted()
    world.settle()
    assert world.sink.revisions(0) == list(range(2, 12))
    world.put(b"a")
    world.settle()
    assert world.sink.revisions(0)[-1] == 12
