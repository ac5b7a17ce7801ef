"""What the processes of the tour run: ordinary application code on the recipes, one function a role.

Each takes the node's address and the process's name, and says what it does on standard output.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, Field

from recipes import (
    Client,
    Election,
    HotConfig,
    Lock,
    Put,
    Registry,
    Resync,
    Topic,
)

TTL_SECONDS = 2


class Settings(BaseModel):
    """The configuration that one of the programs follows."""

    pool_size: int = Field(gt=0, le=100)
    greeting: str = "hello"


def say(text: str) -> None:
    """Print a line at once: the tour listens."""
    print(text, flush=True)


async def service(endpoint: str, name: str) -> None:
    """A service: registers itself under a lease and serves until it is killed."""
    async with (
        Client(endpoint) as kv,
        Registry(kv).register("payments", f"10.0.0.{name[-1]}:8443", instance_id=name, ttl=TTL_SECONDS),
    ):
        say("registered")
        await asyncio.Event().wait()


async def worker(endpoint: str, name: str) -> None:
    """A worker: takes the lock, and writes under the protection of its fencing token."""
    async with Client(endpoint) as kv:
        say("wants the lock")
        async with Lock(kv, "jobs/nightly", ttl=TTL_SECONDS, owner=name) as held:
            say(f"holds the lock, fencing token {held.fencing_token}")
            result = await kv.txn(when=[held.guard()], then=[Put("results/nightly", f"by {name}")])
            say(f"guarded write {'accepted' if result.succeeded else 'refused'}")
            # The first holder hangs in its work until it is killed; the next one finishes.
            if name == "worker-1":
                await asyncio.Event().wait()
        say("released the lock")


async def candidate(endpoint: str, name: str) -> None:
    """A candidate: leads when it is its turn, until it is killed."""
    async with Client(endpoint) as kv:
        say("campaigns")
        async with Election(kv, "elections/scheduler", ttl=TTL_SECONDS).lead(name) as leadership:
            say(f"leads, fencing token {leadership.fencing_token}")
            await asyncio.Event().wait()


async def subscriber(endpoint: str, name: str) -> None:
    """A subscriber: replays what was published before it came, then follows."""
    async with Client(endpoint) as kv, Topic(kv, "orders").subscribe(replay=True) as messages:
        say("subscribed")
        async for message in messages:
            if isinstance(message, Resync):
                say(f"missed messages up to offset {message.trimmed}")
            else:
                say(f"received {message.text}")


async def follower(endpoint: str, name: str) -> None:
    """A program that follows its configuration while it runs."""
    async with Client(endpoint) as kv, HotConfig(kv, "config/app", model=Settings) as config:

        @config.on_change("pool_size")
        def resize(old: int, new: int) -> None:
            say(f"pool resized from {old} to {new}")

        @config.on_invalid
        def refused(error: Exception) -> None:
            say(f"refused an invalid configuration, still at pool_size={config.current.pool_size}")

        say(f"runs with pool_size={config.current.pool_size}")
        await asyncio.Event().wait()


ROLES: dict[str, Callable[[str, str], Awaitable[None]]] = {
    "service": service,
    "worker": worker,
    "candidate": candidate,
    "subscriber": subscriber,
    "follower": follower,
}


async def play(role: str, endpoint: str, name: str) -> None:
    """Run one role; the tour ends the process."""
    if role not in ROLES:
        sys.exit(f"no role {role!r}; there are {', '.join(ROLES)}")
    await ROLES[role](endpoint, name)
