"""Service registration: a leased record per instance that stays as long as its process does.

A registration is a wish that a task keeps true: whatever happened (the session was lost, somebody deleted or
overwrote the key, the record was updated), it makes a session if there is none and puts the *current* record. Updates
are puts, never delete and create, so nobody who follows sees a gap.

The record is :mod:`recipes.instance`; finding instances is :mod:`recipes.discovery`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, TracebackType

from kvserver.proto import kv_pb2
from recipes.balancing import Strategy
from recipes.client.channel import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN
from recipes.client.client import Client
from recipes.client.clock import SessionState
from recipes.client.txn import Delete, Lease
from recipes.client.watch import Subscription, WatchSpec
from recipes.discovery import Discovery
from recipes.errors import ClientError, LeaseNotFoundError
from recipes.finishing import finish
from recipes.instance import Instance, Status, encode_instance
from recipes.session import Session

logger = logging.getLogger(__name__)

ID_BYTES = 8
"""Random bytes in the id of an instance that was given none."""


class Registry:
    """Registers and finds services.

    Args:
        client: The client; services are below its namespace.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def register(
        self,
        service: str,
        address: str,
        *,
        instance_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        weight: float = 1.0,
        tags: Iterable[str] = (),
        version: str = "",
        status: Status | str = Status.UP,
        ttl: int = 10,
    ) -> Registration:
        """Answer a registration: ``async with`` it, or ``await open()`` and ``close()`` it.

        Args:
            service: The service's name.
            address: Where the instance is.
            instance_id: Its id; a random one by default. The same id replaces the earlier record.
            metadata: Texts about it.
            weight: Its share of calls.
            tags: Words to choose it by.
            version: The version of its software.
            status: Whether it wants calls.
            ttl: Seconds after which it is taken out when its process dies.

        ::

            async with Registry(kv).register("payments", "10.0.0.5:8443", metadata={"zone": "a"}, weight=2, ttl=10):
                await serve()
        """
        instance = Instance(
            service,
            secrets.token_hex(ID_BYTES) if instance_id is None else instance_id,
            address,
            MappingProxyType(dict(metadata or {})),
            weight,
            tuple(tags),
            version,
            Status(status),
        )
        return Registration(self._client, instance, ttl)

    def discover(self, service: str, *, strategy: Strategy | None = None, tags: Iterable[str] = ()) -> Discovery:
        """Answer a view of a service's instances: ``async with`` it.

        Args:
            service: The service's name.
            strategy: How ``pick()`` chooses; :class:`~recipes.balancing.RoundRobin` by default.
            tags: Only instances that have all of these.
        """
        return Discovery(self._client, service, strategy=strategy, tags=tags)


class Registration:
    """One instance, kept registered until closed; made by ``Registry.register``.

    Attributes:
        registrations: How many times the record was put because it was not there.
    """

    def __init__(self, client: Client, instance: Instance, ttl: int) -> None:
        self._client = client
        self._instance = instance
        self._key = instance.key.encode()
        self._ttl = ttl
        self._session: Session | None = None
        self._subscription: Subscription | None = None
        self._put_revision = 0
        self._stored: Instance | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._dirty = False
        self._closing = False
        self._waiters: set[asyncio.Future[None]] = set()
        self.registrations = 0

    @property
    def instance(self) -> Instance:
        """The record as it is meant to be."""
        return self._instance

    @property
    def session(self) -> Session | None:
        """The session that keeps the record now, None between two."""
        return self._session

    async def update(
        self,
        *,
        address: str | None = None,
        metadata: Mapping[str, str] | None = None,
        weight: float | None = None,
        tags: Sequence[str] | None = None,
        version: str | None = None,
        status: Status | str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Change parts of the record, and wait until it is stored.

        Args:
            address: A new address; likewise the others.
            timeout: Seconds to wait; for ever when None. The change stays wished for when they pass.

        Raises:
            TimeoutError: the servers could not be told in time.
        """
        instance = self._instance
        self._instance = replace(
            instance,
            address=instance.address if address is None else address,
            metadata=instance.metadata if metadata is None else MappingProxyType(dict(metadata)),
            weight=instance.weight if weight is None else weight,
            tags=instance.tags if tags is None else tuple(tags),
            version=instance.version if version is None else version,
            status=instance.status if status is None else Status(status),
        )
        self._touch()
        await self.registered(timeout=timeout)

    async def registered(self, *, timeout: float | None = None) -> None:
        """Wait until the current record is stored under a live session.

        Raises:
            TimeoutError: it was not in time.
        """
        async with asyncio.timeout(timeout):
            while not self._is_true():
                if self._task is None or self._task.done():
                    raise RuntimeError("the registration is not open")
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)

    def _is_true(self) -> bool:
        session = self._session
        return (
            not self._dirty
            and session is not None
            and session.state is not SessionState.LOST
            and self._stored is self._instance
        )

    # keeping it true

    async def _keep(self) -> None:
        pause = BACKOFF_SECONDS_MIN
        while not self._closing:
            if self._is_true():
                pause = BACKOFF_SECONDS_MIN
                self._wake = asyncio.get_running_loop().create_future()
                try:
                    await self._wake
                finally:
                    self._wake = None
                continue
            try:
                await self._store()
            except (ClientError, OSError) as error:
                logger.warning("registration of %s: %s; trying again", self._instance.key, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, BACKOFF_SECONDS_MAX)
            except Exception:  # a closed client, or a defect: those who wait must not wait for ever
                logger.exception("registration of %s is no longer kept", self._instance.key)
                asyncio.get_running_loop().call_soon(self._wake_waiters)
                return

    async def _store(self) -> None:
        """Make a session if there is none, put the current record, follow the key."""
        session = self._session
        if session is None or session.state is SessionState.LOST:
            self._unfollow()
            if session is not None:
                self._session = None
                logger.info("registration of %s: %s", self._instance.key, session.lost_error())
                await session.close()
            session = Session(self._client, ttl=self._ttl)
            session.add_listener(self._session_changed)
            await session.open()
            self._session = session
        instance = self._instance
        self._dirty = False
        # Repeating this put after an unknown outcome is right: it writes what is meant to be there now, and the watch
        # below sees any late arrival of an earlier one.
        try:
            result = await self._client.put(self._key, encode_instance(instance), lease=session)
        except BaseException as error:
            self._dirty = True
            if isinstance(error, LeaseNotFoundError):
                session.probe()
            raise
        self._put_revision = result.revision
        self.registrations += 1
        if self._subscription is None or self._subscription.closed:
            spec = WatchSpec(self._client.namespace + self._key)
            self._subscription = self._client._core.watches.add(spec, _Sink(self), start_revision=result.revision + 1)
        self._stored = instance
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _touch(self) -> None:
        self._dirty = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _session_changed(self, state: SessionState) -> None:
        if state is SessionState.LOST and not self._closing:
            self._touch()

    def _unfollow(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    # what the watch tells

    def _key_changed(self, last: kv_pb2.Event) -> None:
        session = self._session
        stored = self._stored
        if last.kv.mod_revision <= self._put_revision or session is None or stored is None:
            return
        if last.type == kv_pb2.Event.DELETE:
            logger.info("registration of %s: somebody deleted it; putting it again", self._instance.key)
            self._touch()
        elif last.kv.lease not in (0, session.lease_id):
            # Two that overwrite each other in turn would help nobody. When the other one goes, its deletion is seen.
            logger.warning(
                "registration of %s: another process registered the same id; leaving it the record", self._instance.key
            )
        elif last.kv.lease == 0 or last.kv.value != encode_instance(self._instance):
            logger.info("registration of %s: somebody changed it; putting it again", self._instance.key)
            self._touch()

    def _watch_ended(self) -> None:
        if not self._closing:
            self._touch()  # compacted: put again, and watch from there

    # life

    async def open(self, *, timeout: float | None = None) -> Registration:
        """Register, and wait until the record is stored.

        Args:
            timeout: Seconds to wait; for ever when None.

        Raises:
            TimeoutError: it was not in time; nothing is left behind.
            ClientError: the servers refused.
        """
        if self._task is not None:
            raise RuntimeError("a registration is opened once: make a new one")
        try:
            async with asyncio.timeout(timeout):
                await self._store()
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"recipes-register {self._key!r}")
        return self

    async def close(self) -> None:
        """Take the record out. Runs to its end despite cancellation."""
        if self._closing:
            return
        self._closing = True
        self._unfollow()
        await finish(self._close())

    async def _close(self) -> None:
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        session, self._session = self._session, None
        if session is None:
            return
        try:
            if session.state is not SessionState.LOST:
                # Only if it is still ours: another process may have taken over the id.
                await self._client.txn(when=[Lease(self._key) == session.lease_id], then=[Delete(self._key)])
        except (ClientError, RuntimeError) as error:
            logger.info("registration of %s: %s; its lease ends it", self._instance.key, error)
        finally:
            await session.close()

    async def __aenter__(self) -> Registration:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Registration({self._instance.key!r}, {self._instance.status.value})"


class _Sink:
    """The watch of a registration's key."""

    __slots__ = ("_registration",)

    def __init__(self, registration: Registration) -> None:
        self._registration = registration

    def on_started(self, revision: int) -> None:
        pass

    def on_resumed(self) -> None:
        pass

    def on_interrupted(self) -> None:
        pass

    def on_events(self, events: Sequence[kv_pb2.Event]) -> None:
        self._registration._key_changed(events[-1])

    def on_failed(self, error: ClientError) -> None:
        self._registration._watch_ended()
