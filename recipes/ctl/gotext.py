"""Numbers, durations, strings and sizes, read and written as Go's standard library does.

etcdctl is a Go program: its outputs and its error texts carry the shapes of ``strconv``, ``time`` and ``fmt``. Scripts
parse them, so they are reproduced here, and nowhere else. Pure functions only.
"""

from __future__ import annotations

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1

_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def raw(text: str) -> bytes:
    """Answer the bytes of an argument as the system gave them."""
    return text.encode("utf-8", "surrogateescape")


def quote(value: bytes | str) -> str:
    r"""Write a Go string literal (``%q``).

    >>> print(quote(b'a"\n\xff'), quote("ü\u200b"))
    "a\"\n\xff" "ü\u200b"
    """
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    parts = []
    for character in text:
        code = ord(character)
        if code in _ESCAPES:
            parts.append(_ESCAPES[code])
        elif 0xDC80 <= code <= 0xDCFF:
            parts.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            parts.append(character)
        elif code < 0x80:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(parts) + '"'


def unquote(literal: bytes) -> bytes:
    r"""Read a Go string literal in double quotes or backquotes.

    Raises:
        ValueError: it is not one.

    >>> unquote(rb'"a\x41\101\u00fc\n"').decode()
    'aAAü\n'
    """
    if len(literal) < 2 or literal[:1] != literal[-1:] or literal[:1] not in (b'"', b"`"):
        raise ValueError("invalid syntax")
    body = literal[1:-1]
    if literal[:1] == b"`":
        if b"`" in body:
            raise ValueError("invalid syntax")
        return body.replace(b"\r", b"")
    simple = {
        ord("a"): 7,
        ord("b"): 8,
        ord("f"): 12,
        ord("n"): 10,
        ord("r"): 13,
        ord("t"): 9,
        ord("v"): 11,
        ord("\\"): 92,
        ord('"'): 34,
    }
    out = bytearray()
    position = 0
    while position < len(body):
        byte = body[position]
        position += 1
        if byte in (10, 34):
            raise ValueError("invalid syntax")
        if byte != 92:
            out.append(byte)
            continue
        if position == len(body):
            raise ValueError("invalid syntax")
        kind = body[position]
        position += 1
        if kind in simple:
            out.append(simple[kind])
            continue
        if kind in b"xuU":
            size = {ord("x"): 2, ord("u"): 4, ord("U"): 8}[kind]
            digits, base = body[position : position + size], 16
            position += size
        elif kind in b"01234567":
            size = 3
            digits, base = body[position - 1 : position + 2], 8
            position += 2
        else:
            raise ValueError("invalid syntax")
        if len(digits) != size or not digits.isalnum():
            raise ValueError("invalid syntax")
        number = int(digits, base)
        if kind in b"uU":
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise ValueError("invalid syntax")
            out += chr(number).encode()
        elif number > 255:
            raise ValueError("invalid syntax")
        else:
            out.append(number)
    return bytes(out)


def parse_int(text: str, base: int = 10, *, unsigned: bool = False) -> int:
    """Read a 64-bit number as ``strconv.ParseInt`` or ``ParseUint`` does; base 0 takes ``0x`` and the like.

    Raises:
        ValueError: the text is Go's.

    >>> parse_int("x")
    Traceback (most recent call last):
    ValueError: strconv.ParseInt: parsing "x": invalid syntax
    """
    function = "ParseUint" if unsigned else "ParseInt"
    failed = f"strconv.{function}: parsing {quote(text)}: "
    digits = text[1:] if text[:1] in ("+", "-") and not unsigned else text
    if not digits.isascii() or not digits.replace("_", "").isalnum() or (base and "_" in digits):
        raise ValueError(failed + "invalid syntax")
    literal, number_base = digits, base
    if base == 0 and len(digits) > 1 and digits[0] == "0" and digits[1].lower() not in "xbo":
        literal, number_base = digits[1:], 8
    elif base == 16 and digits[1:2].lower() == "x":
        raise ValueError(failed + "invalid syntax")
    try:
        value = int(literal, number_base)
    except ValueError:
        raise ValueError(failed + "invalid syntax") from None
    if text[:1] == "-" and not unsigned:
        value = -value
    low, high = (0, UINT64_MAX) if unsigned else (INT64_MIN, INT64_MAX)
    if not low <= value <= high:
        raise ValueError(failed + "value out of range")
    return value


def parse_bool(text: str) -> bool:
    """Read a flag's truth value as ``strconv.ParseBool`` does.

    Raises:
        ValueError: the text is Go's.
    """
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")


_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def parse_duration(text: str) -> int:
    """Read a duration such as ``1.5h3m2us``; answer nanoseconds.

    Raises:
        ValueError: the text is Go's.

    >>> parse_duration("1m1.5s")
    61500000000
    """
    invalid = f"time: invalid duration {quote(text)}"
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(invalid)
    total = 0
    while rest:
        end = 0
        while end < len(rest) and (rest[end] in "0123456789."):
            end += 1
        number, rest = rest[:end], rest[end:]
        if not number.strip(".") or number.count(".") > 1:
            raise ValueError(invalid)
        end = 0
        while end < len(rest) and rest[end] not in "0123456789.":
            end += 1
        unit, rest = rest[:end], rest[end:]
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        whole, _, fraction = number.partition(".")
        total += int(whole or "0") * _UNITS[unit]
        if fraction:
            total += int(fraction) * _UNITS[unit] // 10 ** len(fraction)
    if total > INT64_MAX:
        raise ValueError(invalid)
    return -total if text[0] == "-" else total


def format_duration(nanoseconds: int) -> str:
    """Write a duration as ``time.Duration.String`` does.

    >>> format_duration(9607083), format_duration(61_500_000_000), format_duration(5 * 10**9), format_duration(0)
    ('9.607083ms', '1m1.5s', '5s', '0s')
    """
    sign, value = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if value == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if value < size * 1000:
            return sign + _fraction(value, size) + unit
    minutes, rest = divmod(value, 60 * 10**9)
    text = _fraction(rest, 10**9) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{minutes}m{text}"
        if hours:
            text = f"{hours}h{text}"
    return sign + text


def _fraction(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).zfill(len(str(size)) - 1).rstrip('0')}"


def human_bytes(size: int) -> str:
    """Write a size with a decimal unit.

    >>> human_bytes(20480), human_bytes(9), human_bytes(1_500_000)
    ('20 kB', '9 B', '1.5 MB')
    """
    if size < 10:
        return f"{size} B"
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    exponent = 0
    while size >= 1000 ** (exponent + 1) and exponent < len(units) - 1:
        exponent += 1
    value = int(size / 1000**exponent * 10 + 0.5) / 10
    return f"{value:.0f} {units[exponent]}" if value >= 10 else f"{value:.1f} {units[exponent]}"


def json_string(text: str) -> str:
    """Write a JSON string as ``encoding/json`` does: HTML's characters are escaped."""
    parts = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            parts.append("\\" + character)
        elif character in "\n\r\t":
            parts.append({"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character])
        elif code < 0x20 or character in "<>&\u2028\u2029":
            parts.append(f"\\u{code:04x}")
        else:
            parts.append(character)
    return '"' + "".join(parts) + '"'
