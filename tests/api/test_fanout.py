"""Watches on an embedded node, over the wire: wide fan-outs, histories, slow readers."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from kvserver.mvcc import watch as watch_module
from kvserver.proto.rpc_pb2 import (
    PutRequest,
    PutResponse,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvserver.server import Server

pytestmark = pytest.mark.asyncio


class Watch:
    """One watch stream of a foreign client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=WatchResponse.FromString,
        )()

    async def create(self, **fields: object) -> int:
        """Create a watcher; answers its id."""
        await self._call.write(WatchRequest(create_request=WatchCreateRequest(**fields)))  # type: ignore[arg-type]
        created = await self.read()
        assert created.created
        return int(created.watch_id)

    async def read(self) -> WatchResponse:
        """Read the next answer."""
        answer = await asyncio.wait_for(self._call.read(), 10)
        assert isinstance(answer, WatchResponse), answer
        return answer


async def put(channel: grpc.aio.Channel, key: bytes, value: bytes) -> PutResponse:
    """Put a key."""
    method = channel.unary_unary(
        "/etcdserverpb.KV/Put",
        request_serializer=PutRequest.SerializeToString,
        response_deserializer=PutResponse.FromString,
    )
    return await method(PutRequest(key=key, value=value))


async def test_a_fan_out_wider_than_one_flush_reaches_everybody_at_once(
    server: Server, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "FLUSH_DELIVERIES_MAX", 10)
    watch = Watch(channel)
    for _ in range(35):
        await watch.create(key=b"k")
    for value in (b"1", b"2"):
        answer = await put(channel, b"k", value)
        got = [await watch.read() for _ in range(35)]
        assert sorted(item.watch_id for item in got) == list(range(35))
        assert all(item.events[0].kv.mod_revision == answer.header.revision for item in got)


async def test_a_watch_from_the_past_is_told_without_any_other_traffic(
    server: Server, channel: grpc.aio.Channel
) -> None:
    first = (await put(channel, b"k", b"1")).header.revision
    await put(channel, b"k", b"2")
    watch = Watch(channel)
    await watch.create(key=b"k", start_revision=first)
    answer = await watch.read()
    assert [event.kv.value for event in answer.events] == [b"1", b"2"]


async def test_a_reader_that_pauses_misses_nothing(server: Server, channel: grpc.aio.Channel) -> None:
    watch = Watch(channel)
    await watch.create(key=b"k")
    count = 60
    for number in range(count):
        await put(channel, b"k", b"%06d" % number + b"x" * 100_000)
    seen: list[int] = []
    while len(seen) < count:
        seen.extend(int(event.kv.value[:6]) for event in (await watch.read()).events)
    assert seen == list(range(count))
