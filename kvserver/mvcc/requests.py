"""The requests of the KV service, applied to a store and answered as bytes.

An answer is composed from the caller's header bytes and stored records; no response object is built. ``header`` is
given the store's revision and answers ``ResponseHeader`` framed as field 1, the first field of every response.

``check_*`` are the static checks of a request, to be done before it is proposed; ``apply_*`` expect them done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from kvserver import errors
from kvserver.mvcc.ranges import RangeOptions, RangeResult
from kvserver.mvcc.records import decode, varint
from kvserver.mvcc.store import Store
from kvserver.proto.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest

Header = Callable[[int], bytes]
"""Composes the framed header for a revision."""


def check_range(request: RangeRequest) -> None:
    """Check a range.

    Raises:
        EmptyKeyError: no key.
        InvalidSortOptionError: sort order or target unknown.
    """
    if not request.key:
        raise errors.EmptyKeyError
    if request.sort_order or request.sort_target:
        options_of(request).check()


def check_put(request: PutRequest) -> None:
    """Check a put. Hot: in every write.

    Raises:
        EmptyKeyError: no key.
        ValueProvidedError: ``ignore_value`` with a value.
        LeaseProvidedError: ``ignore_lease`` with a lease.
    """
    if not request.key:
        raise errors.EmptyKeyError
    if request.ignore_value and request.value:
        raise errors.ValueProvidedError
    if request.ignore_lease and request.lease:
        raise errors.LeaseProvidedError


def check_delete_range(request: DeleteRangeRequest) -> None:
    """Check a delete.

    Raises:
        EmptyKeyError: no key.
    """
    if not request.key:
        raise errors.EmptyKeyError


def options_of(request: RangeRequest) -> RangeOptions:
    """Take a range request's options."""
    return RangeOptions(
        request.limit,
        request.revision,
        request.sort_order,
        request.sort_target,
        request.keys_only,
        request.count_only,
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    )


def range_answer(header: bytes, result: RangeResult) -> bytes:
    """Encode what a range found, behind a framed header; one copy, as an answer may be tens of megabytes."""
    tail = b"\x18\x01" if result.more else b""
    if result.count:
        tail += b"\x20" + varint(result.count)
    return b"".join([header, *result.kvs, tail])


def apply_range(store: Store, request: RangeRequest, header: Header) -> bytes:
    """Answer a range at once.

    Raises:
        CompactedError, FutureRevisionError: the revision is out of what the store keeps.
    """
    result = store.range(request.key, request.range_end, options_of(request))
    return range_answer(header(store.revision), result)


def apply_range_slices(store: Store, request: RangeRequest, header: Header) -> Generator[None, None, bytes]:
    """Answer a large range, one bounded slice a step; the header carries the revision it was pinned at.

    Raises:
        CompactedError, FutureRevisionError: as :func:`apply_range`, by the first step.
    """
    revision = store.revision
    result = yield from store.range_slices(request.key, request.range_end, options_of(request))
    yield
    return range_answer(header(revision), result)


def put_keeping(store: Store, request: PutRequest) -> bytes:
    """Carry out a put that keeps the key's value or lease; answers the record it replaced.

    Raises:
        KeyNotFoundError: there is no such key.
    """
    previous = store.get(request.key)
    if previous is None:
        raise errors.KeyNotFoundError
    current = decode(previous)
    value = current.value if request.ignore_value else request.value
    store.put(request.key, value, current.lease if request.ignore_lease else request.lease)
    return previous


def apply_put(store: Store, request: PutRequest, header: Header) -> bytes:
    """Carry out a put and answer it. Hot: one call a client write (benchmark ``put``).

    Raises:
        KeyNotFoundError: ``ignore_value`` or ``ignore_lease``, and there is no such key.
        LeaseNotFoundError: there is no such lease.
    """
    lease = request.lease
    if lease and not store.leases.exists(lease):
        raise errors.LeaseNotFoundError
    previous: bytes | None
    if request.ignore_value or request.ignore_lease:
        previous = put_keeping(store, request)
    else:
        previous = store.put(request.key, request.value, lease)
    if previous is not None and request.prev_kv:
        return header(store.revision) + previous
    return header(store.revision)


def delete_range_body(deleted: list[bytes], with_previous: bool) -> bytes:
    """Encode everything of DeleteRangeResponse behind the header."""
    if not deleted:
        return b""
    body = b"\x10" + varint(len(deleted))
    if with_previous:
        return body + b"".join([b"\x1a" + record[1:] for record in deleted])
    return body


def apply_delete_range(store: Store, request: DeleteRangeRequest, header: Header) -> bytes:
    """Carry out a delete and answer it."""
    deleted = store.delete_range(request.key, request.range_end)
    return header(store.revision) + delete_range_body(deleted, request.prev_kv)
