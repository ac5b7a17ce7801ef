"""HTTP/2 frames as bytes: numbers of RFC 9113 and builders for everything but the hot path.

Nothing here keeps state. The hot paths of the machines pack their frames by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends before its first frame."""

DATA = 0
HEADERS = 1
PRIORITY = 2
RST_STREAM = 3
SETTINGS = 4
PUSH_PROMISE = 5
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

SETTINGS_HEADER_TABLE_SIZE = 1
SETTINGS_ENABLE_PUSH = 2
SETTINGS_MAX_CONCURRENT_STREAMS = 3
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5
SETTINGS_MAX_HEADER_LIST_SIZE = 6

WINDOW_MAX = 0x7FFFFFFF
STREAM_ID_MAX = 0x7FFFFFFF
WINDOW_DEFAULT = 65_535
FRAME_BYTES_DEFAULT = 16_384
FRAME_BYTES_LARGEST = 16_777_215

HEAD = Struct(">IBI")
"""A frame's nine bytes as (length << 8 | type, flags, stream id)."""

_head = HEAD.pack
_u32 = Struct(">I").pack
_two_u32 = Struct(">II").pack
_setting = Struct(">HI")


class ErrorCode(IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Answer one whole frame."""
    return _head(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """Answer a SETTINGS frame of (identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(_setting.pack(*pair) for pair in values))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Answer the (identifier, value) pairs of a SETTINGS payload whose length is a multiple of six."""
    return list(_setting.iter_unpack(payload))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """Answer a PING frame; ``payload`` has eight bytes."""
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """Answer a GOAWAY frame."""
    return frame(GOAWAY, 0, 0, _two_u32(last_stream_id, code) + debug)


def rst_stream(stream_id: int, code: int) -> bytes:
    """Answer a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _u32(code))


def window_update(stream_id: int, increment: int) -> bytes:
    """Answer a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, _u32(increment))


def header_frames(
    stream_id: int, block: bytes, *, end_stream: bool, frame_bytes_max: int = FRAME_BYTES_DEFAULT
) -> bytes:
    """Answer a HEADERS frame with the CONTINUATION frames that a large block needs."""
    first = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes_max:
        return frame(HEADERS, first | END_HEADERS, stream_id, block)
    parts = [frame(HEADERS, first, stream_id, block[:frame_bytes_max])]
    position = frame_bytes_max
    while position < len(block):
        piece = block[position : position + frame_bytes_max]
        position += len(piece)
        parts.append(frame(CONTINUATION, END_HEADERS if position >= len(block) else 0, stream_id, piece))
    return b"".join(parts)
