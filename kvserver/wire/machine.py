"""What both roles of an HTTP/2 connection share: windows, settings, ping, GOAWAY, resets, sending of queued data.

A machine takes bytes (:meth:`Machine.receive`) and has bytes to send (:meth:`Machine.output`); what arrives is handed
to handlers by direct calls, not as event objects, because a unary call's budget is a few microseconds. The shell around
it owns socket, timers and the moment of writing:

* ``receive(data)`` never raises for what a peer did: a broken rule ends in a GOAWAY in the output and in ``fault``.
* Output made inside ``receive`` is for the shell to write when it returns. Output made at any other time calls
  :meth:`Machine._wake` once, until the shell takes it.
* ``on_tick(now)`` drives deadlines. The clock is an argument; it is only read for rare frames.

States of a connection: *greeting* (preface or first SETTINGS not seen) -> *open* -> *draining* (GOAWAY sent or
received: no new streams) -> *closed* (``closing``: nothing more will be read; the shell writes what is left and
closes).

Flow control towards the peer: data that does not fit the windows, or that a full socket does not take (``pause``),
waits in its stream's queue; streams with data that may go are in ``_ready`` and served round robin, a frame at a time,
when output is taken. What waits is counted per stream and per connection and bounded by the limits.

No asyncio, socket or clock here, and nothing about gRPC methods.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvserver.wire import frames
from kvserver.wire.faults import PeerFaultError, StreamFaultError
from kvserver.wire.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_DEFAULT,
    FRAME_BYTES_LARGEST,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    WINDOW_UPDATE,
    ErrorCode,
)
from kvserver.wire.limits import TokenBucket, WireLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

_data_head = frames.HEAD.pack


class OutStream:
    """A stream's sending half: its window and what waits for it.

    Invariant: ``buffered_bytes`` is the sum of ``_queue``; a stream with data, window and no end sent is in its
    machine's ``_ready``.
    """

    __slots__ = ("_queue", "_tail", "buffered_bytes", "send_window", "stream_id")

    def __init__(self, stream_id: int, send_window: int) -> None:
        self.stream_id = stream_id
        self.send_window = send_window
        self.buffered_bytes = 0
        """Bytes queued and not yet framed, because of flow control or a slow socket."""
        self._queue: deque[memoryview] | None = None
        self._tail: bytes | None = None  # whole frames that end the stream, sent after the queue

    def after_pump(self) -> None:
        """Called when some of the queue went out."""


class Machine:
    """An HTTP/2 connection of either role; see the module's text.

    Args:
        limits: bounds of the connection.
        clock: monotonic seconds, read for rare frames only.
    """

    __slots__ = (
        "_block_flags",
        "_block_parts",
        "_block_stream",
        "_buffer",
        "_clock",
        "_continuations",
        "_data_frames",
        "_dirty",
        "_expected_acks",
        "_fast_max",
        "_goaway_sent",
        "_idle_frames",
        "_last_stream_id",
        "_out",
        "_paused",
        "_peer_frame_max",
        "_peer_window",
        "_pumped",
        "_queued_bytes",
        "_ready",
        "_recv_unacked",
        "_recv_window",
        "_resets",
        "_send_window",
        "_settings_frames",
        "_started_at",
        "_streams",
        "_window_granted",
        "bytes_received",
        "closing",
        "fault",
        "greeted",
        "limits",
    )

    def __init__(self, limits: WireLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._buffer = b""
        self._out: list[bytes | memoryview] = []
        self._dirty = False
        self._paused = False
        self._streams: dict[int, object] = {}
        self._last_stream_id = 0
        # sending
        self._send_window = WINDOW_DEFAULT
        self._window_granted = WINDOW_DEFAULT  # all the window the peer ever gave: granted - window = DATA bytes sent
        self._peer_window = WINDOW_DEFAULT
        self._peer_frame_max = FRAME_BYTES_DEFAULT
        self._fast_max = FRAME_BYTES_DEFAULT - 5
        self._ready: dict[int, OutStream] = {}
        self._pumped: list[OutStream] = []
        self._queued_bytes = 0
        # receiving
        self._recv_window = limits.connection_window_bytes
        self._recv_unacked = 0
        self._block_parts: list[bytes] | None = None
        self._block_stream = 0
        self._block_flags = 0
        self._continuations = 0
        # counters of the limits
        self._data_frames = 0
        self._idle_frames = 0
        self._expected_acks = 1  # of our SETTINGS, and of pings sent since
        self._started_at = clock()
        self._resets = TokenBucket(limits.reset_burst, limits.resets_per_second)
        self._settings_frames = TokenBucket(limits.settings_burst, limits.settings_per_second)
        self._goaway_sent = False
        self.greeted = False
        """Whether the peer's first SETTINGS has arrived."""
        self.closing = False
        """Nothing more is read; the shell sends what is left and closes the transport."""
        self.fault: PeerFaultError | None = None
        """The rule that the peer broke, if that ended the connection."""
        self.bytes_received = 0

    # -- for the shell -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. Never raises for what they are."""
        raise NotImplementedError

    def output(self) -> list[bytes | memoryview]:
        """Answer, once, what is to be sent now."""
        if self._ready and not self._paused:
            self._pump()
        out = self._out
        self._out = []
        return out

    def data_to_send(self) -> bytes:
        """Like :meth:`output` as one bytes object, draining every queue as far as the windows allow."""
        parts: list[bytes | memoryview] = []
        while out := self.output():
            parts += out
            self.after_output()
        self._dirty = False
        return b"".join(parts)

    def after_output(self) -> None:
        """Tell streams whose queue moved; to be called after the output was handed to the transport."""
        pumped = self._pumped
        if pumped:
            self._pumped = []
            for stream in pumped:
                stream.after_pump()

    def pause(self) -> None:
        """The transport is full: data waits in the streams from now on."""
        self._paused = True
        self._fast_max = -1

    def resume(self) -> None:
        """The transport has room again."""
        self._paused = False
        self._set_fast_max()
        self._wake()

    @property
    def stream_count(self) -> int:
        """Streams that are open now."""
        return len(self._streams)

    def _schedule(self) -> None:
        """Ask the shell to take the output soon."""

    def _wake(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._schedule()

    # -- ending --------------------------------------------------------------------------------------------------------

    def connection_failed(self, reason: str) -> None:
        """The transport is gone: end every stream."""
        self.closing = True
        self._end_streams(reason)

    def _end_streams(self, reason: str) -> None:
        self._ready.clear()
        self._queued_bytes = 0

    def _fail(self, fault: PeerFaultError) -> None:
        """End the connection because the peer broke its rules."""
        if self.closing:
            return
        self.fault = fault
        self._out.append(frames.goaway(self._goaway_id(), fault.code, fault.message.encode()[:512]))
        self.closing = True
        self._buffer = b""
        self._end_streams(str(fault))
        self._wake()

    def _goaway_id(self) -> int:
        return self._last_stream_id

    # -- sending -------------------------------------------------------------------------------------------------------

    def _set_fast_max(self) -> None:
        self._fast_max = -1 if self._paused or self.closing else min(self._peer_window, self._peer_frame_max) - 5

    def _send_data(self, stream: OutStream, data: bytes) -> None:
        """Send or queue framed messages of a stream."""
        size = len(data)
        if (
            not stream.buffered_bytes
            and size <= self._peer_frame_max
            and size <= stream.send_window
            and size <= self._send_window
            and not self._paused
        ):
            stream.send_window -= size
            self._send_window -= size
            self._data_frames += 1
            self._out.append(_data_head(size << 8, 0, stream.stream_id) + data)
        elif size:
            if stream._queue is None:
                stream._queue = deque()
            stream._queue.append(memoryview(data))
            stream.buffered_bytes += size
            self._queued_bytes += size
            if stream.send_window > 0:
                self._ready[stream.stream_id] = stream
        if not self._dirty:
            self._wake()

    def _send_tail(self, stream: OutStream, tail: bytes) -> None:
        """Send whole frames after all data of the stream; they end our half."""
        if stream.buffered_bytes:
            stream._tail = tail
        else:
            self._out.append(tail)
            self._tail_sent(stream)
        if not self._dirty:
            self._wake()

    def _tail_sent(self, stream: OutStream) -> None:
        """Our half of the stream has ended on the wire."""

    def _forget_queue(self, stream: OutStream) -> None:
        self._queued_bytes -= stream.buffered_bytes
        stream.buffered_bytes = 0
        stream._queue = None
        stream._tail = None
        self._ready.pop(stream.stream_id, None)

    def _pump(self) -> None:
        """Make frames of queued data, round robin, as far as windows allow and at most ``pump_bytes``."""
        ready = self._ready
        out = self._out
        budget = self.limits.pump_bytes
        frame_max = min(self._peer_frame_max, 65_536)
        while ready and self._send_window > 0 and budget > 0:
            stream_id = next(iter(ready))
            stream = ready.pop(stream_id)
            queue = stream._queue
            assert queue is not None
            room = min(frame_max, stream.send_window, self._send_window, stream.buffered_bytes)
            out.append(_data_head(room << 8, 0, stream_id))
            left = room
            while left:
                piece = queue[0]
                if len(piece) <= left:
                    out.append(piece)
                    left -= len(piece)
                    queue.popleft()
                else:
                    out.append(piece[:left])
                    queue[0] = piece[left:]
                    left = 0
            budget -= room
            self._data_frames += 1
            self._send_window -= room
            self._queued_bytes -= room
            stream.send_window -= room
            stream.buffered_bytes -= room
            if stream.buffered_bytes:
                if stream.send_window > 0:
                    ready[stream_id] = stream
            elif stream._tail is not None:
                out.append(stream._tail)
                stream._tail = None
                self._tail_sent(stream)
            self._pumped.append(stream)

    # -- receiving: what both roles do alike ---------------------------------------------------------------------------

    def _take_data(self, size: int) -> None:
        """Count received DATA bytes against the connection's window and give them back in large steps.

        Raises:
            PeerFaultError: the peer sent more than its window.
        """
        unacked = self._recv_unacked + size
        if unacked > self._recv_window:
            raise PeerFaultError(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        if unacked * 2 >= self._recv_window:
            self._out.append(frames.window_update(0, unacked))
            unacked = 0
        self._recv_unacked = unacked

    def _idle_frame(self) -> None:
        """Count a frame that carries no work.

        Raises:
            PeerFaultError: too many of them.
        """
        self._idle_frames += 1
        work = self._last_stream_id // 2 + self._data_frames
        allowed = self.limits.idle_frames_base + self.limits.idle_frames_per_work * work
        if self._idle_frames > allowed and self._idle_frames > allowed + self._clock() - self._started_at:
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without work")

    def _ack(self) -> None:
        """Count an acknowledgement; one that nobody waits for is a frame without work."""
        if self._expected_acks:
            self._expected_acks -= 1
        else:
            self._idle_frame()

    def _send_ping(self, payload: bytes) -> None:
        self._expected_acks += 1
        self._out.append(frames.ping(payload))
        self._wake()

    def _reset_counted(self) -> None:
        """Count a stream that was reset, by the peer or because of it.

        Raises:
            PeerFaultError: too many of them.
        """
        if not self._resets.take(self._clock()):
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many stream resets")

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Handle one frame, the slow way.

        Raises:
            PeerFaultError: the connection cannot go on.
        """
        if self._block_parts is not None and kind != CONTINUATION:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
        if not self.greeted and (kind != SETTINGS or flags & ACK):
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        try:
            if kind == DATA:
                self._frame_data(flags, stream_id, payload)
            elif kind == HEADERS:
                self._frame_headers(flags, stream_id, payload)
            elif kind == WINDOW_UPDATE:
                self._frame_window_update(stream_id, payload)
            elif kind == RST_STREAM:
                self._frame_rst_stream(stream_id, payload)
            elif kind == SETTINGS:
                self._frame_settings(flags, stream_id, payload)
            elif kind == PING:
                self._frame_ping(flags, stream_id, payload)
            elif kind == CONTINUATION:
                self._frame_continuation(flags, stream_id, payload)
            elif kind == GOAWAY:
                self._frame_goaway(stream_id, payload)
            elif kind == PRIORITY:
                if not stream_id:
                    raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
                self._idle_frame()
                if len(payload) != 5:
                    raise StreamFaultError(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes")
            elif kind == PUSH_PROMISE:
                raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
            else:
                self._idle_frame()
        except StreamFaultError as fault:
            self._reset_counted()
            self._stream_fault(fault)

    def _stream_fault(self, fault: StreamFaultError) -> None:
        """Reset a stream because the peer broke its rules."""
        raise NotImplementedError

    def _frame_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._take_data(size)
        if flags & PADDED:
            payload = _unpad(payload)
        if payload:
            self._data_frames += 1
        elif not flags & END_STREAM:
            self._idle_frame()
        if not stream_id:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        self._on_data(stream_id, payload, size, bool(flags & END_STREAM))

    def _on_data(self, stream_id: int, payload: bytes, size: int, end_stream: bool) -> None:
        raise NotImplementedError

    def _frame_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & PADDED:
            payload = _unpad(payload, 5 if flags & PRIORITY_FLAG else 0)
        if flags & PRIORITY_FLAG:
            if len(payload) < 5:
                raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream_id:
                raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_headers(stream_id, payload, bool(flags & END_STREAM))
        else:
            self._block_parts = [payload]
            self._block_stream = stream_id
            self._block_flags = flags
            self._continuations = 0
            self._gate()

    def _gate(self) -> None:
        """A state that the fast paths depend on changed."""

    def _frame_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        parts = self._block_parts
        if parts is None or stream_id != self._block_stream:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "unexpected CONTINUATION")
        parts.append(payload)
        self._continuations += 1
        if self._continuations > self.limits.continuations_max:
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames")
        if flags & END_HEADERS:
            self._block_parts = None
            self._gate()
            self._on_headers(stream_id, b"".join(parts), bool(self._block_flags & END_STREAM))
        elif sum(map(len, parts)) > self.limits.header_list_bytes_max:
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")

    def _on_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        raise NotImplementedError

    def _frame_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        self._idle_frame()
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if stream_id:
            if not increment:
                raise StreamFaultError(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            stream = self._out_stream(stream_id)
            if stream is None:
                return
            if stream.send_window + increment > WINDOW_MAX:
                raise StreamFaultError(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "window overflow")
            stream.send_window += increment
            if stream.buffered_bytes and stream.send_window > 0:
                self._ready[stream_id] = stream
            return
        if not increment:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if self._send_window + increment > WINDOW_MAX:
            raise PeerFaultError(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflow")
        self._send_window += increment
        self._window_granted += increment

    def _out_stream(self, stream_id: int) -> OutStream | None:
        """Answer the sending half of an open stream.

        Raises:
            PeerFaultError: the stream was never opened.
        """
        raise NotImplementedError

    def _frame_rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if not stream_id:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        self._on_reset(stream_id, int.from_bytes(payload, "big"))

    def _on_reset(self, stream_id: int, code: int) -> None:
        raise NotImplementedError

    def _frame_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            self._ack()
            return
        if len(payload) % 6:
            raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6 bytes")
        if not self._settings_frames.take(self._clock()):
            raise PeerFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many SETTINGS")
        values = dict(frames.parse_settings(payload))
        push = values.get(frames.SETTINGS_ENABLE_PUSH, 0)
        if push not in (0, 1):
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {push}")
        frame_max = values.get(frames.SETTINGS_MAX_FRAME_SIZE, self._peer_frame_max)
        if not FRAME_BYTES_DEFAULT <= frame_max <= FRAME_BYTES_LARGEST:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {frame_max}")
        window = values.get(frames.SETTINGS_INITIAL_WINDOW_SIZE, self._peer_window)
        if window > WINDOW_MAX:
            raise PeerFaultError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {window}")
        self._peer_frame_max = frame_max
        delta = window - self._peer_window
        self._peer_window = window
        if delta:
            for stream in list(self._streams.values()):
                if isinstance(stream, OutStream):
                    stream.send_window += delta
                    if stream.send_window > WINDOW_MAX:
                        raise PeerFaultError(ErrorCode.FLOW_CONTROL_ERROR, "window overflow")
                    if stream.send_window <= 0:
                        self._ready.pop(stream.stream_id, None)
                    elif stream.buffered_bytes:
                        self._ready[stream.stream_id] = stream
        self._set_fast_max()
        self.greeted = True
        self._on_settings(values)
        self._out.append(frames.SETTINGS_ACK)
        self._gate()

    def _on_settings(self, values: Mapping[int, int]) -> None:
        """Take the settings that only one role minds."""

    def _frame_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if flags & ACK:
            self._ack()
            self._on_ping_ack(payload)
            return
        self._out.append(frames.ping(payload, ack=True))
        self._on_ping()

    def _on_ping(self) -> None:
        """A ping was answered; enforce the limits on pings."""

    def _on_ping_ack(self, payload: bytes) -> None:
        """One of our pings was answered."""

    def _frame_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise PeerFaultError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 bytes")
        self._idle_frame()
        self._on_goaway(
            int.from_bytes(payload[:4], "big") & 0x7FFFFFFF, int.from_bytes(payload[4:8], "big"), payload[8:]
        )

    def _on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        raise NotImplementedError


def _unpad(payload: bytes, minimum: int = 0) -> bytes:
    if not payload or payload[0] > len(payload) - 1 - minimum:
        raise PeerFaultError(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]
