from __future__ import annotations

import asyncio
import json

import pytest

from recipes import (
    Client,
    Discovery,
    InstanceChange,
    LeastOutstanding,
    NoInstanceError,
    Registration,
    Registry,
    SessionState,
    Status,
    WeightedRandom,
)
from recipes.balancing import RoundRobin
from recipes.instance import Instance, decode_instance, encode_instance
from recipes.testing import FaultProxy, compact, drop_connection, expire_session, pause_session
from tests.recipes.conftest import Connect

pytestmark = pytest.mark.asyncio

SECONDS = 15


async def addresses(view: Discovery, *expected: str) -> None:
    """Wait until the view has exactly these."""

    def holds(view: Discovery) -> bool:
        return sorted(instance.address for instance in view.instances) == sorted(expected)

    await view.wait_for(holds, timeout=SECONDS)


async def test_api_as_printed(kv: Client) -> None:
    registry = Registry(kv)
    async with (
        registry.register("payments", "10.0.0.5:8443", metadata={"zone": "a"}, weight=2, ttl=10) as registration,
        registry.discover("payments") as payments,
    ):
        instance = payments.pick()
        assert instance == registration.instance
        assert (instance.address, instance.metadata, instance.weight) == ("10.0.0.5:8443", {"zone": "a"}, 2)
        item = await kv.get(f"services/payments/{instance.id}")
        assert item is not None
        assert item.json() == {
            "address": "10.0.0.5:8443",
            "metadata": {"zone": "a"},
            "weight": 2,
            "tags": [],
            "version": "",
            "status": "up",
        }
        assert registration.session is not None
        assert item.lease_id == registration.session.lease_id
    assert not await kv.range("services/", prefix=True)


async def test_instances_come_change_and_go(kv: Client, connect: Connect) -> None:
    changes: list[InstanceChange] = []
    async with Registry(kv).discover("payments") as view:
        view.on_change(changes.append)
        with pytest.raises(NoInstanceError, match="'payments' has no instance"):
            view.pick()
        registry = Registry(await connect())
        one = await registry.register("payments", "a:1", instance_id="1").open()
        await addresses(view, "a:1")
        two = await registry.register("payments", "b:1", instance_id="2").open()
        await addresses(view, "a:1", "b:1")
        await one.update(status="draining")
        await view.wait_for(lambda view: len(view.available) == 1, timeout=SECONDS)
        assert {view.pick().address for _ in range(5)} == {"b:1"}
        await two.close()
        await addresses(view, "a:1")
        with pytest.raises(NoInstanceError, match="1 known, none of them up"):
            view.pick()
        await one.close()
        await addresses(view)
    assert [(change.kind, change.instance.id) for change in changes] == [
        ("added", "1"),
        ("added", "2"),
        ("changed", "1"),
        ("removed", "2"),
        ("removed", "1"),
    ]
    assert [change.revision for change in changes] == sorted(change.revision for change in changes)


async def test_registers_again_after_its_lease_was_lost(kv: Client, connect: Connect) -> None:
    async with (
        Registry(await connect()).register("s", "a:1", instance_id="1") as registration,
        Registry(kv).discover("s") as view,
    ):
        await registration.update(address="b:1")
        lost = registration.session
        assert lost is not None
        removed = asyncio.Event()
        view.on_change(lambda change: removed.set() if change.kind == "removed" else None)
        await expire_session(lost)
        await asyncio.wait_for(removed.wait(), SECONDS)
        await registration.registered(timeout=SECONDS)
        await addresses(view, "b:1")  # the current record, not the first
        assert registration.session is not lost
        item = await kv.get("services/s/1")
        assert item is not None
        assert registration.session is not None
        assert item.lease_id == registration.session.lease_id


async def test_registers_again_after_somebody_deleted_its_key(kv: Client, connect: Connect) -> None:
    async with (
        Registry(await connect()).register("s", "a:1", instance_id="1") as registration,
        kv.watch("services/s/1") as events,
    ):
        session = registration.session
        for _ in range(3):
            await kv.delete("services/s/1")
            assert (await events.next(SECONDS)).is_delete
            again = await events.next(SECONDS)
            assert again.is_put
            assert session is not None
            assert again.item.lease_id == session.lease_id


async def test_puts_its_record_again_after_somebody_changed_it(kv: Client, connect: Connect) -> None:
    async with (
        Registry(await connect()).register("s", "a:1", instance_id="1"),
        kv.watch("services/s/1") as events,
    ):
        await kv.put("services/s/1", "nonsense")
        assert (await events.next(SECONDS)).text == "nonsense"
        assert json.loads((await events.next(SECONDS)).value)["address"] == "a:1"


async def test_leaves_a_record_to_a_process_that_took_over_its_id(kv: Client, connect: Connect) -> None:
    old = await Registry(await connect()).register("s", "old:1", instance_id="1").open()
    async with Registry(kv).discover("s") as view:
        new = await Registry(kv).register("s", "new:1", instance_id="1").open()
        await addresses(view, "new:1")
        await old.close()
        item = await kv.get("services/s/1")
        assert item is not None  # the old one did not take the new one's record along
        await new.close()
        await addresses(view)


async def test_a_dead_instance_is_gone_within_its_ttl(kv: Client, connect: Connect) -> None:
    registration = await Registry(await connect()).register("s", "a:1", ttl=2).open()
    async with Registry(kv).discover("s") as view:
        await addresses(view, "a:1")
        session = registration.session
        assert session is not None
        pause_session(session)
        task = registration._task
        assert task is not None
        task.cancel()  # its process is dead
        async with asyncio.timeout(2 + 1 + 0.5):
            await addresses(view)
        assert session.state is SessionState.LOST
    await registration.close()


async def test_the_view_survives_outages_and_says_how_old_it_is(
    endpoint: str, namespace: str, connect: Connect
) -> None:
    registry = Registry(await connect())
    async with (
        registry.register("s", "a:1"),
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        Registry(kv).discover("s") as view,
    ):
        await view.wait_for(timeout=SECONDS)
        assert view.stale_seconds == 0
        async with kv.watch("services/", prefix=True) as events:  # the view's watch runs too: same stream, older
            proxy.cut()
            with pytest.raises(TimeoutError):
                await events.next(0.1)
        assert view.stale_seconds > 0
        assert view.pick().address == "a:1"
        async with registry.register("s", "b:1"):
            proxy.restore()
            await addresses(view, "a:1", "b:1")
            await view.wait_for(lambda view: view.stale_seconds == 0, timeout=SECONDS)


async def test_the_view_relists_after_compaction_with_nothing_missed_or_doubled(
    endpoint: str, namespace: str, connect: Connect
) -> None:
    other = await connect()
    registry = Registry(other)
    stays = await registry.register("s", "stays:1", instance_id="1").open()
    goes = await registry.register("s", "goes:1", instance_id="2").open()
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        changes: list[tuple[str, str]] = []
        async with Registry(kv).discover("s") as view:
            view.on_change(lambda change: changes.append((change.kind, change.instance.address)))
            await addresses(view, "stays:1", "goes:1")
            proxy.cut()
            await goes.close()
            comes = await registry.register("s", "comes:1", instance_id="3").open()
            await stays.update(address="moved:1")
            await compact(other)
            proxy.restore()
            await addresses(view, "moved:1", "comes:1")
            assert view._mirror.relists == 1
            await comes.update(status="down")
            await view.wait_for(lambda view: len(view.available) == 1, timeout=SECONDS)
            assert sorted(changes) == [
                ("added", "comes:1"),
                ("changed", "comes:1"),
                ("changed", "moved:1"),
                ("removed", "goes:1"),
            ]
        await comes.close()
    await stays.close()


async def test_a_record_that_cannot_be_read_is_left_out(kv: Client, caplog: pytest.LogCaptureFixture) -> None:
    await kv.put("services/s/bad", "{")
    await kv.put("services/s/odd", '{"metadata": {}}')
    await kv.put("services/s/good", '{"address": "a:1", "unknown": 1}')
    async with Registry(kv).discover("s") as view:
        assert [instance.id for instance in view.instances] == ["good"]
        assert view.invalid_records == 2
        assert "the record has no address" in caplog.text


async def test_tags(kv: Client) -> None:
    registry = Registry(kv)
    async with (
        registry.register("s", "a:1", tags=["gpu", "eu"]),
        registry.register("s", "b:1", tags=["eu"]),
        registry.discover("s", tags=["gpu"]) as view,
    ):
        assert [instance.address for instance in view.instances] == ["a:1"]


async def test_round_robin_and_borrow(kv: Client) -> None:
    registry = Registry(kv)
    async with (
        registry.register("s", "a:1", instance_id="1"),
        registry.register("s", "b:1", instance_id="2"),
        registry.register("s", "c:1", instance_id="3", weight=2),
        registry.discover("s") as view,
    ):
        assert [view.pick().address for _ in range(6)] == ["a:1", "b:1", "c:1"] * 2
        least = LeastOutstanding()
        async with view.borrow(strategy=least) as first:
            assert first.address == "c:1"
            chosen = {view.pick(strategy=least).id for _ in range(50)}
            assert chosen == {"1", "2", "3"}
            async with view.borrow(strategy=RoundRobin()) as second:
                assert second.id == "1"
                assert {view.pick(strategy=least).id for _ in range(50)} == {"2", "3"}
        assert {view.pick(strategy=least).id for _ in range(20)} == {"3"}


async def test_weights() -> None:
    import random

    instances = [Instance("s", "1", "a:1", weight=1), Instance("s", "2", "b:1", weight=9)]
    strategy = WeightedRandom(random.Random(7))
    picks = [strategy.pick(instances, {}).id for _ in range(1000)]
    assert 850 < picks.count("2") < 950


async def test_update_waits_for_the_server(kv: Client) -> None:
    async with Registry(kv).register("s", "a:1", instance_id="1") as registration:
        await registration.update(metadata={"load": "0.5"}, weight=3, tags=["x"], version="2")
        item = await kv.get("services/s/1")
        assert item is not None
        stored = decode_instance("s", "1", item.value)
        assert stored == registration.instance
        assert (stored.metadata, stored.weight, stored.tags, stored.version) == ({"load": "0.5"}, 3, ("x",), "2")


async def test_dropped_connections_change_nothing(kv: Client, connect: Connect) -> None:
    client = await connect()
    async with Registry(client).register("s", "a:1") as registration, Registry(kv).discover("s") as view:
        for number in range(4):
            drop_connection(client)
            drop_connection(kv)
            await registration.update(address=f"a:{number}", timeout=SECONDS)
            await addresses(view, f"a:{number}")


async def test_cancelled_while_opening(kv: Client) -> None:
    for steps in range(12):
        registration = Registry(kv).register("s", "a:1")
        task: asyncio.Task[Registration] = asyncio.ensure_future(registration.open())
        for _ in range(steps * 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await registration.close()
        assert not await kv.range("services/", prefix=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a/b", "a:1"), "without slashes"),
        (("s", ""), "address is empty"),
    ],
)
async def test_bad_arguments(kv: Client, arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Registry(kv).register(*arguments)
    with pytest.raises(ValueError, match="weight=0"):
        Registry(kv).register("s", "a:1", weight=0)


async def test_records_survive_the_round_trip() -> None:
    instance = Instance("s", "1", "a:1", {"k": "v"}, 1.5, ("t",), "1.0", Status.DRAINING)
    assert decode_instance("s", "1", encode_instance(instance)) == instance
