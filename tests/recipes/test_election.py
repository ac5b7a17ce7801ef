from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from recipes import (
    AcquireTimeoutError,
    Client,
    Election,
    Leader,
    Leadership,
    NotLeaderError,
    Put,
    Session,
    SessionLostError,
)
from recipes.testing import FaultProxy, compact, drop_connection, expire_session
from tests.recipes.cancellation import Moment, at_every_await
from tests.recipes.conftest import Connect

pytestmark = pytest.mark.asyncio

SECONDS = 15
NAME = "elections/reports"


async def candidates(kv: Client, count: int) -> None:
    async with asyncio.timeout(SECONDS), kv.watch(NAME, prefix=True) as events:
        while (await kv.range(NAME, prefix=True, count_only=True)).count != count:
            await events.next()


class Observer:
    """An observation that is read with a limit of time."""

    def __init__(self, leaders: AsyncIterator[Leader | None]) -> None:
        self._leaders = leaders

    async def next(self) -> str | None:
        async with asyncio.timeout(SECONDS):
            leader = await anext(self._leaders)
        return None if leader is None else leader.text


async def test_lead(kv: Client) -> None:
    election = Election(kv, NAME)
    assert await election.leader() is None
    async with election.lead("me") as leadership:
        leader = await election.leader()
        assert leader is not None
        assert (leader.text, leader.key, leader.fencing_token) == ("me", leadership.key, leadership.fencing_token)
        assert await kv.txn(when=[leadership.guard()], then=[Put("report", "...")])
    assert await election.leader() is None
    assert not await kv.txn(when=[leadership.guard()], then=[Put("report", "late")])


async def test_campaigns_are_won_in_order(kv: Client, connect: Connect) -> None:
    election = Election(kv, NAME)
    first = await election.campaign("0")
    waiting = []
    for number in range(1, 4):
        waiting.append(asyncio.ensure_future(Election(await connect(), NAME).campaign(str(number))))
        await candidates(kv, number + 1)
    await first.resign()
    tokens = [first.fencing_token]
    for number, task in enumerate(waiting, 1):
        leadership = await asyncio.wait_for(task, SECONDS)
        leader = await election.leader()
        assert leader is not None
        assert leader.text == str(number)
        tokens.append(leadership.fencing_token)
        assert await leadership.resign()
        assert not await leadership.resign()
    assert tokens == sorted(set(tokens))


async def test_proclaim(kv: Client) -> None:
    election = Election(kv, NAME)
    async with election.lead("one") as leadership:
        token = leadership.fencing_token
        await leadership.proclaim("two")
        leader = await election.leader()
        assert leader is not None
        assert (leader.text, leader.fencing_token, leader.item.lease_id) == ("two", token, leadership.session.lease_id)
    with pytest.raises(NotLeaderError):
        await leadership.proclaim("three")
    assert await election.leader() is None


async def test_proclaiming_after_losing_the_key(kv: Client) -> None:
    async with Session(kv) as session:
        leadership = await Election(kv, NAME, session=session).campaign("one")
        await kv.delete(leadership.key)
        with pytest.raises(NotLeaderError, match="somebody deleted its key"):
            await leadership.proclaim("two")
        assert await kv.get(leadership.key) is None
        await leadership.resign()


async def test_a_timed_out_campaign_leaves_nothing(kv: Client) -> None:
    async with Election(kv, NAME).lead("one"):
        with pytest.raises(AcquireTimeoutError, match=r"not elected leader of 'elections/reports' in 0.1 s"):
            await Election(kv, NAME).campaign("two", timeout=0.1)
        assert (await kv.range(NAME, prefix=True)).count == 1


async def test_a_candidate_whose_session_dies_stops_campaigning(kv: Client) -> None:
    async with Election(kv, NAME).lead("one"), Session(kv, ttl=30) as session:
        campaign = asyncio.ensure_future(Election(kv, NAME, session=session).campaign("zombie"))
        await candidates(kv, 2)
        await expire_session(session)
        with pytest.raises(SessionLostError):
            await asyncio.wait_for(campaign, SECONDS)
        assert (await kv.range(NAME, prefix=True)).count == 1


async def test_a_leader_that_loses_its_session_is_cancelled(kv: Client) -> None:
    with pytest.raises(SessionLostError, match="leadership of 'elections/reports' is no longer held"):
        async with Election(kv, NAME).lead("one") as leadership:
            await expire_session(leadership.session)
            await asyncio.Event().wait()


async def test_observe(kv: Client, connect: Connect) -> None:
    observer = Observer(Election(kv, NAME).observe())
    assert await observer.next() is None
    other = await connect()
    first = await Election(other, NAME).campaign("one")
    assert await observer.next() == "one"
    await first.proclaim("one again")
    assert await observer.next() == "one again"
    campaign = asyncio.ensure_future(Election(other, NAME).campaign("two"))
    await candidates(kv, 2)
    await first.resign()
    assert await observer.next() == "two"
    await (await campaign).resign()
    assert await observer.next() is None


async def test_observe_never_shows_an_older_leader_after_a_newer(kv: Client, connect: Connect) -> None:
    other = await connect()
    tokens: list[int] = []

    async def watch() -> None:
        async for leader in Election(kv, NAME).observe():
            if leader is not None:
                tokens.append(leader.fencing_token)
                if leader.text == "last":
                    return

    watching = asyncio.ensure_future(watch())
    for number in range(12):
        async with Election(other, NAME).lead(f"leader {number}"):
            if number % 3 == 0:
                drop_connection(kv)
    leadership = await Election(other, NAME).campaign("last")
    await asyncio.wait_for(watching, SECONDS)
    assert tokens == sorted(tokens)
    await leadership.resign()


async def test_observe_starts_with_the_present_leader_whatever_was_changed_last(kv: Client) -> None:
    async with Session(kv) as session:
        first = await Election(kv, NAME, session=session).campaign("one")
        second = asyncio.ensure_future(Election(kv, NAME, session=session).campaign("two"))
        await candidates(kv, 2)
        await first.proclaim("one again")  # changed later than the candidate behind it was created
        assert await Observer(Election(kv, NAME).observe()).next() == "one again"
        await first.resign()
        await (await second).resign()


async def test_observe_relists_after_compaction(endpoint: str, namespace: str, connect: Connect) -> None:
    other = await connect()
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        observer = Observer(Election(kv, NAME).observe())
        assert await observer.next() is None
        first = await Election(other, NAME).campaign("one")
        assert await observer.next() == "one"
        proxy.cut()
        await first.resign()
        second = await Election(other, NAME).campaign("two")
        await compact(other)
        proxy.restore()
        assert await observer.next() == "two"
        await second.resign()
        assert await observer.next() is None


@pytest.mark.parametrize("moment", ["early", "late"])
async def test_cancelled_at_every_await_of_campaign(kv: Client, moment: Moment) -> None:
    before = set(await kv.leases())

    def make() -> Coroutine[Any, Any, Leadership]:
        return Election(kv, NAME, ttl=30).campaign("x")

    async def check(number: int, outcome: str) -> None:
        assert not await kv.range(NAME, prefix=True), f"await {number}: {outcome}"
        assert set(await kv.leases()) == before, f"await {number}: {outcome}"

    async def resign(leadership: Leadership) -> None:
        await leadership.resign()

    assert await at_every_await(make, check, moment=moment, unless_done=resign) >= 2


async def test_together_with_etcdctl_elect(kv: Client, endpoint: str, namespace: str, etcdctl: str) -> None:
    before = set(await kv.leases())
    ours = await Election(kv, NAME).campaign("ours")
    command = (etcdctl, "--endpoints", endpoint, "elect")
    listening = await asyncio.create_subprocess_exec(*command, "--listen", namespace + NAME, stdout=subprocess.PIPE)
    theirs = await asyncio.create_subprocess_exec(*command, namespace + NAME, "theirs", stdout=subprocess.PIPE)
    assert theirs.stdout is not None
    assert listening.stdout is not None

    async def read(stream: asyncio.StreamReader) -> str:
        return (await asyncio.wait_for(stream.readline(), SECONDS)).decode().strip()

    assert await read(listening.stdout) == ours._client.namespace.decode() + ours.key
    assert await read(listening.stdout) == "ours"
    await candidates(kv, 2)
    await ours.resign()
    assert (await read(theirs.stdout)).startswith(f"{namespace}{NAME}/")
    assert await read(theirs.stdout) == "theirs"
    leader = await Election(kv, NAME).leader()
    assert leader is not None
    assert leader.text == "theirs"
    mine = asyncio.ensure_future(Election(kv, NAME).campaign("mine"))
    await candidates(kv, 2)
    theirs.terminate()  # resigns
    leadership = await asyncio.wait_for(mine, SECONDS)
    await leadership.resign()
    listening.terminate()
    await theirs.wait()
    await listening.wait()
    for lease in set(await kv.leases()) - before:
        await kv.revoke_lease(lease)


async def test_together_with_the_election_service(kv: Client, namespace: str) -> None:
    from kvserver.proto import election_pb2

    name = (namespace + NAME).encode()
    lease = await kv.grant_lease(60)
    answer = await kv.rpc.election.campaign(election_pb2.CampaignRequest(name=name, lease=lease, value=b"theirs"))
    leader = await Election(kv, NAME).leader()
    assert leader is not None
    assert (leader.text, leader.fencing_token) == ("theirs", answer.leader.rev)
    mine = asyncio.ensure_future(Election(kv, NAME).campaign("mine"))
    await candidates(kv, 2)
    await kv.rpc.election.resign(election_pb2.ResignRequest(leader=answer.leader))
    leadership = await asyncio.wait_for(mine, SECONDS)
    seen = await kv.rpc.election.leader(election_pb2.LeaderRequest(name=name))
    assert (seen.kv.value, seen.kv.create_revision) == (b"mine", leadership.fencing_token)
    await leadership.resign()
    await kv.revoke_lease(lease)
