"""What the Lock and Election services share: contending for a name with keys in the order of their creation.

Each contender puts ``name/<lease in hex>``, held by its lease. The key below ``name/`` with the smallest creation
revision owns the name; every other contender waits until no key older than its own is left, watching only the youngest
of those, so that a release wakes one contender and not all.

Built on the facade alone, as any client could be: txn, range, delete, watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from kvserver.errors import Code, KvError
from kvserver.node.service import NodeService
from kvserver.proto.kv_pb2 import Event
from kvserver.proto.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
    WatchCreateRequest,
    WatchResponse,
)

log = logging.getLogger(__name__)

SESSION_TTL_SECONDS = 60
"""TTL of the lease granted for a caller that brings none. The server does not renew it, as etcd does not; the caller
may, its key names the lease."""

EVENT_BATCHES_MAX = 64
"""Deliveries held for a reader that is behind; above it the watcher catches up from the store's log."""


@contextmanager
def as_client_errors() -> Iterator[None]:
    """Turn what the node refuses into UNKNOWN with the same text.

    These services are clients of the others, and etcd answers what its client was told without its code. A member that
    cannot serve now stays UNAVAILABLE: callers try another one for that.
    """
    try:
        yield
    except KvError as error:
        if error.code in (Code.UNAVAILABLE, Code.UNKNOWN):
            raise
        raise KvError(error.message, Code.UNKNOWN) from error


def prefix_end(prefix: bytes) -> bytes:
    """Answer the end of the range of all keys that begin with ``prefix``; for all keys if there is none behind it."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"


def contender_key(name: bytes, lease_id: int) -> bytes:
    """Answer a contender's key.

    >>> contender_key(b"jobs", 255)
    b'jobs/ff'
    """
    return b"%b/%b" % (name, format(lease_id, "x").encode())


async def get_range(node: NodeService, request: RangeRequest) -> RangeResponse:
    """Read a range."""
    return RangeResponse.FromString(await node.call(node.range, request))


async def run_txn(node: NodeService, request: TxnRequest) -> TxnResponse:
    """Run a txn."""
    return TxnResponse.FromString(await node.call(node.txn, request.SerializeToString(), request))


async def delete_key(node: NodeService, request: DeleteRangeRequest) -> bytes:
    """Delete; answers the serialized response."""
    return await node.call(node.delete_range, request.SerializeToString(), request)


async def grant_session(node: NodeService) -> int:
    """Grant a lease for a caller without one; answers its id."""
    request = LeaseGrantRequest(TTL=SESSION_TTL_SECONDS)
    answer = await node.call(node.lease_grant, request.SerializeToString(), request)
    return LeaseGrantResponse.FromString(answer).ID


def first_created(name: bytes) -> RangeRequest:
    """Ask for the owner of a name: the key created first."""
    prefix = name + b"/"
    return RangeRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        sort_order=RangeRequest.ASCEND,
        sort_target=RangeRequest.CREATE,
        limit=1,
    )


def created_at(key: bytes, revision: int) -> Compare:
    """Compare a key's creation revision; 0 is a key that does not exist."""
    return Compare(key=key, target=Compare.CREATE, result=Compare.EQUAL, create_revision=revision)


async def withdraw(node: NodeService, key: bytes, revision: int) -> TxnResponse:
    """Delete a contender's key, if it is still the one created at ``revision``."""
    return await run_txn(
        node,
        TxnRequest(
            compare=[created_at(key, revision)],
            success=[RequestOp(request_delete_range=DeleteRangeRequest(key=key))],
        ),
    )


async def give_up(node: NodeService, key: bytes, revision: int, session: int) -> None:
    """Leave nothing of a contender that did not get what it waited for.

    Args:
        node: the facade.
        key: its key.
        revision: the key's creation revision, 0 if it was not put.
        session: the lease granted for this contender alone, 0 if it brought its own.
    """
    try:
        if session:
            request = LeaseRevokeRequest(ID=session)
            await node.call(node.lease_revoke, request.SerializeToString(), request)
        elif revision:
            await withdraw(node, key, revision)
    except KvError as error:
        # Nobody is left to tell; the lease takes the key with it when it ends.
        log.info("could not withdraw %r: %s", key, error.message)


async def wait_turn(node: NodeService, name: bytes, revision: int) -> None:
    """Wait until no contender for ``name`` is left that was created before ``revision``."""
    prefix = name + b"/"
    before = RangeRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        sort_order=RangeRequest.DESCEND,
        sort_target=RangeRequest.CREATE,
        limit=1,
        keys_only=True,
        max_create_revision=revision - 1,
    )
    while True:
        answer = await get_range(node, before)
        if not answer.kvs:
            return
        async with Events(node) as events:
            events.watch(answer.kvs[0].key, b"", answer.header.revision + 1, (WatchCreateRequest.NOPUT,))
            await events.next()


class Events:
    """The events of one watcher, to be awaited; at most :data:`EVENT_BATCHES_MAX` deliveries are held."""

    def __init__(self, node: NodeService) -> None:
        self._batches: deque[tuple[int, list[bytes]]] = deque()
        self._arrived = asyncio.Event()
        self._cancelled = False
        self._full = False
        self._stream = node.watch_stream(self)

    async def __aenter__(self) -> Events:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.close()

    def watch(self, key: bytes, range_end: bytes, start_revision: int, filters: tuple[int, ...] = ()) -> None:
        """Start the watcher."""
        self._stream.watch(key, range_end, start_revision, filters=filters)

    async def next(self) -> tuple[int, list[Event]] | None:
        """Wait for events.

        Returns:
            The revision they were delivered at, and the events; None when compaction overtook the watcher.
        """
        while not self._batches:
            if self._cancelled:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        revision, events = self._batches.popleft()
        if self._full and not self._batches:
            self._full = False
            self._stream.resume()
        return revision, list(WatchResponse.FromString(b"".join(events)).events)

    def deliver(self, watch_id: int, revision: int, events: list[bytes]) -> bool:
        """Take events; False when the reader is too far behind."""
        if len(self._batches) >= EVENT_BATCHES_MAX:
            self._full = True
            return False
        self._batches.append((revision, events))
        self._arrived.set()
        return True

    def cancelled(self, watch_id: int, compact_revision: int, reason: str) -> None:
        """Take note that the watcher has ended."""
        self._cancelled = True
        self._arrived.set()

    def progress(self, watch_id: int, revision: int) -> None:
        """Nobody asks for it."""
