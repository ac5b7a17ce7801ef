"""Failover and the unknown-outcome rule, through a proxy that fails on demand."""

from __future__ import annotations

import asyncio

import pytest

from recipes import Client, DeadlineExceededError, OutcomeUnknownError, Put, UnavailableError, Version
from recipes.testing import FaultProxy, drop_connection
from tests.recipes.conftest import Connect, free_port

pytestmark = pytest.mark.asyncio


async def test_dead_endpoints_are_passed_over(endpoint: str, namespace: str) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with Client(f"{dead},{endpoint}", namespace=namespace) as kv:
        await kv.put("k", "v")
        assert await kv.get("k") is not None


async def test_reads_are_repeated_after_a_lost_connection(endpoint: str, namespace: str) -> None:
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        await kv.put("k", "v")
        proxy.hold_answers()
        reads = [asyncio.ensure_future(kv.get("k")) for _ in range(10)]
        await asyncio.sleep(0)  # they are sent now
        proxy.drop()
        proxy.restore()
        assert [item.text for item in await asyncio.gather(*reads) if item] == ["v"] * 10


async def test_a_write_whose_answer_is_lost_is_not_repeated(endpoint: str, namespace: str, connect: Connect) -> None:
    observer = await connect()
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        await kv.put("k", "first")
        async with observer.watch("k") as events:
            proxy.hold_answers()
            write = asyncio.ensure_future(kv.put("k", "second"))
            assert (await events.next(5)).text == "second"  # it happened, and the answer is held
            proxy.drop()
            proxy.restore()
            with pytest.raises(OutcomeUnknownError, match="may or may not"):
                await write
            item = await kv.get("k")
            assert item is not None
            assert item.version == 2


async def test_a_txn_of_reads_is_repeated_and_one_with_writes_is_not(endpoint: str, namespace: str) -> None:
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        await kv.put("k", "v")
        proxy.hold_answers()
        reading = asyncio.ensure_future(kv.txn(when=[Version("k") > 0]))
        writing = asyncio.ensure_future(kv.txn(when=[Version("k") == 0], then=[Put("k", "w")]))
        await asyncio.sleep(0)
        proxy.drop()
        proxy.restore()
        assert await reading
        with pytest.raises(OutcomeUnknownError):
            await writing


async def test_a_write_that_was_never_sent_waits_for_the_server(endpoint: str, namespace: str) -> None:
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        await kv.get("k")
        proxy.cut()
        write = asyncio.ensure_future(kv.put("k", "v", timeout=10))
        done, _ = await asyncio.wait({write}, timeout=0.2)
        if not done:  # else it had been sent before the cut was seen
            proxy.restore()
            await write
            item = await kv.get("k")
            assert item is not None
            assert item.version == 1
        else:
            assert isinstance(write.exception(), OutcomeUnknownError)


async def test_deadlines(endpoint: str, namespace: str) -> None:
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace, timeout=0.3) as kv:
        await kv.put("k", "v")
        proxy.freeze()
        with pytest.raises(DeadlineExceededError) as caught:
            await kv.get("k")
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(OutcomeUnknownError):
            await kv.put("k", "w")
        proxy.restore()
        assert await kv.get("k", timeout=5) is not None


async def test_an_outage_ends_in_unavailable_and_is_over_when_it_is_over(endpoint: str, namespace: str) -> None:
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace, timeout=0.5) as kv:
        await kv.put("k", "v")
        proxy.cut()
        with pytest.raises(UnavailableError):
            while True:  # the first may still be answered by the connection that is about to break
                await kv.get("k")
        proxy.restore()
        assert await kv.get("k", timeout=5) is not None


async def test_one_endpoint_dies_and_the_other_takes_over(endpoint: str, namespace: str) -> None:
    async with (
        FaultProxy(endpoint) as one,
        FaultProxy(endpoint) as two,
        Client(f"{one.endpoint},{two.endpoint}", namespace=namespace) as kv,
    ):
        await kv.put("k", "v")
        assert (one.connections, two.connections) == (1, 0)
        one.cut()
        assert await kv.get("k") is not None
        assert two.connections == 1


async def test_cancelling_a_call_leaves_the_connection_in_order(kv: Client) -> None:
    for _ in range(20):
        task = asyncio.ensure_future(kv.put("cancelled", "v"))  # it may happen, now or later
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await kv.put("k", "w")
    item = await kv.get("k")
    assert item is not None
    assert item.text == "w"


async def test_drop_connection_is_survived(kv: Client) -> None:
    for number in range(5):
        await kv.put("k", str(number))
        drop_connection(kv)
        item = await kv.get("k")
        assert item is not None
        assert item.text == str(number)
