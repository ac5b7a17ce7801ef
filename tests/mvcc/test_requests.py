"""Requests answered as bytes that a client's protobuf understands."""

from __future__ import annotations

import pytest

from kvserver import errors
from kvserver.lease import Lessor
from kvserver.mvcc import Store
from kvserver.mvcc import store as store_module
from kvserver.mvcc.ranges import run
from kvserver.mvcc.requests import (
    apply_delete_range,
    apply_put,
    apply_range,
    apply_range_slices,
    check_delete_range,
    check_put,
    check_range,
)
from kvserver.proto.kv_pb2 import KeyValue
from kvserver.proto.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
)


def header(revision: int) -> bytes:
    body = ResponseHeader(cluster_id=1, revision=revision).SerializeToString()
    return b"\x0a" + bytes((len(body),)) + body


@pytest.fixture
def store() -> Store:
    lessor = Lessor()
    lessor.grant(7, 60)
    return Store(lessor)


def put(store: Store, key: bytes, **fields: object) -> PutResponse:
    return PutResponse.FromString(apply_put(store, PutRequest(key=key, **fields), header))


def get(store: Store, key: bytes) -> KeyValue:
    (found,) = RangeResponse.FromString(apply_range(store, RangeRequest(key=key), header)).kvs
    return found


def test_put_answers_the_new_revision_and_the_old_version_if_asked(store: Store) -> None:
    answer = put(store, b"a", value=b"1", prev_kv=True)
    assert answer == PutResponse(header=ResponseHeader(cluster_id=1, revision=2))
    answer = put(store, b"a", value=b"2", prev_kv=True)
    assert answer.header.revision == 3
    assert answer.prev_kv == KeyValue(key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1)
    assert not put(store, b"a", value=b"3").HasField("prev_kv")


def test_put_keeps_what_it_is_told_to_ignore(store: Store) -> None:
    put(store, b"a", value=b"1", lease=7)
    put(store, b"a", ignore_value=True)
    assert (get(store, b"a").value, get(store, b"a").lease) == (b"1", 0)
    put(store, b"a", value=b"2", lease=7)
    put(store, b"a", value=b"3", ignore_lease=True)
    assert (get(store, b"a").value, get(store, b"a").lease) == (b"3", 7)
    with pytest.raises(errors.KeyNotFoundError):
        put(store, b"b", ignore_value=True)
    with pytest.raises(errors.KeyNotFoundError):
        put(store, b"b", ignore_lease=True)
    with pytest.raises(errors.LeaseNotFoundError):
        put(store, b"a", lease=8)
    assert store.revision == 5


def test_static_checks() -> None:
    for check, request in (
        (check_put, PutRequest()),
        (check_range, RangeRequest()),
        (check_delete_range, DeleteRangeRequest()),
    ):
        with pytest.raises(errors.EmptyKeyError):
            check(request)  # type: ignore[operator]
    with pytest.raises(errors.ValueProvidedError):
        check_put(PutRequest(key=b"a", value=b"x", ignore_value=True))
    with pytest.raises(errors.LeaseProvidedError):
        check_put(PutRequest(key=b"a", lease=7, ignore_lease=True))
    for fields in ({"sort_order": 3}, {"sort_target": 5}):
        with pytest.raises(errors.InvalidSortOptionError):
            check_range(RangeRequest(key=b"a", **fields))
    check_put(PutRequest(key=b"a", ignore_value=True, lease=7))
    check_range(RangeRequest(key=b"a", sort_order=RangeRequest.DESCEND, sort_target=RangeRequest.VALUE))
    check_delete_range(DeleteRangeRequest(key=b"a"))


def test_range(store: Store) -> None:
    for number in range(5):
        put(store, b"k%d" % number, value=b"x")
    answer = RangeResponse.FromString(
        apply_range(store, RangeRequest(key=b"k", range_end=b"l", limit=2, keys_only=True, revision=4), header)
    )
    assert answer.header.revision == 6
    assert [kv.key for kv in answer.kvs] == [b"k0", b"k1"]
    assert (answer.count, answer.more) == (3, True)
    assert RangeResponse.FromString(apply_range(store, RangeRequest(key=b"x"), header)) == RangeResponse(
        header=ResponseHeader(cluster_id=1, revision=6)
    )


def test_a_sliced_range_answers_with_the_revision_it_is_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLICE_KEYS", 2)
    for number in range(5):
        put(store, b"k%d" % number, value=b"x")
    request = RangeRequest(key=b"k", range_end=b"l")
    wanted = apply_range(store, request, header)
    slices = apply_range_slices(store, request, header)
    next(slices)
    put(store, b"k9")
    assert run(slices) == wanted


def test_delete_range(store: Store) -> None:
    for number in range(3):
        put(store, b"k%d" % number, value=b"x" * 200)
    request = DeleteRangeRequest(key=b"k", range_end=b"k2", prev_kv=True)
    answer = DeleteRangeResponse.FromString(apply_delete_range(store, request, header))
    assert answer.header.revision == 5
    assert answer.deleted == 2
    assert [(kv.key, kv.value) for kv in answer.prev_kvs] == [(b"k0", b"x" * 200), (b"k1", b"x" * 200)]
    answer = DeleteRangeResponse.FromString(apply_delete_range(store, request, header))
    assert answer == DeleteRangeResponse(header=ResponseHeader(cluster_id=1, revision=5))


def test_keys_move_between_leases(store: Store) -> None:
    lessor = store.leases
    assert isinstance(lessor, Lessor)
    lessor.grant(8, 60)
    put(store, b"a", lease=7)
    put(store, b"b", lease=7)
    put(store, b"a", lease=8)
    assert lessor.time_to_live(7, 0, True).keys == [b"b"]
    assert lessor.time_to_live(8, 0, True).keys == [b"a"]
    put(store, b"a")
    apply_delete_range(store, DeleteRangeRequest(key=b"b"), header)
    assert lessor.time_to_live(7, 0, True).keys == lessor.time_to_live(8, 0, True).keys == []
