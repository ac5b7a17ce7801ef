"""The KV service: Range, Put, DeleteRange, Txn, Compact."""

from __future__ import annotations

from kvserver.api.calls import VERSION, read_call, unchecked, write_call
from kvserver.mvcc.requests import check_delete_range, check_put, check_range
from kvserver.mvcc.txn import check_txn
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from kvserver.wire.server import RequestHead, ServerConnection, UnaryHandler, UnaryMethod

PREFIX = b"/etcdserverpb.KV/"


def methods(node: NodeService) -> dict[bytes, UnaryMethod]:
    """Answer the service's methods by path."""

    def check_txn_of_node(request: TxnRequest) -> None:
        check_txn(request, node.txn_operations_max)

    return {
        PREFIX + b"Range": UnaryMethod(_range_call(node)),
        PREFIX + b"Put": UnaryMethod(write_call(node, "Put", PutRequest.FromString, check_put, node.put)),
        PREFIX + b"DeleteRange": UnaryMethod(
            write_call(node, "DeleteRange", DeleteRangeRequest.FromString, check_delete_range, node.delete_range)
        ),
        PREFIX + b"Txn": UnaryMethod(write_call(node, "Txn", TxnRequest.FromString, check_txn_of_node, node.txn)),
        PREFIX + b"Compact": UnaryMethod(
            write_call(node, "Compact", CompactionRequest.FromString, unchecked, node.compact)
        ),
    }


def _range_call(node: NodeService) -> UnaryHandler:
    """Make the handler of Range, which answers the plain read of one key without parsing the request.

    Such a request is the tag of ``key``, its length, and the key. Hot: one call a client read (benchmark ``range``).
    """
    general = read_call(node, "Range", RangeRequest.FromString, check_range, node.range)
    get = node.get

    def handle(conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        size = len(message) - 2
        if (
            0 < size < 0x80
            and message[1] == size
            and message[0] == 0x0A
            and (VERSION not in (metadata := head.metadata) or metadata[VERSION].isascii())
        ):
            answer = get(message[2:])
            if answer is not None:
                conn.respond(stream_id, answer)
                return
        general(conn, stream_id, head, message)

    return handle
