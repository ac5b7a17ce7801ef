"""``-w simple``: lines for people and for scripts; keys and values are printed as they are, or in ``\\x`` notation."""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.proto import auth_pb2, kv_pb2, rpc_pb2
from recipes.ctl.gotext import format_duration
from recipes.ctl.printers.base import Hashes, Health, Printer, Statuses
from recipes.ctl.printers.rows import hash_rows, member_rows, status_rows, truth
from recipes.ctl.ranges import prefix_end


class SimplePrinter(Printer):
    """The default format."""

    name = "simple"
    value_only = False

    def _pair(self, pair: kv_pb2.KeyValue) -> None:
        if not self.value_only:
            self.write(self._shown(pair.key))
        self.write(self._shown(pair.value))

    def _shown(self, value: bytes) -> str | bytes:
        return "".join(f"\\x{byte:02x}" for byte in value) if self.hex_output else value

    def get(self, response: rpc_pb2.RangeResponse) -> None:
        for pair in response.kvs:
            self._pair(pair)

    def put(self, response: rpc_pb2.PutResponse) -> None:
        self.write("OK")
        if response.HasField("prev_kv"):
            self._pair(response.prev_kv)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        self.write(str(response.deleted))
        for pair in response.prev_kvs:
            self._pair(pair)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        self.write("SUCCESS" if response.succeeded else "FAILURE")
        for answer in response.responses:
            self.write("")
            kind = answer.WhichOneof("response")
            if kind == "response_delete_range":
                self.delete(answer.response_delete_range)
            elif kind == "response_put":
                self.put(answer.response_put)
            elif kind == "response_range":
                self.get(answer.response_range)
            else:
                self.write(f"unexpected response {answer}")

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        for event in response.events:
            self.write(kv_pb2.Event.EventType.Name(event.type))
            if event.HasField("prev_kv"):
                self._pair(event.prev_kv)
            self._pair(event.kv)

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        self.write(f"lease {response.ID:016x} granted with TTL({response.TTL}s)")

    def lease_revoke(self, lease_id: int, response: rpc_pb2.LeaseRevokeResponse) -> None:
        self.write(f"lease {lease_id:016x} revoked")

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        self.write(f"lease {response.ID:016x} keepalived with TTL({response.TTL})")

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, keys: bool) -> None:
        if response.grantedTTL == 0 and response.TTL == -1:
            self.write(f"lease {response.ID:016x} already expired")
            return
        text = f"lease {response.ID:016x} granted with TTL({response.grantedTTL}s), remaining({response.TTL}s)"
        shown = b", attached keys([" + b" ".join(response.keys) + b"])" if keys else b""
        self.write(text.encode() + shown)

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        self.write(f"found {len(response.leases)} leases")
        for lease in response.leases:
            self.write(f"{lease.ID:016x}")

    def alarm(self, response: rpc_pb2.AlarmResponse) -> None:
        for member in response.alarms:
            parts = []
            if member.memberID:
                parts.append(f"memberID:{member.memberID} ")
            if member.alarm:
                parts.append(f"alarm:{rpc_pb2.AlarmType.Name(member.alarm)} ")
            self.write("".join(parts))

    def member_list(self, response: rpc_pb2.MemberListResponse) -> None:
        for row in member_rows(response):
            self.write(", ".join(row))

    def member_add(self, response: rpc_pb2.MemberAddResponse) -> None:
        self.write(f"Member {response.member.ID:16x} added to cluster {response.header.cluster_id:16x}")

    def member_remove(self, member_id: int, response: rpc_pb2.MemberRemoveResponse) -> None:
        self.write(f"Member {member_id:16x} removed from cluster {response.header.cluster_id:16x}")

    def member_update(self, member_id: int, response: rpc_pb2.MemberUpdateResponse) -> None:
        self.write(f"Member {member_id:16x} updated in cluster {response.header.cluster_id:16x}")

    def member_promote(self, member_id: int, response: rpc_pb2.MemberPromoteResponse) -> None:
        self.write(f"Member {member_id:16x} promoted in cluster {response.header.cluster_id:16x}")

    def move_leader(self, leader: int, target: int, response: rpc_pb2.MoveLeaderResponse) -> None:
        self.write(f"Leadership transferred from {leader:x} to {target:x}")

    def endpoint_health(self, healths: Sequence[Health]) -> None:
        for health in healths:
            if health.healthy:
                took = format_duration(health.took_nanoseconds)
                self.write(f"{health.endpoint} is healthy: successfully committed proposal: took = {took}")

    def endpoint_status(self, statuses: Statuses) -> None:
        for row in status_rows(statuses):
            self.write(", ".join(row))

    def endpoint_hash_kv(self, hashes: Hashes) -> None:
        for row in hash_rows(hashes):
            self.write(", ".join(row))

    def auth_status(self, response: rpc_pb2.AuthStatusResponse) -> None:
        self.write(f"Authentication Status: {truth(response.enabled)}")
        self.write(f"AuthRevision: {response.authRevision}")

    def user_add(self, user: str, response: rpc_pb2.AuthUserAddResponse) -> None:
        self.write(f"User {user} created")

    def user_get(self, user: str, response: rpc_pb2.AuthUserGetResponse) -> None:
        self.write(f"User: {user}")
        self.write("Roles:" + "".join(f" {role}" for role in response.roles))

    def user_list(self, response: rpc_pb2.AuthUserListResponse) -> None:
        for user in response.users:
            self.write(user)

    def user_delete(self, user: str, response: rpc_pb2.AuthUserDeleteResponse) -> None:
        self.write(f"User {user} deleted")

    def user_change_password(self, response: rpc_pb2.AuthUserChangePasswordResponse) -> None:
        self.write("Password updated")

    def user_grant_role(self, user: str, role: str, response: rpc_pb2.AuthUserGrantRoleResponse) -> None:
        self.write(f"Role {role} is granted to user {user}")

    def user_revoke_role(self, user: str, role: str, response: rpc_pb2.AuthUserRevokeRoleResponse) -> None:
        self.write(f"Role {role} is revoked from user {user}")

    def role_add(self, role: str, response: rpc_pb2.AuthRoleAddResponse) -> None:
        self.write(f"Role {role} created")

    def role_get(self, role: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        self.write(f"Role {role}")
        for title, kinds in (
            ("KV Read:", (auth_pb2.Permission.READ, auth_pb2.Permission.READWRITE)),
            ("KV Write:", (auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE)),
        ):
            self.write(title)
            for permission in response.perm:
                if permission.permType in kinds:
                    self._permission(permission)

    def _permission(self, permission: auth_pb2.Permission) -> None:
        key, end = permission.key, permission.range_end
        if not end:
            self.write(b"\t" + key)
            return
        shown = b"\t[" + key + b", " + (end + b")" if end != b"\0" else b"<open ended>")
        if prefix_end(key) == end and key:
            shown += b" (prefix " + key + b")"
        self.write(shown)

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        for role in response.roles:
            self.write(role)

    def role_delete(self, role: str, response: rpc_pb2.AuthRoleDeleteResponse) -> None:
        self.write(f"Role {role} deleted")

    def role_grant_permission(self, role: str, response: rpc_pb2.AuthRoleGrantPermissionResponse) -> None:
        self.write(f"Role {role} updated")

    def role_revoke_permission(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        ending = f" is revoked from role {role}".encode()
        if not range_end:
            self.write(b"Permission of key " + key + ending)
        else:
            last = range_end + b")" if range_end != b"\0" else b"<open ended>"
            self.write(b"Permission of range [" + key + b", " + last + ending)
