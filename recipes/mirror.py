"""A prefix mirrored in memory: list at revision r, watch from r + 1, relist when compaction ate what is needed.

``state`` holds the keys below the prefix as of ``revision``. Each change is told once, in order, whether it came as an
event or as the difference of a relist: after a relist at r the watch goes on from r + 1, so nothing is missed and
nothing is told twice. Between them the mirror stays readable, also while the servers are away; ``stale_seconds`` says
how old.

What must not live here: what the values mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvserver.proto import kv_pb2, rpc_pb2
from recipes.client.channel import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN
from recipes.client.client import Client
from recipes.client.clock import now
from recipes.client.keys import prefix_end
from recipes.client.watch import Subscription, WatchSpec
from recipes.errors import ClientError, CompactedError, DeadlineExceededError, UnavailableError

logger = logging.getLogger(__name__)

PAGE_KEYS = 1000
"""Keys a page of a listing."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a mirrored key.

    Attributes:
        key: The absolute key.
        old: What it was, None if it did not exist.
        new: What it is, None if it does not exist any more.
        revision: The revision of the change; for the differences of a listing that of the listing, since they are to
            be seen together.
    """

    key: bytes
    old: kv_pb2.KeyValue | None
    new: kv_pb2.KeyValue | None
    revision: int


class Mirror:
    """The keys below a prefix, or a single key, in memory.

    Args:
        client: The client.
        key: The prefix, or the key.
        on_change: Called on the loop with the changes of whole revisions; first with everything that is there, also
            when that is nothing. Must not block.
        on_failed: Called when the mirror ends because the servers refuse it.
        single: Mirror one key, not a prefix.
    """

    def __init__(
        self,
        client: Client,
        key: bytes,
        *,
        on_change: Callable[[list[Change]], None],
        on_failed: Callable[[ClientError], None] | None = None,
        single: bool = False,
    ) -> None:
        self._client = client
        self._key = client.namespace + key
        self._end = b"" if single else prefix_end(self._key)
        self._on_change = on_change
        self._on_failed = on_failed
        self._subscription: Subscription | None = None
        self._relisting: asyncio.Task[None] | None = None
        self._closed = False
        self._stale_since: float | None = None
        self.state: dict[bytes, kv_pb2.KeyValue] = {}
        self.revision = 0
        self.relists = 0

    @property
    def stale_seconds(self) -> float:
        """For how long the mirror has been out of touch with the servers; 0 while it is in touch."""
        return 0.0 if self._stale_since is None else now() - self._stale_since

    async def start(self) -> None:
        """List and begin to follow.

        Raises:
            ClientError: the first listing failed.
        """
        state, revision = await self._list()
        self._take(state, revision, first=True)

    async def close(self) -> None:
        """Stop following; the state stays as it is."""
        self._closed = True
        if self._subscription is not None:
            self._subscription.close()
        task = self._relisting
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def resync(self) -> None:
        """List anew and tell the differences, as after a compaction; for those who trust nothing."""
        state, revision = await self._list()
        if not self._closed and revision >= self.revision:
            self._take(state, revision)

    async def _list(self) -> tuple[dict[bytes, kv_pb2.KeyValue], int]:
        """Read everything as of one revision, page by page."""
        state: dict[bytes, kv_pb2.KeyValue] = {}
        revision = 0
        key = self._key
        while True:
            request = rpc_pb2.RangeRequest(key=key, range_end=self._end, limit=PAGE_KEYS, revision=revision)
            try:
                response = await self._client.rpc.kv.range(request)
            except CompactedError:  # between two pages: begin again
                state, revision, key = {}, 0, self._key
                continue
            revision = revision or response.header.revision
            for kv in response.kvs:
                state[kv.key] = kv
            if not response.more:
                return state, revision
            key = response.kvs[-1].key + b"\0"

    def _take(self, state: dict[bytes, kv_pb2.KeyValue], revision: int, *, first: bool = False) -> None:
        """Replace the state by a listing, tell the differences, follow from there."""
        old = self.state
        changes = [Change(key, old[key], None, revision) for key in old if key not in state]
        for key, new in state.items():
            before = old.get(key)
            if before is None or before.mod_revision != new.mod_revision:
                changes.append(Change(key, before, new, revision))
        self.state, self.revision = state, revision
        if self._subscription is not None:
            self._subscription.close()
        spec = WatchSpec(self._key, self._end, progress=True)
        self._subscription = self._client._core.watches.add(spec, self, start_revision=revision + 1)
        self._stale_since = None
        if changes or first:
            self._on_change(changes)

    # the watch's sink

    def on_started(self, revision: int) -> None:
        self._stale_since = None

    def on_resumed(self) -> None:
        self._stale_since = None

    def on_interrupted(self) -> None:
        if self._stale_since is None:
            self._stale_since = now()

    def on_events(self, events: Sequence[kv_pb2.Event]) -> None:
        changes = []
        state = self.state
        for event in events:
            kv = event.kv
            if event.type == kv_pb2.Event.DELETE:
                old = state.pop(kv.key, None)
                changes.append(Change(kv.key, old, None, kv.mod_revision))
            else:
                old = state.get(kv.key)
                state[kv.key] = kv
                changes.append(Change(kv.key, old, kv, kv.mod_revision))
        self.revision = events[-1].kv.mod_revision
        self._on_change(changes)

    def on_failed(self, error: ClientError) -> None:
        if self._closed:
            return
        self.on_interrupted()
        if isinstance(error, CompactedError):
            logger.info("mirror of %r: %s; listing anew", self._key, error)
            self._relisting = asyncio.get_running_loop().create_task(self._relist())
            return
        self._end_with(error)

    def _end_with(self, error: ClientError) -> None:
        if self._on_failed is not None:
            self._on_failed(error)
        else:
            logger.error("mirror of %r ended: %s", self._key, error)

    async def _relist(self) -> None:
        pause = BACKOFF_SECONDS_MIN
        while not self._closed:
            try:
                state, revision = await self._list()
            except (UnavailableError, DeadlineExceededError) as error:
                logger.info("mirror of %r: %s", self._key, error)
            except ClientError as error:
                self._end_with(error)
                return
            else:
                if revision >= self.revision:  # a member that lags shows an older state: ask again
                    self.relists += 1
                    self._take(state, revision)
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS_MAX)
