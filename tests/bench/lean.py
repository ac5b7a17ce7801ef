"""A lean gRPC client: counts what arrives instead of understanding it, so that it does not become the bottleneck.

HTTP/2 just so far as a load generator needs it: header blocks are constants without indexing, answers' headers are not
decoded, messages are counted by their five-byte prefixes. It honours the server's windows when it sends, and grants
windows so large that the server never waits. That every call succeeded is for the caller to verify by other means (a
count, a revision).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK, PADDED = 1, 4, 1, 8
WINDOW_MAX = (1 << 31) - 1
GRANT_BYTES = 1 << 28


class LeanError(Exception):
    """The connection ended, or the server reset a stream."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream_id) + payload


def head_block(authority: str, path: str) -> bytes:
    """The header block of a request, without indexing: the same bytes may be sent any number of times."""

    def literal(name: bytes, value: bytes) -> bytes:
        return name + bytes([len(value)]) + value

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            literal(b"\x04", path.encode()),
            literal(b"\x01", authority.encode()),
            literal(b"\x0f\x10", b"application/grpc"),  # content-type
            literal(b"\x00\x02te", b"trailers"),
        )
    )


def message(body: bytes) -> bytes:
    """A gRPC message."""
    return struct.pack(">BI", 0, len(body)) + body


class LeanConnection(asyncio.Protocol):
    """One connection. Callbacks: ``on_messages(stream_id, count)`` and ``on_end(stream_id)``."""

    def __init__(self, authority: str) -> None:
        self.authority = authority
        self.on_messages: Callable[[int, int], None] = lambda stream_id, count: None
        self.on_end: Callable[[int], None] = lambda stream_id: None
        self.on_batch: Callable[[], None] = lambda: None
        """Called after each read: what the other callbacks sent goes out in one write."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._out: list[bytes] = []
        self._next_stream = 1
        self._window = 65535
        self._blocked: deque[bytes] = deque()
        self._received = 0
        self._missing: dict[int, int] = {}
        self._partial: dict[int, bytes] = {}
        self._blocks: dict[str, bytes] = {}

    @classmethod
    async def connect(cls, endpoint: str) -> LeanConnection:
        """Connect to ``host:port``."""
        host, _, port = endpoint.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(endpoint), host, int(port))
        return connection

    # -- sending ------------------------------------------------------------------------------------------------------

    def call(self, path: str, body: bytes, *, end: bool = True) -> int:
        """Begin a call with its first message; with ``end`` a unary one. Needs :meth:`flush`."""
        block = self._blocks.get(path)
        if block is None:
            block = self._blocks[path] = head_block(self.authority, path)
        stream_id = self._next_stream
        self._next_stream += 2
        self._out.append(frame(HEADERS, END_HEADERS, stream_id, block))
        self.send(stream_id, body, end=end)
        return stream_id

    def send(self, stream_id: int, body: bytes, *, end: bool = False) -> None:
        """Send a message. Needs :meth:`flush`."""
        data = frame(DATA, END_STREAM if end else 0, stream_id, message(body))
        if self._blocked or len(data) > self._window:
            self._blocked.append(data)
        else:
            self._window -= len(data) - 9
            self._out.append(data)

    def flush(self) -> None:
        """Write what was sent."""
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.abort()

    # -- receiving: hot -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing of asyncio
        settings = struct.pack(">HIHI", 4, WINDOW_MAX, 2, 0)
        grant = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_MAX - 65535))
        self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + grant)

    def data_received(self, data: bytes) -> None:
        """Read frames."""
        if self._buffer:
            data = self._buffer + data
        position, end = 0, len(data)
        while position + 9 <= end:
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            stop = position + 9 + length
            if stop > end:
                break
            kind, flags = data[position + 3], data[position + 4]
            stream_id = int.from_bytes(data[position + 5 : position + 9], "big")
            if kind == DATA:
                self._data(stream_id, data, position + 9, stop)
                if flags & END_STREAM:
                    self.on_end(stream_id)
            elif kind == HEADERS:
                if flags & END_STREAM:
                    self._missing.pop(stream_id, None)
                    self.on_end(stream_id)
            else:
                self._control(kind, flags, stream_id, data[position + 9 : stop])
            position = stop
        self._buffer = data[position:]
        self.on_batch()
        self.flush()

    def _data(self, stream_id: int, data: bytes, position: int, stop: int) -> None:
        self._received += stop - position
        if self._received > GRANT_BYTES:
            self._out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        missing = self._missing.get(stream_id, 0)
        if self._partial:
            rest = self._partial.pop(stream_id, b"")
            if rest:
                data, position, stop = rest + data[position:stop], 0, len(rest) + stop - position
        count = 0
        while True:
            if missing > stop - position:
                missing -= stop - position
                break
            if missing:
                position += missing
                missing = 0
                count += 1
            if stop - position < 5:
                if stop > position:
                    self._partial[stream_id] = data[position:stop]
                break
            missing = int.from_bytes(data[position + 1 : position + 5], "big")
            position += 5
            if not missing:
                count += 1
        self._missing[stream_id] = missing
        if count:
            self.on_messages(stream_id, count)

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == SETTINGS:
            if not flags & ACK:
                self._out.append(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING:
            if not flags & ACK:
                self._out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            if not stream_id:
                self._window += int.from_bytes(payload, "big")
                while self._blocked and len(self._blocked[0]) <= self._window:
                    data = self._blocked.popleft()
                    self._window -= len(data) - 9
                    self._out.append(data)
        elif kind in (RST_STREAM, GOAWAY) and self._transport is not None:
            self._fail(f"the server sent {'RST_STREAM' if kind == RST_STREAM else 'GOAWAY'} {payload!r}")
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self._fail(f"the connection ended: {error}")

    def _fail(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_exception(LeanError(reason))
            self.closed.exception()  # seen, also if nobody waits
