"""The asyncio shell of the server role: sockets, the moment of writing, timers.

One :class:`GrpcServer` is shared by all connections of a process. A connection writes once for all that a read
produced; output made later (after a disk write) is collected over all connections and written in one loop callback, one
``transport.write`` a connection. One timer for all connections drives handshake, keep-alive and drain deadlines.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from kvserver.limits import WIRE_LINGER_SECONDS, WIRE_SOCKET_HIGH_WATER_BYTES
from kvserver.wire.limits import WireLimits
from kvserver.wire.server_machine import (
    Metadata,
    RequestHead,
    Route,
    Routes,
    ServerConnection,
    ServerStream,
    StreamFactory,
    StreamHandler,
    StreamMethod,
    UnaryHandler,
    UnaryMethod,
)

__all__ = [
    "GrpcServer",
    "Metadata",
    "MethodCounters",
    "RequestHead",
    "ServerConnection",
    "ServerStream",
    "StreamFactory",
    "StreamHandler",
    "StreamMethod",
    "UnaryHandler",
    "UnaryMethod",
    "WireLimits",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MethodCounters:
    """Counters of one method since the server was made.

    Attributes:
        path: the method, such as ``"/etcdserverpb.KV/Put"``; ``"unknown/unknown"`` for all that do not exist.
        streaming: not a unary method.
        started: calls begun.
        handled: calls ended, by status code.
        messages_received: request messages.
        messages_sent: answer messages (a batch given to ``send_raw`` counts as one).
    """

    path: str
    streaming: bool
    started: int
    handled: Mapping[int, int]
    messages_received: int
    messages_sent: int


class GrpcServer:
    """Serves gRPC on connections that others accept.

    Args:
        methods: handlers by path, such as ``b"/etcdserverpb.KV/Put"``.
        limits: bounds of each connection.
        clock: monotonic seconds.
        on_open: called with each new connection.
        on_close: called with each connection that ended.
    """

    def __init__(
        self,
        methods: Mapping[bytes, UnaryMethod | StreamMethod],
        *,
        limits: WireLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_open: Callable[[ServerConnection], None] | None = None,
        on_close: Callable[[ServerConnection], None] | None = None,
    ) -> None:
        self.limits = limits or WireLimits()
        self._routes = Routes(methods)
        self._clock = clock
        self._on_open = on_open
        self._on_close = on_close
        self._connections: dict[_Protocol, None] = {}
        self._dirty: list[_Protocol] = []
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event | None = None
        self._stopping = False
        self._tick_seconds = max(0.01, min(1.0, self.limits.handshake_seconds, self.limits.keepalive_timeout_seconds))
        self._closed_bytes_received = 0
        self.bytes_sent = 0
        """Bytes handed to sockets."""
        self.connections_accepted = 0

    def protocol(self) -> asyncio.Protocol:
        """Make the protocol of one connection: for ``loop.create_server`` and ``loop.connect_accepted_socket``."""
        return _Protocol(self)

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    @property
    def bytes_received(self) -> int:
        """Bytes read from sockets."""
        return self._closed_bytes_received + sum(connection.bytes_received for connection in self._connections)

    @property
    def stream_count(self) -> int:
        """Calls that are open now."""
        return sum(connection.stream_count for connection in self._connections)

    def counters(self) -> list[MethodCounters]:
        """Answer the counters of all methods."""
        open_calls: dict[int, int] = {}
        for connection in self._connections:
            for route in connection.open_routes():
                open_calls[id(route)] = open_calls.get(id(route), 0) + 1
        return [_counters(route, open_calls.get(id(route), 0)) for route in self._routes]

    async def shutdown(self, grace_seconds: float) -> None:
        """End all connections: GOAWAY, let calls end for at most ``grace_seconds``, then close.

        New connections are closed at once from now on.
        """
        self._stopping = True
        idle = self._idle = asyncio.Event()
        for connection in list(self._connections):
            connection.drain()
        if not self._connections:
            return
        try:
            async with asyncio.timeout(grace_seconds):
                await idle.wait()
            return
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.abort_soon()
        try:
            async with asyncio.timeout(1.0):
                await idle.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.drop("shutdown")

    # -- for the connections -------------------------------------------------------------------------------------------

    def _opened(self, connection: _Protocol) -> None:
        self.connections_accepted += 1
        self._connections[connection] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        if self._on_open is not None:
            self._on_open(connection)

    def _closed(self, connection: _Protocol) -> None:
        if self._connections.pop(connection, self) is self:
            return
        self._closed_bytes_received += connection.bytes_received
        if self._on_close is not None:
            self._on_close(connection)
        if not self._connections:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._idle is not None:
                self._idle.set()

    def _mark(self, connection: _Protocol) -> None:
        dirty = self._dirty
        if not dirty:
            asyncio.get_running_loop().call_soon(self.flush)
        dirty.append(connection)

    def flush(self) -> None:
        """Write out what all connections have collected; called by itself in the next pass of the loop otherwise."""
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            connection.flush()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        now = self._clock()
        for connection in list(self._connections):
            connection.tick(now)


def _counters(route: Route, open_calls: int) -> MethodCounters:
    handled = dict(route.failed)
    if route.ok:
        handled[0] = route.ok
    started = sum(handled.values()) + open_calls
    unary = route.handler is not None
    return MethodCounters(
        path=route.path.decode(),
        streaming=route.factory is not None,
        started=started,
        handled=handled,
        messages_received=started if unary else route.messages_received,
        messages_sent=route.ok if unary else route.messages_sent,
    )


class _Protocol(ServerConnection, asyncio.Protocol):
    """A server connection on a transport."""

    __slots__ = ("_linger_until", "_server", "_transport")

    def __init__(self, server: GrpcServer) -> None:
        super().__init__(server._routes, server.limits, server._clock)
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._linger_until: float | None = None

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport = transport
        transport.set_write_buffer_limits(high=WIRE_SOCKET_HIGH_WATER_BYTES)
        self.peer = _peer_name(transport.get_extra_info("peername"))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio leaves it off for accepted sockets that are handed over
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server._opened(self)
        if self._server._stopping:
            self.drain()
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._dirty = True
        self.receive(data)
        self.flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.connection_failed(str(error) if error else "connection closed")
        self._server._closed(self)

    def pause_writing(self) -> None:
        self.pause()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.resume()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # output

    def _schedule(self) -> None:
        self._server._mark(self)

    def flush(self) -> None:
        """Write what there is, in one call to the transport."""
        self._dirty = True  # what handlers add while the queue moves is written below
        transport = self._transport
        if transport is None:
            self._out.clear()
            return
        if self._ready and not self._paused:
            self._pump()
        out = self._out
        if out:
            self._out = []
            data = b"".join(out)
            self._server.bytes_sent += len(data)
            transport.write(data)
        if self._pumped:
            self.after_output()
        self._dirty = False
        if self._out or (self._ready and not self._paused and self._send_window > 0):
            self._wake()
        elif self._goaway_sent and self.drained:
            transport.close()
        elif self.closing and self._linger_until is None:
            self._linger_until = self._clock() + WIRE_LINGER_SECONDS
            if self.fault is not None:
                _log.info("closing the connection of %s: %s", self.peer, self.fault)
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()

    def open_routes(self) -> Iterable[Route]:
        """Answer the methods of the calls that are open."""
        for stream in self._streams.values():
            if isinstance(stream, Route):
                yield stream
            elif isinstance(stream, RequestHead):
                yield stream.route
            elif isinstance(stream, ServerStream):
                if not stream.closed:
                    yield stream.head.route
            elif not stream.answered:  # type: ignore[attr-defined]  # the third class there is
                yield stream.route  # type: ignore[attr-defined]

    def abort_soon(self) -> None:
        """Give up the calls that are open, then close."""
        self.connection_failed("shutdown")
        if self._transport is not None:
            self.flush()
            self._transport.close()

    def tick(self, now: float) -> None:
        """Enforce the deadlines."""
        if self._linger_until is not None:
            if now >= self._linger_until and self._transport is not None:
                self._transport.abort()
            return
        reason = self.on_tick(now)
        if reason is not None:
            self.drop(reason)

    def drop(self, reason: str) -> None:
        """Close at once."""
        _log.info("dropping the connection of %s: %s", self.peer, reason)
        if self._transport is not None:
            self._transport.abort()

    def _report(self, error: Exception) -> None:
        _log.error("a handler failed", exc_info=error)


def _peer_name(address: object) -> str:
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address or "unix")
