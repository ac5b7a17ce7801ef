from __future__ import annotations

import asyncio

import pytest

from recipes import Client, Session, SessionState
from recipes.client import clock
from recipes.testing import FaultProxy

pytestmark = pytest.mark.asyncio

SECONDS = 15


async def test_the_deadline_counts_from_the_sending_of_a_renewal_not_from_its_answer(
    endpoint: str, namespace: str
) -> None:
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        Client(endpoint, namespace=namespace) as direct,
        Session(kv, ttl=30) as session,
    ):
        keeper, lease = session._keeper, session._clock
        assert keeper is not None
        assert lease is not None
        hub = session._hub()
        granted_at = lease.acknowledged_at

        async def renewed() -> None:
            async with asyncio.timeout(SECONDS):
                before = lease.acknowledged_at
                hub.poke(keeper)
                while lease.acknowledged_at == before:
                    await direct.get("a round trip")

        await renewed()  # the stream is open now
        assert lease.acknowledged_at > granted_at
        proxy.hold_answers()
        before = lease.acknowledged_at
        hub.poke(keeper)
        async with direct.watch("never") as events:
            with pytest.raises(TimeoutError):
                await events.next(0.3)
        assert lease.acknowledged_at == before
        released_at = clock.now()
        proxy.restore()
        async with asyncio.timeout(SECONDS):
            while lease.acknowledged_at == before:
                await direct.get("a round trip")
        assert lease.acknowledged_at < released_at - 0.2


async def test_many_sessions_share_one_stream_and_each_is_told_of_its_own_loss(kv: Client) -> None:
    sessions = [await Session(kv, ttl=30).open() for _ in range(20)]
    for session in sessions[::2]:
        await kv.revoke_lease(session)
    for session in sessions:
        assert session._keeper is not None
        session._hub().poke(session._keeper)
    for session in sessions[::2]:
        await asyncio.wait_for(session.lost.wait(), SECONDS)
    assert [session.state is SessionState.LOST for session in sessions] == [True, False] * 10
    for session in sessions:
        await session.close()
