"""Records: framing, decoding, events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.mvcc import records
from kvserver.proto.kv_pb2 import Event, KeyValue
from kvserver.proto.rpc_pb2 import RangeResponse, WatchResponse

revisions = st.one_of(st.integers(1, 300), st.integers(1, 2**63 - 1))
leases = st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1))
texts = st.one_of(st.binary(max_size=8), st.sampled_from([b"k" * 127, b"k" * 128, b"v" * 16383, b"v" * 20000]))


@given(texts.filter(bool), texts, leases, revisions)
def test_a_first_version_is_what_protobuf_would_write(key: bytes, value: bytes, lease: int, revision: int) -> None:
    message = KeyValue(key=key, value=value, lease=lease, create_revision=revision, mod_revision=revision, version=1)
    assert records.first_version(key, value, lease, revision) == message.SerializeToString(deterministic=True)


@given(texts.filter(bool), texts, leases, revisions)
def test_a_record_is_a_field_of_a_range_response(key: bytes, value: bytes, lease: int, revision: int) -> None:
    record = records.frame_record(records.first_version(key, value, lease, revision))
    (found,) = RangeResponse.FromString(record).kvs
    assert found == records.decode(record)
    assert records.body_of(record) == found.SerializeToString()
    assert records.body_offset(record) == len(record) - len(records.body_of(record))
    assert records.key_of(record) == key
    assert records.mod_revision(record) == revision


@given(texts.filter(bool), revisions)
def test_a_tombstone_holds_key_and_mod_revision(key: bytes, revision: int) -> None:
    record = records.tombstone(key, records.varint(revision))
    assert records.is_tombstone(record)
    assert records.decode(record) == KeyValue(key=key, mod_revision=revision)
    assert records.key_of(record) == key


@given(st.integers(0, 2**63 - 1))
def test_varints_are_protobufs(number: int) -> None:
    assert KeyValue.FromString(b"\x18" + records.varint(number)).mod_revision == number


def test_a_negative_varint_is_its_twos_complement() -> None:
    assert KeyValue.FromString(b"\x30" + records.varint(-5)).lease == -5


@pytest.mark.parametrize("size", [0, 10, 200, 20000])
def test_without_value_keeps_the_rest(size: int) -> None:
    record = records.frame_record(records.first_version(b"k", b"v" * size, 7, 300))
    kept = records.decode(records.without_value(record))
    assert kept == KeyValue(key=b"k", lease=7, create_revision=300, mod_revision=300, version=1)


@pytest.mark.parametrize("size", [1, 100, 16380, 20000])
def test_events_are_fields_of_a_watch_response(size: int) -> None:
    old = records.frame_record(records.first_version(b"k", b"o" * size, 0, 5))
    new = records.frame_record(records.first_version(b"k", b"n" * size, 0, 9))
    gone = records.tombstone(b"k", b"\x0c")
    framed = [
        records.event(new),
        records.event(gone),
        records.event_with_previous(new, old),
        records.event_with_previous(gone, new),
    ]
    assert list(WatchResponse.FromString(b"".join(framed)).events) == [
        Event(type=Event.PUT, kv=records.decode(new)),
        Event(type=Event.DELETE, kv=KeyValue(key=b"k", mod_revision=12)),
        Event(type=Event.PUT, kv=records.decode(new), prev_kv=records.decode(old)),
        Event(type=Event.DELETE, kv=KeyValue(key=b"k", mod_revision=12), prev_kv=records.decode(new)),
    ]
