"""``auth enable``, ``disable`` and ``status``."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError, bad_args
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError

Response = TypeVar("Response", bound=Message)


def call(invocation: Invocation, method: str, request: Message, response_type: type[Response]) -> Response:
    """Call a method of the Auth service.

    Raises:
        CommandError: it failed.
    """
    try:
        return invocation.client().call(f"Auth/{method}", request, response_type, invocation.timeout)
    except CallError as error:
        raise CommandError(EXIT_ERROR, str(error)) from None


def enable(invocation: Invocation) -> None:
    """Turn authentication on; the root role is made and given to root first if need be."""
    if invocation.words:
        raise bad_args("auth enable command does not accept any arguments")
    try:
        call(invocation, "AuthEnable", rpc_pb2.AuthEnableRequest(), rpc_pb2.AuthEnableResponse)
    except CommandError as error:
        if error.text != "etcdserver: root user does not have root role":
            raise
        call(invocation, "RoleAdd", rpc_pb2.AuthRoleAddRequest(name="root"), rpc_pb2.AuthRoleAddResponse)
        request = rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root")
        call(invocation, "UserGrantRole", request, rpc_pb2.AuthUserGrantRoleResponse)
        call(invocation, "AuthEnable", rpc_pb2.AuthEnableRequest(), rpc_pb2.AuthEnableResponse)
    invocation.line("Authentication Enabled")


def disable(invocation: Invocation) -> None:
    """Turn authentication off."""
    if invocation.words:
        raise bad_args("auth disable command does not accept any arguments")
    call(invocation, "AuthDisable", rpc_pb2.AuthDisableRequest(), rpc_pb2.AuthDisableResponse)
    invocation.line("Authentication Disabled")


def status(invocation: Invocation) -> None:
    """Say whether authentication is on."""
    if invocation.words:
        raise bad_args("auth status command does not accept any arguments")
    response = call(invocation, "AuthStatus", rpc_pb2.AuthStatusRequest(), rpc_pb2.AuthStatusResponse)
    invocation.printer().auth_status(response)
