"""The play: five scenes, each ending with something that has to be true."""

from __future__ import annotations

import asyncio
import sys
import time

from examples.demo.roles import Settings
from examples.demo.stage import MissedCueError, Stage
from recipes import Client, ConfigInvalidError, Election, HotConfig, Lock, Put, RecipeError, Registry, Topic
from recipes.testing import EmbeddedNode


async def discovery(stage: Stage, kv: Client) -> str:
    """Services register; the one that dies disappears."""
    stage.heading("1. Service discovery: three processes register under leases, one is killed")
    async with Registry(kv).discover("payments") as payments:
        names = ["service-1", "service-2", "service-3"]
        await stage.start("service", *names)
        await payments.wait_for(lambda view: len(view.available) == 3, timeout=20)
        stage.note(f"view: {', '.join(f'{one.id} at {one.address}' for one in payments.available)}")
        stage.note(f"round robin picks: {', '.join(payments.pick().id for _ in range(4))}")
        await stage.kill("service-2")
        died = time.monotonic()
        await payments.wait_for(lambda view: len(view.available) == 2, timeout=20)
        stage.note(f"its lease ran out after {time.monotonic() - died:.1f} s: only two are left in the view")
        left = sorted(one.id for one in payments.available)
    if left != ["service-1", "service-3"]:
        raise MissedCueError(f"the view holds {left}")
    return "a dead instance leaves the view when its lease ends"


async def locking(stage: Stage, kv: Client) -> str:
    """Two workers contend; the holder dies; its token is fenced off."""
    stage.heading("2. A lock with fencing: the holder is killed, the next one gets a larger token")
    await stage.start("worker", "worker-1")
    first = int((await stage.expect("worker-1", "holds the lock")).split()[-1])
    await stage.expect("worker-1", "guarded write accepted")
    lock = Lock(kv, "jobs/nightly")
    async with asyncio.timeout(20), kv.watch("jobs/nightly/", prefix=True) as queue:
        await stage.start("worker", "worker-2")
        async for _ in queue:
            if await lock.waiters():
                break
    holder = await lock.holder()
    assert holder is not None
    stage.note(f"holder: {holder.text}; waiting: {', '.join(one.text for one in await lock.waiters())}")
    await stage.kill("worker-1")
    second = int((await stage.expect("worker-2", "holds the lock")).split()[-1])
    await stage.expect("worker-2", "released the lock")
    if second <= first:
        raise MissedCueError(f"fencing tokens went from {first} to {second}")
    stage.note(f"tokens grew from {first} to {second}: a store that checks them refuses the dead holder's late writes")
    return "a lock passes on when its holder dies, and tokens only grow"


async def election(stage: Stage, kv: Client) -> str:
    """Three candidates; the leader dies; another takes over."""
    stage.heading("3. Leader election: three candidates, the leader is killed, another takes over")
    names = ["candidate-1", "candidate-2", "candidate-3"]
    await stage.start("candidate", *names)
    leader, _ = await stage.expect_one_of(names, "leads")
    await stage.kill(leader)
    died = time.monotonic()
    successor, _ = await stage.expect_one_of([name for name in names if name != leader], "leads")
    stage.note(f"{successor} took over {time.monotonic() - died:.1f} s after the death of {leader}")
    now = await Election(kv, "elections/scheduler").leader()
    if now is None or now.text != successor:
        raise MissedCueError(f"the election shows {now}, not {successor}")
    return "a dead leader is replaced"


async def pubsub(stage: Stage, kv: Client) -> str:
    """A subscriber replays what it missed and follows."""
    stage.heading("4. Publish and subscribe: a late subscriber replays, then follows")
    orders = Topic(kv, "orders")
    for number in range(1, 4):
        await orders.publish(f"order {number}")
    stage.note("published order 1 to 3 before anybody listens")
    await stage.start("subscriber", "subscriber")
    await stage.expect("subscriber", "received order 3")
    await orders.publish("order 4")
    await stage.expect("subscriber", "received order 4")
    return "a subscriber sees every message in order, also those from before it came"


async def configuration(stage: Stage, kv: Client) -> str:
    """A change is taken over live; an invalid one is refused."""
    stage.heading("5. Hot configuration: a change is taken over live, an invalid one is refused")
    async with HotConfig(kv, "config/app", model=Settings, default=Settings(pool_size=4)) as config:
        await config.publish(Settings(pool_size=8))
        await stage.start("follower", "follower")
        await stage.expect("follower", "runs with pool_size=8")
        await config.publish(Settings(pool_size=16))
        await stage.expect("follower", "pool resized from 8 to 16")
        stage.note("somebody writes pool_size=-1 past all checks")
        await kv.put("config/app", '{"pool_size": -1}')
        await stage.expect("follower", "refused an invalid configuration")
        try:
            await config.publish(Settings.model_construct(pool_size=-2))
        except ConfigInvalidError:
            stage.note("publishing an invalid configuration is refused before it is written")
        else:
            raise MissedCueError("an invalid configuration was published")
    return "configuration changes live, and a bad one never takes effect"


async def transaction(stage: Stage, kv: Client) -> str:
    """A write guarded by a token that is no longer valid."""
    stage.heading("6. Why fencing matters: a write with a token that is no longer valid")
    async with Lock(kv, "jobs/fenced", ttl=5) as held:
        stale = held.guard()
    result = await kv.txn(when=[stale], then=[Put("results/fenced", "too late")])
    if result.succeeded:
        raise MissedCueError("a write guarded by a released lock was accepted")
    stage.note("the write was refused, although its author still believed in the lock")
    return "a guarded write of a former holder is refused"


async def run() -> int:
    """Play all scenes on an embedded node.

    Returns:
        The process's exit code.
    """
    started = time.monotonic()
    async with EmbeddedNode() as node, Client(node.endpoint) as kv, Stage(node.endpoint) as stage:
        print(f"A node serves on {node.endpoint}; try: etcdctl --endpoints {node.endpoint} get '' --prefix")
        proved: list[str] = []
        try:
            for scene in (discovery, locking, election, pubsub, configuration, transaction):
                proved.append(await scene(stage, kv))
        except (MissedCueError, RecipeError, TimeoutError) as error:
            print(f"\nThe tour failed: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        stage.heading(f"Done in {time.monotonic() - started:.0f} s. What you saw:")
        for fact in proved:
            stage.note(f"- {fact}")
    return 0


def main() -> int:
    """Run the tour; answers the exit code."""
    return asyncio.run(run())
