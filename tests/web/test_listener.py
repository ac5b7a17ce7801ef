"""The listener: which protocol a connection speaks, and what happens to those that speak none."""

from __future__ import annotations

import asyncio
import doctest
import logging
import os
import socket
from pathlib import Path

import pytest
import uvloop

from kvserver import limits
from kvserver.errors import StartupError
from kvserver.proto.rpc_pb2 import PutRequest, PutResponse
from kvserver.web import ListenError, connections, listener
from kvserver.web.listener import Listener, recognise
from kvserver.wire.client import GrpcConnection
from tests.web.support import Served, serving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(autouse=True)
def frequent_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are looked at by timers; the tests need not wait for theirs."""
    monkeypatch.setattr(listener, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)


PUT = b'POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"key":"Zm9v"}'


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(listener).failed == 0


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH"])
def test_every_http_method_is_recognised_when_it_is_complete_and_not_before(method: bytes) -> None:
    line = method + b" / HTTP/1.1"
    for size in range(1, len(method) + 1):
        assert recognise(line[:size]) is None
    assert recognise(line[: len(method) + 1]) == "http"


def test_the_http2_preface_is_recognised_when_it_is_complete_and_not_before() -> None:
    for size in range(1, 14):
        assert recognise(PREFACE[:size]) is None
    assert recognise(PREFACE[:14]) == "grpc"


@pytest.mark.parametrize("data", [b"\x00", b"hello", b"GETX /", b"PRIX", b"get / HTTP/1.1", b"\xff" * 24, b" GET /"])
def test_garbage_is_recognised_at_once(data: bytes) -> None:
    assert recognise(data) == "garbage"


async def put_by_grpc(served: Served) -> None:
    connection = await GrpcConnection.connect("127.0.0.1", served.port)
    try:
        request = PutRequest(key=b"k", value=b"v").SerializeToString()
        answer = PutResponse.FromString(await connection.unary(b"/etcdserverpb.KV/Put", request, timeout_seconds=5))
        assert answer.header.revision >= 2
    finally:
        await connection.close()


async def put_by_http(served: Served) -> None:
    client = await served.connect()
    answer = await client.request("POST", "/v3/kv/put", b'{"key":"Zm9v"}')
    assert answer.status == 200
    await client.close()


@pytest.mark.asyncio
async def test_both_protocols_are_served_on_one_port() -> None:
    async with serving() as served:
        await put_by_grpc(served)
        await put_by_http(served)
        assert served.grpc.connections_accepted == 1


def test_both_protocols_are_served_under_uvloop_too() -> None:
    async def main() -> None:
        async with serving() as served:
            await put_by_grpc(served)
            await put_by_http(served)
            client = await served.connect()
            await client.send(b"\x16\x03\x01\x02\x00")
            assert await client.ended() == b""
            await client.close()

    uvloop.run(main())


@pytest.mark.asyncio
async def test_a_preface_split_at_every_byte_is_grpc() -> None:
    async with serving() as served:

        async def one(size: int) -> None:
            client = await served.connect()
            await client.send(PREFACE[:size])
            await asyncio.sleep(0.02)
            await client.send(PREFACE[size:] + SETTINGS)
            answer = await asyncio.wait_for(client.reader.readexactly(9), 10)
            assert answer[3] == 4, "the server's SETTINGS"
            await client.close()

        await asyncio.gather(*(one(size) for size in range(1, len(PREFACE))))
        assert served.grpc.connections_accepted == len(PREFACE) - 1


@pytest.mark.asyncio
async def test_a_request_split_at_every_byte_is_http() -> None:
    async with serving() as served:

        async def one(size: int) -> None:
            client = await served.connect()
            await client.send(PUT[:size])
            await asyncio.sleep(0.02)
            await client.send(PUT[size:])
            assert (await client.answer()).status == 200
            await client.close()

        await asyncio.gather(*(one(size) for size in range(1, len(PUT))))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x01\x02", "speaks neither gRPC"),
        (b"HELLO\r\n", "speaks neither gRPC"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "started a TLS handshake, but this port is not encrypted"),
    ],
)
async def test_foreign_bytes_end_their_connection_with_a_log_line_and_nobody_elses(
    data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        other = await served.connect()
        assert (await other.request("GET", "/version")).status == 200
        client = await served.connect()
        peer = client.writer.get_extra_info("sockname")
        with caplog.at_level(logging.WARNING):
            await client.send(data)
            assert await client.ended() == b""
        (record,) = [record for record in caplog.records if record.name == "kvserver.web.listener"]
        text = record.getMessage()
        assert reason in text
        assert f"127.0.0.1:{peer[1]}" in text
        assert repr(data) in text
        assert (await other.request("GET", "/version")).status == 200
        await put_by_grpc(served)
        await other.close()
        await client.close()


@pytest.mark.asyncio
async def test_a_connection_that_ends_before_its_first_byte_is_forgotten() -> None:
    async with serving() as served:
        for _ in range(20):
            client = await served.connect()
            client.writer.write_eof()
            assert await client.ended() == b""
            await client.close()
        await put_by_http(served)


@pytest.mark.asyncio
async def test_a_connection_that_ends_within_an_undecided_prefix_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"PO")
        client.writer.write_eof()
        assert await client.ended() == b""
        assert "ended after too little to tell its protocol" in caplog.text
        await client.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("data", [b"", b"P", b"PRI *"])
async def test_a_silent_client_is_closed_after_the_deadline_while_others_are_served(
    data: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "HTTP_FIRST_BYTES_SECONDS", 0.1)
    async with serving() as served:
        silent = [await served.connect() for _ in range(50)]
        for client in silent:
            await client.send(data)
        await put_by_http(served)
        await put_by_grpc(served)
        for client in silent:
            assert await client.ended() == b""
            await client.close()
        assert "sent too little to tell its protocol in time" in caplog.text
        assert len([r for r in caplog.records if "sent too little" in r.message]) <= 20, "log lines are limited"


@pytest.mark.asyncio
async def test_slow_heads_are_closed_after_the_deadline_and_idle_connections_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_SECONDS", 0.5)
    async with serving() as served:
        idle = await served.connect()
        assert (await idle.request("GET", "/version")).status == 200
        slow = await served.connect()
        await slow.send(b"GET /version HTTP/1.1\r\nHost: x\r\n")
        assert await slow.ended() == b""
        again = await served.connect()
        assert (await again.request("GET", "/version")).status == 200
        await again.send(b"GET /ver")
        assert await again.ended() == b""
        assert (await idle.request("GET", "/version")).status == 200
        for client in (idle, slow, again):
            await client.close()


@pytest.mark.asyncio
async def test_a_body_that_stops_coming_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_BODY_PAUSE_SECONDS", 0.5)
    async with serving() as served:
        client = await served.connect()
        await client.send(PUT[:-3])
        assert await client.ended() == b""
        await client.close()


@pytest.mark.asyncio
async def test_a_port_in_use_is_refused_with_flag_url_and_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        refused = Listener("listen-client-urls", ("http://127.0.0.1:0", url), grpc=None, http=lambda sock, peer: None)
        with pytest.raises(ListenError, match="bind: address already in use") as caught:
            refused.bind()
        assert isinstance(caught.value, StartupError)
        assert f"--listen-client-urls={url}: listen tcp 127.0.0.1:" in str(caught.value)
        assert "choose another port" in str(caught.value)
        assert refused.urls == ()


@pytest.mark.asyncio
async def test_several_urls_and_unix_sockets_are_served(tmp_path: Path) -> None:
    path = tmp_path / "kv.sock"
    left_behind = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left_behind.bind(str(path))
    left_behind.close()
    async with serving(listen_metrics_urls=("http://127.0.0.1:0", f"unix://{path}")) as served:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await writer.wait_closed()
        assert len(served.web.metrics_urls) == 2
    assert not path.exists()


@pytest.mark.asyncio
async def test_grpc_on_the_metrics_port_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(listen_metrics_urls=("http://127.0.0.1:0",)) as served:
        port = int(served.web.metrics_urls[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE)
        assert await reader.read() == b""
        assert "speaks gRPC to --listen-metrics-urls, which serves HTTP only" in caplog.text
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_accepting_pauses_at_the_limit_and_goes_on_afterwards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("kvserver.web.server.connections_max", lambda: 3)
    async with serving() as served:
        first = [await served.connect() for _ in range(3)]
        for client in first:
            assert (await client.request("GET", "/version")).status == 200
        late = await served.connect()
        await late.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(500):
            if "3 connections are open" in caplog.text:
                break
            await asyncio.sleep(0.01)
        assert "3 connections are open" in caplog.text
        await first[0].close()
        assert (await late.answer()).status == 200
        for client in (*first[1:], late):
            await client.close()


@pytest.mark.asyncio
async def test_no_descriptor_is_lost() -> None:
    async with serving() as served:
        await put_by_http(served)
        before = len(os.listdir("/proc/self/fd"))
        for data in (b"\x00", b"\x16\x03", PUT, b"GET /x HTTP/1.0\r\n\r\n"):
            for _ in range(5):
                client = await served.connect()
                await client.send(data)
                await client.reader.read(1)
                await client.close()
        for _ in range(100):
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before
