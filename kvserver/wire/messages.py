"""gRPC over HTTP/2: message framing, timeouts, status messages, binary metadata.

Pure functions and one assembler, shared by both roles. Source: the gRPC over HTTP/2 protocol description.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as BinasciiError
from collections.abc import Iterator
from struct import Struct
from urllib.parse import unquote_to_bytes

from kvserver.errors import Code
from kvserver.wire.faults import GrpcError

PREFIX = Struct(">BI")
"""A message's five bytes: compressed flag and length."""

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_PLAIN = [bytes([byte]) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in range(256)]


def frame_message(message: bytes) -> bytes:
    """Answer the message behind its five-byte prefix."""
    return PREFIX.pack(0, len(message)) + message


def encode_status_message(text: str, bytes_max: int = 1 << 30) -> bytes:
    """Answer ``text`` percent-encoded for the ``grpc-message`` trailer, cut at a character to at most ``bytes_max``."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text[:bytes_max].encode()
    out = bytearray()
    for character in text:
        piece = b"".join(_PLAIN[byte] for byte in character.encode("utf-8", "replace"))
        if len(out) + len(piece) > bytes_max:
            break
        out += piece
    return bytes(out)


def decode_status_message(value: bytes) -> str:
    """Answer the text of a ``grpc-message`` trailer; damaged encodings are kept as they are."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


def parse_timeout(value: bytes) -> float:
    """Answer the seconds of a ``grpc-timeout`` value such as ``b"250m"``.

    Raises:
        ValueError: not one to eight digits and a unit.
    """
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not 1 <= len(digits) <= 8 or not digits.isdigit():
        raise ValueError(f"malformed grpc-timeout: {value!r}")
    return int(digits) * unit


def format_timeout(seconds: float) -> bytes:
    """Answer the ``grpc-timeout`` value of a duration, rounded up, in the coarsest exact unit."""
    if seconds <= 0:
        return b"1n"
    nanoseconds = round(seconds * 1e9)
    for unit, size in ((b"S", 1_000_000_000), (b"m", 1_000_000), (b"u", 1_000), (b"n", 1)):
        if nanoseconds % size == 0 and nanoseconds // size <= 99_999_999:
            return b"%d%b" % (nanoseconds // size, unit)
    for unit, size in (
        (b"n", 1),
        (b"u", 1_000),
        (b"m", 1_000_000),
        (b"S", 1_000_000_000),
        (b"M", 60_000_000_000),
    ):
        if nanoseconds // size < 99_999_999:
            return b"%d%b" % (-(-nanoseconds // size), unit)
    return b"99999999H"


def encode_binary(value: bytes) -> bytes:
    """Answer a ``-bin`` metadata value as it goes on the wire: base64 without padding."""
    return b64encode(value).rstrip(b"=")


def decode_binary(value: bytes) -> bytes:
    """Answer the bytes of a ``-bin`` metadata value, with or without padding; joined values are joined again.

    Raises:
        ValueError: not base64.
    """
    try:
        return b",".join(b64decode(part + b"=" * (-len(part) % 4), validate=True) for part in value.split(b","))
    except BinasciiError as error:
        raise ValueError(f"malformed binary metadata: {error}") from None


class MessageAssembler:
    """Cuts a stream's DATA payloads into messages.

    Args:
        bytes_max: largest message accepted.
    """

    __slots__ = ("_bytes_max", "_needed", "_parts", "held_bytes")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._needed = 5
        self.held_bytes = 0
        """Bytes of an unfinished message, prefix included."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take one DATA payload; answer the messages that are whole now.

        Raises:
            GrpcError: a compressed message, or one above the limit; the stream cannot go on.
        """
        held = self.held_bytes + len(data)
        if held < self._needed:
            if data:
                self._parts.append(data)
                self.held_bytes = held
            return
        if self._parts:
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts = []
            self.held_bytes = 0
        position = 0
        size = len(data)
        self._needed = 5
        while size - position >= 5:
            compressed, length = PREFIX.unpack_from(data, position)
            if compressed:
                raise GrpcError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
            if length > self._bytes_max:
                raise GrpcError(
                    Code.RESOURCE_EXHAUSTED,
                    f"grpc: received message larger than max ({length} vs. {self._bytes_max})",
                )
            end = position + 5 + length
            if end > size:
                self._needed = 5 + length
                break
            message = data[position + 5 : end]
            position = end
            yield message
        if position < size:
            rest = data[position:] if position else data
            self._parts.append(rest)
            self.held_bytes = len(rest)
