"""Watches that survive: one stream for all watches of a client, made again when it breaks.

A :class:`WatchHub` multiplexes. Each :class:`Subscription` knows the next revision it needs; events below it are
dropped and after any interruption the watch is created again from there, so its sink sees every event once and in
order, over reconnects and failovers, or is told that the revision was compacted. The server keeps whole revisions
together, and so does the hub: a response that was split (``fragment``) is joined before it is handed on.

Sinks are called on the loop, from the reader, and must not block; :class:`Watcher` is the sink behind ``Client.watch``,
a bounded queue with an async iterator. When its queue is full it lets go of the server's watch and creates it again
when it has been read, so memory is bounded and a slow reader slows down nobody else.

What must not live here: what keys mean.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from kvserver.errors import Code
from kvserver.proto import kv_pb2, rpc_pb2
from kvserver.wire.client import ClientStream, GrpcError
from recipes.client.channel import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, Channel
from recipes.client.types import WatchEvent
from recipes.errors import ClientError, CompactedError, UnavailableError, client_error

logger = logging.getLogger(__name__)

QUEUE_EVENTS_MAX = 4096
"""Events a :class:`Watcher` holds for its reader before it lets go of the server's watch."""

QUEUE_EVENTS_LOW = 512
"""Events left at which it takes the watch up again."""

_WATCH = b"/etcdserverpb.Watch/Watch"

_FINAL = frozenset({Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT})
"""Ends of the stream that trying again cannot mend."""


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What to watch; see ``Client.watch``. Keys are absolute."""

    key: bytes
    range_end: bytes = b""
    previous: bool = False
    puts: bool = True
    deletes: bool = True
    progress: bool = False


class WatchSink(Protocol):
    """Who is told. All calls come on the loop thread and must return at once."""

    def on_started(self, revision: int) -> None:
        """The watch runs; every event above ``revision`` will be delivered. Called once, not after resuming."""
        ...

    def on_events(self, events: Sequence[kv_pb2.Event]) -> None:
        """Events of whole revisions, in order."""
        ...

    def on_interrupted(self) -> None:
        """The stream broke; the watch will resume without a gap."""
        ...

    def on_resumed(self) -> None:
        """The watch runs again."""
        ...

    def on_failed(self, error: ClientError) -> None:
        """The watch is over; :class:`CompactedError` when its next revision was compacted."""
        ...


class Subscription:
    """One watch of a hub. Its fields belong to the hub.

    Attributes:
        next_revision: The first revision not delivered yet, 0 before a watch "from now" has started.
    """

    __slots__ = (
        "_hub",
        "_parts",
        "_started",
        "closed",
        "created",
        "next_revision",
        "paused",
        "sink",
        "spec",
        "watch_id",
    )

    def __init__(self, hub: WatchHub, spec: WatchSpec, sink: WatchSink, next_revision: int) -> None:
        self._hub = hub
        self._parts: list[kv_pb2.Event] = []
        self._started = False
        self.spec = spec
        self.sink = sink
        self.next_revision = next_revision
        self.watch_id = 0
        self.created = False
        self.paused = False
        self.closed = False

    def pause(self) -> None:
        """Let go of the server's watch; :meth:`resume` continues without a gap."""
        if not self.closed and not self.paused:
            self.paused = True
            self._hub._detach(self)

    def resume(self) -> None:
        """Take a paused watch up again."""
        if not self.closed and self.paused:
            self.paused = False
            self._hub._attach(self)

    def close(self) -> None:
        """End the watch; nothing is delivered afterwards. May be called again."""
        if not self.closed:
            self.closed = True
            self._hub._remove(self)


class WatchHub:
    """All watches of one client on one stream.

    Args:
        channel: Where to open the stream.
        rng: Chance for the pauses between attempts.
    """

    def __init__(self, channel: Channel, *, rng: random.Random | None = None) -> None:
        self._channel = channel
        self._rng = rng if rng is not None else random.Random()
        self._subscriptions: dict[Subscription, None] = {}
        self._by_id: dict[int, Subscription] = {}
        self._creating: deque[tuple[int, Subscription]] = deque()
        self._last_id = 0
        self._stream: ClientStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, spec: WatchSpec, sink: WatchSink, start_revision: int = 0) -> Subscription:
        """Begin a watch.

        Args:
            spec: What to watch.
            sink: Who is told.
            start_revision: The first revision wanted; 0 for "from now on".
        """
        if self._closed:
            raise RuntimeError("the client is closed: open a new one")
        subscription = Subscription(self, spec, sink, start_revision)
        self._subscriptions[subscription] = None
        self._attach(subscription)
        return subscription

    async def close(self) -> None:
        """End the stream and every watch."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for subscription in list(self._subscriptions):
            self._fail(subscription, ClientError(Code.CANCELLED, "the client was closed"))

    # subscriptions

    def _attach(self, subscription: Subscription) -> None:
        if self._stream is not None:
            self._send_create(self._stream, subscription)
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="recipes-watch")

    def _send_create(self, stream: ClientStream, subscription: Subscription) -> None:
        self._last_id += 1
        watch_id = self._last_id
        subscription.watch_id = watch_id
        subscription.created = False
        subscription._parts.clear()
        self._by_id[watch_id] = subscription
        self._creating.append((watch_id, subscription))
        spec = subscription.spec
        create = rpc_pb2.WatchCreateRequest(
            key=spec.key,
            range_end=spec.range_end,
            start_revision=subscription.next_revision,
            progress_notify=spec.progress,
            prev_kv=spec.previous,
            watch_id=watch_id,
            fragment=True,
        )
        if not spec.puts:
            create.filters.append(rpc_pb2.WatchCreateRequest.NOPUT)
        if not spec.deletes:
            create.filters.append(rpc_pb2.WatchCreateRequest.NODELETE)
        _send(stream, rpc_pb2.WatchRequest(create_request=create))

    def _detach(self, subscription: Subscription) -> None:
        watch_id, subscription.watch_id = subscription.watch_id, 0
        if self._by_id.pop(watch_id, None) is not None and self._stream is not None:
            cancel = rpc_pb2.WatchCancelRequest(watch_id=watch_id)
            _send(self._stream, rpc_pb2.WatchRequest(cancel_request=cancel))

    def _remove(self, subscription: Subscription) -> None:
        self._subscriptions.pop(subscription, None)
        self._detach(subscription)

    def _fail(self, subscription: Subscription, error: ClientError) -> None:
        subscription.closed = True
        self._subscriptions.pop(subscription, None)
        self._by_id.pop(subscription.watch_id, None)
        subscription.sink.on_failed(error)

    # the stream

    async def _run(self) -> None:
        """Keep a stream open while there are subscriptions."""
        attempt = 0
        try:
            while self._subscriptions and not self._closed:
                try:
                    stream = await self._channel.stream(_WATCH)
                except UnavailableError as error:
                    logger.warning("watch: %s", error.message)
                    continue
                except ClientError as error:
                    self._fail_all(error)
                    return
                try:
                    self._open(stream)
                    while (message := await stream.recv()) is not None:
                        attempt = 0
                        self._receive(rpc_pb2.WatchResponse.FromString(message))
                    failure = GrpcError(Code.UNAVAILABLE, "the server ended the watch stream")
                except GrpcError as error:
                    failure = error
                finally:
                    self._lost(stream)
                if failure.code == Code.UNAUTHENTICATED and self._channel.config.user is not None:
                    self._channel.forget_token()
                elif failure.code in _FINAL:
                    self._fail_all(client_error(failure.code, failure.message))
                    return
                logger.info("watch stream broke: %s", failure.message)
                attempt += 1
                if attempt > 1:
                    whole = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * (1 << min(attempt, 16)))
                    await asyncio.sleep(whole * (0.5 + 0.5 * self._rng.random()))
        except Exception as error:  # a defect: nobody may wait for ever for events that cannot come
            logger.exception("watch: the reader failed")
            self._fail_all(ClientError(Code.INTERNAL, f"the client's watch reader failed: {error!r}"))
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    def _open(self, stream: ClientStream) -> None:
        self._stream = stream
        self._by_id.clear()
        self._creating.clear()
        for subscription in list(self._subscriptions):
            if not subscription.paused:
                self._send_create(stream, subscription)

    def _lost(self, stream: ClientStream) -> None:
        self._stream = None
        stream.cancel()
        self._by_id.clear()
        self._creating.clear()
        for subscription in list(self._subscriptions):
            subscription.watch_id = 0
            if subscription.created:
                subscription.created = False
                subscription.sink.on_interrupted()

    def _fail_all(self, error: ClientError) -> None:
        for subscription in list(self._subscriptions):
            self._fail(subscription, error)

    def _receive(self, response: rpc_pb2.WatchResponse) -> None:
        if response.created:
            self._receive_created(response)
            return
        subscription = self._by_id.get(response.watch_id)
        if subscription is None:
            return  # cancelled meanwhile, or an answer to nobody
        if response.canceled:
            self._receive_cancelled(subscription, response)
        elif response.events:
            self._receive_events(subscription, response)
        elif not response.fragment and response.header.revision >= subscription.next_revision > 0:
            subscription.next_revision = response.header.revision + 1  # progress: all up to there was delivered

    def _receive_created(self, response: rpc_pb2.WatchResponse) -> None:
        """The server answers creations in their order, refused ones without their id."""
        if not self._creating:
            return
        watch_id, subscription = self._creating.popleft()
        if self._by_id.get(watch_id) is not subscription:
            return
        if response.canceled:
            self._receive_cancelled(subscription, response)
            return
        subscription.created = True
        if subscription.next_revision == 0:
            subscription.next_revision = response.header.revision + 1
        if subscription._started:
            subscription.sink.on_resumed()
        else:
            subscription._started = True
            subscription.sink.on_started(subscription.next_revision - 1)

    def _receive_cancelled(self, subscription: Subscription, response: rpc_pb2.WatchResponse) -> None:
        error: ClientError
        if response.compact_revision:
            error = CompactedError(compact_revision=response.compact_revision)
        else:
            reason = response.cancel_reason or "the server cancelled the watch"
            denied = "permission denied" in reason
            error = ClientError(Code.PERMISSION_DENIED if denied else Code.CANCELLED, reason)
        self._fail(subscription, error)

    def _receive_events(self, subscription: Subscription, response: rpc_pb2.WatchResponse) -> None:
        events: Sequence[kv_pb2.Event] = response.events
        if response.fragment or subscription._parts:
            subscription._parts.extend(events)
            if response.fragment:
                return
            events, subscription._parts = subscription._parts, []
        next_revision = subscription.next_revision
        if events[0].kv.mod_revision < next_revision:
            events = [event for event in events if event.kv.mod_revision >= next_revision]
            if not events:
                return
        subscription.next_revision = events[-1].kv.mod_revision + 1
        subscription.sink.on_events(events)


def _send(stream: ClientStream, request: rpc_pb2.WatchRequest) -> None:
    try:
        stream.send(request.SerializeToString())
    except GrpcError:
        pass  # the stream has ended; its reader sees that and begins anew


class _Queue:
    """The sink behind a :class:`Watcher`; apart from it, so that a forgotten watcher can be collected."""

    __slots__ = ("_subscription", "_waiter", "error", "events", "interrupted", "loop", "started_at", "stopped")

    def __init__(self) -> None:
        self.events: deque[kv_pb2.Event] = deque()
        self.error: ClientError | None = None
        self.started_at: int | None = None
        self.interrupted = False
        self.stopped = False
        self.loop = asyncio.get_running_loop()
        self._subscription: Subscription | None = None
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, hub: WatchHub, spec: WatchSpec, start_revision: int) -> None:
        self._subscription = hub.add(spec, self, start_revision)

    def on_started(self, revision: int) -> None:
        self.started_at = revision
        self._wake()

    def on_events(self, events: Sequence[kv_pb2.Event]) -> None:
        self.events.extend(events)
        if len(self.events) >= QUEUE_EVENTS_MAX and self._subscription is not None:
            self._subscription.pause()
        self._wake()

    def on_interrupted(self) -> None:
        self.interrupted = True

    def on_resumed(self) -> None:
        self.interrupted = False

    def on_failed(self, error: ClientError) -> None:
        self.error = error
        self._wake()

    def pop(self) -> kv_pb2.Event:
        event = self.events.popleft()
        subscription = self._subscription
        if subscription is not None and subscription.paused and len(self.events) <= QUEUE_EVENTS_LOW:
            subscription.resume()
        return event

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.events.clear()
            if self._subscription is not None:
                self._subscription.close()
            self._wake()

    async def changed(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("two tasks read one watcher: give each its own client.watch(...)")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Watcher:
    """Events of a key or range, one at a time: an async iterator, made by ``Client.watch``.

    It runs from the moment it is made. Close it, or use ``async with``, when you stop before its end; dropping it has
    the same effect. It ends only by :meth:`close` or an error; outages are waited out.

    ::

        async with kv.watch("app/", prefix=True) as events:
            async for event in events:
                print(event.key, event.value)
    """

    def __init__(self, hub: WatchHub, spec: WatchSpec, start_revision: int, cut: int) -> None:
        self._queue = _Queue()
        self._cut = cut
        self._queue.begin(hub, spec, start_revision)

    async def started(self) -> int:
        """Wait until the watch runs; answer the revision above which every event will be delivered.

        Raises:
            CompactedError: its start was compacted.
            ClientError: the server refused the watch, or it was closed.
        """
        queue = self._queue
        while queue.started_at is None:
            if queue.error is not None:
                raise queue.error
            if queue.stopped:
                raise ClientError(Code.CANCELLED, "the watch was closed before it had begun")
            await queue.changed()
        return queue.started_at

    @property
    def interrupted(self) -> bool:
        """Whether the connection is down at present; events come when it is back."""
        return self._queue.interrupted

    async def next(self, timeout: float | None = None) -> WatchEvent:
        """Answer the next event.

        Args:
            timeout: Seconds to wait; for ever when None.

        Raises:
            TimeoutError: there was none in time; the watch goes on.
            CompactedError: events were missed because history was compacted; read anew and watch from there.
            StopAsyncIteration: the watcher was closed.
        """
        if timeout is None or self._queue.events:
            return await self.__anext__()
        async with asyncio.timeout(timeout):
            return await self.__anext__()

    async def __anext__(self) -> WatchEvent:
        queue = self._queue
        while not queue.events:
            if queue.error is not None and not queue.stopped:
                raise queue.error
            if queue.stopped:
                raise StopAsyncIteration
            await queue.changed()
        return WatchEvent(queue.pop(), self._cut)

    def __aiter__(self) -> Watcher:
        return self

    def close(self) -> None:
        """End the watch; a reader waiting for an event sees its end. May be called again."""
        self._queue.stop()

    async def __aenter__(self) -> Watcher:
        await self.started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may run on any thread; the hub belongs to its loop.
        queue = getattr(self, "_queue", None)
        if queue is not None and not queue.stopped:
            try:
                queue.loop.call_soon_threadsafe(queue.stop)
            except RuntimeError:
                pass  # the loop is closed, and the watch with it
