"""The JSON gateway: which path calls which RPC, and how an HTTP exchange looks to an RPC handler.

The gateway has no RPCs of its own. It calls the handlers of the gRPC methods table with an HTTP exchange in the place
of the gRPC connection: :class:`UnaryCall` answers ``respond``/``fail``, :class:`StreamCall` is the ``ServerStream`` of
a streaming RPC. Requests are turned from JSON into the message's bytes before, answers from bytes to JSON after.

States of a stream: headers are written with the first message, as etcd's gateway does; a failure before that is an
answer of its own status, a failure after it a last ``{"error":...}`` line.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from google.protobuf.descriptor import MethodDescriptor

from kvserver import limits
from kvserver.errors import HTTP_STATUS, Code
from kvserver.proto import election_pb2, lock_pb2, rpc_pb2
from kvserver.web.exchange import REASONS, Exchange, TornadoExchange
from kvserver.web.gojson import JsonError, Splitter
from kvserver.web.jsonpb import codec_of, quote
from kvserver.wire.limits import WireLimits
from kvserver.wire.server import StreamHandler, StreamMethod, UnaryMethod

log = logging.getLogger(__name__)

PREFIXES = ("/v3/", "/v3beta/", "/v3alpha/")
"""Names of the gateway; the last two are those of older releases, which clients still use."""

_ROUTES = """
kv/range                          KV.Range
kv/put                            KV.Put
kv/deleterange                    KV.DeleteRange
kv/txn                            KV.Txn
kv/compaction                     KV.Compact
watch                             Watch.Watch
lease/grant                       Lease.LeaseGrant
lease/revoke                      Lease.LeaseRevoke
kv/lease/revoke                   Lease.LeaseRevoke
lease/keepalive                   Lease.LeaseKeepAlive
lease/timetolive                  Lease.LeaseTimeToLive
kv/lease/timetolive               Lease.LeaseTimeToLive
lease/leases                      Lease.LeaseLeases
kv/lease/leases                   Lease.LeaseLeases
cluster/member/add                Cluster.MemberAdd
cluster/member/remove             Cluster.MemberRemove
cluster/member/update             Cluster.MemberUpdate
cluster/member/list               Cluster.MemberList
cluster/member/promote            Cluster.MemberPromote
maintenance/alarm                 Maintenance.Alarm
maintenance/status                Maintenance.Status
maintenance/defragment            Maintenance.Defragment
maintenance/hash                  Maintenance.Hash
maintenance/hashkv                Maintenance.HashKV
maintenance/snapshot              Maintenance.Snapshot
maintenance/transfer-leadership   Maintenance.MoveLeader
maintenance/downgrade             Maintenance.Downgrade
auth/enable                       Auth.AuthEnable
auth/disable                      Auth.AuthDisable
auth/status                       Auth.AuthStatus
auth/authenticate                 Auth.Authenticate
auth/user/add                     Auth.UserAdd
auth/user/get                     Auth.UserGet
auth/user/list                    Auth.UserList
auth/user/delete                  Auth.UserDelete
auth/user/changepw                Auth.UserChangePassword
auth/user/grant                   Auth.UserGrantRole
auth/user/revoke                  Auth.UserRevokeRole
auth/role/add                     Auth.RoleAdd
auth/role/get                     Auth.RoleGet
auth/role/list                    Auth.RoleList
auth/role/delete                  Auth.RoleDelete
auth/role/grant                   Auth.RoleGrantPermission
auth/role/revoke                  Auth.RoleRevokePermission
lock/lock                         Lock.Lock
lock/unlock                       Lock.Unlock
election/campaign                 Election.Campaign
election/proclaim                 Election.Proclaim
election/leader                   Election.Leader
election/observe                  Election.Observe
election/resign                   Election.Resign
"""

_TIMEOUT = re.compile(r"([0-9]{1,18})([HMSmun])\Z")
_UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NO_METADATA: Mapping[bytes, bytes] = MappingProxyType({})


class CallHead:
    """What an RPC handler learns of its caller; shaped as the head of a gRPC request."""

    __slots__ = ("metadata", "path", "timeout_seconds")

    def __init__(self, path: bytes, metadata: Mapping[bytes, bytes], timeout_seconds: float | None) -> None:
        self.path = path
        self.metadata = metadata
        self.timeout_seconds = timeout_seconds


class BadTimeoutError(Exception):
    """The ``Grpc-Timeout`` header cannot be read; the message is etcd's."""


class Rpc:
    """One RPC as the gateway serves it."""

    def __init__(self, method: MethodDescriptor, handler: UnaryMethod | StreamMethod | None) -> None:
        service = method.containing_service.full_name
        self.path = f"/{service}/{method.name}".encode()
        self.handler = handler
        self.request = codec_of(method.input_type)
        self.response = codec_of(method.output_type)
        self.takes_stream = method.client_streaming
        self.answers_stream = method.server_streaming
        self.plain_head = CallHead(self.path, _NO_METADATA, None)
        self.missing = f"unknown method {method.name} for service {service}"


def build_routes(methods: Mapping[bytes, UnaryMethod | StreamMethod]) -> dict[str, Rpc]:
    """Answer the RPC of each path below ``/v3/``, given the gRPC methods table."""
    services = {
        service.name: service
        for module in (rpc_pb2, lock_pb2, election_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    rpcs: dict[str, Rpc] = {}
    routes: dict[str, Rpc] = {}
    for line in _ROUTES.split("\n"):
        if not line:
            continue
        path, name = line.split()
        if name not in rpcs:
            service_name, method_name = name.split(".")
            method = services[service_name].methods_by_name[method_name]
            full = f"/{method.containing_service.full_name}/{method.name}".encode()
            rpcs[name] = Rpc(method, methods.get(full))
        routes[path] = rpcs[name]
    return routes


def read_call_head(rpc: Rpc, headers: Mapping[str, str]) -> CallHead:
    """Answer the metadata and the timeout that HTTP headers carry for an RPC.

    ``Authorization`` and ``Grpc-Metadata-*`` become metadata, ``Grpc-Timeout`` the deadline.

    Raises:
        BadTimeoutError: the timeout is not digits and a unit.
    """
    metadata: dict[bytes, bytes] = {}
    timeout_seconds = None
    for name, value in headers.items():
        lower = name.lower()
        if lower == "authorization":
            metadata[b"authorization"] = value.encode("latin1")
        elif lower.startswith("grpc-metadata-"):
            metadata[lower.removeprefix("grpc-metadata-").encode("latin1")] = value.encode("latin1")
        elif lower == "grpc-timeout":
            match = _TIMEOUT.match(value)
            if match is None:
                raise BadTimeoutError(f"invalid grpc-timeout: {value}")
            timeout_seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    if not metadata and timeout_seconds is None:
        return rpc.plain_head
    return CallHead(rpc.path, metadata, timeout_seconds)


def error_body(code: int, message: str) -> bytes:
    """Write an error as etcd 3.5 does; ``error`` is there for clients older than ``message``."""
    text = quote(message)
    return b'{"error":' + text + b',"code":%d,"message":' % code + text + b"}"


def stream_error_body(code: int, message: str) -> bytes:
    """Write an error as the last line of a stream."""
    status = HTTP_STATUS.get(code, 500)
    return b'{"error":{"grpc_code":%d,"http_code":%d,"message":%b,"http_status":%b}}' % (
        code,
        status,
        quote(message),
        quote(REASONS[status]),
    )


_LIMITS = WireLimits()
"""What RPC handlers read their high-water mark from."""


class UnaryCall:
    """An HTTP exchange in the place of a gRPC connection, for one unary call.

    Hot: one object a request (benchmark ``gateway``).
    """

    __slots__ = ("_exchange", "_open", "_rpc", "_timer")

    def __init__(self, exchange: Exchange, rpc: Rpc) -> None:
        self._exchange = exchange
        self._rpc = rpc
        self._open = True
        self._timer: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._exchange.peer

    def start(self, head: CallHead, body: bytes, message_bytes_max: int) -> None:
        """Run the call."""
        rpc = self._rpc
        try:
            message = rpc.request.from_json(body)
        except JsonError as error:
            self.fail(1, Code.INVALID_ARGUMENT, str(error))
            return
        if len(message) > message_bytes_max:
            text = f"grpc: received message larger than max ({len(message)} vs. {message_bytes_max})"
            self.fail(1, Code.RESOURCE_EXHAUSTED, text)
            return
        if rpc.handler is None:
            self.fail(1, Code.UNIMPLEMENTED, rpc.missing)
            return
        if head.timeout_seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(head.timeout_seconds, self._expire)
        try:
            cast("UnaryMethod", rpc.handler).handler(self, 1, head, message)  # type: ignore[arg-type]
        except Exception:
            log.exception("the handler of %s failed", rpc.path.decode())
            self.fail(1, Code.INTERNAL, "internal error")

    def _expire(self) -> None:
        self.fail(1, Code.DEADLINE_EXCEEDED, "context deadline exceeded")

    def respond(self, stream_id: int, message: bytes) -> None:
        """Answer with a serialized message; nothing if the caller is gone."""
        if not self._take():
            return
        if len(message) > limits.JSON_SLICE_BYTES:
            self._exchange.send_slices(self._rpc.response.slices(message))
            return
        try:
            answer = self._rpc.response.to_json(message)
        except Exception as error:
            log.exception("an answer of %s cannot be written as JSON", self._rpc.path.decode())
            body = error_body(Code.INTERNAL, f"the call was made, but its answer cannot be written as JSON: {error}")
            self._exchange.send_json(500, body)
            return
        self._exchange.send_message(answer)

    def fail(self, stream_id: int, code: int, message: str) -> None:
        """Answer with an error; nothing if the caller is gone."""
        if self._take():
            self._exchange.send_json(HTTP_STATUS.get(code, 500), error_body(code, message))

    def _take(self) -> bool:
        was_open, self._open = self._open, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return was_open

    def closed(self) -> None:
        """The client went away."""
        self._take()


class StreamCall:
    """An HTTP exchange as the ``ServerStream`` of one streaming RPC.

    Attributes:
        limits: bounds, of which handlers mind the high-water mark.
        buffered_bytes: bytes of answers that the client has not taken yet.
        closed: whether the stream ended, from either side.
    """

    def __init__(self, exchange: TornadoExchange, rpc: Rpc, head: CallHead, message_bytes_max: int) -> None:
        self.stream_id = 1
        self.head = head
        self.conn = self
        self.limits = _LIMITS
        self.closed = False
        self.buffered_bytes = 0
        self._exchange = exchange
        self._rpc = rpc
        self._bytes_max = message_bytes_max
        self._splitter = Splitter()
        self._unary_answer: bytes | None = None
        self._handler: StreamHandler | None = None
        self._started = False
        self._half_closed = False
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._writing_bytes = 0
        self._was_high = False
        self._end: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout_seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(head.timeout_seconds, self._expire)

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._exchange.peer

    # -- the client's side --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        if self.closed or self._half_closed:
            return
        try:
            for value in self._splitter.feed(data).values():
                self._message(value)
            if self._splitter.pending_bytes > 2 * self._bytes_max:
                size = self._splitter.pending_bytes
                raise JsonError(f"grpc: received message larger than max ({size} vs. {self._bytes_max})")
        except JsonError as error:
            self._malformed(error)

    def receive_end(self) -> None:
        """The request's body is complete."""
        if self.closed or self._half_closed:
            return
        try:
            for value in self._splitter.finish():
                self._message(value)
            if not self._rpc.takes_stream and self._handler is None:
                self._message(b"{}")
        except JsonError as error:
            self._malformed(error)
            return
        self._half_close()

    def _message(self, value: bytes) -> None:
        if self._half_closed or (not self._rpc.takes_stream and self._handler is not None):
            return  # a unary request is its first value; what follows is ignored, as by Go's decoder
        message = self._rpc.request.from_json(value)
        handler = self._open_handler()
        if handler is not None and not self.closed:
            handler.on_message(message)

    def _malformed(self, error: JsonError) -> None:
        if self._handler is not None:
            log.info("request stream from %s ends: %s", self.peer, error)
            self._half_close()
            return
        code = Code.UNKNOWN if self._rpc.takes_stream else Code.INVALID_ARGUMENT
        self.closed = True
        self._stop_timer()
        self._exchange.send_json(HTTP_STATUS[code], error_body(code, str(error)))

    def _half_close(self) -> None:
        if not self._half_closed:
            self._half_closed = True
            handler = self._open_handler()
            if handler is not None and not self.closed:
                handler.on_half_close()

    def _open_handler(self) -> StreamHandler | None:
        if self._handler is None and not self.closed:
            if self._rpc.handler is None:
                self.finish(Code.UNIMPLEMENTED, self._rpc.missing)
                return None
            factory = cast("StreamMethod", self._rpc.handler).factory
            self._handler = factory(self)  # type: ignore[arg-type]
        return self._handler

    def connection_closed(self) -> None:
        """The client went away."""
        self._stop_timer()
        if not self.closed:
            self.closed = True
            self._queue.clear()
            if self._handler is not None:
                self._handler.on_closed()

    # -- the handler's side -------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send one serialized message."""
        if self.closed:
            return
        if self._rpc.answers_stream:
            self._write(b'{"result":' + self._rpc.response.to_json(message) + b"}\n")
        else:
            self._unary_answer = message

    def send_headers(self) -> None:
        """Do nothing: the head goes out with the first message."""

    def send_raw(self, framed: bytes) -> None:
        """Send messages that carry their five-byte gRPC prefixes."""
        position = 0
        while position < len(framed):
            end = position + 5 + int.from_bytes(framed[position + 1 : position + 5], "big")
            self.send(framed[position + 5 : end])
            position = end

    def finish(self, code: int = 0, message: str = "") -> None:
        """End the stream."""
        if self.closed:
            return
        self.closed = True
        self._stop_timer()
        if not self._rpc.answers_stream:
            if code or self._unary_answer is None:
                code = code or Code.INTERNAL
                self._exchange.send_json(HTTP_STATUS.get(code, 500), error_body(code, message))
            else:
                self._exchange.send_message(self._rpc.response.to_json(self._unary_answer))
            return
        if code:
            self._end = stream_error_body(code, message)
            if not self._started:
                self._started = True
                self._exchange.start_stream(HTTP_STATUS.get(code, 500), with_metadata=False)
        else:
            self._end = b""
        self._pump()

    def _expire(self) -> None:
        handler = self._handler
        self.finish(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        if handler is not None:
            handler.on_closed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _write(self, line: bytes) -> None:
        self._queue.append(line)
        self._queued_bytes += len(line)
        self.buffered_bytes = self._queued_bytes + self._writing_bytes
        if self.buffered_bytes > _LIMITS.high_water_bytes:
            self._was_high = True
        self._pump()

    def _pump(self) -> None:
        if self._writing_bytes:
            return
        if not self._started:
            self._started = True
            self._exchange.start_stream(200, with_metadata=bool(self._queue))
        if self._end is not None:
            self._queue.append(self._end)
            data = b"".join(self._queue)
            self._queue.clear()
            self._end = None
            self._exchange.end_stream(data)
        elif self._queue:
            data = b"".join(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            self._writing_bytes = self.buffered_bytes = len(data)
            self._exchange.write_chunk(data, self._written)

    def _written(self) -> None:
        self._writing_bytes = 0
        self.buffered_bytes = self._queued_bytes
        if self._queue or self._end is not None:
            self._pump()
        if self._was_high and not self.closed and self.buffered_bytes <= _LIMITS.low_water_bytes:
            self._was_high = False
            if self._handler is not None:
                self._handler.on_drained()
