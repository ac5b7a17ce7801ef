"""Streaming calls: what their handlers have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from google.protobuf.message import DecodeError

from kvserver.api.calls import Leadership, decode_error, internal_error, metadata_error
from kvserver.errors import Code, DeadlineExceededError, KvError
from kvserver.wire.server import ServerStream, StreamFactory

_tasks: set[asyncio.Task[None]] = set()
"""Running calls: the event loop holds tasks only weakly."""


class StreamCall:
    """A streaming call; subclasses override what they mind.

    ``stream.closed`` is true from the call's end on, whoever ended it.
    """

    __slots__ = ("stream",)

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream

    def on_message(self, message: bytes, /) -> None:
        """Take a message."""

    def on_half_close(self) -> None:
        """Learn that the client will send no more."""

    def on_closed(self) -> None:
        """Learn that the client is gone."""

    def on_drained(self) -> None:
        """Learn that what was queued has left."""


class RefusedStream(StreamCall):
    """A call that was ended when it began; ignores what still comes."""

    __slots__ = ()

    def __init__(self, stream: ServerStream, error: KvError) -> None:
        super().__init__(stream)
        stream.finish(error.code, error.message)


def missing_stream(what: str) -> StreamFactory:
    """Make the factory of a streaming call that is not there yet: UNIMPLEMENTED, and ``what`` for its text."""
    return lambda stream: RefusedStream(stream, KvError(f"kvserver: {what}", Code.UNIMPLEMENTED))


def checked(node: Leadership, factory: Callable[[ServerStream], StreamCall]) -> StreamFactory:
    """Make a factory that checks a call's metadata before ``factory`` begins it."""

    def begin(stream: ServerStream) -> StreamCall:
        error = metadata_error(node, stream.head.metadata)
        return factory(stream) if error is None else RefusedStream(stream, error)

    return begin


class TaskCall(StreamCall):
    """A call that waits for things: one request, then a coroutine that answers or streams.

    The coroutine runs as a task, which is cancelled when the client goes away or the call's deadline passes; it cleans
    up behind itself in ``except asyncio.CancelledError`` or ``finally``. What it returns is the (last) answer.
    """

    __slots__ = ("_method", "_name", "_task", "drained")

    def __init__(
        self, stream: ServerStream, name: str, method: Callable[[bytes, TaskCall], Coroutine[None, None, bytes | None]]
    ) -> None:
        super().__init__(stream)
        self._name = name
        self._method = method
        self._task: asyncio.Task[None] | None = None
        self.drained = asyncio.Event()
        """Set whenever the stream's queue has drained; for coroutines that wait before they send more."""

    def on_message(self, message: bytes, /) -> None:
        if self._task is not None:
            self._task.cancel()
            self.stream.finish(Code.INTERNAL, "grpc: more than one request message for a method that takes one")
            return
        task = self._task = asyncio.get_running_loop().create_task(self._run(message))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    def on_half_close(self) -> None:
        if self._task is None:
            self.stream.finish(Code.INTERNAL, "grpc: the request message is missing")

    def on_closed(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def on_drained(self) -> None:
        self.drained.set()

    async def send(self, message: bytes) -> None:
        """Send a message of a stream; waits while the client does not read."""
        stream = self.stream
        stream.send(message)
        if stream.buffered_bytes > stream.conn.limits.high_water_bytes:
            self.drained.clear()
            await self.drained.wait()

    async def _run(self, message: bytes) -> None:
        stream = self.stream
        try:
            try:
                async with asyncio.timeout(stream.head.timeout_seconds):
                    answer = await self._method(message, self)
            except TimeoutError:
                raise DeadlineExceededError from None
        except KvError as error:
            stream.finish(error.code, error.message)
        except DecodeError as error:
            refusal = decode_error(error)
            stream.finish(refusal.code, refusal.message)
        except Exception:
            fault = internal_error(self._name)
            stream.finish(fault.code, fault.message)
        else:
            if answer is not None:
                stream.send(answer)
            stream.finish()
