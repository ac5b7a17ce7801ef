"""Unary calls end in exactly one answer, whatever happens."""

from __future__ import annotations

import logging

import pytest
from google.protobuf.message import Message

from kvserver import errors
from kvserver.api import auth, kv, maintenance
from kvserver.errors import Code
from kvserver.proto import rpc_pb2 as pb
from kvserver.wire.server import UnaryMethod
from tests.api.fakes import FakeConnection, FakeHead, FakeNode, as_conn, as_head, as_node


def call(
    node: FakeNode, path: bytes, message: bytes, metadata: dict[bytes, bytes] | None = None
) -> tuple[bytes | None, tuple[int, str] | None]:
    """Call a unary method; answers (answer, failure)."""
    methods = {**kv.methods(as_node(node)), **maintenance.methods(as_node(node)), **auth.methods(as_node(node))}
    method = methods[b"/etcdserverpb." + path]
    assert isinstance(method, UnaryMethod)
    conn = FakeConnection()
    method.handler(as_conn(conn), 5, as_head(FakeHead(metadata or {})), message)
    return conn.answers.get(5), conn.failures.get(5)


GET = pb.RangeRequest(key=b"a").SerializeToString()
PUT = pb.PutRequest(key=b"a").SerializeToString()


def test_an_answer_goes_out_as_the_node_gave_it() -> None:
    assert call(FakeNode(), b"KV/Range", GET) == (b"answer", None)
    assert call(FakeNode(), b"KV/Put", PUT) == (b"answer", None)


def test_an_error_goes_out_with_its_code_and_text() -> None:
    node = FakeNode()
    node.result = errors.NoSpaceError()
    assert call(node, b"KV/Put", PUT) == (None, (8, "etcdserver: mvcc: database space exceeded"))


@pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x0a", b"\x02\x00", b"\xff\xff\xff"])
def test_malformed_bytes_are_refused_in_the_words_of_grpc_go(message: bytes) -> None:
    answer, failure = call(FakeNode(), b"KV/Put", message)
    assert answer is None
    assert failure is not None
    assert failure[0] == Code.INTERNAL
    assert failure[1].startswith("grpc: error unmarshalling request: ")


def test_a_fault_of_ours_is_logged_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    node = FakeNode()
    node.result = ZeroDivisionError("inner detail")
    with caplog.at_level(logging.ERROR):
        answer, failure = call(node, b"KV/Put", PUT)
    assert answer is None
    assert failure == (Code.UNKNOWN, "kvserver: internal error, see the server's log")
    assert "ZeroDivisionError: inner detail" in caplog.text


@pytest.mark.parametrize(
    ("path", "request_", "error"),
    [
        (b"KV/Range", pb.RangeRequest(), errors.EmptyKeyError),
        (b"KV/Range", pb.RangeRequest(key=b"a", sort_order=7), errors.InvalidSortOptionError),
        (b"KV/Range", pb.RangeRequest(key=b"a", sort_target=9), errors.InvalidSortOptionError),
        (b"KV/Range", pb.RangeRequest(key=b"a", sort_order=-1), errors.InvalidSortOptionError),
        (b"KV/Put", pb.PutRequest(value=b"x"), errors.EmptyKeyError),
        (b"KV/Put", pb.PutRequest(key=b"a", value=b"x", ignore_value=True), errors.ValueProvidedError),
        (b"KV/Put", pb.PutRequest(key=b"a", lease=1, ignore_lease=True), errors.LeaseProvidedError),
        (b"KV/DeleteRange", pb.DeleteRangeRequest(), errors.EmptyKeyError),
        (b"KV/Txn", pb.TxnRequest(success=[pb.RequestOp()]), errors.KeyNotFoundError),
        (b"Auth/UserAdd", pb.AuthUserAddRequest(), errors.UserEmptyError),
        (b"Auth/RoleAdd", pb.AuthRoleAddRequest(), errors.RoleEmptyError),
        (b"Auth/Authenticate", pb.AuthenticateRequest(name="x"), errors.AuthNotEnabledError),
        (b"Auth/AuthEnable", pb.AuthEnableRequest(), errors.RootUserNotExistError),
        (b"Maintenance/MoveLeader", pb.MoveLeaderRequest(targetID=5), errors.BadLeaderTransfereeError),
    ],
)
def test_requests_no_state_could_make_valid(path: bytes, request_: Message, error: type[errors.KvError]) -> None:
    assert call(FakeNode(), path, request_.SerializeToString()) == (None, (error.code, error.message))


def test_the_nodes_limit_of_operations_counts() -> None:
    node = FakeNode()
    node.txn_operations_max = 2
    operation = pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))
    assert call(node, b"KV/Txn", pb.TxnRequest(success=[operation] * 2).SerializeToString())[0] == b"answer"
    too_many = call(node, b"KV/Txn", pb.TxnRequest(success=[operation] * 3).SerializeToString())
    assert too_many == (None, (3, "etcdserver: too many operations in txn request"))


def test_users_and_roles_cannot_be_made_yet() -> None:
    for path, message in (
        (b"Auth/UserAdd", pb.AuthUserAddRequest(name="x").SerializeToString()),
        (b"Auth/RoleAdd", pb.AuthRoleAddRequest(name="x").SerializeToString()),
    ):
        _, failure = call(FakeNode(), path, message)
        assert failure is not None
        assert failure[0] == Code.UNIMPLEMENTED


@pytest.mark.parametrize("path", [b"KV/Range", b"KV/Put"])
def test_hasleader_is_refused_without_a_leader(path: bytes) -> None:
    node = FakeNode()
    node.leader_id = 0
    message = PUT if path == b"KV/Put" else GET
    assert call(node, path, message, {b"hasleader": b"true"}) == (None, (14, "etcdserver: no leader"))
    assert call(node, path, message, {b"hasleader": b"false"})[0] == b"answer"
    node.leader_id = 8
    assert call(node, path, message, {b"hasleader": b"true"})[0] == b"answer"


@pytest.mark.parametrize("path", [b"KV/Range", b"KV/Put"])
def test_a_client_version_has_to_be_text(path: bytes) -> None:
    message = PUT if path == b"KV/Put" else GET
    refused = (None, (3, "etcdserver: invalid client api version"))
    assert call(FakeNode(), path, message, {b"client-api-version": b"\xff\xfe"}) == refused
    assert call(FakeNode(), path, message, {b"client-api-version": "3.5-β".encode()})[0] == b"answer"
    assert call(FakeNode(), path, message, {b"client-api-version": b"3.5.1"})[0] == b"answer"
