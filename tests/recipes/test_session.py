from __future__ import annotations

import asyncio
import time

import pytest

from recipes import Client, LeaseNotFoundError, Session, SessionLostError, SessionState, UnavailableError
from recipes.client import clock
from recipes.testing import FaultProxy, drop_connection, expire_session, pause_session, resume_session
from tests.recipes.cancellation import CancelAt, Moment, at_every_await
from tests.recipes.conftest import Connect, free_port

pytestmark = pytest.mark.asyncio

SECONDS = 15


class Listener:
    """Collects a session's states, and waits for one."""

    def __init__(self, session: Session) -> None:
        self.states: list[SessionState] = []
        self._event = asyncio.Event()
        session.add_listener(self)

    def __call__(self, state: SessionState) -> None:
        self.states.append(state)
        self._event.set()

    async def wait_for(self, state: SessionState, seconds: float = SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while state not in self.states:
                self._event.clear()
                await self._event.wait()


async def test_keeps_a_lease_and_ends_it(kv: Client) -> None:
    async with Session(kv, ttl=10) as session:
        assert session.state is SessionState.CONNECTED
        assert 8 < session.remaining <= 10
        session.check()
        await kv.put("k", "v", lease=session)
        assert session.lease_id in await kv.leases()
    assert session.state is SessionState.LOST
    assert session.lost.is_set()
    assert session.remaining == 0
    with pytest.raises(SessionLostError, match="it was closed; open a new one"):
        session.check()
    assert await kv.get("k") is None
    await session.close()


async def test_lives_beyond_its_ttl_while_it_is_renewed(kv: Client, connect: Connect) -> None:
    """On a thread, on the loop, and over a connection that breaks again and again."""
    shaky = await connect()
    async with (
        Session(kv, ttl=2) as session,
        Session(kv, ttl=2, tied_to_loop=True) as tied,
        Session(shaky, ttl=2) as shaken,
        kv.watch("never") as events,
    ):
        listeners = [Listener(each) for each in (session, tied, shaken)]
        until = clock.now() + 2.2
        while clock.now() < until:
            drop_connection(shaky)
            with pytest.raises(TimeoutError):
                await events.next(0.3)
        for each, listener in zip((session, tied, shaken), listeners, strict=True):
            assert each.state is not SessionState.LOST
            assert SessionState.LOST not in listener.states
            assert await kv.lease_ttl(each) > 0


async def test_a_blocked_loop_does_not_lose_it_unless_it_is_tied_to_the_loop(kv: Client) -> None:
    async with Session(kv, ttl=2) as session, Session(kv, ttl=2, tied_to_loop=True) as tied:
        time.sleep(2.2)  # noqa: ASYNC251 - the application's loop hangs; that is what is tested
        assert tied.lost.is_set()  # on the first step, before any message
        assert tied.state is SessionState.LOST
        assert session.state is SessionState.CONNECTED
        assert await kv.lease_ttl(session) > 0


async def test_revoked_elsewhere(kv: Client) -> None:
    async with Session(kv, ttl=30) as session:
        listener = Listener(session)
        await expire_session(session)
        assert listener.states == [SessionState.LOST]
        with pytest.raises(SessionLostError, match="expired or was revoked"):
            session.check()
        with pytest.raises(LeaseNotFoundError):
            await kv.put("k", "v", lease=session)


async def test_an_outage_suspends_it_and_an_early_end_saves_it(endpoint: str, namespace: str) -> None:
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        Session(kv, ttl=3) as session,
    ):
        listener = Listener(session)
        proxy.freeze()
        await listener.wait_for(SessionState.SUSPENDED)
        assert session.state is SessionState.SUSPENDED
        session.check()  # it still has it
        proxy.drop()
        proxy.restore()
        await listener.wait_for(SessionState.CONNECTED)


async def test_it_is_lost_no_later_than_the_server_gives_it_away(endpoint: str, namespace: str) -> None:
    """By an outage, and by a pause of the whole process, which finds it out on its first step."""
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as cut_off,
        Client(endpoint, namespace=namespace) as observer,
        observer.watch("", prefix=True, puts=False) as events,
    ):
        session = await Session(cut_off, ttl=2).open()
        paused = await Session(observer, ttl=2).open()
        listener, paused_listener = Listener(session), Listener(paused)
        await cut_off.put("cut off", "", lease=session)
        await observer.put("paused", "", lease=paused)
        proxy.freeze()
        pause_session(paused)
        for _ in range(2):
            deleted = await events.next(SECONDS)
            loser = session if deleted.key == "cut off" else paused
            assert loser.state is SessionState.LOST
        assert paused_listener.states == []  # nobody could tell it
        resume_session(paused)
        for each, states in ((listener, [SessionState.SUSPENDED, SessionState.LOST]), (paused_listener, [])):
            await each.wait_for(SessionState.LOST)
            assert each.states[: len(states)] == states
        with pytest.raises(SessionLostError, match="no renewal was acknowledged"):
            session.check()
        proxy.restore()
        await paused.close()
        await session.close()


async def test_a_failing_listener_hurts_no_other(kv: Client, caplog: pytest.LogCaptureFixture) -> None:
    async with Session(kv, ttl=10) as session:

        def fail(state: SessionState) -> None:
            raise ZeroDivisionError

        session.add_listener(fail)
        listener = Listener(session)
        await expire_session(session)
        assert listener.states == [SessionState.LOST]
        assert "a listener failed" in caplog.text


async def test_nobody_there(namespace: str) -> None:
    async with Client(f"127.0.0.1:{free_port()}", namespace=namespace) as kv:
        with pytest.raises(UnavailableError, match="is one running there"):
            await Session(kv).open(timeout=0.2)


@pytest.mark.parametrize("moment", ["early", "late"])
async def test_cancelled_at_every_await_leaves_no_lease(kv: Client, moment: Moment) -> None:
    before = set(await kv.leases())

    async def check(number: int, outcome: str) -> None:
        assert set(await kv.leases()) == before, f"await {number}: {outcome}"

    count = await at_every_await(
        lambda: Session(kv, ttl=30).open(), check, moment=moment, unless_done=lambda session: session.close()
    )
    assert count >= 1


@pytest.mark.parametrize("moment", ["early", "late"])
async def test_closing_cancelled_at_every_await_still_closes(kv: Client, moment: Moment) -> None:
    before = set(await kv.leases())

    number = 0
    while True:
        number += 1
        session = await Session(kv, ttl=30).open()
        cancelling: CancelAt[None] = CancelAt(session.close(), number, moment)

        async def run(awaitable: CancelAt[None] = cancelling) -> None:
            await awaitable

        await asyncio.wait({asyncio.ensure_future(run())})
        assert set(await kv.leases()) == before, f"await {number}"
        if not cancelling.hit:
            break
    assert number > 1


@pytest.mark.parametrize("ttl", [0, 1, -5, 10**10])
async def test_senseless_ttls_are_refused(ttl: int) -> None:
    client = Client("127.0.0.1:1")
    with pytest.raises(ValueError, match="ttl"):
        Session(client, ttl=ttl)


async def test_misuse_is_told(kv: Client) -> None:
    session = Session(kv)
    with pytest.raises(RuntimeError, match="not open"):
        _ = session.lease_id
    async with session:
        with pytest.raises(RuntimeError, match="opened once"):
            await session.open()
