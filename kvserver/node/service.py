"""The facade of the node: what the gRPC services, the JSON gateway and the health pages call.

Every call completes by ``done(result)`` with the serialized response (header included) or the error, on the loop
thread and possibly before the call returns. :meth:`NodeService.call` is the same to be awaited. Writes take the
request's bytes beside the parsed message: the bytes go into the log as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TypeVarTuple

from kvserver import errors
from kvserver.errors import KvError
from kvserver.mvcc import WatchSink, WatchStream
from kvserver.node import kinds
from kvserver.node.engine import Engine
from kvserver.node.machine import Done, Result
from kvserver.proto.rpc_pb2 import (
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    DefragmentRequest,
    DefragmentResponse,
    DeleteRangeRequest,
    HashKVRequest,
    HashKVResponse,
    HashRequest,
    HashResponse,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesRequest,
    LeaseLeasesResponse,
    LeaseRevokeRequest,
    LeaseStatus,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    MemberListRequest,
    MemberListResponse,
    PutRequest,
    RangeRequest,
    ResponseHeader,
    StatusRequest,
    StatusResponse,
    TxnRequest,
)
from kvserver.runtime import Clock, Rng
from kvserver.version import ETCD_VERSION

Arguments = TypeVarTuple("Arguments")


class NodeService:
    """One member as its clients' surfaces see it.

    Attributes:
        cluster_id: the cluster's id, 64 bit.
        member_id: this member's id, 64 bit.
        name: this member's name.
    """

    def __init__(
        self, engine: Engine, *, clock: Clock, rng: Rng, request_bytes_max: int, txn_operations_max: int
    ) -> None:
        self._engine = engine
        self._machine = engine.machine
        self._store = engine.machine.watchable.store
        self._headers = engine.machine.headers
        self._lessor = engine.machine.lessor
        self._clock = clock
        self._rng = rng
        self._propose = engine.propose
        self.request_bytes_max = request_bytes_max
        self.txn_operations_max = txn_operations_max
        self.cluster_id = self._headers.cluster_id
        self.member_id = self._headers.member_id
        self.name = engine.settings.name

    # -- key-values -----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Answer the read of one key at the current revision: what a RangeRequest with nothing but a key asks.

        None if the local state may not be read at this moment without asking the cluster; :meth:`range` does.
        Hot: the whole of most reads (benchmark ``range``).
        """
        if not self._engine.reads_are_local:
            return None
        store = self._store
        record = store.get(key)
        header = self._headers.framed(store.revision)
        return header if record is None else header + record + b"\x20\x01"

    def range(self, request: RangeRequest, done: Done) -> None:
        """Read a range; linearizable unless the request says serializable.

        Hot: one call a client read (benchmark ``range``).
        """
        if request.serializable or self._engine.reads_are_local:
            self._range_now(request, done)
        else:
            self._engine.read(lambda error: done(error) if error is not None else self._range_now(request, done))

    def _range_now(self, request: RangeRequest, done: Done) -> None:
        store = self._store
        try:
            if store.estimate(request.key, request.range_end) > store.SLICE_KEYS:
                self._engine.add_job(self._machine.range_slices(request), done)
                return
            done(self._machine.range(request))
        except KvError as error:
            done(error)

    def put(self, raw: bytes, request: PutRequest, done: Done) -> None:
        """Write a key. Hot: one call a client write (benchmark ``put``)."""
        if len(raw) > self.request_bytes_max:
            done(errors.RequestTooLargeError())
        else:
            self._propose(kinds.PUT, raw, request, done)

    def delete_range(self, raw: bytes, request: DeleteRangeRequest, done: Done) -> None:
        """Delete a range."""
        self._write(kinds.DELETE_RANGE, raw, request, done)

    def txn(self, raw: bytes, request: TxnRequest, done: Done) -> None:
        """Run a txn; one that only reads does not go through the log."""
        if self._machine.is_read_only(request):
            self._engine.read(lambda error: done(error if error is not None else self._machine.read_txn(request)))
        else:
            self._write(kinds.TXN, raw, request, done)

    def compact(self, raw: bytes, request: CompactionRequest, done: Done) -> None:
        """Forget history; a physical compaction answers when the removal is done."""
        self._write(kinds.COMPACT, raw, request, done)

    def _write(self, kind: bytes, raw: bytes, request: object, done: Done) -> None:
        if len(raw) > self.request_bytes_max:
            done(errors.RequestTooLargeError())
        else:
            self._propose(kind, raw, request, done)

    # -- watch ----------------------------------------------------------------------------------------------------

    def watch_stream(self, sink: WatchSink) -> WatchStream:
        """Open a stream of watchers that deliver to ``sink``."""
        return self._machine.watchable.new_stream(sink)

    # -- leases ---------------------------------------------------------------------------------------------------

    def lease_grant(self, raw: bytes, request: LeaseGrantRequest, done: Done) -> None:
        """Grant a lease; id 0 becomes a random positive id before it is proposed, so all members agree on it."""
        if not request.ID:
            request.ID = self._rng.randrange(1, 1 << 63)
            raw = request.SerializeToString()
        self._write(kinds.LEASE_GRANT, raw, request, done)

    def lease_revoke(self, raw: bytes, request: LeaseRevokeRequest, done: Done) -> None:
        """Revoke a lease and delete its keys."""
        self._write(kinds.LEASE_REVOKE, raw, request, done)

    def lease_keepalive(self, request: LeaseKeepAliveRequest, done: Done) -> None:
        """Renew a lease; TTL 0 in the answer says that it is gone."""
        if not self._engine.is_leader:
            done(errors.NoLeaderError())
            return
        try:
            ttl = self._lessor.renew(request.ID, self._clock.monotonic())
            self._engine.leases_renewed += 1
        except errors.LeaseNotFoundError:
            ttl = 0
        done(LeaseKeepAliveResponse(header=self.response_header(), ID=request.ID, TTL=ttl).SerializeToString())

    def lease_time_to_live(self, request: LeaseTimeToLiveRequest, done: Done) -> None:
        """Tell what is left of a lease; TTL -1 says that there is none."""
        response = LeaseTimeToLiveResponse(header=self.response_header(), ID=request.ID)
        try:
            left = self._lessor.time_to_live(request.ID, self._clock.monotonic(), request.keys)
        except errors.LeaseNotFoundError:
            response.TTL = -1
        else:
            response.TTL = left.remaining
            response.grantedTTL = left.granted
            response.keys.extend(left.keys)
        done(response.SerializeToString())

    def lease_leases(self, request: LeaseLeasesRequest, done: Done) -> None:
        """List the ids of all leases."""
        leases = [LeaseStatus(ID=lease_id) for lease_id in self._lessor.leases()]
        done(LeaseLeasesResponse(header=self.response_header(), leases=leases).SerializeToString())

    # -- maintenance and cluster ----------------------------------------------------------------------------------

    def status(self, request: StatusRequest, done: Done) -> None:
        """Answer this member's version, sizes and place in the Raft log."""
        raft = self._engine.raft
        size = self._store.size_bytes
        done(
            StatusResponse(
                header=self.response_header(),
                version=ETCD_VERSION,
                dbSize=size,
                dbSizeInUse=size,
                leader=raft.leader_id,
                raftIndex=raft.commit_index,
                raftTerm=raft.term,
                raftAppliedIndex=self._machine.applied_index,
                errors=self._status_errors(),
            ).SerializeToString()
        )

    def _status_errors(self) -> list[str]:
        found = [] if self._engine.raft.leader_id else [errors.NoLeaderError.message]
        found.extend(
            f"memberID:{alarm.memberID} alarm:{'NOSPACE' if alarm.alarm == NOSPACE else 'CORRUPT'} "
            for alarm in self._machine.alarms()
        )
        return found

    def alarm(self, request: AlarmRequest, done: Done) -> None:
        """List alarms; activating and deactivating go through the log."""
        if request.action == AlarmRequest.GET:
            alarms: list[AlarmMember] = self._machine.alarms()
            done(AlarmResponse(header=self.response_header(), alarms=alarms).SerializeToString())
        else:
            self._write(kinds.ALARM, request.SerializeToString(), request, done)

    def hash(self, request: HashRequest, done: Done) -> None:
        """Hash the whole store as it is."""

        def steps() -> Generator[None, None, bytes]:
            value, _, _ = yield from self._store.hash_kv_slices(0)
            return HashResponse(header=self.response_header(), hash=value).SerializeToString()

        self._engine.add_job(steps(), done)

    def hash_kv(self, request: HashKVRequest, done: Done) -> None:
        """Hash the key-values up to a revision, by etcd's algorithm."""

        def steps() -> Generator[None, None, bytes]:
            value, compact_revision, _ = yield from self._store.hash_kv_slices(request.revision)
            return HashKVResponse(
                header=self.response_header(), hash=value, compact_revision=compact_revision
            ).SerializeToString()

        self._engine.add_job(steps(), done)

    def defragment(self, request: DefragmentRequest, done: Done) -> None:
        """Rewrite the snapshot and drop the log before it; answers when that is durable."""

        def saved(result: Result) -> None:
            # As etcd's, the answer has no header.
            done(result if isinstance(result, KvError) else DefragmentResponse().SerializeToString())

        self._engine.request_snapshot(saved)

    def member_list(self, request: MemberListRequest, done: Done) -> None:
        """List the members."""

        def answer(error: KvError | None) -> None:
            if error is not None:
                done(error)
                return
            members = [member.message() for member in self._machine.membership.members()]
            header = ResponseHeader(cluster_id=self.cluster_id, member_id=self.member_id, raft_term=self._headers.term)
            done(MemberListResponse(header=header, members=members).SerializeToString())

        if request.linearizable:
            self._engine.read(answer)
        else:
            answer(None)

    # -- everything else ------------------------------------------------------------------------------------------

    def response_header(self, revision: int | None = None) -> ResponseHeader:
        """Answer a header message at ``revision``, or at the store's current one."""
        return self._headers.message(self._store.revision if revision is None else revision)

    def header_bytes(self, revision: int | None = None) -> bytes:
        """Answer the header framed as field 1 of a response."""
        return self._headers.framed(self._store.revision if revision is None else revision)

    @property
    def leader_id(self) -> int:
        """The leader's id, 0 when there is none."""
        return self._engine.raft.leader_id

    def healthy(self, serializable: bool, exclude: frozenset[str]) -> tuple[bool, str]:
        """Tell whether this member serves: no alarm but the excluded ones, and a leader unless serializable."""
        for alarm in self._machine.alarms():
            name = "NOSPACE" if alarm.alarm == NOSPACE else "CORRUPT"
            if name not in exclude:
                return False, f"ALARM {name}"
        if not serializable and not self._engine.raft.leader_id:
            return False, "RAFT NO LEADER"
        return True, ""

    async def call(self, method: Callable[[*Arguments, Done], None], *args: *Arguments) -> bytes:
        """Await one of the calls above.

        Raises:
            KvError: what the call answered.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(result: Result) -> None:
            if future.done():
                return
            if isinstance(result, KvError):
                future.set_exception(result)
            else:
                future.set_result(result)

        method(*args, done)
        return await future
