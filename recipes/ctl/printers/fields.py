"""``-w fields``: a ``"Name" : value`` line a field; strings as Go literals."""

from __future__ import annotations

from collections.abc import Sequence

from kvserver.proto import auth_pb2, kv_pb2, rpc_pb2
from recipes.ctl.gotext import format_duration, quote
from recipes.ctl.printers.base import Hashes, Health, Printer, Statuses
from recipes.ctl.printers.rows import truth


class FieldsPrinter(Printer):
    """The fields format."""

    name = "fields"

    def _field(self, name: str, value: object) -> None:
        if isinstance(value, bool):
            value = truth(value)
        elif isinstance(value, bytes):
            value = quote(value)
        self.write(f'"{name}" : {value}')

    def _header(self, header: rpc_pb2.ResponseHeader) -> None:
        self._field("ClusterID", header.cluster_id)
        self._field("MemberID", header.member_id)
        self._field("Revision", header.revision)
        self._field("RaftTerm", header.raft_term)

    def _pair(self, prefix: str, pair: kv_pb2.KeyValue) -> None:
        self._field(f"{prefix}Key", pair.key)
        self._field(f"{prefix}CreateRevision", pair.create_revision)
        self._field(f"{prefix}ModRevision", pair.mod_revision)
        self._field(f"{prefix}Version", pair.version)
        self._field(f"{prefix}Value", pair.value)
        self._field(f"{prefix}Lease", pair.lease)

    def get(self, response: rpc_pb2.RangeResponse) -> None:
        self._header(response.header)
        for pair in response.kvs:
            self._pair("", pair)
        self._field("More", response.more)
        self._field("Count", response.count)

    def put(self, response: rpc_pb2.PutResponse) -> None:
        self._header(response.header)
        if response.HasField("prev_kv"):
            self._pair("Prev", response.prev_kv)

    def delete(self, response: rpc_pb2.DeleteRangeResponse) -> None:
        self._header(response.header)
        self._field("Deleted", response.deleted)
        for pair in response.prev_kvs:
            self._pair("Prev", pair)

    def txn(self, response: rpc_pb2.TxnResponse) -> None:
        self._header(response.header)
        self._field("Succeeded", response.succeeded)
        for answer in response.responses:
            kind = answer.WhichOneof("response")
            if kind == "response_delete_range":
                self.delete(answer.response_delete_range)
            elif kind == "response_put":
                self.put(answer.response_put)
            elif kind == "response_range":
                self.get(answer.response_range)
            else:
                self._field("Unknown", quote(str(answer)))

    def watch(self, response: rpc_pb2.WatchResponse) -> None:
        self._header(response.header)
        for event in response.events:
            self._field("Type", kv_pb2.Event.EventType.Name(event.type))
            if event.HasField("prev_kv"):
                self._pair("Prev", event.prev_kv)
            self._pair("", event.kv)

    def lease_grant(self, response: rpc_pb2.LeaseGrantResponse) -> None:
        self._header(response.header)
        self._field("ID", response.ID)
        self._field("TTL", response.TTL)

    def lease_revoke(self, lease_id: int, response: rpc_pb2.LeaseRevokeResponse) -> None:
        self._header(response.header)

    def lease_keep_alive(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        self._header(response.header)
        self._field("ID", response.ID)
        self._field("TTL", response.TTL)

    def lease_time_to_live(self, response: rpc_pb2.LeaseTimeToLiveResponse, keys: bool) -> None:
        self._header(response.header)
        self._field("ID", response.ID)
        self._field("TTL", response.TTL)
        self._field("GrantedTTL", response.grantedTTL)
        for key in response.keys:
            self._field("Key", key)

    def leases(self, response: rpc_pb2.LeaseLeasesResponse) -> None:
        self._header(response.header)
        for lease in response.leases:
            self._field("ID", lease.ID)

    def alarm(self, response: rpc_pb2.AlarmResponse) -> None:
        self._header(response.header)
        for member in response.alarms:
            self._field("MemberID", member.memberID)
            self._field("AlarmType", rpc_pb2.AlarmType.Name(member.alarm))
            self.write("")

    def member_list(self, response: rpc_pb2.MemberListResponse) -> None:
        self._header(response.header)
        for member in response.members:
            self._field("ID", member.ID)
            self._field("Name", quote(member.name))
            for url in member.peerURLs:
                self._field("PeerURL", quote(url))
            for url in member.clientURLs:
                self._field("ClientURL", quote(url))
            self._field("IsLearner", member.isLearner)
            self.write("")

    def endpoint_health(self, healths: Sequence[Health]) -> None:
        for health in healths:
            self._field("Endpoint", quote(health.endpoint))
            self._field("Health", health.healthy)
            self._field("Took", format_duration(health.took_nanoseconds))
            self._field("Error", health.error)
            self.write("")

    def endpoint_status(self, statuses: Statuses) -> None:
        for endpoint, status in statuses:
            self._header(status.header)
            self._field("Version", quote(status.version))
            self._field("DBSize", status.dbSize)
            self._field("Leader", status.leader)
            self._field("IsLearner", status.isLearner)
            self._field("RaftIndex", status.raftIndex)
            self._field("RaftTerm", status.raftTerm)
            self._field("RaftAppliedIndex", status.raftAppliedIndex)
            self._field("Errors", f"[{' '.join(status.errors)}]")
            self._field("Endpoint", quote(endpoint))
            self.write("")

    def endpoint_hash_kv(self, hashes: Hashes) -> None:
        for endpoint, answer in hashes:
            self._header(answer.header)
            self._field("Endpoint", quote(endpoint))
            self._field("Hash", answer.hash)
            self.write("")

    def role_add(self, role: str, response: rpc_pb2.AuthRoleAddResponse) -> None:
        self._header(response.header)

    def role_get(self, role: str, response: rpc_pb2.AuthRoleGetResponse) -> None:
        self._header(response.header)
        for permission in response.perm:
            self.write(f'"PermType" :  {auth_pb2.Permission.Type.Name(permission.permType)}')
            self._field("Key", permission.key)
            self._field("RangeEnd", permission.range_end)

    def role_list(self, response: rpc_pb2.AuthRoleListResponse) -> None:
        self._header(response.header)
        self.write('"Roles" :' + "".join(f" {quote(role)}" for role in response.roles))

    def role_delete(self, role: str, response: rpc_pb2.AuthRoleDeleteResponse) -> None:
        self._header(response.header)

    def role_grant_permission(self, role: str, response: rpc_pb2.AuthRoleGrantPermissionResponse) -> None:
        self._header(response.header)

    def role_revoke_permission(
        self, role: str, key: bytes, range_end: bytes, response: rpc_pb2.AuthRoleRevokePermissionResponse
    ) -> None:
        self._header(response.header)

    def user_add(self, user: str, response: rpc_pb2.AuthUserAddResponse) -> None:
        self._header(response.header)

    def user_delete(self, user: str, response: rpc_pb2.AuthUserDeleteResponse) -> None:
        self._header(response.header)

    def user_change_password(self, response: rpc_pb2.AuthUserChangePasswordResponse) -> None:
        self._header(response.header)

    def user_grant_role(self, user: str, role: str, response: rpc_pb2.AuthUserGrantRoleResponse) -> None:
        self._header(response.header)

    def user_revoke_role(self, user: str, role: str, response: rpc_pb2.AuthUserRevokeRoleResponse) -> None:
        self._header(response.header)
