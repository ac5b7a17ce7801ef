"""Txn: compares and operations at one main revision.

A txn is checked in three stages, and nothing is written before the last has passed:
1. static (:func:`check_txn`): sizes, keys, and no key written twice, on both branches whatever the compares will say;
2. the path: all compares, nested ones too, see the state before the txn, so the branches to take are known at once;
3. the operations on the path: leases exist, keys that ``ignore_*`` needs exist, revisions are neither future nor
   compacted.

Responses inside a txn carry a header with only the revision, that of a nested txn an empty one, as etcd's do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from kvserver import errors
from kvserver.limits import TXN_OPERATIONS_MAX
from kvserver.mvcc.records import decode, varint
from kvserver.mvcc.requests import (
    Header,
    check_delete_range,
    check_put,
    check_range,
    delete_range_body,
    options_of,
    put_keeping,
    range_answer,
)
from kvserver.mvcc.store import Store
from kvserver.proto.kv_pb2 import KeyValue
from kvserver.proto.rpc_pb2 import Compare, PutRequest, RangeRequest, RequestOp, TxnRequest

_NOTHING = KeyValue()
"""What compares see of a missing key."""


# -- static checks ----------------------------------------------------------------------------------------------------


def check_txn(request: TxnRequest, operations_max: int = TXN_OPERATIONS_MAX) -> None:
    """Check everything about a txn that does not depend on the store.

    Raises:
        TooManyOperationsError: a list is longer than ``operations_max``; a nested txn has what its parent's largest
            list left.
        EmptyKeyError, ValueProvidedError, LeaseProvidedError, InvalidSortOptionError: as of the single requests.
        KeyNotFoundError: an operation is empty.
        DuplicateKeyError: a key is put twice, or put and deleted.
    """
    _check_lists(request, operations_max)
    _written(request.success)
    _written(request.failure)


def _check_lists(request: TxnRequest, operations_max: int) -> None:
    largest = max(len(request.compare), len(request.success), len(request.failure))
    if largest > operations_max:
        raise errors.TooManyOperationsError
    for compare in request.compare:
        if not compare.key:
            raise errors.EmptyKeyError
    for operations in (request.success, request.failure):
        for operation in operations:
            kind = operation.WhichOneof("request")
            if kind == "request_put":
                check_put(operation.request_put)
            elif kind == "request_range":
                check_range(operation.request_range)
            elif kind == "request_delete_range":
                check_delete_range(operation.request_delete_range)
            elif kind == "request_txn":
                _check_lists(operation.request_txn, operations_max - largest)
            else:
                raise errors.KeyNotFoundError


class _Intervals:
    """A union of half-open key intervals, kept disjoint and in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def add(self, start: bytes, end: bytes) -> None:
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        low = bisect_left(starts, start)
        if low and ends[low - 1] >= start:
            low -= 1
            start = starts[low]
        high = bisect_right(starts, end)
        if high > low:
            end = max(end, ends[high - 1])
        starts[low:high] = [start]
        ends[low:high] = [end]

    def __contains__(self, key: bytes) -> bool:
        place = bisect_right(self._starts, key) - 1
        return place >= 0 and key < self._ends[place]

    def update(self, other: _Intervals) -> None:
        for start, end in zip(other._starts, other._ends, strict=True):
            self.add(start, end)


def _written(operations: Sequence[RequestOp]) -> tuple[set[bytes], _Intervals]:
    """Answer the keys put and the intervals deleted by a list of operations and what it nests.

    The order of work is etcd's: deletes of this level, then nested txns one by one, then puts of this level. So are two
    gaps of it: an unbounded delete (end ``b"\\0"``) counts as an empty interval, and a put in a nested txn may meet a
    delete in a later one. Both run as written, in order.

    Raises:
        DuplicateKeyError: a key is put twice, or put and deleted.
    """
    puts: set[bytes] = set()
    deletes = _Intervals()
    for operation in operations:
        if operation.HasField("request_delete_range"):
            request = operation.request_delete_range
            end = request.range_end
            deletes.add(request.key, end or request.key + b"\0")
    for operation in operations:
        if operation.HasField("request_txn"):
            success_puts, success_deletes = _written(operation.request_txn.success)
            failure_puts, failure_deletes = _written(operation.request_txn.failure)
            # One key on both branches is fine: only one of them runs.
            for key in sorted(success_puts | failure_puts):
                if key in puts or key in deletes:
                    raise errors.DuplicateKeyError
            puts |= success_puts
            puts |= failure_puts
            deletes.update(success_deletes)
            deletes.update(failure_deletes)
    for operation in operations:
        if operation.HasField("request_put"):
            key = operation.request_put.key
            if key in puts or key in deletes:
                raise errors.DuplicateKeyError
            puts.add(key)
    return puts, deletes


def is_read_only(request: TxnRequest) -> bool:
    """Answer whether no branch of the txn writes; such a txn needs no place in the log."""
    for operations in (request.success, request.failure):
        for operation in operations:
            kind = operation.WhichOneof("request")
            if kind == "request_txn":
                if not is_read_only(operation.request_txn):
                    return False
            elif kind != "request_range":
                return False
    return True


# -- the path ---------------------------------------------------------------------------------------------------------


class _Path:
    """The branch that a txn takes, and those of the txns nested in it, in order."""

    __slots__ = ("nested", "operations", "succeeded")

    def __init__(self, store: Store, request: TxnRequest) -> None:
        self.succeeded = all(_holds(store, compare) for compare in request.compare)
        self.operations: Sequence[RequestOp] = request.success if self.succeeded else request.failure
        self.nested = [
            _Path(store, operation.request_txn) for operation in self.operations if operation.HasField("request_txn")
        ]

    def walk(self) -> Iterator[RequestOp]:
        """Yield the operations that will run, in order, without the nested txns themselves."""
        nested = iter(self.nested)
        for operation in self.operations:
            if operation.HasField("request_txn"):
                yield from next(nested).walk()
            else:
                yield operation


def _holds(store: Store, compare: Compare) -> bool:
    if not compare.range_end:
        record = store.get(compare.key)
        if record is None:
            # A missing value cannot be told from an empty one, so a compare of it never holds.
            return compare.target != Compare.VALUE and _compare(compare, _NOTHING)
        return _compare(compare, decode(record))
    records = store.range(compare.key, compare.range_end).kvs
    if not records:
        return compare.target != Compare.VALUE and _compare(compare, _NOTHING)
    return all(_compare(compare, decode(record)) for record in records)


def _compare(compare: Compare, current: KeyValue) -> bool:
    target = compare.target
    left: int | bytes
    right: int | bytes
    if target == Compare.VERSION:
        left, right = current.version, compare.version
    elif target == Compare.CREATE:
        left, right = current.create_revision, compare.create_revision
    elif target == Compare.MOD:
        left, right = current.mod_revision, compare.mod_revision
    elif target == Compare.VALUE:
        left, right = current.value, compare.value
    elif target == Compare.LEASE:
        left, right = current.lease, compare.lease
    else:
        left = right = 0
    result = compare.result
    if result == Compare.EQUAL:
        return left == right
    if result == Compare.NOT_EQUAL:
        return left != right
    if result == Compare.GREATER:
        return left > right  # type: ignore[operator]
    if result == Compare.LESS:
        return left < right  # type: ignore[operator]
    return True


def _check_puts_now(store: Store, operations: Sequence[RequestOp]) -> None:
    deleted: list[bytes] = []
    for operation in operations:
        if operation.HasField("request_delete_range"):
            # Only an unbounded delete can be before a put of a key it deletes; see _written.
            if operation.request_delete_range.range_end == b"\0":
                deleted.append(operation.request_delete_range.key)
        elif operation.HasField("request_put"):
            request = operation.request_put
            if request.ignore_value or request.ignore_lease:
                key = request.key
                if store.get(key) is None or any(key >= start for start in deleted):
                    raise errors.KeyNotFoundError
            if request.lease and not store.leases.exists(request.lease):
                raise errors.LeaseNotFoundError


def _check_range_now(store: Store, request: RangeRequest) -> None:
    revision = request.revision
    if revision == 0:
        return
    if revision > store.revision:
        raise errors.FutureRevisionError
    if revision < store.compact_revision:
        raise errors.CompactedError


# -- running ----------------------------------------------------------------------------------------------------------


def execute(store: Store, request: TxnRequest, header: Header) -> bytes:
    """Run a txn that passed :func:`check_txn`, and answer it.

    Raises:
        KeyNotFoundError, LeaseNotFoundError, FutureRevisionError, CompactedError: an operation that would run cannot;
            nothing was written.
    """
    path = _Path(store, request)
    operations = list(path.walk())
    _check_puts_now(store, operations)
    for operation in operations:
        if operation.HasField("request_range"):
            _check_range_now(store, operation.request_range)
    store.begin()
    try:
        body = _run(store, path)
    finally:
        revision = store.end()
    return header(revision) + body


def _run(store: Store, path: _Path) -> bytes:
    """Run the operations of a path; answers everything of TxnResponse behind the header."""
    parts = [b"\x10\x01"] if path.succeeded else []
    nested = iter(path.nested)
    for operation in path.operations:
        kind = operation.WhichOneof("request")
        if kind == "request_put":
            answer = _put(store, operation.request_put)
            field = b"\x12"
        elif kind == "request_range":
            ranged = operation.request_range
            result = store.range(ranged.key, ranged.range_end, options_of(ranged))
            answer = range_answer(_header(store), result)
            field = b"\x0a"
        elif kind == "request_delete_range":
            deletion = operation.request_delete_range
            deleted = store.delete_range(deletion.key, deletion.range_end)
            answer = _header(store) + delete_range_body(deleted, deletion.prev_kv)
            field = b"\x1a"
        else:
            answer = b"\x0a\x00" + _run(store, next(nested))
            field = b"\x22"
        length = varint(len(answer))
        parts.append(b"\x1a" + varint(1 + len(length) + len(answer)) + field + length + answer)
    return b"".join(parts)


def _put(store: Store, request: PutRequest) -> bytes:
    replaced: bytes | None
    if request.ignore_value or request.ignore_lease:
        replaced = put_keeping(store, request)
    else:
        replaced = store.put(request.key, request.value, request.lease)
    if replaced is not None and request.prev_kv:
        return _header(store) + replaced
    return _header(store)


def _header(store: Store) -> bytes:
    """Compose the header of an inner response: only the revision that the txn has at this point."""
    number = varint(store.revision + 1 if store.txn_changes else store.revision)
    return b"\x0a" + varint(1 + len(number)) + b"\x18" + number
