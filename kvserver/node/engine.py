"""The engine: one member as a pure machine, the one place that orders persist, send and apply.

Inputs are proposals with their completions, reads, peer messages, finished disk writes and ticks. Output comes in
turns, which the shell (``node.runner``, or a simulator) drives in this order::

    output = engine.ready()          what to write, what to send; None when there is nothing to do
    shell starts output.persist, sends output.messages
    answers = engine.apply()         applies what is committed, while the disk is still writing
    shell calls done(result) of each answer
    ... later, when the write is durable: engine.persisted(output.persist)

Rules kept here:

- Nothing is answered before it is applied, nothing applied before it is committed, and the member counts itself towards
  a commit only after ``persisted``.
- At most one write is outstanding; what arrives meanwhile goes together into the next one (group commit).
- ``apply`` reads no clock and no randomness: what an entry needs of both was decided before it was proposed.
- Long work (compaction, large reads, hashes, watchers catching up) runs as generators, one bounded slice a
  :meth:`Engine.work` call.

No asyncio, socket, file, clock or randomness may be used here: the simulation runs this very code.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain

from kvserver import errors, limits
from kvserver.errors import KvError
from kvserver.limits import PENDING_PROPOSALS_MAX
from kvserver.node import kinds, records
from kvserver.node.autocompact import AutoCompactor
from kvserver.node.machine import Done, Job, Result, StateMachine
from kvserver.proto.rpc_pb2 import NOSPACE, AlarmRequest, CompactionRequest, LeaseRevokeRequest, Member
from kvserver.raft import Entry, HardState, Message, ProposalDroppedError, RawNode, Ready

log = logging.getLogger(__name__)

Reader = Callable[[KvError | None], None]
"""Called when a read may look at the local state (None), or cannot be linearizable (the error)."""


@dataclass(frozen=True, slots=True)
class Persist:
    """What one disk write has to make durable: typed record payloads, in order."""

    records: list[tuple[int, bytes]]
    ready: Ready | None
    marker_index: int = 0
    """Index of the snapshot whose marker is among the records, or 0."""
    first_entry_index: int = 0
    """Index of the first entry among the records, or 0."""


@dataclass(frozen=True, slots=True)
class SnapshotOrder:
    """A snapshot to save: the state at ``index``, produced lazily in chunks while the engine goes on."""

    index: int
    term: int
    chunks: Iterator[bytes]


@dataclass(slots=True)
class Output:
    """One turn's orders to the shell."""

    persist: Persist | None = None
    messages: list[Message] = field(default_factory=list)
    snapshot: SnapshotOrder | None = None


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the operator may set; times in ticks (one tick is the heartbeat interval)."""

    name: str
    cluster_version: str
    snapshot_count: int
    snapshot_catchup_entries: int
    request_timeout_ticks: int
    lease_revokes_per_tick: int
    election_timeout_seconds: float
    quota_bytes: int
    auto_compaction_period_seconds: float = 0.0
    auto_compaction_revisions: int = 0


class Engine:
    """One member: Raft core, replicated state and the requests that wait for them."""

    def __init__(
        self,
        raft: RawNode,
        machine: StateMachine,
        settings: EngineSettings,
        *,
        member_id: int,
        wake: Callable[[], None],
    ) -> None:
        self.raft = raft
        self.machine = machine
        self.settings = settings
        self.member_id = member_id
        self.client_urls: tuple[str, ...] = ()
        self._wake = wake
        machine.watchable.wake = self.wake
        self._awake = False
        self._pending: dict[int, tuple[object, Done | None, int]] = {}
        # Reads with the tick they came at: not asked for yet, asked for by context, confirmed at an index.
        self._reads: list[tuple[Reader, int]] = []
        self._read_rounds: dict[bytes, list[tuple[Reader, int]]] = {}
        self._confirmed: deque[tuple[int, list[tuple[Reader, int]]]] = deque()
        self._read_round = 0
        self._jobs: deque[Job] = deque()
        self._jobs_running: deque[Job] = deque()
        self._to_apply: list[Entry] = []
        self._ticks = 0
        self._writing = False
        self._writing_marker = False
        self._revoking: set[int] = set()
        self._snapshot_running = False
        self._snapshot_index = machine.applied_index
        self._snapshot_bytes = 0
        self._bytes_since_snapshot = 0
        self._snapshot_wanted = False
        self._snapshot_waiters: list[Done] = []
        self._snapshot_wishes: list[Done] = []
        self._marker: tuple[int, int] | None = None
        self._was_leader = False
        self._leader_seen = 0
        self._campaign_at: int | None = None
        self._stopped = False
        self._auto_compactor = AutoCompactor(
            settings.auto_compaction_period_seconds, settings.auto_compaction_revisions
        )
        self._space_alarm_proposed = False
        self.reads_are_local = False
        self.leader_changes = 0
        self.proposals_failed = 0
        self.reads_failed = 0
        self.leases_expired = 0
        self.leases_renewed = 0
        """Counted by the facade, which renews them."""

    # -- inputs ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: a member that is the only voter campaigns as soon as it has applied what it knows committed."""
        self._campaign_at = self.raft.commit_index
        self._maybe_campaign()
        self.wake()

    def propose(self, kind: bytes, raw: bytes, request: object, done: Done | None) -> None:
        """Propose a write; ``done`` gets the answer, or the error, once it is applied.

        Hot: one call a client write (benchmark ``put``).

        Args:
            kind: one of ``node.kinds``.
            raw: the serialized request, stored as it is.
            request: the parsed request, so that applying need not parse it again; None if there is none.
            done: the completion, or None when nobody waits.
        """
        if len(self._pending) >= PENDING_PROPOSALS_MAX or self._stopped:
            self.proposals_failed += 1
            if done is not None:
                done(errors.StoppedError() if self._stopped else errors.TooManyRequestsError())
            return
        try:
            index = self.raft.propose(kind + raw)
        except ProposalDroppedError:
            self.proposals_failed += 1
            if done is not None:
                done(errors.NoLeaderError())
            return
        self._pending[index] = (request, done, self._ticks)
        if not self._awake:
            self._awake = True
            self._wake()

    def read(self, ready: Reader) -> None:
        """Call ``ready`` as soon as a read of the local state is linearizable (None), or cannot become so (error)."""
        if self.reads_are_local:
            ready(None)
        elif self._stopped:
            ready(errors.StoppedError())
        elif len(self._reads) >= limits.PENDING_READS_MAX:
            ready(errors.TooManyRequestsError())
        else:
            self._reads.append((ready, self._ticks))
            self.wake()

    def add_job(self, steps: Generator[None, None, bytes], done: Done) -> None:
        """Take on a long read: a generator that does one bounded slice a step and returns the answer."""
        if self._stopped:
            done(errors.StoppedError())
        elif len(self._jobs) >= limits.PENDING_JOBS_MAX:
            done(errors.TooManyRequestsError())
        else:
            self._jobs.append(Job(_isolated(steps), done))
            self.wake()

    def step(self, message: Message) -> None:
        """Take a message of another member."""
        self.raft.step(message)
        self.wake()

    def tick(self, now: float) -> None:
        """Let one tick pass.

        Args:
            now: monotonic time in seconds; only leases look at it.
        """
        self.machine.now = now
        self._ticks += 1
        self.raft.tick()
        if not self._stopped:
            if self._was_leader:
                self._revoke_expired()
                self._compact_by_itself()
            self._watch_space()
        self._expire_requests()
        self.machine.watchable.tick(self._ticks)
        self.wake()

    def request_snapshot(self, done: Done) -> None:
        """Save a snapshot now, and drop the log before it; ``done`` gets ``b""`` when it is durable."""
        if self._stopped:
            done(errors.StoppedError())
            return
        self._snapshot_wishes.append(done)
        self._snapshot_wanted = True
        self.wake()

    def persisted(self, persist: Persist) -> None:
        """Note that a write is durable."""
        self._writing = False
        if persist.ready is not None:
            self.raft.persisted(persist.ready)
        if persist.marker_index:
            self._writing_marker = False
            self._snapshot_ended(b"")
        self.wake()

    def snapshot_saved(self, order: SnapshotOrder, saved_bytes: int) -> None:
        """Note that a snapshot file is durable; its marker goes into the log next, and only then it counts."""
        self._marker = (order.index, order.term)
        self._snapshot_index = order.index
        self._snapshot_bytes = saved_bytes
        self.wake()

    def snapshot_failed(self, error: KvError) -> None:
        """Note that a snapshot could not be saved; the log is kept and the next one will be tried in its time."""
        self._snapshot_index = self.machine.applied_index
        self._snapshot_ended(error)
        self.wake()

    def _snapshot_ended(self, result: Result) -> None:
        self._snapshot_running = False
        waiters, self._snapshot_waiters = self._snapshot_waiters, []
        for done in waiters:
            done(result)

    def drain(self) -> None:
        """Refuse what comes from now on; what is under way goes on."""
        self._stopped = True

    @property
    def is_drained(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return not (self._pending or self._reads or self._read_rounds or self._confirmed) and all(
            job.done is None for job in (*self._jobs_running, *self._jobs)
        )

    def stop(self) -> None:
        """Refuse what comes from now on and answer all who wait."""
        self._stopped = True
        self.reads_are_local = False
        self._fail_pending(errors.StoppedError())
        for group in (self._reads, *self._read_rounds.values(), *(group for _, group in self._confirmed)):
            for ready, _ in group:
                ready(errors.StoppedError())
        self._reads = []
        self._read_rounds.clear()
        self._confirmed.clear()
        self._snapshot_wanted = False
        waiters = [*self._snapshot_waiters, *self._snapshot_wishes]
        self._snapshot_waiters = []
        self._snapshot_wishes = []
        for done in waiters:
            done(errors.StoppedError())
        jobs = [*self._jobs_running, *self._jobs]
        self._jobs_running.clear()
        self._jobs.clear()
        for job in jobs:
            job.steps.close()
            if job.done is not None:
                job.done(errors.StoppedError())

    def _fail_pending(self, error: KvError) -> None:
        pending, self._pending = self._pending, {}
        for _, done, _ in pending.values():
            if done is not None:
                done(error)

    def wake(self) -> None:
        """Ask the shell for a turn."""
        if not self._awake:
            self._awake = True
            self._wake()

    # -- output ---------------------------------------------------------------------------------------------------

    def ready(self) -> Output | None:
        """Answer what the shell has to do now, or None."""
        self._awake = False
        if self._reads:
            self._start_read_round()
        raft = self.raft
        output = Output()
        if raft.has_ready() and not self._writing_marker:
            ready = raft.ready()
            if ready.soft_state is not None:
                self._leadership_changed(ready.soft_state.leader_id)
            output.messages = ready.messages
            self._to_apply = ready.committed_entries
            for state in ready.read_states:
                group = self._read_rounds.pop(state.context, None)
                if group:
                    self._confirmed.append((state.index, group))
            if ready.needs_persist:
                output.persist = self._persist(ready)
        elif not (
            (self._marker is not None and not self._writing)
            or (self._snapshot_wanted and not self._snapshot_running)
            or (self._confirmed and self._confirmed[0][0] <= self.machine.applied_index)
        ):
            return None
        if self._marker is not None and not self._writing:
            self._writing_marker = True
            output.persist = self._persist(None)
        if self._snapshot_wanted and not self._snapshot_running:
            self._snapshot_wanted = False
            self._snapshot_running = True
            self._bytes_since_snapshot = 0
            self._snapshot_waiters, self._snapshot_wishes = self._snapshot_wishes, []
            machine = self.machine
            output.snapshot = SnapshotOrder(machine.applied_index, machine.applied_term, machine.snapshot())
        return output

    def _persist(self, ready: Ready | None) -> Persist:
        """Order a write: what the Raft core wants written, and the marker of a saved snapshot if there is one."""
        self._writing = True
        written: list[tuple[int, bytes]] = []
        first_index = 0
        if ready is not None:
            if ready.entries:
                first_index = ready.entries[0].index
                for payload in records.encode_entries(ready.entries):
                    self._bytes_since_snapshot += len(payload)
                    written.append((records.ENTRIES, payload))
            if ready.hard_state is not None:
                written.append((records.HARD_STATE, records.encode_hard_state(ready.hard_state)))
                self.machine.headers.set_term(ready.hard_state.term)
        if self._marker is None:
            return Persist(written, ready, 0, first_index)
        index, term = self._marker
        self._marker = None
        raft = self.raft
        # The hard state goes along, since the log before the snapshot, with the last one in it, is about to go.
        hard_state = HardState(raft.term, raft.vote, raft.commit_index)
        written.append((records.HARD_STATE, records.encode_hard_state(hard_state)))
        written.append((records.SNAPSHOT_MARKER, records.encode_marker(index, term)))
        return Persist(written, ready, index, first_index)

    def apply(self) -> list[tuple[Done, Result]]:
        """Apply the entries that the last :meth:`ready` found committed, and answer who waited for them.

        Hot: the loop runs once a client write (benchmark ``put``).
        """
        answers: list[tuple[Done, Result]] = []
        entries = self._to_apply
        if entries:
            self._to_apply = []
            machine = self.machine
            pop = self._pending.pop
            apply = machine.apply
            for entry in entries:
                waiting = pop(entry.index, None)
                if waiting is None:
                    apply(entry, None)
                    continue
                request, done, _ = waiting
                result = apply(entry, request)
                if done is None:
                    continue
                if isinstance(result, Job):
                    result.done = done
                else:
                    answers.append((done, result))
            last = entries[-1]
            machine.applied_index = last.index
            machine.applied_term = last.term
            self.raft.applied_to(last.index)
            machine.watchable.flush()
            if machine.jobs:
                self._jobs.extend(machine.jobs)
                machine.jobs.clear()
            if machine.conf_changes:
                for change in machine.conf_changes:
                    machine.conf_state = self.raft.apply_conf_change(change)
                machine.conf_changes.clear()
            self._after_apply(last.index)
        confirmed = self._confirmed
        while confirmed and confirmed[0][0] <= self.machine.applied_index:
            for ready, _ in confirmed.popleft()[1]:
                ready(None)
        return answers

    def work(self) -> bool:
        """Do one bounded slice of long work; True when there is more."""
        running, waiting = self._jobs_running, self._jobs
        while waiting and len(running) < limits.JOBS_AT_ONCE:
            running.append(waiting.popleft())
        if running:
            self._advance(running.popleft())
        more = self.machine.watchable.sync_unsynced()
        return bool(running or waiting) or more

    def _advance(self, job: Job) -> None:
        """Do one slice of a job; answer who waits for it if that was the last."""
        try:
            next(job.steps)
        except StopIteration as end:
            result: Result = end.value
        except KvError as error:
            result = error
        else:
            self._jobs_running.append(job)
            return
        if job.done is not None:
            job.done(result)

    @property
    def has_work(self) -> bool:
        """Whether :meth:`work` has something to do."""
        return bool(self._jobs or self._jobs_running) or self.machine.watchable.has_work

    # -- inside ---------------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as of the last turn."""
        return self._was_leader

    @property
    def is_serving(self) -> bool:
        """Whether this member leads, alone, and has applied all that was committed before."""
        return self.raft.reads_are_local() and self.machine.applied_index >= self.raft.commit_index

    @property
    def pending_count(self) -> int:
        """Proposals that wait for their entry to be applied."""
        return len(self._pending)

    def _maybe_campaign(self) -> None:
        state = self.machine.conf_state
        if (
            self._campaign_at is not None
            and self.machine.applied_index >= self._campaign_at
            and state.voters == (self.member_id,)
            and not state.voters_outgoing
        ):
            self._campaign_at = None
            self.raft.campaign()

    def _after_apply(self, applied: int) -> None:
        settings = self.settings
        machine = self.machine
        if self._campaign_at is not None:
            self._maybe_campaign()
        self.reads_are_local = self.raft.reads_are_local() and not machine.corrupt and not self._stopped
        # Entries stay in memory for members that lag; the only member of a cluster has nobody to keep them for.
        alone = machine.conf_state.voters == (self.member_id,) and not machine.conf_state.learners
        kept = 0 if alone else settings.snapshot_catchup_entries
        if applied - self.raft.first_index() >= kept + limits.RAFT_LOG_SLACK_ENTRIES:
            self.raft.compact(applied - kept)
        if (
            applied - self._snapshot_index >= settings.snapshot_count
            and not self._snapshot_running
            and not self._stopped
            and self._bytes_since_snapshot >= self._snapshot_bytes - limits.SNAPSHOT_SMALL_BYTES
        ):
            self._snapshot_wanted = True
            self.wake()

    def _start_read_round(self) -> None:
        """Ask, once for all reads that wait, for an index at which they are linearizable."""
        if self.reads_are_local:
            group, self._reads = self._reads, []
            for ready, _ in group:
                ready(None)
            return
        self._read_round += 1
        context = self._read_round.to_bytes(8, "big")
        if self.raft.can_read_index() and self.raft.read_index(context):
            self._read_rounds[context] = self._reads
            self._reads = []

    def _leadership_changed(self, leader_id: int) -> None:
        leads = self.raft.is_leader
        if leader_id and leader_id != self._leader_seen:
            self.leader_changes += 1
        self._leader_seen = leader_id
        self.reads_are_local = False
        # What was asked of the last leader may never be answered: ask again.
        self._reads = [*chain.from_iterable(self._read_rounds.values()), *self._reads]
        self._read_rounds.clear()
        self.machine.headers.set_term(self.raft.term)
        if leads and not self._was_leader:
            self._was_leader = True
            self._revoking.clear()
            self._auto_compactor.reset()
            self.machine.lessor.promote(self.machine.now, self.settings.election_timeout_seconds)
            self._announce()
            log.info("became leader at term %d", self.raft.term)
        elif not leads and self._was_leader:
            self._was_leader = False
            self.machine.lessor.demote()
            # Another leader may put its own entries where these stand; whether they are committed is unknown.
            self._fail_pending(errors.TimeoutLeaderFailError())
            log.info("no longer leader at term %d", self.raft.term)

    def _announce(self) -> None:
        """Publish this member's name and client URLs, and the cluster's version, where they are not known yet."""
        settings = self.settings
        membership = self.machine.membership
        member = membership.get(self.member_id)
        if member is None or member.name != settings.name or member.client_urls != self.client_urls:
            message = Member(ID=self.member_id, name=settings.name, clientURLs=self.client_urls)
            self.propose(kinds.MEMBER_PUBLISH, message.SerializeToString(), message, None)
        if membership.cluster_version != settings.cluster_version:
            self.propose(kinds.CLUSTER_VERSION, settings.cluster_version.encode(), settings.cluster_version, None)

    def _revoke_expired(self) -> None:
        """Propose the revoke of leases whose time is over: expiry is decided here, by the leader, and nowhere else."""
        if self.machine.corrupt:
            return  # it would be refused
        for lease_id in self.machine.lessor.expired(self.machine.now, self.settings.lease_revokes_per_tick):
            if lease_id in self._revoking:
                continue
            self._revoking.add(lease_id)
            request = LeaseRevokeRequest(ID=lease_id)
            self.propose(kinds.LEASE_REVOKE, request.SerializeToString(), request, self._revoked(lease_id))

    def _revoked(self, lease_id: int) -> Done:
        def done(result: Result) -> None:
            self._revoking.discard(lease_id)
            if not isinstance(result, KvError):
                self.leases_expired += 1
            elif not isinstance(result, errors.LeaseNotFoundError):
                log.warning("could not revoke the expired lease %x, will try again: %s", lease_id, result)

        return done

    def _compact_by_itself(self) -> None:
        revision = self._auto_compactor.due(self.machine.now, self.machine.store.revision)
        if revision:
            request = CompactionRequest(revision=revision)
            self.propose(kinds.COMPACT, request.SerializeToString(), request, _log_compaction(revision))

    def _watch_space(self) -> None:
        """Raise NOSPACE when the store has outgrown its quota; it stays until an operator disarms it."""
        machine = self.machine
        if machine.store.size_bytes <= self.settings.quota_bytes or machine.no_space or self._space_alarm_proposed:
            return

        def done(result: Result) -> None:
            self._space_alarm_proposed = False

        self._space_alarm_proposed = True
        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=self.member_id, alarm=NOSPACE)
        log.warning("the store's %d bytes exceed --quota-backend-bytes", machine.store.size_bytes)
        self.propose(kinds.ALARM, request.SerializeToString(), request, done)

    def _expire_requests(self) -> None:
        """Answer those who waited too long; proposals keep their place in the log, their outcome is unknown."""
        oldest = self._ticks - self.settings.request_timeout_ticks
        overdue = []
        for index, (_, _, since) in self._pending.items():
            if since > oldest:
                break
            overdue.append(index)
        for index in overdue:
            _, done, _ = self._pending.pop(index)
            if done is not None:
                done(errors.RequestTimeoutError())
        for group in (self._reads, *self._read_rounds.values(), *(group for _, group in self._confirmed)):
            late = [ready for ready, since in group if since <= oldest]
            if late:
                group[:] = [item for item in group if item[1] > oldest]
                self.reads_failed += len(late)
                for ready in late:
                    ready(errors.RequestTimeoutError())
        for context in [context for context, group in self._read_rounds.items() if not group]:
            del self._read_rounds[context]


def _isolated(steps: Generator[None, None, bytes]) -> Generator[None, None, bytes]:
    """Keep a read that fails to itself; what changes the state and fails has to stop the member."""
    try:
        return (yield from steps)
    except KvError:
        raise
    except Exception:
        log.exception("a long read failed")
        raise KvError("kvserver: internal error, see the server's log") from None


def _log_compaction(revision: int) -> Done:
    def done(result: Result) -> None:
        if isinstance(result, KvError):
            log.info("automatic compaction to revision %d: %s", revision, result)
        else:
            log.info("compacted automatically to revision %d", revision)

    return done
