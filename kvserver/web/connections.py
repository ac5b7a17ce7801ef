"""HTTP/1.1 connections: plain ones on the bare socket, all others on Tornado's machinery, with deadlines.

Every connection begins as a :class:`~kvserver.web.direct.DirectConnection` and moves to Tornado with the first request
that is not plain.

Tornado parses and frames; two costs of its request path are avoided. A head that was seen before (clients repeat
theirs) is not parsed again. TCP_NODELAY stays on instead of being switched twice a request.

Deadlines are kept by one timer for all connections rather than one for each request: a connection is closed when a
request's head takes too long from its first byte, or the body of a unary request stops coming. An idle connection
between requests may stay.

Not here: what is answered (``exchange``), accepting (``listener``).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any, cast

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from kvserver import limits
from kvserver.web.direct import DirectConnection, PlainHeads
from kvserver.web.exchange import CLOSE, ParsedHeaders, Phase, TornadoExchange
from kvserver.web.site import Site

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0

_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"431 Request Header Fields Too Large: request line and headers may have %d bytes\n" % limits.HTTP_HEAD_BYTES_MAX
)


class _Stream(IOStream):
    """A stream that counts what it reads, and whose Nagle algorithm stays off."""

    def __init__(self, sock: socket.socket, received: bytes) -> None:
        super().__init__(sock)
        self.bytes_received = 0
        self.exchange: TornadoExchange | None = None
        self._received_before = received

    def set_nodelay(self, value: bool) -> None:
        """Keep TCP_NODELAY as it was set at the start."""

    def close(self, exc_info: Any = False) -> None:
        """Close, after saying why if a request's head is too long to read."""
        reads_head = self.exchange is not None and self.exchange.phase is Phase.HEAD
        if isinstance(exc_info, UnsatisfiableReadError) and reads_head and not self.closed():
            try:
                self.socket.send(_HEAD_TOO_LARGE)
            except OSError:
                pass
        super().close(exc_info)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read, first what came before this stream took over, and count."""
        before = self._received_before
        if before:
            size: int | None = min(len(buf), len(before))
            buf[:size] = before[:size]
            self._received_before = before[size:]
        else:
            size = super().read_from_fd(buf)
        if size:
            self.bytes_received += size
        return size


class _Http1(HTTP1Connection):
    """One request on a connection, with a memory of parsed heads.

    Overrides one method of Tornado that is not public; without the override everything works, at 5/6 of the speed.
    """

    heads: dict[bytes, tuple[str, ParsedHeaders]]

    def _parse_headers(self, data: bytes) -> tuple[str, ParsedHeaders]:
        found = self.heads.get(data)
        if found is None:
            text = data.decode("latin1").lstrip("\r\n")
            end = text.find("\n")
            found = text[:end].rstrip("\r"), cast(ParsedHeaders, ParsedHeaders.parse(text[end:])).complete()
            if len(data) <= limits.HTTP_HEAD_CACHED_BYTES_MAX:
                if len(self.heads) >= limits.HTTP_HEADS_CACHED:
                    self.heads.clear()
                self.heads[data] = found
        return found


class _Served:
    """One connection of Tornado's and where it stands."""

    __slots__ = ("exchange", "mark", "phase", "seen", "since", "stream", "task")

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream
        self.exchange: TornadoExchange | None = None
        self.mark = -1  # bytes received when the last request ended; of a new connection the first ones are under way
        self.phase: Phase | None = None  # what the sweep saw last, with how many bytes, and since when
        self.seen = 0
        self.since = 0.0
        self.task: asyncio.Task[None] | None = None


class HttpConnections:
    """Serves HTTP/1.1 on connections that others accept.

    Args:
        site: what is served.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._parameters = HTTP1ConnectionParameters(
            max_header_size=limits.HTTP_HEAD_BYTES_MAX, max_body_size=limits.HTTP_DRAIN_BYTES_MAX
        )
        self._heads: dict[bytes, tuple[str, ParsedHeaders]] = {}
        self._plain_heads = PlainHeads(site)
        self._direct: set[DirectConnection] = set()
        self._served: set[_Served] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._requests_ended = 0

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._direct) + len(self._served)

    @property
    def requests_total(self) -> int:
        """Requests read so far."""
        return self._requests_ended + sum(connection.requests for connection in self._direct)

    def serve(self, sock: socket.socket, peer: str) -> None:
        """Serve a connected, non-blocking socket until its end."""
        connection = DirectConnection(
            self._site, self._plain_heads, sock, peer, hand_over=self._take_over, on_close=self._forget
        )
        self._direct.add(connection)
        connection.start()

    def _forget(self, connection: DirectConnection) -> None:
        self._direct.discard(connection)
        self._requests_ended += connection.requests

    def _take_over(self, connection: DirectConnection, received: bytes, unsent: bytes) -> None:
        """Go on with a connection on Tornado's machinery."""
        self._forget(connection)
        served = _Served(_Stream(connection.sock, received))
        self._served.add(served)
        served.task = asyncio.get_running_loop().create_task(self._serve(served, connection.peer, unsent))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    async def _serve(self, served: _Served, peer: str, unsent: bytes) -> None:
        stream = served.stream
        try:
            if unsent:
                await stream.write(unsent)
            while not self._stopping:
                connection = _Http1(stream, False, self._parameters, peer)
                connection.heads = self._heads
                served.exchange = stream.exchange = exchange = TornadoExchange(self._site, connection, peer)
                served.phase = None
                if not await connection.read_response(exchange):
                    break
                self._requests_ended += 1
                if exchange.headers.connection == CLOSE:
                    break
                served.mark = stream.bytes_received
                # A client that is as fast as we are would never let others have their turn.
                await asyncio.sleep(0)
        except (StreamClosedError, UnsatisfiableReadError, ConnectionError):
            pass
        except Exception:
            log.exception("the HTTP connection of %s failed", peer)
        finally:
            stream.close()
            self._served.discard(served)

    def _sweep(self) -> None:
        if not self._served:
            self._timer = None
            return
        self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        now = time.monotonic()
        for served in list(self._served):
            exchange = served.exchange
            if exchange is None or exchange.phase is Phase.ANSWER or exchange.is_stream:
                continue
            received = served.stream.bytes_received
            if exchange.phase is Phase.HEAD:
                if received == served.mark:
                    continue  # idle between requests
                limit = limits.HTTP_HEAD_SECONDS
            else:
                limit = limits.HTTP_BODY_PAUSE_SECONDS
            if served.phase is not exchange.phase or (exchange.phase is Phase.BODY and received != served.seen):
                served.phase, served.seen, served.since = exchange.phase, received, now
            elif now - served.since > limit:
                log.info("closing the HTTP connection of %s: its request did not become complete", exchange.peer)
                served.stream.close()

    async def close(self, grace_seconds: float) -> None:
        """End all connections: those that answer a request have ``grace_seconds`` for it."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in [one for one in self._direct if not one.is_busy]:
            connection.close()
        tasks = []
        for served in list(self._served):
            exchange = served.exchange
            if exchange is None or exchange.phase is not Phase.ANSWER or exchange.is_stream:
                served.stream.close()
            if served.task is not None:
                tasks.append(served.task)
        deadline = time.monotonic() + grace_seconds
        while self._direct and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            for connection in [one for one in self._direct if not one.is_busy]:
                connection.close()
        for connection in list(self._direct):
            connection.close()
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
        for served in list(self._served):
            served.stream.close()
            if served.task is not None:
                served.task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
