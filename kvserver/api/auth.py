"""The Auth service while authentication cannot be enabled yet: there are no users and no roles, and it says so.

Every answer is the one that a server without users gives; only what would make the first user or role is refused as
not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvserver import errors
from kvserver.api.calls import Done, read_call, unchecked
from kvserver.errors import Code, KvError
from kvserver.node.service import NodeService
from kvserver.proto import rpc_pb2 as pb
from kvserver.wire.server import UnaryMethod

PREFIX = b"/etcdserverpb.Auth/"

AUTH_REVISION = 1
"""The auth store's revision as long as nothing was ever changed in it."""


def _fail(error: Callable[[], KvError]) -> Callable[[object, Done], None]:
    def method(request: object, done: Done) -> None:
        done(error())

    return method


def _unsupported(what: str) -> KvError:
    return KvError(f"kvserver: {what} not supported yet", Code.UNIMPLEMENTED)


def methods(node: NodeService) -> dict[bytes, UnaryMethod]:
    """Answer the service's methods by path."""

    def status(request: pb.AuthStatusRequest, done: Done) -> None:
        done(
            pb.AuthStatusResponse(
                header=node.response_header(), enabled=False, authRevision=AUTH_REVISION
            ).SerializeToString()
        )

    def disable(request: pb.AuthDisableRequest, done: Done) -> None:
        done(pb.AuthDisableResponse(header=node.response_header()).SerializeToString())

    def users(request: pb.AuthUserListRequest, done: Done) -> None:
        done(pb.AuthUserListResponse(header=node.response_header()).SerializeToString())

    def roles(request: pb.AuthRoleListRequest, done: Done) -> None:
        done(pb.AuthRoleListResponse(header=node.response_header()).SerializeToString())

    def add_user(request: pb.AuthUserAddRequest, done: Done) -> None:
        done(_unsupported("users are") if request.name else errors.UserEmptyError())

    def add_role(request: pb.AuthRoleAddRequest, done: Done) -> None:
        done(_unsupported("roles are") if request.name else errors.RoleEmptyError())

    no_user = _fail(errors.UserNotFoundError)
    no_role = _fail(errors.RoleNotFoundError)
    table: dict[str, tuple[Any, Callable[[Any, Done], None]]] = {
        "AuthEnable": (pb.AuthEnableRequest, _fail(errors.RootUserNotExistError)),
        "AuthDisable": (pb.AuthDisableRequest, disable),
        "AuthStatus": (pb.AuthStatusRequest, status),
        "Authenticate": (pb.AuthenticateRequest, _fail(errors.AuthNotEnabledError)),
        "UserAdd": (pb.AuthUserAddRequest, add_user),
        "UserGet": (pb.AuthUserGetRequest, no_user),
        "UserList": (pb.AuthUserListRequest, users),
        "UserDelete": (pb.AuthUserDeleteRequest, no_user),
        "UserChangePassword": (pb.AuthUserChangePasswordRequest, no_user),
        "UserGrantRole": (pb.AuthUserGrantRoleRequest, no_user),
        "UserRevokeRole": (pb.AuthUserRevokeRoleRequest, no_user),
        "RoleAdd": (pb.AuthRoleAddRequest, add_role),
        "RoleGet": (pb.AuthRoleGetRequest, no_role),
        "RoleList": (pb.AuthRoleListRequest, roles),
        "RoleDelete": (pb.AuthRoleDeleteRequest, no_role),
        "RoleGrantPermission": (pb.AuthRoleGrantPermissionRequest, no_role),
        "RoleRevokePermission": (pb.AuthRoleRevokePermissionRequest, no_role),
    }
    return {
        PREFIX + name.encode(): UnaryMethod(read_call(node, name, message.FromString, unchecked, method))
        for name, (message, method) in table.items()
    }
