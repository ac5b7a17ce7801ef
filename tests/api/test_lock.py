"""Locks and elections on an embedded node: one owner, first come first served, nothing left by those who leave."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest

from kvserver import errors
from kvserver.api import election, lock
from kvserver.api.contention import Events, contender_key, get_range, prefix_end
from kvserver.errors import Code, KvError
from kvserver.node.service import NodeService
from kvserver.proto import election_pb2, lock_pb2
from kvserver.proto import rpc_pb2 as pb
from kvserver.proto.lock_pb2 import LockRequest, UnlockRequest
from kvserver.server import Server

pytestmark = pytest.mark.asyncio


async def grant(node: NodeService, lease_id: int) -> int:
    """Grant a lease of this id."""
    request = pb.LeaseGrantRequest(ID=lease_id, TTL=600)
    await node.call(node.lease_grant, request.SerializeToString(), request)
    return lease_id


async def revoke(node: NodeService, lease_id: int) -> None:
    """Revoke a lease."""
    request = pb.LeaseRevokeRequest(ID=lease_id)
    await node.call(node.lease_revoke, request.SerializeToString(), request)


async def range_below(node: NodeService, prefix: bytes) -> pb.RangeResponse:
    """Read what is below a prefix, oldest first."""
    return await get_range(
        node,
        pb.RangeRequest(key=prefix, range_end=prefix_end(prefix), sort_target=pb.RangeRequest.CREATE, sort_order=1),
    )


async def keys_below(node: NodeService, prefix: bytes) -> list[bytes]:
    """Answer the keys below a prefix, oldest first."""
    return [kv.key for kv in (await range_below(node, prefix)).kvs]


async def wait_for_keys(node: NodeService, prefix: bytes, count: int) -> None:
    """Wait until so many keys are below a prefix."""
    async with asyncio.timeout(5):
        while len((found := await range_below(node, prefix)).kvs) != count:
            async with Events(node) as events:
                events.watch(prefix, prefix_end(prefix), found.header.revision + 1)
                await events.next()


async def leases_of(node: NodeService) -> list[int]:
    """Answer the ids of all leases."""
    answer = await node.call(node.lease_leases, pb.LeaseLeasesRequest())
    return [lease.ID for lease in pb.LeaseLeasesResponse.FromString(answer).leases]


def locking(node: NodeService, lease_id: int, name: bytes = b"m") -> asyncio.Task[lock_pb2.LockResponse]:
    """Begin to take a lock."""
    return asyncio.ensure_future(lock.lock(node, LockRequest(name=name, lease=lease_id)))


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")],
)
async def test_prefix_ends(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


async def test_contenders_keys_are_etcds() -> None:
    assert contender_key(b"jobs", 0x1AF) == b"jobs/1af"
    assert contender_key(b"", -5) == b"/-5"


async def test_waiters_get_the_lock_in_the_order_they_came(server: Server) -> None:
    node = server.service
    order: list[int] = []

    async def hold(lease_id: int) -> None:
        response = await lock.lock(node, LockRequest(name=b"m", lease=lease_id))
        order.append(lease_id)
        await lock.unlock(node, UnlockRequest(key=response.key))

    first = await lock.lock(node, LockRequest(name=b"m", lease=await grant(node, 100)))
    tasks = []
    for lease_id in range(101, 111):
        await grant(node, lease_id)
        tasks.append(asyncio.create_task(hold(lease_id)))
        await wait_for_keys(node, b"m/", len(tasks) + 1)
    assert order == []
    await lock.unlock(node, UnlockRequest(key=first.key))
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert order == list(range(101, 111))
    assert await keys_below(node, b"m/") == []


async def test_the_owner_may_lock_again(server: Server) -> None:
    node = server.service
    await grant(node, 1)
    first = await lock.lock(node, LockRequest(name=b"m", lease=1))
    second = await lock.lock(node, LockRequest(name=b"m", lease=1))
    assert first.key == second.key == b"m/1"


async def test_a_waiter_that_leaves_leaves_no_key_and_the_next_one_gets_its_turn(server: Server) -> None:
    node = server.service
    for lease_id in (1, 2, 3):
        await grant(node, lease_id)
    await lock.lock(node, LockRequest(name=b"m", lease=1))
    second = locking(node, 2)
    await wait_for_keys(node, b"m/", 2)
    third = locking(node, 3)
    await wait_for_keys(node, b"m/", 3)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await keys_below(node, b"m/") == [b"m/1", b"m/3"]
    assert not third.done()
    await lock.unlock(node, UnlockRequest(key=b"m/1"))
    assert (await asyncio.wait_for(third, 5)).key == b"m/3"


async def test_a_waiter_whose_lease_ends_gets_no_lock(server: Server) -> None:
    node = server.service
    for lease_id in (1, 2):
        await grant(node, lease_id)
    await lock.lock(node, LockRequest(name=b"m", lease=1))
    waiter = locking(node, 2)
    await wait_for_keys(node, b"m/", 2)
    await revoke(node, 2)
    await lock.unlock(node, UnlockRequest(key=b"m/1"))
    with pytest.raises(KvError, match="mutex: session is expired"):
        await asyncio.wait_for(waiter, 5)


async def test_the_end_of_the_owners_lease_frees_the_lock(server: Server) -> None:
    node = server.service
    for lease_id in (1, 2):
        await grant(node, lease_id)
    await lock.lock(node, LockRequest(name=b"m", lease=1))
    waiter = locking(node, 2)
    await wait_for_keys(node, b"m/", 2)
    await revoke(node, 1)
    assert (await asyncio.wait_for(waiter, 5)).key == b"m/2"


async def test_a_lock_without_lease_gets_one_of_sixty_seconds(server: Server) -> None:
    node = server.service
    await lock.lock(node, LockRequest(name=b"m"))
    (lease_id,) = await leases_of(node)
    assert await keys_below(node, b"m/") == [b"m/%x" % lease_id]
    answer = await node.call(node.lease_time_to_live, pb.LeaseTimeToLiveRequest(ID=lease_id))
    assert pb.LeaseTimeToLiveResponse.FromString(answer).grantedTTL == 60


async def test_a_session_of_the_servers_goes_with_a_waiter_that_leaves(server: Server) -> None:
    node = server.service
    await grant(node, 1)
    await lock.lock(node, LockRequest(name=b"m", lease=1))
    waiter = locking(node, 0)
    await wait_for_keys(node, b"m/", 2)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await leases_of(node) == [1]
    assert await keys_below(node, b"m/") == [b"m/1"]


async def test_an_unknown_lease_locks_nothing(server: Server) -> None:
    with pytest.raises(errors.LeaseNotFoundError):
        await lock.lock(server.service, LockRequest(name=b"m", lease=5))
    assert await keys_below(server.service, b"m/") == []


async def test_names_do_not_mix(server: Server) -> None:
    node = server.service
    await grant(node, 1)
    await lock.lock(node, LockRequest(name=b"m", lease=1))
    assert (await asyncio.wait_for(lock.lock(node, LockRequest(name=b"m/1", lease=1)), 5)).key == b"m/1/1"


# -- over the wire ----------------------------------------------------------------------------------------------------


def method(channel: grpc.aio.Channel, path: str, response: Any) -> Any:
    """A unary method of a foreign client."""
    return channel.unary_unary(
        path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=response.FromString
    )


async def test_a_call_that_is_cancelled_leaves_no_key(server: Server, channel: grpc.aio.Channel) -> None:
    node = server.service
    await grant(node, 1)
    await grant(node, 2)
    call = method(channel, "/v3lockpb.Lock/Lock", lock_pb2.LockResponse)
    await call(LockRequest(name=b"m", lease=1))
    waiting = call(LockRequest(name=b"m", lease=2))
    await wait_for_keys(node, b"m/", 2)
    waiting.cancel()
    await wait_for_keys(node, b"m/", 1)


async def test_a_call_whose_deadline_passes_leaves_no_key(server: Server, channel: grpc.aio.Channel) -> None:
    node = server.service
    await grant(node, 1)
    call = method(channel, "/v3lockpb.Lock/Lock", lock_pb2.LockResponse)
    await call(LockRequest(name=b"m", lease=1))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(LockRequest(name=b"m"), timeout=0.2)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_for_keys(node, b"m/", 1)
    assert await leases_of(node) == [1]


async def test_a_connection_that_is_lost_leaves_no_key(server: Server) -> None:
    node = server.service
    await grant(node, 1)
    await lock.lock(node, LockRequest(name=b"m", lease=1))
    channel = grpc.aio.insecure_channel(server.client_url.removeprefix("http://"))
    waiting = method(channel, "/v3lockpb.Lock/Lock", lock_pb2.LockResponse)(LockRequest(name=b"m"))
    await wait_for_keys(node, b"m/", 2)
    await channel.close()
    await wait_for_keys(node, b"m/", 1)
    assert waiting.done()


# -- elections --------------------------------------------------------------------------------------------------------


def campaigning(node: NodeService, lease_id: int, value: bytes) -> asyncio.Task[election_pb2.CampaignResponse]:
    """Begin to campaign."""
    request = election_pb2.CampaignRequest(name=b"e", lease=lease_id, value=value)
    return asyncio.ensure_future(election.campaign(node, request))


async def test_leadership_passes_on(server: Server) -> None:
    node = server.service
    for lease_id in (1, 2):
        await grant(node, lease_id)
    first = await campaigning(node, 1, b"one")
    second = campaigning(node, 2, b"two")
    await wait_for_keys(node, b"e/", 2)
    leading = await election.leader(node, election_pb2.LeaderRequest(name=b"e"))
    assert (leading.kv.value, leading.kv.create_revision) == (b"one", first.leader.rev)
    await election.resign(node, election_pb2.ResignRequest(leader=first.leader))
    won = await asyncio.wait_for(second, 5)
    assert (won.leader.key, won.leader.lease) == (b"e/2", 2)
    with pytest.raises(KvError, match="election: not leader"):
        await election.proclaim(node, election_pb2.ProclaimRequest(leader=first.leader, value=b"late"))
    await election.proclaim(node, election_pb2.ProclaimRequest(leader=won.leader, value=b"new"))
    assert (await election.leader(node, election_pb2.LeaderRequest(name=b"e"))).kv.value == b"new"


async def test_a_candidate_whose_lease_ends_is_not_elected(server: Server) -> None:
    node = server.service
    for lease_id in (1, 2):
        await grant(node, lease_id)
    await campaigning(node, 1, b"one")
    second = campaigning(node, 2, b"two")
    await wait_for_keys(node, b"e/", 2)
    await revoke(node, 2)
    await revoke(node, 1)
    with pytest.raises(KvError, match="election: session is expired") as raised:
        await asyncio.wait_for(second, 5)
    assert raised.value.code == Code.UNKNOWN


async def test_nobody_leads_before_the_first_campaign(server: Server) -> None:
    with pytest.raises(KvError, match="election: no leader"):
        await election.leader(server.service, election_pb2.LeaderRequest(name=b"e"))


async def test_observers_see_every_leader(server: Server, channel: grpc.aio.Channel) -> None:
    node = server.service
    observe = channel.unary_stream(
        "/v3electionpb.Election/Observe",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=election_pb2.LeaderResponse.FromString,
    )
    stream = observe(election_pb2.LeaderRequest(name=b"e"))
    for lease_id in (1, 2):
        await grant(node, lease_id)
    first = await campaigning(node, 1, b"one")
    assert (await asyncio.wait_for(stream.read(), 5)).kv.value == b"one"
    await election.proclaim(node, election_pb2.ProclaimRequest(leader=first.leader, value=b"uno"))
    assert (await asyncio.wait_for(stream.read(), 5)).kv.value == b"uno"
    second = campaigning(node, 2, b"two")
    await wait_for_keys(node, b"e/", 2)
    await election.resign(node, election_pb2.ResignRequest(leader=first.leader))
    await second
    seen = await asyncio.wait_for(stream.read(), 5)
    assert (seen.kv.value, seen.kv.key) == (b"two", b"e/2")
    stream.cancel()
