"""The replicated state machine: what committed entries are applied to.

It holds the store, the leases, the membership and the alarms. Applying is a function of the state and the entry alone:
no clock, no randomness, no order of sets or hashes, so all members that applied the same entries hold the same bytes.
(The one thing that looks at a clock is the leader's expiry of leases, which ``now`` feeds and which is no part of the
replicated state.)

A snapshot is a header chunk (JSON: index, term, members, leases, alarms, version) and then the store's chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from itertools import chain
from typing import cast

import orjson

from kvserver import errors
from kvserver.errors import DataDirError, KvError
from kvserver.lease import Lessor
from kvserver.mvcc import SnapshotFormatError, Store, WatchableStore
from kvserver.mvcc.requests import apply_delete_range, apply_put, apply_range, apply_range_slices
from kvserver.mvcc.txn import execute, is_read_only
from kvserver.node import kinds
from kvserver.node.answers import HeaderEncoder
from kvserver.node.membership import Member, Membership
from kvserver.proto.rpc_pb2 import (
    CORRUPT,
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    AlarmType,
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    RangeRequest,
    TxnRequest,
)
from kvserver.proto.rpc_pb2 import Member as MemberMessage
from kvserver.raft import ConfChange, ConfState, Entry

log = logging.getLogger(__name__)

Result = bytes | KvError
"""A serialized response, or why there is none."""

Done = Callable[[Result], None]
"""The completion of a request."""

SNAPSHOT_FORMAT = 1

_REFUSED_WHEN_CORRUPT = (
    kinds.PUT,
    kinds.DELETE_RANGE,
    kinds.TXN,
    kinds.COMPACT,
    kinds.LEASE_GRANT,
    kinds.LEASE_REVOKE,
)


class Job:
    """Long work under way: a generator that does one bounded slice a step, and who waits for what it returns."""

    __slots__ = ("done", "steps")

    def __init__(self, steps: Generator[None, None, bytes], done: Done | None = None) -> None:
        self.steps = steps
        self.done = done


Applier = Callable[[bytes, object], Result | Job]


class StateMachine:
    """The state of one member; changed by :meth:`apply` only."""

    def __init__(self, headers: HeaderEncoder, *, lease_ttl_min_seconds: int, progress_interval_ticks: int) -> None:
        self.headers = headers
        self.lessor = Lessor(lease_ttl_min_seconds)
        self.store = Store(self.lessor)
        self.watchable = WatchableStore(self.store, progress_interval_ticks)
        self.membership = Membership()
        self.conf_state = ConfState()
        self.applied_index = 0
        self.applied_term = 0
        self.now = 0.0
        self.puts = 0
        self.deletes = 0
        self.txns = 0
        self.leases_granted = 0
        self.leases_revoked = 0
        self.jobs: list[Job] = []
        """Long work that applying began; the engine takes it over."""
        self.conf_changes: list[ConfChange] = []
        self._progress_interval_ticks = progress_interval_ticks
        self.no_space = False
        """Whether NOSPACE is raised, by any member."""
        self.corrupt = False
        """Whether CORRUPT is raised, by any member."""
        self._alarms: dict[tuple[int, AlarmType.ValueType], None] = {}
        self._appliers = self._normal_appliers()

    def _normal_appliers(self) -> dict[int, Applier]:
        return {
            kinds.PUT[0]: self._apply_put,
            kinds.DELETE_RANGE[0]: self._apply_delete_range,
            kinds.TXN[0]: self._apply_txn,
            kinds.COMPACT[0]: self._apply_compact,
            kinds.LEASE_GRANT[0]: self._apply_lease_grant,
            kinds.LEASE_REVOKE[0]: self._apply_lease_revoke,
            kinds.ALARM[0]: self._apply_alarm,
            kinds.MEMBER_PUBLISH[0]: self._apply_member_publish,
            kinds.CLUSTER_VERSION[0]: self._apply_cluster_version,
        }

    # -- applying -------------------------------------------------------------------------------------------------

    def apply(self, entry: Entry, request: object) -> Result | Job:
        """Apply one committed entry.

        Hot: one call a client write (benchmark ``put``).

        Args:
            entry: the entry.
            request: its parsed request if this member proposed it, else None.

        Returns:
            The answer to whoever proposed it, or the job that will have it; an error leaves the state as it was.

        Raises:
            DataDirError: the entry is of a kind that this version does not know.
        """
        if entry.type:
            return self._apply_conf_change(entry)
        data = entry.data
        if not data:
            return b""
        try:
            applier = self._appliers[data[0]]
        except KeyError:
            raise DataDirError(
                f"entry {entry.index} is of kind {data[0]}, which this version does not know: a newer one wrote it"
            ) from None
        try:
            return applier(data, request)
        except KvError as error:
            return error

    def _apply_put(self, data: bytes, request: object) -> Result:
        put = PutRequest.FromString(data[1:]) if request is None else cast(PutRequest, request)
        self.puts += 1
        store = self.store
        if put.lease or put.ignore_lease or put.ignore_value:
            return apply_put(store, put, self.headers.framed)
        previous = store.put(put.key, put.value)
        if previous is not None and put.prev_kv:
            return self.headers.framed(store.revision) + previous
        return self.headers.framed(store.revision)

    def _apply_delete_range(self, data: bytes, request: object) -> Result:
        if not isinstance(request, DeleteRangeRequest):
            request = DeleteRangeRequest.FromString(data[1:])
        self.deletes += 1
        return apply_delete_range(self.store, request, self.headers.framed)

    def _apply_txn(self, data: bytes, request: object) -> Result:
        if not isinstance(request, TxnRequest):
            request = TxnRequest.FromString(data[1:])
        self.txns += 1
        return execute(self.store, request, self.headers.framed)

    def _apply_compact(self, data: bytes, request: object) -> Result | Job:
        if not isinstance(request, CompactionRequest):
            request = CompactionRequest.FromString(data[1:])
        removal = self.store.compact(request.revision)
        answer = CompactionResponse(header=self.headers.message(self.store.revision)).SerializeToString()
        job = self._add_job(removal, answer)
        return job if request.physical else answer

    def _add_job(self, removal: Generator[None, None, None], answer: bytes = b"") -> Job:
        def steps() -> Generator[None, None, bytes]:
            yield from removal
            return answer

        job = Job(steps())
        self.jobs.append(job)
        return job

    def _apply_lease_grant(self, data: bytes, request: object) -> Result:
        if not isinstance(request, LeaseGrantRequest):
            request = LeaseGrantRequest.FromString(data[1:])
        lease = self.lessor.grant(request.ID, request.TTL, self.now)
        self.leases_granted += 1
        return LeaseGrantResponse(
            header=self.headers.message(self.store.revision), ID=lease.lease_id, TTL=lease.ttl
        ).SerializeToString()

    def _apply_lease_revoke(self, data: bytes, request: object) -> Result:
        if not isinstance(request, LeaseRevokeRequest):
            request = LeaseRevokeRequest.FromString(data[1:])
        self.store.delete_keys(self.lessor.revoke(request.ID))
        self.leases_revoked += 1
        return LeaseRevokeResponse(header=self.headers.message(self.store.revision)).SerializeToString()

    def _apply_alarm(self, data: bytes, request: object) -> Result:
        if not isinstance(request, AlarmRequest):
            request = AlarmRequest.FromString(data[1:])
        alarm = (request.memberID, request.alarm)
        changed = []
        if request.action == AlarmRequest.ACTIVATE:
            self._alarms[alarm] = None
            changed = [alarm]
        elif request.action == AlarmRequest.DEACTIVATE and alarm in self._alarms:
            del self._alarms[alarm]
            changed = [alarm]
        self._alarms_changed()
        return AlarmResponse(
            header=self.headers.message(self.store.revision),
            alarms=[AlarmMember(memberID=member_id, alarm=kind) for member_id, kind in changed],
        ).SerializeToString()

    def _apply_member_publish(self, data: bytes, request: object) -> Result:
        message = MemberMessage.FromString(data[1:])
        self.membership.publish(message.ID, message.name, message.clientURLs)
        log.info("published member %x with name %s and client URLs %s", message.ID, message.name, message.clientURLs)
        return b""

    def _apply_cluster_version(self, data: bytes, request: object) -> Result:
        self.membership.cluster_version = data[1:].decode()
        log.info("enabled capabilities for version %s", self.membership.cluster_version)
        return b""

    def _apply_conf_change(self, entry: Entry) -> Result:
        change = ConfChange.decode(entry.data)
        self.conf_changes.append(change)
        if change.context:
            self.membership.add(Member.from_message(MemberMessage.FromString(change.context)))
        return b""

    # -- reading --------------------------------------------------------------------------------------------------

    def range(self, request: RangeRequest) -> bytes:
        """Answer a range of few keys at once.

        Raises:
            CompactedError, FutureRevisionError: the revision is out of what the store keeps.
            CorruptError: that alarm is raised.
        """
        if self.corrupt:
            raise errors.CorruptError
        return apply_range(self.store, request, self.headers.framed)

    def range_slices(self, request: RangeRequest) -> Generator[None, None, bytes]:
        """Answer a large range in slices; raises as :meth:`range` does."""
        if self.corrupt:
            raise errors.CorruptError
        return apply_range_slices(self.store, request, self.headers.framed)

    def read_txn(self, request: TxnRequest) -> Result:
        """Run a txn that writes nothing."""
        if self.corrupt:
            return errors.CorruptError()
        try:
            return execute(self.store, request, self.headers.framed)
        except KvError as error:
            return error

    is_read_only = staticmethod(is_read_only)

    def alarms(self) -> list[AlarmMember]:
        """List the active alarms."""
        return [AlarmMember(memberID=member_id, alarm=kind) for member_id, kind in sorted(self._alarms)]

    def _alarms_changed(self) -> None:
        """Choose how entries are applied: NOSPACE refuses what makes the store grow, CORRUPT all but alarms."""
        raised = [kind for _, kind in self._alarms]
        self.no_space = NOSPACE in raised
        self.corrupt = CORRUPT in raised
        self._appliers = self._normal_appliers()
        if self.no_space:
            self._appliers[kinds.PUT[0]] = self._refuse_growth
            self._appliers[kinds.LEASE_GRANT[0]] = self._refuse_growth
            self._appliers[kinds.TXN[0]] = self._apply_shrinking_txn
        if self.corrupt:
            for kind in _REFUSED_WHEN_CORRUPT:
                self._appliers[kind[0]] = self._refuse_corrupt

    @staticmethod
    def _refuse_growth(data: bytes, request: object) -> Result:
        raise errors.NoSpaceError

    @staticmethod
    def _refuse_corrupt(data: bytes, request: object) -> Result:
        raise errors.CorruptError

    def _apply_shrinking_txn(self, data: bytes, request: object) -> Result:
        if not isinstance(request, TxnRequest):
            request = TxnRequest.FromString(data[1:])
        if _has_put(request):
            raise errors.NoSpaceError
        return self._apply_txn(data, request)

    # -- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Iterator[bytes]:
        """Pin the state as it is now, and answer its chunks, to be consumed while the state goes on changing."""
        header = orjson.dumps(
            {
                "format": SNAPSHOT_FORMAT,
                "index": self.applied_index,
                "term": self.applied_term,
                "cluster_id": f"{self.headers.cluster_id:x}",
                "cluster_version": self.membership.cluster_version,
                "members": [member.message().SerializeToString().hex() for member in self.membership.members()],
                "conf_state": asdict(self.conf_state),
                "leases": self.lessor.snapshot(),
                "alarms": sorted(self._alarms),
            }
        )
        return chain([header], self.store.snapshot())

    def restore(self, chunks: Iterator[bytes], name: str) -> None:
        """Replace the state by a snapshot's; for a member that starts.

        Args:
            chunks: as :meth:`snapshot` made them.
            name: where they come from, for the error.

        Raises:
            DataDirError: they are of another format or another cluster.
        """
        try:
            header = orjson.loads(next(chunks))
            if header["format"] != SNAPSHOT_FORMAT:
                raise DataDirError(
                    f"{name}: snapshot format {header['format']!r}, this version reads {SNAPSHOT_FORMAT}"
                )
            if int(header["cluster_id"], 16) != self.headers.cluster_id:
                raise DataDirError(
                    f"{name}: the snapshot is of cluster {header['cluster_id']}, the log of cluster "
                    f"{self.headers.cluster_id:x}: the directory was put together from two members"
                )
            members = [MemberMessage.FromString(bytes.fromhex(text)) for text in header["members"]]
            self.membership = Membership(
                {message.ID: Member.from_message(message) for message in members}, header["cluster_version"]
            )
            self._alarms = dict.fromkeys((member_id, kind) for member_id, kind in header["alarms"])
            state = header["conf_state"]
            self.conf_state = ConfState(
                tuple(state["voters"]),
                tuple(state["learners"]),
                tuple(state["voters_outgoing"]),
                tuple(state["learners_next"]),
                state["auto_leave"],
            )
            self._alarms_changed()
            leases = [(lease_id, ttl) for lease_id, ttl in header["leases"]]
            self.applied_index = header["index"]
            self.applied_term = header["term"]
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise DataDirError(f"{name}: the snapshot's header is not of this format: {error!r}") from error
        try:
            self.store = Store.restore(chunks, self.lessor)
        except SnapshotFormatError as error:
            raise DataDirError(f"{name}: the snapshot's state is not of this format: {error}") from error
        self.watchable = WatchableStore(self.store, self._progress_interval_ticks)
        self.lessor.restore(leases, self.store.leased_keys())
        unfinished = self.store.resume_compaction()
        if unfinished is not None:
            self._add_job(unfinished)


def _has_put(request: TxnRequest) -> bool:
    return any(
        operation.HasField("request_put") or (operation.HasField("request_txn") and _has_put(operation.request_txn))
        for operation in (*request.success, *request.failure)
    )
