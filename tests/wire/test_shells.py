"""The asyncio shells against each other, on real sockets, under asyncio's loop and uvloop."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import uvloop

from kvserver.errors import Code
from kvserver.wire.client import ClientStream, GrpcConnection, GrpcError
from kvserver.wire.limits import WireLimits
from kvserver.wire.server import (
    GrpcServer,
    RequestHead,
    ServerConnection,
    ServerStream,
    StreamMethod,
    UnaryMethod,
)
from tests.wire.raw import PREFACE, Chat, frame, settings


def both_loops(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run an async test under asyncio's own loop and under uvloop."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **fixtures: object) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test(**fixtures))

    own = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([own, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return pytest.mark.parametrize(
        "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )(run)


class Service:
    """The methods of the tests, with what they saw."""

    def __init__(self, limits: WireLimits | None = None) -> None:
        self.held: list[tuple[ServerConnection, int, RequestHead, bytes]] = []
        self.held_event = asyncio.Event()
        self.chats: list[Chat] = []
        self.peers: list[str] = []
        self.closed = 0
        self.server = GrpcServer(
            {
                b"/test.Echo/Echo": UnaryMethod(self.echo),
                b"/test.Echo/Hold": UnaryMethod(self.hold),
                b"/test.Echo/Fail": UnaryMethod(lambda conn, sid, head, body: conn.fail(sid, 9, body.decode())),
                b"/test.Echo/Chat": StreamMethod(self.chat),
            },
            limits=limits,
            on_close=self.on_close,
        )
        self.port = 0

    def echo(self, conn: ServerConnection, stream_id: int, head: RequestHead, body: bytes) -> None:
        self.peers.append(conn.peer)
        conn.respond(stream_id, body)

    def hold(self, *call: object) -> None:
        self.held.append(call)  # type: ignore[arg-type]
        self.held_event.set()

    def chat(self, stream: ServerStream) -> Chat:
        self.chats.append(Chat(stream))
        self.held_event.set()
        return self.chats[-1]

    def on_close(self, conn: ServerConnection) -> None:
        self.closed += 1


@asynccontextmanager
async def serving(limits: WireLimits | None = None) -> AsyncIterator[Service]:
    service = Service(limits)
    listener = await asyncio.get_running_loop().create_server(service.server.protocol, "127.0.0.1", 0)
    service.port = listener.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        listener.close()
        await service.server.shutdown(0.1)


@asynccontextmanager
async def connected(service: Service, **options: object) -> AsyncIterator[GrpcConnection]:
    connection = await GrpcConnection.connect("127.0.0.1", service.port, **options)  # type: ignore[arg-type]
    try:
        yield connection
    finally:
        await connection.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event of its own
            await asyncio.sleep(0.001)


@both_loops
async def test_calls_and_counters() -> None:
    async with serving() as service, connected(service) as client:
        answers = await asyncio.gather(*[client.unary(b"/test.Echo/Echo", b"%d" % number) for number in range(3000)])
        assert answers == [b"%d" % number for number in range(3000)]
        with pytest.raises(GrpcError, match="100% ä"):
            await client.unary(b"/test.Echo/Fail", "100% ä".encode())
        held = client.unary(b"/test.Echo/Hold", b"")
        await service.held_event.wait()
        counters = {item.path: item for item in service.server.counters()}
        assert counters["/test.Echo/Echo"].handled == {0: 3000}
        assert counters["/test.Echo/Fail"].handled == {9: 1}
        assert (counters["/test.Echo/Hold"].started, counters["/test.Echo/Hold"].handled) == (1, {})
        assert service.server.bytes_received > 3000 * 10
        assert service.server.bytes_sent > 3000 * 10
        assert service.server.stream_count == 1
        assert service.server.connection_count == 1
        assert service.peers[0].startswith("127.0.0.1:")
        held.cancel()
        await _until(lambda: service.server.stream_count == 0)
    assert service.closed == 1


@both_loops
async def test_answers_given_later_leave_in_one_write_a_connection() -> None:
    async with serving() as service, connected(service) as client:
        futures = [client.unary(b"/test.Echo/Hold", b"") for _ in range(500)]
        await _until(lambda: len(service.held) == 500)
        writes: list[int] = []
        transport = service.held[0][0]._transport  # type: ignore[attr-defined]

        class Counting:
            def __getattr__(self, name: str) -> object:
                if name == "write":
                    writes.append(1)
                return getattr(transport, name)

        service.held[0][0]._transport = Counting()  # type: ignore[attr-defined]
        for conn, stream_id, _, _ in service.held:
            conn.respond(stream_id, b"later")
        assert await asyncio.gather(*futures) == [b"later"] * 500
        assert len(writes) == 1


@both_loops
async def test_sockets_that_are_handed_over_do_not_wait_for_full_packets() -> None:
    loop = asyncio.get_running_loop()
    server = GrpcServer({})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        connecting = asyncio.ensure_future(GrpcConnection.connect("127.0.0.1", listener.getsockname()[1]))
        sock, _ = await loop.sock_accept(listener)
        transport, _ = await loop.connect_accepted_socket(server.protocol, sock)
        client = await connecting
        own = transport.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await client.close()
        await server.shutdown(1)


@both_loops
async def test_large_messages() -> None:
    limits = WireLimits(message_bytes_max=1 << 26)
    async with serving(limits) as service, connected(service) as client:
        body = bytes(range(256)) * (1 << 17)  # 32 MiB
        assert await client.unary(b"/test.Echo/Echo", body) == body


@both_loops
async def test_streams() -> None:
    async with serving() as service, connected(service) as client:
        stream = client.stream(b"/test.Echo/Chat", metadata=[(b"x", b"1")])
        stream.send(b"echo 1")
        assert await stream.recv() == b"echo 1"
        stream.send(b"echo 2")
        stream.half_close()
        assert [body async for body in stream] == [b"echo 2"]
        assert await stream.recv() is None
        assert service.chats[0].stream.head.metadata[b"x"] == b"1"
        with pytest.raises(GrpcError, match="unknown method"):
            await client.stream(b"/test.Echo/Nope").recv()


@both_loops
async def test_cancel_reaches_the_server() -> None:
    async with serving() as service, connected(service) as client:
        stream = client.stream(b"/test.Echo/Chat")
        stream.send(b"echo")
        await stream.recv()
        reader = asyncio.ensure_future(stream.recv())
        stream.cancel()
        with pytest.raises(GrpcError) as caught:
            await reader
        assert caught.value.code == Code.CANCELLED
        await _until(lambda: "closed" in service.chats[0].events)


@both_loops
async def test_deadlines() -> None:
    async with serving() as service, connected(service) as client:
        slow = client.unary(b"/test.Echo/Hold", b"", timeout_seconds=5)
        stream = client.stream(b"/test.Echo/Chat", timeout_seconds=0.03)
        with pytest.raises(GrpcError) as caught:
            await client.unary(b"/test.Echo/Hold", b"", timeout_seconds=0.02)
        assert caught.value.code == Code.DEADLINE_EXCEEDED
        with pytest.raises(GrpcError) as caught:
            await stream.recv()
        assert caught.value.code == Code.DEADLINE_EXCEEDED
        assert not slow.done()
        slow.cancel()
        await _until(lambda: service.server.stream_count == 0)
        assert service.held[-1][2].timeout_seconds == pytest.approx(0.02)


@both_loops
async def test_a_reader_that_stops_is_felt_by_the_producer_and_felt_again_when_it_resumes() -> None:
    """Both a full stream window and, with many streams, a full socket."""
    async with serving() as service, connected(service) as client:
        streams: list[ClientStream] = [client.stream(b"/test.Echo/Chat") for _ in range(3)]
        await _until(lambda: len(service.chats) == 3)
        for chat in service.chats:
            for _ in range(40):
                chat.stream.send(bytes(100_000))
        await _until(lambda: all(1 << 20 < chat.stream.buffered_bytes < 4 << 20 for chat in service.chats))
        assert all("drained" not in chat.events for chat in service.chats)
        for stream in streams:
            for _ in range(40):
                assert len(await stream.recv() or b"") == 100_000
        await _until(lambda: all("drained" in chat.events for chat in service.chats))
        assert await client.unary(b"/test.Echo/Echo", b"alive") == b"alive"


@both_loops
async def test_a_client_that_never_reads_is_bounded_and_others_go_on() -> None:
    limits = WireLimits(queued_bytes_max=1 << 20, message_bytes_max=1 << 22)
    async with serving(limits) as service, connected(service) as other:
        sock = socket.create_connection(("127.0.0.1", service.port))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, PREFACE + settings((4, 0x7FFFFFFF)) + frame(8, 0, 0, b"\x7f\x00\x00\x00"))
        path = b"/test.Echo/Hold"
        block = b"\x83\x86\x04" + bytes((len(path),)) + path + b"\x0f\x10\x10application/grpc"
        for number in range(200):
            head = frame(1, 4, 2 * number + 1, block)
            await loop.sock_sendall(sock, head + frame(0, 1, 2 * number + 1, b"\0\0\0\0\0"))
        await _until(lambda: len(service.held) == 200)
        conn = service.held[0][0]
        for _, stream_id, _, _ in service.held:
            conn.respond(stream_id, bytes(300_000))
            await asyncio.sleep(0)
        assert conn._queued_bytes <= (1 << 20) + 300_005
        assert conn._paused
        assert await other.unary(b"/test.Echo/Echo", b"fine") == b"fine"
        sock.close()
        await _until(lambda: service.closed == 1)


@both_loops
async def test_shutdown_lets_calls_end_and_turns_new_ones_away() -> None:
    async with serving() as service:
        client = await GrpcConnection.connect("127.0.0.1", service.port)
        held = client.unary(b"/test.Echo/Hold", b"")
        await service.held_event.wait()
        stopping = asyncio.ensure_future(service.server.shutdown(5))
        await _until(lambda: client.closed)
        with pytest.raises(GrpcError) as caught:
            await client.unary(b"/test.Echo/Echo", b"")
        assert (caught.value.code, caught.value.sent) == (Code.UNAVAILABLE, False)
        conn, stream_id, _, _ = service.held[0]
        conn.respond(stream_id, b"bye")
        assert await held == b"bye"
        await stopping
        assert service.server.connection_count == 0
        await client.close()


@both_loops
async def test_shutdown_ends_what_does_not_end() -> None:
    async with serving() as service:
        client = await GrpcConnection.connect("127.0.0.1", service.port)
        held = client.unary(b"/test.Echo/Hold", b"")
        await service.held_event.wait()
        await service.server.shutdown(0.01)
        with pytest.raises(GrpcError) as caught:
            await held
        assert caught.value.code == Code.UNAVAILABLE
        gone = asyncio.Event()
        client.on_close(lambda _: gone.set())
        await gone.wait()
        assert client.closed


@both_loops
async def test_connecting_fails_as_unavailable_and_not_sent() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(GrpcError) as caught:  # bound, not listening
            await GrpcConnection.connect("127.0.0.1", port)
        assert (caught.value.code, caught.value.sent) == (Code.UNAVAILABLE, False)
        sock.listen()
        with pytest.raises(GrpcError, match="timed out"):  # silent
            await GrpcConnection.connect("127.0.0.1", port, timeout_seconds=0.05)

    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(http1, "127.0.0.1", 0)
    with pytest.raises(GrpcError) as caught:
        await GrpcConnection.connect("127.0.0.1", server.sockets[0].getsockname()[1])
    assert caught.value.code == Code.UNAVAILABLE
    server.close()


@both_loops
async def test_silent_connections_are_dropped() -> None:
    async with serving(WireLimits(handshake_seconds=0.05)) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(PREFACE)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(10_000)
        writer.close()


@both_loops
async def test_a_peer_at_fault_reads_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvserver.wire")
    async with serving() as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(PREFACE + settings() + frame(0, 0, 0, b"x") + bytes(100_000))
        data = await reader.read()
        assert b"DATA on stream 0" in data
        writer.close()
        await _until(lambda: service.closed == 1)
    assert any("PROTOCOL_ERROR: DATA on stream 0" in record.getMessage() for record in caplog.records)


@both_loops
async def test_keepalive_finds_a_dead_server() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(settings())
        await reader.read()
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = await GrpcConnection.connect("127.0.0.1", port, keepalive_seconds=0.02, keepalive_timeout_seconds=0.05)
    with pytest.raises(GrpcError) as caught:
        await client.unary(b"/test.Echo/Echo", b"")
    assert caught.value.code == Code.UNAVAILABLE
    server.close()


@both_loops
async def test_closing_fails_open_calls() -> None:
    async with serving() as service:
        client = await GrpcConnection.connect("127.0.0.1", service.port)
        held = client.unary(b"/test.Echo/Hold", b"")
        await client.close()
        with pytest.raises(GrpcError):
            await held
        await client.close()
        await _until(lambda: service.closed == 1)
