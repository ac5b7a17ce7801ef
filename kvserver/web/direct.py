"""HTTP/1.1 connections as long as they are plain: a whole request in one read, a whole answer in one write.

That is what clients of the JSON gateway send nearly always, and Tornado's machinery for the general case costs more
than all the rest of such a request. So a connection begins here, on the bare socket. A request is *plain* if it is
HTTP/1.1, came whole in one read, has a body of known length, wishes nothing of its connection, and is no stream. The
first one that is not plain, and whatever the parser finds odd, hands the connection over to Tornado for good, with the
bytes that were read: there is one implementation of everything that is not plain, and it is Tornado's.

States: *idle* (waiting for a request) -> *busy* (the request is being answered; more bytes are kept, at most one read's
worth) -> *idle*; left by ``closed`` or ``handed over``.

The parsed heads come from Tornado's parsers and are shared with the connections it serves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from tornado.httputil import HTTPInputError, RequestStartLine, parse_request_start_line

from kvserver import limits
from kvserver.web.exchange import CLOSE, Exchange, ParsedHeaders, Phase, Target
from kvserver.web.site import Site

log = logging.getLogger(__name__)

_READ_BYTES = 65_536
_NOT_PLAIN_HEADERS = ("Transfer-Encoding", "Expect", "Upgrade")


class PlainHead:
    """What a plain request's head says; remembered by its bytes."""

    __slots__ = ("body_bytes", "headers", "start_line", "target")

    def __init__(self, start_line: RequestStartLine, headers: ParsedHeaders, body_bytes: int, target: Target) -> None:
        self.start_line = start_line
        self.headers = headers
        self.body_bytes = body_bytes
        self.target = target


class PlainHeads:
    """The heads seen so far: plain ones as what they say, others as None."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._heads: dict[bytes, PlainHead | None] = {}

    def get(self, data: bytes) -> PlainHead | None:
        """Answer what a head says if it is plain."""
        try:
            return self._heads[data]
        except KeyError:
            head = self._read(data)
            if len(data) <= limits.HTTP_HEAD_CACHED_BYTES_MAX:
                if len(self._heads) >= limits.HTTP_HEADS_CACHED:
                    self._heads.clear()
                self._heads[data] = head
            return head

    def _read(self, data: bytes) -> PlainHead | None:
        text = data.decode("latin1")
        line, _, rest = text.partition("\r\n")
        try:
            start_line = parse_request_start_line(line)
            headers = ParsedHeaders.parse(rest)
        except HTTPInputError:
            return None
        assert isinstance(headers, ParsedHeaders)
        headers.complete()
        length = headers.get("Content-Length") or "0"
        if (
            start_line.version != "HTTP/1.1"
            or any(name in headers for name in _NOT_PLAIN_HEADERS)
            or (headers.get("Connection") or "keep-alive").lower() != "keep-alive"
            or not (length.isascii() and length.isdecimal() and len(length) < 10)
            or int(length) + len(data) > _READ_BYTES
        ):
            return None
        target = self._site.target_of(start_line, headers)
        if target.is_stream or headers.connection == CLOSE:
            return None
        return PlainHead(start_line, headers, int(length), target)


class DirectConnection(Exchange):
    """One plain connection, and the exchange of its current request. Hot (benchmark ``gateway``).

    Args:
        site: what is served.
        heads: the shared memory of heads.
        sock: connected and non-blocking.
        peer: the client's address.
        hand_over: takes the socket, what was read from it and not used, and what is still to be written.
        on_close: called when the connection ended here.
    """

    def __init__(
        self,
        site: Site,
        heads: PlainHeads,
        sock: socket.socket,
        peer: str,
        *,
        hand_over: Callable[[DirectConnection, bytes, bytes], None],
        on_close: Callable[[DirectConnection], None],
    ) -> None:
        super().__init__(site, peer)
        self.sock = sock
        self.requests = 0
        self._heads = heads
        self._hand_over = hand_over
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._kept = b""
        self._open = True
        self._reading = False
        self._ended = False

    def start(self) -> None:
        """Serve the first request, and go on."""
        self._read_on()
        self._readable()

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.phase is Phase.ANSWER

    def close(self) -> None:
        """End the connection."""
        if not self._open:
            return
        self._open = False
        self._answered = True
        self._read_no_more()
        self.sock.close()
        if self.call is not None:
            self.call.closed()
            self.call = None
        self._on_close(self)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self.sock.fileno(), self._readable)

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.sock.fileno())

    def _readable(self) -> None:
        try:
            data = self.sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            log.debug("the HTTP connection of %s failed: %s", self.peer, error)
            self.close()
            return
        if not data:
            if self.phase is Phase.ANSWER:
                self._ended = True  # the client may have closed its half only, and get its answer
                self._read_no_more()
            else:
                self.close()
        elif self.phase is Phase.ANSWER:
            self._kept = data  # the next request came before its time: no more reading until it is its turn
            self._read_no_more()
        else:
            self._request(data)

    def _request(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        try:
            head = self._heads.get(data[:end]) if end > 3 else None
        except Exception:
            log.exception("the request %.80r of %s cannot be read", data, self.peer)
            self.close()
            return
        if head is None or len(data) != end + head.body_bytes:
            self._leave(data)
            return
        self.start_line = head.start_line
        self.headers = head.headers
        self.phase = Phase.ANSWER
        self._answered = False
        self.requests += 1
        try:
            head.target.run(self, data[end:])
        except Exception:
            log.exception("answering %s %s failed", head.start_line.method, head.start_line.path)
            self.send_text(500, "Internal Server Error")

    def _leave(self, data: bytes, unsent: bytes = b"") -> None:
        """Hand the connection over to Tornado."""
        self._open = False
        self._answered = True
        self._read_no_more()
        self._hand_over(self, data, unsent)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        self.phase = Phase.HEAD
        self.call = None
        kept, self._kept = self._kept, b""
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            log.debug("the HTTP connection of %s failed: %s", self.peer, error)
            self.close()
            return
        if sent < len(data):
            self._leave(kept, data[sent:])
        elif self._ended:
            self.close()
        elif kept:
            # In its turn, not at once: a client that pipelines must not keep the loop.
            self.phase = Phase.ANSWER
            self._loop.call_soon(self._go_on, kept)

    def _go_on(self, kept: bytes) -> None:
        if self._open:
            self.phase = Phase.HEAD
            self._read_on()
            self._request(kept)
