"""``role add``, ``delete``, ``get``, ``list``, ``grant-permission`` and ``revoke-permission``."""

from __future__ import annotations

from kvserver.proto import auth_pb2, rpc_pb2
from recipes.ctl.auth import call
from recipes.ctl.exits import bad_args
from recipes.ctl.flags import FlagSet
from recipes.ctl.invocation import Invocation
from recipes.ctl.ranges import resolve


def add(invocation: Invocation) -> None:
    """Make a role."""
    name = _name(invocation, "add")
    response = call(invocation, "RoleAdd", rpc_pb2.AuthRoleAddRequest(name=name), rpc_pb2.AuthRoleAddResponse)
    invocation.printer().role_add(name, response)


def delete(invocation: Invocation) -> None:
    """Remove a role."""
    name = _name(invocation, "delete")
    request = rpc_pb2.AuthRoleDeleteRequest(role=name)
    response = call(invocation, "RoleDelete", request, rpc_pb2.AuthRoleDeleteResponse)
    invocation.printer().role_delete(name, response)


def get(invocation: Invocation) -> None:
    """Show a role's permissions."""
    name = _name(invocation, "get")
    response = call(invocation, "RoleGet", rpc_pb2.AuthRoleGetRequest(role=name), rpc_pb2.AuthRoleGetResponse)
    invocation.printer().role_get(name, response)


def list_roles(invocation: Invocation) -> None:
    """Print the roles."""
    if invocation.words:
        raise bad_args("role list command requires no arguments")
    response = call(invocation, "RoleList", rpc_pb2.AuthRoleListRequest(), rpc_pb2.AuthRoleListResponse)
    invocation.printer().role_list(response)


def grant_permission(invocation: Invocation) -> None:
    """Let a role read or write keys."""
    if len(invocation.words) < 3:
        raise bad_args("role grant command requires role name, permission type, and key [endkey] as its argument")
    role, kind = invocation.words[:2]
    names = auth_pb2.Permission.Type.keys()
    if kind.upper() not in names:
        raise bad_args(f"invalid permission type: {kind}")
    key, end = permission_range(invocation.args[2:], invocation.flags)
    permission = auth_pb2.Permission(permType=auth_pb2.Permission.Type.Value(kind.upper()), key=key, range_end=end)
    request = rpc_pb2.AuthRoleGrantPermissionRequest(name=role, perm=permission)
    response = call(invocation, "RoleGrantPermission", request, rpc_pb2.AuthRoleGrantPermissionResponse)
    invocation.printer().role_grant_permission(role, response)


def revoke_permission(invocation: Invocation) -> None:
    """Take a permission from a role."""
    if len(invocation.words) < 2:
        raise bad_args("role revoke-permission command requires role name and key [endkey] as its argument")
    role = invocation.words[0]
    key, end = permission_range(invocation.args[1:], invocation.flags)
    request = rpc_pb2.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end)
    response = call(invocation, "RoleRevokePermission", request, rpc_pb2.AuthRoleRevokePermissionResponse)
    invocation.printer().role_revoke_permission(role, key, end, response)


def permission_range(args: list[bytes], flags: FlagSet) -> tuple[bytes, bytes]:
    """Answer the range of a permission.

    Raises:
        CommandError: arguments and flags contradict each other.
    """
    prefix, from_key = flags.on("prefix"), flags.on("from-key")
    if len(args) == 1:
        if prefix and from_key:
            raise bad_args("--from-key and --prefix flags are mutually exclusive")
        return resolve(args[0], None, prefix=prefix, from_key=from_key)
    if prefix:
        raise bad_args("unexpected endkey argument with --prefix flag")
    if from_key:
        raise bad_args("unexpected endkey argument with --from-key flag")
    return args[0], args[1]


def _name(invocation: Invocation, verb: str) -> str:
    if len(invocation.words) != 1:
        raise bad_args(f"role {verb} command requires role name as its argument")
    return invocation.words[0]
