from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Coroutine
from typing import Any

import pytest

from recipes import (
    AcquireTimeoutError,
    Client,
    HeldLock,
    KeyValue,
    Lock,
    NotHeldError,
    Put,
    Session,
    SessionLostError,
)
from recipes.contender import Contender
from recipes.testing import FaultProxy, compact, drop_connection, expire_session
from tests.recipes.cancellation import CancelAt, Moment, at_every_await
from tests.recipes.conftest import Connect

pytestmark = pytest.mark.asyncio

SECONDS = 15
NAME = "jobs/nightly"


async def queue(kv: Client) -> list[str]:
    return [item.key for item in await kv.range(NAME, prefix=True, sort_by="create")]


async def queue_length(kv: Client, length: int) -> None:
    """Wait until so many contenders are queued."""
    async with asyncio.timeout(SECONDS), kv.watch(NAME, prefix=True) as events:
        while len(await queue(kv)) != length:
            await events.next()


async def test_api_as_printed(kv: Client) -> None:
    async with Lock(kv, NAME, ttl=10) as held:
        assert await kv.txn(when=[held.guard()], then=[Put("result", "...")])
        assert not held.lost.is_set()
        item = await kv.get(held.key)
        assert item is not None
        assert held.fencing_token == item.create_revision
        assert item.lease_id == held.session.lease_id
        assert held.key.startswith(f"{NAME}/{held.session.lease_id:x}-")
    assert held.lost.is_set()
    assert await queue(kv) == []
    assert not await kv.txn(when=[held.guard()], then=[Put("result", "too late")])


async def test_excludes_and_hands_over_in_order(kv: Client, connect: Connect) -> None:
    order: list[int] = []
    tokens: list[int] = []
    inside = 0

    async def work(number: int, lock: Lock) -> None:
        nonlocal inside
        async with lock as held:
            inside += 1
            assert inside == 1
            order.append(number)
            tokens.append(held.fencing_token)
            await kv.get("a round trip")
            inside -= 1

    tasks = []
    async with Lock(kv, NAME) as held:
        tokens.append(held.fencing_token)
        for number in range(8):
            client = await connect()
            tasks.append(asyncio.ensure_future(work(number, Lock(client, NAME))))
            await queue_length(kv, number + 2)
    await asyncio.gather(*tasks)
    assert order == list(range(8))
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == len(tokens)


async def test_a_release_wakes_one_waiter(kv: Client, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    original = Contender._woken

    def count(self: Contender, error: Exception | None) -> None:
        if self._wake is not None:
            woken.append(self.key.decode())
        original(self, error)  # type: ignore[arg-type]

    monkeypatch.setattr(Contender, "_woken", count)
    session = await Session(kv, ttl=30).open()
    locks = [Lock(kv, NAME, session=session) for _ in range(10)]
    await locks[0].acquire()
    waiting = []
    for number, lock in enumerate(locks[1:], 1):
        waiting.append(asyncio.ensure_future(lock.acquire()))
        await queue_length(kv, number + 1)
    await locks[0].release()
    await waiting[0]
    assert len(woken) == 1
    for task, lock in zip(waiting, locks[1:], strict=True):
        await task
        await lock.release()
    assert len(woken) == 9
    await session.close()


async def test_two_tasks_of_one_session_exclude_each_other(kv: Client) -> None:
    async with Session(kv) as session:
        first, second = Lock(kv, NAME, session=session), Lock(kv, NAME, session=session)
        await first.acquire()
        assert await second.try_acquire() is None
        waiter = asyncio.ensure_future(second.acquire())
        await queue_length(kv, 2)
        await first.release()
        await asyncio.wait_for(waiter, SECONDS)
        await second.release()
        assert session.remaining > 0


async def test_try_acquire(kv: Client) -> None:
    lock, other = Lock(kv, NAME), Lock(kv, NAME)
    held = await lock.try_acquire()
    assert held is not None
    assert await other.try_acquire() is None
    assert await queue(kv) == [held.key]
    await lock.release()
    assert await other.try_acquire() is not None
    await other.release()


async def test_timeout_leaves_nothing_behind(kv: Client) -> None:
    async with Lock(kv, NAME) as held:
        with pytest.raises(AcquireTimeoutError, match=r"'jobs/nightly' was not acquired in 0.1 s") as caught:
            await Lock(kv, NAME).acquire(timeout=0.1)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(AcquireTimeoutError):
            async with Lock(kv, NAME, timeout=0.1):
                pytest.fail("entered unheld")
        assert await queue(kv) == [held.key]


async def test_holder_and_waiters(kv: Client) -> None:
    lock = Lock(kv, NAME, owner="me")
    assert await lock.holder() is None
    async with lock as held:
        holder = await lock.holder()
        assert holder is not None
        assert (holder.key, holder.text) == (held.key, "me")
        waiter = asyncio.ensure_future(Lock(kv, NAME, owner="other").acquire())
        await queue_length(kv, 2)
        assert [item.text for item in await lock.waiters()] == ["other"]
        waiter.cancel()
        await asyncio.wait({waiter})
        assert await lock.waiters() == []


async def test_reentrant_only_when_asked(kv: Client) -> None:
    lock = Lock(kv, NAME, reentrant=True)
    async with lock as outer:
        async with lock as inner:
            assert inner is outer
        assert await queue(kv) == [outer.key]
        with pytest.raises(RuntimeError, match="in use"):
            await asyncio.ensure_future(lock.acquire())  # another task
    plain = Lock(kv, NAME)
    async with plain:
        with pytest.raises(RuntimeError, match="reentrant=True"):
            await plain.acquire()
    async with plain:  # one after the other is fine
        pass
    with pytest.raises(NotHeldError):
        await plain.release()


async def test_names_do_not_touch_those_they_begin_with(kv: Client) -> None:
    async with Lock(kv, "q"), Lock(kv, "q2"), Lock(kv, "q/x"):
        pass


# cancellation


@pytest.mark.parametrize("moment", ["early", "late"])
@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("shared", [False, True])
async def test_cancelled_at_every_await_of_acquire(
    kv: Client, moment: Moment, contended: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()
    until_deleted = Contender._until_deleted

    async def note(self: Contender, before: KeyValue, revision: int) -> None:
        waits.set()
        await until_deleted(self, before, revision)

    monkeypatch.setattr(Contender, "_until_deleted", note)
    session = await Session(kv, ttl=30).open() if shared else None
    holding = Lock(kv, NAME)
    releases: list[asyncio.Task[None]] = []

    async def release_when_waited_for() -> None:
        waits.clear()
        await waits.wait()
        await holding.release()

    def make() -> Coroutine[Any, Any, HeldLock]:
        locks.append(Lock(kv, NAME, ttl=30, session=session))
        return locks[-1].acquire()

    async def check(number: int, outcome: str) -> None:
        if contended:
            for task in releases:
                task.cancel()
            if releases:
                await asyncio.wait(releases)
            releases.clear()
            if holding.held is not None:
                await holding.release()
        assert await queue(kv) == [], f"await {number}: {outcome}"
        expected = base if session is None else base | {session.lease_id}
        assert set(await kv.leases()) == expected, f"await {number}: {outcome}"
        assert not kv._core.watches._subscriptions
        if contended:
            await holding.acquire()
            releases.append(asyncio.ensure_future(release_when_waited_for()))

    async def release(held: HeldLock) -> None:
        await locks[-1].release()

    base = set(await kv.leases()) - ({session.lease_id} if session else set())
    locks: list[Lock] = []
    if contended:
        await holding.acquire()
        releases.append(asyncio.ensure_future(release_when_waited_for()))
    count = await at_every_await(make, check, moment=moment, unless_done=release)
    assert count >= (1 if shared else 2) + (2 if contended else 0)
    if contended:
        for task in releases:
            task.cancel()
        await asyncio.wait(releases)
        await holding.release()
    if session is not None:
        assert session.remaining > 0
        await session.close()


@pytest.mark.parametrize("moment", ["early", "late"])
@pytest.mark.parametrize("shared", [False, True])
async def test_cancelled_at_every_await_of_release(kv: Client, moment: Moment, shared: bool) -> None:
    session = await Session(kv, ttl=30).open() if shared else None
    base = set(await kv.leases())
    number = 0
    while True:
        number += 1
        lock = Lock(kv, NAME, ttl=30, session=session)
        await lock.acquire()
        cancelling: CancelAt[bool] = CancelAt(lock.release(), number, moment)

        async def run(awaitable: CancelAt[bool] = cancelling) -> bool:
            return await awaitable

        await asyncio.wait({asyncio.ensure_future(run())})
        assert await queue(kv) == [], f"await {number}"
        assert set(await kv.leases()) == base, f"await {number}"
        if not cancelling.hit:
            break
    assert number > 1
    if session is not None:
        await session.close()


async def test_a_waiter_cancelled_during_an_outage_leaves_nothing(
    endpoint: str, namespace: str, connect: Connect
) -> None:
    observer = await connect()
    async with (
        Lock(observer, NAME) as held,
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
    ):
        waiter = asyncio.ensure_future(Lock(kv, NAME, ttl=30).acquire())
        await queue_length(observer, 2)
        proxy.cut()
        waiter.cancel()
        await asyncio.sleep(0)
        assert not waiter.done()  # it may not leave before its key has
        proxy.restore()
        await asyncio.wait({waiter}, timeout=SECONDS)
        assert waiter.cancelled()
        assert await queue(observer) == [held.key]


async def test_an_acquire_whose_answer_is_lost_recognises_itself(
    endpoint: str, namespace: str, connect: Connect
) -> None:
    observer = await connect()
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        Session(kv, ttl=30) as session,
    ):
        lock = Lock(kv, NAME, session=session)
        async with observer.watch(NAME, prefix=True) as events:
            proxy.hold_answers()
            acquiring = asyncio.ensure_future(lock.acquire())
            queued = await events.next(SECONDS)
            proxy.drop()
            proxy.restore()
            held = await asyncio.wait_for(acquiring, SECONDS)
        assert (held.key, held.fencing_token) == (queued.key, queued.item.create_revision)
        assert await queue(observer) == [held.key]
        await lock.release()
        assert await queue(observer) == []


async def test_cancelled_while_the_outcome_is_unknown(endpoint: str, namespace: str, connect: Connect) -> None:
    observer = await connect()
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        async with observer.watch(NAME, prefix=True) as events:
            lock = Lock(kv, NAME, ttl=30)
            acquiring = asyncio.ensure_future(lock.acquire())
            await events.next(SECONDS)
            proxy.drop()
            acquiring.cancel()
            await asyncio.wait({acquiring}, timeout=SECONDS)
        if not acquiring.cancelled():
            await lock.release()
        assert await queue(observer) == []


# loss


HOLDER = """
import asyncio, sys
from recipes import Client, Lock, Put

async def main(endpoint, namespace, name):
    async with Client(endpoint, namespace=namespace) as kv, Lock(kv, name, ttl=2, on_lost="event") as held:
        print(held.fencing_token, flush=True)
        sys.stdin.readline()  # stopped and continued meanwhile
        lost = held.lost.is_set()
        wrote = await kv.txn(when=[held.guard()], then=[Put("result", "stale")])
        print(lost, wrote.succeeded, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_stopped_process_is_told_and_its_guarded_write_fails(kv: Client, endpoint: str, namespace: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, endpoint, namespace, NAME), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    token = int(await asyncio.wait_for(process.stdout.readline(), SECONDS))
    process.send_signal(signal.SIGSTOP)
    async with Lock(kv, NAME, timeout=SECONDS) as held:
        assert held.fencing_token > token
        process.stdin.write(b"go\n")
        process.send_signal(signal.SIGCONT)
        assert (await asyncio.wait_for(process.stdout.readline(), SECONDS)).split() == [b"True", b"False"]
        await process.wait()
    assert await kv.get("result") is None


async def test_loss_cancels_the_body_and_raises(kv: Client) -> None:
    with pytest.raises(SessionLostError, match="lock 'jobs/nightly' is no longer held"):
        async with Lock(kv, NAME) as held:
            await expire_session(held.session)
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await kv.get("and the task goes on")


async def test_loss_raises_also_when_the_body_ends_before_it_is_cancelled(kv: Client) -> None:
    with pytest.raises(SessionLostError):
        async with Lock(kv, NAME) as held:
            held.session._clock.lose("a test")  # type: ignore[union-attr]
            assert held.lost.is_set()
    await kv.get("and the task goes on")


async def test_an_exception_of_the_body_goes_first(kv: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Lock(kv, NAME) as held:
            held.session._clock.lose("a test")  # type: ignore[union-attr]
            assert held.lost.is_set()
            raise ZeroDivisionError
    await kv.get("and the task goes on")


async def test_a_cancellation_from_outside_stays_one(kv: Client) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with Lock(kv, NAME):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await entered.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await queue(kv) == []


async def test_giving_up_inside_the_body_is_no_loss(kv: Client) -> None:
    lock = Lock(kv, NAME)
    async with lock:
        assert await lock.release()
        assert await queue(kv) == []
        await kv.get("the body goes on")


async def test_somebody_deletes_the_key(kv: Client) -> None:
    with pytest.raises(SessionLostError, match="somebody deleted its key"):
        async with Lock(kv, NAME) as held:
            await kv.delete(held.key)
            await asyncio.Event().wait()


async def test_a_waiter_whose_session_is_expired_in_the_queue(kv: Client) -> None:
    async with Lock(kv, NAME) as held, Session(kv, ttl=30) as session:
        waiter = asyncio.ensure_future(Lock(kv, NAME, session=session).acquire())
        await queue_length(kv, 2)
        await expire_session(session)
        with pytest.raises(SessionLostError):
            await asyncio.wait_for(waiter, SECONDS)
        assert await queue(kv) == [held.key]


async def test_a_waiter_whose_key_is_deleted(kv: Client) -> None:
    async with Lock(kv, NAME):
        waiter = asyncio.ensure_future(Lock(kv, NAME).acquire())
        await queue_length(kv, 2)
        await kv.delete((await queue(kv))[1])
        with pytest.raises(SessionLostError, match="deleted while it waited"):
            await asyncio.wait_for(waiter, SECONDS)


async def test_a_shared_session_that_is_closed(kv: Client) -> None:
    session = await Session(kv).open()
    await session.close()
    with pytest.raises(SessionLostError, match="closed"):
        await Lock(kv, NAME, session=session).acquire()


async def test_the_wait_survives_dropped_connections_and_compaction(kv: Client, connect: Connect) -> None:
    other = await connect()
    lock = Lock(kv, NAME)
    await lock.acquire()
    mine = Lock(other, NAME)
    waiter = asyncio.ensure_future(mine.acquire())
    await queue_length(kv, 2)
    for _ in range(3):
        drop_connection(other)
        await other.get("a round trip")
    await kv.put("x", "1")
    await kv.put("x", "2")
    await compact(kv)
    drop_connection(other)
    await lock.release()
    await asyncio.wait_for(waiter, SECONDS)
    await mine.release()


async def test_a_release_during_an_outage_with_compaction_is_not_missed(
    endpoint: str, namespace: str, connect: Connect
) -> None:
    observer = await connect()
    async with FaultProxy(endpoint) as proxy, Client(proxy.endpoint, namespace=namespace) as kv:
        holder = Lock(observer, NAME)
        await holder.acquire()
        mine = Lock(kv, NAME, ttl=60)
        waiter = asyncio.ensure_future(mine.acquire())
        await queue_length(observer, 2)
        proxy.cut()
        await holder.release()
        await observer.put("x", "")
        await compact(observer)
        proxy.restore()
        held = await asyncio.wait_for(waiter, SECONDS)
        assert not held.lost.is_set()
        await mine.release()


async def test_a_guard_holds_in_another_namespace_of_the_store(kv: Client) -> None:
    async with Lock(kv.namespaced("locks/"), NAME) as held:
        assert await kv.txn(when=[held.guard()], then=[Put("k", "v")])


# interop


async def test_waits_for_etcdctl_and_etcdctl_waits_for_it(
    kv: Client, endpoint: str, namespace: str, etcdctl: str
) -> None:
    before = set(await kv.leases())
    theirs = await asyncio.create_subprocess_exec(
        *(etcdctl, "--endpoints", endpoint, "lock", namespace + NAME), stdout=subprocess.PIPE
    )
    assert theirs.stdout is not None
    key = (await asyncio.wait_for(theirs.stdout.readline(), SECONDS)).decode().strip()
    assert key.startswith(f"{namespace}{NAME}/")
    lock = Lock(kv, NAME)
    assert await lock.try_acquire() is None
    waiting = asyncio.ensure_future(lock.acquire())
    await queue_length(kv, 2)
    second = await asyncio.create_subprocess_exec(
        *(etcdctl, "--endpoints", endpoint, "lock", namespace + NAME), stdout=subprocess.PIPE
    )
    await queue_length(kv, 3)
    theirs.terminate()  # etcdctl releases on SIGTERM
    held = await asyncio.wait_for(waiting, SECONDS)
    assert (await queue(kv))[0] == held.key
    assert second.stdout is not None
    await lock.release()
    assert (await asyncio.wait_for(second.stdout.readline(), SECONDS)).strip()
    second.terminate()
    await theirs.wait()
    await second.wait()
    for lease in set(await kv.leases()) - before:  # etcdctl leaves some to expire
        await kv.revoke_lease(lease)
    await queue_length(kv, 0)


async def test_together_with_the_lock_service(kv: Client, namespace: str) -> None:
    from kvserver.proto import lock_pb2

    lock = Lock(kv, NAME)
    await lock.acquire()
    lease = await kv.grant_lease(60)
    theirs = asyncio.ensure_future(
        kv.rpc.lock.lock(lock_pb2.LockRequest(name=(namespace + NAME).encode(), lease=lease), timeout=SECONDS)
    )
    await queue_length(kv, 2)
    assert not theirs.done()
    await lock.release()
    answer = await theirs
    assert await lock.try_acquire() is None
    await kv.rpc.lock.unlock(lock_pb2.UnlockRequest(key=answer.key))
    assert await lock.try_acquire() is not None
    await lock.release()
    await kv.revoke_lease(lease)
