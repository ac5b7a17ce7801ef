"""``-w protobuf``: the answer's bytes.

For leases etcdctl prints only the bytes of the header inside; what reads it expects that.
"""

from __future__ import annotations

from google.protobuf.message import Message

from kvserver.proto import rpc_pb2
from recipes.ctl.printers.base import Printer


class ProtobufPrinter(Printer):
    """The protobuf format."""

    name = "protobuf"

    def message(self, response: Message) -> None:
        self._stdout.write(response.SerializeToString())

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        copy = rpc_pb2.WatchResponse(
            header=response.header,
            events=response.events,
            compact_revision=response.compact_revision,
            canceled=response.canceled,
            created=response.created,
        )
        self.message(copy)

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        self.message(response.header)

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        self.message(response.header)

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, keys: bool) -> None:
        self.message(response.header)

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        self.message(response.header)
