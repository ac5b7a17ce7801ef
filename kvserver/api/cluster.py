"""The Cluster service: who the members are. Changing them comes with replication."""

from __future__ import annotations

from kvserver.api.calls import read_call, unchecked
from kvserver.api.missing import missing_call
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import MemberListRequest
from kvserver.wire.server import UnaryMethod

PREFIX = b"/etcdserverpb.Cluster/"


def methods(node: NodeService) -> dict[bytes, UnaryMethod]:
    """Answer the service's methods by path."""
    return {
        PREFIX + b"MemberList": UnaryMethod(
            read_call(node, "MemberList", MemberListRequest.FromString, unchecked, node.member_list)
        ),
        **{
            PREFIX + name: UnaryMethod(missing_call("membership changes are not supported yet"))
            for name in (b"MemberAdd", b"MemberRemove", b"MemberUpdate", b"MemberPromote")
        },
    }
