"""``user add``, ``delete``, ``get``, ``list``, ``passwd``, ``grant-role`` and ``revoke-role``."""

from __future__ import annotations

from kvserver.proto import auth_pb2, rpc_pb2
from recipes.ctl.auth import call
from recipes.ctl.exits import bad_args
from recipes.ctl.invocation import Invocation


def add(invocation: Invocation) -> None:
    """Make a user."""
    flags = invocation.flags
    if len(invocation.words) != 1:
        raise bad_args("user add command requires user name as its argument")
    name, password = invocation.words[0], ""
    if not flags.on("no-password"):
        password = flags.text("new-user-password")
        if not password:
            user, colon, password = name.partition(":")
            if colon:
                name = user
                if not name:
                    raise bad_args("empty user name is not allowed")
            else:
                password = _read_password(invocation, name)
    request = rpc_pb2.AuthUserAddRequest(
        name=name, password=password, options=auth_pb2.UserAddOptions(no_password=flags.on("no-password"))
    )
    response = call(invocation, "UserAdd", request, rpc_pb2.AuthUserAddResponse)
    invocation.printer().user_add(name, response)


def delete(invocation: Invocation) -> None:
    """Remove a user."""
    if len(invocation.words) != 1:
        raise bad_args("user delete command requires user name as its argument")
    name = invocation.words[0]
    request = rpc_pb2.AuthUserDeleteRequest(name=name)
    response = call(invocation, "UserDelete", request, rpc_pb2.AuthUserDeleteResponse)
    invocation.printer().user_delete(name, response)


def get(invocation: Invocation) -> None:
    """Show a user's roles."""
    if len(invocation.words) != 1:
        raise bad_args("user get command requires user name as its argument")
    name = invocation.words[0]
    response = call(invocation, "UserGet", rpc_pb2.AuthUserGetRequest(name=name), rpc_pb2.AuthUserGetResponse)
    if not invocation.flags.on("detail"):
        invocation.printer().user_get(name, response)
        return
    invocation.line(f"User: {name}")
    for role in response.roles:
        invocation.line("")
        request = rpc_pb2.AuthRoleGetRequest(role=role)
        invocation.printer().role_get(role, call(invocation, "RoleGet", request, rpc_pb2.AuthRoleGetResponse))


def list_users(invocation: Invocation) -> None:
    """Print the users."""
    if invocation.words:
        raise bad_args("user list command requires no arguments")
    response = call(invocation, "UserList", rpc_pb2.AuthUserListRequest(), rpc_pb2.AuthUserListResponse)
    invocation.printer().user_list(response)


def change_password(invocation: Invocation) -> None:
    """Give a user another password."""
    if len(invocation.words) != 1:
        raise bad_args("user passwd command requires user name as its argument")
    name = invocation.words[0]
    request = rpc_pb2.AuthUserChangePasswordRequest(name=name, password=_read_password(invocation, name))
    response = call(invocation, "UserChangePassword", request, rpc_pb2.AuthUserChangePasswordResponse)
    invocation.printer().user_change_password(response)


def grant_role(invocation: Invocation) -> None:
    """Give a user a role."""
    if len(invocation.words) != 2:
        raise bad_args("user grant command requires user name and role name as its argument")
    user, role = invocation.words
    request = rpc_pb2.AuthUserGrantRoleRequest(user=user, role=role)
    response = call(invocation, "UserGrantRole", request, rpc_pb2.AuthUserGrantRoleResponse)
    invocation.printer().user_grant_role(user, role, response)


def revoke_role(invocation: Invocation) -> None:
    """Take a role from a user."""
    if len(invocation.words) != 2:
        raise bad_args("user revoke-role requires user name and role name as its argument")
    user, role = invocation.words
    request = rpc_pb2.AuthUserRevokeRoleRequest(name=user, role=role)
    response = call(invocation, "UserRevokeRole", request, rpc_pb2.AuthUserRevokeRoleResponse)
    invocation.printer().user_revoke_role(user, role, response)


def _read_password(invocation: Invocation, name: str) -> str:
    """Read a password: twice from the terminal, or once from standard input with ``--interactive=false``."""
    if not invocation.flags.on("interactive"):
        words = invocation.stdin.readline().split()
        return words[0].decode("utf-8", "surrogateescape") if words else ""
    from recipes.ctl.passwords import ask

    password = ask(invocation, f"Password of {name}: ")
    if not password:
        raise bad_args("empty password")
    if ask(invocation, f"Type password of {name} again for confirmation: ") != password:
        raise bad_args("given passwords are different")
    return password
