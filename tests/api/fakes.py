"""A connection, a stream and a node that remember what they were told, for tests of the handlers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from kvserver.api.calls import Done
from kvserver.errors import KvError
from kvserver.mvcc import Store, WatchableStore, WatchSink, WatchStream
from kvserver.node.answers import HeaderEncoder
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import LeaseKeepAliveRequest, RangeRequest, ResponseHeader
from kvserver.wire.limits import WireLimits
from kvserver.wire.messages import MessageAssembler
from kvserver.wire.server import RequestHead, ServerConnection, ServerStream


class FakeConnection:
    """Remembers the answers to unary calls."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}
        self.failures: dict[int, tuple[int, str]] = {}
        self.limits = WireLimits()

    def respond(self, stream_id: int, message: bytes) -> None:
        """Take an answer."""
        assert stream_id not in self.answers
        self.answers[stream_id] = message

    def fail(self, stream_id: int, code: int, message: str) -> None:
        """Take a failure."""
        assert stream_id not in self.failures
        self.failures[stream_id] = (code, message)


@dataclass
class FakeHead:
    """A request's head."""

    metadata: dict[bytes, bytes] = field(default_factory=dict)
    timeout_seconds: float | None = None


class FakeStream:
    """Remembers what was sent; ``buffered_bytes`` is the test's to set."""

    def __init__(self, head: FakeHead | None = None) -> None:
        self.conn = FakeConnection()
        self.head = head or FakeHead()
        self.sent: list[bytes] = []
        self.buffered_bytes = 0
        self.closed = False
        self.ending: tuple[int, str] | None = None
        self.on_finish: Callable[[], None] = lambda: None

    def send(self, message: bytes) -> None:
        """Take a message."""
        if not self.closed:
            self.sent.append(message)

    def send_raw(self, framed: bytes) -> None:
        """Take framed messages."""
        if not self.closed:
            self.sent.extend(MessageAssembler(1 << 30).feed(framed))

    def finish(self, code: int = 0, message: str = "") -> None:
        """Take the end of the call."""
        if not self.closed:
            self.closed = True
            self.ending = (code, message)
            self.on_finish()

    def take(self) -> list[bytes]:
        """Answer what was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


class FakeNode:
    """A facade over a bare store: watches are real, the rest is what a test puts in ``results``."""

    def __init__(self) -> None:
        self.store = Store()
        self.watchable = WatchableStore(self.store)
        self.headers = HeaderEncoder(7, 8)
        self.headers.set_term(2)
        self.leader_id = 8
        self.member_id = 8
        self.request_bytes_max = 1_572_864
        self.txn_operations_max = 128
        self.result: bytes | KvError | Exception = b"answer"
        self.waiting: list[Done] = []
        self.hold = False

    def _answer(self, done: Done) -> None:
        if self.hold:
            self.waiting.append(done)
        elif isinstance(self.result, (bytes, KvError)):
            done(self.result)
        else:
            raise self.result

    def get(self, key: bytes) -> bytes | None:
        """Refuse the short way."""
        return None

    def range(self, request: RangeRequest, done: Done) -> None:
        """Answer ``result``."""
        self._answer(done)

    def put(self, raw: bytes, request: object, done: Done) -> None:
        """Answer ``result``."""
        self._answer(done)

    def lease_keepalive(self, request: LeaseKeepAliveRequest, done: Done) -> None:
        """Answer ``result``."""
        self._answer(done)

    def watch_stream(self, sink: WatchSink) -> WatchStream:
        """Open a stream of watchers."""
        return self.watchable.new_stream(sink)

    def response_header(self, revision: int | None = None) -> ResponseHeader:
        """Answer a header."""
        return self.headers.message(self.store.revision if revision is None else revision)

    def header_bytes(self, revision: int | None = None) -> bytes:
        """Answer a header as bytes."""
        return self.headers.framed(self.store.revision if revision is None else revision)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self._answer(args[-1])

    # what tests do with it

    def write(self, key: bytes, value: bytes = b"") -> None:
        """Put a key and announce it."""
        self.store.put(key, value, 0)
        self.watchable.flush()

    def delete(self, key: bytes) -> None:
        """Delete a key and announce it."""
        self.store.delete_range(key, b"")
        self.watchable.flush()

    def settle(self) -> None:
        """Let watchers that are behind catch up."""
        while self.watchable.sync_unsynced():
            pass


def as_node(node: FakeNode) -> NodeService:
    """Pass a fake for the facade."""
    return cast(NodeService, node)


def as_stream(stream: FakeStream) -> ServerStream:
    """Pass a fake for a stream."""
    return cast(ServerStream, stream)


def as_conn(conn: FakeConnection) -> ServerConnection:
    """Pass a fake for a connection."""
    return cast(ServerConnection, conn)


def as_head(head: FakeHead) -> RequestHead:
    """Pass a fake for a head."""
    return cast(RequestHead, head)
