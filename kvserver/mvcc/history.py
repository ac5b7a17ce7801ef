"""Histories: the main revisions at which one key changed, in as few bytes as Python allows.

A history is an int while it has one member, and packed 8-byte ints in a bytearray from two on. Most keys that were
changed at all were changed once since the last compaction. Neither form is an object of the cyclic garbage collector,
as a list or an ``array`` would be: a million histories cost it nothing.

Members ascend; one revision may occur twice, when a txn put a key and deleted it.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

History: TypeAlias = int | bytearray

MEMBER_BYTES = 8
NATIVE = sys.byteorder
"""The packing is read in place, so it is this machine's; histories never leave the process."""


def extended(history: History | None, *revisions: int) -> History:
    """Answer the history with later revisions added; ``Store.put`` does the same in its own lines."""
    if history is None:
        if len(revisions) == 1:
            return revisions[0]
        history = bytearray()
    elif isinstance(history, int):
        history = bytearray(history.to_bytes(MEMBER_BYTES, NATIVE))
    for revision in revisions:
        history += revision.to_bytes(MEMBER_BYTES, NATIVE)
    return history


def members(history: History) -> Sequence[int]:
    """Answer the revisions; the result is to be dropped before the history is changed."""
    return (history,) if isinstance(history, int) else memoryview(history).cast("q")


def last_at(history: History, revision: int) -> int | None:
    """Answer the last member at or below ``revision``."""
    if isinstance(history, int):
        return history if history <= revision else None
    revisions = memoryview(history).cast("q")
    place = bisect_right(revisions, revision)
    return revisions[place - 1] if place else None


def without_first(history: History, count: int) -> History | None:
    """Answer the history without its first members; None if nothing is left."""
    if isinstance(history, int):
        return None if count else history
    left = len(history) // MEMBER_BYTES - count
    if left <= 0:
        return None
    if left == 1:
        return int.from_bytes(history[-MEMBER_BYTES:], NATIVE)
    del history[: MEMBER_BYTES * count]
    return history
