"""The watch stream: answers in order, back-pressure without loss, fragments that add up, nothing left behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver import limits
from kvserver.api.watch import SharedEvents, WatchCall
from kvserver.errors import Code
from kvserver.proto.kv_pb2 import Event
from kvserver.proto.rpc_pb2 import (
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from tests.api.fakes import FakeNode, FakeStream, as_node, as_stream


class Watching:
    """A watch call on fakes."""

    def __init__(self, node: FakeNode | None = None, shared: SharedEvents | None = None) -> None:
        self.node = node or FakeNode()
        self.stream = FakeStream()
        self.call = WatchCall(as_node(self.node), shared or SharedEvents(), as_stream(self.stream))

    def create(self, key: bytes = b"a", range_end: bytes = b"", **fields: object) -> None:
        """Send a create request."""
        create = WatchCreateRequest(key=key, range_end=range_end, **fields)  # type: ignore[arg-type]
        self.call.on_message(WatchRequest(create_request=create).SerializeToString())

    def cancel(self, watch_id: int) -> None:
        """Send a cancel request."""
        request = WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch_id))
        self.call.on_message(request.SerializeToString())

    def ask_progress(self) -> None:
        """Send a progress request."""
        self.call.on_message(WatchRequest(progress_request=WatchProgressRequest()).SerializeToString())

    def answers(self) -> list[WatchResponse]:
        """Answer what was sent since the last time."""
        return [WatchResponse.FromString(message) for message in self.stream.take()]


def test_creation_is_answered_before_events() -> None:
    watching = Watching()
    watching.create()
    watching.node.write(b"a", b"1")
    created, event = watching.answers()
    assert created.created
    assert not created.canceled
    assert created.watch_id == 0
    assert created.header.revision == 1
    assert (event.watch_id, event.header.revision) == (0, 2)
    assert [(item.type, item.kv.key, item.kv.value) for item in event.events] == [(Event.PUT, b"a", b"1")]


def test_ids_count_up_and_may_be_chosen() -> None:
    watching = Watching()
    watching.create()
    watching.create()
    watching.create(watch_id=9)
    watching.create(watch_id=9)
    assert [(answer.watch_id, answer.created, answer.canceled) for answer in watching.answers()] == [
        (0, True, False),
        (1, True, False),
        (9, True, False),
        (-1, True, True),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key": b"b", "range_end": b"a"}, "mvcc: watcher range is empty"),
        ({"start_revision": -1}, "etcdserver: mvcc: required revision has been compacted"),
    ],
)
def test_what_cannot_be_watched_is_created_and_cancelled_at_once(fields: dict[str, bytes], reason: str) -> None:
    watching = Watching()
    watching.create(**fields)
    (answer,) = watching.answers()
    assert (answer.watch_id, answer.created, answer.canceled, answer.cancel_reason) == (-1, True, True, reason)
    assert watching.node.watchable.watcher_count == 0


def test_a_cancelled_watcher_is_silent() -> None:
    watching = Watching()
    watching.create()
    watching.cancel(0)
    watching.cancel(0)
    watching.cancel(7)
    watching.node.write(b"a")
    _, cancelled = watching.answers()
    assert (cancelled.watch_id, cancelled.created, cancelled.canceled) == (0, False, True)


def test_progress_is_answered_for_the_whole_stream() -> None:
    watching = Watching()
    watching.create()
    watching.node.write(b"other")
    watching.answers()
    watching.ask_progress()
    (answer,) = watching.answers()
    assert (answer.watch_id, answer.header.revision, len(answer.events)) == (-1, 2, 0)


def test_a_compacted_start_is_cancelled_with_the_compact_revision_and_no_revision_in_the_header() -> None:
    watching = Watching()
    for _ in range(5):
        watching.node.write(b"a")
    for _ in watching.node.store.compact(4):
        pass
    watching.create(start_revision=2)
    watching.node.settle()
    created, cancelled = watching.answers()
    assert created.created
    assert (cancelled.watch_id, cancelled.canceled, cancelled.compact_revision) == (0, True, 4)
    assert cancelled.header.revision == 0
    assert cancelled.header.member_id == 8


def test_the_same_events_are_encoded_once_for_all_watchers() -> None:
    shared = SharedEvents()
    node = FakeNode()
    watchings = [Watching(node, shared) for _ in range(3)]
    for watching in watchings:
        watching.create()
        watching.create()
    node.write(b"a", b"value")
    assert shared.revision == 2
    for watching in watchings:
        answers = watching.answers()[2:]
        assert [answer.watch_id for answer in answers] == [0, 1]
        assert all(answer.events[0].kv.value == b"value" for answer in answers)


def test_a_slow_client_loses_nothing() -> None:
    watching = Watching()
    watching.create()
    watching.node.write(b"a", b"1")
    watching.answers()
    watching.stream.buffered_bytes = limits.WIRE_STREAM_HIGH_WATER_BYTES + 1
    for value in (b"2", b"3", b"4"):
        watching.node.write(b"a", value)
    watching.node.settle()
    assert watching.answers() == []
    watching.stream.buffered_bytes = 0
    watching.call.on_drained()
    watching.node.settle()
    watching.node.write(b"a", b"5")
    values = [event.kv.value for answer in watching.answers() for event in answer.events]
    assert values == [b"2", b"3", b"4", b"5"]


def test_a_slow_client_does_not_slow_others() -> None:
    node = FakeNode()
    slow, fast = Watching(node), Watching(node)
    slow.create()
    fast.create()
    slow.stream.buffered_bytes = limits.WIRE_STREAM_HIGH_WATER_BYTES + 1
    node.write(b"a", b"1")
    assert len(fast.answers()) == 2
    assert len(slow.answers()) == 1


def test_a_client_that_went_away_leaves_no_watcher() -> None:
    watching = Watching()
    watching.create()
    watching.create(start_revision=1)
    watching.stream.closed = True
    watching.call.on_closed()
    watching.call.on_closed()
    watching.call.on_drained()
    assert watching.node.watchable.watcher_count == 0
    assert watching.node.watchable.streams == {}


def test_malformed_bytes_end_the_stream_and_its_watchers() -> None:
    watching = Watching()
    watching.create()
    watching.call.on_message(b"\x0a\x7f")
    assert watching.stream.ending is not None
    assert watching.stream.ending[0] == Code.INTERNAL
    assert watching.stream.ending[1].startswith("grpc: failed to unmarshal the received message")
    assert watching.node.watchable.watcher_count == 0


def test_an_empty_request_is_ignored() -> None:
    watching = Watching()
    watching.call.on_message(b"")
    assert watching.answers() == []
    assert not watching.stream.closed


def test_half_closing_leaves_the_watchers() -> None:
    watching = Watching()
    watching.create()
    watching.call.on_half_close()
    watching.node.write(b"a")
    assert len(watching.answers()) == 2


def test_watchers_of_a_stream_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCHERS_PER_STREAM_MAX", 3)
    watching = Watching()
    for _ in range(4):
        watching.create()
    last = watching.answers()[-1]
    assert (last.watch_id, last.canceled) == (-1, True)
    assert "more than 3 watchers" in last.cancel_reason
    watching.cancel(0)
    watching.create()
    assert watching.answers()[-1].created


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=20), bytes_max=st.integers(200, 2000))
def test_fragments_add_up(sizes: list[int], bytes_max: int) -> None:
    watching = Watching()
    watching.node.request_bytes_max = bytes_max
    watching.create(b"a", b"b", fragment=True)
    watching.create(b"a", b"b")
    watching.answers()
    with watching.node.store.txn():
        for number, size in enumerate(sizes):
            watching.node.store.put(b"a%02d" % number, b"x" * size, 0)
    watching.node.watchable.flush()
    messages = watching.stream.take()
    answers = [WatchResponse.FromString(message) for message in messages]
    whole = [answer for answer in answers if answer.watch_id == 1]
    parts = [(answer, message) for answer, message in zip(answers, messages, strict=True) if answer.watch_id == 0]
    assert len(whole) == 1
    assert [event for answer, _ in parts for event in answer.events] == list(whole[0].events)
    assert [answer.fragment for answer, _ in parts] == [True] * (len(parts) - 1) + [False]
    for answer, message in parts:
        assert len(message) < bytes_max or len(answer.events) == 1
        assert answer.header == whole[0].header
