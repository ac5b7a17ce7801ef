"""The Election service: one leader at a time below a name, held by a lease.

The leader's key carries its proclamation as value; its creation revision is the leader's proof and fencing token.
"""

from __future__ import annotations

import asyncio
from functools import partial

from kvserver.api.contention import (
    Events,
    as_client_errors,
    contender_key,
    created_at,
    first_created,
    get_range,
    give_up,
    grant_session,
    prefix_end,
    run_txn,
    wait_turn,
    withdraw,
)
from kvserver.api.streams import TaskCall, checked
from kvserver.errors import Code, KvError
from kvserver.node.service import NodeService
from kvserver.proto.election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ProclaimResponse,
    ResignRequest,
    ResignResponse,
)
from kvserver.proto.kv_pb2 import Event, KeyValue
from kvserver.proto.rpc_pb2 import PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest
from kvserver.wire.server import StreamMethod

PREFIX = b"/v3electionpb.Election/"


def _missing_leader_key() -> KvError:
    return KvError('"leader" field must be provided', Code.UNKNOWN)


def _not_leader() -> KvError:
    return KvError("election: not leader", Code.UNKNOWN)


def _no_leader() -> KvError:
    return KvError("election: no leader", Code.UNKNOWN)


async def campaign(node: NodeService, request: CampaignRequest) -> CampaignResponse:
    """Wait to become the leader; a caller whose key exists already keeps its place and renews its value.

    Raises:
        LeaseNotFoundError: the caller's lease does not exist.
        KvError: UNKNOWN "election: session is expired": the key is gone, its lease ended while the caller waited.
        asyncio.CancelledError: as given to the task; the caller's key has been removed.
    """
    lease_id = request.lease or await grant_session(node)
    key = contender_key(request.name, lease_id)
    revision = 0
    elected = False
    try:
        entered = await run_txn(
            node,
            TxnRequest(
                compare=[created_at(key, 0)],
                success=[RequestOp(request_put=PutRequest(key=key, value=request.value, lease=lease_id))],
                failure=[RequestOp(request_range=RangeRequest(key=key))],
            ),
        )
        if entered.succeeded:
            revision = entered.header.revision
        else:
            mine = entered.responses[0].response_range.kvs[0]
            revision = mine.create_revision
            if mine.value != request.value:
                await _put_value(node, key, revision, lease_id, request.value)
        await wait_turn(node, request.name, revision)
        # The lease may have ended meanwhile: a leader without its key is none.
        found = await get_range(node, RangeRequest(key=key))
        if not found.kvs or found.kvs[0].create_revision != revision:
            raise KvError("election: session is expired", Code.UNKNOWN)
        elected = True
        return CampaignResponse(
            header=entered.header,
            leader=LeaderKey(name=request.name, key=key, rev=revision, lease=lease_id),
        )
    finally:
        if not elected:
            await asyncio.shield(give_up(node, key, revision, 0 if request.lease else lease_id))


async def _put_value(node: NodeService, key: bytes, revision: int, lease_id: int, value: bytes) -> ResponseHeader:
    answer = await run_txn(
        node,
        TxnRequest(
            compare=[created_at(key, revision)],
            success=[RequestOp(request_put=PutRequest(key=key, value=value, lease=lease_id))],
        ),
    )
    if not answer.succeeded:
        raise _not_leader()
    return answer.header


async def proclaim(node: NodeService, request: ProclaimRequest) -> ProclaimResponse:
    """Change the leader's value.

    Raises:
        KvError: UNKNOWN "election: not leader", or that the leader field is missing.
    """
    if not request.HasField("leader"):
        raise _missing_leader_key()
    leader = request.leader
    lease_id = leader.lease or await grant_session(node)
    return ProclaimResponse(header=await _put_value(node, leader.key, leader.rev, lease_id, request.value))


async def resign(node: NodeService, request: ResignRequest) -> ResignResponse:
    """Give leadership up; nothing happens if it has passed on already.

    Raises:
        KvError: UNKNOWN: the leader field is missing.
    """
    if not request.HasField("leader"):
        raise _missing_leader_key()
    return ResignResponse(header=(await withdraw(node, request.leader.key, request.leader.rev)).header)


async def leader(node: NodeService, request: LeaderRequest) -> LeaderResponse:
    """Answer who leads.

    Raises:
        KvError: UNKNOWN "election: no leader".
    """
    answer = await get_range(node, first_created(request.name))
    if not answer.kvs:
        raise _no_leader()
    return LeaderResponse(header=answer.header, kv=answer.kvs[0])


async def observe(node: NodeService, request: LeaderRequest, call: TaskCall) -> None:
    """Stream the leader's values: the current one, each change of it, then the next leader's, until the caller goes.

    Values that changed while compaction overtook the stream are left out; the newest is always sent.
    """
    while True:
        answer = await get_range(node, first_created(request.name))
        if answer.kvs:
            header, kv = answer.header, answer.kvs[0]
        else:
            first = await _first_put(node, request.name + b"/", answer.header.revision + 1)
            if first is None:
                continue
            kv = first
            header = node.response_header(kv.mod_revision)
        await call.send(LeaderResponse(header=header, kv=kv).SerializeToString())
        async with Events(node) as events:
            events.watch(kv.key, b"", header.revision + 1)
            deleted = False
            while not deleted:
                batch = await events.next()
                if batch is None:
                    break
                revision, changes = batch
                header = node.response_header(revision)
                for event in changes:
                    if event.type == Event.DELETE:
                        deleted = True
                        break
                    await call.send(LeaderResponse(header=header, kv=event.kv).SerializeToString())


async def _first_put(node: NodeService, prefix: bytes, revision: int) -> KeyValue | None:
    """Wait for the first put below ``prefix`` from ``revision`` on; None when compaction overtook the wait."""
    async with Events(node) as events:
        events.watch(prefix, prefix_end(prefix), revision)
        while (batch := await events.next()) is not None:
            for event in batch[1]:
                if event.type == Event.PUT:
                    return event.kv
    return None


def methods(node: NodeService) -> dict[bytes, StreamMethod]:
    """Answer the service's methods by path."""

    async def campaign_call(message: bytes, call: TaskCall) -> bytes:
        request = CampaignRequest.FromString(message)
        with as_client_errors():
            return (await campaign(node, request)).SerializeToString()

    async def proclaim_call(message: bytes, call: TaskCall) -> bytes:
        request = ProclaimRequest.FromString(message)
        with as_client_errors():
            return (await proclaim(node, request)).SerializeToString()

    async def resign_call(message: bytes, call: TaskCall) -> bytes:
        request = ResignRequest.FromString(message)
        with as_client_errors():
            return (await resign(node, request)).SerializeToString()

    async def leader_call(message: bytes, call: TaskCall) -> bytes:
        request = LeaderRequest.FromString(message)
        with as_client_errors():
            return (await leader(node, request)).SerializeToString()

    async def observe_call(message: bytes, call: TaskCall) -> None:
        request = LeaderRequest.FromString(message)
        with as_client_errors():
            await observe(node, request, call)

    calls = {
        "Campaign": campaign_call,
        "Proclaim": proclaim_call,
        "Resign": resign_call,
        "Leader": leader_call,
        "Observe": observe_call,
    }
    return {
        PREFIX + name.encode(): StreamMethod(checked(node, partial(TaskCall, name=name, method=method)))
        for name, method in calls.items()
    }
