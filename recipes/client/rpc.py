"""The raw protocol, typed: ``await client.rpc.kv.range(RangeRequest(...))`` answers a ``RangeResponse``.

One attribute a service, one callable a method, messages as in ``kvserver.proto``. No namespaces, no translation of
results; failures are :class:`recipes.errors.ClientError`. Use it for what the client's own surface does not have.

>>> from kvserver.proto.rpc_pb2 import MemberListRequest
>>> async def names(client):
...     answer = await client.rpc.cluster.member_list(MemberListRequest())
...     return [member.name for member in answer.members]
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from google.protobuf.message import Message

from kvserver.proto import election_pb2, health_pb2, lock_pb2, rpc_pb2
from kvserver.wire.client import ClientStream, GrpcError
from recipes.client.channel import Channel
from recipes.errors import ClientError, client_error

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class UnaryCall(Generic[Request, Response]):
    """One unary method: call it with a request, await the answer."""

    __slots__ = ("_channel", "_parse", "path", "read_only", "request_type", "response_type")

    def __init__(
        self,
        channel: Channel,
        path: bytes,
        request_type: type[Request],
        response_type: type[Response],
        *,
        read_only: bool = False,
    ) -> None:
        self._channel = channel
        self._parse = response_type.FromString
        self.path = path
        self.request_type = request_type
        self.response_type = response_type
        self.read_only = read_only

    async def __call__(self, request: Request, *, timeout: float | None = None, read_only: bool = False) -> Response:
        """Call the method.

        Args:
            request: The request message.
            timeout: Deadline in seconds; the client's default when None.
            read_only: This very request changes nothing (a txn of reads, say), so it may be repeated after a failure.

        Raises:
            OutcomeUnknownError: a write was sent and its answer lost.
            ClientError: any other failure; code and text are the server's.
        """
        return self._parse(
            await self._channel.unary(
                self.path, request.SerializeToString(), timeout, read_only=read_only or self.read_only
            )
        )


class MessageStream(Generic[Request, Response]):
    """A stream of messages in both directions; iterate over it or ``recv()``."""

    __slots__ = ("_parse", "_stream")

    def __init__(self, stream: ClientStream, response_type: type[Response]) -> None:
        self._stream = stream
        self._parse = response_type.FromString

    def send(self, request: Request) -> None:
        """Send one message."""
        self._stream.send(request.SerializeToString())

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._stream.half_close()

    async def recv(self) -> Response | None:
        """Answer the next message, or None at the end of the stream.

        Raises:
            ClientError: the stream failed.
        """
        try:
            message = await self._stream.recv()
        except GrpcError as error:
            raise stream_error(error) from None
        return None if message is None else self._parse(message)

    def cancel(self) -> None:
        """End the stream at once; harmless when it has ended."""
        self._stream.cancel()

    async def __aiter__(self) -> AsyncIterator[Response]:
        while (message := await self.recv()) is not None:
            yield message


def stream_error(error: GrpcError) -> ClientError:
    """Answer a stream's failure as an error of the recipes."""
    return client_error(error.code, error.message)


class KvRpc:
    """Range, put, delete, txn, compact."""

    def __init__(self, channel: Channel) -> None:
        self.range = UnaryCall(
            channel, b"/etcdserverpb.KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, read_only=True
        )
        self.put = UnaryCall(channel, b"/etcdserverpb.KV/Put", rpc_pb2.PutRequest, rpc_pb2.PutResponse)
        self.delete_range = UnaryCall(
            channel, b"/etcdserverpb.KV/DeleteRange", rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse
        )
        self.txn = UnaryCall(channel, b"/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
        self.compact = UnaryCall(
            channel, b"/etcdserverpb.KV/Compact", rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse
        )


class LeaseRpc:
    """Grant, revoke and read leases; the keepalive stream is :meth:`Rpc.lease_keepalive`."""

    def __init__(self, channel: Channel) -> None:
        self.grant = UnaryCall(
            channel, b"/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse
        )
        self.revoke = UnaryCall(
            channel, b"/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest, rpc_pb2.LeaseRevokeResponse
        )
        self.time_to_live = UnaryCall(
            channel,
            b"/etcdserverpb.Lease/LeaseTimeToLive",
            rpc_pb2.LeaseTimeToLiveRequest,
            rpc_pb2.LeaseTimeToLiveResponse,
            read_only=True,
        )
        self.leases = UnaryCall(
            channel,
            b"/etcdserverpb.Lease/LeaseLeases",
            rpc_pb2.LeaseLeasesRequest,
            rpc_pb2.LeaseLeasesResponse,
            read_only=True,
        )


class ClusterRpc:
    """The members of the cluster."""

    def __init__(self, channel: Channel) -> None:
        self.member_add = UnaryCall(
            channel, b"/etcdserverpb.Cluster/MemberAdd", rpc_pb2.MemberAddRequest, rpc_pb2.MemberAddResponse
        )
        self.member_remove = UnaryCall(
            channel, b"/etcdserverpb.Cluster/MemberRemove", rpc_pb2.MemberRemoveRequest, rpc_pb2.MemberRemoveResponse
        )
        self.member_update = UnaryCall(
            channel, b"/etcdserverpb.Cluster/MemberUpdate", rpc_pb2.MemberUpdateRequest, rpc_pb2.MemberUpdateResponse
        )
        self.member_list = UnaryCall(
            channel,
            b"/etcdserverpb.Cluster/MemberList",
            rpc_pb2.MemberListRequest,
            rpc_pb2.MemberListResponse,
            read_only=True,
        )
        self.member_promote = UnaryCall(
            channel, b"/etcdserverpb.Cluster/MemberPromote", rpc_pb2.MemberPromoteRequest, rpc_pb2.MemberPromoteResponse
        )


class MaintenanceRpc:
    """What operators do to one member; the snapshot stream is :meth:`Rpc.snapshot`."""

    def __init__(self, channel: Channel) -> None:
        self.alarm = UnaryCall(channel, b"/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest, rpc_pb2.AlarmResponse)
        self.status = UnaryCall(
            channel, b"/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest, rpc_pb2.StatusResponse, read_only=True
        )
        self.defragment = UnaryCall(
            channel, b"/etcdserverpb.Maintenance/Defragment", rpc_pb2.DefragmentRequest, rpc_pb2.DefragmentResponse
        )
        self.hash = UnaryCall(
            channel, b"/etcdserverpb.Maintenance/Hash", rpc_pb2.HashRequest, rpc_pb2.HashResponse, read_only=True
        )
        self.hash_kv = UnaryCall(
            channel, b"/etcdserverpb.Maintenance/HashKV", rpc_pb2.HashKVRequest, rpc_pb2.HashKVResponse, read_only=True
        )
        self.move_leader = UnaryCall(
            channel, b"/etcdserverpb.Maintenance/MoveLeader", rpc_pb2.MoveLeaderRequest, rpc_pb2.MoveLeaderResponse
        )
        self.downgrade = UnaryCall(
            channel, b"/etcdserverpb.Maintenance/Downgrade", rpc_pb2.DowngradeRequest, rpc_pb2.DowngradeResponse
        )


class AuthRpc:
    """Users, roles, permissions."""

    def __init__(self, channel: Channel) -> None:
        self.auth_enable = UnaryCall(
            channel, b"/etcdserverpb.Auth/AuthEnable", rpc_pb2.AuthEnableRequest, rpc_pb2.AuthEnableResponse
        )
        self.auth_disable = UnaryCall(
            channel, b"/etcdserverpb.Auth/AuthDisable", rpc_pb2.AuthDisableRequest, rpc_pb2.AuthDisableResponse
        )
        self.auth_status = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/AuthStatus",
            rpc_pb2.AuthStatusRequest,
            rpc_pb2.AuthStatusResponse,
            read_only=True,
        )
        self.authenticate = UnaryCall(
            channel, b"/etcdserverpb.Auth/Authenticate", rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse
        )
        self.user_add = UnaryCall(
            channel, b"/etcdserverpb.Auth/UserAdd", rpc_pb2.AuthUserAddRequest, rpc_pb2.AuthUserAddResponse
        )
        self.user_get = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/UserGet",
            rpc_pb2.AuthUserGetRequest,
            rpc_pb2.AuthUserGetResponse,
            read_only=True,
        )
        self.user_list = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/UserList",
            rpc_pb2.AuthUserListRequest,
            rpc_pb2.AuthUserListResponse,
            read_only=True,
        )
        self.user_delete = UnaryCall(
            channel, b"/etcdserverpb.Auth/UserDelete", rpc_pb2.AuthUserDeleteRequest, rpc_pb2.AuthUserDeleteResponse
        )
        self.user_change_password = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/UserChangePassword",
            rpc_pb2.AuthUserChangePasswordRequest,
            rpc_pb2.AuthUserChangePasswordResponse,
        )
        self.user_grant_role = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/UserGrantRole",
            rpc_pb2.AuthUserGrantRoleRequest,
            rpc_pb2.AuthUserGrantRoleResponse,
        )
        self.user_revoke_role = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/UserRevokeRole",
            rpc_pb2.AuthUserRevokeRoleRequest,
            rpc_pb2.AuthUserRevokeRoleResponse,
        )
        self.role_add = UnaryCall(
            channel, b"/etcdserverpb.Auth/RoleAdd", rpc_pb2.AuthRoleAddRequest, rpc_pb2.AuthRoleAddResponse
        )
        self.role_get = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/RoleGet",
            rpc_pb2.AuthRoleGetRequest,
            rpc_pb2.AuthRoleGetResponse,
            read_only=True,
        )
        self.role_list = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/RoleList",
            rpc_pb2.AuthRoleListRequest,
            rpc_pb2.AuthRoleListResponse,
            read_only=True,
        )
        self.role_delete = UnaryCall(
            channel, b"/etcdserverpb.Auth/RoleDelete", rpc_pb2.AuthRoleDeleteRequest, rpc_pb2.AuthRoleDeleteResponse
        )
        self.role_grant_permission = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/RoleGrantPermission",
            rpc_pb2.AuthRoleGrantPermissionRequest,
            rpc_pb2.AuthRoleGrantPermissionResponse,
        )
        self.role_revoke_permission = UnaryCall(
            channel,
            b"/etcdserverpb.Auth/RoleRevokePermission",
            rpc_pb2.AuthRoleRevokePermissionRequest,
            rpc_pb2.AuthRoleRevokePermissionResponse,
        )


class LockRpc:
    """The server-side lock service."""

    def __init__(self, channel: Channel) -> None:
        self.lock = UnaryCall(channel, b"/v3lockpb.Lock/Lock", lock_pb2.LockRequest, lock_pb2.LockResponse)
        self.unlock = UnaryCall(channel, b"/v3lockpb.Lock/Unlock", lock_pb2.UnlockRequest, lock_pb2.UnlockResponse)


class ElectionRpc:
    """The server-side election service; its stream is :meth:`Rpc.observe`."""

    def __init__(self, channel: Channel) -> None:
        self.campaign = UnaryCall(
            channel, b"/v3electionpb.Election/Campaign", election_pb2.CampaignRequest, election_pb2.CampaignResponse
        )
        self.proclaim = UnaryCall(
            channel, b"/v3electionpb.Election/Proclaim", election_pb2.ProclaimRequest, election_pb2.ProclaimResponse
        )
        self.leader = UnaryCall(
            channel,
            b"/v3electionpb.Election/Leader",
            election_pb2.LeaderRequest,
            election_pb2.LeaderResponse,
            read_only=True,
        )
        self.resign = UnaryCall(
            channel, b"/v3electionpb.Election/Resign", election_pb2.ResignRequest, election_pb2.ResignResponse
        )


class HealthRpc:
    """The standard gRPC health check."""

    def __init__(self, channel: Channel) -> None:
        self.check = UnaryCall(
            channel,
            b"/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest,
            health_pb2.HealthCheckResponse,
            read_only=True,
        )


class Rpc:
    """All services over one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.kv = KvRpc(channel)
        self.lease = LeaseRpc(channel)
        self.cluster = ClusterRpc(channel)
        self.maintenance = MaintenanceRpc(channel)
        self.auth = AuthRpc(channel)
        self.lock = LockRpc(channel)
        self.election = ElectionRpc(channel)
        self.health = HealthRpc(channel)

    async def watch(self) -> MessageStream[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]:
        """Open a watch stream."""
        return MessageStream(await self._channel.stream(b"/etcdserverpb.Watch/Watch"), rpc_pb2.WatchResponse)

    async def lease_keepalive(
        self,
    ) -> MessageStream[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]:
        """Open a keepalive stream."""
        return MessageStream(
            await self._channel.stream(b"/etcdserverpb.Lease/LeaseKeepAlive"), rpc_pb2.LeaseKeepAliveResponse
        )

    async def snapshot(
        self, request: rpc_pb2.SnapshotRequest | None = None
    ) -> MessageStream[rpc_pb2.SnapshotRequest, rpc_pb2.SnapshotResponse]:
        """Ask one member for a snapshot of its data."""
        stream: MessageStream[rpc_pb2.SnapshotRequest, rpc_pb2.SnapshotResponse] = MessageStream(
            await self._channel.stream(b"/etcdserverpb.Maintenance/Snapshot"), rpc_pb2.SnapshotResponse
        )
        stream.send(request if request is not None else rpc_pb2.SnapshotRequest())
        stream.half_close()
        return stream

    async def observe(
        self, request: election_pb2.LeaderRequest
    ) -> MessageStream[election_pb2.LeaderRequest, election_pb2.LeaderResponse]:
        """Follow the leaders of an election through the server's election service."""
        stream: MessageStream[election_pb2.LeaderRequest, election_pb2.LeaderResponse] = MessageStream(
            await self._channel.stream(b"/v3electionpb.Election/Observe"), election_pb2.LeaderResponse
        )
        stream.send(request)
        stream.half_close()
        return stream
