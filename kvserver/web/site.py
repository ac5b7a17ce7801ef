"""Which request goes where: host check, CORS, pages, gateway, and the refusals, in etcd's order.

A :class:`Site` answers a :class:`~kvserver.web.exchange.Target` for a request's head. Targets hold no request's state,
so they are remembered with the head. There are two sites: the client port's, and the one of ``--listen-metrics-urls``,
which has health and metrics only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from tornado.httputil import RequestStartLine

from kvserver import limits
from kvserver.errors import Code
from kvserver.web.exchange import CLOSE, Exchange, ParsedHeaders, Target, TornadoExchange
from kvserver.web.gateway import (
    PREFIXES,
    BadTimeoutError,
    CallHead,
    Rpc,
    StreamCall,
    UnaryCall,
    build_routes,
    error_body,
    read_call_head,
)
from kvserver.web.pages import ALLOW_GET, Pages
from kvserver.wire.server import StreamMethod, UnaryMethod

Page = Callable[[Exchange], None]

_UNKNOWN_HOST = """
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist "{}"

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
"""


class PageTarget:
    """A page, or a refusal. The request's body is not used."""

    __slots__ = ("_page",)

    is_stream = False

    def __init__(self, page: Page) -> None:
        self._page = page

    def open_stream(self, exchange: TornadoExchange) -> StreamCall:
        """Never called: pages are no streams."""
        raise NotImplementedError

    def run(self, exchange: Exchange, body: bytes) -> None:
        """Answer."""
        self._page(exchange)


class RpcTarget:
    """An RPC of the gateway with the caller's metadata."""

    __slots__ = ("_head", "_message_bytes_max", "_rpc", "is_stream")

    def __init__(self, rpc: Rpc, head: CallHead, message_bytes_max: int) -> None:
        self._rpc = rpc
        self._head = head
        self._message_bytes_max = message_bytes_max
        self.is_stream = rpc.takes_stream or rpc.answers_stream or isinstance(rpc.handler, StreamMethod)

    def open_stream(self, exchange: TornadoExchange) -> StreamCall:
        """Begin the streaming call."""
        return StreamCall(exchange, self._rpc, self._head, self._message_bytes_max)

    def run(self, exchange: Exchange, body: bytes) -> None:
        """Make the unary call."""
        call = exchange.call = UnaryCall(exchange, self._rpc)
        call.start(self._head, body, self._message_bytes_max)


def refusal(status: int, text: str, headers: bytes = b"") -> Target:
    """Answer a target that refuses."""
    return PageTarget(lambda exchange: exchange.send_text(status, text, headers))


def _get_only(page: Page) -> Page:
    def run(exchange: Exchange) -> None:
        if exchange.start_line.method == "GET":
            page(exchange)
        else:
            exchange.send_text(405, "Method Not Allowed", ALLOW_GET)

    return run


class Site:
    """What one port serves over HTTP.

    Args:
        pages: the pages.
        methods: the gRPC methods table, for the gateway.
        max_request_bytes: as configured; messages may exceed it by a fixed overhead, as on gRPC.
        cors: allowed origins; ``*`` is every one.
        host_whitelist: allowed host names; ``*`` is every one.
        metrics_only: serve health and metrics only.
    """

    def __init__(
        self,
        pages: Pages,
        methods: Mapping[bytes, UnaryMethod | StreamMethod],
        *,
        max_request_bytes: int,
        cors: Sequence[str] = ("*",),
        host_whitelist: Sequence[str] = ("*",),
        metrics_only: bool = False,
    ) -> None:
        self._routes = {} if metrics_only else build_routes(methods)
        self._message_bytes_max = max_request_bytes + limits.GRPC_OVERHEAD_BYTES
        self.body_bytes_max = 2 * self._message_bytes_max
        self._any_origin = not cors or "*" in cors
        self._origins = frozenset(cors)
        self._any_host = not host_whitelist or "*" in host_whitelist
        self._hosts = frozenset(host_whitelist)
        self._metrics_only = metrics_only
        self._pages: dict[str, Page] = {"/metrics": pages.metrics, "/health": _get_only(pages.health)}
        self._page_trees: dict[str, Page] = {"/livez": _get_only(pages.livez), "/readyz": _get_only(pages.readyz)}
        if not metrics_only:
            self._pages["/version"] = _get_only(pages.version)
            self._pages["/v2/members"] = _get_only(pages.members)

    def target_of(self, start_line: RequestStartLine, headers: ParsedHeaders) -> Target:
        """Answer where a request goes, from memory if a request with the same head came before."""
        target = headers.target
        if target is None:
            target = headers.target = self._target(start_line, headers)
        return target

    def _target(self, start_line: RequestStartLine, headers: ParsedHeaders) -> Target:
        """Work out where a request goes, and note in its headers what every answer to it carries."""
        self._note_connection(start_line, headers)
        host = headers.get("Host")
        if host is None and start_line.version == "HTTP/1.1":
            headers.connection = CLOSE
            return refusal(400, "400 Bad Request: missing required Host header")
        if not self._any_host and not self._metrics_only:
            name = _host_name(host or "")
            if name not in self._hosts:
                return refusal(421, _UNKNOWN_HOST.format(name))
        if not self._metrics_only:
            self._note_origin(headers)
            if start_line.method == "OPTIONS":
                return PageTarget(lambda exchange: exchange.send_body(200, b"", b""))
        path = start_line.path.partition("?")[0]
        if not path.startswith("/"):
            try:
                path = urlsplit(path).path
            except ValueError as error:
                return refusal(400, f"400 Bad Request: {error}")
        page = self._pages.get(path) or self._page_trees.get("/" + path.removeprefix("/").partition("/")[0])
        if page is not None:
            return PageTarget(page)
        for prefix in PREFIXES:
            if path.startswith(prefix) and not self._metrics_only:
                return self._rpc_target(path.removeprefix(prefix), start_line, headers)
        return refusal(404, "404 page not found")

    def refuse_body(self, exchange: Exchange, size: int) -> None:
        """Refuse a body above the limit, as the gateway does a message above it."""
        text = f"grpc: received message larger than max ({size} vs. {self._message_bytes_max})"
        exchange.send_json(429, error_body(Code.RESOURCE_EXHAUSTED, text))

    def _rpc_target(self, path: str, start_line: RequestStartLine, headers: ParsedHeaders) -> Target:
        rpc = self._routes.get(path)
        if rpc is None:
            return refusal(404, "Not Found")
        if start_line.method != "POST":
            return refusal(405, "Method Not Allowed")
        try:
            head = read_call_head(rpc, headers)
        except BadTimeoutError as error:
            body = error_body(Code.INVALID_ARGUMENT, str(error))
            return PageTarget(lambda exchange: exchange.send_json(400, body))
        return RpcTarget(rpc, head, self._message_bytes_max)

    def _note_origin(self, headers: ParsedHeaders) -> None:
        origin = "*" if self._any_origin else headers.get("Origin")
        if origin is not None and (self._any_origin or origin in self._origins):
            headers.cors = (
                b"Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
                b"Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
                b"Access-Control-Allow-Origin: %b\r\n" % origin.encode("latin1")
            )

    @staticmethod
    def _note_connection(start_line: RequestStartLine, headers: ParsedHeaders) -> None:
        wish = (headers.get("Connection") or "").lower()
        if start_line.version == "HTTP/1.0":
            headers.connection = b"Connection: keep-alive\r\n" if wish == "keep-alive" else CLOSE
        elif wish == "close":
            headers.connection = CLOSE


def _host_name(host: str) -> str:
    """Answer the host of a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
