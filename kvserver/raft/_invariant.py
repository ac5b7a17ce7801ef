"""Checks of what must always hold. A plain ``assert`` vanishes under ``python -O``; these do not.

A broken invariant means that the log, or the code, can no longer be trusted: the caller has to stop the member before
it acknowledges anything else.
"""

from __future__ import annotations


class InvariantError(Exception):
    """Something that must always hold does not; the member must stop."""


def check(condition: object, message: str) -> None:
    """Raise :class:`InvariantError` with ``message`` unless ``condition`` is true.

    The message is a constant on purpose: hot callers must not pay for formatting. Where numbers help, callers test
    first and raise the error themselves.
    """
    if not condition:
        raise InvariantError(message)
