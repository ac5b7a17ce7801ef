"""Leader election: a lock with a value that everybody can follow.

Keys and order are those of :mod:`recipes.contender`; the key's value is what the candidate proposes. Works together
with ``etcdctl elect``, Go's ``concurrency.Election`` and the servers' election service on the same name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

from kvserver.proto import kv_pb2
from recipes.client.client import Client
from recipes.client.keys import to_bytes, to_text
from recipes.client.txn import CreateRevision, Put
from recipes.client.types import KeyValue
from recipes.contender import Contender, queue_prefix
from recipes.errors import AcquireTimeoutError, ClientError, LeaseNotFoundError, NotLeaderError
from recipes.held import Body, Held, OnLost
from recipes.lock import default_owner
from recipes.mirror import Change, Mirror
from recipes.session import Session


class Leader:
    """Who leads, as seen by an observer.

    Attributes:
        item: The leader's key; its ``create_revision`` is the fencing token.
    """

    __slots__ = ("item",)

    def __init__(self, item: KeyValue) -> None:
        self.item = item

    @property
    def key(self) -> str:
        """The leader's key."""
        return self.item.key

    @property
    def value(self) -> bytes:
        """What the leader proclaims."""
        return self.item.value

    @property
    def text(self) -> str:
        """What the leader proclaims, as text."""
        return self.item.text

    @property
    def fencing_token(self) -> int:
        """A number that grows with every leader."""
        return self.item.create_revision

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Leader) and self.item == other.item

    def __hash__(self) -> int:
        return hash(self.item)

    def __repr__(self) -> str:
        return f"Leader({self.value!r}, fencing_token={self.fencing_token})"


class Leadership(Held):
    """A leadership that is held; made by :class:`Election`."""

    def __init__(self, client: Client, contender: Contender, session: Session, own: Session | None, what: str) -> None:
        super().__init__(contender, session, what=what)
        self._client = client
        self._own = own
        self._resigned = False

    async def proclaim(self, value: str | bytes) -> None:
        """Change what the leader proclaims; the leadership goes on.

        Raises:
            NotLeaderError: it does not lead any more.
            OutcomeUnknownError: the answer was lost.
        """
        if self._resigned or self.lost.is_set():
            raise NotLeaderError(f"cannot proclaim: {self.lost_error()}")
        key = self._contender.key
        try:
            result = await self._client.txn(
                when=[CreateRevision(key) == self.fencing_token], then=[Put(key, value, lease=self.session)]
            )
        except LeaseNotFoundError:
            raise NotLeaderError(f"cannot proclaim: {self._what} is no longer held, its lease is gone") from None
        if not result:
            raise NotLeaderError(f"cannot proclaim: {self.lost_error()}")

    async def resign(self) -> bool:
        """Give the leadership up. Runs to its end despite cancellation; may be called again.

        Returns:
            Whether it led until now; False when the leadership had been lost.
        """
        if self._resigned:
            return False
        self._resigned = True
        self._dismiss()
        try:
            return await self._contender.leave()
        finally:
            self.lost.set()
            if self._own is not None:
                await self._own.close()


class Election:
    """An election for a name.

    Args:
        client: The client.
        name: What is led, below the client's namespace.
        ttl: Seconds after which another candidate leads when this process dies; for sessions of the election's own.
        session: A session to stand with, instead of one for each campaign.
        on_lost: What a loss does to the body of ``async with election.lead(...)``: ``"cancel"`` or ``"event"``.

    ::

        election = Election(kv, "elections/reports", ttl=10)
        async with election.lead("10.0.0.5:8443") as leadership:
            await kv.txn(when=[leadership.guard()], then=[Put("report", "...")])

        async for leader in election.observe():
            print(leader.text if leader else "nobody leads")
    """

    def __init__(
        self,
        client: Client,
        name: str | bytes,
        *,
        ttl: int = 10,
        session: Session | None = None,
        on_lost: OnLost = "cancel",
    ) -> None:
        if on_lost not in ("cancel", "event"):
            raise ValueError(f'on_lost={on_lost!r}: give "cancel" or "event"')
        self._client = client
        self._name = name
        self._prefix = queue_prefix(name)
        self._ttl = ttl
        self._session = session
        self._on_lost = on_lost

    @property
    def _text(self) -> str:
        return repr(to_text(to_bytes(self._name)))

    async def campaign(self, value: str | bytes | None = None, *, timeout: float | None = None) -> Leadership:
        """Stand for election and wait to be elected.

        Args:
            value: What to proclaim; host and process id by default.
            timeout: Seconds to wait; for ever when None.

        Raises:
            AcquireTimeoutError: the time passed. The candidacy is withdrawn.
            SessionLostError: the session ended; a candidate without one stands no longer.
            ClientError: the servers refused.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._campaign(default_owner() if value is None else value)
        except TimeoutError as error:
            if timeout is None or isinstance(error, ClientError):
                raise
            raise AcquireTimeoutError(
                f"not elected leader of {self._text} in {timeout:g} s; somebody else leads"
            ) from None

    async def _campaign(self, value: str | bytes) -> Leadership:
        session = self._session
        own = None
        contender = None
        try:
            if session is None:
                session = own = Session(self._client, ttl=self._ttl)
                await session.open()
            contender = Contender(self._client, self._name, session, value)
            if not await contender.enter():
                await contender.wait_until_first()
            session.check()
        except BaseException:
            if contender is not None:
                await contender.abandon(end_session=own is not None)
            elif own is not None:
                await own.close()
            raise
        return Leadership(self._client, contender, session, own, f"leadership of {self._text}")

    def lead(self, value: str | bytes | None = None, *, timeout: float | None = None) -> LeadContext:
        """Answer a context manager that campaigns, runs its body while leader, and resigns.

        On loss the body is cancelled and :class:`~recipes.errors.SessionLostError` raised, unless ``on_lost="event"``.
        """
        return LeadContext(self, value, timeout, self._on_lost)

    async def leader(self, *, timeout: float | None = None) -> Leader | None:
        """Answer who leads now, None when nobody does."""
        result = await self._client.range(self._prefix, prefix=True, sort_by="create", limit=1, timeout=timeout)
        return None if result.first is None else Leader(result.first)

    async def observe(self) -> AsyncIterator[Leader | None]:
        """Follow who leads: yields the present leader, or None, at once, then each change and each proclamation.

        Never yields an older leader after a newer one. A slow reader misses nothing but may lag behind.
        """
        observer = _Observer(self._client, self._prefix)
        try:
            await observer.mirror.start()
            while True:
                yield await observer.next()
        finally:
            await observer.mirror.close()


class LeadContext:
    """The context manager behind :meth:`Election.lead`."""

    def __init__(self, election: Election, value: str | bytes | None, timeout: float | None, on_lost: OnLost) -> None:
        self._election = election
        self._value = value
        self._timeout = timeout
        self._on_lost = on_lost
        self._leadership: Leadership | None = None
        self._body: Body | None = None

    async def __aenter__(self) -> Leadership:
        self._leadership = await self._election.campaign(self._value, timeout=self._timeout)
        if self._on_lost == "cancel":
            self._body = Body(self._leadership)
        return self._leadership

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._body is not None:
                await self._body.leave(kind)
        finally:
            if self._leadership is not None:
                await self._leadership.resign()


class _Observer:
    """The leaders in their order: the smallest create revision after each revision of the prefix."""

    def __init__(self, client: Client, prefix: bytes) -> None:
        self._cut = len(client.namespace)
        self._candidates: dict[bytes, kv_pb2.KeyValue] = {}
        self._queue: deque[Leader | None] = deque()
        self._last: Leader | None = None
        self._told = False
        self._wake: asyncio.Future[None] | None = None
        self._error: ClientError | None = None
        self.mirror = Mirror(client, prefix, on_change=self._changed, on_failed=self._failed)

    def _changed(self, changes: list[Change]) -> None:
        revision = 0
        for change in changes:
            if revision and change.revision != revision:
                self._look()
            revision = change.revision
            if change.new is None:
                self._candidates.pop(change.key, None)
            else:
                self._candidates[change.key] = change.new
        self._look()

    def _look(self) -> None:
        first = min(self._candidates.values(), key=_created, default=None)
        leader = None if first is None else Leader(KeyValue(first, self._cut))
        if self._told and leader == self._last:
            return
        self._told, self._last = True, leader
        self._queue.append(leader)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _failed(self, error: ClientError) -> None:
        self._error = error
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def next(self) -> Leader | None:
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._queue.popleft()


def _created(raw: kv_pb2.KeyValue) -> int:
    return raw.create_revision
