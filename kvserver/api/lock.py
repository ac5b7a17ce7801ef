"""The Lock service: a lock held by a lease, for clients that have no lock of their own.

A lock's key is its proof: it exists for as long as the caller owns the lock, so a txn can compare its creation
revision. A caller that goes away while it waits, or whose deadline passes, leaves no key behind.
"""

from __future__ import annotations

import asyncio
from functools import partial

from kvserver import errors
from kvserver.api.contention import (
    as_client_errors,
    contender_key,
    created_at,
    delete_key,
    first_created,
    get_range,
    give_up,
    grant_session,
    run_txn,
    wait_turn,
)
from kvserver.api.streams import TaskCall, checked
from kvserver.errors import Code, KvError
from kvserver.node.service import NodeService
from kvserver.proto.lock_pb2 import LockRequest, LockResponse, UnlockRequest, UnlockResponse
from kvserver.proto.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    RangeRequest,
    RequestOp,
    ResponseHeader,
    TxnRequest,
)
from kvserver.wire.server import StreamMethod

PREFIX = b"/v3lockpb.Lock/"


async def lock(node: NodeService, request: LockRequest) -> LockResponse:
    """Acquire a lock; waits until it is free.

    Raises:
        LeaseNotFoundError: the caller's lease does not exist.
        KvError: UNKNOWN "mutex: session is expired": the key is gone, its lease ended while the caller waited.
        asyncio.CancelledError: as given to the task; the caller's key has been removed.
    """
    lease_id = request.lease or await grant_session(node)
    key = contender_key(request.name, lease_id)
    revision = 0
    owned = False
    try:
        owner = RequestOp(request_range=first_created(request.name))
        entered = await run_txn(
            node,
            TxnRequest(
                compare=[created_at(key, 0)],
                success=[RequestOp(request_put=PutRequest(key=key, lease=lease_id)), owner],
                failure=[RequestOp(request_range=RangeRequest(key=key)), owner],
            ),
        )
        if entered.succeeded:
            revision = entered.header.revision
        else:
            revision = entered.responses[0].response_range.kvs[0].create_revision
        owners = entered.responses[1].response_range.kvs
        header: ResponseHeader = entered.header
        if owners and owners[0].create_revision != revision:
            await wait_turn(node, request.name, revision)
            # The lease may have ended meanwhile: a lock without its key is no lock.
            mine = await get_range(node, RangeRequest(key=key))
            if not mine.kvs or mine.kvs[0].create_revision != revision:
                raise KvError("mutex: session is expired", Code.UNKNOWN)
            header = mine.header
        owned = True
        return LockResponse(header=header, key=key)
    finally:
        if not owned:
            await asyncio.shield(give_up(node, key, revision, 0 if request.lease else lease_id))


async def unlock(node: NodeService, request: UnlockRequest) -> UnlockResponse:
    """Release a lock: delete its key.

    Raises:
        EmptyKeyError: no key.
    """
    if not request.key:
        raise errors.EmptyKeyError
    answer = DeleteRangeResponse.FromString(await delete_key(node, DeleteRangeRequest(key=request.key)))
    return UnlockResponse(header=answer.header)


def methods(node: NodeService) -> dict[bytes, StreamMethod]:
    """Answer the service's methods by path."""

    async def lock_call(message: bytes, call: TaskCall) -> bytes:
        request = LockRequest.FromString(message)
        with as_client_errors():
            return (await lock(node, request)).SerializeToString()

    async def unlock_call(message: bytes, call: TaskCall) -> bytes:
        request = UnlockRequest.FromString(message)
        with as_client_errors():
            return (await unlock(node, request)).SerializeToString()

    return {
        PREFIX + b"Lock": StreamMethod(checked(node, partial(TaskCall, name="Lock", method=lock_call))),
        PREFIX + b"Unlock": StreamMethod(checked(node, partial(TaskCall, name="Unlock", method=unlock_call))),
    }
