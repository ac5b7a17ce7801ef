"""HTTP/1.1 connections: Tornado's HTTP machinery, with remembered heads and deadlines.

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
from collections.abc import Callable
from typing import cast

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from kvserver import limits
from kvserver.web.exchange import CLOSE, Exchange, ParsedHeaders, Phase
from kvserver.web.site import Site

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0

StartLine = RequestStartLine | ResponseStartLine


class _Stream(IOStream):
    """A stream that counts what it reads, and whose Nagle algorithm stays off."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.bytes_received = 0

    def set_nodelay(self, value: bool) -> None:
        """Keep TCP_NODELAY as it was set at the start."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read, and count."""
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
    """One connection and where it stands."""

    __slots__ = ("exchange", "mark", "phase", "seen", "since", "stream", "task")

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream
        self.exchange: Exchange | None = None
        self.mark = -1  # bytes received when the last request ended; of a new connection the first ones are under way
        self.phase: Phase | None = None  # what the sweep saw last, with how many bytes, and since when
        self.seen = 0
        self.since = 0.0
        self.task: asyncio.Task[None] | None = None


class HttpConnections:
    """Serves HTTP/1.1 on connections that others accept.

    Args:
        site: what is served.
        on_close: called for each connection that ended.
    """

    def __init__(self, site: Site, *, on_close: Callable[[], None] = lambda: None) -> None:
        self._site = site
        self._parameters = HTTP1ConnectionParameters(
            max_header_size=limits.HTTP_HEAD_BYTES_MAX, max_body_size=limits.HTTP_DRAIN_BYTES_MAX
        )
        self._on_close = on_close
        self._heads: dict[bytes, tuple[str, ParsedHeaders]] = {}
        self._served: set[_Served] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.requests_total = 0

    @property
    def connection_count(self) -> int:
        """Connections that are open now."""
        return len(self._served)

    def serve(self, sock: socket.socket, peer: str) -> None:
        """Serve a connected, non-blocking socket until its end."""
        served = _Served(_Stream(sock))
        self._served.add(served)
        served.task = asyncio.get_running_loop().create_task(self._serve(served, peer))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    async def _serve(self, served: _Served, peer: str) -> None:
        stream = served.stream
        try:
            while not self._stopping:
                connection = _Http1(stream, False, self._parameters, peer)
                connection.heads = self._heads
                served.exchange = exchange = Exchange(self._site, connection, peer)
                served.phase = None
                if not await connection.read_response(exchange):
                    break
                self.requests_total += 1
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
            self._on_close()

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
        tasks = []
        for served in list(self._served):
            exchange = served.exchange
            if exchange is None or exchange.phase is not Phase.ANSWER or exchange.is_stream:
                served.stream.close()
            if served.task is not None:
                tasks.append(served.task)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for served in list(self._served):
            served.stream.close()
            if served.task is not None:
                served.task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
