"""Records: the stored form of one version of a key.

A record is the serialized ``mvccpb.KeyValue`` framed as field 2 (``0x12 length key-value``). That is the tag of
``RangeResponse.kvs``, of ``PutResponse.prev_kv`` and of ``Event.kv``, so an answer is a header and joined records; no
record is decoded to be sent. A deletion is a tombstone: a record that holds only key and mod_revision, which is what a
DELETE event carries, behind a first byte of its own, 0x13, so that telling it from a put costs no decoding.

Records are immutable and compared by identity: the live index, the history of a key and the revision log share the one
object. What must not live here: anything that knows where a record is kept.
"""

from __future__ import annotations

from kvserver.proto.kv_pb2 import KeyValue

parse_key_value = KeyValue.FromString
"""Decode an unframed key-value; bound once, as it stands on hot paths."""

NUMBERS = tuple(bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(0x4000))
"""Varints of one and two bytes."""

PREFIXES = tuple(b"\x12" + number for number in NUMBERS)
"""``0x12 length`` for bodies of up to 16,383 bytes."""

_EVENT_PREFIXES = tuple(b"\x5a" + number for number in NUMBERS)


TOMBSTONE = 0x13
"""First byte of a tombstone: no field of any message begins with it."""


def is_tombstone(record: bytes) -> bool:
    """Answer whether a record says that its key was deleted."""
    return record[0] == TOMBSTONE


def varint(number: int) -> bytes:
    """Encode a non-negative int, or a negative int64 as its two's complement, as a protobuf varint."""
    if 0 <= number < 0x4000:
        return NUMBERS[number]
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def framed(tag: bytes, body: bytes) -> bytes:
    """Frame ``body`` as a length-delimited field."""
    return tag + varint(len(body)) + body


def frame_record(body: bytes) -> bytes:
    """Frame a serialized key-value as a record."""
    length = len(body)
    return PREFIXES[length] + body if length < 0x4000 else b"\x12" + varint(length) + body


def body_offset(record: bytes) -> int:
    """Answer where the serialized key-value begins: behind the tag and the length."""
    offset = 1
    while record[offset] > 0x7F:
        offset += 1
    return offset + 1


def body_of(record: bytes) -> bytes:
    """Answer the serialized key-value of a record."""
    if record[1] < 0x80:
        return record[2:]
    if record[2] < 0x80:
        return record[3:]
    return record[body_offset(record) :]


def decode(record: bytes) -> KeyValue:
    """Decode a record."""
    return parse_key_value(body_of(record))


def key_of(record: bytes) -> bytes:
    """Answer a record's key without decoding the rest; it is the first field of every key-value."""
    offset = 2 if record[1] < 0x80 else body_offset(record)
    length = record[offset + 1]
    if length < 0x80:
        offset += 2
        return record[offset : offset + length]
    return parse_key_value(record[offset:]).key


def mod_revision(record: bytes) -> int:
    """Answer a record's mod_revision."""
    return parse_key_value(body_of(record)).mod_revision


def tombstone(key: bytes, revision: bytes) -> bytes:
    """Compose the record of a deletion of ``key``.

    Args:
        key: the key.
        revision: its main revision as a varint; a range of keys is deleted at one revision.
    """
    length = len(key)
    body = b"\x0a%b%b\x18%b" % (NUMBERS[length] if length < 0x4000 else varint(length), key, revision)
    return b"\x13" + varint(len(body)) + body


def first_version(key: bytes, value: bytes, lease: int, revision: int) -> bytes:
    """Compose the serialized key-value of a key that is created at main revision ``revision``."""
    number = varint(revision)
    body = b"\x0a%b%b\x10%b\x18%b\x20\x01" % (varint(len(key)), key, number, number)
    if value:
        body += b"\x2a%b%b" % (varint(len(value)), value)
    if lease:
        body += b"\x30" + varint(lease)
    return body


def without_value(record: bytes) -> bytes:
    """Answer the record with an empty value, as ``keys_only`` asks."""
    message = parse_key_value(body_of(record))
    message.ClearField("value")
    return frame_record(message.SerializeToString())


def event(record: bytes) -> bytes:
    """Compose the event of a record, framed as ``WatchResponse.events``."""
    if record[0] == TOMBSTONE:
        body = b"\x08\x01\x12" + record[1:]
        return b"\x5a" + varint(len(body)) + body
    length = len(record)
    return _EVENT_PREFIXES[length] + record if length < 0x4000 else b"\x5a" + varint(length) + record


def event_with_previous(record: bytes, previous: bytes) -> bytes:
    """Compose the event of a record together with the version it replaced (``prev_kv``)."""
    tag = b"\x08\x01\x12" if record[0] == TOMBSTONE else b"\x12"
    body = b"".join((tag, record[1:], b"\x1a", previous[1:]))
    return b"\x5a" + varint(len(body)) + body
