"""The asyncio shell of the client role.

A :class:`GrpcConnection` is one HTTP/2 connection; balancing, retries and reconnecting are its users' business. A unary
call is one future: no task, no timer of its own (one timer a connection serves all deadlines). Output of one loop turn
is written once.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, cast

from kvserver.errors import Code
from kvserver.version import KVSERVER_VERSION
from kvserver.wire.client_machine import CallStream, ClientConnection
from kvserver.wire.faults import GrpcError, UsageError
from kvserver.wire.limits import WireLimits
from kvserver.wire.messages import frame_message

__all__ = ["ClientStream", "GrpcConnection", "GrpcError", "UnaryFuture"]

_log = logging.getLogger(__name__)

CLIENT_MESSAGE_BYTES_MAX = (1 << 31) - 1
"""Largest answer taken: a range answer may be as large as the store; etcd's own client says the same."""

_KEEPALIVE_TIMEOUT_SECONDS = 10.0


class UnaryFuture(asyncio.Future[bytes]):
    """The outcome of a unary call. Cancelling it resets the stream."""

    __slots__ = ("connection", "deadline", "message", "stream_id")

    connection: GrpcConnection
    deadline: float | None
    message: bytes | None
    stream_id: int

    def cancel(self, msg: object = None) -> bool:
        """Cancel the call."""
        if not super().cancel(msg):
            return False
        self.connection.cancel_unary(self)
        return True


class ClientStream(CallStream):
    """A streaming call: ``send`` and ``half_close`` one way, ``recv`` or ``async for`` the other.

    Received messages wait here, at most about one stream window of them; a reader that stops stops the server.
    """

    __slots__ = ("_drained", "_end_error", "_finished", "_messages", "_unread", "_waiter")

    def __init__(self, connection: GrpcConnection) -> None:
        super().__init__(connection)
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._finished = False
        self._end_error: GrpcError | None = None

    @property
    def closed(self) -> bool:
        """Whether the call has ended; received messages may still be waiting."""
        return self._finished

    def send(self, message: bytes) -> None:
        """Send one message; queued when flow control does not let it go (see :meth:`drain`).

        Raises:
            GrpcError: the call has ended with it.
            UsageError: after ``half_close``.
        """
        if self._finished:
            raise self._end_error or GrpcError(Code.CANCELLED, "the call has ended")
        self.send_framed(frame_message(message))

    def half_close(self) -> None:
        """Send no more."""
        self.end_sending()

    async def drain(self) -> None:
        """Wait until nothing that was sent is queued, or the call has ended."""
        while self.buffered_bytes and not self._finished:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    async def recv(self) -> bytes | None:
        """Answer the next message, or ``None`` after the last when the status is 0.

        Raises:
            GrpcError: the call ended otherwise; messages that came before are delivered first.
        """
        while not self._messages:
            if self._finished:
                if self._end_error is not None:
                    raise self._end_error
                return None
            if self._waiter is not None:
                raise UsageError("two readers on one stream")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        self._unread -= len(message) + 5
        self.grant()
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    def cancel(self) -> None:
        """Reset the call; readers get CANCELLED."""
        self.machine.cancel_stream(self, GrpcError(Code.CANCELLED, "cancelled by the caller"))

    # for the machine

    def on_message(self, message: bytes) -> None:
        """Queue a message for the reader."""
        self._messages.append(message)
        self._unread += len(message) + 5
        self._wake_reader()

    def on_end(self, error: GrpcError | None) -> None:
        """Note the outcome for the reader."""
        self._finished = True
        self._end_error = error
        self._wake_reader()
        self._wake_sender()

    def unread_bytes(self) -> int:
        """Bytes of messages that wait for the reader."""
        return self._unread

    def after_pump(self) -> None:
        """Wake the sender when all is sent."""
        if not self.buffered_bytes:
            self._wake_sender()

    def _wake_reader(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_sender(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None


class GrpcConnection(ClientConnection, asyncio.Protocol):
    """One HTTP/2 connection to a gRPC server. Made by :meth:`connect`; loop thread only."""

    __slots__ = (
        "_close_callbacks",
        "_closed_future",
        "_deadline_timer",
        "_greeted_future",
        "_keepalive_seconds",
        "_keepalive_timeout_seconds",
        "_loop",
        "_next_deadline",
        "_tick_timer",
        "_transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        greeted: asyncio.Future[None],
        authority: str,
        scheme: str,
        limits: WireLimits,
        keepalive_seconds: float | None,
        keepalive_timeout_seconds: float,
    ) -> None:
        super().__init__(
            authority,
            scheme=scheme,
            user_agent=f"kvserver/{KVSERVER_VERSION}",
            limits=limits,
            clock=time.monotonic,
            completion_type=UnaryFuture,
        )
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._greeted_future: asyncio.Future[None] | None = greeted
        self._closed_future: asyncio.Future[None] = loop.create_future()
        self._close_callbacks: list[Callable[[GrpcConnection], None]] = []
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._next_deadline = float("inf")
        self._tick_timer: asyncio.TimerHandle | None = None
        self._keepalive_seconds = keepalive_seconds
        self._keepalive_timeout_seconds = keepalive_timeout_seconds

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        ssl: ssl_module.SSLContext | None = None,
        authority: str | None = None,
        timeout_seconds: float | None = 5.0,
        keepalive_seconds: float | None = None,
        keepalive_timeout_seconds: float = _KEEPALIVE_TIMEOUT_SECONDS,
        limits: WireLimits | None = None,
    ) -> GrpcConnection:
        """Connect and wait for the server's greeting.

        Args:
            host: name or address.
            port: port.
            ssl: TLS context; its ALPN protocols are set to ``h2``.
            authority: the ``:authority`` of requests; ``host:port`` by default.
            timeout_seconds: for all of it.
            keepalive_seconds: ping a server that is silent for so long while calls are open; at least 5 s for etcd.
            keepalive_timeout_seconds: how long that ping may stay unanswered.
            limits: bounds of the connection.

        Raises:
            GrpcError: UNAVAILABLE (not ``sent``): not connected in time, or not an HTTP/2 server.
        """
        loop = asyncio.get_running_loop()
        if limits is None:
            limits = WireLimits(message_bytes_max=CLIENT_MESSAGE_BYTES_MAX)
        if authority is None:
            authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        scheme = "http"
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
            scheme = "https"
        connection: GrpcConnection | None = None
        bounds = limits
        name = authority

        greeted: asyncio.Future[None] = loop.create_future()

        def make() -> GrpcConnection:
            return cls(loop, greeted, name, scheme, bounds, keepalive_seconds, keepalive_timeout_seconds)

        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await loop.create_connection(make, host, port, ssl=ssl)
                await greeted
        except (OSError, TimeoutError) as error:
            if connection is not None and connection._transport is not None:
                connection._transport.abort()
            reason = "timed out" if isinstance(error, TimeoutError) else str(error)
            raise GrpcError(Code.UNAVAILABLE, f"connecting to {host}:{port}: {reason}", sent=False) from error
        except BaseException:
            if connection is not None and connection._transport is not None:
                connection._transport.abort()
            raise
        return connection

    # -- calls ---------------------------------------------------------------------------------------------------------

    def unary(
        self,
        path: bytes,
        message: bytes,
        *,
        timeout_seconds: float | None = None,
        metadata: Sequence[tuple[bytes, bytes]] = (),
    ) -> asyncio.Future[bytes]:
        """Send a unary call.

        Args:
            path: such as ``b"/etcdserverpb.KV/Put"``.
            message: the serialized request.
            timeout_seconds: the deadline, told to the server and kept here.
            metadata: request metadata; lower-case names, ``-bin`` values as plain bytes.

        Returns:
            A future of the serialized answer; it raises :class:`GrpcError`. Cancelling it resets the stream.
        """
        future = UnaryFuture(loop=self._loop)
        future.connection = self
        future.message = None
        future.stream_id = 0
        if timeout_seconds is None:
            future.deadline = None
        else:
            deadline = future.deadline = self._loop.time() + timeout_seconds
            if deadline < self._next_deadline:
                self._arm(deadline)
        self.start_unary(future, path, message, timeout_seconds, tuple(metadata) if metadata else ())
        return future

    def stream(
        self,
        path: bytes,
        *,
        timeout_seconds: float | None = None,
        metadata: Sequence[tuple[bytes, bytes]] = (),
    ) -> ClientStream:
        """Begin a streaming call."""
        stream = ClientStream(self)
        if timeout_seconds is not None:
            stream.deadline = self._loop.time() + timeout_seconds
            if stream.deadline < self._next_deadline:
                self._arm(stream.deadline)
        self.start_stream(stream, path, timeout_seconds, tuple(metadata))
        return stream

    @property
    def closed(self) -> bool:
        """Whether no new call can start."""
        return self.closing or self.draining

    def on_close(self, callback: Callable[[GrpcConnection], None]) -> None:
        """Have ``callback`` called once when the transport is gone (soon, if it is already)."""
        if self._closed_future.done():
            self._loop.call_soon(callback, self)
        else:
            self._close_callbacks.append(callback)

    async def close(self) -> None:
        """Fail the calls that are open, say GOAWAY, and wait until the transport is closed."""
        if self._transport is not None:
            self.go_away()
            self.connection_failed("the connection was closed by its owner")
            self._flush()
            await asyncio.shield(self._closed_future)

    # -- asyncio's calls -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        if self._keepalive_seconds is not None:
            self._tick_timer = self._loop.call_later(self._tick_seconds(), self._tick)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._dirty = True
        self.receive(data)
        if self._greeted_future is not None and (self.greeted or self.closing):
            greeted, self._greeted_future = self._greeted_future, None
            if not greeted.done():
                if self.closing:
                    greeted.set_exception(ConnectionError(str(self.fault or "connection closed")))
                else:
                    greeted.set_result(None)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        reason = f"connection lost: {error}" if error else "connection closed by the server"
        self.connection_failed(reason)
        for timer in (self._deadline_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        if self._greeted_future is not None and not self._greeted_future.done():
            self._greeted_future.set_exception(error or ConnectionError(reason))
        if not self._closed_future.done():
            self._closed_future.set_result(None)
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            callback(self)

    def pause_writing(self) -> None:
        self.pause()

    def resume_writing(self) -> None:
        self.resume()

    # -- output and timers ---------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._dirty = True
        transport = self._transport
        if transport is None:
            self._out.clear()
            return
        if self._ready and not self._paused:
            self._pump()
        out = self._out
        if out:
            self._out = []
            transport.write(b"".join(out))
        if self._pumped:
            self.after_output()
        self._dirty = False
        if self._out or (self._ready and not self._paused and self._send_window > 0):
            self._wake()
        elif self.closing or (self.draining and not self._streams):
            if self.fault is not None:
                _log.warning("closing the connection to %s: %s", self._common[1][1].decode(), self.fault)
                self.fault = None
            transport.close()

    def _arm(self, deadline: float) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._next_deadline = deadline
        self._deadline_timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._deadline_timer = None
        self._next_deadline = float("inf")
        nearest = self.expire(self._loop.time())
        if nearest is not None:
            self._arm(nearest)

    def _tick_seconds(self) -> float:
        return max(0.01, min(1.0, (self._keepalive_seconds or 1.0) / 2))

    def _tick(self) -> None:
        self._tick_timer = self._loop.call_later(self._tick_seconds(), self._tick)
        reason = self.on_tick(self._clock(), self._keepalive_seconds, self._keepalive_timeout_seconds)
        if reason is not None and self._transport is not None:
            _log.warning("dropping the connection to %s: %s", self._common[1][1].decode(), reason)
            self._transport.abort()
