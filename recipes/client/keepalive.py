"""Keeping leases alive: one stream for all leases of a client, on the process's background loop or on the caller's.

Each lease is renewed every ttl/3, a little earlier by chance so that many do not fall into step. An answer belongs to
the oldest unanswered request for its lease on the stream. When the stream breaks, or a renewal is overdue
(SUSPENDED), the stream is made again, on the next endpoint; the lease stays. States follow
:mod:`recipes.client.clock`.

A hub belongs to one loop. ``add``, ``remove``, ``poke``, ``revoke_soon`` and ``close`` may be called from any thread;
a keeper's ``notify`` is called on the hub's loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import ParamSpec

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from kvserver.wire.client import ClientStream, GrpcError
from recipes.client.background import background_loop
from recipes.client.channel import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, Channel, ChannelConfig
from recipes.client.clock import LeaseClock, SessionState, now
from recipes.errors import ClientError, LeaseNotFoundError

logger = logging.getLogger(__name__)

P = ParamSpec("P")

TIMER_SECONDS_MIN = 0.01
"""Least pause between two looks at a lease, against rounding of timers."""

CLOSE_SECONDS_MAX = 1.0
"""How long closing waits for revocations under way; the leases expire anyway."""

_KEEPALIVE = b"/etcdserverpb.Lease/LeaseKeepAlive"
_REVOKE = b"/etcdserverpb.Lease/LeaseRevoke"


class LeaseKeeper:
    """One lease to keep alive.

    Args:
        lease_id: The lease.
        clock: Its local view, shared with whoever asks for the state.
        notify: Called on the hub's loop with each new state.
    """

    __slots__ = ("clock", "due_at", "lease_id", "notify", "state", "timer", "unanswered")

    def __init__(self, lease_id: int, clock: LeaseClock, notify: Callable[[SessionState], None]) -> None:
        self.lease_id = lease_id
        self.clock = clock
        self.notify = notify
        self.state = SessionState.CONNECTED
        self.due_at = 0.0
        self.unanswered: deque[float] = deque()
        self.timer: asyncio.TimerHandle | None = None


class KeepaliveHub:
    """Keeps the leases of one client alive.

    Args:
        config: How to reach the servers; the hub has a connection of its own.
        loop: The loop it lives on; the running one when None.
        rng: Chance for the moments of renewal.
    """

    def __init__(
        self,
        config: ChannelConfig,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._rng = rng if rng is not None else random.Random()
        self._channel = Channel(config, rng=self._rng)
        self._keepers: dict[int, LeaseKeeper] = {}
        self._stream: ClientStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._revoking: set[asyncio.Task[bool]] = set()

    # from any thread

    def add(self, keeper: LeaseKeeper) -> None:
        """Begin to renew a lease."""
        self._call(self._add, keeper)

    def remove(self, keeper: LeaseKeeper) -> None:
        """Stop renewing a lease."""
        self._call(self._remove, keeper)

    def poke(self, keeper: LeaseKeeper) -> None:
        """Renew a lease now, and so learn whether it still lives."""
        self._call(self._poke, keeper)

    def revoke_soon(self, lease_id: int, within_seconds: float) -> None:
        """Revoke a lease in the background, as well as that goes; for when nobody can wait for it."""
        self._call(self._begin_revoke, lease_id, within_seconds)

    def drop(self) -> None:
        """Cut the connection hard, as a network failure would; for tests."""
        self._call(self._channel.drop)

    async def close(self) -> None:
        """Stop renewing everything and close the connection."""
        if self._loop is asyncio.get_running_loop():
            await self._close()
        elif not self._loop.is_closed():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(), self._loop))

    def _call(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            self._loop.call_soon_threadsafe(lambda: function(*args, **kwargs))
        except RuntimeError:  # the loop is closed: its leases expire
            logger.debug("keepalive: the loop is closed")

    # on the hub's loop

    def _add(self, keeper: LeaseKeeper) -> None:
        self._keepers[keeper.lease_id] = keeper
        keeper.due_at = keeper.clock.acknowledged_at + self._interval(keeper)
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="recipes-keepalive")
        self._tick(keeper)

    def _remove(self, keeper: LeaseKeeper) -> None:
        if self._keepers.get(keeper.lease_id) is keeper:
            del self._keepers[keeper.lease_id]
        if keeper.timer is not None:
            keeper.timer.cancel()
            keeper.timer = None

    def _poke(self, keeper: LeaseKeeper) -> None:
        if keeper.lease_id in self._keepers:
            keeper.due_at = 0.0
            self._tick(keeper)

    def _interval(self, keeper: LeaseKeeper) -> float:
        return keeper.clock.ttl / 3 * (0.8 + 0.2 * self._rng.random())

    def _tick(self, keeper: LeaseKeeper) -> None:
        """Look at one lease: tell its state, renew it if due, come back when something can change."""
        if keeper.timer is not None:
            keeper.timer.cancel()
            keeper.timer = None
        if self._keepers.get(keeper.lease_id) is not keeper:
            return
        present = now()
        clock = keeper.clock
        if self._tell(keeper, clock.state(present)) is SessionState.LOST:
            return
        wake_at = clock.deadline if keeper.state is SessionState.SUSPENDED else clock.suspends_at
        if self._stream is not None:
            if present >= keeper.due_at:
                keeper.due_at = present + self._interval(keeper)
                keeper.unanswered.append(present)
                request = rpc_pb2.LeaseKeepAliveRequest(ID=keeper.lease_id)
                try:
                    self._stream.send(request.SerializeToString())
                except GrpcError:
                    pass  # the reader sees the end of the stream
            wake_at = min(wake_at, keeper.due_at)
        keeper.timer = self._loop.call_later(max(TIMER_SECONDS_MIN, wake_at - present), self._tick, keeper)

    def _tell(self, keeper: LeaseKeeper, state: SessionState, *, gone: bool = False) -> SessionState:
        if state is not keeper.state:
            keeper.state = state
            if state is SessionState.LOST:
                self._remove(keeper)
                if not gone:  # the server may hold it for a while yet; others need not wait for that
                    self._begin_revoke(keeper.lease_id, keeper.clock.ttl)
            elif state is SessionState.SUSPENDED and keeper.unanswered and self._stream is not None:
                logger.warning("keepalive: lease %x is overdue, trying another connection", keeper.lease_id)
                self._channel.leave("a keepalive is overdue")
                self._stream.cancel()
            keeper.notify(state)
        return state

    async def _run(self) -> None:
        attempt = 0
        try:
            while self._keepers:
                try:
                    stream = await self._channel.stream(_KEEPALIVE)
                except ClientError as error:
                    logger.warning("keepalive: %s", error.message)
                    attempt = await self._pause(attempt)
                    continue
                try:
                    self._open(stream)
                    while (message := await stream.recv()) is not None:
                        attempt = 0
                        self._receive(rpc_pb2.LeaseKeepAliveResponse.FromString(message))
                except GrpcError as error:
                    logger.info("keepalive stream broke: %s", error.message)
                finally:
                    self._stream = None
                    stream.cancel()
                if self._keepers:
                    attempt = await self._pause(attempt)
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _pause(self, attempt: int) -> int:
        if attempt:
            whole = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * (1 << min(attempt, 16)))
            await asyncio.sleep(whole * (0.5 + 0.5 * self._rng.random()))
        return attempt + 1

    def _open(self, stream: ClientStream) -> None:
        self._stream = stream
        for keeper in list(self._keepers.values()):
            if keeper.unanswered:
                keeper.unanswered.clear()
                keeper.due_at = 0.0
            self._tick(keeper)

    def _receive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        keeper = self._keepers.get(response.ID)
        if keeper is None:
            return
        if response.TTL <= 0:
            keeper.clock.lose("the server says that the lease expired or was revoked")
            self._tell(keeper, SessionState.LOST, gone=True)
            return
        if not keeper.unanswered:
            return  # an answer from before: its sending time is unknown
        self._tell(keeper, keeper.clock.acknowledge(keeper.unanswered.popleft(), response.TTL, now()))

    def _begin_revoke(self, lease_id: int, within_seconds: float) -> None:
        task = self._loop.create_task(revoke_quietly(self._channel, lease_id, within_seconds))
        self._revoking.add(task)
        task.add_done_callback(self._revoking.discard)

    async def _close(self) -> None:
        for keeper in list(self._keepers.values()):
            self._remove(keeper)
        if self._revoking:
            await asyncio.wait(self._revoking, timeout=CLOSE_SECONDS_MAX)
        task, self._task = self._task, None
        pending: list[asyncio.Task[bool] | asyncio.Task[None]] = [*self._revoking, *([] if task is None else [task])]
        for each in pending:
            each.cancel()
        if pending:
            await asyncio.wait(pending)
        await self._channel.close()


def background_hub(config: ChannelConfig) -> KeepaliveHub:
    """Answer a hub on the process's background loop."""
    return KeepaliveHub(config, background_loop())


async def revoke_quietly(channel: Channel, lease_id: int, within_seconds: float) -> bool:
    """Revoke a lease, trying again while the servers are away; answer whether it is surely gone."""
    request = rpc_pb2.LeaseRevokeRequest(ID=lease_id).SerializeToString()
    deadline = now() + within_seconds
    pause = BACKOFF_SECONDS_MIN
    while (remaining := deadline - now()) > 0:
        try:
            # Repeating a revocation is harmless: a revoked lease cannot come back.
            await channel.unary(_REVOKE, request, min(remaining, channel.config.timeout_seconds), read_only=True)
            return True
        except LeaseNotFoundError:
            return True
        except ClientError as error:
            if error.code in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED):
                logger.warning("lease %x could not be revoked: %s", lease_id, error)
                return False
            await asyncio.sleep(min(pause, max(0.0, deadline - now())))
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)
        except RuntimeError:
            return False  # the client was closed meanwhile; the lease expires
    return False
