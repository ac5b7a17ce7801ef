"""The Watch service: one bidirectional stream carries any number of watchers.

A request creates a watcher, cancels one, or asks for progress; answers to those go out in the order of the requests.
The store's watchable side delivers events as serialized bytes, whole revisions only; here they become
``WatchResponse`` messages, put together from bytes that all watchers of a revision share::

    [prefix] header  watch_id  events        shared: header + events, by the identity of the list of events
             0x0a..  0x10..    0x5a.. 0x5a..

Back-pressure: a stream that has more than the high-water mark queued takes no more events (``deliver`` answers False)
until its queue has drained; control answers still go out, their number is the client's own doing and bounded by the
connection.

Fragments: a watcher that asked for them gets a response that would exceed the largest request in parts, all but the
last with ``fragment`` set; others get it whole.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvserver import limits
from kvserver.api.calls import decode_error, internal_error
from kvserver.api.streams import StreamCall, checked
from kvserver.mvcc import WatchError
from kvserver.node.answers import varint
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from kvserver.wire.messages import PREFIX as MESSAGE_PREFIX
from kvserver.wire.server import ServerStream, StreamMethod

PREFIX = b"/etcdserverpb.Watch/"

INVALID_WATCH_ID = -1
"""The id in answers that belong to no watcher: a refused creation, the progress of a whole stream."""

_FRAGMENT = b"\x38\x01"

_parse = WatchRequest.FromString
_pack_prefix = MESSAGE_PREFIX.pack


class SharedEvents:
    """The bytes that the answers to all watchers of one list of events have in common; one a server.

    The list is kept, so its identity cannot be taken by another one.
    """

    __slots__ = ("events", "header", "joined", "revision", "size")

    def __init__(self) -> None:
        self.events: list[bytes] | None = None
        self.revision = -1
        self.header = b""
        self.joined = b""
        self.size = 0

    def fill(self, header: bytes, revision: int, events: list[bytes]) -> None:
        """Remember a list of events delivered at ``revision``."""
        self.events = events
        self.revision = revision
        self.header = header
        self.joined = b"".join(events)
        self.size = len(header) + len(self.joined)


class WatchCall(StreamCall):
    """One watch stream: the handler of its requests and the sink of its watchers' events."""

    __slots__ = ("_fragmenting", "_high_water_bytes", "_id_fields", "_node", "_shared", "_stopped", "_watches")

    def __init__(self, node: NodeService, shared: SharedEvents, stream: ServerStream) -> None:
        super().__init__(stream)
        self._node = node
        self._shared = shared
        self._id_fields: dict[int, bytes] = {}
        self._fragmenting: set[int] = set()
        self._high_water_bytes = stream.conn.limits.high_water_bytes
        self._stopped = False
        self._watches = node.watch_stream(self)

    # -- requests -----------------------------------------------------------------------------------------------------

    def on_message(self, message: bytes, /) -> None:
        try:
            request = _parse(message)
        except DecodeError as error:
            refusal = decode_error(error, streaming=True)
            self._end(refusal.code, refusal.message)
            return
        try:
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                self._create(request.create_request)
            elif kind == "cancel_request":
                self._cancel(request.cancel_request.watch_id)
            elif kind == "progress_request":
                self._watches.request_progress()
        except Exception:
            fault = internal_error("Watch")
            self._end(fault.code, fault.message)

    def on_closed(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._watches.close()

    def on_drained(self) -> None:
        if not self._stopped:
            self._watches.resume()

    def _end(self, code: int, message: str) -> None:
        self.stream.finish(code, message)
        self.on_closed()

    def _create(self, request: WatchCreateRequest) -> None:
        try:
            if len(self._id_fields) >= limits.WATCHERS_PER_STREAM_MAX:
                raise WatchError(f"kvserver: more than {limits.WATCHERS_PER_STREAM_MAX} watchers on one stream")
            watch_id, _ = self._watches.watch(
                request.key,
                request.range_end,
                request.start_revision,
                watch_id=request.watch_id,
                filters=tuple(request.filters),
                prev_kv=request.prev_kv,
                progress_notify=request.progress_notify,
            )
        except WatchError as error:
            self._control(
                WatchResponse(watch_id=INVALID_WATCH_ID, created=True, canceled=True, cancel_reason=error.message)
            )
            return
        self._id_fields[watch_id] = b"\x10" + varint(watch_id & 0xFFFF_FFFF_FFFF_FFFF) if watch_id else b""
        if request.fragment:
            self._fragmenting.add(watch_id)
        self._control(WatchResponse(watch_id=watch_id, created=True))

    def _cancel(self, watch_id: int) -> None:
        if self._watches.cancel(watch_id):
            self._forget(watch_id)
            self._control(WatchResponse(watch_id=watch_id, canceled=True))

    def _forget(self, watch_id: int) -> None:
        self._id_fields.pop(watch_id, None)
        self._fragmenting.discard(watch_id)

    def _control(self, response: WatchResponse, revision: int | None = None) -> None:
        response.header.CopyFrom(self._node.response_header(revision))
        self.stream.send(response.SerializeToString())

    # -- what the watchers deliver ------------------------------------------------------------------------------------

    def deliver(self, watch_id: int, revision: int, events: list[bytes]) -> bool:
        """Send events of whole revisions; False when the client is behind.

        Hot: one call a watcher and revision (benchmark ``watch fan-out``).
        """
        stream = self.stream
        if stream.buffered_bytes > self._high_water_bytes:
            return False
        shared = self._shared
        if shared.events is not events or shared.revision != revision:
            shared.fill(self._node.header_bytes(revision), revision, events)
        id_field = self._id_fields[watch_id]
        size = shared.size + len(id_field)
        if watch_id in self._fragmenting and size >= self._node.request_bytes_max and len(events) > 1:
            self._send_fragments(shared.header + id_field, events)
        else:
            stream.send_raw(_pack_prefix(0, size) + shared.header + id_field + shared.joined)
        return True

    def _send_fragments(self, head: bytes, events: list[bytes]) -> None:
        """Send events in as many responses as it takes; none is split, every response has one at least."""
        bytes_max = self._node.request_bytes_max
        start = 0
        while start < len(events):
            size = len(head) + len(_FRAGMENT) + len(events[start])
            end = start + 1
            while end < len(events) and size + len(events[end]) < bytes_max:
                size += len(events[end])
                end += 1
            more = _FRAGMENT if end < len(events) else b""
            self.stream.send(b"".join((head, more, *events[start:end])))
            start = end

    def cancelled(self, watch_id: int, compact_revision: int, reason: str) -> None:
        """Tell the client that a watcher was ended: what it needs next was compacted. The header has no revision."""
        self._forget(watch_id)
        self._control(
            WatchResponse(watch_id=watch_id, canceled=True, compact_revision=compact_revision, cancel_reason=reason), 0
        )

    def progress(self, watch_id: int, revision: int) -> None:
        """Tell the client that everything up to ``revision`` was delivered: queued before this answer, that is."""
        self._control(WatchResponse(watch_id=watch_id), revision)


def methods(node: NodeService) -> dict[bytes, StreamMethod]:
    """Answer the service's methods by path."""
    shared = SharedEvents()
    return {PREFIX + b"Watch": StreamMethod(checked(node, lambda stream: WatchCall(node, shared, stream)))}
