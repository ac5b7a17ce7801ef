"""The KV service: Range, Put, DeleteRange, Txn, Compact."""

from __future__ import annotations

from kvserver.api.calls import read_call, unchecked, write_call
from kvserver.mvcc.requests import check_delete_range, check_put, check_range
from kvserver.mvcc.txn import check_txn
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from kvserver.wire.server import UnaryMethod

PREFIX = b"/etcdserverpb.KV/"


def methods(node: NodeService) -> dict[bytes, UnaryMethod]:
    """Answer the service's methods by path."""

    def check_txn_of_node(request: TxnRequest) -> None:
        check_txn(request, node.txn_operations_max)

    return {
        PREFIX + b"Range": UnaryMethod(read_call(node, "Range", RangeRequest.FromString, check_range, node.range)),
        PREFIX + b"Put": UnaryMethod(write_call(node, "Put", PutRequest.FromString, check_put, node.put)),
        PREFIX + b"DeleteRange": UnaryMethod(
            write_call(node, "DeleteRange", DeleteRangeRequest.FromString, check_delete_range, node.delete_range)
        ),
        PREFIX + b"Txn": UnaryMethod(write_call(node, "Txn", TxnRequest.FromString, check_txn_of_node, node.txn)),
        PREFIX + b"Compact": UnaryMethod(
            write_call(node, "Compact", CompactionRequest.FromString, unchecked, node.compact)
        ),
    }
