"""Streams: keepalives in order, tasks that end with their caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from kvserver import errors
from kvserver.api.health import HealthWatch
from kvserver.api.lease import KeepAliveCall
from kvserver.api.streams import TaskCall, checked
from kvserver.errors import Code
from kvserver.proto.health_pb2 import HealthCheckRequest, HealthCheckResponse
from kvserver.proto.rpc_pb2 import LeaseKeepAliveRequest
from tests.api.fakes import FakeHead, FakeNode, FakeStream, as_node, as_stream

KEEPALIVE = LeaseKeepAliveRequest(ID=5).SerializeToString()


def test_keepalives_are_answered_one_by_one() -> None:
    stream = FakeStream()
    call = KeepAliveCall(as_node(FakeNode()), as_stream(stream))
    call.on_message(KEEPALIVE)
    call.on_message(KEEPALIVE)
    assert stream.sent == [b"answer", b"answer"]
    call.on_half_close()
    assert stream.ending == (0, "")


def test_a_half_closed_keepalive_waits_for_its_answers() -> None:
    node, stream = FakeNode(), FakeStream()
    node.hold = True
    call = KeepAliveCall(as_node(node), as_stream(stream))
    call.on_message(KEEPALIVE)
    call.on_message(KEEPALIVE)
    call.on_half_close()
    assert stream.ending is None
    for done in node.waiting:
        done(b"late")
    assert stream.sent == [b"late", b"late"]
    assert stream.ending == (0, "")


def test_an_error_ends_a_keepalive_stream() -> None:
    node, stream = FakeNode(), FakeStream()
    node.result = errors.NoLeaderError()
    call = KeepAliveCall(as_node(node), as_stream(stream))
    call.on_message(KEEPALIVE)
    assert stream.ending == (14, "etcdserver: no leader")


def test_malformed_keepalives_end_the_stream() -> None:
    stream = FakeStream()
    KeepAliveCall(as_node(FakeNode()), as_stream(stream)).on_message(b"\x08")
    assert stream.ending is not None
    assert stream.ending[0] == Code.INTERNAL


def test_a_fault_ends_a_keepalive_stream(caplog: pytest.LogCaptureFixture) -> None:
    node, stream = FakeNode(), FakeStream()
    node.result = RuntimeError("inner")
    with caplog.at_level(logging.ERROR):
        KeepAliveCall(as_node(node), as_stream(stream)).on_message(KEEPALIVE)
    assert stream.ending == (2, "kvserver: internal error, see the server's log")
    assert "inner" in caplog.text


def test_streams_that_want_a_leader_are_refused_without_one() -> None:
    node = FakeNode()
    node.leader_id = 0
    stream = FakeStream(FakeHead({b"hasleader": b"true"}))
    checked(node, lambda stream: KeepAliveCall(as_node(node), stream))(as_stream(stream))
    assert stream.ending == (14, "etcdserver: no leader")


def test_health_watch_tells_the_status() -> None:
    for service, status in (("", HealthCheckResponse.SERVING), ("x", HealthCheckResponse.SERVICE_UNKNOWN)):
        stream = FakeStream()
        HealthWatch(as_stream(stream)).on_message(HealthCheckRequest(service=service).SerializeToString())
        assert HealthCheckResponse.FromString(stream.sent[0]).status == status
        assert stream.ending is None


def begin(stream: FakeStream, method: Callable[[bytes, TaskCall], Awaitable[bytes | None]]) -> TaskCall:
    return TaskCall(as_stream(stream), name="test", method=method)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never came true")


@pytest.mark.asyncio
async def test_a_task_answers_once() -> None:
    async def method(message: bytes, call: TaskCall) -> bytes:
        return message + b"!"

    stream = FakeStream()
    call = begin(stream, method)
    call.on_message(b"hello")
    call.on_half_close()
    await until(lambda: stream.closed)
    assert (stream.sent, stream.ending) == ([b"hello!"], (0, ""))


@pytest.mark.asyncio
async def test_a_task_ends_with_its_caller() -> None:
    cleaned = asyncio.Event()

    async def method(message: bytes, call: TaskCall) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return b""

    stream = FakeStream()
    call = begin(stream, method)
    call.on_message(b"")
    await asyncio.sleep(0)
    stream.closed = True
    call.on_closed()
    await asyncio.wait_for(cleaned.wait(), 5)
    assert stream.sent == []


@pytest.mark.asyncio
async def test_a_task_ends_with_its_deadline() -> None:
    async def method(message: bytes, call: TaskCall) -> bytes:
        await asyncio.Event().wait()
        return b""

    stream = FakeStream(FakeHead(timeout_seconds=0.01))
    finished = asyncio.Event()
    stream.on_finish = finished.set
    begin(stream, method).on_message(b"")
    await asyncio.wait_for(finished.wait(), 5)
    assert stream.ending == (4, "context deadline exceeded")


@pytest.mark.asyncio
async def test_one_request_is_all_a_task_takes() -> None:
    async def method(message: bytes, call: TaskCall) -> bytes:
        await asyncio.Event().wait()
        return b""

    stream = FakeStream()
    call = begin(stream, method)
    call.on_message(b"")
    call.on_message(b"")
    assert stream.ending is not None
    assert stream.ending[0] == Code.INTERNAL
    missing = FakeStream()
    begin(missing, method).on_half_close()
    assert missing.ending is not None
    assert missing.ending[0] == Code.INTERNAL


@pytest.mark.asyncio
async def test_a_streaming_task_waits_for_a_slow_reader() -> None:
    sent = 0

    async def method(message: bytes, call: TaskCall) -> None:
        nonlocal sent
        for _ in range(3):
            await call.send(b"x")
            sent += 1

    stream = FakeStream()
    stream.buffered_bytes = stream.conn.limits.high_water_bytes + 1
    call = begin(stream, method)
    call.on_message(b"")
    for _ in range(10):
        await asyncio.sleep(0)
    assert (sent, len(stream.sent)) == (0, 1)
    stream.buffered_bytes = 0
    call.on_drained()
    await until(lambda: stream.closed)
    assert (sent, stream.ending) == (3, (0, ""))


@pytest.mark.asyncio
async def test_a_tasks_faults_are_logged_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def method(message: bytes, call: TaskCall) -> bytes:
        raise ZeroDivisionError("inner detail")

    stream = FakeStream()
    with caplog.at_level(logging.ERROR):
        begin(stream, method).on_message(b"")
        await until(lambda: stream.closed)
    assert stream.ending == (2, "kvserver: internal error, see the server's log")
    assert "inner detail" in caplog.text
