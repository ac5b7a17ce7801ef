"""JSON as Go's decoder reads it: where a value ends, and what exactly is wrong with one that does not parse.

Clients of the gateway see the texts of Go's ``encoding/json``, and some compare them. Values are parsed by orjson; this
machine runs only when orjson refuses a body, to word the refusal, and on request streams, to find where one message
ends and the next begins. It is resumable: input may arrive in any pieces. States are the methods ``_in_...``; the stack
holds what encloses the current value.

Not here: what a value means (``jsonpb``), and any limit on its size (the callers bound what they feed).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_SPACE = b" \t\r\n"
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF"
_KEY, _MEMBER, _ELEMENT = "object key", "object key:value pair", "array element"


class JsonError(Exception):
    """The text is not JSON; the message is Go's."""


def quote_char(char: int) -> str:
    """Write one byte the way Go's errors show it."""
    if char == 0x27:
        return "'\\''"
    if char == 0x22:
        return "'\"'"
    named = {0x07: "\\a", 0x08: "\\b", 0x0C: "\\f", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0B: "\\v", 0x5C: "\\\\"}
    if char in named:
        return f"'{named[char]}'"
    if char < 0x20:
        return f"'\\x{char:02x}'"
    if 0x7F <= char < 0xA1 or char == 0xAD:
        return f"'\\u{char:04x}'"
    return f"'{chr(char)}'"


class Splitter:
    """Cuts a stream of JSON values into the bytes of each.

    ``feed`` takes input, ``values`` yields the values completed so far, ``finish`` says that no more input comes.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._stack: list[str] = []
        self._step: Callable[[int], bool] = self._in_begin_value
        self._literal = ""
        self._seen = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of a value that has not ended yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Splitter:
        """Take more input; answers itself."""
        self._buffer += data
        return self

    def values(self) -> Iterator[bytes]:
        """Yield the values that are complete.

        Raises:
            JsonError: the input is not JSON from here on; the splitter is of no use afterwards.
        """
        buffer = self._buffer
        while self._position < len(buffer):
            if self._step == self._in_string:
                self._position = _PLAIN.match(buffer, self._position).end()  # type: ignore[union-attr]
                if self._position == len(buffer):
                    break
            char = buffer[self._position]
            if self._step(char):
                # A number ends at the byte behind it; everything else with its own last byte.
                yield self._cut(self._position)
                continue
            self._position += 1
            if not self._seen and char not in _SPACE:
                self._seen = True
            if self._seen and not self._stack and self._step == self._in_end_value:
                yield self._cut(self._position)

    def finish(self) -> list[bytes]:
        """Say that the input ended; answers a last number or literal that only the end could end.

        Raises:
            JsonError: it ended within a value.
        """
        if not self._seen:
            return []
        try:
            ended = self._step(0x20)
        except JsonError:
            ended = False
        if ended and not self._stack:
            return [self._cut(self._position)]
        raise JsonError("unexpected EOF")

    def _cut(self, end: int) -> bytes:
        value = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._position = 0
        self._step = self._in_begin_value
        self._seen = False
        return value.strip(_SPACE)

    # Each state takes one byte, sets the next state, and answers whether a top-level value ended before that byte.

    def _fail(self, char: int, context: str) -> bool:
        raise JsonError(f"invalid character {quote_char(char)} {context}")

    def _in_begin_value_or_empty(self, char: int) -> bool:
        if char in _SPACE:
            return False
        return self._in_end_value(char) if char == 0x5D else self._in_begin_value(char)

    def _in_begin_value(self, char: int) -> bool:
        if char in _SPACE:
            return False
        if char == 0x7B:
            self._stack.append(_KEY)
            self._step = self._in_begin_key_or_empty
        elif char == 0x5B:
            self._stack.append(_ELEMENT)
            self._step = self._in_begin_value_or_empty
        elif char == 0x22:
            self._step = self._in_string
        elif char == 0x2D:
            self._step = self._in_minus
        elif char == 0x30:
            self._step = self._in_zero
        elif char in _DIGITS:
            self._step = self._in_integer
        elif char in b"tfn":
            self._literal = {0x74: "true", 0x66: "false", 0x6E: "null"}[char]
            self._literal_at = 1
            self._step = self._in_literal
        else:
            self._fail(char, "looking for beginning of value")
        return False

    def _in_begin_key_or_empty(self, char: int) -> bool:
        if char in _SPACE:
            return False
        if char == 0x7D:
            self._stack[-1] = _MEMBER
            return self._in_end_value(char)
        return self._in_begin_key(char)

    def _in_begin_key(self, char: int) -> bool:
        if char in _SPACE:
            return False
        if char != 0x22:
            self._fail(char, "looking for beginning of object key string")
        self._step = self._in_string
        return False

    def _in_end_value(self, char: int) -> bool:
        if not self._stack:
            return True
        self._step = self._in_end_value
        if char in _SPACE:
            return False
        inside = self._stack[-1]
        if inside is _KEY and char == 0x3A:
            self._stack[-1] = _MEMBER
            self._step = self._in_begin_value
        elif inside is _MEMBER and char == 0x2C:
            self._stack[-1] = _KEY
            self._step = self._in_begin_key
        elif inside is _ELEMENT and char == 0x2C:
            self._step = self._in_begin_value
        elif (inside is _MEMBER and char == 0x7D) or (inside is _ELEMENT and char == 0x5D):
            self._stack.pop()
        else:
            self._fail(char, f"after {inside}")
        return False

    def _in_string(self, char: int) -> bool:
        if char == 0x22:
            self._step = self._in_end_value
        elif char == 0x5C:
            self._step = self._in_escape
        elif char < 0x20:
            self._fail(char, "in string literal")
        return False

    def _in_escape(self, char: int) -> bool:
        if char in b'bfnrt\\/"':
            self._step = self._in_string
        elif char == 0x75:
            self._hex_left = 4
            self._step = self._in_hex
        else:
            self._fail(char, "in string escape code")
        return False

    def _in_hex(self, char: int) -> bool:
        if char not in _HEX:
            self._fail(char, "in \\u hexadecimal character escape")
        self._hex_left -= 1
        if not self._hex_left:
            self._step = self._in_string
        return False

    def _in_minus(self, char: int) -> bool:
        if char not in _DIGITS:
            self._fail(char, "in numeric literal")
        self._step = self._in_zero if char == 0x30 else self._in_integer
        return False

    def _in_integer(self, char: int) -> bool:
        return False if char in _DIGITS else self._in_zero(char)

    def _in_zero(self, char: int) -> bool:
        if char == 0x2E:
            self._step = self._in_point
        elif char in b"eE":
            self._step = self._in_exponent
        else:
            return self._in_end_value(char)
        return False

    def _in_point(self, char: int) -> bool:
        if char not in _DIGITS:
            self._fail(char, "after decimal point in numeric literal")
        self._step = self._in_fraction
        return False

    def _in_fraction(self, char: int) -> bool:
        if char in _DIGITS:
            return False
        if char in b"eE":
            self._step = self._in_exponent
            return False
        return self._in_end_value(char)

    def _in_exponent(self, char: int) -> bool:
        if char in b"+-":
            self._step = self._in_exponent_sign
            return False
        return self._in_exponent_sign(char)

    def _in_exponent_sign(self, char: int) -> bool:
        if char not in _DIGITS:
            self._fail(char, "in exponent of numeric literal")
        self._step = self._in_exponent_digits
        return False

    def _in_exponent_digits(self, char: int) -> bool:
        return False if char in _DIGITS else self._in_end_value(char)

    def _in_literal(self, char: int) -> bool:
        word = self._literal
        if char != ord(word[self._literal_at]):
            self._fail(char, f"in literal {word} (expecting '{word[self._literal_at]}')")
        self._literal_at += 1
        if self._literal_at == len(word):
            self._step = self._in_end_value
        return False


def _no_constant(text: str) -> object:
    raise ValueError(text)


_LENIENT = json.JSONDecoder(parse_constant=_no_constant)


def first_value(body: bytes, scan_bytes_max: int) -> object:
    """Answer the first value of a body that orjson refused, as Go's decoder would: what follows it does not matter.

    An empty body is None.

    Raises:
        JsonError: there is none, in Go's words if the fault is within the first ``scan_bytes_max`` bytes.
    """
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        return None
    try:
        return _LENIENT.raw_decode(text)[0]
    except RecursionError:
        raise JsonError("exceeded max depth") from None
    except ValueError:
        splitter = Splitter()
        if not list(splitter.feed(body[:scan_bytes_max]).values()) and len(body) <= scan_bytes_max:
            splitter.finish()
        raise JsonError("invalid character in JSON") from None
