"""The Lease service: LeaseGrant, LeaseRevoke, LeaseTimeToLive, LeaseLeases, and the LeaseKeepAlive stream."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvserver.api.calls import Result, decode_error, internal_error, read_call, unchecked, write_call
from kvserver.api.streams import StreamCall, checked
from kvserver.errors import KvError
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
)
from kvserver.wire.server import ServerStream, StreamMethod, UnaryMethod

PREFIX = b"/etcdserverpb.Lease/"

_parse_keepalive = LeaseKeepAliveRequest.FromString


class KeepAliveCall(StreamCall):
    """A stream of renewals: an answer a request, in order; a lease that is gone is answered with TTL 0.

    Hot: one call a renewal (benchmark ``lease keepalive``).
    """

    __slots__ = ("_half_closed", "_node", "_outstanding")

    def __init__(self, node: NodeService, stream: ServerStream) -> None:
        super().__init__(stream)
        self._node = node
        self._outstanding = 0
        self._half_closed = False

    def on_message(self, message: bytes, /) -> None:
        try:
            request = _parse_keepalive(message)
            self._outstanding += 1
            self._node.lease_keepalive(request, self._answer)
        except DecodeError as error:
            self._fail(decode_error(error, streaming=True))
        except Exception:
            self._fail(internal_error("LeaseKeepAlive"))

    def on_half_close(self) -> None:
        self._half_closed = True
        if not self._outstanding:
            self.stream.finish()

    def _answer(self, result: Result) -> None:
        self._outstanding -= 1
        if isinstance(result, bytes):
            self.stream.send(result)
            if self._half_closed and not self._outstanding:
                self.stream.finish()
        else:
            self._fail(result)

    def _fail(self, error: KvError) -> None:
        self.stream.finish(error.code, error.message)


def methods(node: NodeService) -> dict[bytes, UnaryMethod | StreamMethod]:
    """Answer the service's methods by path."""
    return {
        PREFIX + b"LeaseGrant": UnaryMethod(
            write_call(node, "LeaseGrant", LeaseGrantRequest.FromString, unchecked, node.lease_grant)
        ),
        PREFIX + b"LeaseRevoke": UnaryMethod(
            write_call(node, "LeaseRevoke", LeaseRevokeRequest.FromString, unchecked, node.lease_revoke)
        ),
        PREFIX + b"LeaseTimeToLive": UnaryMethod(
            read_call(node, "LeaseTimeToLive", LeaseTimeToLiveRequest.FromString, unchecked, node.lease_time_to_live)
        ),
        PREFIX + b"LeaseLeases": UnaryMethod(
            read_call(node, "LeaseLeases", LeaseLeasesRequest.FromString, unchecked, node.lease_leases)
        ),
        PREFIX + b"LeaseKeepAlive": StreamMethod(checked(node, lambda stream: KeepAliveCall(node, stream))),
    }
