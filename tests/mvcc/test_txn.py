"""Txns: static checks, compares, branches, one revision, all or nothing."""

from __future__ import annotations

import pytest

from kvserver import errors
from kvserver.lease import Lessor
from kvserver.mvcc import Store
from kvserver.mvcc.ranges import run
from kvserver.mvcc.txn import check_txn, execute, is_read_only
from kvserver.proto.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)


def header(revision: int) -> bytes:
    body = ResponseHeader(cluster_id=1, revision=revision).SerializeToString()
    return b"\x0a" + bytes((len(body),)) + body


def put(key: bytes, value: bytes = b"", **fields: object) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key, value=value, **fields))


def delete(key: bytes, end: bytes = b"", **fields: object) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=end, **fields))


def get(key: bytes, end: bytes = b"", **fields: object) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key, range_end=end, **fields))


def nested(*success: RequestOp, failure: tuple[RequestOp, ...] = (), compare: tuple[Compare, ...] = ()) -> RequestOp:
    return RequestOp(request_txn=TxnRequest(compare=compare, success=success, failure=failure))


@pytest.fixture
def store() -> Store:
    lessor = Lessor()
    lessor.grant(7, 60)
    made = Store(lessor)
    made.put(b"a", b"1")
    made.put(b"a", b"2")
    made.put(b"b", b"5", 7)
    return made  # at revision 4


def execute_checked(store: Store, request: TxnRequest) -> TxnResponse:
    check_txn(request)
    return TxnResponse.FromString(execute(store, request, header))


# -- static checks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operations", "error"),
    [
        ([put(b"a"), put(b"a")], errors.DuplicateKeyError),
        ([put(b"a"), delete(b"a")], errors.DuplicateKeyError),
        ([delete(b"a"), put(b"a")], errors.DuplicateKeyError),
        ([put(b"b"), delete(b"a", b"c")], errors.DuplicateKeyError),
        ([put(b"c"), delete(b"a", b"c")], None),
        ([delete(b"a"), delete(b"a"), delete(b"\0", b"z")], None),
        ([put(b"a"), get(b"a")], None),
        ([put(b"a"), nested(put(b"a"))], errors.DuplicateKeyError),
        ([nested(put(b"a")), nested(put(b"a"))], errors.DuplicateKeyError),
        ([nested(put(b"a"), failure=(put(b"a"),))], None),
        ([put(b"a"), nested(get(b"a"), failure=(put(b"a"),))], errors.DuplicateKeyError),
        ([delete(b"a", b"c"), nested(put(b"b"))], errors.DuplicateKeyError),
        ([nested(delete(b"a", b"c")), put(b"b")], errors.DuplicateKeyError),
        ([nested(delete(b"a", b"c")), nested(put(b"b"))], errors.DuplicateKeyError),
        ([nested(put(b"b")), nested(delete(b"a", b"c"))], None),
        ([delete(b"a", b"\0"), put(b"b")], None),
        ([delete(b"c", b"a"), put(b"b")], None),
        ([delete(b"a", b"c"), delete(b"e", b"g"), delete(b"b", b"f"), put(b"d")], errors.DuplicateKeyError),
        ([delete(b"e", b"g"), delete(b"a", b"c"), put(b"d")], None),
        ([delete(b"a", b"z"), delete(b"b", b"c"), put(b"x")], errors.DuplicateKeyError),
        ([RequestOp()], errors.KeyNotFoundError),
        ([put(b"")], errors.EmptyKeyError),
        ([get(b"")], errors.EmptyKeyError),
        ([delete(b"")], errors.EmptyKeyError),
        ([nested(nested(put(b"")))], errors.EmptyKeyError),
        ([put(b"a", b"x", ignore_value=True)], errors.ValueProvidedError),
        ([put(b"a", lease=7, ignore_lease=True)], errors.LeaseProvidedError),
        ([get(b"a", sort_order=9)], errors.InvalidSortOptionError),
    ],
)
def test_operations_are_checked_on_both_branches(
    operations: list[RequestOp], error: type[errors.KvError] | None
) -> None:
    for request in (TxnRequest(success=operations), TxnRequest(failure=operations)):
        if error is None:
            check_txn(request)
        else:
            with pytest.raises(error):
                check_txn(request)


def test_a_compare_needs_a_key() -> None:
    with pytest.raises(errors.EmptyKeyError):
        check_txn(TxnRequest(compare=[Compare()]))


@pytest.mark.parametrize("field", ["compare", "success", "failure"])
def test_a_list_holds_128_operations(field: str) -> None:
    def request(count: int) -> TxnRequest:
        items = [Compare(key=b"a")] * count if field == "compare" else [get(b"a")] * count
        return TxnRequest(**{field: items})

    check_txn(request(128))
    with pytest.raises(errors.TooManyOperationsError):
        check_txn(request(129))


def test_a_nested_txn_gets_what_its_parent_left() -> None:
    def request(outer: int, inner: int) -> TxnRequest:
        return TxnRequest(compare=[Compare(key=b"a")] * outer, success=[get(b"a"), nested(*[get(b"a")] * inner)])

    check_txn(request(100, 28))
    with pytest.raises(errors.TooManyOperationsError):
        check_txn(request(100, 29))


def test_deep_nesting() -> None:
    inner = get(b"a")
    for _ in range(40):
        inner = nested(inner)
    request = TxnRequest(success=[inner])
    check_txn(request)
    assert execute(Store(), request, header)


def test_read_only() -> None:
    assert is_read_only(TxnRequest(success=[get(b"a")], failure=[nested(get(b"b"))]))
    assert not is_read_only(TxnRequest(success=[get(b"a")], failure=[put(b"a")]))
    assert not is_read_only(TxnRequest(success=[nested(failure=(delete(b"a"),))]))
    assert is_read_only(TxnRequest())


# -- compares ---------------------------------------------------------------------------------------------------------

EQUAL, GREATER, LESS, NOT_EQUAL = Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(key=b"a", target=Compare.VERSION, result=EQUAL, version=2), True),
        (Compare(key=b"a", target=Compare.VERSION, result=GREATER, version=2), False),
        (Compare(key=b"a", target=Compare.VERSION, result=LESS, version=3), True),
        (Compare(key=b"a", target=Compare.CREATE, result=EQUAL, create_revision=2), True),
        (Compare(key=b"a", target=Compare.MOD, result=EQUAL, mod_revision=3), True),
        (Compare(key=b"a", target=Compare.MOD, result=NOT_EQUAL, mod_revision=3), False),
        (Compare(key=b"a", target=Compare.VALUE, result=EQUAL, value=b"2"), True),
        (Compare(key=b"a", target=Compare.VALUE, result=GREATER, value=b"10"), True),
        (Compare(key=b"b", target=Compare.LEASE, result=EQUAL, lease=7), True),
        (Compare(key=b"a", target=Compare.LEASE, result=EQUAL, lease=0), True),
        # A field of another target counts as not given.
        (Compare(key=b"a", target=Compare.VERSION, result=GREATER, mod_revision=99), True),
        # A missing key is all zeros, but has no value.
        (Compare(key=b"x", target=Compare.VERSION, result=EQUAL, version=0), True),
        (Compare(key=b"x", target=Compare.CREATE, result=GREATER, create_revision=0), False),
        (Compare(key=b"x", target=Compare.LEASE, result=EQUAL), True),
        (Compare(key=b"x", target=Compare.VALUE, result=EQUAL, value=b""), False),
        (Compare(key=b"x", target=Compare.VALUE, result=NOT_EQUAL, value=b"1"), False),
        # A range: every key of it has to hold.
        (Compare(key=b"a", range_end=b"c", target=Compare.MOD, result=GREATER, mod_revision=2), True),
        (Compare(key=b"a", range_end=b"c", target=Compare.MOD, result=GREATER, mod_revision=3), False),
        (Compare(key=b"b", range_end=b"\0", target=Compare.VALUE, result=EQUAL, value=b"5"), True),
        (Compare(key=b"x", range_end=b"z", target=Compare.CREATE, result=EQUAL, create_revision=0), True),
        (Compare(key=b"x", range_end=b"z", target=Compare.VALUE, result=EQUAL), False),
    ],
)
def test_compares(store: Store, compare: Compare, holds: bool) -> None:
    assert execute_checked(store, TxnRequest(compare=[compare])).succeeded is holds


def test_all_compares_have_to_hold(store: Store) -> None:
    true = Compare(key=b"a", target=Compare.VERSION, version=2)
    false = Compare(key=b"a", target=Compare.VERSION, version=3)
    assert execute_checked(store, TxnRequest(compare=[true, true])).succeeded
    assert not execute_checked(store, TxnRequest(compare=[true, false])).succeeded


def test_nested_compares_see_the_state_before_the_txn(store: Store) -> None:
    missing = Compare(key=b"n", target=Compare.VERSION, version=0)
    request = TxnRequest(success=[put(b"n"), nested(put(b"yes"), failure=(put(b"no"),), compare=(missing,))])
    execute_checked(store, request)
    assert store.get(b"yes")
    assert store.get(b"no") is None


# -- running ----------------------------------------------------------------------------------------------------------


def test_all_writes_share_one_revision_and_later_operations_see_earlier_ones(store: Store) -> None:
    answer = execute_checked(
        store,
        TxnRequest(
            success=[
                get(b"a"),
                put(b"q", b"1", prev_kv=True),
                get(b"\0", b"\0", keys_only=True),
                delete(b"a", prev_kv=True),
                get(b"\0", b"\0", count_only=True),
                delete(b"zz"),
                nested(put(b"b", b"6", prev_kv=True), get(b"q", revision=4)),
            ]
        ),
    )
    assert store.revision == 5
    assert answer.header == ResponseHeader(cluster_id=1, revision=5)
    first, written, listed, deleted, counted, nothing, inner = answer.responses
    # Inner headers say only the revision, as it is at that point.
    assert first.response_range.header == ResponseHeader(revision=4)
    assert written.response_put.header == ResponseHeader(revision=5)
    assert not written.response_put.HasField("prev_kv")
    assert [kv.key for kv in listed.response_range.kvs] == [b"a", b"b", b"q"]
    assert deleted.response_delete_range.deleted == 1
    assert deleted.response_delete_range.prev_kvs[0].value == b"2"
    assert counted.response_range.count == 2
    assert nothing.response_delete_range.header == ResponseHeader(revision=5)
    assert nothing.response_delete_range.deleted == 0
    assert inner.response_txn.HasField("header")
    assert inner.response_txn.header == ResponseHeader()
    assert inner.response_txn.succeeded
    assert inner.response_txn.responses[0].response_put.prev_kv.value == b"5"
    assert inner.response_txn.responses[1].response_range.count == 0


def test_a_txn_that_writes_nothing_does_not_move_the_revision(store: Store) -> None:
    answer = execute_checked(store, TxnRequest(success=[get(b"a"), delete(b"x")]))
    assert answer.header.revision == store.revision == 4
    assert execute_checked(store, TxnRequest()).succeeded


def test_the_failure_branch(store: Store) -> None:
    compare = Compare(key=b"a", target=Compare.VERSION, version=9)
    answer = execute_checked(store, TxnRequest(compare=[compare], success=[put(b"s")], failure=[put(b"f")]))
    assert not answer.succeeded
    assert store.get(b"s") is None
    assert store.get(b"f")


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (get(b"a", revision=5), errors.FutureRevisionError),
        (get(b"a", revision=2), errors.CompactedError),
        (get(b"a", revision=-1), errors.CompactedError),
        (put(b"a", lease=8), errors.LeaseNotFoundError),
        (put(b"x", ignore_value=True), errors.KeyNotFoundError),
        (put(b"x", ignore_lease=True), errors.KeyNotFoundError),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_an_operation_that_cannot_run_fails_the_txn_before_anything_is_written(
    store: Store, operation: RequestOp, error: type[errors.KvError], deep: bool
) -> None:
    run(store.compact(3))
    last = nested(operation) if deep else operation
    with pytest.raises(error):
        execute_checked(store, TxnRequest(success=[put(b"q"), delete(b"b"), last]))
    assert store.revision == 4
    assert store.get(b"q") is None
    assert store.get(b"b")
    # On the branch not taken it does no harm.
    execute_checked(store, TxnRequest(success=[put(b"q")], failure=[last]))


def test_a_put_may_keep_the_value_of_a_key_but_not_of_one_just_deleted(store: Store) -> None:
    execute_checked(
        store, TxnRequest(success=[put(b"a", ignore_value=True, lease=7), put(b"b", b"8", ignore_lease=True)])
    )
    assert store.leases.time_to_live(7, 0, True).keys == [b"a", b"b"]  # type: ignore[attr-defined]
    with pytest.raises(errors.KeyNotFoundError):
        execute_checked(store, TxnRequest(success=[delete(b"a", b"\0"), put(b"b", ignore_value=True)]))
    assert store.revision == 5


def test_an_unbounded_delete_and_a_put_run_in_order(store: Store) -> None:
    execute_checked(store, TxnRequest(success=[delete(b"\0", b"\0"), put(b"b", b"new")]))
    assert len(store) == 1
    assert store.get_at(b"a", 4)
