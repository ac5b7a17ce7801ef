from __future__ import annotations

import asyncio

import pytest

from kvserver.errors import Code
from recipes import Client, ClientError, CompactedError, Put, WatchEvent
from recipes.client import watch
from recipes.testing import FaultProxy, compact, drop_connection
from tests.recipes.conftest import Connect

pytestmark = pytest.mark.asyncio

SECONDS = 10


async def take(events: watch.Watcher, count: int) -> list[WatchEvent]:
    return [await events.next(SECONDS) for _ in range(count)]


async def test_events(kv: Client) -> None:
    async with kv.watch("app/", prefix=True, previous=True) as events:
        first = await kv.put("app/a", "1")
        await kv.put("app/a", "2")
        await kv.put("other", "-")
        await kv.delete("app/a")
        created, changed, deleted = await take(events, 3)
    assert created.is_put
    assert created.is_create
    assert (created.key, created.text, created.revision) == ("app/a", "1", first.revision)
    assert created.previous is None
    assert not changed.is_create
    assert changed.previous is not None
    assert changed.previous.text == "1"
    assert deleted.is_delete
    assert deleted.previous is not None
    assert deleted.previous.text == "2"


async def test_from_a_revision_in_the_past(kv: Client) -> None:
    first = await kv.put("k", "1")
    await kv.put("k", "2")
    async with kv.watch("k", start_revision=first.revision) as events:
        assert [event.text for event in await take(events, 2)] == ["1", "2"]


async def test_filters(kv: Client) -> None:
    async with kv.watch("k", puts=False) as deletions, kv.watch("k", deletes=False) as writes:
        await kv.put("k", "1")
        await kv.delete("k")
        await kv.put("k", "2")
        assert (await deletions.next(SECONDS)).is_delete
        assert [event.text for event in await take(writes, 2)] == ["1", "2"]


async def test_started_says_from_where(kv: Client) -> None:
    put = await kv.put("k", "1")
    events = kv.watch("k")
    assert await events.started() >= put.revision
    with pytest.raises(TimeoutError):
        await events.next(0.05)
    events.close()
    with pytest.raises(StopAsyncIteration):
        await events.next(SECONDS)


async def test_closing_wakes_the_reader(kv: Client) -> None:
    events = kv.watch("k")

    async def read() -> list[WatchEvent]:
        return [event async for event in events]

    reader = asyncio.ensure_future(read())
    await events_started(kv)
    events.close()
    assert await asyncio.wait_for(reader, SECONDS) == []


async def events_started(kv: Client) -> None:
    await kv.get("anything")  # a round trip


async def test_a_dropped_watcher_ends_its_watch(kv: Client) -> None:
    first = await kv.put("k", "1")
    async for _ in kv.watch("k", start_revision=first.revision):
        break
    await kv.get("a round trip")
    assert not kv._core.watches._subscriptions


async def test_resumes_over_dropped_connections_with_no_gap_and_nothing_twice(kv: Client, connect: Connect) -> None:
    writer = await connect()
    events = kv.watch("k/", prefix=True)
    await events.started()
    total, seen = 300, []

    async def write() -> None:
        for number in range(total):
            await writer.txn(then=[Put(f"k/{number}", ""), Put(f"k/{number}+", "")])

    writing = asyncio.ensure_future(write())
    while len(seen) < 2 * total:
        event = await events.next(SECONDS)
        seen.append(event)
        if len(seen) % 40 == 0:
            drop_connection(kv)
    await writing
    assert [event.key for event in seen] == [f"k/{n}{plus}" for n in range(total) for plus in ("", "+")]
    revisions = [event.revision for event in seen]
    assert revisions == sorted(revisions)
    events.close()


async def test_events_of_an_outage_are_delivered_after_it(endpoint: str, namespace: str, connect: Connect) -> None:
    writer = await connect()
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        kv.watch("k") as events,
    ):
        await writer.put("k", "1")
        assert (await events.next(SECONDS)).text == "1"
        proxy.cut()
        await writer.put("k", "2")
        await writer.put("k", "3")
        with pytest.raises(TimeoutError):
            await events.next(0.1)
        proxy.restore()
        assert [event.text for event in await take(events, 2)] == ["2", "3"]


async def test_failover_to_another_endpoint(endpoint: str, namespace: str, connect: Connect) -> None:
    writer = await connect()
    async with (
        FaultProxy(endpoint) as one,
        FaultProxy(endpoint) as two,
        Client(f"{one.endpoint},{two.endpoint}", namespace=namespace) as kv,
        kv.watch("k") as events,
    ):
        one.cut()
        await writer.put("k", "1")
        assert (await events.next(SECONDS)).text == "1"
        assert two.connections >= 1


async def test_compaction_while_disconnected_is_reported(endpoint: str, namespace: str, connect: Connect) -> None:
    writer = await connect()
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        kv.watch("k") as events,
    ):
        await writer.put("k", "1")
        assert (await events.next(SECONDS)).text == "1"
        proxy.cut()
        await writer.put("k", "2")
        await writer.put("k", "3")
        revision = await compact(writer)
        proxy.restore()
        with pytest.raises(CompactedError) as caught:
            await events.next(SECONDS)
        assert caught.value.compact_revision == revision


async def test_a_start_that_was_compacted_is_reported(kv: Client) -> None:
    old = await kv.put("k", "1")
    await kv.put("k", "2")
    await compact(kv)
    events = kv.watch("k", start_revision=old.revision)
    with pytest.raises(CompactedError):
        await events.next(SECONDS)


async def test_many_watches_share_one_stream(kv: Client) -> None:
    watchers = [kv.watch(f"k{number}") for number in range(50)]
    for watcher in watchers:
        await watcher.started()
    for number in range(50):
        await kv.put(f"k{number}", str(number))
    assert [(await watcher.next(SECONDS)).text for watcher in watchers] == [str(number) for number in range(50)]
    for watcher in watchers:
        watcher.close()


async def test_a_slow_reader_holds_bounded_memory_and_misses_nothing(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUEUE_EVENTS_MAX", 16)
    monkeypatch.setattr(watch, "QUEUE_EVENTS_LOW", 4)
    events, other = kv.watch("k"), kv.watch("k")
    await events.started()
    await other.started()
    for number in range(100):
        await kv.put("k", str(number))
        assert (await other.next(SECONDS)).text == str(number)  # nobody else is slowed down
        assert len(events._queue.events) <= 17
    assert [event.text for event in await take(events, 100)] == [str(number) for number in range(100)]
    events.close()
    other.close()


async def test_a_refused_watch_fails_and_leaves_the_others(kv: Client) -> None:
    async with kv.watch("k") as fine:
        refused = kv.watch("b", range_end="a")
        with pytest.raises(ClientError) as caught:
            await refused.next(SECONDS)
        assert caught.value.code == Code.CANCELLED
        await kv.put("k", "1")
        assert (await fine.next(SECONDS)).text == "1"


async def test_closing_the_client_ends_its_watches(connect: Connect) -> None:
    kv = await connect()
    events = kv.watch("k")
    await events.started()
    await kv.close()
    with pytest.raises(ClientError, match="closed"):
        await events.next(SECONDS)


async def test_two_readers_of_one_watcher_are_told(kv: Client) -> None:
    async with kv.watch("k") as events:
        reader = asyncio.ensure_future(events.next())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await events.next()
        reader.cancel()
