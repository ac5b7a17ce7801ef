"""A place in a queue: what Lock and Election are made of.

Contenders for a name each put a key ``<name>/<lease hex>-<unique id>``, kept by their session's lease. The one with the
smallest create revision holds; everybody else waits for the deletion of the key just before its own, and of that one
only, so that a release wakes one waiter. The create revision of the own key is the fencing token.

This is the layout of etcd's ``concurrency`` package, of ``etcdctl lock`` and ``elect`` and of the servers' own lock and
election services, which order by create revision below the same prefix; all of them can contend for one name.

Rules that keep it right, whatever is cancelled, lost or delayed:

- the key is chosen before the first attempt, so a repeated attempt recognises an earlier one whose answer was lost;
- steps that write run to their end before a cancellation counts (:mod:`recipes.finishing`), and are then taken back;
- if it cannot be confirmed that the key is gone, the session's lease is ended;
- after waking, one read checks that the own key still exists *and* that nobody is before it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence

from kvserver.proto import kv_pb2
from recipes.client.channel import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN
from recipes.client.client import Client
from recipes.client.clock import SessionState
from recipes.client.keys import to_bytes
from recipes.client.txn import Compare, CreateRevision, Delete, Get, Put
from recipes.client.types import KeyValue
from recipes.client.watch import Subscription, WatchSpec
from recipes.errors import (
    ClientError,
    CompactedError,
    DeadlineExceededError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    SessionLostError,
    UnavailableError,
)
from recipes.finishing import finish
from recipes.session import Session

logger = logging.getLogger(__name__)

UNIQUE_BYTES = 6
"""Random bytes in a contender's key: two tasks of one session have different keys."""


def queue_prefix(name: str | bytes) -> bytes:
    """Answer what the keys of all contenders for a name begin with.

    >>> queue_prefix("jobs/nightly")
    b'jobs/nightly/'
    """
    raw = to_bytes(name)
    if not raw:
        raise ValueError("the name is empty")
    return raw + b"/"


def first_of(prefix: bytes) -> Get:
    """Answer the read of the contender that holds."""
    return Get(prefix, prefix=True, sort_by="create", limit=1)


class Contender:
    """One place in the queue of a name.

    Args:
        client: The client, with the namespace in which the name is.
        name: What is contended for.
        session: What keeps the key alive.
        value: The key's value.

    Attributes:
        key: The key, relative to the client's namespace.
        token: The key's create revision; 0 before it is in the queue.
        deleted: Whether the key was seen to be deleted.
    """

    def __init__(self, client: Client, name: str | bytes, session: Session, value: str | bytes) -> None:
        self._client = client
        self._session = session
        self._value = value
        self._prefix = queue_prefix(name)
        self._uncertain = False
        self._entering = False
        self._own: Subscription | None = None
        self._wake: asyncio.Future[None] | None = None
        self._wake_error: ClientError | None = None
        self._on_deleted: Callable[[], None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self.key = self._prefix + f"{session.lease_id:x}-{secrets.token_hex(UNIQUE_BYTES)}".encode()
        self.token = 0
        self.deleted = False

    def guard(self) -> Compare:
        """Answer the condition that the key still exists: the fence for a txn."""
        compare = CreateRevision(self._client.namespace + self.key) == self.token
        return Compare(compare.target, compare.operator, compare.operand, absolute=True)

    # entering

    async def enter(self) -> bool:
        """Join the queue; answer whether nobody is before.

        Raises:
            SessionLostError: the session ended meanwhile.
        """
        self._entering = True
        return await finish(self._enter())

    async def _enter(self) -> bool:
        pause = BACKOFF_SECONDS_MIN
        while True:
            self._session.check()
            try:
                result = await self._client.txn(
                    when=[CreateRevision(self.key) == 0],
                    then=[Put(self.key, self._value, lease=self._session), first_of(self._prefix)],
                    otherwise=[Get(self.key), first_of(self._prefix)],
                    timeout=self._attempt_seconds(),
                )
            except LeaseNotFoundError:
                self._session.probe()
                raise self._lost("its lease expired or was revoked") from None
            except OutcomeUnknownError as error:
                self._uncertain = True
                logger.info("%s: %s; asking again", self.key, error)
            except (UnavailableError, DeadlineExceededError) as error:
                logger.info("%s: %s; trying again", self.key, error)
            except ClientError:
                self._entering = self._uncertain  # refused: there is nothing to take back
                raise
            else:
                break
            pause = await self._pause(pause)
        if result.succeeded:
            self.token = result.revision
        else:
            earlier = result.range(0).first
            if earlier is None:
                raise self._lost("its key vanished")
            self.token = earlier.create_revision
        self._follow_own_key(result.revision)
        first = result.range(1).first
        return first is not None and first.raw_key == self.key

    async def enter_if_free(self) -> bool:
        """Join the queue only if it is empty.

        Answer whether that was so. Nobody else ever waits for a failed attempt.
        """
        self._entering = True
        return await finish(self._enter_if_free())

    async def _enter_if_free(self) -> bool:
        self._session.check()
        try:
            result = await self._client.txn(
                when=[CreateRevision(self._prefix, prefix=True) == 0],
                then=[Put(self.key, self._value, lease=self._session)],
                timeout=self._attempt_seconds(),
            )
        except LeaseNotFoundError:
            self._session.probe()
            raise self._lost("its lease expired or was revoked") from None
        except OutcomeUnknownError:
            self._uncertain = True
            raise
        except ClientError:
            self._entering = False
            raise
        if result.succeeded:
            self.token = result.revision
            self._follow_own_key(result.revision)
        else:
            self._entering = False
        return result.succeeded

    # waiting

    async def wait_until_first(self) -> None:
        """Wait until nobody is before this contender.

        Raises:
            SessionLostError: the session or the key was lost while waiting.
        """
        self._session.add_listener(self._session_changed)
        try:
            while True:
                before, revision = await self._before()
                if before is None:
                    return
                await self._until_deleted(before, revision)
        finally:
            self._session.remove_listener(self._session_changed)

    async def _before(self) -> tuple[KeyValue | None, int]:
        """Answer who is just before, None when nobody; the same read proves that the own key exists."""
        pause = BACKOFF_SECONDS_MIN
        while True:
            self._session.check()
            try:
                result = await self._client.txn(
                    when=[CreateRevision(self.key) == self.token],
                    then=[
                        Get(
                            self._prefix,
                            prefix=True,
                            max_create_revision=self.token - 1,
                            sort_by="create",
                            descending=True,
                            limit=1,
                            keys_only=True,
                        )
                    ],
                    timeout=self._attempt_seconds(),
                )
            except (UnavailableError, DeadlineExceededError) as error:
                logger.info("%s: %s; trying again", self.key, error)
                pause = await self._pause(pause)
                continue
            if not result.succeeded:
                raise self._lost("its key was deleted while it waited")
            self._session.check()
            return result.range(0).first, result.revision

    async def _until_deleted(self, before: KeyValue, revision: int) -> None:
        wake = self._wake = asyncio.get_running_loop().create_future()
        self._wake_error = None
        key = self._client.namespace + before.raw_key
        subscription = self._client._core.watches.add(
            WatchSpec(key, puts=False), _WakeSink(self._woken), start_revision=revision + 1
        )
        try:
            if not self.deleted and self._session.state is not SessionState.LOST:
                await wake
        finally:
            subscription.close()
            self._wake = None
        if self._wake_error is not None:
            raise self._wake_error

    def _woken(self, error: ClientError | None) -> None:
        """Look again. A compacted watch is a reason to look again too; other failures are told."""
        if self._wake is not None and not self._wake.done():
            if error is not None and not isinstance(error, CompactedError):
                self._wake_error = error
            self._wake.set_result(None)

    def _session_changed(self, state: SessionState) -> None:
        if state is SessionState.LOST:
            self._woken(None)

    # the own key

    def _follow_own_key(self, revision: int) -> None:
        spec = WatchSpec(self._client.namespace + self.key, puts=False)
        self._own = self._client._core.watches.add(spec, _WakeSink(self._own_key_event), start_revision=revision + 1)

    def on_deleted(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called once when somebody else deletes the key, or its lease ends."""
        self._on_deleted = callback
        if self.deleted:
            callback()

    def _own_key_event(self, error: ClientError | None) -> None:
        if error is None:
            self._own_key_gone()
        elif isinstance(error, CompactedError) and self._checking is None:
            self._checking = asyncio.get_running_loop().create_task(self._check_own_key())

    async def _check_own_key(self) -> None:
        """The watch of the own key was compacted away: look, then watch from there."""
        try:
            pause = BACKOFF_SECONDS_MIN
            while self._session.state is not SessionState.LOST and self._own is not None:
                try:
                    result = await self._client.range(self.key)
                except (UnavailableError, DeadlineExceededError):
                    pause = await self._pause(pause)
                    continue
                if result.first is None or result.first.create_revision != self.token:
                    self._own_key_gone()
                elif self._own is not None:
                    self._follow_own_key(result.revision)
                return
        finally:
            self._checking = None

    def _own_key_gone(self) -> None:
        self.deleted = True
        self._woken(None)
        if self._on_deleted is not None:
            callback, self._on_deleted = self._on_deleted, None
            callback()

    # leaving

    async def leave(self) -> bool:
        """Take the key out of the queue; answer whether it was still there.

        Runs to its end despite cancellation. Gives up when the session's ttl has passed, since then the lease is gone.
        """
        self._stop_following()
        return await finish(self._leave(abandon=False))

    async def abandon(self, *, end_session: bool) -> None:
        """Undo an attempt that did not succeed: afterwards there is no key, or the session is ended.

        Runs to its end despite cancellation.

        Args:
            end_session: End the session anyway; its lease takes the key along.
        """
        self._stop_following()
        if end_session:
            await self._session.close()
        elif self._entering:
            await finish(self._leave(abandon=True))

    async def _leave(self, *, abandon: bool) -> bool:
        condition = CreateRevision(self.key) == self.token if self.token else CreateRevision(self.key) > 0
        pause = BACKOFF_SECONDS_MIN
        existed = False
        confirmed = False
        while self._session.state is not SessionState.LOST:
            try:
                result = await self._client.txn(
                    when=[condition], then=[Delete(self.key)], timeout=self._attempt_seconds()
                )
            except OutcomeUnknownError:
                existed = True  # cannot be known any more; repeating is harmless, the condition names this very key
            except (UnavailableError, DeadlineExceededError):
                pass
            except (ClientError, RuntimeError) as error:
                logger.warning("%s could not be removed: %s", self.key, error)
                break
            else:
                existed = existed or result.succeeded
                confirmed = True
                break
            pause = await self._pause(pause)
        if self._session.state is not SessionState.LOST and (not confirmed or (abandon and self._uncertain)):
            # An attempt whose answer was lost may yet arrive at the server; with the lease gone it cannot succeed.
            await self._session.close()
        return existed

    def _stop_following(self) -> None:
        self._on_deleted = None
        own, self._own = self._own, None
        if own is not None:
            own.close()
        if self._checking is not None:
            self._checking.cancel()

    # small things

    def _attempt_seconds(self) -> float:
        """No attempt outlives the session."""
        return max(0.05, min(self._client._core.config.timeout_seconds, self._session.remaining))

    async def _pause(self, pause: float) -> float:
        await asyncio.sleep(min(pause, max(0.01, self._session.remaining)))
        return min(2 * pause, BACKOFF_SECONDS_MAX)

    def _lost(self, reason: str) -> SessionLostError:
        if self._session.state is SessionState.LOST:
            return self._session.lost_error()
        return SessionLostError(f"{self.key.decode(errors='replace')} lost its place: {reason}")


class _WakeSink:
    """A watch of deletions that calls ``callback(None)`` at the first, or ``callback(error)`` at its end."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[ClientError | None], None]) -> None:
        self._callback = callback

    def on_started(self, revision: int) -> None:
        pass

    def on_events(self, events: Sequence[kv_pb2.Event]) -> None:
        if any(event.type == kv_pb2.Event.DELETE for event in events):
            self._callback(None)

    def on_interrupted(self) -> None:
        pass

    def on_resumed(self) -> None:
        pass

    def on_failed(self, error: ClientError) -> None:
        self._callback(error)
