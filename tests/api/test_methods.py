"""Every method of the protocol is served, each as what it is."""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor

from kvserver.api import build_methods
from kvserver.proto import election_pb2, health_pb2, lock_pb2, rpc_pb2
from kvserver.wire.server import StreamMethod, UnaryMethod
from tests.api.fakes import FakeConnection, FakeHead, FakeNode, FakeStream, as_conn, as_head, as_node, as_stream

UNARY_AS_STREAM = {"v3lockpb.Lock", "v3electionpb.Election"}
"""Services whose unary methods wait, and so are served as streams of one message each way."""


def protocol_methods() -> dict[bytes, MethodDescriptor]:
    return {
        f"/{service.full_name}/{method.name}".encode(): method
        for module in (rpc_pb2, lock_pb2, election_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_every_method_of_the_protocol_is_there_and_no_other() -> None:
    assert set(build_methods(as_node(FakeNode()))) == set(protocol_methods())


def test_streaming_methods_are_served_as_streams() -> None:
    methods = build_methods(as_node(FakeNode()))
    for path, method in protocol_methods().items():
        streaming = method.client_streaming or method.server_streaming
        if streaming or method.containing_service.full_name in UNARY_AS_STREAM:
            assert isinstance(methods[path], StreamMethod), path
        else:
            assert isinstance(methods[path], UnaryMethod), path


def test_what_is_not_there_yet_says_so() -> None:
    methods = build_methods(as_node(FakeNode()))
    for path in (b"Cluster/MemberAdd", b"Maintenance/Downgrade"):
        conn = FakeConnection()
        method = methods[b"/etcdserverpb." + path]
        assert isinstance(method, UnaryMethod)
        method.handler(as_conn(conn), 1, as_head(FakeHead()), b"")
        code, text = conn.failures[1]
        assert code == 12
        assert "not supported yet" in text


def test_a_missing_stream_says_so() -> None:
    method = build_methods(as_node(FakeNode()))[b"/etcdserverpb.Maintenance/Snapshot"]
    assert isinstance(method, StreamMethod)
    stream = FakeStream()
    handler = method.factory(as_stream(stream))
    handler.on_message(b"")
    handler.on_half_close()
    handler.on_drained()
    handler.on_closed()
    assert stream.ending == (12, "kvserver: snapshots over the API are not supported yet")
