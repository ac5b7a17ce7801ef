"""The standard gRPC health service: this server serves; services by name are not told apart."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvserver.api.calls import Done, decode_error, read_call, unchecked
from kvserver.api.streams import StreamCall
from kvserver.errors import Code, KvError
from kvserver.node.service import NodeService
from kvserver.proto.health_pb2 import HealthCheckRequest, HealthCheckResponse
from kvserver.wire.server import StreamMethod, UnaryMethod

PREFIX = b"/grpc.health.v1.Health/"


def check(request: HealthCheckRequest, done: Done) -> None:
    """Answer SERVING for the server as a whole, which is the empty service."""
    if request.service:
        done(KvError("unknown service", Code.NOT_FOUND))
    else:
        done(HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString())


class HealthWatch(StreamCall):
    """A stream of one service's status: what it is now; it does not change before the server stops."""

    __slots__ = ()

    def on_message(self, message: bytes, /) -> None:
        try:
            request = HealthCheckRequest.FromString(message)
        except DecodeError as error:
            refusal = decode_error(error, streaming=True)
            self.stream.finish(refusal.code, refusal.message)
            return
        status = HealthCheckResponse.SERVICE_UNKNOWN if request.service else HealthCheckResponse.SERVING
        self.stream.send(HealthCheckResponse(status=status).SerializeToString())


def methods(node: NodeService) -> dict[bytes, UnaryMethod | StreamMethod]:
    """Answer the service's methods by path."""
    return {
        PREFIX + b"Check": UnaryMethod(read_call(node, "Check", HealthCheckRequest.FromString, unchecked, check)),
        PREFIX + b"Watch": StreamMethod(HealthWatch),
    }
