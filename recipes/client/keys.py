"""Keys and ranges as the protocol wants them: bytes, half-open ranges, a namespace in front.

Text keys are UTF-8; bytes that are not come back as text with surrogate escapes, so every key survives the round trip.
"""

from __future__ import annotations

ALL = b"\0"
"""As a range end: every key from the start on."""


def to_bytes(text: str | bytes) -> bytes:
    """Answer a key or value as bytes.

    >>> to_bytes("é"), to_bytes(b"x")
    (b'\\xc3\\xa9', b'x')
    """
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(text, bytes):
        return text
    if isinstance(text, bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"a key or value is str or bytes, not {type(text).__name__}; for other data give json.dumps(...)")


def to_text(raw: bytes) -> str:
    """Answer a key as text; the inverse of :func:`to_bytes`."""
    return raw.decode("utf-8", "surrogateescape")


def prefix_end(prefix: bytes) -> bytes:
    """Answer the end of the range of all keys that begin with ``prefix``.

    >>> prefix_end(b"a/"), prefix_end(b"a\\xff"), prefix_end(b"\\xff")
    (b'a0', b'b', b'\\x00')
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return ALL
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def resolve(
    namespace: bytes,
    key: str | bytes,
    *,
    prefix: bool = False,
    range_end: str | bytes | None = None,
    from_key: bool = False,
) -> tuple[bytes, bytes]:
    """Answer (key, range end) below a namespace; the end is empty for a single key.

    Args:
        namespace: What stands in front of every key of the client.
        key: The key, the prefix, or the start of the range.
        prefix: All keys that begin with ``key``; an empty key means all of the namespace.
        range_end: The first key that no longer belongs to the range.
        from_key: All keys from ``key`` on.

    Raises:
        ValueError: two of the three are given, or a single key is empty.

    >>> resolve(b"app/", "k", prefix=True)
    (b'app/k', b'app/l')
    """
    raw = to_bytes(key)
    if prefix + from_key + (range_end is not None) > 1:
        raise ValueError("give one of prefix, from_key, range_end")
    if prefix:
        start = namespace + raw
        return (start, prefix_end(start)) if start else (ALL, ALL)
    if from_key:
        start = namespace + raw
        return start or ALL, prefix_end(namespace) if namespace else ALL
    if range_end is not None:
        end = to_bytes(range_end)
        if end == ALL:
            return namespace + raw or ALL, prefix_end(namespace) if namespace else ALL
        return namespace + raw or ALL, namespace + end
    if not raw:
        raise ValueError("the key is empty: give a key, or prefix=True for all keys")
    return namespace + raw, b""
