"""A lock for tasks, processes and machines; first come, first served.

Keys: ``<name>/<lease hex>-<unique id>``, the holder being the one created first (:mod:`recipes.contender`). Works
together with ``etcdctl lock``, Go's ``concurrency.Mutex`` and the servers' lock service on the same name.

No distributed lock can exclude a holder that was paused beyond its session: use :meth:`Held.guard
<recipes.held.Held.guard>` or the fencing token for what the lock protects.
"""

from __future__ import annotations

import asyncio
import os
import socket
from types import TracebackType

from recipes.client.client import Client
from recipes.client.keys import to_text
from recipes.client.types import KeyValue
from recipes.contender import Contender, first_of, queue_prefix
from recipes.errors import AcquireTimeoutError, ClientError, NotHeldError
from recipes.held import Body, Held, OnLost
from recipes.session import Session


def default_owner() -> str:
    """Answer who this process is, for people who look at keys: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


class HeldLock(Held):
    """A lock that is held."""


class Lock:
    """A lock on a name.

    One object stands for one acquisition at a time; tasks that compete each make their own. After a release it may be
    acquired again, at the end of the queue, with a new token.

    Args:
        client: The client.
        name: What is locked, below the client's namespace.
        ttl: Seconds after which others get the lock when this process dies; for a session of the lock's own.
        session: A session to hold the lock with, instead of one of its own; then ``ttl`` is the session's.
        on_lost: What a loss does to the body of ``async with``: ``"cancel"`` cancels it and raises
            :class:`~recipes.errors.SessionLostError`, ``"event"`` only sets ``held.lost``.
        owner: Text stored in the key for people who look; host and process id by default.
        timeout: Seconds that ``async with`` waits for the lock; for ever when None.
        reentrant: The task that holds it may acquire it again; it is released with the outermost.

    ::

        async with Lock(kv, "jobs/nightly", ttl=10) as held:
            await kv.txn(when=[held.guard()], then=[Put("result", "...")])
    """

    def __init__(
        self,
        client: Client,
        name: str | bytes,
        *,
        ttl: int = 10,
        session: Session | None = None,
        on_lost: OnLost = "cancel",
        owner: str | bytes | None = None,
        timeout: float | None = None,
        reentrant: bool = False,
    ) -> None:
        if on_lost not in ("cancel", "event"):
            raise ValueError(f'on_lost={on_lost!r}: give "cancel" or "event"')
        self._client = client
        self._name = name
        self._prefix = queue_prefix(name)
        self._shared = session
        self._ttl = ttl
        self._on_lost = on_lost
        self._owner = default_owner() if owner is None else owner
        self._timeout = timeout
        self._reentrant = reentrant
        self._task: asyncio.Task[object] | None = None
        self._depth = 0
        self._busy = False
        self._queued = False
        self._session: Session | None = None
        self._contender: Contender | None = None
        self._held: HeldLock | None = None
        self._bodies: list[Body | None] = []

    @property
    def held(self) -> HeldLock | None:
        """What is held now, None when nothing is."""
        return self._held

    async def acquire(self, *, timeout: float | None = None) -> HeldLock:
        """Wait for the lock.

        Args:
            timeout: Seconds to wait; for ever when None.

        Raises:
            AcquireTimeoutError: the time passed. Nothing is left in the queue.
            SessionLostError: the session ended while waiting.
            ClientError: the servers refused.
        """
        if (again := self._enter_again()) is not None:
            return again
        try:
            try:
                async with asyncio.timeout(timeout):
                    held = await self._acquire(wait=True)
            except TimeoutError as error:
                if timeout is None or isinstance(error, ClientError):
                    raise
                why = "it is held by somebody else" if self._queued else "the servers did not answer in time"
                raise AcquireTimeoutError(f"lock {self._text} was not acquired in {timeout:g} s; {why}") from None
        finally:
            self._busy = False
        assert held is not None
        return held

    async def try_acquire(self) -> HeldLock | None:
        """Take the lock if it is free at this moment; answer None when it is not.

        Raises:
            OutcomeUnknownError: the answer was lost; nothing is left in the queue.
            ClientError: the servers refused.
        """
        if (again := self._enter_again()) is not None:
            return again
        try:
            return await self._acquire(wait=False)
        finally:
            self._busy = False

    def _enter_again(self) -> HeldLock | None:
        task = asyncio.current_task()
        if self._held is not None and self._reentrant and self._task is task:
            self._held.check()
            self._depth += 1
            return self._held
        if self._busy or self._held is not None:
            raise RuntimeError(
                f"this Lock object for {self._text} is in use: make one object per acquisition "
                "(reentrant=True allows the holding task to acquire it again)"
            )
        self._busy = True
        return None

    async def _acquire(self, *, wait: bool) -> HeldLock | None:
        session = self._shared
        own = None
        self._queued = False
        contender = None
        try:
            if session is None:
                session = own = Session(self._client, ttl=self._ttl)
                await session.open()
            contender = Contender(self._client, self._name, session, self._owner)
            if wait:
                if not await contender.enter():
                    self._queued = True
                    await contender.wait_until_first()
                session.check()
            elif not await contender.enter_if_free():
                if own is not None:
                    await own.close()
                return None
        except BaseException:
            if contender is not None:
                await contender.abandon(end_session=own is not None)
            elif own is not None:
                await own.close()
            raise
        # From here to the end nothing awaits: a cancellation finds the lock either undone or held.
        self._session = own
        self._contender = contender
        self._held = HeldLock(contender, session, what=f"lock {self._text}")
        self._task = asyncio.current_task()
        self._depth = 1
        return self._held

    async def release(self) -> bool:
        """Give the lock up. Runs to its end despite cancellation.

        Returns:
            Whether it was held until now; False when it had been lost.

        Raises:
            NotHeldError: it is not held.
        """
        held, contender, session = self._held, self._contender, self._session
        if held is None or contender is None:
            raise NotHeldError(f"lock {self._text} is not held by this object")
        self._depth -= 1
        if self._depth:
            return not held.lost.is_set()
        self._held = self._contender = self._session = self._task = None
        held._dismiss()
        try:
            return await contender.leave()
        finally:
            held.lost.set()
            if session is not None:
                await session.close()

    async def holder(self) -> KeyValue | None:
        """Answer the key of who holds the lock now, whoever that is; its value is the owner's text, None when free."""
        get = first_of(self._prefix)
        result = await self._client.range(get.key, prefix=True, sort_by="create", limit=1)
        return result.first

    async def waiters(self) -> list[KeyValue]:
        """Answer the keys of those that wait, in the order in which they will get the lock."""
        result = await self._client.range(self._prefix, prefix=True, sort_by="create")
        return list(result)[1:]

    @property
    def _text(self) -> str:
        return repr(self._name if isinstance(self._name, str) else to_text(self._name))

    async def __aenter__(self) -> HeldLock:
        held = await self.acquire(timeout=self._timeout)
        self._bodies.append(Body(held) if self._on_lost == "cancel" else None)
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        body = self._bodies.pop()
        try:
            if body is not None:
                await body.leave(kind)
        finally:
            if self._held is not None:
                await self.release()

    def __repr__(self) -> str:
        return f"Lock({self._text}, {'held' if self._held is not None else 'not held'})"
