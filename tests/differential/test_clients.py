"""Foreign Python clients on both servers: aetcd by gRPC, etcd3gw by the JSON gateway; what they answer is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aetcd
import pytest
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception

from tests.differential.harness import STEP_SECONDS_MAX, Outcome, Pair, Scenario, Side, Step, cases


def shown(value: Any) -> Any:
    """Reduce what a client answers to plain values; headers and what the client keeps for itself are left out."""
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {key: shown(item) for key, item in sorted(value.items()) if key != "header"}
    slots = getattr(type(value), "__slots__", None)
    if type(value).__module__.startswith("aetcd"):
        names = slots or vars(value)
        return {name: shown(getattr(value, name)) for name in names if name not in ("header", "etcd_client")}
    if hasattr(value, "SerializeToString"):
        return " ".join(str(value).split())
    return value


# -- etcd3gw ----------------------------------------------------------------------------------------------------------

Gateway = Callable[[Etcd3Client], Any]


def gateway(name: str, action: Gateway, *, capture: str = "") -> Step:
    """Do something with etcd3gw; the answer's ``id`` may be captured."""

    def run(side: Side) -> Outcome:
        client = Etcd3Client(host="127.0.0.1", port=side.server.port, api_path="/v3/", timeout=STEP_SECONDS_MAX)
        try:
            answer = action(client)
        except Etcd3Exception as error:
            return {"error": f"{type(error).__name__} {error} {error.detail_text}"}
        finally:
            client.session.close()
        if capture:
            side.captured[capture] = f"{answer.id:x}"
            return {"answer": "captured"}
        return {"answer": repr(shown(answer))}

    return Step(name, run)


def lease_cycle(client: Etcd3Client) -> Any:
    """Grant, use, ask, renew, revoke."""
    lease = client.lease(ttl=100)
    client.put("leased", "x", lease)
    left = 0 < lease.ttl() <= 100
    found = lease.keys()
    renewed = lease.refresh()
    return [left, found, renewed, lease.revoke(), client.get("leased")]


def lock_cycle(client: Etcd3Client) -> Any:
    """Take, contend, release."""
    first, second = client.lock(id="one", ttl=60), client.lock(id="one", ttl=60)
    return [first.acquire(), second.acquire(), first.is_acquired(), first.release(), second.acquire(), second.release()]


def watched(client: Etcd3Client) -> Any:
    """Watch a prefix from the past."""
    events, cancel = client.watch_prefix("watch", start_revision=1 + int(client.status()["header"]["revision"]))
    found = []
    client.put("watch1", "a")
    client.put("watch2", "b")
    client.delete("watch1")
    for event in events:
        found.append(event)
        if len(found) == 3:
            cancel()
            break
    return found


def kvs_of(client: Etcd3Client, key: str, **options: Any) -> Any:
    """Read with metadata."""
    return client.get(key, metadata=True, **options)


GATEWAY = Scenario(
    "etcd3gw",
    [
        gateway("status", lambda client: sorted(set(client.status()) - {"dbSizeInUse"})),
        gateway("members", lambda client: [sorted(member) for member in client.members()]),
        gateway("put", lambda client: client.put("foo", "bar")),
        gateway("get", lambda client: client.get("foo")),
        gateway("get with metadata", lambda client: kvs_of(client, "foo")),
        gateway("get nothing", lambda client: client.get("nothing")),
        gateway("put bytes", lambda client: client.put(b"\x00\xff", b"\xfe\x01")),
        gateway("get bytes", lambda client: kvs_of(client, b"\x00\xff")),  # type: ignore[arg-type]
        gateway("create", lambda client: client.create("new", "1")),
        gateway("create again", lambda client: client.create("new", "2")),
        gateway("replace", lambda client: client.replace("new", "1", "3")),
        gateway("replace again", lambda client: client.replace("new", "1", "4")),
        gateway("get all", lambda client: client.get_all()),
        gateway("get prefix", lambda client: client.get_prefix("f")),
        gateway("get sorted", lambda client: client.get_all(sort_order="descend", sort_target="mod")),
        gateway("get with limit", lambda client: kvs_of(client, "a", range_end="z", limit=1)),
        gateway("delete", lambda client: client.delete("foo")),
        gateway("delete again", lambda client: client.delete("foo")),
        gateway("lease", lease_cycle),
        gateway("lock", lock_cycle),
        gateway("watch", watched),
        gateway("watch once", lambda client: _once(client)),
        gateway(
            "txn",
            lambda client: client.transaction(
                {
                    "compare": [{"key": "bmV3", "result": "EQUAL", "target": "VERSION", "version": 2}],
                    "success": [{"request_put": {"key": "dHhu", "value": "MQ=="}}],
                    "failure": [{"request_range": {"key": "bmV3"}}],
                }
            ),
        ),
        gateway("malformed txn", lambda client: client.transaction({"compare": "x"})),
        gateway("delete prefix", lambda client: client.delete_prefix("new")),
        gateway("empty key", lambda client: client.get("")),
        gateway("lease that is too long", lambda client: client.lease(ttl=9_000_000_001)),
    ],
)


def _once(client: Etcd3Client) -> Any:
    import threading

    timer = threading.Timer(0.2, lambda: client.put("once", "1"))
    timer.start()
    try:
        return client.watch_once("once", timeout=STEP_SECONDS_MAX)
    finally:
        timer.join()


# -- aetcd ------------------------------------------------------------------------------------------------------------


def native(name: str, action: Callable[..., Awaitable[Any]], *, needs_side: bool = False) -> Step:
    """Do something with aetcd."""

    async def call(side: Side) -> Outcome:
        async with aetcd.Client(host="127.0.0.1", port=side.server.port, timeout=10) as client:
            try:
                answer = await (action(client, side) if needs_side else action(client))
            except aetcd.ClientError as error:
                return {"error": f"{type(error).__name__} {error}"}
        return {"answer": repr(shown(answer))}

    return Step(name, lambda side: asyncio.run(call(side)))


async def native_lease(client: aetcd.Client) -> Any:
    lease = await client.lease(100)
    await client.put(b"leased", b"x", lease=lease)
    info = await client.get_lease_info(lease.id)
    renewed = await lease.refresh()
    await lease.revoke()
    return [
        lease.ttl,
        list(info.keys),
        info.grantedTTL,
        renewed.TTL if hasattr(renewed, "TTL") else len(list(renewed)),
        await client.get(b"leased"),
    ]


async def native_lock(client: aetcd.Client) -> Any:
    lock = client.lock(b"locked", ttl=60)
    other = client.lock(b"locked", ttl=60)
    taken = await lock.acquire(timeout=2)
    held = await lock.is_acquired()
    refused = await other.acquire(timeout=0.2)
    return [taken, held, refused, await lock.release(), await other.acquire(timeout=2), await other.release()]


async def native_watch(client: aetcd.Client, side: Side) -> Any:
    watch = await client.watch_prefix(b"w", start_revision=side.start_revision + 1)
    await client.put(b"w1", b"a")
    await client.put(b"w2", b"b")
    await client.delete(b"w1")
    found = []
    async for event in watch:
        found.append([event.kind, event.kv.key, event.kv.value, event.kv.mod_revision])
        if len(found) == 3:
            break
    await watch.cancel()
    return found


async def native_txn(client: aetcd.Client) -> Any:
    txn = client.transactions
    return await client.transaction(
        compare=[txn.value(b"foo") == b"bar", txn.version(b"foo") > 0, txn.create(b"none") == 0, txn.mod(b"foo") > 1],
        success=[txn.put(b"t", b"1"), txn.get(b"foo"), txn.delete(b"t2")],
        failure=[txn.get(b"foo")],
    )


NATIVE = Scenario(
    "aetcd",
    [
        native("put", lambda client: client.put(b"foo", b"bar")),
        native("put with previous", lambda client: client.put(b"foo", b"bar", prev_kv=True)),
        native("get", lambda client: client.get(b"foo")),
        native("get nothing", lambda client: client.get(b"nothing")),
        native("get serializable", lambda client: client.get(b"foo", serializable=True)),
        native("get empty key", lambda client: client.get(b"")),
        native("txn", native_txn),
        native("replace", lambda client: client.replace(b"foo", b"bar", b"baz")),
        native("replace again", lambda client: client.replace(b"foo", b"bar", b"baz")),
        *(
            native(f"put k{number}", lambda client, n=number: client.put(b"k%d" % n, b"%d" % (9 - n)))
            for number in range(5)
        ),
        native("get prefix", lambda client: _list(client.get_prefix(b"k"))),
        native(
            "get prefix sorted",
            lambda client: _list(client.get_prefix(b"k", sort_order="descend", sort_target="value")),
        ),
        native("get range", lambda client: _list(client.get_range(b"k1", b"k3"))),
        native("get all", lambda client: _list(client.get_all(keys_only=True))),
        native("delete", lambda client: client.delete(b"k0", prev_kv=True)),
        native("delete nothing", lambda client: client.delete(b"k0")),
        native("delete prefix", lambda client: client.delete_prefix(b"k", prev_kv=True)),
        native("watch", native_watch, needs_side=True),
        native("lease", native_lease),
        native("lock", native_lock),
        native("members", lambda client: _member_names(client)),
        native("alarms", lambda client: _list(client.list_alarms())),
        native("compact the future", lambda client: client.compact(10**9)),
        native("defragment", lambda client: client.defragment()),
        native("status", lambda client: _status(client)),
    ],
)


async def _list(answer: Any) -> Any:
    if hasattr(answer, "__aiter__"):
        return [item async for item in answer]
    return list(await answer)


async def _member_names(client: aetcd.Client) -> Any:
    return [member.name for member in await _list(client.members())]


async def _status(client: aetcd.Client) -> Any:
    status = await client.status()
    return [status.version, status.leader.name]


SCENARIOS = [GATEWAY, NATIVE]


@pytest.mark.parametrize(("scenario", "step"), cases(SCENARIOS))
def test_client(pair: Pair, scenario: Scenario, step: Step) -> None:
    ours, genuine = pair.run(scenario)[step.name]
    assert ours == genuine
