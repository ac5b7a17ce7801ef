"""Key ranges as the protocol writes them."""

from __future__ import annotations

ALL = b"\0"
"""As the end of a range: no end."""


def prefix_end(prefix: bytes) -> bytes:
    r"""Answer the first key after all keys with a prefix.

    >>> prefix_end(b"ab"), prefix_end(b"a\xff"), prefix_end(b"\xff")
    (b'ac', b'b', b'\x00')
    """
    for index in range(len(prefix) - 1, -1, -1):
        if prefix[index] < 0xFF:
            return prefix[:index] + bytes((prefix[index] + 1,))
    return ALL


def resolve(key: bytes, end: bytes | None, *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """Answer key and end of the range that a command line names.

    Args:
        key: The first argument.
        end: The second, if there is one.
        prefix: ``--prefix``.
        from_key: ``--from-key``.
    """
    if end is not None:
        return key, end
    if prefix:
        return (key, prefix_end(key)) if key else (ALL, ALL)
    if from_key:
        return key or ALL, ALL
    return key, b""
