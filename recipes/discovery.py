"""Finding the instances of a service: a view kept in memory, current, and usable while the servers are away.

The view lists at a revision and follows from there (:mod:`recipes.mirror`); it never asks a server when it is read. A
record that cannot be read is left out, logged and counted, and hurts no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from recipes.balancing import RoundRobin, Strategy
from recipes.client.client import Client
from recipes.client.keys import to_text
from recipes.errors import ClientError, NoInstanceError
from recipes.instance import Instance, Status, decode_instance, service_prefix
from recipes.mirror import Change, Mirror

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InstanceChange:
    """One change of a view.

    Attributes:
        kind: What happened.
        instance: The instance as it is now, or was last.
        revision: The revision at which the view saw it.
    """

    kind: Literal["added", "changed", "removed"]
    instance: Instance
    revision: int


Listener = Callable[[InstanceChange], None]


class Discovery:
    """The live instances of a service; made by ``Registry.discover``.

    Args:
        client: The client.
        service: The service's name.
        strategy: How :meth:`pick` chooses.
        tags: Only instances that have all of these.

    ::

        async with Registry(kv).discover("payments") as payments:
            instance = payments.pick()
    """

    def __init__(
        self, client: Client, service: str, *, strategy: Strategy | None = None, tags: Iterable[str] = ()
    ) -> None:
        prefix = service_prefix(service)
        self.service = service
        self.invalid_records = 0
        self._strategy = strategy if strategy is not None else RoundRobin()
        self._tags = frozenset(tags)
        self._cut = len(client.namespace) + len(prefix.encode())
        self._instances: dict[str, Instance] = {}
        self._ready: tuple[Instance, ...] | None = None
        self._outstanding: dict[str, int] = {}
        self._listeners: list[Listener] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._error: ClientError | None = None
        self._mirror = Mirror(client, prefix.encode(), on_change=self._changed, on_failed=self._failed)

    # reading

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All known instances, ordered by id, whatever their status."""
        return tuple(self._instances[key] for key in sorted(self._instances))

    @property
    def available(self) -> tuple[Instance, ...]:
        """The instances that want calls, ordered by id."""
        if self._ready is None:
            self._ready = tuple(instance for instance in self.instances if instance.status is Status.UP)
        return self._ready

    @property
    def revision(self) -> int:
        """The revision up to which the view is known to be current."""
        return self._mirror.revision

    @property
    def stale_seconds(self) -> float:
        """For how long the view has been out of touch with the servers; 0 while it is in touch."""
        return self._mirror.stale_seconds

    def pick(self, *, strategy: Strategy | None = None) -> Instance:
        """Choose an instance for a call.

        Args:
            strategy: Choose by this one instead of the view's.

        Raises:
            NoInstanceError: no instance wants calls.
        """
        available = self.available
        if not available:
            others = f"; {len(self._instances)} known, none of them up" if self._instances else ""
            raise NoInstanceError(f"service {self.service!r} has no instance{others}; wait_for() waits for one")
        return (strategy or self._strategy).pick(available, self._outstanding)

    @asynccontextmanager
    async def borrow(self, *, strategy: Strategy | None = None) -> AsyncIterator[Instance]:
        """Choose an instance and count it as busy during the body.

        Raises:
            NoInstanceError: no instance wants calls.
        """
        instance = self.pick(strategy=strategy)
        counts = self._outstanding
        counts[instance.id] = counts.get(instance.id, 0) + 1
        try:
            yield instance
        finally:
            counts[instance.id] -= 1
            if not counts[instance.id]:
                del counts[instance.id]

    async def wait_for(
        self, condition: Callable[[Discovery], bool] | None = None, *, timeout: float | None = None
    ) -> Discovery:
        """Wait until a condition holds, looking at each change.

        Args:
            condition: What to wait for; by default that an instance wants calls.
            timeout: Seconds to wait; for ever when None.

        Raises:
            TimeoutError: it did not come true in time.
        """
        holds = condition if condition is not None else _has_available
        async with asyncio.timeout(timeout):
            while not holds(self):
                if self._error is not None:
                    raise self._error
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)
        return self

    def on_change(self, listener: Listener) -> Listener:
        """Have ``listener(change)`` called on the loop at each change; usable as a decorator. It must not block."""
        self._listeners.append(listener)
        return listener

    # following

    def _changed(self, changes: list[Change]) -> None:
        told = []
        for change in changes:
            instance_id = to_text(change.key[self._cut :])
            before = self._instances.get(instance_id)
            after = None if change.new is None else self._read(instance_id, change.new.value)
            if after is not None:
                self._instances[instance_id] = after
                if before != after:
                    told.append(InstanceChange("changed" if before else "added", after, change.revision))
            elif before is not None:
                del self._instances[instance_id]
                told.append(InstanceChange("removed", before, change.revision))
        self._ready = None
        for happened in told:
            for listener in list(self._listeners):
                try:
                    listener(happened)
                except Exception:
                    logger.exception("service %s: a listener failed", self.service)
        self._wake()

    def _read(self, instance_id: str, value: bytes) -> Instance | None:
        try:
            instance = decode_instance(self.service, instance_id, value)
        except (ValueError, TypeError) as error:
            self.invalid_records += 1
            logger.warning("service %s: the record of %s is left out: %s", self.service, instance_id, error)
            return None
        return instance if self._tags.issubset(instance.tags) else None

    def _failed(self, error: ClientError) -> None:
        self._error = error
        logger.error("service %s: the view no longer follows: %s", self.service, error)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # life

    async def open(self) -> Discovery:
        """List the instances and begin to follow.

        Raises:
            ClientError: the servers could not be asked.
        """
        await self._mirror.start()
        return self

    async def close(self) -> None:
        """Stop following."""
        await self._mirror.close()

    async def __aenter__(self) -> Discovery:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Discovery({self.service!r}, {len(self._instances)} instances, revision={self.revision})"


def _has_available(view: Discovery) -> bool:
    return bool(view.available)
