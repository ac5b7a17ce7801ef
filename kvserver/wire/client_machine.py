"""The client role: calls out, answers in, without I/O.

A unary call's entry in ``_streams`` is the caller's completion itself (a future in the asyncio shell) while everything
is plain: the request was sent at once, and the answer is HEADERS, one DATA with the whole message, trailers with status
0. Whatever else happens turns the entry into a :class:`CallStream`, which all streaming calls are from the start.

States of a call: *waiting* (the peer's limit of streams is reached; nothing was sent) -> *open* -> *half-closed* (our
side ended) -> gone (no entry). A call ends exactly once: by trailers, by RST_STREAM of either side, or with the
connection.

No socket, no clock, no request semantics here. The fast branches of the loop run only while no header block is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple, Protocol

from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple

from kvserver.errors import Code
from kvserver.limits import WIRE_HEADER_BLOCK_CACHED_BYTES_MAX, WIRE_HEADER_BLOCKS_CACHED
from kvserver.wire import frames
from kvserver.wire.faults import GrpcError, PeerFaultError, StreamFaultError, UsageError
from kvserver.wire.frames import END_STREAM, PREFACE, STREAM_ID_MAX, WINDOW_DEFAULT, ErrorCode
from kvserver.wire.headers import Field, HeaderDecoder
from kvserver.wire.limits import TokenBucket, WireLimits
from kvserver.wire.machine import Machine, OutStream
from kvserver.wire.messages import (
    MessageAssembler,
    decode_status_message,
    encode_binary,
    format_timeout,
    frame_message,
)

MetadataItems = Sequence[tuple[bytes, bytes]]
"""Request metadata: lower-case names; ``-bin`` values as plain bytes."""


class Completion(Protocol):
    """Where a unary call's outcome goes; an asyncio future with three attributes."""

    message: bytes | None
    deadline: float | None
    stream_id: int

    def done(self) -> bool:
        """Whether it has an outcome."""

    def set_result(self, result: bytes, /) -> None:
        """The answer's message."""

    def set_exception(self, error: GrpcError, /) -> None:
        """The call failed."""


class Answer:
    """What a header block of an answer said; shared by all answers with the same block."""

    __slots__ = ("encoding", "fields", "http_status", "message", "plain", "status")

    def __init__(self, fields: tuple[Field, ...]) -> None:
        headers = dict(fields)
        self.fields = fields
        self.http_status = int(headers[b":status"]) if headers.get(b":status", b"").isdigit() else None
        status = headers.get(b"grpc-status")
        self.status = None if status is None else int(status) if status.isdigit() else int(Code.UNKNOWN)
        self.message = decode_status_message(headers.get(b"grpc-message", b""))
        self.encoding = headers.get(b"grpc-encoding", b"identity")
        self.plain = (
            self.http_status == 200
            and headers.get(b"content-type", b"").startswith(b"application/grpc")
            and self.encoding == b"identity"
        )
        """Initial headers with nothing special in them."""


class CallStream(OutStream):
    """A call as the machine drives it; subclasses take what arrives."""

    __slots__ = (
        "_assembler",
        "_ended",
        "_half_closed",
        "_headers_seen",
        "_limit",
        "_pending",
        "_recv_window",
        "deadline",
        "machine",
    )

    def __init__(self, machine: ClientConnection) -> None:
        super().__init__(0, 0)
        self.machine = machine
        self.deadline: float | None = None
        self._assembler = MessageAssembler(machine.limits.message_bytes_max)
        self._limit = machine.limits.stream_window_bytes
        self._recv_window = self._limit
        self._headers_seen = False
        self._half_closed = False
        self._ended = False
        self._pending: tuple[bytes, bytes, tuple[Field, ...]] | None = None  # not started: path, timeout, metadata

    def on_message(self, message: bytes) -> None:
        """A whole message arrived."""
        raise NotImplementedError

    def on_end(self, error: GrpcError | None) -> None:
        """The call ended: with status 0, or with the error."""
        raise NotImplementedError

    def unread_bytes(self) -> int:
        """Received bytes that the application has not taken: they are kept out of the peer's window."""
        return 0

    def send_framed(self, framed: bytes) -> None:
        """Send one or more messages with their prefixes. Does nothing when the call has ended."""
        if self._half_closed:
            raise UsageError("send after half_close")
        if not self._ended:
            self.machine._send_data(self, framed)

    def end_sending(self) -> None:
        """Send no more. Idempotent."""
        if self._half_closed or self._ended:
            return
        self._half_closed = True
        if self._pending is None:
            self.machine._send_tail(self, frames.frame(frames.DATA, END_STREAM, self.stream_id))

    def grant(self) -> None:
        """Give the peer the window that the application's reading has freed."""
        if self._ended or self._pending is not None:
            return
        room = self._limit - self.unread_bytes() - self._recv_window
        if room * 2 >= self._limit:
            self._recv_window += room
            self.machine._out.append(frames.window_update(self.stream_id, room))
            if not self.machine._dirty:
                self.machine._wake()


class _WaitingCall(NamedTuple):
    """A unary call that has not started."""

    completion: Completion
    path: bytes
    message: bytes
    timeout: bytes
    metadata: tuple[Field, ...]


class _UnaryStream(CallStream):
    """A unary call off the hot path."""

    __slots__ = ("_completion",)

    def __init__(self, machine: ClientConnection, completion: Completion) -> None:
        super().__init__(machine)
        self._completion = completion
        self.stream_id = completion.stream_id
        self.send_window = machine._peer_window
        self.deadline = completion.deadline

    def on_message(self, message: bytes) -> None:
        if self._completion.message is not None:
            self.machine._end_call(self, GrpcError(Code.INTERNAL, "more than one answer to a unary call"), reset=True)
        else:
            self._completion.message = message

    def on_end(self, error: GrpcError | None) -> None:
        completion = self._completion
        if completion.done():
            return
        if error is not None:
            completion.set_exception(error)
        elif completion.message is None:
            completion.set_exception(GrpcError(Code.INTERNAL, "status 0 without an answer's message"))
        else:
            completion.set_result(completion.message)


_RESET_CODES: dict[int, int] = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.FLOW_CONTROL_ERROR: Code.RESOURCE_EXHAUSTED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}

_HTTP_CODES: dict[int, int] = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}

_TIMEOUT_LITERAL = b"\x00\x0cgrpc-timeout"
_unpack_head = frames.HEAD.unpack_from
_unpack_prefix = Struct(">BI").unpack_from
_pack_headers = frames.HEAD.pack
_pack_data = Struct(">IBIBI").pack
_SECRET = frozenset((b"token", b"authorization"))
_KEEPALIVE_PING = b"alive?\x00\x00"
_NEVER = 1 << 62


class ClientConnection(Machine):
    """One connection to a server.

    Args:
        authority: the ``:authority`` of requests, such as ``"127.0.0.1:2379"``.
        scheme: "http" or "https".
        user_agent: sent with each request.
        limits: bounds of the connection.
        clock: monotonic seconds, read for rare frames only.
        completion_type: exact class of the completions given to :meth:`start_unary`.
    """

    __slots__ = (
        "_blocks",
        "_common",
        "_completion_type",
        "_decoder",
        "_encoder",
        "_fast_bytes",
        "_goaway_last",
        "_goaway_reason",
        "_keepalive_sent_at",
        "_last_active",
        "_next_stream_id",
        "_peer_streams_max",
        "_pings",
        "_request_blocks",
        "_seen_bytes",
        "_timeouts",
        "_waiting",
        "draining",
    )

    def __init__(
        self,
        authority: str,
        *,
        scheme: str,
        user_agent: str,
        limits: WireLimits,
        clock: Callable[[], float],
        completion_type: type,
    ) -> None:
        super().__init__(limits, clock)
        self._common: tuple[Field, ...] = (
            (b":scheme", scheme.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", user_agent.encode()),
        )
        self._encoder = Encoder()
        self._request_blocks: dict[object, bytes] = {}
        self._timeouts: dict[float, bytes] = {}
        self._completion_type = completion_type
        self._blocks: dict[bytes, Answer] = {}
        self._decoder = HeaderDecoder(limits.header_list_bytes_max, self._blocks)
        self._next_stream_id = 1
        self._peer_streams_max = 100
        self._waiting: deque[_WaitingCall | CallStream] = deque()
        self._fast_bytes = _NEVER
        self._pings = TokenBucket(limits.ping_burst, limits.pings_per_second)
        self._goaway_last = STREAM_ID_MAX
        self._goaway_reason = ""
        self._keepalive_sent_at: float | None = None
        self._last_active = clock()
        self._seen_bytes = 0
        self.draining = False
        """No new call can start: the server said GOAWAY, or the stream ids are used up."""
        self._out.append(PREFACE)
        self._out.append(
            frames.settings(
                (
                    (frames.SETTINGS_ENABLE_PUSH, 0),
                    (frames.SETTINGS_INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.SETTINGS_MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
                )
            )
        )
        if limits.connection_window_bytes > WINDOW_DEFAULT:
            self._out.append(frames.window_update(0, limits.connection_window_bytes - WINDOW_DEFAULT))

    # -- calls ---------------------------------------------------------------------------------------------------------

    def start_unary(
        self,
        completion: Completion,
        path: bytes,
        message: bytes,
        timeout_seconds: float | None = None,
        metadata: tuple[Field, ...] = (),
    ) -> None:
        """Send a unary call. Its outcome goes to ``completion``. Hot: benchmark "client unary"."""
        timeout = b""
        if timeout_seconds is not None:
            timeout = self._timeouts.get(timeout_seconds) or self._timeout_literal(timeout_seconds)
        if self.closing or self.draining:
            completion.set_exception(self._unavailable())
            return
        if len(self._streams) >= self._peer_streams_max or self._waiting:
            self._waiting.append(_WaitingCall(completion, path, message, timeout, metadata))
            return
        self._start(completion, path, message, timeout, metadata)

    def _start(
        self, completion: Completion, path: bytes, message: bytes, timeout: bytes, metadata: tuple[Field, ...]
    ) -> None:
        block = (self._request_blocks.get((path, metadata) if metadata else path)) or self._request_block(
            path, metadata
        )
        if timeout:
            block += timeout
        stream_id = self._next_stream_id
        self._next_stream_id = stream_id + 2
        self._last_stream_id = stream_id
        completion.stream_id = stream_id
        size = len(message)
        window = self._send_window - size - 5
        if window < 0 or size > self._fast_max or len(block) > frames.FRAME_BYTES_DEFAULT:
            self._start_slowly(completion, block, message)
            return
        self._send_window = window
        self._streams[stream_id] = completion
        self._out.append(
            _pack_headers(len(block) << 8 | 1, 4, stream_id)
            + block
            + _pack_data(size + 5 << 8, 1, stream_id, 0, size)
            + message
        )
        if not self._dirty:
            self._wake()
        if stream_id >= STREAM_ID_MAX:
            self.draining = True

    def _start_slowly(self, completion: Completion, block: bytes, message: bytes) -> None:
        stream = self._streams[completion.stream_id] = _UnaryStream(self, completion)
        self._out.append(frames.header_frames(stream.stream_id, block, end_stream=False))
        stream.send_framed(frame_message(message))
        stream.end_sending()
        self._wake()

    def start_stream(
        self, stream: CallStream, path: bytes, timeout_seconds: float | None = None, metadata: tuple[Field, ...] = ()
    ) -> None:
        """Begin a streaming call; what happens to it goes to ``stream``."""
        if self.closing or self.draining:
            stream._ended = True
            stream.on_end(self._unavailable())
            return
        timeout = b"" if timeout_seconds is None else self._timeout_literal(timeout_seconds)
        stream._pending = (path, timeout, metadata)
        if len(self._streams) >= self._peer_streams_max or self._waiting:
            self._waiting.append(stream)
        else:
            self._begin_stream(stream)

    def _begin_stream(self, stream: CallStream) -> None:
        assert stream._pending is not None
        path, timeout, metadata = stream._pending
        stream._pending = None
        block = self._request_blocks.get((path, metadata) if metadata else path) or self._request_block(path, metadata)
        stream.stream_id = self._next_stream_id
        self._next_stream_id += 2
        self._last_stream_id = stream.stream_id
        if stream.stream_id >= STREAM_ID_MAX:
            self.draining = True
        stream.send_window = self._peer_window
        self._streams[stream.stream_id] = stream
        self._out.append(frames.header_frames(stream.stream_id, block + timeout, end_stream=False))
        if stream.buffered_bytes and stream.send_window > 0:
            self._ready[stream.stream_id] = stream
        if stream._half_closed:
            self._send_tail(stream, frames.frame(frames.DATA, END_STREAM, stream.stream_id))
        self._wake()

    def cancel_unary(self, completion: Completion) -> None:
        """Reset a unary call; its completion is left alone."""
        stream_id = completion.stream_id
        if not stream_id:
            self._waiting = deque(
                item for item in self._waiting if isinstance(item, CallStream) or item.completion is not completion
            )
            return
        entry = self._streams.get(stream_id)
        if entry is not None:
            self._drop(stream_id, entry, ErrorCode.CANCEL)

    def cancel_stream(self, stream: CallStream, error: GrpcError) -> None:
        """Reset a streaming call."""
        if stream._ended:
            return
        if stream._pending is not None:
            self._waiting = deque(item for item in self._waiting if item is not stream)
            self._forget_queue(stream)
            stream._ended = True
            stream.on_end(error)
            return
        self._end_call(stream, error, reset=True)

    def expire(self, now: float) -> float | None:
        """Fail the calls whose deadline has passed; answer the next deadline."""
        nearest = float("inf")
        for item in list(self._waiting):
            owner = item if isinstance(item, CallStream) else item.completion
            if owner.deadline is None:
                continue
            if owner.deadline > now:
                nearest = min(nearest, owner.deadline)
                continue
            error = GrpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", sent=False)
            if isinstance(owner, CallStream):
                self.cancel_stream(owner, error)
            else:
                self.cancel_unary(owner)
                owner.set_exception(error)
        entries: list[tuple[int, Any]] = list(self._streams.items())
        for stream_id, entry in entries:
            deadline: float | None = entry.deadline
            if deadline is None:
                continue
            if deadline > now:
                nearest = min(nearest, deadline)
                continue
            error = GrpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
            if isinstance(entry, CallStream):
                self._end_call(entry, error, reset=True)
            else:
                self._drop(stream_id, entry, ErrorCode.CANCEL)
                entry.set_exception(error)
        return None if nearest == float("inf") else nearest

    def _drop(self, stream_id: int, entry: object, code: int) -> None:
        """Reset a stream from our side without telling its owner."""
        del self._streams[stream_id]
        if isinstance(entry, CallStream):
            entry._ended = True
            self._forget_queue(entry)
        self._out.append(frames.rst_stream(stream_id, code))
        if self._waiting:
            self._start_waiting()
        self._wake()

    def _end_call(self, stream: CallStream, error: GrpcError | None, *, reset: bool) -> None:
        """End a call: tell its owner, and the peer if it does not know."""
        if stream._ended:
            return
        stream._ended = True
        self._streams.pop(stream.stream_id, None)
        unsent = stream.buffered_bytes or not stream._half_closed
        self._forget_queue(stream)
        if reset or unsent:
            self._out.append(frames.rst_stream(stream.stream_id, ErrorCode.CANCEL if reset else ErrorCode.NO_ERROR))
            self._wake()
        stream.on_end(error)
        if self._waiting:
            self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._streams) < self._peer_streams_max and not (self.closing or self.draining):
            item = self._waiting.popleft()
            if isinstance(item, CallStream):
                self._begin_stream(item)
            else:
                self._start(*item)
        if self.closing or self.draining:
            self._fail_waiting()

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for item in waiting:
            if isinstance(item, CallStream):
                item._ended = True
                item.on_end(self._unavailable())
            else:
                item.completion.set_exception(self._unavailable())

    def _unavailable(self) -> GrpcError:
        reason = self._goaway_reason or ("the connection is closed" if self.closing else "the connection is closing")
        return GrpcError(Code.UNAVAILABLE, reason, sent=False)

    # -- request headers -----------------------------------------------------------------------------------------------

    def _request_block(self, path: bytes, metadata: tuple[Field, ...]) -> bytes:
        """Answer (and remember) the block of a request; it is good until the encoder's table changes."""
        fields: list[HeaderTuple] = [HeaderTuple(b":method", b"POST"), HeaderTuple(b":path", path)]
        fields += [HeaderTuple(*field) for field in self._common]
        for name, value in metadata:
            if name.startswith((b":", b"grpc-")) or name != name.lower():
                raise UsageError(f"not a metadata name: {name!r}")
            wire_value = encode_binary(value) if name.endswith(b"-bin") else value
            kind = NeverIndexedHeaderTuple if name in _SECRET else HeaderTuple
            fields.append(kind(name, wire_value))
        entries = self._encoder.header_table.dynamic_entries
        before = (len(entries), entries[0] if entries else None)
        block = bytes(self._encoder.encode(fields))
        changed = len(entries) != before[0] or (bool(entries) and entries[0] is not before[1])
        if changed:
            self._request_blocks.clear()
        else:
            if len(self._request_blocks) >= WIRE_HEADER_BLOCKS_CACHED:
                self._request_blocks.clear()
            if len(block) <= WIRE_HEADER_BLOCK_CACHED_BYTES_MAX:
                self._request_blocks[(path, metadata) if metadata else path] = block
        return block

    def _timeout_literal(self, seconds: float) -> bytes:
        value = format_timeout(seconds)
        literal = _TIMEOUT_LITERAL + bytes((len(value),)) + value
        if len(self._timeouts) >= WIRE_HEADER_BLOCKS_CACHED:
            self._timeouts.clear()
        self._timeouts[seconds] = literal
        return literal

    # -- receiving -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the server, completing calls. Never raises for what the bytes are. Hot: "client unary"."""
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
        consumed = 0
        streams: dict[int, Any] = self._streams  # hot: no isinstance for the type checker
        blocks = self._blocks
        plain_type: Any = self._completion_type
        fast = self._fast_bytes
        while True:
            left = size - position
            if left < 9:
                break
            word, flags, stream_id = _unpack_head(data, position)
            end = position + 9 + (word >> 8)
            if end > size:
                if word >> 8 > frames.FRAME_BYTES_DEFAULT:
                    raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {word >> 8} bytes")
                break
            if left >= fast:
                kind = word & 0xFF
                if kind == 1:
                    answer = blocks.get(data[position + 9 : end])
                    call: Any = streams.get(stream_id)
                    if answer is not None and call.__class__ is plain_type:
                        if flags == 4:
                            if answer.plain:
                                position = end
                                continue
                        elif flags == 5 and answer.status == 0 and call.message is not None:
                            del streams[stream_id]
                            position = end
                            call.set_result(call.message)
                            if self._waiting:
                                self._start_waiting()
                            continue
                elif kind == 0 and flags == 0 and 5 <= end - position - 9 <= frames.FRAME_BYTES_DEFAULT:
                    call = streams.get(stream_id)
                    if call.__class__ is plain_type and call.message is None:
                        compressed, length = _unpack_prefix(data, position + 9)
                        if not compressed and length == end - position - 14:
                            call.message = data[position + 14 : end]
                            consumed += length + 5
                            position = end
                            continue
            if word >> 8 > frames.FRAME_BYTES_DEFAULT:
                raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {word >> 8} bytes")
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
        self._fast_bytes = 9 if self.greeted and not self.closing and self._block_parts is None else _NEVER

    def _slow(self, stream_id: int) -> CallStream | None:
        """Answer a call as a CallStream, converting a plain one."""
        entry = self._streams.get(stream_id)
        if entry is None:
            if stream_id > self._last_stream_id or not stream_id & 1:
                raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
            return None
        if isinstance(entry, CallStream):
            return entry
        stream = self._streams[stream_id] = _UnaryStream(self, entry)  # type: ignore[arg-type]
        stream._half_closed = True
        if stream._completion.message is not None:
            stream._headers_seen = True
            stream._recv_window -= len(stream._completion.message) + 5
        return stream

    def _answer(self, block: bytes) -> Answer:
        answer = self._blocks.get(block)
        if answer is None:
            fields, unchanged = self._decoder.decode(block)
            answer = Answer(tuple(fields))
            if unchanged and len(block) <= WIRE_HEADER_BLOCK_CACHED_BYTES_MAX:
                if len(self._blocks) >= WIRE_HEADER_BLOCKS_CACHED:
                    self._blocks.clear()
                self._blocks[block] = answer
        return answer

    def _on_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        answer = self._answer(block)
        stream = self._slow(stream_id)
        if stream is None:
            self._idle_frame()
            return
        if answer.http_status is not None:
            if stream._headers_seen:
                raise StreamFaultError(stream_id, ErrorCode.PROTOCOL_ERROR, "a second :status")
            if 100 <= answer.http_status < 200 and not end_stream:
                self._idle_frame()
                return
            stream._headers_seen = True
            if not answer.plain and not (end_stream and answer.status):
                self._end_call(stream, _odd_answer(answer), reset=not end_stream)
                return
        elif not stream._headers_seen and not end_stream:
            raise StreamFaultError(stream_id, ErrorCode.PROTOCOL_ERROR, "an answer without :status")
        elif not end_stream:
            raise StreamFaultError(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        if end_stream:
            self._finish(stream, answer)

    def _finish(self, stream: CallStream, answer: Answer) -> None:
        if answer.status is None:
            error: GrpcError | None = GrpcError(Code.INTERNAL, "the server ended the stream without a status")
        elif answer.status:
            error = GrpcError(answer.status, answer.message)
        elif stream._assembler.held_bytes:
            error = GrpcError(Code.INTERNAL, "the server ended the stream inside a message")
        else:
            error = None
        self._end_call(stream, error, reset=False)

    def _on_data(self, stream_id: int, payload: bytes, size: int, end_stream: bool) -> None:
        stream = self._slow(stream_id)
        if stream is None:
            return
        stream._recv_window -= size
        if stream._recv_window < 0:
            raise StreamFaultError(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        if payload and not stream._headers_seen:
            # the plain way does not note headers; only a call that was never plain can be told apart
            stream._headers_seen = isinstance(stream, _UnaryStream)
            if not stream._headers_seen:
                raise StreamFaultError(stream_id, ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")
        try:
            for message in stream._assembler.feed(payload):
                if stream._ended:
                    return
                stream.on_message(message)
        except GrpcError as error:
            self._end_call(stream, error, reset=not end_stream)
            return
        if end_stream:
            self._end_call(
                stream, GrpcError(Code.INTERNAL, "the server ended the stream without a status"), reset=False
            )
        else:
            stream.grant()

    def _on_reset(self, stream_id: int, code: int) -> None:
        stream = self._slow(stream_id)
        if stream is None:
            self._idle_frame()
            return
        status = _RESET_CODES.get(code, Code.INTERNAL)
        name = ErrorCode(code).name if code in ErrorCode._value2member_map_ else str(code)
        stream._half_closed = True
        self._forget_queue(stream)
        self._end_call(
            stream,
            GrpcError(
                status,
                f"stream terminated by RST_STREAM with error code: {name}",
                sent=code != ErrorCode.REFUSED_STREAM,
            ),
            reset=False,
        )

    def _out_stream(self, stream_id: int) -> OutStream | None:
        entry = self._streams.get(stream_id)
        if entry is not None and not isinstance(entry, CallStream):
            return None  # everything was sent: its window no longer matters
        return self._slow(stream_id)

    def _stream_fault(self, fault: StreamFaultError) -> None:
        stream = self._slow(fault.stream_id)
        if stream is not None:
            self._end_call(stream, GrpcError(Code.INTERNAL, str(fault)), reset=True)

    def _on_settings(self, values: Mapping[int, int]) -> None:
        if frames.SETTINGS_HEADER_TABLE_SIZE in values:
            self._encoder.header_table_size = min(4096, values[frames.SETTINGS_HEADER_TABLE_SIZE])
            self._request_blocks.clear()
        if frames.SETTINGS_MAX_CONCURRENT_STREAMS in values:
            self._peer_streams_max = values[frames.SETTINGS_MAX_CONCURRENT_STREAMS]
        elif not self._peer_streams_max or self._peer_streams_max == 100:
            self._peer_streams_max = STREAM_ID_MAX
        if self._waiting:
            self._start_waiting()

    def _on_ping(self) -> None:
        if not self._pings.take(self._clock()):
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many pings")

    def _on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        self.draining = True
        self._goaway_last = last_stream_id
        name = ErrorCode(code).name if code in ErrorCode._value2member_map_ else str(code)
        text = debug.decode("utf-8", "replace")
        self._goaway_reason = f"the server is closing the connection: {name} {text}".rstrip()
        for stream_id in [stream_id for stream_id in self._streams if stream_id > last_stream_id]:
            stream = self._slow(stream_id)
            if stream is not None:
                stream._half_closed = True
                self._forget_queue(stream)
                self._end_call(stream, self._unavailable(), reset=False)
        self._fail_waiting()

    def _goaway_id(self) -> int:
        return 0

    def go_away(self) -> None:
        """Say that we are leaving; the shell closes after writing it."""
        if not self._goaway_sent and not self.closing:
            self._goaway_sent = True
            self.draining = True
            self._out.append(frames.goaway(0, ErrorCode.NO_ERROR))
            self._wake()

    def _end_streams(self, reason: str) -> None:
        super()._end_streams(reason)
        self._fast_max = -1
        self._gate()
        entries = list(self._streams.values())
        self._streams.clear()
        for entry in entries:
            error = GrpcError(Code.UNAVAILABLE, reason)
            if isinstance(entry, CallStream):
                entry._ended = True
                self._forget_queue(entry)
                entry.on_end(error)
            elif not entry.done():  # type: ignore[attr-defined]  # a completion
                entry.set_exception(error)  # type: ignore[attr-defined]
        self._goaway_reason = self._goaway_reason or reason
        self._fail_waiting()
        self._queued_bytes = 0

    def on_tick(self, now: float, interval_seconds: float | None, timeout_seconds: float) -> str | None:
        """Ping a silent server; answer why the transport must be dropped, or ``None``."""
        if self.bytes_received != self._seen_bytes:
            self._seen_bytes = self.bytes_received
            self._last_active = now
            self._keepalive_sent_at = None
        elif self._keepalive_sent_at is not None:
            if now - self._keepalive_sent_at > timeout_seconds:
                return "keep-alive ping not answered"
        elif interval_seconds is not None and self._streams and now - self._last_active >= interval_seconds:
            self._keepalive_sent_at = now
            self._send_ping(_KEEPALIVE_PING)
        return None


def _odd_answer(answer: Answer) -> GrpcError:
    if answer.http_status != 200:
        code = _HTTP_CODES.get(answer.http_status or 0, Code.UNKNOWN)
        if answer.status:
            return GrpcError(answer.status, answer.message)
        return GrpcError(code, f"unexpected HTTP status code received from server: {answer.http_status}")
    if answer.encoding != b"identity":
        encoding = answer.encoding.decode("latin-1")
        return GrpcError(Code.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{encoding}"')
    if answer.status:
        return GrpcError(answer.status, answer.message)
    return GrpcError(Code.UNKNOWN, "the answer is not gRPC")
