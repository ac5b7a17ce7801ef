"""The Maintenance service: Alarm, Status, Defragment, Hash, HashKV, MoveLeader.

Snapshot and Downgrade are yet to come.
"""

from __future__ import annotations

from kvserver import errors
from kvserver.api.calls import Done, read_call, unchecked
from kvserver.api.missing import missing_call
from kvserver.api.streams import missing_stream
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import (
    AlarmRequest,
    DefragmentRequest,
    HashKVRequest,
    HashRequest,
    MoveLeaderRequest,
    MoveLeaderResponse,
    StatusRequest,
)
from kvserver.wire.server import StreamMethod, UnaryMethod

PREFIX = b"/etcdserverpb.Maintenance/"


def methods(node: NodeService) -> dict[bytes, UnaryMethod | StreamMethod]:
    """Answer the service's methods by path."""

    def move_leader(request: MoveLeaderRequest, done: Done) -> None:
        # One member: leadership can only be moved to where it is.
        if node.leader_id != node.member_id:
            done(errors.NotLeaderError())
        elif request.targetID != node.member_id:
            done(errors.BadLeaderTransfereeError())
        else:
            done(MoveLeaderResponse().SerializeToString())

    def defragment(request: DefragmentRequest, done: Done) -> None:
        # The answer has no header, as etcd's.
        node.defragment(request, lambda result: done(b"" if isinstance(result, bytes) else result))

    return {
        PREFIX + b"Alarm": UnaryMethod(read_call(node, "Alarm", AlarmRequest.FromString, unchecked, node.alarm)),
        PREFIX + b"Status": UnaryMethod(read_call(node, "Status", StatusRequest.FromString, unchecked, node.status)),
        PREFIX + b"Defragment": UnaryMethod(
            read_call(node, "Defragment", DefragmentRequest.FromString, unchecked, defragment)
        ),
        PREFIX + b"Hash": UnaryMethod(read_call(node, "Hash", HashRequest.FromString, unchecked, node.hash)),
        PREFIX + b"HashKV": UnaryMethod(read_call(node, "HashKV", HashKVRequest.FromString, unchecked, node.hash_kv)),
        PREFIX + b"MoveLeader": UnaryMethod(
            read_call(node, "MoveLeader", MoveLeaderRequest.FromString, unchecked, move_leader)
        ),
        PREFIX + b"Downgrade": UnaryMethod(missing_call("downgrades are not supported yet")),
        PREFIX + b"Snapshot": StreamMethod(missing_stream("snapshots over the API are not supported yet")),
    }
