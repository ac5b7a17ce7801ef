"""The node's records in the write-ahead log: Raft entries, hard state and snapshot markers as bytes.

Storage carries opaque typed payloads; what they mean is fixed here. A batch of entries is one record: a header with the
first index, the count and the common shape, an array of (term delta, type, length) columns, and the data joined. So a
batch of a thousand proposals costs a handful of C calls and no Python work an entry.

Every decoder checks what it reads and raises :class:`RecordError` with the reason; the checksum has been verified by
storage before, so an error here means a foreign or newer format rather than damage.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate

from kvserver import limits
from kvserver.raft import Entry, HardState

ENTRIES = 1
HARD_STATE = 2
SNAPSHOT_MARKER = 3

_ENTRIES_HEADER = struct.Struct("<QQIB")  # first index, term of all, count, 1 when all are normal entries
_HARD_STATE = struct.Struct("<QQQ")  # term, vote, commit
_MARKER = struct.Struct("<QQ")  # index, term


class RecordError(Exception):
    """A record's payload is not of the format this version writes."""


def encode_entries(entries: Sequence[Entry]) -> list[bytes]:
    """Encode consecutive entries as record payloads, one for each run of equal terms, as far as it fits one record.

    Runs are nearly always one: entries of several terms meet in one batch only while a member catches up, and many
    requests of the largest size have to arrive at once to exceed a record.
    """
    first, last = entries[0], entries[-1]
    if first.term != last.term:
        cut = next(position for position, entry in enumerate(entries) if entry.term != first.term)
        return [*encode_entries(entries[:cut]), *encode_entries(entries[cut:])]
    count = len(entries)
    datas = [entry.data for entry in entries]
    lengths = list(map(len, datas))
    if sum(lengths) > limits.ENTRIES_RECORD_BYTES_MAX and count > 1:
        return [*encode_entries(entries[: count // 2]), *encode_entries(entries[count // 2 :])]
    types = bytes([entry.type for entry in entries])
    all_normal = not any(types)
    parts = [
        _ENTRIES_HEADER.pack(first.index, first.term, count, all_normal),
        struct.pack(f"<{count}I", *lengths),
    ]
    if not all_normal:
        parts.append(types)
    parts.extend(datas)
    return [b"".join(parts)]


def decode_entries(payload: bytes) -> list[Entry]:
    """Decode one record of entries.

    Raises:
        RecordError: lengths and counts do not add up.
    """
    try:
        first_index, term, count, all_normal = _ENTRIES_HEADER.unpack_from(payload)
        position = _ENTRIES_HEADER.size
        lengths = struct.unpack_from(f"<{count}I", payload, position)
    except struct.error as error:
        raise RecordError(f"entries record of {len(payload)} bytes is shorter than its own header says") from error
    position += 4 * count
    types = bytes(count)
    if not all_normal:
        types = payload[position : position + count]
        position += count
    ends = list(accumulate(lengths, initial=position))
    if ends[-1] != len(payload) or len(types) != count:
        raise RecordError(f"entries record says {ends[-1]} bytes, but has {len(payload)}")
    return [
        Entry(term, first_index + number, types[number], payload[ends[number] : ends[number + 1]])
        for number in range(count)
    ]


def entries_span(payload: bytes) -> tuple[int, int]:
    """Answer the first and the last index of a record of entries, without decoding them.

    Raises:
        RecordError: it is too short to have a header, or empty.
    """
    try:
        first_index, _, count, _ = _ENTRIES_HEADER.unpack_from(payload)
    except struct.error as error:
        raise RecordError(f"entries record of {len(payload)} bytes has no header") from error
    if not count:
        raise RecordError("entries record without entries")
    return first_index, first_index + count - 1


def encode_hard_state(state: HardState) -> bytes:
    """Encode term, vote and commit index."""
    return _HARD_STATE.pack(state.term, state.vote, state.commit)


def decode_hard_state(payload: bytes) -> HardState:
    """Decode term, vote and commit index.

    Raises:
        RecordError: the payload has another length.
    """
    if len(payload) != _HARD_STATE.size:
        raise RecordError(f"hard state record has {len(payload)} bytes, expected {_HARD_STATE.size}")
    term, vote, commit = _HARD_STATE.unpack(payload)
    return HardState(term, vote, commit)


def encode_marker(index: int, term: int) -> bytes:
    """Encode the record that makes a saved snapshot count."""
    return _MARKER.pack(index, term)


def decode_marker(payload: bytes) -> tuple[int, int]:
    """Decode a snapshot marker into (index, term).

    Raises:
        RecordError: the payload has another length.
    """
    if len(payload) != _MARKER.size:
        raise RecordError(f"snapshot marker has {len(payload)} bytes, expected {_MARKER.size}")
    index, term = _MARKER.unpack(payload)
    return index, term
