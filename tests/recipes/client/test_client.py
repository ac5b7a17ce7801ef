from __future__ import annotations

import asyncio

import pytest

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from recipes import (
    Client,
    ClientError,
    CompactedError,
    CreateRevision,
    Delete,
    Get,
    Lease,
    LeaseNotFoundError,
    ModRevision,
    Put,
    Txn,
    UnavailableError,
    Value,
    Version,
)
from recipes.client.rpc import UnaryCall
from recipes.testing import compact
from tests.recipes.conftest import free_port

pytestmark = pytest.mark.asyncio


async def test_put_get_delete(kv: Client) -> None:
    put = await kv.put("k", "v")
    item = await kv.get("k")
    assert item is not None
    assert (item.key, item.raw_key, item.value, item.text) == ("k", b"k", b"v", "v")
    assert item.mod_revision == item.create_revision == put.revision
    assert item.version == 1
    assert item.lease_id == 0
    again = await kv.put("k", b"w", previous=True)
    assert again.previous is not None
    assert again.previous.text == "v"
    assert (await kv.delete("k", previous=True)).previous[0].text == "w"
    assert await kv.get("k") is None
    assert (await kv.delete("k")).deleted == 0


async def test_keys_and_values_that_are_not_text(kv: Client) -> None:
    await kv.put(b"\xff\x00", b"\xfe")
    item = (await kv.range("", prefix=True)).first
    assert item is not None
    assert item.raw_key == b"\xff\x00"
    assert (await kv.get(item.key)) == item  # the text form of the key finds it again
    with pytest.raises(UnicodeDecodeError):
        _ = item.text
    with pytest.raises(TypeError, match="str or bytes"):
        await kv.put("k", 7)  # type: ignore[arg-type]


async def test_json(kv: Client) -> None:
    await kv.put("k", '{"a": [1, null]}')
    item = await kv.get("k")
    assert item is not None
    assert item.json() == {"a": [1, None]}


async def test_empty_key_is_refused_before_it_is_sent(kv: Client) -> None:
    bare = Client(kv.endpoints[0].__str__())
    for call in (bare.get(""), bare.put("", "v"), bare.range(""), bare.delete("")):
        with pytest.raises(ValueError, match="empty"):
            await call
    await bare.close()


async def test_ranges(kv: Client) -> None:
    for name in ("a", "b", "c", "d"):
        await kv.put(name, name.upper())
    everything = await kv.range("", prefix=True)
    assert [item.key for item in everything] == ["a", "b", "c", "d"]
    assert everything.count == len(everything) == 4
    assert everything[1].key == "b"
    assert [item.key for item in everything[2:]] == ["c", "d"]
    limited = await kv.range("b", from_key=True, limit=2, sort_by="create", descending=True)
    assert [item.key for item in limited] == ["d", "c"]
    assert limited.more
    assert [item.key for item in await kv.range("a", range_end="c", keys_only=True)] == ["a", "b"]
    assert (await kv.range("", prefix=True, count_only=True)).count == 4
    assert (await kv.delete("b", from_key=True)).deleted == 3


async def test_namespaces_hide_each_other(kv: Client) -> None:
    inner, other = kv.namespaced("inner/"), kv.namespaced("other/")
    await inner.put("k", "1")
    await other.put("k", "2")
    assert [item.key for item in await kv.range("", prefix=True)] == ["inner/k", "other/k"]
    assert [item.key for item in await inner.range("", from_key=True)] == ["k"]
    assert (await inner.delete("", prefix=True)).deleted == 1
    assert (await other.get("k")) is not None
    async with inner.watch("", prefix=True) as events:
        await other.put("k", "3")
        await inner.put("k", "4")
        event = await events.next(5)
        assert (event.key, event.text) == ("k", "4")


async def test_scan_reads_pages_of_one_revision(kv: Client) -> None:
    for number in range(7):
        await kv.put(f"s/{number}", "")
    seen = []
    async for item in kv.scan("s/", page_keys=3):
        seen.append(item.key)
        await kv.put(f"s/{len(seen)}x", "")  # later than the scan's revision
    assert seen == [f"s/{number}" for number in range(7)]


async def test_historical_reads_until_compacted(kv: Client) -> None:
    first = await kv.put("k", "old")
    await kv.put("k", "new")
    item = await kv.get("k", revision=first.revision)
    assert item is not None
    assert item.text == "old"
    await compact(kv)
    with pytest.raises(CompactedError) as caught:
        await kv.get("k", revision=first.revision)
    assert caught.value.code == Code.OUT_OF_RANGE
    assert caught.value.message == "etcdserver: mvcc: required revision has been compacted"


async def test_txn_conditions(kv: Client) -> None:
    lease = await kv.grant_lease(60)
    created = await kv.put("k", "v", lease=lease)
    changed = await kv.put("k", "v2", lease=lease)
    holds = [
        Version("k") == 2,
        Version("k") > 1,
        Version("k") < 3,
        Version("k") != 1,
        CreateRevision("k") == created.revision,
        ModRevision("k") == changed.revision,
        Value("k") == "v2",
        Value("k") != b"v",
        Value("k") > "v",
        Lease("k") == lease,
        Version("absent") == 0,
        CreateRevision("k", prefix=True) > 0,
    ]
    assert await kv.txn(when=holds)
    for fails in (Version("k") == 1, Value("absent") == "", Lease("k") == 0, Value("k") < "v2"):
        assert not await kv.txn(when=[fails])
    await kv.revoke_lease(lease)


async def test_txn_branches_and_results(kv: Client) -> None:
    taken = await kv.txn(
        when=[Version("k") == 0], then=[Put("k", "v"), Get("k"), Txn(then=[Get("k")])], otherwise=[Get("k")]
    )
    assert taken.succeeded
    assert len(taken.responses) == 3
    item = taken.range(1).first
    assert item is not None
    assert item.mod_revision == taken.revision
    with pytest.raises(TypeError, match="no Get"):
        taken.range(0)
    again = await kv.txn(when=[Version("k") == 0], then=[Put("k", "x")], otherwise=[Get("k"), Delete("k")])
    assert not again
    assert again.range(0)[0].text == "v"
    assert await kv.get("k") is None


async def test_a_condition_is_no_truth_value() -> None:
    with pytest.raises(TypeError, match="when="):
        assert Version("k") == 0
    with pytest.raises(TypeError, match="int"):
        _ = Version("k") == "0"


async def test_leases(kv: Client) -> None:
    lease = await kv.grant_lease(60)
    assert lease in await kv.leases()
    assert 55 <= await kv.lease_ttl(lease) <= 60
    assert await kv.keep_lease_alive(lease) == 60
    await kv.put("k", "v", lease=lease)
    await kv.revoke_lease(lease)
    assert await kv.get("k") is None
    for call in (kv.lease_ttl(lease), kv.keep_lease_alive(lease), kv.revoke_lease(lease), kv.put("k", "", lease=lease)):
        with pytest.raises(LeaseNotFoundError, match="requested lease not found"):
            await call


async def test_errors_keep_code_and_text(kv: Client) -> None:
    with pytest.raises(ClientError) as caught:
        await kv.txn(then=[Put("k", "1"), Put("k", "2")])
    assert (caught.value.code, caught.value.message) == (
        Code.INVALID_ARGUMENT,
        "etcdserver: duplicate key given in txn request",
    )
    assert str(caught.value) == "etcdserver: duplicate key given in txn request [INVALID_ARGUMENT]"


async def test_many_calls_in_flight(kv: Client) -> None:
    await asyncio.gather(*(kv.put(f"k{number}", str(number)) for number in range(200)))
    items = await asyncio.gather(*(kv.get(f"k{number}") for number in range(200)))
    assert [item.text for item in items if item] == [str(number) for number in range(200)]


async def test_raw_rpc(kv: Client) -> None:
    members = await kv.rpc.cluster.member_list(rpc_pb2.MemberListRequest())
    assert len(members.members) == 1
    status = await kv.rpc.maintenance.status(rpc_pb2.StatusRequest())
    assert status.header.cluster_id == members.header.cluster_id
    stream = await kv.rpc.watch()
    stream.send(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"x")))
    response = await stream.recv()
    assert response is not None
    assert response.created
    stream.cancel()


async def test_raw_rpcs_are_those_of_the_protocol() -> None:
    from kvserver.proto import election_pb2, health_pb2, lock_pb2

    client = Client("127.0.0.1:1")
    bound: dict[str, UnaryCall] = {}  # type: ignore[type-arg]
    for service in vars(client.rpc).values():
        for call in vars(service).values() if hasattr(service, "__dict__") else ():
            if isinstance(call, UnaryCall):
                bound[call.path.decode()] = call
    unary = {
        f"/{service.full_name}/{method.name}": method
        for module in (rpc_pb2, lock_pb2, election_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    }
    assert set(bound) == set(unary)
    for path, call in bound.items():
        assert call.request_type.DESCRIPTOR is unary[path].input_type
        assert call.response_type.DESCRIPTOR is unary[path].output_type
    await client.close()


async def test_nobody_there_says_where_and_what_to_do() -> None:
    port = free_port()
    async with Client(f"127.0.0.1:{port}", timeout=0.3) as kv:
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}.*is one running there"):
            await kv.get("k")


async def test_a_closed_client_says_so(endpoint: str) -> None:
    kv = Client(endpoint)
    await kv.get("k")
    await kv.close()
    await kv.close()
    with pytest.raises(RuntimeError, match="closed"):
        await kv.get("k")
    with pytest.raises(RuntimeError, match="closed"):
        kv.watch("k")


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"dial_timeout": -1}])
async def test_senseless_timeouts_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Client("a:1", **arguments)  # type: ignore[arg-type]
