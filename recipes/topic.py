"""Publish and subscribe, with replay: messages are keys, their order is the store's.

Keys: ``topics/<topic>/<unique id>``, one a message; ``topics.floor/<topic>`` holds the highest offset that was
trimmed. A message's offset is its mod revision, so all subscribers see one total order, and an offset is all that a
subscriber has to remember. Messages stay until they are trimmed.

A subscriber first reads what is there (the replay), then watches from the revision after; when compaction overtakes it,
it reads again from its last offset. It sees each message once, in order; if messages it had not seen were trimmed it is
told by a :class:`Resync`, never by silence.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from recipes.client.channel import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN
from recipes.client.client import Client
from recipes.client.clock import now
from recipes.client.txn import CreateRevision, Delete, Get, ModRevision, Operation, Put
from recipes.client.types import Json, KeyValue
from recipes.client.watch import Watcher
from recipes.errors import ClientError, CompactedError, OutcomeUnknownError

PAGE_MESSAGES = 500
"""Messages a page of a replay."""

BATCH_MESSAGES_MAX = 60
"""Messages of one :meth:`Topic.publish_many`: a put and a read each, in a txn of at most 128 operations."""

TRIM_KEYS = 100
"""Messages deleted in one txn, below the limit of 128 operations."""

ID_BYTES = 12
"""Random bytes in a message's key."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        topic: The topic's name.
        id: Unique within the topic.
        offset: Its place in the topic's order; messages published together share it.
        value: What was published.
    """

    topic: str
    id: str
    offset: int
    value: bytes

    @property
    def text(self) -> str:
        """The value as UTF-8 text."""
        return self.value.decode()

    def json(self) -> Json:
        """Answer the value parsed as JSON."""
        parsed: Json = json.loads(self.value)
        return parsed


@dataclass(frozen=True, slots=True)
class Resync:
    """Messages were trimmed before the subscriber had seen them.

    Attributes:
        after: The last offset the subscriber had seen, or had asked to go on from.
        trimmed: The highest offset that is gone; what follows comes after it.
    """

    after: int
    trimmed: int


class Topic:
    """A topic.

    Args:
        client: The client; topics are below its namespace.
        name: The topic's name, without slashes.

    ::

        topic = Topic(kv, "orders")
        await topic.publish('{"id": 7}')

        async with topic.subscribe(replay=True) as messages:
            async for message in messages:
                print(message.offset, message.value)
    """

    def __init__(self, client: Client, name: str) -> None:
        if not name or "/" in name:
            raise ValueError(f"topic name {name!r}: give a name without slashes")
        self.name = name
        self._client = client
        self._prefix = f"topics/{name}/"
        self._floor = f"topics.floor/{name}"

    async def publish(self, value: str | bytes, *, timeout: float | None = None) -> int:
        """Publish one message; answer its offset.

        A publication whose answer was lost is recognised, so it happens once.

        Args:
            value: The message.
            timeout: Seconds to try; the client's default when None.

        Raises:
            OutcomeUnknownError: the time passed, and the message may or may not have been published.
        """
        return await self.publish_many([value], timeout=timeout)

    async def publish_many(self, values: Sequence[str | bytes], *, timeout: float | None = None) -> int:
        """Publish messages together, all or none; they share one offset and keep their order.

        Args:
            values: The messages, 60 at most.
            timeout: Seconds to try; the client's default when None.
        """
        if not 0 < len(values) <= BATCH_MESSAGES_MAX:
            raise ValueError(f"{len(values)} messages: publish 1 to {BATCH_MESSAGES_MAX} together")
        unique = secrets.token_hex(ID_BYTES)
        keys = [f"{self._prefix}{unique}-{number:02d}" for number in range(len(values))]
        puts = [Put(key, value) for key, value in zip(keys, values, strict=True)]
        seconds = self._client._core.config.timeout_seconds if timeout is None else timeout
        deadline = now() + seconds
        pause = BACKOFF_SECONDS_MIN
        while True:
            try:
                result = await self._client.txn(
                    when=[CreateRevision(keys[0]) == 0],
                    then=puts,
                    otherwise=[Get(keys[0])],
                    timeout=max(0.05, deadline - now()),
                )
            except OutcomeUnknownError:
                if now() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, BACKOFF_SECONDS_MAX)
                continue
            if result.succeeded:
                return result.revision
            earlier = result.range(0).first
            return result.revision if earlier is None else earlier.mod_revision

    def subscribe(self, *, after: int | None = None, replay: bool = False, last: int | None = None) -> Subscriber:
        """Answer a subscriber: an async iterator of :class:`Message`, and :class:`Resync` where messages were lost.

        Without arguments it gets messages from now on ("now" is when it is entered or first read).

        Args:
            after: Begin after this offset, as remembered from the last message handled.
            replay: Begin with the oldest message that is left.
            last: Begin with the last so many messages.
        """
        if (after is not None) + replay + (last is not None) > 1:
            raise ValueError("give one of after, replay, last")
        if last is not None and last < 1:
            raise ValueError(f"last={last}: give a number above 0")
        return Subscriber(self._client, self.name, self._prefix, self._floor, after, replay, last)

    async def trim(self, *, keep: int | None = None, through: int | None = None) -> int:
        """Delete old messages; answer how many.

        Args:
            keep: Keep the newest so many.
            through: Delete all up to and including this offset.
        """
        if (keep is None) == (through is None):
            raise ValueError("give keep or through")
        deleted = 0
        if keep is not None:
            # Messages of one offset go together, so the oldest kept one decides.
            newest = await self._client.range(
                self._prefix, prefix=True, sort_by="mod", descending=True, limit=keep + 1, keys_only=True
            )
            if len(newest) <= keep:
                return 0
            through = newest[-1].mod_revision
        assert through is not None
        while True:
            page = await self._client.range(
                self._prefix, prefix=True, max_mod_revision=through, sort_by="mod", limit=TRIM_KEYS, keys_only=True
            )
            if not page:
                return deleted
            floor = await self._client.get(self._floor)
            highest = max(page[-1].mod_revision, 0 if floor is None else int(floor.value))
            result = await self._client.txn(
                when=[ModRevision(self._floor) == (0 if floor is None else floor.mod_revision)],
                then=[Put(self._floor, str(highest)), *_deletes(page)],
            )
            if result:
                deleted += len(page)

    async def messages(self, *, after: int = 0, limit: int = 0) -> list[Message]:
        """Answer what is stored now, oldest first.

        Args:
            after: Only those with a higher offset.
            limit: At most this many, 0 for all.
        """
        page = await self._client.range(
            self._prefix, prefix=True, min_mod_revision=after + 1, sort_by="mod", limit=limit
        )
        return [_message(self.name, len(self._prefix), item) for item in page]


class Subscriber:
    """Messages in order, one at a time; made by :meth:`Topic.subscribe`.

    Attributes:
        offset: The offset up to which everything was handed out: what to remember for ``after=``. While several
            messages share an offset it moves with the last of them.
    """

    def __init__(
        self, client: Client, topic: str, prefix: str, floor: str, after: int | None, replay: bool, last: int | None
    ) -> None:
        self._client = client
        self._topic = topic
        self._prefix = prefix
        self._floor = floor
        self._last = last
        self._mode = "now" if after is None and not replay and last is None else "read"
        self._known = after is not None
        self._pending: deque[Message | Resync] = deque()
        self._read_offset = after or 0
        self._watcher: Watcher | None = None
        self._closed = False
        self.offset = after or 0

    async def next(self, timeout: float | None = None) -> Message | Resync:
        """Answer the next message.

        Args:
            timeout: Seconds to wait; for ever when None.

        Raises:
            TimeoutError: there was none in time; the subscription goes on.
        """
        async with asyncio.timeout(timeout):
            return await self.__anext__()

    def __aiter__(self) -> Subscriber:
        return self

    async def __anext__(self) -> Message | Resync:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            if self._watcher is None:
                try:
                    await self._begin()
                except ClientError:
                    if not self._closed:
                        raise
                continue
            try:
                event = await self._watcher.next()
            except CompactedError:
                # Overtaken while out of touch: read what is left, then watch again.
                self._stop_watching()
                self._mode = "read"
                self._known = True
                continue
            self._read_offset = event.revision
            self._pending.append(_message(self._topic, len(self._prefix), event.item))
        message = self._pending.popleft()
        if isinstance(message, Message) and not (self._pending and _offset(self._pending[0]) == message.offset):
            self.offset = message.offset
        return message

    async def _begin(self) -> None:
        """Read a page of what is stored, or begin to watch when all is read."""
        if self._mode == "now":
            watcher = self._client.watch(self._prefix, prefix=True, deletes=False)
            self._watcher = watcher
            self._read_offset = self.offset = await watcher.started()
            return
        if self._last is not None:
            newest = await self._client.range(
                self._prefix, prefix=True, sort_by="mod", descending=True, limit=self._last, keys_only=True
            )
            self._read_offset = newest[-1].mod_revision - 1 if newest else newest.revision
            self._last = None
            self._known = True
        if await self._read_page():
            self._mode = "watch"

    async def _read_page(self) -> bool:
        """Read messages after the offset; answer whether that was all, and the watch begun behind it."""
        after = self._read_offset
        result = await self._client.txn(
            then=[
                Get(self._prefix, prefix=True, min_mod_revision=after + 1, sort_by="mod", limit=PAGE_MESSAGES),
                Get(self._floor),
            ]
        )
        page = result.range(0)
        floor = result.range(1).first
        trimmed = 0 if floor is None else int(floor.value)
        if self._known and trimmed > after:
            self._pending.append(Resync(after, trimmed))
        self._known = True
        items = list(page)
        if page.more:
            whole = [item for item in items if item.mod_revision < items[-1].mod_revision]
            if not whole:
                revision = items[0].mod_revision
                together = await self._client.range(
                    self._prefix, prefix=True, min_mod_revision=revision, max_mod_revision=revision
                )
                whole = list(together)
            items = whole
        items.sort(key=_order)
        self._pending.extend(_message(self._topic, len(self._prefix), item) for item in items)
        if page.more:
            self._read_offset = items[-1].mod_revision if items else after
            return False
        self._read_offset = result.revision
        if self._closed:
            return True
        self._watcher = self._client.watch(
            self._prefix, prefix=True, deletes=False, start_revision=result.revision + 1, progress=True
        )
        return True

    def _stop_watching(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def close(self) -> None:
        """End the subscription; a reader sees its end. May be called again."""
        self._closed = True
        self._pending.clear()
        if self._watcher is not None:
            self._watcher.close()

    async def __aenter__(self) -> Subscriber:
        if self._mode == "now":
            await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _deletes(page: Iterable[KeyValue]) -> list[Operation]:
    return [Delete(item.raw_key) for item in page]


def _message(topic: str, cut: int, item: KeyValue) -> Message:
    return Message(topic, item.key[cut:], item.mod_revision, item.value)


def _order(item: KeyValue) -> tuple[int, bytes]:
    return item.mod_revision, item.raw_key


def _offset(message: Message | Resync) -> int:
    return message.offset if isinstance(message, Message) else -1
