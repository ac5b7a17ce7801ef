from __future__ import annotations

import asyncio

import pytest

from recipes import Client, Message, Resync, Subscriber, Topic
from recipes import topic as topic_module
from recipes.testing import FaultProxy, compact, drop_connection
from tests.recipes.conftest import Connect

pytestmark = pytest.mark.asyncio

SECONDS = 15


async def texts(subscriber: Subscriber, count: int) -> list[str]:
    found = []
    for _ in range(count):
        message = await subscriber.next(SECONDS)
        assert isinstance(message, Message), message
        found.append(message.text)
    return found


async def test_from_now_on(kv: Client) -> None:
    topic = Topic(kv, "orders")
    await topic.publish("before")
    async with topic.subscribe() as messages:
        offset = await topic.publish("one")
        await topic.publish(b"two")
        first = await messages.next(SECONDS)
        assert isinstance(first, Message)
        assert (first.text, first.offset, first.topic) == ("one", offset, "orders")
        assert await texts(messages, 1) == ["two"]
        with pytest.raises(TimeoutError):
            await messages.next(0.05)
        await topic.publish('{"id": 7}')
        third = await messages.next(SECONDS)
        assert isinstance(third, Message)
        assert third.json() == {"id": 7}


async def test_replay_then_follow(kv: Client) -> None:
    topic = Topic(kv, "orders")
    for number in range(5):
        await topic.publish(str(number))
    async with topic.subscribe(replay=True) as everything:
        await topic.publish("5")
        assert await texts(everything, 6) == list("012345")
        await topic.publish("6")
        assert await texts(everything, 1) == ["6"]


async def test_last(kv: Client) -> None:
    topic = Topic(kv, "orders")
    for number in range(5):
        await topic.publish(str(number))
    last = topic.subscribe(last=2)
    assert await texts(last, 2) == ["3", "4"]
    await topic.publish("5")
    assert await texts(last, 1) == ["5"]
    last.close()
    empty = Topic(kv, "empty").subscribe(last=3)
    reading = asyncio.ensure_future(empty.next(SECONDS))
    await kv.get("a round trip")
    await Topic(kv, "empty").publish("x")
    message = await reading
    assert isinstance(message, Message)
    empty.close()


async def test_after_an_offset(kv: Client) -> None:
    topic = Topic(kv, "orders")
    offsets = [await topic.publish(str(number)) for number in range(5)]
    subscriber = topic.subscribe(after=offsets[1])
    assert await texts(subscriber, 3) == ["2", "3", "4"]
    assert subscriber.offset == offsets[4]
    subscriber.close()
    again = topic.subscribe(after=subscriber.offset)
    await topic.publish("5")
    assert await texts(again, 1) == ["5"]
    again.close()


async def test_replay_reads_pages(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_module, "PAGE_MESSAGES", 4)
    topic = Topic(kv, "orders")
    expected = []
    for number in range(7):
        batch = [f"{number}-{part}" for part in range(number)] or ["alone"]
        await topic.publish_many(batch)
        expected += batch
    subscriber = topic.subscribe(replay=True)
    assert await texts(subscriber, len(expected)) == expected
    await topic.publish("next")
    assert await texts(subscriber, 1) == ["next"]
    subscriber.close()


async def test_together_published_messages_share_an_offset_and_keep_their_order(kv: Client) -> None:
    topic = Topic(kv, "orders")
    async with topic.subscribe() as live:
        before = live.offset
        offset = await topic.publish_many(["a", "b", "c"])
        first = await live.next(SECONDS)
        assert isinstance(first, Message)
        assert first.offset == offset
        assert live.offset in (before, offset)
        assert await texts(live, 2) == ["b", "c"]
        assert live.offset == offset
    assert [message.text for message in await topic.messages()] == ["a", "b", "c"]
    for values in ([], ["x"] * 61):
        with pytest.raises(ValueError, match="1 to 60"):
            await topic.publish_many(values)


async def test_all_subscribers_see_one_order(kv: Client, connect: Connect) -> None:
    publishers = [Topic(await connect(), "orders") for _ in range(4)]
    subscribers = [Topic(await connect(), "orders").subscribe(replay=True) for _ in range(3)]

    async def publish(name: int, topic: Topic) -> None:
        for number in range(25):
            await topic.publish(f"{name}.{number}")

    publishing = asyncio.gather(*(publish(name, topic) for name, topic in enumerate(publishers)))
    seen = await asyncio.gather(*(texts(subscriber, 100) for subscriber in subscribers))
    await publishing
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 100
    for name in range(4):
        assert [text for text in seen[0] if text.startswith(f"{name}.")] == [f"{name}.{n}" for n in range(25)]
    for subscriber in subscribers:
        subscriber.close()


async def test_dropped_connections_lose_and_double_nothing(kv: Client, connect: Connect) -> None:
    topic = Topic(await connect(), "orders")
    subscriber = Topic(kv, "orders").subscribe(replay=True)
    seen: list[str] = []

    async def publish() -> None:
        for number in range(100):
            await topic.publish(str(number))

    publishing = asyncio.ensure_future(publish())
    while len(seen) < 100:
        seen += await texts(subscriber, 1)
        if len(seen) % 20 == 0:
            drop_connection(kv)
    await publishing
    assert seen == [str(number) for number in range(100)]
    subscriber.close()


async def test_compaction_while_disconnected(endpoint: str, namespace: str, connect: Connect) -> None:
    other = await connect()
    topic = Topic(other, "orders")
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        Topic(kv, "orders").subscribe() as subscriber,
    ):
        await topic.publish("0")
        assert await texts(subscriber, 1) == ["0"]
        proxy.cut()
        for number in range(1, 4):
            await topic.publish(str(number))
        await compact(other)
        proxy.restore()
        assert await texts(subscriber, 3) == ["1", "2", "3"]
        await topic.publish("4")
        assert await texts(subscriber, 1) == ["4"]


async def test_trimmed_messages_are_told_never_silent(endpoint: str, namespace: str, connect: Connect) -> None:
    other = await connect()
    topic = Topic(other, "orders")
    first = await topic.publish("0")
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        Topic(kv, "orders").subscribe(after=first) as subscriber,
    ):
        await topic.publish("1")
        assert await texts(subscriber, 1) == ["1"]
        seen = subscriber.offset
        proxy.cut()
        offsets = [await topic.publish(str(number)) for number in range(2, 6)]
        assert await topic.trim(keep=2) == 4
        await compact(other)
        proxy.restore()
        resync = await subscriber.next(SECONDS)
        assert resync == Resync(after=seen, trimmed=offsets[1])
        assert await texts(subscriber, 2) == ["4", "5"]
    late = topic.subscribe(after=first)
    assert isinstance(await late.next(SECONDS), Resync)
    assert await texts(late, 2) == ["4", "5"]
    late.close()
    fresh = topic.subscribe(replay=True)
    assert await texts(fresh, 2) == ["4", "5"]  # it never asked for what is gone
    fresh.close()


async def test_trim(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_module, "TRIM_KEYS", 3)
    topic = Topic(kv, "orders")
    offsets = [await topic.publish(str(number)) for number in range(10)]
    assert await topic.trim(through=offsets[4]) == 5
    assert await topic.trim(through=offsets[4]) == 0
    assert await topic.trim(keep=3) == 2
    assert await topic.trim(keep=30) == 0
    assert [message.text for message in await topic.messages()] == ["7", "8", "9"]
    assert await topic.trim(keep=0) == 3


async def test_a_publication_whose_answer_is_lost_happens_once(endpoint: str, namespace: str, connect: Connect) -> None:
    other = Topic(await connect(), "orders")
    async with (
        other.subscribe() as subscriber,
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
    ):
        topic = Topic(kv, "orders")
        await topic.publish("0")
        await texts(subscriber, 1)
        proxy.hold_answers()
        publishing = asyncio.ensure_future(topic.publish("1"))
        message = await subscriber.next(SECONDS)
        proxy.drop()
        proxy.restore()
        assert isinstance(message, Message)
        assert await publishing == message.offset
        await topic.publish("2")
        assert await texts(subscriber, 1) == ["2"]


@pytest.mark.parametrize("round_trips", [0, 1, 2, 3])
@pytest.mark.parametrize("replay", [False, True])
async def test_closing_wakes_the_reader(kv: Client, round_trips: int, replay: bool) -> None:
    subscriber = Topic(kv, "orders").subscribe(replay=replay)

    async def read() -> list[Message | Resync]:
        return [message async for message in subscriber]

    reader = asyncio.ensure_future(read())
    for _ in range(round_trips):
        await kv.get("a round trip")
    subscriber.close()
    assert await asyncio.wait_for(reader, SECONDS) == []
    await kv.get("a round trip")
    assert not kv._core.watches._subscriptions


async def test_bad_arguments(kv: Client) -> None:
    with pytest.raises(ValueError, match="without slashes"):
        Topic(kv, "a/b")
    topic = Topic(kv, "orders")
    with pytest.raises(ValueError, match="one of"):
        topic.subscribe(after=1, replay=True)
    with pytest.raises(ValueError, match="last=0"):
        topic.subscribe(last=0)
    with pytest.raises(ValueError, match="keep or through"):
        await topic.trim()
