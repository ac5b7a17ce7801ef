"""Watches that outlive connections: each resumes after the last event it told, with no gap and nothing twice.

One stream carries all watches of a command. When it breaks it is made again, and every watch is created anew from its
next revision. What a server cancels stays cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from kvserver.errors import Code
from kvserver.proto import kv_pb2, rpc_pb2
from recipes.ctl.transport import CallError, Client, Stream


class Watch:
    """One watch.

    Args:
        request: How to create it.
    """

    __slots__ = ("cancelled", "next_revision", "request", "responses")

    def __init__(self, request: rpc_pb2.WatchCreateRequest) -> None:
        self.request = request
        self.next_revision = request.start_revision
        self.cancelled = False
        self.responses: deque[rpc_pb2.WatchResponse] = deque()
        """What it told and nobody took yet; creation is not told."""


class Watcher:
    """All watches of a command, on one stream.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: Stream | None = None
        self._creating: deque[Watch] = deque()
        self._by_id: dict[int, Watch] = {}
        self._watches: list[Watch] = []

    def add(self, request: rpc_pb2.WatchCreateRequest) -> Watch:
        """Begin a watch."""
        watch = Watch(request)
        self._watches.append(watch)
        if self._stream is not None and not self._stream.ended:
            self._create(self._stream, watch)
        return watch

    def request_progress(self) -> None:
        """Ask the server how far the watches are."""
        self._open().send(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    def pump(self) -> None:
        """Deal with what has arrived, making the stream (again) if need be.

        Raises:
            CallError: the server refuses watching.
        """
        stream = self._stream
        if stream is None:
            if self._watches:
                self._open()
            return
        while stream.messages:
            message = stream.messages.popleft()
            stream.grant()
            self._take(rpc_pb2.WatchResponse.FromString(message))
        if stream.ended:
            error = stream.error
            if error is not None and error.code != Code.UNAVAILABLE and error.sent:
                raise CallError(error.code, error.message)
            self._stream = None
            self._client.pause()
            if any(not watch.cancelled for watch in self._watches):
                self._open()

    def close(self) -> None:
        """End all watches."""
        if self._stream is not None:
            self._stream.cancel()

    def _open(self) -> Stream:
        if self._stream is None:
            self._creating.clear()
            self._by_id.clear()
            stream = self._stream = self._client.stream("Watch/Watch")
            for watch in self._watches:
                if not watch.cancelled:
                    self._create(stream, watch)
        return self._stream

    def _create(self, stream: Stream, watch: Watch) -> None:
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(watch.request)
        request.start_revision = watch.next_revision
        self._creating.append(watch)
        stream.send(rpc_pb2.WatchRequest(create_request=request))

    def _take(self, response: rpc_pb2.WatchResponse) -> None:
        if response.created and self._creating:
            watch = self._creating.popleft()
            if response.canceled:
                self._cancel(watch, response)
                return
            self._by_id[response.watch_id] = watch
            if not watch.next_revision:
                watch.next_revision = response.header.revision + 1
            return
        if response.watch_id == -1:
            for watch in self._by_id.values():
                watch.responses.append(response)
            return
        found = self._by_id.get(response.watch_id)
        if found is None:
            return
        if response.canceled:
            del self._by_id[response.watch_id]
            self._cancel(found, response)
            return
        if response.events:
            found.next_revision = response.events[-1].kv.mod_revision + 1
        else:
            found.next_revision = max(found.next_revision, response.header.revision + 1)
        found.responses.append(response)

    @staticmethod
    def _cancel(watch: Watch, response: rpc_pb2.WatchResponse) -> None:
        watch.cancelled = True
        watch.responses.append(response)


def cancel_text(response: rpc_pb2.WatchResponse) -> str:
    """Answer why a server cancelled a watch, as etcdctl says it."""
    if response.compact_revision:
        return "etcdserver: mvcc: required revision has been compacted"
    return response.cancel_reason or "etcdserver: mvcc: required revision is a future revision"


def events_of(watch: Watch) -> Iterator[kv_pb2.Event]:
    """Answer the events a watch told, taking them.

    Raises:
        CallError: it was cancelled.
    """
    while watch.responses:
        response = watch.responses.popleft()
        if response.canceled:
            raise CallError(Code.OUT_OF_RANGE, cancel_text(response))
        yield from response.events
