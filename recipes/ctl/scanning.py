"""The grammar of what ``txn`` and ``watch -i`` read from stdin: words with quotes, and comparisons.

Words are split as a shell would, roughly: ``"double"`` quotes take Go's escapes, ``'single'`` ones take nothing. Pure.
"""

from __future__ import annotations

import re

from recipes.ctl.exits import EXIT_INVALID_INPUT, CommandError
from recipes.ctl.gotext import unquote

_WORD = re.compile(rb"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^'\"\t\n\f\r ][^\t\n\f\r ]*[^'\"\t\n\f\r ]?")


def split_words(line: bytes) -> list[bytes]:
    """Split a line into words.

    Raises:
        CommandError: a word in double quotes has an escape that means nothing.
    """
    words = []
    for word in _WORD.findall(line):
        if word[:1] == b"'":
            words.append(word[1:-1])
        elif word[:1] == b'"':
            try:
                words.append(unquote(word))
            except ValueError as error:
                raise CommandError(EXIT_INVALID_INPUT, str(error)) from None
        else:
            words.append(word)
    return words


def scan_comparison(text: bytes) -> tuple[int, bytes, bytes, bytes]:
    r"""Read ``"key") op "value"``; what follows is ignored.

    Returns:
        How many of the three were understood, and the three, empty where not.

    >>> scan_comparison(b'"k") > "0" rest')
    (3, b'k', b'>', b'0')
    >>> scan_comparison(b'"k")>"0"')
    (1, b'k', b'', b'')
    """
    key, rest = _scan_quoted(text)
    if key is None:
        return 0, b"", b"", b""
    if rest[:1] != b")" or not rest[1:2].isspace():
        return 1, key, b"", b""
    operator, _, rest = rest[1:].lstrip().partition(b" ")
    if not operator:
        return 1, key, b"", b""
    value, _ = _scan_quoted(rest)
    if value is None:
        return 2, key, operator, b""
    return 3, key, operator, value


def _scan_quoted(text: bytes) -> tuple[bytes | None, bytes]:
    text = text.lstrip()
    end = 1
    if text[:1] == b"`":
        end = text.find(b"`", 1)
    elif text[:1] == b'"':
        while end < len(text) and text[end : end + 1] != b'"':
            end += 2 if text[end : end + 1] == b"\\" else 1
    else:
        return None, text
    if not 0 < end < len(text):
        return None, b""
    try:
        return unquote(text[: end + 1]), text[end + 1 :]
    except ValueError:
        return None, b""
