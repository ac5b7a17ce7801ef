"""``member add``, ``remove``, ``update``, ``list`` and ``promote``."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.gotext import parse_int
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError

Response = TypeVar("Response", bound=Message)


def _call(invocation: Invocation, method: str, request: Message, response_type: type[Response]) -> Response:
    try:
        return invocation.client().call(f"Cluster/{method}", request, response_type, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None


def _members(invocation: Invocation) -> rpc_pb2.MemberListResponse:
    request = rpc_pb2.MemberListRequest(linearizable=True)
    return _call(invocation, "MemberList", request, rpc_pb2.MemberListResponse)


def list_members(invocation: Invocation) -> None:
    """Print the members."""
    response = _members(invocation)
    invocation.printer().member_list(response)


def add(invocation: Invocation) -> None:
    """Add a member, and print how to start it."""
    if not invocation.words:
        raise bad_args("member name not provided")
    if len(invocation.words) > 1:
        text = "too many arguments"
        if any("=" not in word and word.startswith("http") for word in invocation.words):
            text += f", did you mean --peer-urls={invocation.words[1]}"
        raise bad_args(text)
    urls = invocation.flags.text("peer-urls")
    if not urls:
        raise bad_args("member peer urls not provided")
    request = rpc_pb2.MemberAddRequest(peerURLs=urls.split(","), isLearner=invocation.flags.on("learner"))
    response = _call(invocation, "MemberAdd", request, rpc_pb2.MemberAddResponse)
    printer = invocation.printer()
    printer.member_add(response)
    if printer.name != "simple":
        return
    cluster = [
        f"{invocation.words[0] if member.ID == response.member.ID else member.name}={url}"
        for member in response.members
        for url in member.peerURLs
    ]
    invocation.line("")
    invocation.line(f'ETCD_NAME="{invocation.words[0]}"')
    invocation.line(f'ETCD_INITIAL_CLUSTER="{",".join(cluster)}"')
    invocation.line(f'ETCD_INITIAL_ADVERTISE_PEER_URLS="{urls}"')
    invocation.line('ETCD_INITIAL_CLUSTER_STATE="existing"')


def remove(invocation: Invocation) -> None:
    """Remove a member."""
    member_id = _member_id(invocation)
    request = rpc_pb2.MemberRemoveRequest(ID=member_id)
    response = _call(invocation, "MemberRemove", request, rpc_pb2.MemberRemoveResponse)
    invocation.printer().member_remove(member_id, response)


def update(invocation: Invocation) -> None:
    """Change a member's peer addresses."""
    member_id = _member_id(invocation)
    urls = invocation.flags.text("peer-urls")
    if not urls:
        raise bad_args("member peer urls not provided")
    request = rpc_pb2.MemberUpdateRequest(ID=member_id, peerURLs=urls.split(","))
    response = _call(invocation, "MemberUpdate", request, rpc_pb2.MemberUpdateResponse)
    invocation.printer().member_update(member_id, response)


def promote(invocation: Invocation) -> None:
    """Make a learner a voting member."""
    member_id = _member_id(invocation)
    request = rpc_pb2.MemberPromoteRequest(ID=member_id)
    response = _call(invocation, "MemberPromote", request, rpc_pb2.MemberPromoteResponse)
    invocation.printer().member_promote(member_id, response)


def _member_id(invocation: Invocation) -> int:
    if len(invocation.words) != 1:
        raise bad_args("member ID is not provided")
    try:
        return parse_int(invocation.words[0], 16, unsigned=True)
    except ValueError as error:
        raise bad_args(f"bad member ID arg ({error}), expecting ID in Hex") from None
