"""The server role: requests in, answers out, without I/O.

A unary call of one HEADERS frame and one DATA frame (with END_STREAM and the whole message) is handled inside the loop
of :meth:`ServerConnection._receive`: one dict look-up by header block, one entry in ``_streams``, the handler called
with the message; nothing is allocated for the call but the message. (Clients that have many calls to send write all
HEADERS first, then all DATA: the two frames are not neighbours.) Everything else goes frame by frame through the slower
methods of :class:`~kvserver.wire.machine.Machine`.

States of a stream, as the class of its entry in ``_streams``:

* :class:`RequestHead`: a unary call of which the headers are here and nothing else (*open*).
* :class:`Route`: a unary call, request complete, answer outstanding, nothing known of its window but the peer's initial
  one (*half-closed (remote)*). These two are the only states of a call on the hot path.
* :class:`_UnaryCall`: a unary call that comes in several pieces, whose window was changed, or whose answer is queued.
* :class:`ServerStream`: a streaming call.
* no entry: idle (id above ``_last_stream_id``) or closed. ``_unheard`` remembers closed streams whose peer may not know
  yet.

Invariants: an answer is given at most once, since giving it removes or marks the entry; a handler that answers a stream
that is gone does nothing. The fast branches run only while ``_fast_bytes`` is 14, which :meth:`ServerConnection._gate`
keeps: greeted, not draining, no header block open.

No socket, no clock, no request semantics here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import Protocol

from kvserver.errors import Code, KvError
from kvserver.limits import (
    WIRE_HEADER_BLOCK_CACHED_BYTES_MAX,
    WIRE_HEADER_BLOCKS_CACHED,
    WIRE_STATUS_MESSAGE_BYTES_MAX,
)
from kvserver.wire import frames
from kvserver.wire.faults import GrpcError, PeerFaultError, StreamFaultError, UsageError
from kvserver.wire.frames import PREFACE, WINDOW_DEFAULT, ErrorCode
from kvserver.wire.headers import Field, HeaderDecoder
from kvserver.wire.limits import WireLimits
from kvserver.wire.machine import Machine, OutStream
from kvserver.wire.messages import (
    PREFIX,
    MessageAssembler,
    decode_binary,
    encode_status_message,
    frame_message,
    parse_timeout,
)

UnaryHandler = Callable[["ServerConnection", int, "RequestHead", bytes], None]
"""Called with (connection, stream id, head, message) when a unary request is complete."""

StreamFactory = Callable[["ServerStream"], "StreamHandler"]
"""Called when a streaming call begins; answers what handles it."""


class StreamHandler(Protocol):
    """What a streaming method does with its stream. All calls come on the loop thread."""

    def on_message(self, message: bytes, /) -> None:
        """A whole message arrived."""

    def on_half_close(self) -> None:
        """The client will send no more."""

    def on_closed(self) -> None:
        """The client reset the stream or the connection is lost; not called after our own ``finish``."""

    def on_drained(self) -> None:
        """``buffered_bytes`` fell to the low-water mark after having been above the high-water mark."""


class UnaryMethod:
    """A unary method: its handler gets the request and answers with ``respond`` or ``fail``, now or later."""

    __slots__ = ("handler",)

    def __init__(self, handler: UnaryHandler) -> None:
        self.handler = handler


class StreamMethod:
    """A streaming method (either direction or both): its factory makes a handler for each call."""

    __slots__ = ("factory",)

    def __init__(self, factory: StreamFactory) -> None:
        self.factory = factory


class Metadata(Mapping[bytes, bytes]):
    """Request metadata by lower-case name; ``-bin`` values are decoded when read, repeated names joined by commas."""

    __slots__ = ("_decoded", "_raw")

    def __init__(self, raw: dict[bytes, bytes]) -> None:
        self._raw = raw
        self._decoded: dict[bytes, bytes] = {}

    def __getitem__(self, name: bytes) -> bytes:
        """Answer a value; raises ``KeyError`` for a missing name and ``ValueError`` for a damaged ``-bin`` value."""
        if not name.endswith(b"-bin"):
            return self._raw[name]
        value = self._decoded.get(name)
        if value is None:
            value = self._decoded[name] = decode_binary(self._raw[name])
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


class Route:
    """One method of a server with its counters. Hot: the entry of a plain unary call in ``_streams``."""

    __slots__ = ("factory", "failed", "handler", "messages_received", "messages_sent", "ok", "path", "started_streams")

    def __init__(self, path: bytes, method: UnaryMethod | StreamMethod | None) -> None:
        self.path = path
        self.handler = method.handler if isinstance(method, UnaryMethod) else None
        self.factory = method.factory if isinstance(method, StreamMethod) else None
        self.ok = 0
        """Calls answered with status 0."""
        self.failed: dict[int, int] = {}
        """Calls ended otherwise, by status code; a call whose client went away counts as CANCELLED."""
        self.messages_received = 0
        self.messages_sent = 0
        """Messages of streaming calls; those of unary calls follow from the numbers of calls."""

    def count(self, code: int) -> None:
        """Count a call that ended with ``code``."""
        if code:
            self.failed[code] = self.failed.get(code, 0) + 1
        else:
            self.ok += 1


class RequestHead:
    """What a request's header block said. Shared by all calls of a connection with the same block; never changed.

    Attributes:
        path: the method, such as ``b"/etcdserverpb.KV/Put"``.
        metadata: the other headers by lower-case name, without those of HTTP/2 and gRPC.
        timeout_seconds: the call's deadline from its start, if the client set one.
    """

    __slots__ = ("handler", "metadata", "path", "refusal", "route", "timeout_seconds")

    def __init__(
        self,
        path: bytes,
        metadata: Metadata,
        timeout_seconds: float | None,
        route: Route,
        refusal: tuple[int, str, bytes] | None = None,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.timeout_seconds = timeout_seconds
        self.route = route
        self.refusal = refusal
        self.handler: UnaryHandler | None = None if refusal else route.handler


def _with_timeout(head: RequestHead, timeout: bytes) -> RequestHead:
    """Answer the head with a timeout; a malformed one becomes its refusal."""
    try:
        return RequestHead(head.path, head.metadata, parse_timeout(timeout), head.route, head.refusal)
    except ValueError as error:
        refusal = head.refusal or (Code.INTERNAL, str(error), b"")
        return RequestHead(head.path, head.metadata, None, head.route, refusal)


# -- constant answers ------------------------------------------------------------------------------------------------

_STATUS_200 = b"\x88"
_CONTENT_TYPE = b"\x0f\x10\x10application/grpc"
_INITIAL = _STATUS_200 + _CONTENT_TYPE
_TRAILERS_OK = b"\x00\x0bgrpc-status\x010"
_INITIAL_HEAD = len(_INITIAL) << 8 | 1
_TRAILERS_HEAD = len(_TRAILERS_OK) << 8 | 1
_ACCEPT_ENCODING = b"\x00\x14grpc-accept-encoding\x08identity"

_PackAnswer = Callable[..., bytes]

_answer_shapes: dict[int, _PackAnswer] = {}
"""By message length: packs a whole unary answer in one call. Filled as needed for short messages."""
_ANSWER_SHAPE_BYTES_MAX = 1024

_answer_start: _PackAnswer = Struct(f">IBI{len(_INITIAL)}sIBIBI").pack
_answer_end: _PackAnswer = Struct(f">IBI{len(_TRAILERS_OK)}s").pack
_unpack_head = frames.HEAD.unpack_from
_unpack_start = Struct(">IBIBI").unpack_from
_FAST_MESSAGE_BYTES_MAX = frames.FRAME_BYTES_DEFAULT - 5
_HEADERS_WORD_MAX = frames.FRAME_BYTES_DEFAULT << 8 | 1
_NEVER = 1 << 62


def _make_answer_shape(size: int) -> _PackAnswer:
    return Struct(f">IBI{len(_INITIAL)}sIBIBI{size}sIBI{len(_TRAILERS_OK)}s").pack


def _literal(name: bytes, value: bytes) -> bytes:
    """Answer a header field as a literal without indexing."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def _trailer_block(code: int, message: str) -> bytes:
    block = _literal(b"grpc-status", b"%d" % code)
    if message:
        block += _literal(b"grpc-message", encode_status_message(message, WIRE_STATUS_MESSAGE_BYTES_MAX))
    return block


def _initial_frame(stream_id: int) -> bytes:
    return frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, _INITIAL)


def _trailer_frame(stream_id: int, code: int, message: str) -> bytes:
    return frames.header_frames(stream_id, _trailer_block(code, message), end_stream=True)


# -- streams ---------------------------------------------------------------------------------------------------------


class _UnaryCall(OutStream):
    """A unary call off the hot path."""

    __slots__ = ("answered", "assembler", "conn", "head", "message", "recv_window", "route")

    def __init__(self, conn: ServerConnection, stream_id: int, route: Route, head: RequestHead | None) -> None:
        super().__init__(stream_id, conn._peer_window)
        self.conn = conn
        self.route = route
        self.head = head
        self.assembler: MessageAssembler | None = None  # present while the request is being received
        self.message: bytes | None = None
        self.recv_window = conn.limits.stream_window_bytes
        self.answered = False

    def partial_bytes(self) -> int:
        """Bytes held of a request that has not ended."""
        held = self.assembler.held_bytes if self.assembler is not None else 0
        return held if self.message is None else held + len(self.message)


class ServerStream(OutStream):
    """A streaming call, as its handler sees it.

    Attributes:
        stream_id: the HTTP/2 stream.
        head: the request's head.
        conn: the connection.
        closed: nothing can be sent any more: finished, reset, or the connection is gone.
        buffered_bytes: bytes queued and unsent because of flow control or a slow socket.
    """

    __slots__ = (
        "_above_high_water",
        "_finished",
        "_half_closed",
        "_handler",
        "_headers_sent",
        "_recv_window",
        "assembler",
        "closed",
        "conn",
        "head",
    )

    def __init__(self, conn: ServerConnection, stream_id: int, head: RequestHead) -> None:
        super().__init__(stream_id, conn._peer_window)
        self.conn = conn
        self.head = head
        self.closed = False
        self._handler: StreamHandler | None = None
        self.assembler: MessageAssembler | None = MessageAssembler(conn.limits.message_bytes_max)
        self._recv_window = conn.limits.stream_window_bytes
        self._headers_sent = False
        self._half_closed = False
        self._finished = False
        self._above_high_water = False

    def partial_bytes(self) -> int:
        """Bytes held of an unfinished message."""
        return self.assembler.held_bytes if self.assembler is not None else 0

    def send_headers(self) -> None:
        """Send the initial headers now instead of with the first message."""
        if not self._headers_sent and not self.closed:
            self._headers_sent = True
            conn = self.conn
            conn._out.append(_initial_frame(self.stream_id))
            if not conn._dirty:
                conn._wake()

    def send(self, message: bytes) -> None:
        """Send one message. Does nothing when the stream is closed."""
        self.send_raw(frame_message(message))

    def send_raw(self, framed: bytes) -> None:
        """Send one or more messages that have their five-byte prefix. Does nothing when the stream is closed."""
        if self.closed:
            return
        conn = self.conn
        if conn._queued_bytes > conn.limits.queued_bytes_max:
            conn._reset_stream(self.stream_id, ErrorCode.ENHANCE_YOUR_CALM)
            return
        if not self._headers_sent:
            self._headers_sent = True
            conn._out.append(_initial_frame(self.stream_id))
        self.head.route.messages_sent += 1
        conn._send_data(self, framed)
        if self.buffered_bytes > conn.limits.high_water_bytes:
            self._above_high_water = True

    def finish(self, code: int = 0, message: str = "") -> None:
        """End the call after what was sent. Does nothing when the stream is closed."""
        if self.closed:
            return
        self.closed = True
        self._finished = True
        conn = self.conn
        conn._drop_partial(self)
        block = _trailer_block(code, message)
        if not self._headers_sent:
            self._headers_sent = True
            block = _INITIAL + block
        conn._answers += 1
        self.head.route.count(code)
        tail = frames.header_frames(self.stream_id, block, end_stream=True)
        if not self._half_closed:
            tail += frames.rst_stream(self.stream_id, ErrorCode.NO_ERROR)
        conn._send_tail(self, tail)

    def reset(self, code: int = ErrorCode.CANCEL) -> None:
        """End the call at once, dropping what is queued."""
        if not self.closed or self.buffered_bytes:
            self.conn._reset_stream(self.stream_id, code)

    def after_pump(self) -> None:
        """Tell the handler that the queue has drained."""
        if (
            self._above_high_water
            and self.buffered_bytes <= self.conn.limits.low_water_bytes
            and not self.closed
            and self._handler is not None
        ):
            self._above_high_water = False
            self.conn._guard(self, self._handler.on_drained)

    def _lost(self, code: int) -> None:
        """The stream was reset or its connection is gone."""
        if not self._finished:
            self.head.route.count(code)
        if not self.closed:
            self.closed = True
            if self._handler is not None:
                self.conn._guard(self, self._handler.on_closed)


class Routes:
    """The methods of a server by path; made once, shared by its connections."""

    __slots__ = ("_by_path", "_services", "unknown")

    def __init__(self, methods: Mapping[bytes, UnaryMethod | StreamMethod]) -> None:
        self._by_path = {path: Route(path, method) for path, method in methods.items()}
        self._services = {path[1:].rpartition(b"/")[0] for path in methods}
        self.unknown = Route(b"unknown/unknown", None)
        """Counts calls of methods that the server does not have."""

    def __iter__(self) -> Iterator[Route]:
        yield from self._by_path.values()
        yield self.unknown

    def get(self, path: bytes) -> Route | None:
        """Answer the method at exactly this path."""
        return self._by_path.get(path)

    def refusal(self, path: bytes) -> tuple[int, str]:
        """Answer code and text for a path without a method, in grpc-go's words."""
        text = path.decode("utf-8", "backslashreplace")
        service, slash, method = text[1:].rpartition("/")
        if not text.startswith("/") or not slash:
            return Code.UNIMPLEMENTED, f'malformed method name: "{text}"'
        if service.encode() in self._services:
            return Code.UNIMPLEMENTED, f"unknown method {method} for service {service}"
        return Code.UNIMPLEMENTED, f"unknown service {service}"


# -- the connection --------------------------------------------------------------------------------------------------


class ServerConnection(Machine):
    """One client's connection.

    Args:
        routes: the server's methods.
        limits: bounds of the connection.
        clock: monotonic seconds, read for rare frames only.
    """

    __slots__ = (
        "_answers",
        "_blocks",
        "_decoder",
        "_drain_ping_at",
        "_drain_started",
        "_fast_bytes",
        "_fast_message_max",
        "_heads",
        "_keepalive_sent_at",
        "_last_active",
        "_last_ping_at",
        "_partial_bytes",
        "_ping_marker",
        "_ping_strikes",
        "_preface_seen",
        "_routes",
        "_seen_bytes",
        "_stall_marker",
        "_stalled_since",
        "_unheard",
        "peer",
    )

    def __init__(self, routes: Routes, limits: WireLimits, clock: Callable[[], float]) -> None:
        super().__init__(limits, clock)
        self._routes = routes
        self.peer = ""
        """The client's address, such as "127.0.0.1:1234"."""
        self._blocks: dict[bytes, RequestHead] = {}
        self._heads: dict[tuple[Field, ...], RequestHead] = {}
        self._decoder = HeaderDecoder(limits.header_list_bytes_max, self._blocks)
        self._preface_seen = False
        self._fast_bytes = _NEVER
        self._fast_message_max = min(_FAST_MESSAGE_BYTES_MAX, limits.message_bytes_max)
        self._unheard: dict[int, None] = {}
        self._partial_bytes = 0
        self._answers = 0
        self._ping_strikes = 0
        self._last_ping_at = -1e18
        self._ping_marker = -1
        self._drain_started: float | None = None
        self._drain_ping_at = 0.0
        self._stall_marker = 0
        self._stalled_since = self._started_at
        self._seen_bytes = 0
        self._keepalive_sent_at: float | None = None
        self._last_active = self._started_at
        self._out.append(
            frames.settings(
                (
                    (frames.SETTINGS_MAX_CONCURRENT_STREAMS, limits.streams_max),
                    (frames.SETTINGS_INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.SETTINGS_MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
                )
            )
        )
        if limits.connection_window_bytes > WINDOW_DEFAULT:
            self._out.append(frames.window_update(0, limits.connection_window_bytes - WINDOW_DEFAULT))

    # -- receiving -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the client, calling handlers. Never raises for what the bytes are. Hot: "h2load 10x100"."""
        if self.closing:
            return
        self.bytes_received += len(data)
        try:
            self._receive(data)
        except PeerFaultError as fault:
            self._fail(fault)

    def _receive(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        size = len(data)
        position = 0
        if not self._preface_seen:
            if not data.startswith(PREFACE):
                if not PREFACE.startswith(data):
                    raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 client preface")
                self._buffer = data
                return
            self._preface_seen = True
            position = 24
        consumed = 0
        streams = self._streams
        blocks = self._blocks
        message_max = self._fast_message_max
        streams_max = self.limits.streams_max
        fast = self._fast_bytes
        while True:
            left = size - position
            if left >= fast:
                # DATA's fields and its message's prefix in one; of a HEADERS frame the last two mean nothing
                word, flags, stream_id, compressed, length = _unpack_start(data, position)
                if flags == 1:
                    if word == length + 5 << 8 and length <= message_max:  # DATA, the whole message
                        end = position + 14 + length
                        if end > size:
                            break
                        head = streams.get(stream_id)
                        if head.__class__ is RequestHead and not compressed:
                            streams[stream_id] = head.route
                            consumed += length + 5
                            message = data[position + 14 : end]
                            position = end
                            try:
                                head.handler(self, stream_id, head, message)  # type: ignore[misc]  # is unary
                            except Exception as error:  # the handler's fault must not end the connection
                                self._handler_failed(stream_id, error)
                            fast = self._fast_bytes
                            continue
                elif flags == 4 and word & 0xFF == 1 and word <= _HEADERS_WORD_MAX:  # HEADERS, the whole block
                    end = position + 9 + (word >> 8)
                    if end > size:
                        break
                    if stream_id > self._last_stream_id and stream_id & 1 and len(streams) < streams_max:
                        block = data[position + 9 : end]
                        head = blocks.get(block)
                        if head is None:
                            head = self._decode_head(block)
                        self._last_stream_id = stream_id
                        position = end
                        if head.handler is not None:
                            streams[stream_id] = head
                        else:
                            self._open(stream_id, head, False)
                            fast = self._fast_bytes
                        continue
            elif left < 9:
                break
            word, flags, stream_id = _unpack_head(data, position)
            length = word >> 8
            if length > frames.FRAME_BYTES_DEFAULT:
                raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            end = position + 9 + length
            if end > size:
                break
            payload = data[position + 9 : end]
            position = end
            self._frame(word & 0xFF, flags, stream_id & 0x7FFFFFFF, payload)
            if self.closing:
                return
            fast = self._fast_bytes
        self._buffer = data[position:] if position < size else b""
        if consumed:
            self._take_data(consumed)

    def _gate(self) -> None:
        open_ = self.greeted and not self.closing and not self._goaway_sent and self._block_parts is None
        self._fast_bytes = 14 if open_ else _NEVER

    def _decode_head(self, block: bytes) -> RequestHead:
        """Answer the head of a block that is not in ``_blocks``."""
        recalled = self._decoder.recall(block)
        if recalled is not None:
            return _with_timeout(*recalled)
        walked = self._decoder.walk(block)
        if walked is None:
            fields, unchanged = self._decoder.decode(block)
            head = self._build_head(tuple(fields), None)
        else:
            key, timeout, unchanged = walked
            known = self._heads.get(key)
            if known is None:
                self._decoder.check_size(key)
                known = self._build_head(key, None)
                if len(block) <= WIRE_HEADER_BLOCK_CACHED_BYTES_MAX:
                    if len(self._heads) >= WIRE_HEADER_BLOCKS_CACHED:
                        self._heads.clear()
                    self._heads[key] = known
            if timeout is None:
                head = known
            else:
                self._decoder.remember(known)
                head = _with_timeout(known, timeout)
        if unchanged and len(block) <= WIRE_HEADER_BLOCK_CACHED_BYTES_MAX:
            if len(self._blocks) >= WIRE_HEADER_BLOCKS_CACHED:
                self._blocks.clear()
            self._blocks[block] = head
        return head

    def _build_head(self, fields: tuple[Field, ...], timeout: bytes | None) -> RequestHead:
        """Answer the head of a decoded header list; what is wrong with it becomes its refusal."""
        pseudo: dict[bytes, bytes] = {}
        metadata: dict[bytes, bytes] = {}
        malformed = False
        for name, value in fields:
            if name.startswith(b":"):
                malformed = malformed or name in pseudo or bool(metadata)
                pseudo[name] = value
            elif name in metadata:
                metadata[name] += b"," + value
            else:
                malformed = malformed or name != name.lower() or name in (b"connection", b"transfer-encoding")
                metadata[name] = value
        path = pseudo.get(b":path", b"")
        malformed = malformed or not path or b":method" not in pseudo or b":scheme" not in pseudo
        if malformed or not pseudo.keys() <= {b":path", b":method", b":scheme", b":authority"}:
            return RequestHead(path, Metadata({}), None, self._routes.unknown, (-1, "malformed request headers", b""))
        timeout = metadata.pop(b"grpc-timeout", timeout)
        encoding = metadata.pop(b"grpc-encoding", b"identity")
        metadata.pop(b"grpc-accept-encoding", None)
        content_type = metadata.pop(b"content-type", b"")
        metadata.pop(b"te", None)
        method = pseudo[b":method"]
        route = self._routes.get(path)
        refusal: tuple[int, str, bytes] | None = None
        seconds: float | None = None
        try:
            seconds = None if timeout is None else parse_timeout(timeout)
        except ValueError as error:
            refusal = (Code.INTERNAL, str(error), b"")
        if method != b"POST":
            text = (
                f'http2Server.operateHeaders parsed a :method field: "{method.decode("latin-1")}" which should be POST'
            )
            refusal = (Code.INTERNAL, f"http2Server.operateHeaders {text}", b"405")
        elif not content_type.startswith(b"application/grpc") or content_type[16:17] not in (b"", b"+", b";"):
            text = f'invalid gRPC request content-type "{content_type.decode("latin-1")}"'
            refusal = (Code.UNKNOWN, text, b"415")
        elif route is None:
            code, text = self._routes.refusal(path)
            refusal = (code, text, b"")
        elif encoding not in (b"identity", b""):
            text = f'grpc: Decompressor is not installed for grpc-encoding "{encoding.decode("latin-1")}"'
            refusal = (Code.UNIMPLEMENTED, text, b"encoding")
        return RequestHead(path, Metadata(metadata), seconds, route or self._routes.unknown, refusal)

    def _on_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        head = self._blocks.get(block) or self._decode_head(block)
        if not stream_id & 1:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "stream id of a client is even")
        if stream_id <= self._last_stream_id:
            self._on_trailers(stream_id, end_stream)
            return
        if self._goaway_sent and self._drain_started is None:
            return  # the peer knows our last id: this stream is not ours to answer
        self._last_stream_id = stream_id
        if len(self._streams) >= self.limits.streams_max:
            self._remember_unheard(stream_id)
            self._out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self._reset_counted()
            return
        self._open(stream_id, head, end_stream)

    def _on_trailers(self, stream_id: int, end_stream: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id not in self._unheard:
                raise PeerFaultError(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
            self._idle_frame()
            return
        if not end_stream:
            raise StreamFaultError(stream_id, ErrorCode.PROTOCOL_ERROR, "a second HEADERS without END_STREAM")
        self._on_data(stream_id, b"", 0, True)

    def _open(self, stream_id: int, head: RequestHead, end_stream: bool) -> None:
        """Begin a call, the slow way."""
        refusal = head.refusal
        if refusal is not None:
            self._refuse(stream_id, head, refusal, end_stream)
            return
        if head.handler is not None:
            self._streams[stream_id] = head
            if end_stream:
                self._on_data(stream_id, b"", 0, True)
            return
        stream = ServerStream(self, stream_id, head)
        self._streams[stream_id] = stream
        factory = head.route.factory
        assert factory is not None
        try:
            stream._handler = factory(stream)
        except Exception as error:  # the handler's fault must not end the connection
            self._handler_failed(stream_id, error)
            return
        if end_stream and not stream._half_closed:
            self._on_data(stream_id, b"", 0, True)

    def _refuse(self, stream_id: int, head: RequestHead, refusal: tuple[int, str, bytes], end_stream: bool) -> None:
        """Answer a request that has no handler or cannot be read."""
        code, text, extra = refusal
        if code < 0:
            self._reset_counted()
            self._out.append(frames.rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR))
            if not end_stream:
                self._remember_unheard(stream_id)
            return
        status = _literal(b":status", extra) if extra[:1] == b"4" else _STATUS_200
        block = status + _CONTENT_TYPE + _trailer_block(code, text)
        if extra == b"encoding":
            block += _ACCEPT_ENCODING
        head.route.count(code)
        self._answers += 1
        self._out.append(frames.header_frames(stream_id, block, end_stream=True))
        if not end_stream:
            self._out.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            self._remember_unheard(stream_id)

    def _on_data(self, stream_id: int, payload: bytes, size: int, end_stream: bool) -> None:
        stream = self._streams.get(stream_id)
        if isinstance(stream, RequestHead):
            stream = self._receiving(stream_id, stream)
        if isinstance(stream, _UnaryCall):
            self._unary_data(stream, payload, size, end_stream)
        elif isinstance(stream, ServerStream):
            self._stream_data(stream, payload, size, end_stream)
        elif stream is not None:
            raise StreamFaultError(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        elif stream_id > self._last_stream_id:
            if not (self._goaway_sent and self._drain_started is None):
                raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
        elif stream_id in self._unheard:
            if end_stream:
                del self._unheard[stream_id]
        else:
            raise StreamFaultError(stream_id, ErrorCode.STREAM_CLOSED, "DATA on a closed stream")

    def _receiving(self, stream_id: int, head: RequestHead) -> _UnaryCall:
        """Take a unary call off the hot path while its request is being received."""
        call = self._streams[stream_id] = _UnaryCall(self, stream_id, head.route, head)
        call.assembler = MessageAssembler(self.limits.message_bytes_max)
        return call

    def _unary_data(self, call: _UnaryCall, payload: bytes, size: int, end_stream: bool) -> None:
        assembler = call.assembler
        if assembler is None:
            raise StreamFaultError(call.stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        call.recv_window -= size
        if call.recv_window < 0:
            raise StreamFaultError(call.stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        self._partial_bytes -= call.partial_bytes()  # counted again below
        fault: GrpcError | None = None
        try:
            for message in assembler.feed(payload):
                if call.message is not None:
                    raise GrpcError(Code.INTERNAL, "grpc: more than one request message for a unary call")
                call.message = message
        except GrpcError as caught:
            fault = caught
        self._partial_bytes += call.partial_bytes()
        if fault is None:
            fault = self._check_partial(assembler, end_stream)
            if fault is None and end_stream and call.message is None:
                fault = GrpcError(Code.INTERNAL, "grpc: a unary call without a request message")
        if fault is not None:
            self._fail_call(call, fault.code, fault.message, heard=end_stream)
            return
        if not end_stream:
            limit = self.limits.stream_window_bytes
            if call.recv_window * 2 < limit:
                self._out.append(frames.window_update(call.stream_id, limit - call.recv_window))
                call.recv_window = limit
            return
        self._drop_partial(call)
        request = call.message
        head = call.head
        assert request is not None and head is not None and head.handler is not None  # noqa: PT018
        call.message = None
        call.head = None
        if call.send_window == self._peer_window:
            self._streams[call.stream_id] = call.route
        try:
            head.handler(self, call.stream_id, head, request)
        except Exception as error:  # the handler's fault must not end the connection
            self._handler_failed(call.stream_id, error)

    def _check_partial(self, assembler: MessageAssembler, end_stream: bool) -> GrpcError | None:
        if self._partial_bytes > self.limits.partial_bytes_max:
            return GrpcError(Code.RESOURCE_EXHAUSTED, "grpc: too much unfinished request data on this connection")
        if end_stream and assembler.held_bytes:
            return GrpcError(Code.INTERNAL, "unexpected EOF")
        return None

    def _drop_partial(self, stream: _UnaryCall | ServerStream) -> None:
        """Forget the unfinished message of a stream that will take no more."""
        if stream.assembler is not None:
            self._partial_bytes -= stream.partial_bytes()
            stream.assembler = None

    def _stream_data(self, stream: ServerStream, payload: bytes, size: int, end_stream: bool) -> None:
        if stream._half_closed:
            raise StreamFaultError(stream.stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        stream._recv_window -= size
        if stream._recv_window < 0:
            raise StreamFaultError(stream.stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        handler = stream._handler
        assembler = stream.assembler
        if handler is None or assembler is None:  # finished, the end is still queued
            stream._half_closed = end_stream
            return
        self._partial_bytes -= assembler.held_bytes  # counted again below
        fault: GrpcError | None = None
        if end_stream:
            stream._half_closed = True
        try:
            for message in assembler.feed(payload):
                if stream.closed:
                    break
                stream.head.route.messages_received += 1
                self._guard(stream, handler.on_message, message)
        except GrpcError as caught:
            fault = caught
        if stream.closed:
            return
        self._partial_bytes += assembler.held_bytes
        if fault is None:
            fault = self._check_partial(assembler, end_stream)
        if fault is not None:
            stream.finish(fault.code, fault.message)
            self._guard(stream, handler.on_closed)
            return
        if end_stream:
            if not stream.closed:
                self._guard(stream, handler.on_half_close)
            return
        limit = self.limits.stream_window_bytes
        if stream._recv_window * 2 < limit and not stream.closed:
            self._out.append(frames.window_update(stream.stream_id, limit - stream._recv_window))
            stream._recv_window = limit

    # -- answering -----------------------------------------------------------------------------------------------------

    def respond(self, stream_id: int, message: bytes) -> None:
        """Answer a unary call with a message and status 0; nothing when the stream is gone. Hot: "h2load 10x100"."""
        route = self._streams.pop(stream_id, None)
        size = len(message)
        window = self._send_window - size - 5
        if route.__class__ is not Route or window < 0 or size > self._fast_max:
            self._respond_slowly(stream_id, route, message)
            return
        self._send_window = window
        route.ok += 1
        shape = _answer_shapes.get(size)
        if shape is not None:
            self._out.append(
                shape(
                    _INITIAL_HEAD,
                    4,
                    stream_id,
                    _INITIAL,
                    size + 5 << 8,
                    0,
                    stream_id,
                    0,
                    size,
                    message,
                    _TRAILERS_HEAD,
                    5,
                    stream_id,
                    _TRAILERS_OK,
                )
            )
        else:
            if size <= _ANSWER_SHAPE_BYTES_MAX:
                _answer_shapes[size] = _make_answer_shape(size)
            self._out.append(
                _answer_start(_INITIAL_HEAD, 4, stream_id, _INITIAL, size + 5 << 8, 0, stream_id, 0, size)
                + message
                + _answer_end(_TRAILERS_HEAD, 5, stream_id, _TRAILERS_OK)
            )
        if not self._dirty:
            self._wake()

    def _respond_slowly(self, stream_id: int, entry: object, message: bytes) -> None:
        if entry is None:
            return
        self._streams[stream_id] = entry
        call = self._answerable(stream_id)
        if call is None:
            return
        if self._queued_bytes > self.limits.queued_bytes_max:
            self._fail_call(call, Code.RESOURCE_EXHAUSTED, "grpc: the client does not read its answers", heard=True)
            return
        call.answered = True
        call.route.ok += 1
        self._out.append(_initial_frame(stream_id))
        if len(message) > self._peer_frame_max:
            # In two pieces: a copy of tens of megabytes to put five bytes in front would hold the loop.
            self._send_data(call, PREFIX.pack(0, len(message)))
            self._send_data(call, message)
        else:
            self._send_data(call, frame_message(message))
        self._send_tail(call, _answer_end(_TRAILERS_HEAD, 5, stream_id, _TRAILERS_OK))

    def _answerable(self, stream_id: int) -> _UnaryCall | None:
        """Answer the unary call that still wants its answer."""
        entry = self._streams.get(stream_id)
        if isinstance(entry, Route):
            call = self._streams[stream_id] = _UnaryCall(self, stream_id, entry, None)
            return call
        if isinstance(entry, RequestHead):
            return self._receiving(stream_id, entry)
        if isinstance(entry, _UnaryCall):
            return None if entry.answered else entry
        if isinstance(entry, ServerStream):
            raise UsageError("respond and fail are for unary calls; a stream is ended with finish")
        return None

    def fail(self, stream_id: int, code: int, message: str) -> None:
        """Answer a unary call with a status other than 0. Does nothing when the stream is gone."""
        entry = self._streams.get(stream_id)
        if isinstance(entry, Route):
            del self._streams[stream_id]
            entry.count(code)
            self._answers += 1
            self._out.append(frames.header_frames(stream_id, _INITIAL + _trailer_block(code, message), end_stream=True))
            if not self._dirty:
                self._wake()
            return
        call = self._answerable(stream_id)
        if call is not None:
            self._fail_call(call, code, message, heard=call.assembler is None)

    def _fail_call(self, call: _UnaryCall, code: int, message: str, *, heard: bool) -> None:
        """Answer a call that is off the hot path; ``heard``: the client has ended its half."""
        call.answered = True
        call.route.count(code)
        self._answers += 1
        tail = frames.header_frames(call.stream_id, _INITIAL + _trailer_block(code, message), end_stream=True)
        if not heard:
            tail += frames.rst_stream(call.stream_id, ErrorCode.NO_ERROR)
            self._remember_unheard(call.stream_id)
        self._drop_partial(call)
        self._send_tail(call, tail)

    def _tail_sent(self, stream: OutStream) -> None:
        self._streams.pop(stream.stream_id, None)
        if isinstance(stream, ServerStream) and not stream._half_closed:
            self._remember_unheard(stream.stream_id)

    def _remember_unheard(self, stream_id: int) -> None:
        """Note a closed stream on which the client may still send."""
        unheard = self._unheard
        unheard[stream_id] = None
        if len(unheard) > 2 * self.limits.streams_max:
            del unheard[next(iter(unheard))]

    # -- faults --------------------------------------------------------------------------------------------------------

    def _guard(self, stream: ServerStream, call: Callable[..., None], *args: bytes) -> None:
        try:
            call(*args)
        except Exception as error:  # the handler's fault must not end the connection
            self._handler_failed(stream.stream_id, error)

    def _handler_failed(self, stream_id: int, error: Exception) -> None:
        """A handler raised: end its call; the connection goes on."""
        code, text = (error.code, error.message) if isinstance(error, KvError) else (Code.INTERNAL, "internal error")
        if not isinstance(error, KvError):
            self._report(error)
        stream = self._streams.get(stream_id)
        if isinstance(stream, ServerStream):
            stream.finish(code, text)
        else:
            self.fail(stream_id, code, text)

    def _report(self, error: Exception) -> None:
        """A handler raised something that is not a :class:`KvError`; the shell logs it."""

    def _reset_stream(self, stream_id: int, code: int) -> None:
        """Reset a stream from our side, dropping what is queued."""
        stream = self._streams.pop(stream_id, None)
        self._out.append(frames.rst_stream(stream_id, code))
        self._remember_unheard(stream_id)
        self._lose(stream, Code.CANCELLED)
        if not self._dirty:
            self._wake()

    def _lose(self, stream: object, code: int) -> None:
        """End a stream that has left ``_streams`` without an answer."""
        if isinstance(stream, Route):
            stream.count(code)
        elif isinstance(stream, RequestHead):
            stream.route.count(code)
        elif isinstance(stream, _UnaryCall):
            self._forget_queue(stream)
            self._drop_partial(stream)
            if not stream.answered:
                stream.answered = True
                stream.route.count(code)
        elif isinstance(stream, ServerStream):
            self._forget_queue(stream)
            self._drop_partial(stream)
            stream._lost(code)

    def _stream_fault(self, fault: StreamFaultError) -> None:
        if fault.stream_id > self._last_stream_id:
            raise PeerFaultError(fault.code, str(fault))
        self._reset_stream(fault.stream_id, fault.code)

    def _on_reset(self, stream_id: int, code: int) -> None:
        if stream_id > self._last_stream_id:
            if self._goaway_sent and self._drain_started is None:
                return
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        self._unheard.pop(stream_id, None)
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            self._idle_frame()
            return
        self._lose(stream, Code.CANCELLED)
        self._reset_counted()

    def _out_stream(self, stream_id: int) -> OutStream | None:
        stream = self._streams.get(stream_id)
        if isinstance(stream, OutStream):
            return stream
        if isinstance(stream, Route):
            call = self._streams[stream_id] = _UnaryCall(self, stream_id, stream, None)
            return call
        if isinstance(stream, RequestHead):
            return self._receiving(stream_id, stream)
        if stream_id > self._last_stream_id and not self._goaway_sent:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        return None

    def _end_streams(self, reason: str) -> None:
        super()._end_streams(reason)
        self._fast_max = -1
        self._gate()
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            self._lose(stream, Code.CANCELLED)
        self._queued_bytes = 0

    # -- keep-alive and ending -----------------------------------------------------------------------------------------

    def _on_ping(self) -> None:
        """grpc-go's rule: a ping is early below the minimum interval; answers sent since the last ping forgive."""
        now = self._clock()
        marker = self._window_granted - self._send_window + self._answers
        since = now - self._last_ping_at
        self._last_ping_at = now
        if marker != self._ping_marker:
            self._ping_marker = marker
            self._ping_strikes = 0
            return
        limits = self.limits
        if since < (limits.ping_min_seconds if self._streams else limits.ping_idle_min_seconds):
            self._ping_strikes += 1
            if self._ping_strikes > limits.ping_strikes_max:
                raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def _on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The client will open no more streams; those that are open go on."""

    def _on_ping_ack(self, payload: bytes) -> None:
        if self._drain_started is not None and payload == _DRAIN_PING:
            self._drain_finish()

    def drain(self) -> None:
        """Begin a graceful end: a GOAWAY with the largest id and a ping; when that is answered, or a second later, the
        final GOAWAY. Calls that are open go on; ``drained`` says when none is left."""
        if self._goaway_sent or self.closing:
            return
        self._goaway_sent = True
        self._drain_started = self._clock()
        self._out.append(frames.goaway(frames.STREAM_ID_MAX, ErrorCode.NO_ERROR, b"graceful_stop"))
        self._send_ping(_DRAIN_PING)
        if not self.greeted:
            self._drain_finish()
        self._gate()
        self._wake()

    def _drain_finish(self) -> None:
        self._drain_started = None
        self._out.append(frames.goaway(self._last_stream_id, ErrorCode.NO_ERROR, b"graceful_stop"))
        self._wake()

    @property
    def drained(self) -> bool:
        """The final GOAWAY was made and no stream is open."""
        return self._goaway_sent and self._drain_started is None and not self._streams

    def on_tick(self, now: float) -> str | None:
        """Enforce deadlines; to be called about once a second.

        Returns:
            Why the transport must be dropped now, or ``None``.
        """
        limits = self.limits
        if not self.greeted:
            if now - self._started_at > limits.handshake_seconds:
                return "no HTTP/2 greeting in time"
            return None
        if self._drain_started is not None and now - self._drain_started > 1.0:
            self._drain_finish()
        if self.bytes_received != self._seen_bytes:
            self._seen_bytes = self.bytes_received
            self._last_active = now
            self._keepalive_sent_at = None
        elif self._keepalive_sent_at is not None:
            if now - self._keepalive_sent_at > limits.keepalive_timeout_seconds and not self._paused:
                return "keep-alive ping not answered"
        elif now - self._last_active > limits.keepalive_interval_seconds:
            self._keepalive_sent_at = now
            self._send_ping(_KEEPALIVE_PING)
        sent = self._window_granted - self._send_window
        if self._queued_bytes <= 2 * limits.high_water_bytes or sent != self._stall_marker:
            self._stall_marker = sent
            self._stalled_since = now
        elif now - self._stalled_since > limits.stall_seconds:
            return "the client takes nothing of what waits for it"
        return None


_DRAIN_PING = b"drain-ok"
_KEEPALIVE_PING = b"alive?\x00\x00"
