"""One HTTP request and its answer, lean: the answer is composed as bytes.

A :class:`TornadoExchange` is Tornado's message delegate for one request. It finds out where the request goes (a page,
an RPC, nowhere), gathers the body or passes it on, and writes the answer once. What a request's head says (target,
call metadata, origin) is worked out once per distinct head and remembered beside Tornado's parsed headers, since a
client's heads differ in Content-Length at most.

``phase`` goes HEAD -> BODY -> ANSWER; an answer may come early, in BODY, and closes the connection then. After the
answer, or when the client went away, nothing more is written.

Not here: sockets and deadlines (``connections``), JSON and RPCs (``gateway``), the pages (``pages``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator
from email.utils import formatdate
from enum import Enum
from http.client import responses as REASONS  # noqa: N812 - a constant table
from typing import TYPE_CHECKING, Protocol

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import StreamClosedError

from kvserver import limits

if TYPE_CHECKING:
    from kvserver.web.gateway import StreamCall, UnaryCall
    from kvserver.web.site import Site

log = logging.getLogger(__name__)

__all__ = ["CLOSE", "REASONS", "Exchange", "ParsedHeaders", "Phase", "Target", "TornadoExchange"]

JSON_TYPE = b"Content-Type: application/json\r\n"
TEXT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
FAILURE_TYPE = TEXT_TYPE + b"X-Content-Type-Options: nosniff\r\n"
CLOSE = b"Connection: close\r\n"
GRPC_METADATA = b"Grpc-Metadata-Content-Type: application/grpc\r\n"


class Phase(Enum):
    """What a request is waiting for."""

    HEAD = 1
    BODY = 2
    ANSWER = 3


class Target(Protocol):
    """Where a request goes.

    Attributes:
        is_stream: the body is wanted piece by piece, by ``open_stream``; else as a whole, by ``run``.
    """

    is_stream: bool

    def open_stream(self, exchange: TornadoExchange) -> StreamCall:
        """Begin a streaming call."""
        ...

    def run(self, exchange: Exchange, body: bytes) -> None:
        """Answer a request that is complete."""
        ...


class ParsedHeaders(HTTPHeaders):
    """Headers of a request, shared by all requests with the same head, with what was worked out from them."""

    def __init__(self) -> None:
        super().__init__()
        self.target: Target | None = None
        self.cors = b""
        self.connection = b""
        self._asked: dict[object, str | None] = {}
        self._complete = False

    # Tornado asks for the same five names at every request; the answers of a shared head do not change.

    def complete(self) -> ParsedHeaders:
        """Say that no header will be added any more; answers itself."""
        self._complete = True
        self._asked.clear()
        return self

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Answer a header's value."""
        value = self._asked[name] if name in self._asked else self._ask(name)
        return default if value is None else value

    def __contains__(self, name: object) -> bool:
        return (self._asked[name] if name in self._asked else self._ask(name)) is not None

    def _ask(self, name: object) -> str | None:
        value = super().get(str(name))
        if self._complete:
            self._asked[name] = value
        return value


class _Date:
    """The Date header line, remade once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"Date: " + formatdate(second, usegmt=True).encode() + b"\r\n"
        return self._line


_date = _Date()


class Exchange:
    """One request and its answer, whoever reads the one and writes the other.

    Attributes:
        start_line: the request line.
        headers: the request's headers.
        peer: the client's address.
        phase: what is being waited for.
        call: the unary call that was begun for it.
    """

    start_line: RequestStartLine
    headers: ParsedHeaders

    def __init__(self, site: Site, peer: str) -> None:
        self._site = site
        self._answered = False
        self.peer = peer
        self.call: UnaryCall | None = None
        self.phase = Phase.HEAD

    def _write(self, data: bytes) -> None:
        """Write a whole answer, and be ready for the next request."""
        raise NotImplementedError

    def send_message(self, body: bytes) -> None:
        """Answer an RPC's message."""
        self._send(200, JSON_TYPE + GRPC_METADATA, body)

    def send_json(self, status: int, body: bytes) -> None:
        """Answer JSON."""
        self._send(status, JSON_TYPE, body)

    def send_text(self, status: int, text: str, headers: bytes = b"") -> None:
        """Answer a failure as Go's ``http.Error`` does, with a line feed behind the text."""
        self._send(status, headers + FAILURE_TYPE, text.encode() + b"\n")

    def send_body(self, status: int, headers: bytes, body: bytes) -> None:
        """Answer with header lines of one's own."""
        self._send(status, headers, body)

    def _send(self, status: int, headers: bytes, body: bytes) -> None:
        if self._answered:
            return
        self._answered = True
        parsed = self.headers
        head = b"HTTP/1.1 %d %b\r\n%b%b%bContent-Length: %d\r\n%b\r\n" % (
            status,
            REASONS.get(status, "Client Closed Request").encode(),
            parsed.cors,
            headers,
            _date.line(),
            len(body),
            # An answer before the end of the request closes the connection: the rest of the body is not worth reading.
            CLOSE if self.phase is Phase.BODY else parsed.connection,
        )
        self._write(head + body if self.start_line.method != "HEAD" else head)

    def send_slices(self, slices: Generator[None, None, bytes]) -> None:
        """Answer a large message whose JSON is made in slices, the loop turning in between."""
        loop = asyncio.get_running_loop()

        def step() -> None:
            if self._answered:
                slices.close()
                return
            try:
                next(slices)
            except StopIteration as stop:
                self.send_message(stop.value)
            except Exception:
                log.exception("an answer cannot be written as JSON")
                self.send_text(500, "Internal Server Error: the call was made, but its answer cannot be written")
            else:
                loop.call_soon(step)

        step()


class TornadoExchange(Exchange, HTTPMessageDelegate):
    """A request that Tornado reads: the delegate of its messages."""

    def __init__(self, site: Site, connection: HTTP1Connection, peer: str) -> None:
        super().__init__(site, peer)
        self._connection = connection
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._stream: StreamCall | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the request belongs to a streaming call, which may rest as long as it likes."""
        return self._stream is not None

    # -- Tornado's calls ----------------------------------------------------------------------------------------------

    def headers_received(self, start_line: object, headers: HTTPHeaders) -> None:
        """Take the head."""
        assert isinstance(start_line, RequestStartLine)
        assert isinstance(headers, ParsedHeaders)
        self.start_line = start_line
        self.headers = headers
        self.phase = Phase.BODY
        self._connection.set_close_callback(self.on_connection_close)
        target = self._site.target_of(start_line, headers)
        if target.is_stream:
            self._stream = target.open_stream(self)
            self._connection.set_max_body_size(1 << 62)  # of the whole stream; each message has its limit
            return
        length = headers.get("Content-Length") or ""
        if length.isdecimal() and len(length) < 20 and int(length) > limits.HTTP_DRAIN_BYTES_MAX:
            self._site.refuse_body(self, int(length))

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self._stream is not None:
            self._stream.receive(chunk)
            return
        self._body_bytes += len(chunk)
        if self._body_bytes <= self._site.body_bytes_max:
            self._body.append(chunk)
        else:
            self._body.clear()

    def finish(self) -> None:
        """The body is complete."""
        self.phase = Phase.ANSWER
        if self._stream is not None:
            self._stream.receive_end()
            return
        if self._body_bytes > self._site.body_bytes_max:
            self._site.refuse_body(self, self._body_bytes)
            return
        body = self._body
        self._site.target_of(self.start_line, self.headers).run(self, body[0] if len(body) == 1 else b"".join(body))

    def on_connection_close(self) -> None:
        """The client went away."""
        self._answered = True
        if self._stream is not None:
            self._stream.connection_closed()
        if self.call is not None:
            self.call.closed()

    # -- answers ------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        self._forget_write(self._connection.write(data))
        self._connection.finish()

    def start_stream(self, status: int, *, with_metadata: bool) -> None:
        """Write the head of a streamed answer."""
        if self._answered:
            return
        headers = HTTPHeaders()
        lines = self.headers.cors + JSON_TYPE + (GRPC_METADATA if with_metadata else b"") + _date.line()
        for line in lines.decode("latin1").splitlines():
            name, _, value = line.partition(": ")
            headers.add(name, value)
        if self.start_line.version == "HTTP/1.0":
            headers.add("Connection", "close")
        self._forget_write(
            self._connection.write_headers(ResponseStartLine("HTTP/1.1", status, REASONS[status]), headers)
        )

    def write_chunk(self, data: bytes, written: Callable[[], None]) -> None:
        """Write a piece of a streamed answer; ``written`` is called when the socket took it."""
        if self._answered:
            return
        future = self._connection.write(data)

        def done(finished: asyncio.Future[None]) -> None:
            if finished.cancelled() or finished.exception() is not None:
                return
            written()

        future.add_done_callback(done)

    def end_stream(self, data: bytes) -> None:
        """Write the last piece of a streamed answer and end it."""
        if self._answered:
            return
        self._answered = True
        if data:
            self._forget_write(self._connection.write(data))
        self._connection.finish()

    @staticmethod
    def _forget_write(future: asyncio.Future[None]) -> None:
        """A write whose failure the close callback tells of anyway."""
        if future.done() and not future.cancelled():
            error = future.exception()
            if error is not None and not isinstance(error, StreamClosedError):
                log.info("writing an answer failed: %s", error)
