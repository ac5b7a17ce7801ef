"""A session: a lease kept alive, and honest about being lost.

What a session keeps (a lock, a leadership, a registration) lives exactly as long as it does. The states and the
deadline are those of :class:`recipes.client.clock.LeaseClock`; the holder learns of a loss before the server can give
its keys to somebody else, also when the whole process was stopped: a look at ``state``, ``lost.is_set()`` or
``check()`` compares the clock, not a message.

The lease is renewed on a thread of its own, so an application whose loop is blocked keeps its session. With
``tied_to_loop=True`` it is renewed on the application's loop: then a loop that hangs loses it, which is the better
choice where "alive" is to mean "able to work".
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from types import TracebackType

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from recipes.client.client import Client
from recipes.client.clock import LeaseClock, SessionState, now
from recipes.client.keepalive import KeepaliveHub, LeaseKeeper, revoke_quietly
from recipes.errors import ClientError, OutcomeUnknownError, SessionLostError
from recipes.finishing import finish

logger = logging.getLogger(__name__)

Listener = Callable[[SessionState], None]

TTL_SECONDS_MIN = 2
"""The shortest TTL that servers grant; they raise shorter ones to their minimum."""

TTL_SECONDS_MAX = 9_000_000_000
"""The longest TTL that servers grant."""


class LostEvent(asyncio.Event):
    """An event that is set when something is lost; asking it looks at the clock.

    Args:
        probe: Answers whether the thing is lost now.
    """

    def __init__(self, probe: Callable[[], bool]) -> None:
        super().__init__()
        self._probe = probe
        self._callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called once, when it is set."""
        self._callbacks.append(callback)

    def set(self) -> None:
        """Set it, and call the callbacks."""
        super().set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        """Answer whether it is lost; right even on the first step after the process was stopped for long."""
        if not super().is_set() and self._probe():
            self.set()
        return super().is_set()


class Session:
    """A lease that is kept alive until it is closed or lost.

    Args:
        client: The client.
        ttl: Seconds the lease outlives its last renewal; whole seconds, 2 at least.
        tied_to_loop: Renew on the application's loop instead of a thread.

    Attributes:
        lost: Set when the session is lost or closed.

    ::

        async with Session(kv, ttl=10) as session:
            await kv.put("workers/7", "here", lease=session)
    """

    def __init__(self, client: Client, *, ttl: int = 10, tied_to_loop: bool = False) -> None:
        if not TTL_SECONDS_MIN <= ttl <= TTL_SECONDS_MAX:
            raise ValueError(f"ttl={ttl!r}: give whole seconds from {TTL_SECONDS_MIN} to {TTL_SECONDS_MAX}")
        self.client = client
        self.ttl = ttl
        self.lost = LostEvent(lambda: self.state is SessionState.LOST)
        self._tied = tied_to_loop
        self._lease_id = 0
        self._clock: LeaseClock | None = None
        self._keeper: LeaseKeeper | None = None
        self._listeners: list[Listener] = []
        self._told = SessionState.CONNECTED
        self._loop: asyncio.AbstractEventLoop | None = None

    # what it is

    @property
    def lease_id(self) -> int:
        """The lease's id.

        Raises:
            RuntimeError: the session was not opened.
        """
        if self._clock is None:
            raise RuntimeError('the session is not open: "async with Session(...)" or "await session.open()" first')
        return self._lease_id

    @property
    def state(self) -> SessionState:
        """The state at this moment."""
        return SessionState.LOST if self._clock is None else self._clock.state(now())

    @property
    def remaining(self) -> float:
        """Seconds for which the session surely lives if no renewal comes; 0 when lost."""
        if self._clock is None or self.state is SessionState.LOST:
            return 0.0
        return max(0.0, self._clock.deadline - now())

    def check(self) -> None:
        """Raise if the session is lost.

        Raises:
            SessionLostError: it is.
        """
        if self.state is SessionState.LOST:
            raise self.lost_error()

    def probe(self) -> None:
        """Renew at once, and so learn soon whether the lease still lives; for when something casts doubt on it."""
        if self._keeper is not None:
            self._hub().poke(self._keeper)

    def lost_error(self) -> SessionLostError:
        """Answer an error that says why the session is lost."""
        if self._clock is None:
            return SessionLostError("the session was never opened")
        return SessionLostError(f"session {self._lease_id:x} is lost: {self._clock.reason}; open a new one")

    def add_listener(self, listener: Listener) -> None:
        """Have ``listener(state)`` called on the loop at each change of state.

        It must not block; it may start tasks.
        """
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Stop calling a listener."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    # life

    async def open(self, *, timeout: float | None = None) -> Session:
        """Grant the lease and begin to keep it alive. Cancelling leaves no lease behind.

        Args:
            timeout: Seconds to try; the client's default when None.

        Raises:
            ClientError: no lease could be had.
        """
        if self._lease_id:
            raise RuntimeError("a session is opened once: make a new Session")
        self._loop = asyncio.get_running_loop()
        # Chosen here, so that a repeated grant recognises its own earlier attempt, and so that it can be taken back.
        self._lease_id = secrets.randbits(62) + 1
        try:
            await finish(self._grant(self.client._core.config.timeout_seconds if timeout is None else timeout))
        except BaseException:
            await self.close()
            raise
        return self

    async def _grant(self, timeout: float) -> None:
        request = rpc_pb2.LeaseGrantRequest(TTL=self.ttl, ID=self._lease_id)
        sent_at = now()
        repeated = False
        while True:
            try:
                response = await self.client.rpc.lease.grant(request, timeout=max(0.05, sent_at + timeout - now()))
                ttl = response.TTL
            except OutcomeUnknownError:
                if now() >= sent_at + timeout:
                    self.client._core.keepalives(own_thread=True).revoke_soon(self._lease_id, self.ttl)
                    raise
                repeated = True
                continue
            except ClientError as error:
                if not (repeated and error.code == Code.FAILED_PRECONDITION):
                    raise
                ttl = self.ttl  # it exists: the earlier attempt made it, not before sent_at
            break
        self._clock = LeaseClock(ttl, sent_at)
        self._keeper = LeaseKeeper(self._lease_id, self._clock, self._notify)
        self._hub().add(self._keeper)

    async def close(self) -> None:
        """Revoke the lease: everything it keeps is deleted at once. May be called again; survives cancellation."""
        clock, keeper = self._clock, self._keeper
        if clock is None or keeper is None:
            return
        self._keeper = None
        hub = self._hub()
        hub.remove(keeper)
        ended = clock.lose("it was closed")
        self._changed(SessionState.LOST)
        if not ended:
            hub.revoke_soon(self._lease_id, self.ttl)  # lost before; the server may not have noticed yet
            return
        try:
            await finish(revoke_quietly(self.client._core.channel, self._lease_id, self.ttl))
        except asyncio.CancelledError:
            raise
        except BaseException:
            hub.revoke_soon(self._lease_id, self.ttl)
            raise

    def _hub(self) -> KeepaliveHub:
        return self.client._core.keepalives(own_thread=not self._tied)

    def _notify(self, state: SessionState) -> None:
        """Called by the keeper on its loop."""
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._changed, state)
        except RuntimeError:
            logger.debug("session %x: its loop is closed", self._lease_id)

    def _changed(self, state: SessionState) -> None:
        if self._told is SessionState.LOST or self._told is state:
            return
        self._told = state
        if state is SessionState.LOST:
            self.lost.set()
        for listener in list(self._listeners):
            try:
                listener(state)
            except Exception:
                logger.exception("session %x: a listener failed", self._lease_id)

    async def __aenter__(self) -> Session:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Session({self._lease_id:x}, ttl={self.ttl}, {self.state.value})"
