"""What every printer can be asked to print; a format that has no way for something refuses it, as etcdctl does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from google.protobuf.message import Message

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_BAD_FEATURE, CommandError
from recipes.ctl.gotext import raw


class Health:
    """What became of asking one endpoint."""

    __slots__ = ("endpoint", "error", "took_nanoseconds")

    def __init__(self, endpoint: str, took_nanoseconds: int, error: str) -> None:
        self.endpoint = endpoint
        self.took_nanoseconds = took_nanoseconds
        self.error = error

    @property
    def healthy(self) -> bool:
        """Whether it answered."""
        return not self.error


Statuses = Sequence[tuple[str, rpc_pb2.StatusResponse]]
Hashes = Sequence[tuple[str, rpc_pb2.HashKVResponse]]


class Printer:
    """A format. Every method defaults to :meth:`message`, which refuses.

    Args:
        stdout: Where to print.
        hex_output: Whether ``--hex`` was given.
    """

    name = ""

    def __init__(self, stdout: BinaryIO, hex_output: bool) -> None:
        self._stdout = stdout
        self.hex_output = hex_output

    def write(self, text: str | bytes) -> None:
        """Print a line."""
        self._stdout.write(raw(text) if isinstance(text, str) else text)
        self._stdout.write(b"\n")

    def message(self, response: Message) -> None:
        """Print an answer for which this format has no special form.

        Raises:
            CommandError: this format has none.
        """
        raise self.unsupported()

    def unsupported(self) -> CommandError:
        """Answer the refusal."""
        return CommandError(EXIT_BAD_FEATURE, f"{self.name} not supported as output format")

    # keys

    def get(self, response: rpc_pb2.RangeResponse) -> None:
        """Print a range."""
        self.message(response)

    def put(self, response: rpc_pb2.PutResponse) -> None:
        """Print the answer of a put."""
        self.message(response)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        """Print the answer of a deletion."""
        self.message(response)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        """Print the answers of a txn."""
        self.message(response)

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        """Print what a watch told."""
        self.message(response)

    # leases

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        """Print a new lease."""
        self.message(response)

    def lease_revoke(self, lease_id: int, response: rpc_pb2.LeaseRevokeResponse) -> None:
        """Print that a lease is gone."""
        self.message(response)

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        """Print a renewal."""
        self.message(response)

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, keys: bool) -> None:
        """Print a lease, with its keys if they were asked for."""
        self.message(response)

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        """Print all leases."""
        self.message(response)

    # cluster and maintenance

    def alarm(self, response: rpc_pb2.AlarmResponse) -> None:
        """Print alarms."""
        self.message(response)

    def member_list(self, response: rpc_pb2.MemberListResponse) -> None:
        """Print the members."""
        self.message(response)

    def member_add(self, response: rpc_pb2.MemberAddResponse) -> None:
        """Print that a member was added."""
        self.message(response)

    def member_remove(self, member_id: int, response: rpc_pb2.MemberRemoveResponse) -> None:
        """Print that a member was removed."""
        self.message(response)

    def member_update(self, member_id: int, response: rpc_pb2.MemberUpdateResponse) -> None:
        """Print that a member was updated."""
        self.message(response)

    def member_promote(self, member_id: int, response: rpc_pb2.MemberPromoteResponse) -> None:
        """Print that a member was promoted."""
        self.message(response)

    def move_leader(self, leader: int, target: int, response: rpc_pb2.MoveLeaderResponse) -> None:
        """Print that leadership was handed over."""
        self.message(response)

    def endpoint_health(self, healths: Sequence[Health]) -> None:
        """Print how endpoints are; every format has its own form."""
        raise self.unsupported()

    def endpoint_status(self, statuses: Statuses) -> None:
        """Print endpoints' status; every format has its own form."""
        raise self.unsupported()

    def endpoint_hash_kv(self, hashes: Hashes) -> None:
        """Print endpoints' hashes; every format has its own form."""
        raise self.unsupported()

    # auth

    def auth_status(self, response: rpc_pb2.AuthStatusResponse) -> None:
        """Print whether authentication is on."""
        self.message(response)

    def user_add(self, user: str, response: rpc_pb2.AuthUserAddResponse) -> None:
        """Print that a user was made."""
        self.message(response)

    def user_get(self, user: str, response: rpc_pb2.AuthUserGetResponse) -> None:
        """Print a user's roles."""
        self.message(response)

    def user_list(self, response: rpc_pb2.AuthUserListResponse) -> None:
        """Print the users."""
        self.message(response)

    def user_delete(self, user: str, response: rpc_pb2.AuthUserDeleteResponse) -> None:
        """Print that a user is gone."""
        self.message(response)

    def user_change_password(self, response: rpc_pb2.AuthUserChangePasswordResponse) -> None:
        """Print that a password was changed."""
        self.message(response)

    def user_grant_role(self, user: str, role: str, response: rpc_pb2.AuthUserGrantRoleResponse) -> None:
        """Print that a user got a role."""
        self.message(response)

    def user_revoke_role(self, user: str, role: str, response: rpc_pb2.AuthUserRevokeRoleResponse) -> None:
        """Print that a user lost a role."""
        self.message(response)

    def role_add(self, role: str, response: rpc_pb2.AuthRoleAddResponse) -> None:
        """Print that a role was made."""
        self.message(response)

    def role_get(self, role: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        """Print a role's permissions."""
        self.message(response)

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        """Print the roles."""
        self.message(response)

    def role_delete(self, role: str, response: rpc_pb2.AuthRoleDeleteResponse) -> None:
        """Print that a role is gone."""
        self.message(response)

    def role_grant_permission(self, role: str, response: rpc_pb2.AuthRoleGrantPermissionResponse) -> None:
        """Print that a role got a permission."""
        self.message(response)

    def role_revoke_permission(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        """Print that a role lost a permission."""
        self.message(response)
